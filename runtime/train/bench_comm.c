#include "runtime/train/bench_comm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "comm/buckets.h"
#include "runtime/train/metrics.h"
#include "runtime/train/run.h"

enum { MIN_COUNT = 128, GROWTH = 4, MAX_SMALL = 1 << 16, COPY_BYTES = 64 << 20, COPY_ROUNDS = 9 };

typedef struct bench {
    const td_config *config;
    td_comm *comm;
    const td_bench_comm_options *options;
    td_bench_comm_result *out;
    td_device_choice choice;
    td_stream *stream;
    int rank, size, n_threads;
    int64_t max_count;
    void *host;      // (max_count) int64
    void *values;    // the same on the device
    double *samples; // (rounds)
    // Of the size at hand
    int64_t count;
    td_page_map map;
    td_device_comm *device_comm;
    td_buckets *exact, *floats;
    td_request *requests; // (n_pages)
} bench;

// Collectives of a step: what is put in, what is run and timed, what must come out.
typedef struct collective {
    const char *name;
    size_t item_bytes;
    int64_t max_count; // 0: any
    int is_on_host;
    void (*fill)(const bench *self);
    td_status (*run)(bench *self);
    int64_t (*count_wrong)(const bench *self); // in what is this rank's to have
    double (*traffic)(const bench *self, double bytes);
} collective;

static int64_t word_of(int64_t i) {
    return i % 1021 - 510;
}

static int is_mine(const bench *self, int64_t i) {
    return td_page_map_owner(&self->map, i / self->map.page_elements) == self->rank;
}

static int64_t sum_of_ranks(const bench *self) {
    return (int64_t)self->size * (self->size + 1) / 2;
}

// Large enough that sums in fp32 would be rounded.
static const int64_t exact_scale = (int64_t)1 << 34;

static void fill_i64(const bench *self) {
    int64_t *host = self->host;
    for (int64_t i = 0; i < self->count; i++)
        host[i] = (word_of(i) * exact_scale + i) * (self->rank + 1);
}

static int64_t wrong_i64(const bench *self, int all) {
    const int64_t *host = self->host;
    int64_t wrong = 0;
    for (int64_t i = 0; i < self->count; i++)
        if (all || is_mine(self, i))
            wrong += host[i] != (word_of(i) * exact_scale + i) * sum_of_ranks(self);
    return wrong;
}

static int64_t wrong_owned_i64(const bench *self) {
    return wrong_i64(self, 0);
}

static int64_t wrong_all_i64(const bench *self) {
    return wrong_i64(self, 1);
}

static void fill_f32(const bench *self) {
    float *host = self->host;
    for (int64_t i = 0; i < self->count; i++)
        host[i] = (float)(word_of(i) * (self->rank + 1));
}

static int64_t wrong_owned_f32(const bench *self) {
    const float *host = self->host;
    int64_t wrong = 0;
    for (int64_t i = 0; i < self->count; i++)
        if (is_mine(self, i))
            wrong += host[i] != (float)(word_of(i) * sum_of_ranks(self));
    return wrong;
}

static void fill_owned_f32(const bench *self) {
    float *host = self->host;
    for (int64_t i = 0; i < self->count; i++)
        host[i] = is_mine(self, i) ? (float)word_of(i) : -1e9f;
}

static int64_t wrong_all_f32(const bench *self) {
    const float *host = self->host;
    int64_t wrong = 0;
    for (int64_t i = 0; i < self->count; i++)
        wrong += host[i] != (float)word_of(i);
    return wrong;
}

static td_status reduce(bench *self, td_buckets *buckets) {
    td_buckets_reset(buckets);
    TD_TRY(td_buckets_advance(buckets, 0, self->stream));
    return td_buckets_wait(buckets, self->stream);
}

static td_status reduce_exact(bench *self) {
    return reduce(self, self->exact);
}

static td_status reduce_floats(bench *self) {
    return reduce(self, self->floats);
}

static td_status gather(bench *self) {
    const td_device_transport *transport = self->device_comm->transport;
    const td_page_map *map = &self->map;
    for (int64_t page = 0; page < map->n_pages; page++) {
        td_page_span span = td_page_map_span(map, page);
        TD_TRY(transport->broadcast_start(self->device_comm, (float *)self->values + span.begin,
                                          (size_t)span.count * sizeof(float),
                                          td_page_map_owner(map, page), self->stream,
                                          "benchmark gather", &self->requests[page]));
    }
    for (int64_t page = 0; page < map->n_pages; page++)
        TD_TRY(transport->wait(self->device_comm, self->requests[page], self->stream));
    return TD_OK;
}

static td_status allreduce(bench *self) {
    return td_comm_allreduce_i64(self->comm, self->host, (size_t)self->count,
                                 "benchmark allreduce");
}

static double send_share(const bench *self, double bytes) {
    return bytes * (self->size - 1) / self->size;
}

static double send_share_twice(const bench *self, double bytes) {
    return 2 * send_share(self, bytes);
}

static const collective collectives[] = {
    {"reduce_i64", sizeof(int64_t), 0, 0, fill_i64, reduce_exact, wrong_owned_i64, send_share},
    {"reduce_f32", sizeof(float), 0, 0, fill_f32, reduce_floats, wrong_owned_f32, send_share},
    {"gather_f32", sizeof(float), 0, 0, fill_owned_f32, gather, wrong_all_f32, send_share},
    {"allreduce_i64", sizeof(int64_t), MAX_SMALL, 1, fill_i64, allreduce, wrong_all_i64,
     send_share_twice},
};

static td_status move(const bench *self, const collective *what, void *to, const void *from) {
    const td_device_table *device = self->choice.device->table;
    if (!what->is_on_host)
        TD_TRY(device->copy(self->stream, to, from, (size_t)self->count * what->item_bytes));
    return device->stream_synchronize(self->stream);
}

static td_status verify(bench *self, const collective *what) {
    what->fill(self);
    TD_TRY(move(self, what, self->values, self->host));
    TD_TRY(what->run(self));
    TD_TRY(move(self, what, self->host, self->values));
    int64_t wrong = what->count_wrong(self);
    td_status status = TD_OK;
    if (wrong > 0)
        status = td_fail(TD_ERR_NUMERIC, "%s of %lld elements: %lld are wrong", what->name,
                         (long long)self->count, (long long)wrong);
    return td_comm_agree(self->comm, status, "benchmark check");
}

static td_status time_once(bench *self, const collective *what, double *out) {
    TD_TRY(td_comm_barrier(self->comm, "benchmark start"));
    double start = td_seconds_now();
    TD_TRY(what->run(self));
    TD_TRY(self->choice.device->table->stream_synchronize(self->stream));
    *out = td_seconds_now() - start;
    return td_bench_slowest(self->comm, out);
}

static void add_point(bench *self, const collective *what) {
    td_bench_comm_result *out = self->out;
    size_t bytes = (size_t)self->count * what->item_bytes;
    if (out->n_points < TD_BENCH_COMM_MAX_POINTS)
        out->points[out->n_points++] = (td_bench_comm_point){
            .op = what->name,
            .count = self->count,
            .bytes = bytes,
            .seconds = td_bench_spread_of(self->samples, self->options->rounds),
            .traffic = what->traffic(self, (double)bytes)};
}

static td_status bench_collective(bench *self, const collective *what) {
    if (what->max_count && self->count > what->max_count)
        return TD_OK;
    TD_TRY(verify(self, what));
    memset(self->host, 0, (size_t)self->count * what->item_bytes); // sums of sums must not grow
    TD_TRY(move(self, what, self->values, self->host));
    for (int64_t i = 0; i < self->options->rounds; i++)
        TD_TRY(time_once(self, what, &self->samples[i]));
    add_point(self, what);
    return TD_OK;
}

static void close_size(bench *self) {
    td_buckets_destroy(self->exact);
    td_buckets_destroy(self->floats);
    self->exact = self->floats = NULL;
    if (self->device_comm)
        self->device_comm->transport->destroy(self->device_comm);
    self->device_comm = NULL;
    free(self->requests);
    self->requests = NULL;
}

static td_status open_buckets(bench *self) {
    self->requests = calloc((size_t)self->map.n_pages, sizeof *self->requests);
    if (!self->requests)
        return td_fail(TD_ERR_MEMORY, "no memory for %lld pages", (long long)self->map.n_pages);
    TD_TRY(td_buckets_create(self->device_comm, &self->map, TD_COLLECTIVE_I64, self->values, 1,
                             &self->exact));
    return td_buckets_create(self->device_comm, &self->map, TD_COLLECTIVE_F32, self->values, 1,
                             &self->floats);
}

static td_status open_size(bench *self, int64_t count) {
    int64_t page = self->config->page_elements;
    self->count = count;
    TD_TRY(td_page_map_init(&self->map, count, page < count ? page : count, self->size));
    td_device_comm_options options = {.comm = self->comm,
                                      .device = self->choice.device,
                                      .max_bytes =
                                          (size_t)self->map.page_elements * sizeof(int64_t),
                                      .in_flight = (size_t)self->map.n_pages};
    TD_TRY(self->choice.transport->create(&options, &self->device_comm));
    return td_comm_agree(self->comm, open_buckets(self), "benchmark buckets");
}

static td_status bench_size(bench *self, int64_t count) {
    td_status status = open_size(self, count);
    for (size_t i = 0; status == TD_OK && i < sizeof collectives / sizeof *collectives; i++)
        status = bench_collective(self, &collectives[i]);
    close_size(self);
    return status;
}

static td_status allocate(bench *self) {
    const td_device *device = self->choice.device;
    size_t bytes = (size_t)self->max_count * sizeof(int64_t);
    TD_TRY(device->table->stream_create(device, &self->stream));
    TD_TRY(device->table->alloc(device, bytes, "benchmark values", &self->values));
    self->host = calloc((size_t)self->max_count, sizeof(int64_t));
    self->samples = calloc((size_t)self->options->rounds, sizeof *self->samples);
    return self->host && self->samples ? TD_OK
                                       : td_fail(TD_ERR_MEMORY, "no memory for %zu bytes", bytes);
}

static td_status open_bench(bench *self) {
    self->rank = td_comm_rank(self->comm);
    self->size = td_comm_size(self->comm);
    self->max_count = (int64_t)(self->options->max_bytes / sizeof(int64_t));
    TD_TRY(td_device_choose(self->config, self->comm, &self->choice));
    self->n_threads = td_session_threads(self->config, td_comm_local_size(self->comm));
    td_ops_cpu_set_threads(self->n_threads);
    return td_comm_agree(self->comm, allocate(self), "benchmark memory");
}

static void close_bench(bench *self) {
    const td_device *device = self->choice.device;
    if (self->values)
        device->table->free(device, self->values);
    if (self->stream)
        device->table->stream_destroy(self->stream);
    free(self->host);
    free(self->samples);
}

// The ceiling of transports through host memory.
static td_status measure_copy(bench *self) {
    double seconds[COPY_ROUNDS];
    unsigned char *from = malloc(COPY_BYTES), *to = malloc(COPY_BYTES);
    td_status status = from && to ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for a copy");
    status = td_comm_agree(self->comm, status, "copy bandwidth");
    if (status == TD_OK) {
        memset(from, 1, COPY_BYTES);
        memset(to, 0, COPY_BYTES);
    }
    for (int i = 0; status == TD_OK && i < COPY_ROUNDS; i++)
        status = td_bench_copy(self->comm, to, from, COPY_BYTES, &seconds[i]);
    if (status == TD_OK)
        self->out->copy_rate = COPY_BYTES / td_bench_spread_of(seconds, COPY_ROUNDS).median;
    free(from);
    free(to);
    return status;
}

typedef struct step_costs {
    bench *self;
    td_run *run;
    td_bench_comm_step *out;
    float *floats; // (n_elements) fp32, device memory
    td_buckets *buckets;
} step_costs;

typedef td_status (*cost)(step_costs *costs);

static td_status cost_add_exact(step_costs *costs) {
    const td_parameters *parameters = &costs->run->parameters;
    const td_op_context *context = &costs->run->optimizer.context;
    return context->ops->fixed_add(
        context,
        &(td_fixed_add_args){.n_elements = parameters->map.n_elements,
                             .values = parameters->values,
                             .accumulator = parameters->fixed,
                             .quantum_log2 = (int)costs->self->config->gradient_quantum_log2,
                             .limit = INT64_MAX / costs->self->size,
                             .faults = parameters->faults});
}

static td_status cost_add_fp32(step_costs *costs) {
    const td_parameters *parameters = &costs->run->parameters;
    const td_op_context *context = &costs->run->optimizer.context;
    return context->ops->f32_add(context,
                                 &(td_f32_add_args){.n_elements = parameters->map.n_elements,
                                                    .values = parameters->values,
                                                    .accumulator = costs->floats,
                                                    .faults = parameters->faults});
}

static td_status cost_reduce(step_costs *costs, td_buckets *buckets) {
    td_stream *stream = costs->run->optimizer.context.stream;
    td_buckets_reset(buckets);
    TD_TRY(td_buckets_advance(buckets, 0, stream));
    return td_buckets_wait(buckets, stream);
}

static td_status cost_reduce_exact(step_costs *costs) {
    return cost_reduce(costs, costs->run->buckets);
}

static td_status cost_reduce_fp32(step_costs *costs) {
    return cost_reduce(costs, costs->buckets);
}

static td_status sum_words(const step_costs *costs, const void *words, int64_t count) {
    const td_op_context *context = &costs->run->optimizer.context;
    return context->ops->word_sum(
        context, &(td_word_sum_args){
                     .n_elements = count, .words = words, .sum = costs->run->parameters.checks});
}

// As step.c has them: all parameters, every page before, this rank's pages after.
static td_status cost_checks(step_costs *costs) {
    const td_parameters *parameters = &costs->run->parameters;
    const td_page_map *map = &parameters->map;
    if (costs->self->size == 1)
        return TD_OK;
    TD_TRY(sum_words(costs, parameters->values, (map->n_elements + 1) / 2));
    for (int64_t page = 0; page < map->n_pages; page++) {
        td_page_span span = td_page_map_span(map, page);
        TD_TRY(sum_words(costs, parameters->fixed + span.begin, span.count));
        if (td_page_map_owner(map, page) == costs->self->rank)
            TD_TRY(sum_words(costs, parameters->fixed + span.begin, span.count));
    }
    return TD_OK;
}

static td_status time_cost(step_costs *costs, cost what, double *out) {
    bench *self = costs->self;
    const td_op_context *context = &costs->run->optimizer.context;
    size_t bytes = (size_t)costs->run->parameters.map.n_elements * sizeof(int64_t);
    for (int64_t i = 0; i < self->options->rounds; i++) {
        TD_TRY(
            context->device->table->set(context->stream, costs->run->parameters.fixed, 0, bytes));
        TD_TRY(context->device->table->stream_synchronize(context->stream));
        TD_TRY(td_comm_barrier(self->comm, "benchmark start"));
        double start = td_seconds_now();
        TD_TRY(what(costs));
        TD_TRY(context->device->table->stream_synchronize(context->stream));
        self->samples[i] = td_seconds_now() - start;
        TD_TRY(td_bench_slowest(self->comm, &self->samples[i]));
    }
    *out = td_bench_spread_of(self->samples, self->options->rounds).median;
    return TD_OK;
}

static td_status time_costs(step_costs *costs) {
    td_bench_comm_step *out = costs->out;
    TD_TRY(time_cost(costs, cost_add_exact, &out->add_exact));
    TD_TRY(time_cost(costs, cost_add_fp32, &out->add_fp32));
    TD_TRY(time_cost(costs, cost_reduce_exact, &out->reduce_exact));
    TD_TRY(time_cost(costs, cost_reduce_fp32, &out->reduce_fp32));
    return time_cost(costs, cost_checks, &out->checks);
}

// After the steps, with their buffers.
static td_status measure_costs(void *context, td_run *run) {
    bench *self = context;
    step_costs costs = {.self = self, .run = run, .out = &self->out->step};
    const td_device *device = self->choice.device;
    void *memory = NULL;
    td_status status =
        device->table->alloc(device, (size_t)run->parameters.map.n_elements * sizeof(float),
                             "fp32 gradient sums", &memory);
    costs.floats = memory;
    if (status == TD_OK)
        status = td_buckets_create(run->device_comm, &run->parameters.map, TD_COLLECTIVE_F32,
                                   costs.floats, 1, &costs.buckets);
    status = td_comm_agree(self->comm, status, "benchmark memory");
    if (status == TD_OK)
        status = time_costs(&costs);
    td_buckets_destroy(costs.buckets);
    if (memory)
        device->table->free(device, memory);
    return status;
}

static td_status bench_whole_step(bench *self) {
    td_bench_comm_step *out = &self->out->step;
    td_bench_step_options options = self->options->step;
    if (options.steps == 0)
        return TD_OK;
    options.with_run = measure_costs;
    options.with_run_context = self;
    TD_TRY(td_bench_step(self->config, self->comm, &options, &self->out->whole));
    double each = ceil((double)options.micro_batches / self->size); // micro-batches of a rank
    out->step = self->out->whole.seconds;
    out->exposed = self->out->whole.wait_seconds;
    out->add_exact *= each;
    out->add_fp32 *= each;
    out->exact_share =
        (out->add_exact - out->add_fp32 + out->reduce_exact - out->reduce_fp32 + out->checks) /
        out->step;
    out->checks_share = out->checks / out->step;
    out->exposed_share = out->exposed / out->step;
    return TD_OK;
}

static cJSON *point_object(const td_bench_comm_point *point) {
    cJSON *object = cJSON_CreateObject();
    td_bench_record_text(object, "op", point->op);
    td_bench_record_number(object, "bytes", (double)point->bytes);
    td_bench_record_number(object, "median", point->seconds.median);
    td_bench_record_number(object, "p10", point->seconds.p10);
    td_bench_record_number(object, "p90", point->seconds.p90);
    td_bench_record_number(object, "traffic_bytes", point->traffic);
    return object;
}

static void add_step(cJSON *record, const td_bench_comm_step *step) {
    cJSON *object = cJSON_AddObjectToObject(record, "step");
    td_bench_record_number(object, "step_seconds", step->step);
    td_bench_record_number(object, "exposed_seconds", step->exposed);
    td_bench_record_number(object, "add_exact_seconds", step->add_exact);
    td_bench_record_number(object, "add_fp32_seconds", step->add_fp32);
    td_bench_record_number(object, "reduce_exact_seconds", step->reduce_exact);
    td_bench_record_number(object, "reduce_fp32_seconds", step->reduce_fp32);
    td_bench_record_number(object, "checks_seconds", step->checks);
    td_bench_record_number(object, "exposed_share", step->exposed_share);
    td_bench_record_number(object, "checks_share", step->checks_share);
    td_bench_record_number(object, "exact_share", step->exact_share);
}

static void add_balance(cJSON *record, const td_bench_balance_point *points) {
    cJSON *list = cJSON_AddArrayToObject(record, "imbalance");
    for (int i = 0; i < TD_BENCH_BALANCE_POINTS; i++) {
        cJSON *object = cJSON_CreateObject();
        td_bench_record_number(object, "ranks", points[i].ranks);
        td_bench_record_number(object, "packed", points[i].packed);
        td_bench_record_number(object, "not_packed", points[i].not_packed);
        cJSON_AddItemToArray(list, object);
    }
}

static void make_record(const bench *self) {
    td_bench_comm_result *out = self->out;
    cJSON *record = td_bench_record_create("comm", self->options->command, &self->choice,
                                           self->size, self->n_threads);
    td_bench_record_number(record, "rounds", (double)self->options->rounds);
    td_bench_record_number(record, "copy_bytes_per_second", out->copy_rate);
    cJSON *points = cJSON_AddArrayToObject(record, "collectives");
    for (int i = 0; i < out->n_points; i++)
        cJSON_AddItemToArray(points, point_object(&out->points[i]));
    if (self->options->step.steps > 0)
        add_step(record, &out->step);
    add_balance(record, out->balance);
    out->record = record;
}

static td_status run(bench *self) {
    TD_TRY(open_bench(self));
    TD_TRY(measure_copy(self));
    for (int64_t count = MIN_COUNT; count <= self->max_count; count *= GROWTH)
        TD_TRY(bench_size(self, count));
    TD_TRY(bench_whole_step(self));
    TD_TRY(
        td_comm_agree(self->comm, td_bench_balance(self->config, self->out->balance), "balance"));
    if (self->rank == 0)
        make_record(self);
    return TD_OK;
}

td_status td_bench_comm(const td_config *config, td_comm *comm,
                        const td_bench_comm_options *options, td_bench_comm_result *out) {
    bench self = {.config = config, .comm = comm, .options = options, .out = out};
    *out = (td_bench_comm_result){0};
    td_status status = run(&self);
    td_run_end_if_alone(comm, status);
    close_bench(&self);
    return status;
}
