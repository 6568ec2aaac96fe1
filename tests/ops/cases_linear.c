// linear_forward and linear_backward.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "ops/case.h"
#include "ops/matrix_case.h"
#include "ops/reference.h"

typedef struct linear_shape {
    int64_t n_tokens, in, out, rank;
    op_matrix_kind kind;
    int bias;
    double dropout;
    int accumulate; // backward: add to dx
    int head;       // y and dy are fp32 whatever the activations are
    int resident;   // NF4: weight, A and B are there in act, too, when called again
} linear_shape;

// Few tokens, one token, odd sizes, rows that are not whole blocks, several panels of either
// backend's weight, several token chunks, a head of every type.
static const linear_shape checked_shapes[] = {
    {.n_tokens = 37, .in = 64, .out = 48, .kind = OP_F32},
    {.n_tokens = 5, .in = 33, .out = 17, .kind = OP_BF16, .bias = 1},
    {.n_tokens = 1, .in = 64, .out = 40, .rank = 1, .kind = OP_NF4},
    {.n_tokens = 3, .in = 130, .out = 31, .rank = 16, .kind = OP_NF4_NESTED_BF16, .bias = 1},
    {.n_tokens = 4, .in = 1100, .out = 9, .rank = 3, .kind = OP_NF4_BF16},
    {.n_tokens = 2, .in = 77, .out = 19, .rank = 5, .kind = OP_BF16},
    {.n_tokens = 4, .in = 96, .out = 33, .rank = 7, .kind = OP_F32, .bias = 1},
    {.n_tokens = 1, .in = 96, .out = 33, .rank = 4, .kind = OP_NF4_NESTED, .dropout = 0.5},
    {.n_tokens = 19, .in = 128, .out = 65, .rank = 8, .kind = OP_NF4_NESTED, .accumulate = 1},
    {.n_tokens = 65, .in = 97, .out = 140, .rank = 2, .kind = OP_NF4, .dropout = 0.05},
    {.n_tokens = 67,
     .in = 30,
     .out = 41,
     .rank = 11,
     .kind = OP_NF4_BF16,
     .bias = 1,
     .dropout = 0.3,
     .accumulate = 1},
    {.n_tokens = 600, .in = 37, .out = 21, .rank = 4, .kind = OP_NF4, .dropout = 0.1},
    {.n_tokens = 530, .in = 16, .out = 24, .rank = 16, .kind = OP_BF16},
    {.n_tokens = 7, .in = 2700, .out = 23, .rank = 1, .kind = OP_NF4_NESTED_BF16},
    {.n_tokens = 5, .in = 40, .out = 16401, .rank = 2, .kind = OP_BF16},
    {.n_tokens = 9,
     .in = 300,
     .out = 290,
     .rank = 6,
     .kind = OP_NF4,
     .dropout = 0.9,
     .accumulate = 1},
    {.n_tokens = 1, .in = 512, .out = 2100, .kind = OP_NF4, .bias = 1},
    {.n_tokens = 1, .in = 530, .out = 2000, .rank = 2, .kind = OP_NF4_NESTED, .dropout = 0.2},
    {.n_tokens = 5, .in = 96, .out = 50, .rank = 3, .kind = OP_NF4, .resident = 1},
    {.n_tokens = 2, .in = 531, .out = 2050, .kind = OP_NF4_NESTED_BF16, .resident = 1},
    {.n_tokens = 9,
     .in = 65,
     .out = 33,
     .rank = 2,
     .kind = OP_NF4_NESTED,
     .dropout = 0.2,
     .accumulate = 1,
     .resident = 1},
    {.n_tokens = 13, .in = 704, .out = 67, .rank = 17, .kind = OP_NF4_NESTED_BF16, .bias = 1},
    {.n_tokens = 23, .in = 80, .out = 210, .rank = 1, .kind = OP_NF4_NESTED, .accumulate = 1},
    {.n_tokens = 14, .in = 208, .out = 688, .rank = 40, .kind = OP_NF4_BF16},
    {.n_tokens = 5, .in = 48, .out = 16, .rank = 3, .kind = OP_F32, .bias = 1},
    {.n_tokens = 700, .in = 33, .out = 18, .rank = 9, .kind = OP_F32},
    {.n_tokens = 17, .in = 1, .out = 1, .rank = 1, .kind = OP_BF16},
    {.n_tokens = 6, .in = 72, .out = 301, .kind = OP_BF16, .head = 1},
    {.n_tokens = 7, .in = 65, .out = 130, .kind = OP_NF4_BF16, .bias = 1, .head = 1},
    {.n_tokens = 3, .in = 40, .out = 6601, .kind = OP_F32, .head = 1, .accumulate = 1},
};

static const linear_shape timed_shapes[] = {
    {.n_tokens = 512, .in = 576, .out = 1536, .kind = OP_F32},
    {.n_tokens = 512, .in = 576, .out = 1536, .kind = OP_NF4_NESTED},
    {.n_tokens = 512, .in = 576, .out = 1536, .rank = 16, .kind = OP_NF4_NESTED},
    {.n_tokens = 512, .in = 576, .out = 1536, .rank = 16, .kind = OP_NF4_NESTED, .dropout = 0.05},
    {.n_tokens = 512, .in = 1536, .out = 576, .rank = 16, .kind = OP_NF4_NESTED, .dropout = 0.05},
    {.n_tokens = 512, .in = 2048, .out = 2048, .kind = OP_F32},
    {.n_tokens = 512, .in = 2048, .out = 2048, .kind = OP_NF4_NESTED},
    {.n_tokens = 512, .in = 2048, .out = 2048, .kind = OP_NF4_NESTED_BF16},
    {.n_tokens = 512, .in = 2048, .out = 2048, .rank = 16, .kind = OP_NF4_NESTED},
    {.n_tokens = 512, .in = 2048, .out = 2048, .rank = 16, .kind = OP_NF4_NESTED, .dropout = 0.05},
    {.n_tokens = 128, .in = 576, .out = 49152, .kind = OP_BF16},
    {.n_tokens = 32, .in = 2048, .out = 2048, .kind = OP_NF4_NESTED},
    {.n_tokens = 8, .in = 2048, .out = 2048, .kind = OP_NF4_NESTED},
    {.n_tokens = 5, .in = 2048, .out = 2048, .kind = OP_NF4_NESTED},
    {.n_tokens = 4, .in = 2048, .out = 2048, .kind = OP_NF4_NESTED},
    {.n_tokens = 1, .in = 2048, .out = 2048, .kind = OP_NF4_NESTED},
    {.n_tokens = 1, .in = 2048, .out = 2048, .rank = 16, .kind = OP_NF4_NESTED},
    {.n_tokens = 1, .in = 576, .out = 49152, .kind = OP_BF16},
    {.n_tokens = 1, .in = 2048, .out = 2048, .kind = OP_F32},
};

// One layer's tensors, on the device and for the reference.
typedef struct linear_case {
    const linear_shape *shape;
    op_matrix weight;
    op_buffer *x, *bias, *a, *b, *xa, *dy;
    td_lora_weights lora;
    ref_linear reference;
    double *ref_xa, *ref_y;
    const double *dx_before; // what dx is added to, or NULL
} linear_case;

static int begin(op_run *run, const char *op, const linear_shape *shape, const char *note) {
    return op_case_begin(run, op, "T=%d in=%d out=%d %s rank=%d%s p=%g%s%s%s%s",
                         (int)shape->n_tokens, (int)shape->in, (int)shape->out,
                         op_matrix_name(shape->kind), (int)shape->rank, shape->bias ? " bias" : "",
                         shape->dropout, shape->accumulate ? " accumulate" : "",
                         shape->head ? " head" : "", shape->resident ? " resident" : "", note);
}

static td_dtype output_type(const op_run *run, const linear_shape *shape) {
    return shape->head ? TD_F32 : run->ops->activation;
}

static td_dropout dropout_of(double p) {
    return (td_dropout){.key = td_rng_key(42, TD_RNG_DROPOUT),
                        .step = 3,
                        .micro_batch = 2,
                        .module = 13,
                        .threshold = (uint32_t)(p * 0x1p32),
                        .scale = (float)(1.0 / (1.0 - p))};
}

static const double *keep_of(op_run *run, const linear_shape *shape, const td_dropout *dropout) {
    if (shape->dropout == 0.0 || shape->rank == 0)
        return NULL;
    int64_t n = shape->n_tokens * shape->in;
    double *keep = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        keep[i] = td_dropout_keep(dropout, (uint64_t)i) ? (double)dropout->scale : 0.0;
    return keep;
}

static void make_lora(op_run *run, linear_case *layer) {
    const linear_shape *shape = layer->shape;
    td_dtype act = run->ops->activation;
    layer->a = op_random(run, TD_F32, shape->rank * shape->in, 0.1);
    // With rank 1 and one token all of da hangs on one sum of dy and B. Where that cancels,
    // rounding B shows; how it is rounded, test_linear_bf16.c checks.
    int64_t n_b = shape->out * shape->rank;
    layer->b = act == TD_F32 ? op_random_operand(run, n_b, 0.1) : op_random(run, TD_F32, n_b, 0.1);
    layer->xa = op_output(run, act, shape->n_tokens * shape->rank);
    layer->lora = (td_lora_weights){.a = layer->a->memory,
                                    .b = layer->b->memory,
                                    .rank = shape->rank,
                                    .scaling = 1.75f,
                                    .dropout = dropout_of(shape->dropout)};
    layer->reference.a = layer->a->values;
    layer->reference.b = layer->b->values;
    layer->reference.keep = run->timing ? NULL : keep_of(run, shape, &layer->lora.dropout);
}

static linear_case make_case(op_run *run, const linear_shape *shape) {
    linear_case layer = {.shape = shape};
    layer.weight = op_matrix_random(run, shape->kind, shape->out, shape->in);
    layer.x = op_random_operand(run, shape->n_tokens * shape->in, 1.0);
    layer.bias = shape->bias ? op_random(run, TD_F32, shape->out, 0.5) : NULL;
    layer.reference = (ref_linear){.n_tokens = shape->n_tokens,
                                   .in = shape->in,
                                   .out = shape->out,
                                   .rank = shape->rank,
                                   .x = layer.x->values,
                                   .weight = layer.weight.values,
                                   .bias = layer.bias ? layer.bias->values : NULL,
                                   .scaling = 1.75};
    if (shape->rank)
        make_lora(run, &layer);
    layer.ref_xa = op_doubles(run, shape->n_tokens * shape->rank + 1);
    layer.ref_y = op_doubles(run, shape->n_tokens * shape->out);
    op_workspace(run, &(td_workspace_query){.max_tokens = shape->n_tokens,
                                            .max_in = shape->in,
                                            .max_out = shape->out,
                                            .max_weight_elements = shape->out * shape->in,
                                            .max_head_rows = shape->head ? shape->out : 0,
                                            .max_head_tokens = shape->head ? shape->n_tokens : 0,
                                            .max_rank = shape->rank,
                                            .n_heads = 1,
                                            .n_kv_heads = 1,
                                            .head_dim = 2});
    return layer;
}

static double lora_flops(const linear_shape *shape) {
    return 2.0 * (double)shape->n_tokens * (double)shape->rank * (double)(shape->in + shape->out);
}

static double base_flops(const linear_shape *shape) {
    return 2.0 * (double)shape->n_tokens * (double)shape->in * (double)shape->out;
}

static td_linear_forward_args forward_args(const linear_case *layer, op_buffer *y) {
    return (td_linear_forward_args){.n_tokens = layer->shape->n_tokens,
                                    .x = layer->x->memory,
                                    .weight = &layer->weight.view,
                                    .bias = op_memory(layer->bias),
                                    .lora = layer->shape->rank ? &layer->lora : NULL,
                                    .xa = op_memory(layer->xa),
                                    .y = y->memory,
                                    .y_is_f32 = layer->shape->head};
}

// Where operands that the activation type holds exactly are summed in fp32 and kept in fp32,
// nothing is rounded to bf16.
static double forward_tolerance(const op_run *run, const linear_shape *shape) {
    return shape->head && shape->kind != OP_F32 ? 1e-5 : op_product_tolerance(run);
}

// The outputs of a call before it, and after it the first time. GPU libraries choose their
// algorithms by addresses among other things, so bits are compared between two calls at the same
// ones.
enum { MOST_OUTPUTS = 3 };
typedef struct repeated_call {
    op_buffer *output[MOST_OUTPUTS]; // or NULL
    void *before[MOST_OUTPUTS], *after[MOST_OUTPUTS];
} repeated_call;

static size_t bytes_of(const op_buffer *buffer) {
    return (size_t)buffer->n * td_dtype_bytes(buffer->dtype);
}

static void *bits_of(op_run *run, const op_buffer *buffer) {
    void *bits = buffer ? malloc(bytes_of(buffer) + 1) : NULL;
    if (bits)
        op_fetch_raw(run, buffer, bits);
    return bits;
}

static void note_before(op_run *run, repeated_call *call) {
    for (int i = 0; i < MOST_OUTPUTS && !run->timing; i++)
        call->before[i] = bits_of(run, call->output[i]);
}

// Keeps what the call gave, and puts the outputs back to what they were.
static void rewind_call(op_run *run, repeated_call *call) {
    const td_device_table *table = run->context.device->table;
    td_status status = TD_OK;
    for (int i = 0; i < MOST_OUTPUTS; i++) {
        const op_buffer *output = call->output[i];
        call->after[i] = bits_of(run, output);
        if (output && status == TD_OK)
            status =
                table->copy(run->context.stream, output->memory, call->before[i], bytes_of(output));
    }
    op_expect_true(run, "outputs put back",
                   status == TD_OK && table->stream_synchronize(run->context.stream) == TD_OK);
}

static op_buffer *as_activation(op_run *run, const td_matrix *matrix) {
    op_buffer *copy = op_output(run, run->ops->activation, matrix->rows * matrix->cols);
    td_dequantize_args args = {matrix, 0, matrix->rows, copy->memory, 1};
    op_expect_true(run, "copy of a matrix", run->ops->dequantize(&run->context, &args) == TD_OK);
    return copy;
}

static const void *rounded(op_run *run, const op_buffer *values) {
    td_matrix matrix = {
        .format = TD_MATRIX_F32, .rows = 1, .cols = values->n, .data = values->memory};
    return as_activation(run, &matrix)->memory;
}

// Products may read these copies from here on.
static void give_copies(op_run *run, linear_case *layer) {
    if (!layer->shape->resident)
        return;
    layer->weight.view.resident = as_activation(run, &layer->weight.view)->memory;
    if (!layer->shape->rank)
        return;
    layer->lora.a_act = rounded(run, layer->a);
    layer->lora.b_act = rounded(run, layer->b);
}

// Of the copies, as of what takes their place: parts of the workspace, or A and B themselves where
// they need no rounding.
static int is_aligned(const op_run *run, const linear_case *layer) {
    uintptr_t address = (uintptr_t)layer->weight.view.resident | (uintptr_t)layer->lora.a_act |
                        (uintptr_t)layer->lora.b_act;
    if (run->ops->activation == TD_F32)
        address |= (uintptr_t)layer->lora.a | (uintptr_t)layer->lora.b;
    return address % 16 == 0;
}

static void expect_same_bits(op_run *run, const linear_case *layer, repeated_call *call) {
    for (int i = 0; i < MOST_OUTPUTS; i++) {
        void *again = bits_of(run, call->output[i]);
        op_expect_true(run, "the same bits when called again",
                       !again || !is_aligned(run, layer) ||
                           memcmp(again, call->after[i], bytes_of(call->output[i])) == 0);
        free(again);
        free(call->before[i]);
        free(call->after[i]);
    }
}

static void check_forward(op_run *run, const linear_shape *shape) {
    if (!begin(run, "linear_forward", shape, ""))
        return;
    linear_case layer = make_case(run, shape);
    op_buffer *y = op_output(run, output_type(run, shape), shape->n_tokens * shape->out);
    td_linear_forward_args args = forward_args(&layer, y);
    repeated_call call = {.output = {y, layer.xa}};
    note_before(run, &call);
    OP_CALL(run, linear_forward, &args, base_flops(shape) + lora_flops(shape),
            op_matrix_bytes(shape->kind, shape->in * shape->out));
    if (!run->timing) {
        rewind_call(run, &call);
        give_copies(run, &layer);
        OP_CALL(run, linear_forward, &args, 0, 0);
        expect_same_bits(run, &layer, &call);
        ref_linear_forward(&layer.reference, layer.ref_xa, layer.ref_y);
    }
    op_expect(run, "y", y, layer.ref_y, forward_tolerance(run, shape));
    if (shape->rank)
        op_expect(run, "xa", layer.xa, layer.ref_xa, op_product_tolerance(run));
    op_case_end(run);
}

// sum(dy * y), and sum(dx_before * x), whose gradient is what dx starts from.
static double weighted_output(void *closure) {
    linear_case *layer = closure;
    const linear_shape *shape = layer->shape;
    ref_linear_forward(&layer->reference, layer->ref_xa, layer->ref_y);
    double sum = 0.0;
    for (int64_t i = 0; i < shape->n_tokens * shape->out; i++)
        sum += layer->dy->values[i] * layer->ref_y[i];
    for (int64_t i = 0; layer->dx_before && i < shape->n_tokens * shape->in; i++)
        sum += layer->dx_before[i] * layer->x->values[i];
    return sum;
}

static void run_forward(op_run *run, const linear_case *layer) {
    const linear_shape *shape = layer->shape;
    op_buffer *y = op_output(run, output_type(run, shape), shape->n_tokens * shape->out);
    td_linear_forward_args args = forward_args(layer, y);
    op_expect_true(run, "forward before backward",
                   run->ops->linear_forward(&run->context, &args) == TD_OK);
}

typedef struct linear_gradients {
    op_buffer *dx, *da, *db;
} linear_gradients;

static linear_gradients make_gradients(op_run *run, linear_case *layer) {
    const linear_shape *shape = layer->shape;
    td_dtype act = run->ops->activation;
    int64_t n = shape->n_tokens * shape->in;
    linear_gradients gradients = {
        .dx = shape->accumulate ? op_random(run, act, n, 1.0) : op_output(run, act, n),
        .da = op_output(run, TD_F32, shape->rank * shape->in),
        .db = op_output(run, TD_F32, shape->out * shape->rank),
    };
    if (shape->accumulate) {
        double *before = op_doubles(run, n);
        memcpy(before, gradients.dx->values, (size_t)n * sizeof *before);
        layer->dx_before = before;
    }
    return gradients;
}

static void expect_gradients(op_run *run, linear_case *layer, const linear_gradients *gradients,
                             int want_dx) {
    double tolerance = op_product_tolerance(run);
    if (want_dx)
        op_expect_gradient(run, "dx", gradients->dx, layer->x->values, weighted_output, layer,
                           tolerance);
    if (layer->shape->rank == 0)
        return;
    op_expect_gradient(run, "da", gradients->da, layer->a->values, weighted_output, layer,
                       tolerance);
    op_expect_gradient(run, "db", gradients->db, layer->b->values, weighted_output, layer,
                       tolerance);
}

static void check_backward(op_run *run, const linear_shape *shape, int want_dx) {
    if (!begin(run, "linear_backward", shape, want_dx ? "" : " no dx"))
        return;
    linear_case layer = make_case(run, shape);
    int64_t n_dy = shape->n_tokens * shape->out;
    layer.dy = shape->head ? op_random(run, TD_F32, n_dy, 1.0) : op_random_operand(run, n_dy, 1.0);
    linear_gradients gradients = make_gradients(run, &layer);
    run_forward(run, &layer);
    td_linear_backward_args args = {.n_tokens = shape->n_tokens,
                                    .dy = layer.dy->memory,
                                    .x = layer.x->memory,
                                    .xa = op_memory(layer.xa),
                                    .weight = &layer.weight.view,
                                    .lora = shape->rank ? &layer.lora : NULL,
                                    .dx = want_dx ? gradients.dx->memory : NULL,
                                    .accumulate_dx = shape->accumulate,
                                    .da = gradients.da->memory,
                                    .db = gradients.db->memory,
                                    .dy_is_f32 = shape->head};
    repeated_call call = {.output = {gradients.dx, gradients.da, gradients.db}};
    note_before(run, &call);
    OP_CALL(run, linear_backward, &args, want_dx * base_flops(shape) + 2.0 * lora_flops(shape), 0);
    if (!run->timing) {
        rewind_call(run, &call);
        give_copies(run, &layer);
        OP_CALL(run, linear_backward, &args, 0, 0);
        expect_same_bits(run, &layer, &call);
    }
    expect_gradients(run, &layer, &gradients, want_dx);
    op_case_end(run);
}

void cases_linear(op_run *run) {
    const linear_shape *shapes = run->timing ? timed_shapes : checked_shapes;
    size_t n = run->timing ? sizeof timed_shapes : sizeof checked_shapes;
    for (size_t i = 0; i < n / sizeof *shapes; i++)
        check_forward(run, &shapes[i]);
    for (size_t i = 0; i < n / sizeof *shapes; i++) {
        check_backward(run, &shapes[i], 1);
        if (shapes[i].rank)
            check_backward(run, &shapes[i], 0);
    }
}
