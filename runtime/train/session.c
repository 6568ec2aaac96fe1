#define _GNU_SOURCE
#include "runtime/train/session.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/train/profiler_ranges.h"

enum { MAX_THREADS = 4096 };

int td_session_threads(const td_config *config, int local_size) {
    if (config->num_threads > 0)
        return (int)config->num_threads;
    const char *given = getenv("OMP_NUM_THREADS");
    long wanted = given ? strtol(given, NULL, 10) : 0;
    if (wanted > 0)
        return wanted < MAX_THREADS ? (int)wanted : MAX_THREADS;
    cpu_set_t set;
    int share = (int)sysconf(_SC_NPROCESSORS_ONLN) / (local_size > 0 ? local_size : 1);
    // More processors than the set has room for: the call fails, and the share has to do.
    int allowed = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : share;
    int threads = allowed < share ? allowed : share;
    return threads > 1 ? threads : 1;
}

static td_status open_model(td_session *session) {
    const char *folder = session->config->model_name_or_path;
    char path[TD_PATH_MAX];
    if (!folder)
        return td_fail(TD_ERR_USAGE, "model_name_or_path is not set: name a model folder");
    if (!td_path_is_folder(folder))
        return td_fail(TD_ERR_DATA, "%s: no such folder (model_name_or_path)", folder);
    TD_TRY(td_model_config_read(folder, &session->model));
    TD_TRY(td_path_join(path, folder, "tokenizer.json"));
    if (!td_path_exists(path))
        return TD_OK;
    TD_TRY(td_tokenizer_open(folder, &session->tokenizer));
    int32_t size = td_tokenizer_text_size(session->tokenizer);
    if (size > session->model.vocabulary)
        return td_fail(TD_ERR_DATA, "%s: the tokenizer has %d tokens, the model's vocabulary %lld",
                       path, size, (long long)session->model.vocabulary);
    return TD_OK;
}

// The last part of a path or of a name on the hub.
static const char *last_part(const char *name, size_t *out_chars) {
    size_t end = strlen(name);
    while (end > 0 && name[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && name[begin - 1] != '/')
        begin--;
    *out_chars = end - begin;
    return name + begin;
}

static int is_same_base(const char *adapters, const char *given) {
    size_t n, m;
    const char *a = last_part(adapters, &n), *b = last_part(given, &m);
    if (n == m && memcmp(a, b, n) == 0)
        return 1;
    char *x = realpath(adapters, NULL), *y = realpath(given, NULL);
    int is_same = x && y && strcmp(x, y) == 0;
    free(x);
    free(y);
    return is_same;
}

td_status td_session_warn_other_base(const char *adapter, const char *model) {
    static const size_t max_bytes = (size_t)16 << 20;
    char path[TD_PATH_MAX];
    const char *name = NULL;
    cJSON *root;
    TD_TRY(td_path_join(path, adapter, "adapter_config.json"));
    if (!td_path_exists(path)) // reading the adapter says so
        return TD_OK;
    TD_TRY(td_json_read(path, max_bytes, &root));
    td_status status = td_json_string(path, root, "base_model_name_or_path", &name);
    if (status == TD_OK && name && name[0] && !is_same_base(name, model))
        td_warn("%s was made for the base model %s; it is used with %s", adapter, name, model);
    cJSON_Delete(root);
    return status;
}

td_lora_options td_session_lora_options(const td_config *config, const td_adapter_info *adapter) {
    td_lora_options options = {
        .rank = config->lora_r,
        .alpha = config->lora_alpha,
        .use_rslora = config->use_rslora,
        .target_modules = &config->target_modules,
        .target_modules_is_pattern = config->target_modules_is_pattern,
        .rank_pattern = config->rank_pattern,
        .alpha_pattern = config->alpha_pattern,
    };
    if (adapter)
        options = td_adapter_lora_options(adapter);
    options.dropout = config->lora_dropout;
    return options;
}

static td_status lay_out_lora(td_session *session, int want_lora) {
    const td_config *config = session->config;
    session->has_adapter = config->adapter_name_or_path != NULL;
    if (!session->has_adapter && !want_lora)
        return TD_OK;
    if (session->has_adapter) {
        TD_TRY(td_adapter_info_read(config->adapter_name_or_path, &session->adapter));
        if (td_comm_rank(session->comm) == 0)
            TD_TRY(td_session_warn_other_base(config->adapter_name_or_path,
                                              config->model_name_or_path));
    }
    session->lora_options =
        td_session_lora_options(config, session->has_adapter ? &session->adapter : NULL);
    TD_TRY(td_lora_init(&session->lora, &session->model, &session->lora_options));
    session->has_lora = 1;
    return TD_OK;
}

static td_status open_local(td_session *session, int want_lora) {
    const td_device *device = session->choice.device;
    session->context.device = device;
    session->context.ops = session->choice.ops;
    TD_TRY(device->table->stream_create(device, &session->context.stream));
    td_ops_cpu_set_threads(session->n_threads);
    td_profiler_ranges_start(device);
    TD_TRY(open_model(session));
    return lay_out_lora(session, want_lora);
}

td_status td_session_open(td_session *session, const td_config *config, td_comm *comm,
                          int want_lora) {
    session->config = config;
    session->comm = comm;
    session->n_threads = td_session_threads(config, td_comm_local_size(comm));
    TD_TRY(td_device_choose(config, comm, &session->choice));
    td_device_choice_print(&session->choice, session->n_threads, td_comm_size(comm));
    td_progress_phase(TD_PHASE_READ_MODEL);
    return td_comm_agree(comm, open_local(session, want_lora), "open model");
}

td_status td_session_open_model(td_session *session, const td_config *config, td_comm *comm) {
    session->config = config;
    session->comm = comm;
    session->n_threads = td_session_threads(config, td_comm_local_size(comm));
    td_progress_phase(TD_PHASE_READ_MODEL);
    return td_comm_agree(comm, open_model(session), "open model");
}

void td_session_close(td_session *session) {
    td_stream *stream = session->context.stream;
    td_profiler_ranges_stop();
    if (stream) // nothing queued may outlive what it works on
        (void)session->context.device->table->stream_synchronize(stream);
    td_base_destroy(session->base);
    if (session->has_lora)
        td_lora_fini(&session->lora);
    if (session->has_adapter)
        td_adapter_info_fini(&session->adapter);
    td_tokenizer_close(session->tokenizer);
    if (stream)
        session->context.device->table->stream_destroy(stream);
    *session = (td_session){0};
}

td_base_options td_session_base_options(const td_session *session) {
    return (td_base_options){
        .quantize = session->config->load_in_4bit,
        .double_quantize = session->config->bnb_4bit_use_double_quant,
        .stored = TD_BF16,
        .compute = session->context.ops->activation,
        .image_folder = session->config->base_cache,
        .host_embedding = session->host_embedding,
    };
}

static td_status share_broadcast(void *self, void *buffer, size_t bytes, const char *what) {
    return td_comm_node_broadcast(self, buffer, bytes, what);
}

static td_status share_agree(void *self, td_status mine, const char *what) {
    return td_comm_agree(self, mine, what);
}

// Unlike td_comm_agree(), for what is no failure.
static int share_all(void *self, int mine, const char *what) {
    td_status status = td_comm_agree(self, mine ? TD_OK : td_fail(TD_ERR_IO, "%s", what), what);
    if (status == TD_OK)
        return 1;
    td_error_clear();
    td_comm_forget_failure(self);
    return 0;
}

td_status td_session_load_base(td_session *session) {
    td_base_options options = td_session_base_options(session);
    td_base_share share = {
        .is_reader = td_comm_local_rank(session->comm) == 0,
        .broadcast = td_comm_size(session->comm) > 1 ? share_broadcast : NULL,
        .agree = share_agree,
        .all = share_all,
        .self = session->comm,
    };
    td_progress_phase(TD_PHASE_READ_MODEL);
    td_status status = td_base_load(session->config->model_name_or_path, &options, &share,
                                    &session->context, &session->base);
    return td_comm_agree(session->comm, status, "load model");
}

static td_status fill_parameters(const td_session *session, float *host) {
    if (session->has_adapter)
        return td_adapter_read(session->config->adapter_name_or_path, &session->lora, host);
    td_lora_initialize(&session->lora, (uint64_t)session->config->seed, host);
    return TD_OK;
}

// By way of a host copy, to a device with memory of its own.
static td_status upload_parameters(const td_session *session, float *values) {
    size_t bytes = td_mul_bytes((size_t)session->lora.n_parameters, sizeof(float));
    const td_device_table *device = session->context.device->table;
    float *host = malloc(bytes);
    td_status status = host ? fill_parameters(session, host)
                            : td_fail(TD_ERR_MEMORY, "no memory for %lld parameters",
                                      (long long)session->lora.n_parameters);
    if (status == TD_OK)
        status = device->copy(session->context.stream, values, host, bytes);
    if (status == TD_OK)
        status = device->stream_synchronize(session->context.stream);
    free(host);
    return status;
}

td_status td_session_load_parameters(const td_session *session, float *values) {
    td_status status = session->context.device->unified ? fill_parameters(session, values)
                                                        : upload_parameters(session, values);
    return td_comm_agree(session->comm, status, "load adapter");
}

static int add_id(int32_t *ids, int count, int32_t id) {
    for (int i = 0; i < count; i++)
        if (ids[i] == id)
            return count;
    if (id >= 0)
        ids[count++] = id;
    return count;
}

int td_session_stop_ids(const td_session *session, int32_t out[TD_MAX_EOS + 2]) {
    int count = 0;
    for (int i = 0; i < session->model.n_eos; i++)
        count = add_id(out, count, session->model.eos_ids[i]);
    if (session->tokenizer) {
        count = add_id(out, count, td_tokenizer_eos_id(session->tokenizer));
        count = add_id(out, count, td_tokenizer_token_id(session->tokenizer, "<|im_end|>"));
    }
    return count;
}

int32_t td_session_eos_id(const td_session *session) {
    int32_t id = session->tokenizer ? td_tokenizer_eos_id(session->tokenizer) : -1;
    if (id < 0 && session->model.n_eos > 0)
        id = session->model.eos_ids[0];
    return id;
}
