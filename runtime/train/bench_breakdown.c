#include "runtime/train/bench_breakdown.h"

#include <math.h>
#include <stdio.h>

#include "runtime/train/bench_step.h"
#include "runtime/train/metrics.h"

enum { PROBE_ROUNDS = 5, MIB = 1 << 20 };

// A linear layer of the step without one of its parts.
typedef enum variant {
    WITH_ALL,
    WITHOUT_LORA,
    DENSE, // without LoRA, and the weight in the type of the activations
    N_VARIANTS,
} variant;

typedef struct probe {
    const td_op_context *context;
    td_event *begin, *end;
    void *dense; // of the largest weight; or NULL
    td_matrix weight;
} probe;

static const td_matrix *weight_of(const td_timed_linear *linear) {
    return linear->op == TD_OP_linear_forward ? linear->args.linear_forward.weight
                                              : linear->args.linear_backward.weight;
}

static const td_matrix *choose_weight(probe *p, const td_matrix *weight, variant which) {
    td_dtype type = p->context->ops->activation;
    if (which != DENSE || !p->dense)
        return weight;
    p->weight = (td_matrix){.format = type == TD_BF16 ? TD_MATRIX_BF16 : TD_MATRIX_F32,
                            .rows = weight->rows,
                            .cols = weight->cols,
                            .data = p->dense,
                            .compute = type};
    return &p->weight;
}

static td_op_args variant_of(probe *p, const td_timed_linear *linear, variant which) {
    td_op_args out = linear->args;
    const td_lora_weights *lora = which == WITH_ALL && linear->has_lora ? &linear->lora : NULL;
    if (linear->op == TD_OP_linear_forward) {
        td_linear_forward_args *args = &out.linear_forward;
        args->weight = choose_weight(p, args->weight, which);
        args->lora = lora;
        args->xa = lora ? args->xa : NULL;
    } else {
        td_linear_backward_args *args = &out.linear_backward;
        args->weight = choose_weight(p, args->weight, which);
        args->lora = lora;
        args->accumulate_dx = 0; // so that it can be repeated
    }
    return out;
}

static td_status time_once(probe *p, td_op op, const td_op_args *args, double *out) {
    const td_device_table *device = p->context->device->table;
    TD_TRY(device->event_record(p->begin, p->context->stream));
    TD_TRY(td_op_call(p->context, op, args));
    TD_TRY(device->event_record(p->end, p->context->stream));
    TD_TRY(device->stream_synchronize(p->context->stream));
    return device->event_elapsed(p->begin, p->end, out);
}

// The least of some rounds, in which the variants take turns.
static td_status time_variants(probe *p, const td_timed_linear *linear, double best[N_VARIANTS]) {
    for (int which = 0; which < N_VARIANTS; which++)
        best[which] = INFINITY;
    for (int round = 0; round < PROBE_ROUNDS; round++)
        for (int which = 0; which < N_VARIANTS; which++) {
            td_op_args args = variant_of(p, linear, (variant)which);
            double seconds;
            TD_TRY(time_once(p, linear->op, &args, &seconds));
            best[which] = fmin(best[which], seconds);
        }
    return TD_OK;
}

// Without dx nothing but LoRA is left of a backward layer.
static int is_lora_alone(const td_timed_linear *linear) {
    return linear->op == TD_OP_linear_backward && !linear->args.linear_backward.dx;
}

static td_status split_linear(probe *p, const td_timed_linear *linear, td_bench_linear_split *out) {
    double best[N_VARIANTS], measured = linear->sum.seconds;
    if (is_lora_alone(linear)) {
        out->lora += measured;
        return TD_OK;
    }
    TD_TRY(time_variants(p, linear, best));
    double dense = fmin(best[DENSE], best[WITHOUT_LORA]);
    double all = fmax(best[WITH_ALL], best[WITHOUT_LORA]);
    out->base += measured * dense / all;
    out->dequantize += measured * (best[WITHOUT_LORA] - dense) / all;
    out->lora += measured * (all - best[WITHOUT_LORA]) / all;
    return TD_OK;
}

static td_status split_all(probe *p, td_bench_breakdown *out) {
    for (int i = 0; i < out->sums.n_linears; i++) {
        const td_timed_linear *linear = &out->sums.linears[i];
        int is_forward = linear->op == TD_OP_linear_forward;
        TD_TRY(split_linear(p, linear, is_forward ? &out->forward : &out->backward));
    }
    return TD_OK;
}

static size_t dense_bytes(const td_timed_sums *sums, td_dtype type) {
    size_t most = 0;
    for (int i = 0; i < sums->n_linears; i++) {
        const td_matrix *weight = weight_of(&sums->linears[i]);
        size_t bytes = (size_t)(weight->rows * weight->cols) * td_dtype_bytes(type);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static td_status take_dense(probe *p, td_bench_breakdown *out) {
    const td_device *device = p->context->device;
    size_t free_bytes, total_bytes, bytes = dense_bytes(&out->sums, p->context->ops->activation);
    TD_TRY(device->table->memory_info(device, &free_bytes, &total_bytes));
    out->split_is_whole = free_bytes > bytes + (size_t)64 * MIB;
    return out->split_is_whole ? device->table->alloc(device, bytes, "a dense weight", &p->dense)
                               : TD_OK;
}

static td_status split_with_events(probe *p, td_bench_breakdown *out) {
    const td_device *device = p->context->device;
    TD_TRY(device->table->event_create_timed(device, &p->begin));
    TD_TRY(device->table->event_create_timed(device, &p->end));
    TD_TRY(take_dense(p, out));
    return split_all(p, out);
}

static td_status split(const td_op_context *context, td_bench_breakdown *out) {
    probe p = {.context = context};
    const td_device_table *device = context->device->table;
    td_status status = split_with_events(&p, out);
    (void)device->stream_synchronize(context->stream);
    if (p.begin)
        device->event_destroy(p.begin);
    if (p.end)
        device->event_destroy(p.end);
    if (p.dense)
        device->free(context->device, p.dense);
    return status;
}

static double waited(const td_run *run) {
    return td_comm_read_counters(run->session->comm).wait_seconds;
}

static td_status watch(td_run *run, td_ops_timed *timed, int64_t index, int64_t steps,
                       td_bench_breakdown *out) {
    td_step_result result;
    for (int64_t i = 0; i < steps; i++) {
        double start = td_seconds_now(), before = waited(run);
        TD_TRY(td_bench_whole_step(run, index + i, &result));
        out->seconds += td_seconds_now() - start;
        out->wait_seconds += waited(run) - before;
        TD_TRY(td_ops_timed_collect(timed, &out->sums));
    }
    return TD_OK;
}

static td_status warm_up(td_run *run, td_ops_timed *timed, int64_t index) {
    td_step_result result;
    td_timed_sums dropped = {0};
    TD_TRY(td_bench_whole_step(run, index, &result));
    TD_TRY(td_ops_timed_collect(timed, &dropped));
    td_ops_timed_forget(timed);
    return TD_OK;
}

td_status td_bench_breakdown_run(td_run *run, td_ops_timed *timed, int64_t index, int64_t steps,
                                 td_bench_breakdown *out) {
    out->steps = steps;
    td_ops_timed_watch(timed, 1);
    td_status status = warm_up(run, timed, index);
    if (status == TD_OK)
        status = watch(run, timed, index + 1, steps, out);
    td_ops_timed_watch(timed, 0);
    TD_TRY(td_comm_agree(run->session->comm, status, "watched steps"));
    return split(td_transformer_context(run->transformer), out);
}

typedef struct row {
    char name[64];
    double calls, seconds, bound; // per step; a bound of 0: there is none
} row;

enum { MAX_ROWS = TD_TIMED_PARTS * TD_TIMED_PHASES + 16 };

typedef struct row_list {
    row rows[MAX_ROWS];
    int count;
} row_list;

static void add_row(row_list *list, const char *name, double calls, double seconds, double bound) {
    row *added = &list->rows[list->count++];
    *added = (row){.calls = calls, .seconds = seconds, .bound = bound};
    snprintf(added->name, sizeof added->name, "%s", name);
}

// Parts that go both ways say which; a part with one phase only needs no word for it.
static const char *phase_name(td_timed_part part, int phase) {
    static const char *const names[] = {", forward", ", recompute", ", backward"};
    int has_phases = part <= TD_TIMED_ADD || part == TD_TIMED_HEAD;
    return has_phases ? names[phase] : "";
}

static void add_split(row_list *list, const td_bench_breakdown *breakdown, const td_timed_sum *sum,
                      const td_timed_sum *direction, const td_bench_linear_split *measured) {
    double share = direction->seconds > 0 ? sum->seconds / direction->seconds : 0;
    double steps = (double)breakdown->steps;
    add_row(list, breakdown->split_is_whole ? "- base product" : "- base product, dequantized", 0,
            share * measured->base / steps, 0);
    if (breakdown->split_is_whole)
        add_row(list, "- dequantization", 0, share * measured->dequantize / steps, 0);
    add_row(list, "- LoRA", 0, share * measured->lora / steps, 0);
}

// What the split of a phase is a share of: linear layers forward, computed again or not; backward.
static td_timed_sum direction_of(const td_timed_sums *sums, int phase) {
    const td_timed_sum *phases = sums->part[TD_TIMED_LINEAR];
    td_timed_sum out = phases[phase];
    if (phase != TD_TIMED_BACKWARD)
        out.seconds = phases[TD_TIMED_FORWARD].seconds + phases[TD_TIMED_RECOMPUTE].seconds;
    return out;
}

static void add_part(row_list *list, const td_bench_breakdown *breakdown,
                     const td_bench_ceilings *ceilings, td_timed_part part, int phase) {
    const td_timed_sum *sum = &breakdown->sums.part[part][phase];
    double steps = (double)breakdown->steps;
    if (sum->calls == 0)
        return;
    char name[64];
    snprintf(name, sizeof name, "%s%s", td_timed_part_name(part), phase_name(part, phase));
    add_row(list, name, (double)sum->calls / steps, sum->seconds / steps,
            td_bench_bound(ceilings, sum->flops, sum->bytes) / steps);
    if (part != TD_TIMED_LINEAR)
        return;
    td_timed_sum direction = direction_of(&breakdown->sums, phase);
    add_split(list, breakdown, sum, &direction,
              phase == TD_TIMED_BACKWARD ? &breakdown->backward : &breakdown->forward);
}

static double operations_seconds(const td_bench_breakdown *breakdown) {
    double sum = 0;
    for (int part = 0; part < TD_TIMED_PARTS; part++)
        for (int phase = 0; phase < TD_TIMED_PHASES; phase++)
            sum += breakdown->sums.part[part][phase].seconds;
    return sum / (double)breakdown->steps;
}

static void list_rows(const td_bench_breakdown *breakdown, const td_bench_ceilings *ceilings,
                      row_list *list) {
    double steps = (double)breakdown->steps, waited_for = breakdown->wait_seconds / steps;
    for (int part = 0; part < TD_TIMED_PARTS; part++)
        for (int phase = 0; phase < TD_TIMED_PHASES; phase++)
            add_part(list, breakdown, ceilings, (td_timed_part)part, phase);
    add_row(list, "communication exposed", 0, waited_for, 0);
    double rest = breakdown->seconds / steps - operations_seconds(breakdown) - waited_for;
    add_row(list, "host and other", 0, fmax(rest, 0), 0);
}

static void print_row(const row *one, double step) {
    char calls[16] = "", bound[16] = "", ratio[16] = "";
    if (one->calls > 0)
        snprintf(calls, sizeof calls, "%.0f", one->calls);
    if (one->bound > 0) {
        snprintf(bound, sizeof bound, "%.3f", one->bound * 1e3);
        snprintf(ratio, sizeof ratio, "%.2f", one->seconds / one->bound);
    }
    printf("%-28s %8s %12.3f %7.1f %% %12s %8s\n", one->name, calls, one->seconds * 1e3,
           100 * one->seconds / step, bound, ratio);
}

void td_bench_breakdown_print(const td_bench_breakdown *breakdown,
                              const td_bench_ceilings *ceilings) {
    row_list list = {.count = 0};
    double step = breakdown->seconds / (double)breakdown->steps;
    list_rows(breakdown, ceilings, &list);
    printf("\nper step of this rank, mean of %lld watched steps of %.3f ms\n"
           "bound = flop / GEMM ceiling or bytes / copy ceiling, whatever is more; '-': the same "
           "layers timed alone,\nwith and without LoRA, with NF4 and with a dense weight\n",
           (long long)breakdown->steps, step * 1e3);
    printf("%-28s %8s %12s %9s %12s %8s\n", "part", "calls", "ms", "of step", "bound ms", "ratio");
    for (int i = 0; i < list.count; i++)
        print_row(&list.rows[i], step);
}

void td_bench_breakdown_record(const td_bench_breakdown *breakdown,
                               const td_bench_ceilings *ceilings, cJSON *record) {
    row_list list = {.count = 0};
    list_rows(breakdown, ceilings, &list);
    cJSON *object = cJSON_AddObjectToObject(record, "breakdown");
    td_bench_record_number(object, "watched_steps", (double)breakdown->steps);
    td_bench_record_number(object, "step_seconds", breakdown->seconds / (double)breakdown->steps);
    cJSON *parts = cJSON_AddArrayToObject(object, "parts");
    for (int i = 0; i < list.count; i++) {
        cJSON *part = cJSON_CreateObject();
        td_bench_record_text(part, "part", list.rows[i].name);
        td_bench_record_number(part, "calls", list.rows[i].calls);
        td_bench_record_number(part, "seconds", list.rows[i].seconds);
        if (list.rows[i].bound > 0)
            td_bench_record_number(part, "bound_seconds", list.rows[i].bound);
        cJSON_AddItemToArray(parts, part);
    }
}
