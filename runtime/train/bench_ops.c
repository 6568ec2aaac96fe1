#include "runtime/train/bench_ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/bench_ops_internal.h"
#include "runtime/train/metrics.h"
#include "runtime/train/session.h"

enum { MIN_SAMPLES = 3, MAX_SAMPLES = 50 };

td_status td_bench_call(td_ops_bench *bench, const char *name, td_op op, const void *args) {
    TD_TRY(bench->status);
    bench->name = name;
    bench->op = op;
    TD_TRY(td_op_call(&bench->context, op, args));
    return bench->context.device->table->stream_synchronize(bench->context.stream);
}

typedef struct event_pairs {
    td_event *begin[MAX_SAMPLES], *end[MAX_SAMPLES];
} event_pairs;

static td_status create_pairs(const td_device *device, event_pairs *pairs, int count) {
    for (int i = 0; i < count; i++) {
        TD_TRY(device->table->event_create_timed(device, &pairs->begin[i]));
        TD_TRY(device->table->event_create_timed(device, &pairs->end[i]));
    }
    return TD_OK;
}

static void destroy_pairs(const td_device *device, event_pairs *pairs) {
    for (int i = 0; i < MAX_SAMPLES; i++) {
        if (pairs->begin[i])
            device->table->event_destroy(pairs->begin[i]);
        if (pairs->end[i])
            device->table->event_destroy(pairs->end[i]);
    }
}

// All calls are queued before the first is waited for: a device is not idle between them.
static td_status queue_and_read(td_ops_bench *bench, const void *args, event_pairs *pairs,
                                int count, double *seconds) {
    const td_op_context *context = &bench->context;
    const td_device_table *device = context->device->table;
    for (int i = 0; i < count; i++) {
        TD_TRY(device->event_record(pairs->begin[i], context->stream));
        TD_TRY(td_op_call(context, bench->op, args));
        TD_TRY(device->event_record(pairs->end[i], context->stream));
    }
    TD_TRY(device->stream_synchronize(context->stream));
    for (int i = 0; i < count; i++)
        TD_TRY(device->event_elapsed(pairs->begin[i], pairs->end[i], &seconds[i]));
    return TD_OK;
}

static td_status take_samples(td_ops_bench *bench, const void *args, int count, double *seconds) {
    event_pairs pairs = {0};
    td_status status = create_pairs(bench->context.device, &pairs, count);
    if (status == TD_OK)
        status = queue_and_read(bench, args, &pairs, count, seconds);
    (void)bench->context.device->table->stream_synchronize(bench->context.stream);
    destroy_pairs(bench->context.device, &pairs);
    return status;
}

td_status td_bench_time_op(td_ops_bench *bench, const void *args) {
    td_bench_op_time *time = &bench->out->times[bench->out->count];
    double first, budget = bench->options->budget_seconds;
    if (bench->out->count == TD_BENCH_OPS_MAX)
        return td_fail(TD_ERR_INTERNAL, "more than %d operations to time", TD_BENCH_OPS_MAX);
    TD_TRY(take_samples(bench, args, 1, &first));
    double wanted = first > 0 ? budget / first : MAX_SAMPLES;
    int count = wanted < MIN_SAMPLES   ? MIN_SAMPLES
                : wanted > MAX_SAMPLES ? MAX_SAMPLES
                                       : (int)wanted;
    time->samples = calloc((size_t)count, sizeof *time->samples);
    if (!time->samples)
        return td_fail(TD_ERR_MEMORY, "no memory for the timings");
    bench->out->count++;
    TD_TRY(take_samples(bench, args, count, time->samples));
    snprintf(time->name, sizeof time->name, "%s", bench->name);
    time->op = bench->op;
    time->work = td_op_work_of(bench->op, args, bench->act);
    time->n_samples = count;
    time->seconds = td_bench_spread_of(time->samples, count);
    return TD_OK;
}

static int64_t at_least(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static td_workspace_query query_of(const td_model_config *model,
                                   const td_bench_ops_options *options) {
    int64_t q = model->n_heads * model->head_dim, k = model->n_kv_heads * model->head_dim;
    int64_t fused = model->fused_projections ? 2 : 1;
    int64_t widest = at_least(at_least(model->hidden, q + 2 * k), fused * model->intermediate);
    return (td_workspace_query){
        .max_tokens = options->tokens,
        .max_in = at_least(at_least(model->hidden, q), model->intermediate),
        .max_out = widest,
        .max_weight_elements = widest * at_least(model->hidden, q),
        .max_head_rows = model->vocabulary,
        .max_head_tokens = options->head_tokens,
        .max_rank = options->rank,
        .n_heads = model->n_heads,
        .n_kv_heads = model->n_kv_heads,
        .head_dim = model->head_dim,
    };
}

static const struct {
    const char *name;
    td_status (*run)(td_ops_bench *bench);
} groups[] = {
    {"linear", td_bench_linear_ops}, {"weights", td_bench_weight_ops},
    {"rows", td_bench_row_ops},      {"attention", td_bench_attention_ops},
    {"sums", td_bench_sum_ops},
};

static td_status check_group(const char *only) {
    for (size_t i = 0; only && i < sizeof groups / sizeof *groups; i++)
        if (strcmp(only, groups[i].name) == 0)
            return TD_OK;
    return only ? td_fail(TD_ERR_USAGE, "--only is one of " TD_BENCH_OPS_GROUPS ", not '%s'", only)
                : TD_OK;
}

static td_status run_groups(td_ops_bench *bench) {
    const char *only = bench->options->only;
    td_status status = TD_OK;
    for (size_t i = 0; status == TD_OK && i < sizeof groups / sizeof *groups; i++)
        if (!only || strcmp(only, groups[i].name) == 0)
            status = groups[i].run(bench);
    td_bench_release(bench);
    return status;
}

td_status td_bench_ops_run(const td_op_context *context, const td_model_config *model,
                           const td_bench_ops_options *options, td_bench_ops_result *out) {
    *out = (td_bench_ops_result){0};
    td_ops_bench bench = {.context = *context,
                          .model = model,
                          .options = options,
                          .out = out,
                          .act = context->ops->activation};
    td_workspace_query query = query_of(model, options);
    const td_device *device = context->device;
    bench.context.workspace_bytes = context->ops->workspace_bytes(&query);
    TD_TRY(device->table->alloc(device, bench.context.workspace_bytes, "workspace",
                                &bench.context.workspace));
    td_status status = run_groups(&bench);
    device->table->free(device, bench.context.workspace);
    return status;
}

void td_bench_ops_fini(td_bench_ops_result *result) {
    for (int i = 0; i < result->count; i++)
        free(result->times[i].samples);
    cJSON_Delete(result->record);
    *result = (td_bench_ops_result){0};
}

static double amount_of(const td_bench_op_time *time) {
    return td_op_is_product(time->op) ? time->work.flops : time->work.bytes;
}

static double share_of(const td_bench_op_time *time, const td_bench_ceilings *ceilings) {
    double ceiling = td_op_is_product(time->op) ? ceilings->flops : ceilings->bytes_per_second;
    return amount_of(time) / time->seconds.median / ceiling;
}

static void record_ops(const td_bench_ops_result *result) {
    cJSON *list = cJSON_AddArrayToObject(result->record, "ops");
    for (int i = 0; i < result->count; i++) {
        const td_bench_op_time *time = &result->times[i];
        cJSON *object = cJSON_CreateObject();
        td_bench_record_text(object, "op", td_op_name(time->op));
        td_bench_record_text(object, "name", time->name);
        td_bench_record_text(object, "formula", td_op_formula(time->op));
        td_bench_record_number(object, "flops", time->work.flops);
        td_bench_record_number(object, "bytes", time->work.bytes);
        td_bench_record_number(object, "of_ceiling", share_of(time, &result->ceilings));
        td_bench_record_samples(object, "seconds", time->samples, time->n_samples);
        cJSON_AddItemToArray(list, object);
    }
}

static td_bench_ops_options options_of(const td_config *config, int64_t tokens, int64_t seq_tokens,
                                       const char *only) {
    return (td_bench_ops_options){
        .tokens = tokens,
        .seq_tokens = seq_tokens,
        .rank = config->lora_r,
        .dropout = config->lora_dropout,
        .head_tokens = config->logits_chunk_tokens < tokens ? config->logits_chunk_tokens : tokens,
        .page_elements = config->page_elements,
        .nested = config->bnb_4bit_use_double_quant,
        .budget_seconds = 0.3,
        .only = only,
    };
}

static td_status run_and_record(const td_session *session, const td_bench_ops_options *options,
                                const char *command, td_bench_ops_result *out) {
    td_bench_ceilings before;
    TD_TRY(td_bench_ceilings_measure(&session->context, &before));
    TD_TRY(td_bench_ops_run(&session->context, &session->model, options, out));
    TD_TRY(td_bench_ceilings_measure(&session->context, &out->ceilings));
    td_bench_ceilings_keep_larger(&before, &out->ceilings);
    out->record = td_bench_record_create("ops", command, &session->choice,
                                         td_comm_size(session->comm), session->n_threads);
    td_bench_record_text(out->record, "activations",
                         td_dtype_name(session->context.ops->activation));
    td_bench_record_number(out->record, "tokens", (double)options->tokens);
    td_bench_record_number(out->record, "seq", (double)options->seq_tokens);
    td_bench_ceilings_record(&out->ceilings, out->record);
    record_ops(out);
    return TD_OK;
}

td_status td_bench_ops(const td_config *config, td_comm *comm, int64_t tokens, int64_t seq_tokens,
                       const char *only, const char *command, td_bench_ops_result *out) {
    td_session session = {0};
    td_bench_ops_options options = options_of(config, tokens, seq_tokens, only);
    *out = (td_bench_ops_result){0};
    TD_TRY(check_group(only));
    td_status status = td_session_open(&session, config, comm, 0);
    if (status == TD_OK)
        status =
            td_comm_agree(comm, run_and_record(&session, &options, command, out), "operations");
    td_session_close(&session);
    return status;
}

void td_bench_ops_print(const td_bench_ops_result *result) {
    printf("verified:       all of them against double precision on the host, by samples\n");
    td_bench_ceilings_print(&result->ceilings);
    printf("                the same call again and again: what fits into a cache stays there, and "
           "passes the copy ceiling\n");
    printf("%-54s %11s %11s %11s %16s %8s  %s\n", "operation", "median us", "p10", "p90", "rate",
           "ceiling", "= / median");
    for (int i = 0; i < result->count; i++) {
        const td_bench_op_time *time = &result->times[i];
        int is_product = td_op_is_product(time->op);
        char label[128];
        snprintf(label, sizeof label, "%s %s", td_op_name(time->op), time->name);
        printf("%-54s %11.1f %11.1f %11.1f %9.2f %s %6.1f %%  %s\n", label,
               time->seconds.median * 1e6, time->seconds.p10 * 1e6, time->seconds.p90 * 1e6,
               amount_of(time) / time->seconds.median * 1e-9, is_product ? "GFLOP/s" : "GB/s   ",
               100 * share_of(time, &result->ceilings), td_op_formula(time->op));
    }
}
