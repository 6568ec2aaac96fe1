#include "kernels/ops_timed.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/core/progress.h"

enum { FIRST_CALLS = 1024 };

// One call that was watched. Its events are used again after they were collected.
typedef struct timed_call {
    td_timed_part part;
    td_timed_phase phase;
    int linear; // index of td_ops_timed.linears, or -1
    td_op_work work;
    td_event *begin, *end;
} timed_call;

struct td_ops_timed {
    td_ops table; // first: a context's `ops` leads here
    td_op_context inner;
    int watching;
    timed_call *calls; // (room), of which n_events have events
    int64_t n_calls, n_events, room;
    td_timed_linear linears[TD_TIMED_MAX_LINEARS];
    int n_linears;
};

const char *td_timed_part_name(td_timed_part part) {
    static const char *const names[TD_TIMED_PARTS] = {
        [TD_TIMED_LINEAR] = "linear layers",
        [TD_TIMED_ATTENTION] = "attention",
        [TD_TIMED_NORMS] = "norms",
        [TD_TIMED_ROPE] = "rope",
        [TD_TIMED_GLU] = "glu",
        [TD_TIMED_ADD] = "residual add",
        [TD_TIMED_EMBEDDING] = "embedding",
        [TD_TIMED_HEAD] = "head product",
        [TD_TIMED_LOSS] = "loss",
        [TD_TIMED_ACCUMULATE] = "gradient accumulation",
        [TD_TIMED_CHECKS] = "checks of sums",
        [TD_TIMED_NORM] = "gradient norm",
        [TD_TIMED_UPDATE] = "update",
        [TD_TIMED_OTHER] = "other operations",
    };
    return names[part];
}

static int is_head(td_op op, const td_op_args *args) {
    return op == TD_OP_linear_forward ? args->linear_forward.y_is_f32
                                      : args->linear_backward.dy_is_f32;
}

static td_timed_part part_of(td_op op, const td_op_args *args) {
    switch (op) {
    case TD_OP_linear_forward:
    case TD_OP_linear_backward:
        return is_head(op, args) ? TD_TIMED_HEAD : TD_TIMED_LINEAR;
    case TD_OP_attention_forward:
    case TD_OP_attention_backward:
        return TD_TIMED_ATTENTION;
    case TD_OP_rmsnorm_forward:
    case TD_OP_rmsnorm_backward:
        return TD_TIMED_NORMS;
    case TD_OP_rope:
        return TD_TIMED_ROPE;
    case TD_OP_glu_forward:
    case TD_OP_glu_backward:
        return TD_TIMED_GLU;
    case TD_OP_add:
        return TD_TIMED_ADD;
    case TD_OP_embedding:
        return TD_TIMED_EMBEDDING;
    case TD_OP_gather_rows:
    case TD_OP_scatter_rows:
    case TD_OP_cross_entropy:
        return TD_TIMED_LOSS;
    case TD_OP_fixed_add:
    case TD_OP_f32_add:
        return TD_TIMED_ACCUMULATE;
    case TD_OP_word_sum:
        return TD_TIMED_CHECKS;
    case TD_OP_sum_squares:
        return TD_TIMED_NORM;
    case TD_OP_fixed_to_f32:
        return args->fixed_to_f32.sum_squares ? TD_TIMED_NORM : TD_TIMED_UPDATE;
    case TD_OP_adamw:
    case TD_OP_adamw_8bit:
        return TD_TIMED_UPDATE;
    default:
        return TD_TIMED_OTHER;
    }
}

static int goes_back(td_op op, const td_op_args *args) {
    return op == TD_OP_linear_backward || op == TD_OP_attention_backward ||
           op == TD_OP_rmsnorm_backward || op == TD_OP_glu_backward ||
           (op == TD_OP_rope && args->rope.inverse);
}

// The transformer says when it begins to go back; what goes forward from then on is computed again.
static td_timed_phase phase_of(td_op op, const td_op_args *args, td_timed_part part) {
    if (goes_back(op, args) || part == TD_TIMED_ACCUMULATE)
        return TD_TIMED_BACKWARD;
    int is_back = td_progress_read().phase == TD_PHASE_BACKWARD;
    return is_back && part <= TD_TIMED_ADD ? TD_TIMED_RECOMPUTE : TD_TIMED_FORWARD;
}

static td_timed_linear linear_of(td_op op, const td_op_args *args) {
    td_timed_linear linear = {.op = op};
    const td_lora_weights *lora;
    if (op == TD_OP_linear_forward) {
        linear.args.linear_forward = args->linear_forward;
        lora = args->linear_forward.lora;
    } else {
        linear.args.linear_backward = args->linear_backward;
        lora = args->linear_backward.lora;
    }
    linear.has_lora = lora != NULL;
    if (lora)
        linear.lora = *lora;
    return linear;
}

static const td_matrix *weight_of(const td_timed_linear *linear) {
    return linear->op == TD_OP_linear_forward ? linear->args.linear_forward.weight
                                              : linear->args.linear_backward.weight;
}

static int64_t tokens_of(const td_timed_linear *linear) {
    return linear->op == TD_OP_linear_forward ? linear->args.linear_forward.n_tokens
                                              : linear->args.linear_backward.n_tokens;
}

static int same_extents(const td_timed_linear *a, const td_timed_linear *b) {
    const td_matrix *x = weight_of(a), *y = weight_of(b);
    int same_dx = a->op != TD_OP_linear_backward ||
                  !a->args.linear_backward.dx == !b->args.linear_backward.dx;
    return a->op == b->op && x->rows == y->rows && x->cols == y->cols && x->format == y->format &&
           tokens_of(a) == tokens_of(b) && a->has_lora == b->has_lora &&
           a->lora.rank == b->lora.rank && same_dx;
}

// More kinds than there is room for share the last place.
static int place_linear(td_timed_linear *linears, int *n_linears, const td_timed_linear *linear) {
    int i = 0;
    while (i < *n_linears && !same_extents(&linears[i], linear))
        i++;
    if (i == TD_TIMED_MAX_LINEARS)
        return i - 1;
    td_timed_sum sum = i < *n_linears ? linears[i].sum : (td_timed_sum){0};
    linears[i] = *linear;
    linears[i].sum = sum;
    *n_linears += i == *n_linears;
    return i;
}

static td_status grow(td_ops_timed *timed) {
    int64_t room = timed->room ? 2 * timed->room : FIRST_CALLS;
    timed_call *calls = realloc(timed->calls, (size_t)room * sizeof *calls);
    if (!calls)
        return td_fail(TD_ERR_MEMORY, "no memory to note the times of %lld operations",
                       (long long)room);
    timed->calls = calls;
    timed->room = room;
    return TD_OK;
}

static td_status next_call(td_ops_timed *timed, timed_call **out) {
    const td_device *device = timed->inner.device;
    if (timed->n_calls == timed->room)
        TD_TRY(grow(timed));
    timed_call *call = &timed->calls[timed->n_calls];
    if (timed->n_calls == timed->n_events) {
        *call = (timed_call){0};
        TD_TRY(device->table->event_create_timed(device, &call->begin));
        td_status status = device->table->event_create_timed(device, &call->end);
        if (status != TD_OK) {
            device->table->event_destroy(call->begin);
            return status;
        }
        timed->n_events++;
    }
    *out = call;
    return TD_OK;
}

static td_status run_watched(td_ops_timed *timed, const td_op_context *context, td_op op,
                             const td_op_args *args) {
    timed_call *call;
    const td_device_table *device = timed->inner.device->table;
    TD_TRY(next_call(timed, &call));
    call->part = part_of(op, args);
    call->phase = phase_of(op, args, call->part);
    call->work = td_op_work_of(op, args, timed->table.activation);
    call->linear = -1;
    if (call->part == TD_TIMED_LINEAR) {
        td_timed_linear linear = linear_of(op, args);
        call->linear = place_linear(timed->linears, &timed->n_linears, &linear);
    }
    TD_TRY(device->event_record(call->begin, context->stream));
    TD_TRY(td_op_call(context, op, args));
    TD_TRY(device->event_record(call->end, context->stream));
    timed->n_calls++;
    return TD_OK;
}

static td_status run(const td_op_context *context, td_op op, const void *args) {
    td_ops_timed *timed = (td_ops_timed *)context->ops;
    td_op_context inner = *context;
    inner.ops = timed->inner.ops;
    return timed->watching ? run_watched(timed, &inner, op, args) : td_op_call(&inner, op, args);
}

#define TIMED(op, args_type)                                                                       \
    static td_status timed_##op(const td_op_context *context, const args_type *args) {             \
        return run(context, TD_OP_##op, args);                                                     \
    }
TD_EACH_OP(TIMED)
#undef TIMED

td_status td_ops_timed_create(const td_op_context *context, td_ops_timed **out) {
    td_ops_timed *timed = calloc(1, sizeof *timed);
    if (!timed)
        return td_fail(TD_ERR_MEMORY, "no memory to note the times of operations");
    timed->inner = *context;
    timed->table = *context->ops;
#define ENTRY(op, args_type) timed->table.op = timed_##op;
    TD_EACH_OP(ENTRY)
#undef ENTRY
    *out = timed;
    return TD_OK;
}

void td_ops_timed_destroy(td_ops_timed *timed) {
    if (!timed)
        return;
    const td_device_table *device = timed->inner.device->table;
    for (int64_t i = 0; i < timed->n_events; i++) {
        device->event_destroy(timed->calls[i].begin);
        device->event_destroy(timed->calls[i].end);
    }
    free(timed->calls);
    free(timed);
}

const td_ops *td_ops_timed_table(const td_ops_timed *timed) {
    return &timed->table;
}

void td_ops_timed_watch(td_ops_timed *timed, int on) {
    timed->watching = on;
}

void td_ops_timed_forget(td_ops_timed *timed) {
    timed->n_linears = 0;
}

static void add_call(td_timed_sum *sum, const timed_call *call, double seconds) {
    sum->calls++;
    sum->seconds += seconds;
    sum->flops += call->work.flops;
    sum->bytes += call->work.bytes;
}

td_status td_ops_timed_collect(td_ops_timed *timed, td_timed_sums *sums) {
    const td_device_table *device = timed->inner.device->table;
    TD_TRY(device->stream_synchronize(timed->inner.stream));
    for (int64_t i = 0; i < timed->n_calls; i++) {
        const timed_call *call = &timed->calls[i];
        double seconds;
        TD_TRY(device->event_elapsed(call->begin, call->end, &seconds));
        add_call(&sums->part[call->part][call->phase], call, seconds);
        if (call->linear >= 0)
            add_call(&timed->linears[call->linear].sum, call, seconds);
    }
    timed->n_calls = 0;
    sums->n_linears = timed->n_linears;
    memcpy(sums->linears, timed->linears, sizeof sums->linears);
    return TD_OK;
}
