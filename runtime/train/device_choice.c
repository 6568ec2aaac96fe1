#define _GNU_SOURCE
#include "runtime/train/device_choice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/gpu_module.h"
#include "runtime/core/log.h"

// Compute capability that the module's kernels are built for: 8.0 and newer.
enum { OLDEST_MAJOR = 8 };

// What a rank wishes and sees, as it is shown to the others.
typedef struct rank_view {
    int32_t device, bf16, precision, transport, share; // of its config
    int32_t n_devices;                                 // GPUs that it can use
    int32_t index;                                     // its own among them
    int32_t nccl_works;
    int32_t has_nccl_host_id; // NCCL takes the rank for one on a machine of its own
    td_gpu_info gpu;
    char host[64];
    char no_gpu[384];  // why n_devices is 0
    char no_nccl[160]; // why nccl_works is 0
} rank_view;

// Every rank's view, and this rank.
typedef struct job_view {
    const rank_view *ranks;
    int size, rank;
} job_view;

// A GPU that cannot even be asked for its name is none, nor is one that is too old for the kernels.
static void look_at_gpu(const td_gpu_module *module, int local_rank, rank_view *view) {
    int count = module->device_count(view->no_gpu, sizeof view->no_gpu);
    if (count < 1)
        return;
    view->index = local_rank % count;
    if (module->device_describe(view->index, &view->gpu) != TD_OK) {
        snprintf(view->no_gpu, sizeof view->no_gpu, "%.383s", td_error_message());
        td_error_clear();
        return;
    }
    if (view->gpu.major >= OLDEST_MAJOR)
        view->n_devices = count;
    else
        snprintf(view->no_gpu, sizeof view->no_gpu,
                 "GPU %d, %s, has compute capability %d.%d, %d.0 or newer is needed", view->index,
                 view->gpu.name, view->gpu.major, view->gpu.minor, OLDEST_MAJOR);
}

static void look_at_nccl(const td_gpu_module *module, rank_view *view) {
    const char *host_id = getenv("NCCL_HOSTID");
    view->nccl_works = module->nccl->probe(view->no_nccl, sizeof view->no_nccl);
    view->has_nccl_host_id = host_id && host_id[0];
}

static void look(const td_config *config, const td_comm *comm, const td_gpu_module **module,
                 rank_view *view) {
    *view = (rank_view){.device = (int32_t)config->device,
                        .bf16 = config->bf16,
                        .precision = (int32_t)config->float32_matmul_precision,
                        .transport = (int32_t)config->transport,
                        .share = config->share_gpus};
    *module = NULL;
    if (gethostname(view->host, sizeof view->host - 1) != 0)
        snprintf(view->host, sizeof view->host, "this node");
    if (config->device == TD_DEVICE_CPU)
        return;
    td_gpu_module_load(module, view->no_gpu, sizeof view->no_gpu);
    if (!*module)
        return;
    look_at_gpu(*module, td_comm_local_rank(comm), view);
    if (td_comm_size(comm) > 1 && config->transport != TD_TRANSPORT_MPI)
        look_at_nccl(*module, view);
}

static td_status require_same_wishes(const job_view *job) {
    const rank_view *first = &job->ranks[0];
    for (int rank = 1; rank < job->size; rank++) {
        const rank_view *view = &job->ranks[rank];
        if (view->device != first->device || view->bf16 != first->bf16 ||
            view->precision != first->precision || view->transport != first->transport ||
            view->share != first->share)
            return td_fail(TD_ERR_USAGE,
                           "device, bf16, float32_matmul_precision, transport and share_gpus are "
                           "not the same on ranks 0 and %d",
                           rank);
    }
    return TD_OK;
}

// The lowest rank that has a GPU, or has none; -1: there is no such rank.
static int find_rank(const job_view *job, int with_gpu) {
    for (int rank = 0; rank < job->size; rank++)
        if ((job->ranks[rank].n_devices > 0) == with_gpu)
            return rank;
    return -1;
}

// All ranks compute on a GPU, or none does.
static td_status decide_kind(const job_view *job, int *out_is_gpu) {
    const rank_view *mine = &job->ranks[job->rank];
    int with = find_rank(job, 1), without = find_rank(job, 0);
    *out_is_gpu = without < 0;
    if (mine->device == TD_DEVICE_CUDA && with < 0)
        return td_fail(TD_ERR_USAGE, "device \"cuda\": no GPU can be used: %s",
                       job->ranks[0].no_gpu);
    if (with < 0 || without < 0)
        return TD_OK;
    return td_fail(TD_ERR_USAGE,
                   "rank %d on %s has no GPU (%s), rank %d on %s has one: start all ranks with a "
                   "GPU, or set device=cpu",
                   without, job->ranks[without].host, job->ranks[without].no_gpu, with,
                   job->ranks[with].host);
}

static int same_host(const rank_view *a, const rank_view *b) {
    return strcmp(a->host, b->host) == 0;
}

static int same_gpu(const rank_view *a, const rank_view *b) {
    return same_host(a, b) && strcmp(a->gpu.uuid, b->gpu.uuid) == 0;
}

static int count_like(const job_view *job, const rank_view *view,
                      int (*is_like)(const rank_view *, const rank_view *)) {
    int count = 0;
    for (int rank = 0; rank < job->size; rank++)
        count += is_like(&job->ranks[rank], view);
    return count;
}

// Two ranks with the same GPU, the lowest first. 0: there are none.
static int find_sharers(const job_view *job, int *out_a, int *out_b) {
    for (int a = 0; a < job->size; a++)
        for (int b = a + 1; b < job->size; b++)
            if (same_gpu(&job->ranks[a], &job->ranks[b])) {
                *out_a = a;
                *out_b = b;
                return 1;
            }
    return 0;
}

static td_status check_sharing(const job_view *job) {
    int a, b;
    if (job->ranks[0].share || !find_sharers(job, &a, &b))
        return TD_OK;
    const rank_view *view = &job->ranks[a];
    return td_fail(TD_ERR_USAGE,
                   "ranks %d and %d have the same GPU: %d ranks on %s see %d GPU%s: start one rank "
                   "per GPU or set share_gpus=true",
                   a, b, count_like(job, view, same_host), view->host, view->n_devices,
                   view->n_devices == 1 ? "" : "s");
}

// The same bits on any number of ranks are promised for one model of GPU.
static td_status check_models(const job_view *job) {
    const td_gpu_info *first = &job->ranks[0].gpu;
    for (int rank = 1; rank < job->size; rank++) {
        const td_gpu_info *gpu = &job->ranks[rank].gpu;
        if (strcmp(gpu->name, first->name) != 0 || gpu->major != first->major ||
            gpu->minor != first->minor)
            return td_fail(TD_ERR_USAGE,
                           "the ranks have different GPUs, rank 0 %s (on %s) and rank %d %s (on "
                           "%s): start them on one model, by CUDA_VISIBLE_DEVICES or the choice of "
                           "nodes",
                           first->name, job->ranks[0].host, rank, gpu->name, job->ranks[rank].host);
    }
    return TD_OK;
}

static void warn_of_drivers(const job_view *job) {
    int first = job->ranks[0].gpu.driver;
    for (int rank = 1; job->rank == 0 && rank < job->size; rank++)
        if (job->ranks[rank].gpu.driver != first) {
            td_warn("the drivers of ranks 0 and %d differ (CUDA %d.%d and %d.%d)", rank,
                    first / 1000, first % 1000 / 10, job->ranks[rank].gpu.driver / 1000,
                    job->ranks[rank].gpu.driver % 1000 / 10);
            return;
        }
}

// Why NCCL cannot carry this job's gradients, "" when it can. It refuses ranks that share a GPU
// unless it is told that they are on different machines, which tests do.
static void find_obstacle(const job_view *job, char *out, size_t room) {
    int a, b;
    out[0] = '\0';
    for (int rank = 0; rank < job->size; rank++)
        if (!job->ranks[rank].nccl_works) {
            snprintf(out, room, "no NCCL on rank %d: %s", rank, job->ranks[rank].no_nccl);
            return;
        }
    if (!find_sharers(job, &a, &b))
        return;
    int is_told = job->ranks[0].transport == TD_TRANSPORT_NCCL;
    for (int rank = 0; rank < job->size; rank++)
        is_told = is_told && job->ranks[rank].has_nccl_host_id;
    if (!is_told)
        snprintf(out, room, "ranks %d and %d share a GPU", a, b);
}

static td_status choose_transport(const job_view *job, const td_gpu_module *module,
                                  td_device_choice *out) {
    td_transport_kind wanted = (td_transport_kind)job->ranks[job->rank].transport;
    if (job->size == 1) {
        out->transport = &td_device_transport_host;
        return TD_OK;
    }
    out->transport = &td_device_transport_staged;
    if (wanted == TD_TRANSPORT_MPI)
        return TD_OK;
    find_obstacle(job, out->why_not, sizeof out->why_not);
    if (out->why_not[0] == '\0')
        out->transport = module->nccl;
    else if (wanted == TD_TRANSPORT_NCCL)
        return td_fail(TD_ERR_USAGE, "transport \"nccl\" cannot be used: %s", out->why_not);
    return TD_OK;
}

td_status td_device_check_gpu_precision(int bf16, td_matmul_precision precision) {
    if (bf16 || precision == TD_MATMUL_HIGHEST)
        return TD_OK;
    return td_fail(
        TD_ERR_USAGE,
        "float32_matmul_precision \"medium\" with bf16=false is for the CPU: on a GPU set "
        "bf16=true or float32_matmul_precision=highest");
}

td_status td_device_cpu_ops(td_matmul_precision precision, const td_ops **out) {
    return td_ops_check(precision == TD_MATMUL_MEDIUM ? &td_ops_cpu_medium : &td_ops_cpu, out);
}

static td_status choose_gpu(const job_view *job, const td_gpu_module *module,
                            td_device_choice *out) {
    const rank_view *mine = &job->ranks[job->rank];
    TD_TRY(td_device_check_gpu_precision(mine->bf16, (td_matmul_precision)mine->precision));
    TD_TRY(check_models(job));
    TD_TRY(check_sharing(job));
    warn_of_drivers(job);
    TD_TRY(choose_transport(job, module, out));
    out->ranks_on_device = count_like(job, mine, same_gpu);
    snprintf(out->name, sizeof out->name, "%s", mine->gpu.name);
    TD_TRY(td_ops_check(mine->bf16 ? module->ops_bf16 : module->ops_fp32, &out->ops));
    return module->device_open(mine->index, &out->device);
}

static td_status choose_cpu(const job_view *job, td_device_choice *out) {
    const rank_view *mine = &job->ranks[job->rank];
    snprintf(out->why_not, sizeof out->why_not, "%s", job->ranks[0].no_gpu);
    if (mine->transport == TD_TRANSPORT_NCCL)
        return td_fail(TD_ERR_USAGE, "transport \"nccl\" is for GPUs, this run is on the CPU%s%s",
                       out->why_not[0] ? ": " : "", out->why_not);
    snprintf(out->name, sizeof out->name, "CPU");
    out->transport = &td_device_transport_host;
    out->ranks_on_device = 1;
    out->device = td_device_cpu();
    return td_device_cpu_ops((td_matmul_precision)mine->precision, &out->ops);
}

static td_status choose(const job_view *job, const td_gpu_module *module, td_device_choice *out) {
    int is_gpu;
    TD_TRY(require_same_wishes(job));
    TD_TRY(decide_kind(job, &is_gpu));
    return is_gpu ? choose_gpu(job, module, out) : choose_cpu(job, out);
}

td_status td_device_choose(const td_config *config, td_comm *comm, td_device_choice *out) {
    const td_gpu_module *module;
    int size = td_comm_size(comm);
    rank_view mine, *all = calloc((size_t)size, sizeof *all);
    td_status status = all ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for the view of the ranks");
    *out = (td_device_choice){0};
    look(config, comm, &module, &mine);
    status = td_comm_agree(comm, status, "device");
    if (status == TD_OK)
        status = td_comm_allgather(comm, &mine, all, sizeof mine, "device");
    if (status == TD_OK) {
        job_view job = {.ranks = all, .size = size, .rank = td_comm_rank(comm)};
        status = td_comm_agree(comm, choose(&job, module, out), "device");
    }
    free(all);
    return status;
}

static const char *activation_name(const td_device_choice *choice) {
    return choice->ops->activation == TD_BF16 ? "bf16" : "fp32";
}

static void print_cpu(const td_device_choice *choice, int n_threads, const char *why_not) {
    int is_medium = choice->ops->product == TD_BF16;
    td_info("%s, %d thread%s%s%s", choice->name, n_threads, n_threads == 1 ? "" : "s",
            is_medium ? ", products in bf16" : "", why_not);
    if (is_medium && !td_ops_cpu_has_bf16())
        td_info("this processor has no products in bf16 (AVX512-BF16): they are emulated, with the "
                "same bits, slower than float32_matmul_precision=highest");
}

void td_device_choice_print(const td_device_choice *choice, int n_threads, int size) {
    char why_not[sizeof choice->why_not + 16] = "";
    if (choice->why_not[0])
        snprintf(why_not, sizeof why_not, " (%s%s)", choice->device->unified ? "no GPU: " : "",
                 choice->why_not);
    if (choice->device->unified)
        print_cpu(choice, n_threads, why_not);
    else if (size == 1)
        td_info("%s, %s", choice->name, activation_name(choice));
    else
        td_info("%s, %s, %d ranks, gradients by %s%s", choice->name, activation_name(choice), size,
                choice->transport == &td_device_transport_staged ? "MPI" : "NCCL", why_not);
}
