#include "runtime/train/bench_load.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/core/files.h"
#include "runtime/core/tensor.h"
#include "runtime/train/bench_record.h"
#include "runtime/train/metrics.h"

enum { SEED = 1, PART_ELEMENTS = 8 << 20, PART_ROUNDS = 5, READ_ROUNDS = 3 };
static const size_t huge_page_bytes = (size_t)2 << 20, slice_bytes = (size_t)64 << 20,
                    max_config_bytes = (size_t)16 << 20;

typedef struct bench {
    const td_config *config; // names the shape
    td_config loaded;        // the same, names the folder with weights
    td_config cached;        // and a folder for images
    td_comm *comm;
    const td_bench_load_options *options;
    td_bench_load_result *out;
    char weights[TD_PATH_MAX], store[TD_PATH_MAX], cache[TD_PATH_MAX];
    td_hash expected; // of the base's memory
    td_device_choice choice;
    int n_threads;
} bench;

static td_status copy_config(const char *from, const char *to) {
    char path[TD_PATH_MAX], *text;
    size_t bytes;
    TD_TRY(td_path_join(path, from, "config.json"));
    TD_TRY(td_file_read(path, max_config_bytes, &text, &bytes));
    td_status status = td_path_join(path, to, "config.json");
    if (status == TD_OK)
        status = td_file_write_atomic(path, text, bytes);
    free(text);
    return status;
}

static td_status write_folder(const bench *self) {
    td_model_config model;
    const char *shape = self->config->model_name_or_path;
    if (td_path_exists(self->weights))
        return TD_OK;
    TD_TRY(td_folder_make(self->options->folder));
    TD_TRY(td_model_config_read(shape, &model));
    TD_TRY(copy_config(shape, self->options->folder));
    return td_base_write_random(&model, SEED, self->weights);
}

// The base's memory, from whatever device.
static td_status hash_base(const td_session *session, td_hash *out) {
    const td_arena *arena = &session->base->arena;
    const td_device_table *device = session->context.device->table;
    td_hasher *hasher = NULL;
    unsigned char *slice = malloc(slice_bytes);
    td_status status = slice ? td_hasher_create(&hasher) : td_fail(TD_ERR_MEMORY, "no memory");
    for (size_t done = 0; status == TD_OK && done < arena->used_bytes; done += slice_bytes) {
        size_t left = arena->used_bytes - done, bytes = left < slice_bytes ? left : slice_bytes;
        status = device->copy(session->context.stream, slice, arena->base + done, bytes);
        if (status == TD_OK)
            status = device->stream_synchronize(session->context.stream);
        if (status == TD_OK)
            td_hasher_add(hasher, slice, bytes);
    }
    if (status == TD_OK)
        *out = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    free(slice);
    return status;
}

static td_status draw_expected(bench *self, td_session *session) {
    td_base_options options = td_session_base_options(session);
    TD_TRY(
        td_base_create_random(&session->model, &options, SEED, &session->context, &session->base));
    TD_TRY(hash_base(session, &self->expected));
    self->out->arena_bytes = (double)session->base->arena.used_bytes;
    td_bench_step_options step = {.seq_tokens = self->options->seq_tokens,
                                  .sequences = 1,
                                  .micro_batches = self->out->rounds};
    td_base_counts counts;
    td_base_count(&session->model, &counts);
    for (int i = 0; i < TD_PROJ_COUNT; i++)
        self->out->quantized += counts.projections[i];
    if (td_comm_rank(self->comm) != 0)
        return TD_OK;
    step.micro_batches = td_comm_size(self->comm);
    return td_bench_write_store(session, &step, self->store);
}

static td_status check_base(const bench *self, const td_session *session) {
    td_hash found;
    TD_TRY(hash_base(session, &found));
    if (found.low != self->expected.low || found.high != self->expected.high)
        return td_fail(TD_ERR_NUMERIC,
                       "%s: the base that was loaded is not the one whose weights were written",
                       self->weights);
    return TD_OK;
}

typedef struct parts {
    uint16_t *bf16; // (PART_ELEMENTS)
    float *f32;     // (PART_ELEMENTS)
    uint8_t *codes; // (PART_ELEMENTS / 2)
    float *absmax;  // (PART_ELEMENTS / TD_NF4_BLOCK)
    td_op_context context;
} parts;

static td_status convert_part(parts *all) {
    td_convert_to_f32(all->bf16, TD_BF16, PART_ELEMENTS, all->f32);
    return TD_OK;
}

static td_status hash_part(parts *all) {
    volatile uint64_t kept = td_hash_bytes(all->bf16, PART_ELEMENTS * sizeof *all->bf16).low;
    (void)kept;
    return TD_OK;
}

static td_status quantize_part(parts *all) {
    td_nf4_quantize_args args = {.n_elements = PART_ELEMENTS,
                                 .weight = all->bf16,
                                 .codes = all->codes,
                                 .absmax = all->absmax,
                                 .weight_dtype = TD_BF16};
    return td_ops_cpu.nf4_quantize(&all->context, &args);
}

static td_status time_part(parts *all, td_status (*part)(parts *), double per, double *out_rate) {
    double best = INFINITY;
    for (int i = 0; i < PART_ROUNDS; i++) {
        double start = td_seconds_now();
        TD_TRY(part(all));
        double seconds = td_seconds_now() - start;
        best = seconds < best ? seconds : best;
    }
    *out_rate = per / best;
    return TD_OK;
}

static td_status time_parts(bench *self, parts *all) {
    double bytes = PART_ELEMENTS * sizeof(uint16_t);
    if (!all->bf16 || !all->f32 || !all->codes || !all->absmax)
        return td_fail(TD_ERR_MEMORY, "no memory for %d parameters", PART_ELEMENTS);
    for (int i = 0; i < PART_ELEMENTS; i++)
        all->bf16[i] = td_f32_to_bf16((float)(i % 251 - 125) * 1e-3f);
    TD_TRY(time_part(all, convert_part, bytes, &self->out->convert_rate));
    TD_TRY(time_part(all, hash_part, bytes, &self->out->hash_rate));
    return time_part(all, quantize_part, PART_ELEMENTS, &self->out->quantize_rate);
}

// Pages as the base has them, cleared by the system as they are first written: on a virtual machine
// whose host gives memory only then, this is much slower than clearing.
static td_status touch_memory(bench *self) {
    size_t pages = ((size_t)self->out->arena_bytes + huge_page_bytes - 1) / huge_page_bytes;
    size_t bytes = pages * huge_page_bytes;
    size_t mapped = bytes + huge_page_bytes;
    unsigned char *memory =
        mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return td_fail(TD_ERR_MEMORY, "no memory for %.0f MiB", (double)mapped / (1 << 20));
    unsigned char *begin = memory + huge_page_bytes - (uintptr_t)memory % huge_page_bytes;
    (void)madvise(begin, bytes, MADV_HUGEPAGE);
    double start = td_seconds_now();
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t page = 0; page < bytes; page += huge_page_bytes)
        for (size_t i = page; i < page + huge_page_bytes; i += 4096)
            begin[i] = 1;
    self->out->touch_rate = (double)bytes / (td_seconds_now() - start);
    munmap(memory, mapped);
    return TD_OK;
}

// On the host, also where a GPU quantizes.
static td_status measure_parts(bench *self) {
    parts all = {.bf16 = malloc(PART_ELEMENTS * sizeof(uint16_t)),
                 .f32 = malloc(PART_ELEMENTS * sizeof(float)),
                 .codes = malloc(PART_ELEMENTS / 2),
                 .absmax = malloc(PART_ELEMENTS / TD_NF4_BLOCK * sizeof(float)),
                 .context = {.ops = &td_ops_cpu, .device = td_device_cpu()}};
    td_status status = time_parts(self, &all);
    free(all.bf16);
    free(all.f32);
    free(all.codes);
    free(all.absmax);
    return status;
}

static td_status first_step(bench *self, td_session *session) {
    td_store *store = NULL;
    td_run run = {0};
    td_step_result result = {0};
    td_status status =
        td_comm_agree(self->comm, td_store_open(self->store, &store), "random tokens");
    if (status == TD_OK)
        status = td_run_plan(&run, session, store, NULL, 0);
    if (status == TD_OK)
        status = td_run_allocate(&run, store, NULL);
    if (status == TD_OK)
        status = td_step_run(&run.step, 0, &result);
    if (status == TD_OK)
        status = session->context.device->table->stream_synchronize(session->context.stream);
    if (status == TD_OK && !(result.loss > 0 && result.grad_norm > 0))
        status = td_fail(TD_ERR_NUMERIC, "loss %g, gradient norm %g: nothing is learned",
                         result.loss, result.grad_norm);
    td_run_end_if_alone(self->comm, status);
    td_run_destroy(&run);
    td_store_close(store);
    return status;
}

// One kind of load: from the model's own files, or from an image.
typedef struct bench_way {
    const td_config *config;
    double *load, *first; // (rounds) out
    td_base_times *times; // of the fastest round, out
} bench_way;

static td_status load_round(bench *self, const bench_way *way, td_session *session, int64_t round) {
    TD_TRY(td_comm_barrier(self->comm, "before loading"));
    double start = td_seconds_now(), checked = 0;
    TD_TRY(td_session_open(session, way->config, self->comm, 1));
    double opened = td_seconds_now();
    TD_TRY(td_session_load_base(session));
    way->load[round] = td_seconds_now() - opened;
    int is_fastest = 1;
    for (int64_t i = 0; i < round; i++)
        is_fastest &= way->load[round] < way->load[i];
    if (is_fastest)
        *way->times = session->base->times;
    if (round == 0) {
        double before = td_seconds_now();
        TD_TRY(td_comm_agree(self->comm, check_base(self, session), "base check"));
        checked = td_seconds_now() - before;
    }
    TD_TRY(first_step(self, session));
    way->first[round] = td_seconds_now() - start - checked;
    TD_TRY(td_bench_slowest(self->comm, &way->load[round]));
    return td_bench_slowest(self->comm, &way->first[round]);
}

static td_status take_samples(bench *self, const bench_way *way) {
    td_status status = TD_OK;
    for (int64_t round = 0; status == TD_OK && round < self->out->rounds; round++) {
        td_session session = {0};
        status = load_round(self, way, &session, round);
        td_session_close(&session);
    }
    return status;
}

static td_status allocate_samples(bench *self) {
    td_bench_load_result *out = self->out;
    double **const samples[] = {&out->load, &out->first, &out->image_load, &out->image_first};
    td_status status = TD_OK;
    for (int i = 0; i < (self->config->load_in_4bit ? 4 : 2); i++) {
        *samples[i] = calloc((size_t)out->rounds, sizeof **samples);
        if (!*samples[i])
            status = td_fail(TD_ERR_MEMORY, "no memory for the timings");
    }
    return td_comm_agree(self->comm, status, "timings");
}

// The image is made by a load that is not among the samples.
static td_status make_image(bench *self) {
    td_session session = {0};
    td_status status = td_session_open(&session, &self->cached, self->comm, 1);
    if (status == TD_OK)
        status = td_session_load_base(&session);
    if (status == TD_OK) {
        self->out->image_bytes = (double)session.base->arena.used_bytes;
        self->out->image_write = session.base->times.image;
    }
    td_session_close(&session);
    return status;
}

static td_status sample_ways(bench *self) {
    TD_TRY(allocate_samples(self));
    td_bench_load_result *out = self->out;
    bench_way files = {&self->loaded, out->load, out->first, &out->times};
    bench_way image = {&self->cached, out->image_load, out->image_first, &out->image_times};
    TD_TRY(take_samples(self, &files));
    if (!out->image_load)
        return TD_OK;
    TD_TRY(make_image(self));
    TD_TRY(take_samples(self, &image));
    if (out->image_times.store > 0)
        return td_comm_agree(self->comm,
                             td_fail(TD_ERR_IO, "%s: the image there was not used", self->cache),
                             "image of the base");
    return TD_OK;
}

static void record_times(cJSON *record, const char *name, const td_base_times *times) {
    cJSON *object = cJSON_AddObjectToObject(record, name);
    td_bench_record_number(object, "fetch", times->fetch);
    td_bench_record_number(object, "fingerprint", times->fingerprint);
    td_bench_record_number(object, "store", times->store);
    td_bench_record_number(object, "nest", times->nest);
    td_bench_record_number(object, "share", times->share);
}

static void make_record(bench *self) {
    td_bench_load_result *out = self->out;
    cJSON *record = td_bench_record_create("load", self->options->command, &self->choice,
                                           td_comm_size(self->comm), self->n_threads);
    td_bench_record_number(record, "file_bytes", out->file_bytes);
    td_bench_record_number(record, "quantized_parameters", (double)out->quantized);
    td_bench_record_samples(record, "load_seconds", out->load, out->rounds);
    td_bench_record_samples(record, "first_step_seconds", out->first, out->rounds);
    record_times(record, "load_thread_seconds", &out->times);
    if (out->image_load) {
        td_bench_record_number(record, "image_bytes", out->image_bytes);
        td_bench_record_number(record, "image_write_seconds", out->image_write);
        td_bench_record_samples(record, "image_load_seconds", out->image_load, out->rounds);
        td_bench_record_samples(record, "image_first_step_seconds", out->image_first, out->rounds);
    }
    td_bench_record_number(record, "read_bytes_per_second", out->read_rate);
    td_bench_record_number(record, "convert_bytes_per_second", out->convert_rate);
    td_bench_record_number(record, "hash_bytes_per_second", out->hash_rate);
    td_bench_record_number(record, "quantize_parameters_per_second", out->quantize_rate);
    td_bench_record_number(record, "base_bytes", out->arena_bytes);
    td_bench_record_number(record, "new_memory_bytes_per_second", out->touch_rate);
    out->record = record;
}

// What is drawn, written and measured before loading.
static td_status prepare(bench *self) {
    td_session session = {0};
    TD_TRY(td_session_open(&session, self->config, self->comm, 1));
    self->choice = session.choice;
    self->n_threads = session.n_threads;
    td_status status = draw_expected(self, &session);
    td_session_close(&session);
    if (status == TD_OK && td_comm_rank(self->comm) == 0)
        status = write_folder(self);
    TD_TRY(td_comm_agree(self->comm, status, "random weights"));
    uint64_t bytes = 0;
    status = td_file_size(self->weights, &bytes);
    self->out->file_bytes = (double)bytes;
    if (status == TD_OK && td_comm_rank(self->comm) == 0) {
        status = td_bench_read_file(self->weights, READ_ROUNDS, &self->out->read_rate);
        if (status == TD_OK)
            status = measure_parts(self);
        if (status == TD_OK)
            status = touch_memory(self);
    }
    return td_comm_agree(self->comm, status, "rates");
}

static td_status run(bench *self) {
    self->loaded = *self->config;
    self->loaded.model_name_or_path = (char *)(uintptr_t)self->options->folder;
    TD_TRY(td_path_join(self->weights, self->options->folder, "model.safetensors"));
    TD_TRY(td_path_join(self->store, self->options->scratch, "bench.h5"));
    self->loaded.base_cache = NULL;
    TD_TRY(td_path_join(self->cache, self->options->scratch, "images"));
    self->cached = self->loaded;
    self->cached.base_cache = self->cache;
    TD_TRY(prepare(self));
    TD_TRY(sample_ways(self));
    if (td_comm_rank(self->comm) == 0)
        make_record(self);
    return TD_OK;
}

td_status td_bench_load(const td_config *config, td_comm *comm,
                        const td_bench_load_options *options, td_bench_load_result *out) {
    bench self = {.config = config, .comm = comm, .options = options, .out = out};
    *out = (td_bench_load_result){.rounds = options->rounds};
    td_status status = run(&self);
    td_run_end_if_alone(comm, status);
    return status;
}

void td_bench_load_fini(td_bench_load_result *result) {
    free(result->load);
    free(result->first);
    free(result->image_load);
    free(result->image_first);
    cJSON_Delete(result->record);
    *result = (td_bench_load_result){0};
}
