#include "runtime/train/bench_checkpoint.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/core/log.h"
#include "runtime/core/tensor.h"
#include "runtime/train/bench_record.h"
#include "runtime/train/checkpoint.h"
#include "runtime/train/metrics.h"
#include "runtime/train/run.h"

// Between two polls there is a step.
static const struct timespec step_time = {.tv_nsec = 2000000};

typedef struct bench {
    const td_config *config;
    td_comm *comm;
    const td_bench_checkpoint_options *options;
    td_bench_checkpoint_result *out;
    td_device_choice choice;
    int n_threads;
    td_stream *stream;
    td_page_map map;
    size_t state_bytes;
    td_pager *pager;
    float *host;   // (n_elements) what the parameters are
    float *params; // (n_elements) device memory
    td_checkpoint_options checkpoint;
    td_checkpoint_writer *writer;
    size_t copy_bytes;
    unsigned char *copy_from, *copy_to;
} bench;

static td_status count_parameters(const td_config *config, int64_t *out) {
    td_model_config model;
    td_lora lora = {0};
    TD_TRY(td_model_config_read(config->model_name_or_path, &model));
    td_lora_options options = td_session_lora_options(config, NULL);
    TD_TRY(td_lora_init(&lora, &model, &options));
    *out = lora.n_parameters;
    td_lora_fini(&lora);
    return TD_OK;
}

static td_status plan_pages(bench *self) {
    int64_t n = self->options->n_elements, page = self->config->page_elements;
    if (n == 0)
        TD_TRY(count_parameters(self->config, &n));
    TD_TRY(td_page_map_init(&self->map, n, page < n ? page : n, td_comm_size(self->comm)));
    self->state_bytes = td_optimizer_state_bytes(self->config->optim, self->map.page_elements);
    return TD_OK;
}

// What a save copies on this rank: rank 0 has all parameters, for the adapter.
static size_t snapshot_bytes(const bench *self) {
    int rank = td_comm_rank(self->comm);
    size_t owned = (size_t)td_page_map_owned_count(&self->map, rank);
    size_t params =
        rank == 0 ? (size_t)self->map.n_elements : owned * (size_t)self->map.page_elements;
    return params * sizeof(float) + owned * self->state_bytes;
}

// The ceiling is that of the same kind of memory, touched as the snapshot's is.
static td_status allocate_copy(bench *self, const td_device *device) {
    static const char purpose[] = "the copy to compare with";
    void *memory = NULL;
    TD_TRY(device->table->alloc_pinned(device, self->copy_bytes, purpose, &memory));
    self->copy_from = memory;
    memset(self->copy_from, 1, self->copy_bytes);
    TD_TRY(device->table->alloc_pinned(device, self->copy_bytes, purpose, &memory));
    self->copy_to = memory;
    return TD_OK;
}

static td_status allocate(bench *self) {
    const td_device *device = self->choice.device;
    size_t bytes = td_mul_bytes((size_t)self->map.n_elements, sizeof(float));
    td_pager_options pager = {.device = device,
                              .map = self->map,
                              .rank = td_comm_rank(self->comm),
                              .state_bytes = self->state_bytes,
                              .device_cache_bytes = (size_t)self->config->optimizer_cache_bytes};
    void *memory = NULL;
    TD_TRY(device->table->stream_create(device, &self->stream));
    TD_TRY(device->table->alloc(device, bytes, "parameters", &memory));
    self->params = memory;
    TD_TRY(td_pager_create(&pager, &self->pager));
    self->copy_bytes = snapshot_bytes(self);
    self->host = malloc(bytes);
    if (!self->host)
        return td_fail(TD_ERR_MEMORY, "no memory for %zu bytes of parameters", bytes);
    return allocate_copy(self, device);
}

static td_status open_writer(bench *self) {
    self->checkpoint = (td_checkpoint_options){.comm = self->comm,
                                               .device = self->choice.device,
                                               .map = self->map,
                                               .state_bytes = self->state_bytes,
                                               .run_folder = self->options->scratch,
                                               .keep_last = 1};
    return td_checkpoint_create(&self->checkpoint, &self->writer);
}

static td_status open_bench(bench *self) {
    TD_TRY(td_device_choose(self->config, self->comm, &self->choice));
    self->n_threads = td_session_threads(self->config, td_comm_local_size(self->comm));
    td_ops_cpu_set_threads(self->n_threads);
    td_status status = plan_pages(self);
    if (status == TD_OK)
        status = allocate(self);
    TD_TRY(td_comm_agree(self->comm, status, "benchmark memory"));
    return open_writer(self);
}

static void close_bench(bench *self) {
    const td_device *device = self->choice.device;
    if (self->writer)
        td_checkpoint_destroy(self->writer);
    td_pager_destroy(self->pager);
    if (self->params)
        device->table->free(device, self->params);
    if (self->stream)
        device->table->stream_destroy(self->stream);
    free(self->host);
    if (self->copy_from)
        device->table->free_pinned(device, self->copy_from);
    if (self->copy_to)
        device->table->free_pinned(device, self->copy_to);
}

// Every word differs between rounds, pages and places.
static uint32_t word_of(int64_t round, int64_t index) {
    return (uint32_t)((uint64_t)index * 2654435761u) ^ (uint32_t)(round * 40503 + 1);
}

static void fill_words(void *to, size_t bytes, int64_t round, int64_t first) {
    unsigned char *out = to;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < (int64_t)(bytes / sizeof(uint32_t)); i++) {
        uint32_t word = word_of(round, first + i) & 0x3fffffffu; // as fp32: finite
        memcpy(out + (size_t)i * sizeof word, &word, sizeof word);
    }
}

static int64_t count_other(const void *from, size_t bytes, int64_t round, int64_t first) {
    const unsigned char *in = from;
    int64_t other = 0;
#pragma omp parallel for schedule(static) reduction(+ : other)
    for (int64_t i = 0; i < (int64_t)(bytes / sizeof(uint32_t)); i++) {
        uint32_t word = word_of(round, first + i) & 0x3fffffffu;
        other += memcmp(in + (size_t)i * sizeof word, &word, sizeof word) != 0;
    }
    return other;
}

static int64_t first_word(const bench *self, int64_t page) {
    return self->map.n_elements + page * (int64_t)(self->state_bytes / sizeof(uint32_t));
}

// As a step would leave it: parameters and optimizer state are others.
static td_status fill_state(bench *self, int64_t round) {
    const td_device_table *device = self->choice.device->table;
    size_t bytes = (size_t)self->map.n_elements * sizeof(float);
    fill_words(self->host, bytes, round, 0);
    TD_TRY(device->copy(self->stream, self->params, self->host, bytes));
    TD_TRY(device->stream_synchronize(self->stream));
    for (int64_t page = td_comm_rank(self->comm); page < self->map.n_pages; page += self->map.size)
        fill_words(td_pager_host_state(self->pager, page), self->state_bytes, round,
                   first_word(self, page));
    td_pager_invalidate(self->pager);
    return TD_OK;
}

static td_status check_state(bench *self, int64_t round) {
    const td_device_table *device = self->choice.device->table;
    size_t bytes = (size_t)self->map.n_elements * sizeof(float);
    TD_TRY(device->copy(self->stream, self->host, self->params, bytes));
    TD_TRY(device->stream_synchronize(self->stream));
    int64_t other = count_other(self->host, bytes, round, 0);
    for (int64_t page = td_comm_rank(self->comm); page < self->map.n_pages; page += self->map.size)
        other += count_other(td_pager_host_state(self->pager, page), self->state_bytes, round,
                             first_word(self, page));
    if (other > 0)
        return td_fail(TD_ERR_NUMERIC, "%lld words of the checkpoint are not those that were saved",
                       (long long)other);
    return TD_OK;
}

static td_status save(bench *self, int64_t round, double *out_seconds) {
    td_checkpoint_meta meta = {.step = round + 1};
    TD_TRY(td_comm_barrier(self->comm, "before a save"));
    double start = td_seconds_now();
    td_status status = td_checkpoint_save(self->writer, &meta, self->params, self->pager);
    *out_seconds = td_seconds_now() - start;
    return status;
}

// Saves a state, overwrites it at once, and reads the checkpoint back.
static td_status verify(bench *self) {
    double seconds;
    td_checkpoint *found = NULL;
    TD_TRY(fill_state(self, 0));
    TD_TRY(save(self, 0, &seconds));
    TD_TRY(fill_state(self, 1));
    TD_TRY(td_checkpoint_finish(self->writer, NULL));
    TD_TRY(td_checkpoint_find(&self->checkpoint, "auto", &found));
    td_status status = found ? TD_OK : td_fail(TD_ERR_DATA, "the checkpoint is not found again");
    if (status == TD_OK)
        status = td_checkpoint_load(found, &self->checkpoint, self->params, self->pager);
    if (status == TD_OK)
        status = check_state(self, 0);
    td_checkpoint_close(found);
    return td_comm_agree(self->comm, status, "checkpoint check");
}

static td_status time_poll(bench *self, double *out_seconds, int64_t *out_committed) {
    TD_TRY(td_comm_barrier(self->comm, "before a poll"));
    double start = td_seconds_now();
    td_status status = td_checkpoint_poll(self->writer, out_committed);
    *out_seconds = td_seconds_now() - start;
    return status;
}

// Polls until the save is committed. Two of the polls take it further, the others only look.
static td_status time_commit(bench *self, td_bench_checkpoint_result *out, int64_t i) {
    int64_t committed = -1;
    double start = td_seconds_now(), seconds = 0;
    out->commit[i] = 0;
    while (committed < 0) {
        int stage = td_checkpoint_stage(self->writer);
        TD_TRY(time_poll(self, &seconds, &committed));
        if (td_checkpoint_stage(self->writer) != stage)
            out->commit[i] += seconds;
        else
            out->poll[i] = seconds;
        if (committed < 0)
            nanosleep(&step_time, NULL);
    }
    out->write[i] = td_seconds_now() - start;
    return TD_OK;
}

static td_status time_save(bench *self, td_bench_checkpoint_result *out, int64_t i) {
    TD_TRY(fill_state(self, i + 2));
    TD_TRY(save(self, i + 2, &out->save[i]));
    TD_TRY(time_commit(self, out, i));
    TD_TRY(td_bench_slowest(self->comm, &out->save[i]));
    TD_TRY(td_bench_slowest(self->comm, &out->poll[i]));
    TD_TRY(td_bench_slowest(self->comm, &out->commit[i]));
    TD_TRY(td_bench_slowest(self->comm, &out->write[i]));
    TD_TRY(
        td_bench_copy(self->comm, self->copy_to, self->copy_from, self->copy_bytes, &out->copy[i]));
    out->ratio[i] = (out->save[i] + out->commit[i]) / out->copy[i];
    return TD_OK;
}

static td_status take_samples(bench *self, td_bench_checkpoint_result *out) {
    double **lists[] = {&out->save, &out->poll, &out->commit, &out->write, &out->copy, &out->ratio};
    td_status status = TD_OK;
    out->saves = self->options->saves;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        *lists[i] = calloc((size_t)out->saves, sizeof(double));
        if (!*lists[i])
            status = td_fail(TD_ERR_MEMORY, "no memory for the timings");
    }
    TD_TRY(td_comm_agree(self->comm, status, "timings"));
    for (int64_t i = 0; i < out->saves; i++)
        TD_TRY(time_save(self, out, i));
    return TD_OK;
}

enum { STEP_SAVES = 3, MAX_WRITING = 64 };

// A save, and steps until it is committed: they share the machine with the writing.
static td_status save_beside_steps(bench *self, td_run *run, int64_t *index, double *out_blocked,
                                   double *steps, int64_t *n_steps) {
    td_step_result result;
    int64_t committed = -1;
    TD_TRY(td_comm_barrier(self->comm, "before a save"));
    double start = td_seconds_now();
    td_checkpoint_meta meta = {.step = *index};
    TD_TRY(td_checkpoint_save(self->writer, &meta, run->parameters.values, run->pager));
    *out_blocked = td_seconds_now() - start;
    while (committed < 0) {
        start = td_seconds_now();
        TD_TRY(td_bench_whole_step(run, (*index)++, &result));
        double end = td_seconds_now();
        if (*n_steps < MAX_WRITING)
            steps[(*n_steps)++] = end - start;
        TD_TRY(td_checkpoint_poll(self->writer, &committed));
        *out_blocked += td_seconds_now() - end;
    }
    return td_bench_slowest(self->comm, out_blocked);
}

static td_status bench_with_run(void *context, td_run *run) {
    bench *self = context;
    double blocked[STEP_SAVES], steps[MAX_WRITING];
    int64_t index = self->options->step.steps + 1, n_steps = 0;
    td_checkpoint_writer *writer = self->writer;
    td_checkpoint_options options = self->checkpoint;
    options.map = run->parameters.map;
    options.state_bytes = td_optimizer_state_bytes(self->config->optim, options.map.page_elements);
    TD_TRY(td_checkpoint_create(&options, &self->writer));
    td_status status = TD_OK;
    for (int i = 0; status == TD_OK && i < STEP_SAVES; i++)
        status = save_beside_steps(self, run, &index, &blocked[i], steps, &n_steps);
    td_run_end_if_alone(self->comm, status);
    td_checkpoint_destroy(self->writer);
    self->writer = writer;
    self->out->step_blocked = td_bench_spread_of(blocked, STEP_SAVES).median;
    self->out->step_writing = td_bench_spread_of(steps, n_steps).median;
    return status;
}

// The snapshot's memory is given back before the model's is taken.
static td_status bench_steps(bench *self) {
    td_bench_step_result result;
    td_bench_step_options options = self->options->step;
    if (options.steps == 0)
        return TD_OK;
    options.scratch = self->options->scratch;
    options.with_run = bench_with_run;
    options.with_run_context = self;
    td_checkpoint_destroy(self->writer);
    self->writer = NULL;
    TD_TRY(td_bench_step(self->config, self->comm, &options, &result));
    self->out->step_alone = result.seconds;
    return TD_OK;
}

static void make_record(const bench *self, td_bench_checkpoint_result *out) {
    cJSON *record = td_bench_record_create("checkpoint", self->options->command, &self->choice,
                                           td_comm_size(self->comm), self->n_threads);
    td_bench_record_number(record, "trained_parameters", (double)out->n_elements);
    td_bench_record_number(record, "snapshot_bytes", (double)out->snapshot_bytes);
    td_bench_record_number(record, "written_bytes", (double)out->written_bytes);
    td_bench_record_samples(record, "save_seconds", out->save, out->saves);
    td_bench_record_samples(record, "poll_seconds", out->poll, out->saves);
    td_bench_record_samples(record, "commit_seconds", out->commit, out->saves);
    td_bench_record_samples(record, "write_seconds", out->write, out->saves);
    td_bench_record_samples(record, "copy_seconds", out->copy, out->saves);
    td_bench_record_samples(record, "blocked_over_copy", out->ratio, out->saves);
    if (self->options->step.steps > 0) {
        td_bench_record_number(record, "step_alone_seconds", out->step_alone);
        td_bench_record_number(record, "step_while_writing_seconds", out->step_writing);
        td_bench_record_number(record, "blocked_beside_steps_seconds", out->step_blocked);
    }
    out->record = record;
}

static td_status run(bench *self, td_bench_checkpoint_result *out) {
    TD_TRY(open_bench(self));
    TD_TRY(verify(self));
    TD_TRY(take_samples(self, out));
    TD_TRY(bench_steps(self));
    double most = (double)self->copy_bytes; // rank 0 has the most
    TD_TRY(td_bench_slowest(self->comm, &most));
    out->snapshot_bytes = (size_t)most;
    out->n_elements = self->map.n_elements;
    out->n_pages = self->map.n_pages;
    out->written_bytes = (size_t)self->map.n_pages *
                         ((size_t)self->map.page_elements * sizeof(float) + self->state_bytes);
    if (td_comm_rank(self->comm) == 0)
        make_record(self, out);
    return TD_OK;
}

td_status td_bench_checkpoint(const td_config *config, td_comm *comm,
                              const td_bench_checkpoint_options *options,
                              td_bench_checkpoint_result *out) {
    bench self = {.config = config, .comm = comm, .options = options, .out = out};
    *out = (td_bench_checkpoint_result){0};
    td_status status = run(&self, out);
    td_run_end_if_alone(comm, status);
    close_bench(&self);
    return status;
}

void td_bench_checkpoint_fini(td_bench_checkpoint_result *result) {
    free(result->save);
    free(result->poll);
    free(result->commit);
    free(result->write);
    free(result->copy);
    free(result->ratio);
    cJSON_Delete(result->record);
    *result = (td_bench_checkpoint_result){0};
}
