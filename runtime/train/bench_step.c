#include "runtime/train/bench_step.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/files.h"
#include "runtime/core/log.h"
#include "runtime/train/bench_record.h"
#include "runtime/train/metrics.h"

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

static void record_samples(const td_run *run, const td_bench_step_options *options,
                           const double *seconds, const double *waits, td_bench_step_result *out) {
    const td_session *session = run->session;
    if (!options->command || td_comm_rank(session->comm) != 0)
        return;
    out->record = td_bench_record_create("step", options->command, &session->choice,
                                         td_comm_size(session->comm), session->n_threads);
    td_bench_record_samples(out->record, "step_seconds", seconds, options->steps);
    td_bench_record_samples(out->record, "wait_seconds_of_step", waits, options->steps);
}

static td_status time_steps(td_run *run, const td_bench_step_options *options,
                            td_bench_step_result *out) {
    td_step_result result = {0};
    double *seconds = calloc((size_t)options->steps, sizeof *seconds);
    double *waits = calloc((size_t)options->steps, sizeof *waits);
    td_status status = seconds && waits ? take_steps(run, options, seconds, waits, &result)
                                        : td_fail(TD_ERR_MEMORY, "no memory for the timings");
    if (status == TD_OK) {
        summarize(seconds, waits, options->steps, &result, out);
        record_samples(run, options, seconds, waits, out);
    }
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
// stays until the end, and nothing that is gone was larger. Beside a GPU the plan lists what the
// run takes of the host, and what was resident before it is not in it.
static td_status note_memory(const td_run *run, size_t free_before, size_t resident_before,
                             td_bench_step_result *out) {
    const td_session *session = run->session;
    size_t free_now, resident = td_memory_peak_bytes();
    TD_TRY(free_device_bytes(session, &free_now));
    out->plan_bytes = run->plan.total_bytes[TD_POOL_DEVICE];
    out->peak_bytes = resident;
    if (session->context.device->unified)
        return TD_OK;
    out->peak_bytes = free_before > free_now ? free_before - free_now : 0;
    out->host_plan_bytes = run->plan.total_bytes[TD_POOL_HOST];
    out->host_peak_bytes = resident > resident_before ? resident - resident_before : 0;
    return TD_OK;
}

static td_status make_weights(td_session *session, td_bench_step_result *out) {
    td_base_options base = td_session_base_options(session);
    double start = td_seconds_now();
    td_status status =
        td_base_create_random(&session->model, &base, 1, &session->context, &session->base);
    out->weights_seconds = td_seconds_now() - start;
    return td_comm_agree(session->comm, status, "random weights");
}

static td_status bench(td_run *run, td_session *session, td_store *store,
                       const td_bench_step_options *options, td_bench_step_result *out) {
    size_t free_before, resident_before = td_memory_resident_bytes();
    TD_TRY(free_device_bytes(session, &free_before));
    TD_TRY(td_run_plan(run, session, store, NULL, 0));
    TD_TRY(make_weights(session, out));
    TD_TRY(td_run_allocate(run, store, NULL));
    TD_TRY(time_steps(run, options, out));
    TD_TRY(note_memory(run, free_before, resident_before, out));
    out->recompute = run->plan.recompute;
    out->quantized_layers = run->plan.copies.n_quantized;
    out->copied_layers = run->copies.n_copied;
    out->copies_bytes = run->plan.copies.bytes;
    out->dequantizes_ahead = run->plan.dequantize_ahead;
    return options->with_run ? options->with_run(options->with_run_context, run) : TD_OK;
}

static td_status watch(td_run *run, td_session *session, td_store *store, td_ops_timed *timed,
                       const td_bench_step_options *options, td_bench_step_result *out) {
    TD_TRY(td_run_plan(run, session, store, NULL, 0));
    TD_TRY(td_run_allocate(run, store, NULL));
    return td_bench_breakdown_run(run, timed, 0, options->steps, &out->breakdown);
}

// Another run on the same weights, behind the table that times operations: the steps that were
// timed as a whole were not touched by it, and ran as graphs where there are some. What is watched
// must be queued one by one.
static td_status break_down(td_session *session, td_store *store, size_t limit_bytes,
                            const td_bench_step_options *options, td_bench_step_result *out) {
    td_ops_timed *timed = NULL;
    td_run run = {0};
    const td_ops *plain = session->context.ops;
    const td_config *given = session->config;
    td_config config = *given;
    config.cuda_graphs = TD_GRAPHS_OFF;
    config.dequantize_ahead = TD_AHEAD_OFF;
    config.gradient_checkpointing = out->recompute;
    config.memory_limit_bytes = (int64_t)limit_bytes;
    config.dequantized_cache_bytes = out->copies_bytes > 0 ? (int64_t)out->copies_bytes : -1;
    TD_TRY(td_comm_agree(session->comm, td_ops_timed_create(&session->context, &timed),
                         "timed operations"));
    session->context.ops = td_ops_timed_table(timed);
    session->config = &config;
    td_status status = watch(&run, session, store, timed, options, out);
    td_run_end_if_alone(session->comm, status);
    td_run_destroy(&run);
    session->context.ops = plain;
    session->config = given;
    td_ops_timed_destroy(timed);
    return status;
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
    size_t limit_bytes = run.plan.limit_bytes[TD_POOL_DEVICE];
    td_run_destroy(&run);
    if (status == TD_OK && options->breakdown)
        status = break_down(session, store, limit_bytes, options, out);
    td_store_close(store);
    return status;
}

// On the CPU nobody counts layers, and none has a copy.
static double dequantized_share(const td_session *session, const td_bench_step_result *result) {
    if (result->quantized_layers == 0)
        return session->config->load_in_4bit;
    return 1 - (double)result->copied_layers / (double)result->quantized_layers;
}

static void describe(const td_session *session, const td_bench_step_options *options,
                     td_bench_step_result *out) {
    td_bench_shape shape = {.seq_tokens = options->seq_tokens,
                            .sequences = options->sequences * options->micro_batches,
                            .micro_batches = options->micro_batches,
                            .recompute = out->recompute,
                            .quantized = dequantized_share(session, out)};
    td_base_counts counts;
    td_base_count(&session->model, &counts);
    out->flops = td_bench_flops_of(&session->model, &session->lora, &shape);
    out->trainable = session->lora.n_parameters;
    out->total_parameters = counts.total;
    out->n_threads = session->n_threads;
    out->is_gpu = !session->context.device->unified;
    out->is_bf16 = session->context.ops->activation == TD_BF16;
    out->has_bf16_products = session->context.ops->product == TD_BF16;
    snprintf(out->device, sizeof out->device, "%s", session->choice.name);
}

td_status td_bench_step(const td_config *config, td_comm *comm,
                        const td_bench_step_options *options, td_bench_step_result *out) {
    td_session session = {0};
    td_status status = td_session_open(&session, config, comm, 1);
    session.has_random_base = 1;
    *out = (td_bench_step_result){0};
    if (status == TD_OK)
        status = with_store(&session, options, out);
    if (status == TD_OK && options->measure_ceilings)
        status = td_comm_agree(comm, td_bench_ceilings_measure(&session.context, &out->ceilings),
                               "ceilings");
    if (status == TD_OK)
        describe(&session, options, out);
    td_session_close(&session);
    return status;
}
