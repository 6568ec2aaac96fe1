#include "runtime/train/bench_step.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/files.h"
#include "runtime/core/log.h"
#include "runtime/train/bench_record.h"
#include "runtime/train/metrics.h"
#include "runtime/train/run.h"

// A GPU needs larger matrices to be busy. Products that take less than a moment are timed in a row.
enum { CPU_EXTENT = 2048, GPU_EXTENT = 4096, PEAK_ROUNDS = 5, IN_A_ROW = 20 };
static const double moment_seconds = 0.01;

// Square matrices of the activation type: y = x w^T.
typedef struct gemm_peak {
    td_op_context context;
    td_arena arena;
    td_matrix weight;
    td_linear_forward_args args;
} gemm_peak;

static td_status fill_operands(gemm_peak *peak, void *x, void *w, size_t count) {
    const td_op_context *context = &peak->context;
    td_dtype dtype = context->ops->activation;
    size_t item = td_dtype_bytes(dtype), bytes = count * item;
    unsigned char *host = malloc(bytes);
    if (!host)
        return td_fail(TD_ERR_MEMORY, "no memory for the operands of the GEMM peak");
    for (size_t i = 0; i < count; i++) {
        float value = (float)(i % 17) * 0.125f - 1.0f;
        uint16_t bits = td_f32_to_bf16(value);
        memcpy(host + i * item, dtype == TD_BF16 ? (void *)&bits : (void *)&value, item);
    }
    td_status status = context->device->table->copy(context->stream, x, host, bytes);
    if (status == TD_OK)
        status = context->device->table->copy(context->stream, w, host, bytes);
    td_status done = context->device->table->stream_synchronize(context->stream);
    free(host);
    return status != TD_OK ? status : done;
}

static td_status open_peak(gemm_peak *peak, const td_session *session, int64_t extent) {
    size_t count = (size_t)(extent * extent);
    td_dtype dtype = session->context.ops->activation;
    td_workspace_query query = {.max_tokens = extent,
                                .max_in = extent,
                                .max_out = extent,
                                .max_weight_elements = (int64_t)count,
                                .n_heads = 1,
                                .n_kv_heads = 1,
                                .head_dim = 64};
    td_op_context *context = &peak->context;
    *context = session->context;
    context->workspace_bytes = context->ops->workspace_bytes(&query);
    TD_TRY(td_arena_init(&peak->arena, context->device,
                         3 * count * td_dtype_bytes(dtype) + context->workspace_bytes +
                             4 * TD_ARENA_ALIGN,
                         "GEMM peak"));
    void *x = td_arena_take(&peak->arena, count, td_dtype_bytes(dtype));
    void *w = td_arena_take(&peak->arena, count, td_dtype_bytes(dtype));
    void *y = td_arena_take(&peak->arena, count, td_dtype_bytes(dtype));
    context->workspace = td_arena_take(&peak->arena, context->workspace_bytes, 1);
    peak->weight = (td_matrix){.format = dtype == TD_BF16 ? TD_MATRIX_BF16 : TD_MATRIX_F32,
                               .rows = extent,
                               .cols = extent,
                               .data = w,
                               .compute = dtype};
    peak->args =
        (td_linear_forward_args){.n_tokens = extent, .x = x, .weight = &peak->weight, .y = y};
    return fill_operands(peak, x, w, count);
}

// Seconds per product.
static td_status time_products(const gemm_peak *peak, int count, double *out) {
    const td_op_context *context = &peak->context;
    double start = td_seconds_now();
    for (int i = 0; i < count; i++)
        TD_TRY(context->ops->linear_forward(context, &peak->args));
    TD_TRY(context->device->table->stream_synchronize(context->stream));
    *out = (td_seconds_now() - start) / count;
    return TD_OK;
}

static td_status best_of_rounds(const gemm_peak *peak, double *out) {
    double seconds, best;
    TD_TRY(time_products(peak, 1, &best));
    int count = best < moment_seconds ? IN_A_ROW : 1;
    for (int round = 0; round < PEAK_ROUNDS; round++) {
        TD_TRY(time_products(peak, count, &seconds));
        best = seconds < best ? seconds : best;
    }
    *out = best;
    return TD_OK;
}

// The ceiling that a step's GEMMs are measured against.
static td_status measure_gemm_peak(const td_session *session, td_bench_step_result *out) {
    int64_t extent = session->context.device->unified ? CPU_EXTENT : GPU_EXTENT;
    gemm_peak peak = {0};
    double seconds = INFINITY;
    td_status status = open_peak(&peak, session, extent);
    if (status == TD_OK)
        status = best_of_rounds(&peak, &seconds);
    td_arena_fini(&peak.arena);
    out->gemm_peak_extent = extent;
    out->gemm_peak = 2.0 * (double)extent * (double)extent * (double)extent / seconds;
    return status;
}

td_status td_bench_write_store(const td_session *session, const td_bench_step_options *options,
                               const char *path) {
    int64_t rows = options->sequences * options->micro_batches, length = options->seq_tokens;
    td_store_writer *writer;
    int32_t *tokens = malloc((size_t)length * sizeof *tokens);
    uint8_t *trained = malloc((size_t)length);
    uint64_t key = td_rng_key(1, TD_RNG_TEST);
    td_status status = tokens && trained ? td_store_writer_open(path, &writer)
                                         : td_fail(TD_ERR_MEMORY, "no memory for random tokens");
    for (int64_t row = 0; status == TD_OK && row < rows; row++) {
        for (int64_t t = 0; t < length; t++)
            tokens[t] = (int32_t)(td_rng_word(key, (uint32_t)row, 0, (uint64_t)t) %
                                  (uint32_t)session->model.vocabulary);
        memset(trained, 1, (size_t)length);
        status = td_store_writer_add(writer, tokens, trained, length);
        if (status != TD_OK)
            td_store_writer_abandon(writer);
    }
    if (status == TD_OK)
        status = td_store_writer_commit(writer, (td_hash){0}, "{}");
    free(trained);
    free(tokens);
    return status;
}

// Products with base weights: forward, and dX backward; the LoRA products; the head both ways.
// Attention apart.
static double gemm_flops(const td_session *session, const td_bench_step_options *options) {
    double tokens = (double)(options->seq_tokens * options->sequences * options->micro_batches);
    double targets = tokens * (double)(options->seq_tokens - 1) / (double)options->seq_tokens;
    double weights = 0, adapters = (double)session->lora.n_parameters;
    for (int projection = 0; projection < TD_PROJ_COUNT; projection++)
        if (td_projection_exists(&session->model, (td_projection)projection))
            weights += (double)td_projection_out(&session->model, (td_projection)projection) *
                       (double)td_projection_in(&session->model, (td_projection)projection);
    weights *= (double)session->model.n_layers;
    double head = (double)session->model.vocabulary * (double)session->model.hidden;
    return 2 * tokens * (2 * weights + 3 * adapters) + 2 * targets * 2 * head;
}

td_status td_bench_whole_step(td_run *run, int64_t index, td_step_result *out) {
    const td_op_context *context = &run->session->context;
    TD_TRY(td_step_run(&run->step, index, out));
    return context->device->table->stream_synchronize(context->stream);
}

static double waited(const td_run *run) {
    return td_comm_read_counters(run->session->comm).wait_seconds;
}

// seconds, waits: (steps)
static td_status take_steps(td_run *run, const td_bench_step_options *options, double *seconds,
                            double *waits, td_step_result *result) {
    TD_TRY(td_bench_whole_step(run, 0, result));
    if (!(result->loss > 0 && result->grad_norm > 0))
        return td_fail(TD_ERR_NUMERIC, "loss %g, gradient norm %g: nothing is learned",
                       result->loss, result->grad_norm);
    for (int64_t i = 0; i < options->steps; i++) {
        double start = td_seconds_now(), before = waited(run);
        TD_TRY(td_bench_whole_step(run, i + 1, result));
        seconds[i] = td_seconds_now() - start;
        waits[i] = waited(run) - before;
        TD_TRY(td_bench_slowest(run->session->comm, &waits[i]));
    }
    return TD_OK;
}

static void summarize(const double *seconds, const double *waits, int64_t steps,
                      const td_step_result *result, td_bench_step_result *out) {
    td_bench_spread spread = td_bench_spread_of(seconds, steps);
    out->fastest = out->slowest = seconds[0];
    for (int64_t i = 1; i < steps; i++) {
        out->fastest = seconds[i] < out->fastest ? seconds[i] : out->fastest;
        out->slowest = seconds[i] > out->slowest ? seconds[i] : out->slowest;
    }
    out->seconds = spread.median;
    out->p10 = spread.p10;
    out->p90 = spread.p90;
    out->wait_seconds = td_bench_spread_of(waits, steps).median;
    out->tokens_per_second = (double)result->tokens / out->seconds;
    out->loss = result->loss;
    out->grad_norm = result->grad_norm;
}

static td_status time_steps(td_run *run, const td_bench_step_options *options,
                            td_bench_step_result *out) {
    td_step_result result = {0};
    double *seconds = calloc((size_t)options->steps, sizeof *seconds);
    double *waits = calloc((size_t)options->steps, sizeof *waits);
    td_status status = seconds && waits ? take_steps(run, options, seconds, waits, &result)
                                        : td_fail(TD_ERR_MEMORY, "no memory for the timings");
    if (status == TD_OK)
        summarize(seconds, waits, options->steps, &result, out);
    free(seconds);
    free(waits);
    return status;
}

static td_status free_device_bytes(const td_session *session, size_t *out) {
    const td_device *device = session->context.device;
    size_t total_bytes;
    return device->table->memory_info(device, out, &total_bytes);
}

// On the CPU the most that was resident. On a GPU what has been taken since the start: everything
// stays until the end, and nothing that is gone was larger.
static td_status used_bytes(const td_session *session, size_t free_before, size_t *out) {
    size_t free_now;
    TD_TRY(free_device_bytes(session, &free_now));
    size_t taken = free_before > free_now ? free_before - free_now : 0;
    *out = session->context.device->unified ? td_memory_peak_bytes() : taken;
    return TD_OK;
}

static td_status bench(td_run *run, td_session *session, td_store *store,
                       const td_bench_step_options *options, td_bench_step_result *out) {
    td_base_options base = td_session_base_options(session);
    size_t free_before;
    TD_TRY(free_device_bytes(session, &free_before));
    TD_TRY(td_run_plan(run, session, store, NULL, 0));
    TD_TRY(td_comm_agree(
        session->comm,
        td_base_create_random(&session->model, &base, 1, &session->context, &session->base),
        "random weights"));
    TD_TRY(td_run_allocate(run, store, NULL));
    TD_TRY(time_steps(run, options, out));
    out->plan_bytes = run->plan.total_bytes[TD_POOL_DEVICE];
    TD_TRY(used_bytes(session, free_before, &out->peak_bytes));
    out->recompute = td_recompute_name(run->plan.recompute);
    if (options->with_run)
        TD_TRY(options->with_run(options->with_run_context, run));
    return measure_gemm_peak(session, out);
}

static td_status with_store(td_session *session, const td_bench_step_options *options,
                            td_bench_step_result *out) {
    char path[TD_PATH_MAX];
    td_store *store = NULL;
    td_run run = {0};
    td_status status = td_path_join(path, options->scratch, "bench.h5");
    if (status == TD_OK && td_comm_rank(session->comm) == 0)
        status = td_bench_write_store(session, options, path);
    TD_TRY(td_comm_agree(session->comm, status, "random tokens"));
    status = td_comm_agree(session->comm, td_store_open(path, &store), "random tokens");
    if (status == TD_OK)
        status = bench(&run, session, store, options, out);
    td_run_end_if_alone(session->comm, status);
    td_run_destroy(&run);
    td_store_close(store);
    return status;
}

td_status td_bench_step(const td_config *config, td_comm *comm,
                        const td_bench_step_options *options, td_bench_step_result *out) {
    td_session session = {0};
    td_status status = td_session_open(&session, config, comm, 1);
    session.has_random_base = 1;
    *out = (td_bench_step_result){0};
    if (status == TD_OK)
        status = with_store(&session, options, out);
    if (status == TD_OK) {
        out->gemm_flops = gemm_flops(&session, options);
        out->trainable = session.lora.n_parameters;
        td_base_counts counts;
        td_base_count(&session.model, &counts);
        out->total_parameters = counts.total;
        out->n_threads = session.n_threads;
        out->is_gpu = !session.context.device->unified;
        out->is_bf16 = session.context.ops->activation == TD_BF16;
        snprintf(out->device, sizeof out->device, "%s", session.choice.name);
    }
    td_session_close(&session);
    return status;
}
