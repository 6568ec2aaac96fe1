// embedding, add, rope, glu.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "ops/case.h"
#include "ops/matrix_case.h"
#include "ops/reference.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static double act_bytes(const op_run *run) {
    return (double)td_dtype_bytes(run->ops->activation);
}

static void *element_at(const op_buffer *buffer, int64_t i) {
    return (char *)buffer->memory + i * (int64_t)td_dtype_bytes(buffer->dtype);
}

static double rounded_to_activation(const op_run *run, double value) {
    return run->ops->activation == TD_F32 ? (double)(float)value
                                          : td_bf16_to_f32(td_f32_to_bf16((float)value));
}

static void check_embedding(op_run *run, op_matrix_kind kind, int64_t n_tokens, int64_t rows,
                            int64_t cols, float scale) {
    if (!op_case_begin(run, "embedding", "T=%d of %dx%d %s scale=%g", (int)n_tokens, (int)rows,
                       (int)cols, op_matrix_name(kind), (double)scale))
        return;
    op_matrix table = op_matrix_random(run, kind, rows, cols);
    op_buffer *ids = op_indices(run, TD_I32, n_tokens, rows);
    op_buffer *y = op_output(run, run->ops->activation, n_tokens * cols);
    td_embedding_args args = {n_tokens, scale, ids->memory, &table.view, y->memory};
    OP_CALL(run, embedding, &args, 0,
            (act_bytes(run) + (kind == OP_F32 ? 4.0 : 2.0)) * (double)(n_tokens * cols));
    double *expected = op_doubles(run, n_tokens * cols);
    for (int64_t i = 0; i < n_tokens * cols && !run->timing; i++)
        expected[i] = rounded_to_activation(
            run, (double)scale * table.values[(int64_t)ids->values[i / cols] * cols + i % cols]);
    op_expect(run, "y", y, expected, 0.0);
    op_case_end(run);
}

// 1: all of the row is NaN, 0: nothing is, -1: part of it.
static int nan_row(const double *row, int64_t cols) {
    int64_t n = 0;
    for (int64_t i = 0; i < cols; i++)
        n += isnan(row[i]) != 0;
    return n == cols ? 1 : n == 0 ? 0 : -1;
}

// An id outside the table is never read: a backend that sees the ids refuses, one whose ids lie in
// device memory writes NaN, and the other rows as ever.
static void check_embedding_outside(op_run *run, int64_t cols) {
    if (run->timing || !op_case_begin(run, "embedding", "ids outside, cols=%d", (int)cols))
        return;
    static const double ids[] = {2, -1, 0, 3, 1, 2147483647, -2147483648.0};
    enum { N = sizeof ids / sizeof *ids, ROWS = 3 };
    op_matrix table = op_matrix_random(run, OP_F32, ROWS, cols);
    op_buffer *id = op_given(run, TD_I32, N, ids);
    op_buffer *y = op_output(run, run->ops->activation, N * cols);
    td_embedding_args args = {N, 2.0f, id->memory, &table.view, y->memory};
    td_status status = run->ops->embedding(&run->context, &args);
    op_fetch(run, y);
    td_error_clear();
    int as_promised = status == TD_ERR_INTERNAL;
    for (int64_t t = 0; t < N && status == TD_OK; t++) {
        int inside = ids[t] >= 0 && ids[t] < ROWS;
        as_promised = (t == 0 || as_promised) && nan_row(y->values + t * cols, cols) == !inside;
        for (int64_t i = 0; i < cols && inside; i++)
            as_promised &=
                y->values[t * cols + i] ==
                rounded_to_activation(run, 2.0 * table.values[(int64_t)ids[t] * cols + i]);
    }
    op_expect_true(run, "ids outside the table are refused or give NaN", as_promised);
    op_case_end(run);
}

static void check_add(op_run *run, int64_t n) {
    if (!op_case_begin(run, "add", "n=%d", (int)n))
        return;
    op_buffer *x = op_random(run, run->ops->activation, n, 1.0);
    op_buffer *y = op_random(run, run->ops->activation, n, 1.0);
    double *expected = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        expected[i] = rounded_to_activation(run, (float)x->values[i] + (float)y->values[i]);
    td_add_args args = {n, x->memory, y->memory};
    OP_CALL(run, add, &args, 0, 3.0 * act_bytes(run) * (double)n);
    op_expect(run, "y", y, expected, 0.0);
    op_case_end(run);
}

typedef struct rope_shape {
    int64_t n_tokens, n_heads, head_dim, n_positions;
    int inverse;
    int64_t before, after; // columns of the matrix that x lies in
    int64_t gap;           // columns behind each head that are not rotated
} rope_shape;

static op_buffer *angles(op_run *run, const rope_shape *shape, double (*function)(double)) {
    int64_t half = shape->head_dim / 2;
    double *values = op_doubles(run, shape->n_positions * half);
    for (int64_t i = 0; i < shape->n_positions * half; i++)
        values[i] = function((double)(i / half) * pow(1e4, -(double)(i % half) / (double)half));
    return op_given(run, TD_F32, shape->n_positions * half, values);
}

static int64_t rope_columns(const rope_shape *shape) {
    return shape->before + shape->n_heads * (shape->head_dim + shape->gap) + shape->after;
}

// The columns that are rotated turned by the reference, those beside them as they are.
static double *rotated(op_run *run, const rope_shape *shape, const double *matrix,
                       const double *positions, const double *cosine, const double *sine) {
    int64_t stride = rope_columns(shape), step = shape->head_dim + shape->gap;
    double *all = op_doubles(run, shape->n_tokens * stride);
    memcpy(all, matrix, (size_t)(shape->n_tokens * stride) * sizeof *all);
    for (int64_t i = 0; i < shape->n_tokens * shape->n_heads; i++) {
        int64_t t = i / shape->n_heads, head = i % shape->n_heads;
        ref_rope(1, 1, shape->head_dim, all + t * stride + shape->before + head * step,
                 positions + t, cosine, sine, shape->inverse ? -1.0 : 1.0);
    }
    return all;
}

static int same_beside(const rope_shape *shape, const double *actual, const double *expected) {
    int64_t stride = rope_columns(shape), step = shape->head_dim + shape->gap;
    int same = 1;
    for (int64_t i = 0; i < shape->n_tokens * stride; i++) {
        int64_t col = i % stride - shape->before;
        int is_rotated = col >= 0 && col < shape->n_heads * step && col % step < shape->head_dim;
        same &= is_rotated || actual[i] == expected[i];
    }
    return same;
}

static void check_rope(op_run *run, const rope_shape *shape) {
    if (!op_case_begin(run, "rope", "T=%d heads=%d dim=%d%s beside=%d+%d+%d", (int)shape->n_tokens,
                       (int)shape->n_heads, (int)shape->head_dim, shape->inverse ? " inverse" : "",
                       (int)shape->before, (int)shape->after, (int)shape->gap))
        return;
    int64_t width = shape->n_heads * shape->head_dim, stride = rope_columns(shape);
    op_buffer *x = op_random(run, run->ops->activation, shape->n_tokens * stride, 1.0);
    op_buffer *positions = op_indices(run, TD_I32, shape->n_tokens, shape->n_positions);
    op_buffer *cosine = angles(run, shape, cos), *sine = angles(run, shape, sin);
    double *expected =
        rotated(run, shape, x->values, positions->values, cosine->values, sine->values);
    td_rope_args args = {.n_tokens = shape->n_tokens,
                         .n_heads = shape->n_heads,
                         .head_dim = shape->head_dim,
                         .x = element_at(x, shape->before),
                         .x_stride = stride,
                         .head_stride = shape->gap ? shape->head_dim + shape->gap : 0,
                         .positions = positions->memory,
                         .n_positions = shape->n_positions,
                         .cos = cosine->memory,
                         .sin = sine->memory,
                         .inverse = shape->inverse};
    OP_CALL(run, rope, &args, 0, 2.0 * act_bytes(run) * (double)(shape->n_tokens * width));
    op_expect(run, "x", x, expected, op_tolerance(run));
    op_expect_true(run, "the columns beside stay", same_beside(shape, x->values, expected));
    op_case_end(run);
}

// Where outputs go: beside the inputs, or over them (forward: over one).
typedef enum overlap { APART, OVER_GATE, OVER_UP, OVER_BOTH } overlap;

// Gate and up are arrays of their own, or the halves of one matrix with columns behind them that
// belong to neither, or up alone has columns behind it.
typedef enum glu_layout { OWN_ARRAYS, HALVES, WIDER_UP } glu_layout;

typedef struct glu_shape {
    td_gate activation;
    int64_t rows, cols;
    double scale; // of the gate
    overlap where;
    glu_layout layout;
    int64_t behind; // columns
} glu_shape;

typedef struct glu_operands {
    op_buffer *gate, *up; // the same one with halves
    int64_t gate_stride, up_first, up_stride;
} glu_operands;

static double activation_of(td_gate activation, double x) {
    return activation == TD_GATE_SILU ? ref_silu(x) : ref_gelu_tanh(x);
}

static int glu_begin(op_run *run, const char *op, const glu_shape *shape) {
    static const char *const layout_names[] = {"", " halves", " wider up"};
    return op_case_begin(run, op, "%s %dx%d scale=%g overlap=%d%s behind=%d",
                         shape->activation == TD_GATE_SILU ? "silu" : "gelu", (int)shape->rows,
                         (int)shape->cols, shape->scale, (int)shape->where,
                         layout_names[shape->layout], (int)shape->behind);
}

static glu_operands random_operands(op_run *run, const glu_shape *shape) {
    td_dtype act = run->ops->activation;
    int64_t rows = shape->rows, cols = shape->cols, both = 2 * cols + shape->behind;
    if (shape->layout == HALVES) {
        op_buffer *matrix = op_random(run, act, rows * both, shape->scale);
        return (glu_operands){matrix, matrix, both, cols, both};
    }
    int64_t up_stride = cols + shape->behind;
    return (glu_operands){op_random(run, act, rows * cols, shape->scale),
                          op_random(run, act, rows * up_stride, 1.0), cols, 0, up_stride};
}

// Columns [first, first + cols) of what the buffer holds.
static double *columns_of(op_run *run, const op_buffer *buffer, int64_t first, int64_t stride,
                          const glu_shape *shape) {
    double *values = op_doubles(run, shape->rows * shape->cols);
    for (int64_t row = 0; row < shape->rows; row++)
        memcpy(values + row * shape->cols, buffer->values + row * stride + first,
               (size_t)shape->cols * sizeof *values);
    return values;
}

static void check_glu_forward(op_run *run, const glu_shape *shape) {
    if (!glu_begin(run, "glu_forward", shape))
        return;
    int64_t n = shape->rows * shape->cols;
    glu_operands in = random_operands(run, shape);
    op_buffer *y = shape->where == OVER_GATE ? in.gate
                   : shape->where == OVER_UP ? in.up
                                             : op_output(run, run->ops->activation, n);
    double *gate = columns_of(run, in.gate, 0, in.gate_stride, shape);
    double *up = columns_of(run, in.up, in.up_first, in.up_stride, shape);
    double *expected = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        expected[i] = activation_of(shape->activation, gate[i]) * up[i];
    td_glu_forward_args args = {.activation = shape->activation,
                                .n_rows = shape->rows,
                                .n_cols = shape->cols,
                                .gate = in.gate->memory,
                                .up = element_at(in.up, in.up_first),
                                .gate_stride = in.gate_stride,
                                .up_stride = in.up_stride,
                                .y = y->memory};
    OP_CALL(run, glu_forward, &args, 0, 3.0 * act_bytes(run) * (double)n);
    op_expect(run, "y", y, expected, op_tolerance(run));
    op_case_end(run);
}

typedef struct glu_case {
    int64_t n;
    td_gate activation;
    const double *dy;
    double *gate, *up;
} glu_case;

static double weighted_output(void *closure) {
    const glu_case *inputs = closure;
    double sum = 0.0;
    for (int64_t i = 0; i < inputs->n; i++)
        sum += inputs->dy[i] * activation_of(inputs->activation, inputs->gate[i]) * inputs->up[i];
    return sum;
}

static double *copy_values(op_run *run, const op_buffer *buffer) {
    double *copy = op_doubles(run, buffer->n);
    memcpy(copy, buffer->values, (size_t)buffer->n * sizeof *copy);
    return copy;
}

// Columns that belong to neither gate nor up hold what they held.
static int behind_stays(const glu_shape *shape, const glu_operands *out, const double *before) {
    int same = 1;
    for (int64_t i = 0; i < shape->rows * shape->behind; i++) {
        int64_t col = out->up_first + shape->cols + i % shape->behind;
        int64_t at = i / shape->behind * out->up_stride + col;
        same &= out->up->values[at] == before[at];
    }
    return same;
}

static void expect_glu_gradients(op_run *run, const glu_shape *shape, const glu_operands *out,
                                 glu_case *inputs) {
    td_dtype act = run->ops->activation;
    op_fetch(run, out->gate);
    op_fetch(run, out->up);
    op_buffer *dgate =
        op_given(run, act, inputs->n, columns_of(run, out->gate, 0, out->gate_stride, shape));
    op_buffer *dup = op_given(run, act, inputs->n,
                              columns_of(run, out->up, out->up_first, out->up_stride, shape));
    op_expect_gradient(run, "dgate", dgate, inputs->gate, weighted_output, inputs,
                       op_tolerance(run));
    op_expect_gradient(run, "dup", dup, inputs->up, weighted_output, inputs, op_tolerance(run));
}

static void check_glu_backward(op_run *run, const glu_shape *shape) {
    if (!glu_begin(run, "glu_backward", shape))
        return;
    int64_t n = shape->rows * shape->cols;
    glu_operands in = random_operands(run, shape);
    op_buffer *dy = op_random(run, run->ops->activation, n, 1.0);
    glu_operands out = shape->where == APART ? random_operands(run, shape) : in;
    glu_case inputs = {n, shape->activation, copy_values(run, dy),
                       columns_of(run, in.gate, 0, in.gate_stride, shape),
                       columns_of(run, in.up, in.up_first, in.up_stride, shape)};
    double *before = copy_values(run, out.up);
    td_glu_backward_args args = {.activation = shape->activation,
                                 .n_rows = shape->rows,
                                 .n_cols = shape->cols,
                                 .gate_stride = in.gate_stride,
                                 .up_stride = in.up_stride,
                                 .dy = dy->memory,
                                 .gate = in.gate->memory,
                                 .up = element_at(in.up, in.up_first),
                                 .dgate = out.gate->memory,
                                 .dup = element_at(out.up, out.up_first)};
    OP_CALL(run, glu_backward, &args, 0, 5.0 * act_bytes(run) * (double)n);
    expect_glu_gradients(run, shape, &out, &inputs);
    op_expect_true(run, "the columns behind stay", behind_stays(shape, &out, before));
    op_case_end(run);
}

static void check_glu(op_run *run, const glu_shape *shape) {
    glu_shape backward = *shape;
    if (shape->where != APART)
        backward.where = OVER_BOTH;
    check_glu_forward(run, shape);
    check_glu_backward(run, &backward);
}

// Where the activation is x or 0 and its slope 1 or 0, up to where powers of x are infinite.
static void check_glu_far(op_run *run, td_gate activation) {
    static const double gates[] = {200, -200, 1e4, -1e4, 1e13, -1e13, 1e20, -1e20, 3e38, -3e38};
    enum { N = COUNT(gates) };
    const char *name = activation == TD_GATE_SILU ? "silu far from 0" : "gelu far from 0";
    double ones[N], slope[N], value[N];
    td_dtype act = run->ops->activation;
    for (int i = 0; i < N; i++) {
        ones[i] = 1.0;
        slope[i] = gates[i] > 0.0;
        value[i] = gates[i] > 0.0 ? rounded_to_activation(run, gates[i]) : 0.0;
    }
    if (op_case_begin(run, "glu_forward", "%s", name)) {
        op_buffer *gate = op_given(run, act, N, gates), *up = op_given(run, act, N, ones);
        op_buffer *y = op_output(run, act, N);
        td_glu_forward_args args = {activation, 1, N, gate->memory, up->memory, N, N, y->memory};
        OP_CALL(run, glu_forward, &args, 0, 0);
        op_expect(run, "y", y, value, 0.0);
        op_case_end(run);
    }
    if (op_case_begin(run, "glu_backward", "%s", name)) {
        op_buffer *gate = op_given(run, act, N, gates), *up = op_given(run, act, N, ones);
        op_buffer *dgate = op_output(run, act, N), *dup = op_output(run, act, N);
        td_glu_backward_args args = {
            activation,    1,           N, up->memory, gate->memory, up->memory,
            dgate->memory, dup->memory, N, N};
        OP_CALL(run, glu_backward, &args, 0, 0);
        op_expect(run, "dgate", dgate, slope, 0.0);
        op_expect(run, "dup", dup, value, 0.0);
        op_case_end(run);
    }
}

static void glu_cases(op_run *run) {
    static const int64_t counts[] = {1, 7, 8, 17, 100, 1000, 40001};
    static const glu_shape shapes[] = {
        {TD_GATE_SILU, 1, 500, 200.0, APART, OWN_ARRAYS, 0}, // where exp() overflows
        {TD_GATE_GELU_TANH, 1, 7, 4.0, OVER_GATE, OWN_ARRAYS, 0},
        {TD_GATE_GELU_TANH, 3, 333, 4.0, OVER_UP, OWN_ARRAYS, 0},
        {TD_GATE_GELU_TANH, 1, 500, 30.0, APART, OWN_ARRAYS, 0},
        {TD_GATE_SILU, 5, 7, 3.0, OVER_BOTH, HALVES, 0},
        {TD_GATE_SILU, 9, 64, 3.0, OVER_BOTH, HALVES, 0},
        {TD_GATE_SILU, 6, 24, 3.0, APART, HALVES, 8},
        {TD_GATE_SILU, 6, 21, 3.0, OVER_BOTH, HALVES, 6}, // aligned strides, odd columns
        {TD_GATE_SILU, 4, 32, 3.0, OVER_GATE, WIDER_UP, 8},
        {TD_GATE_SILU, 4, 32, 3.0, APART, WIDER_UP, 2},
        {TD_GATE_GELU_TANH, 3, 20, 3.0, OVER_GATE, WIDER_UP, 5},
        {TD_GATE_GELU_TANH, 4, 33, 3.0, OVER_BOTH, HALVES, 3},
        {TD_GATE_GELU_TANH, 9, 64, 3.0, APART, HALVES, 0},
        {TD_GATE_GELU_TANH, 40, 520, 3.0, OVER_BOTH, HALVES, 16},
    };
    for (size_t i = 0; i < COUNT(counts); i++)
        check_glu(run,
                  &(glu_shape){TD_GATE_SILU, 1, counts[i], 4.0, (overlap)(i % 3), OWN_ARRAYS, 0});
    for (int64_t n = 96; n < 102; n++) // as many as operands that may lie elsewhere
        check_glu(run, &(glu_shape){TD_GATE_SILU, 1, n, 1.0, APART, OWN_ARRAYS, 0});
    for (int64_t n = 24; n < 30; n++)
        check_glu(run, &(glu_shape){TD_GATE_GELU_TANH, 2, 24, (double)n / 8.0, APART, HALVES, 8});
    for (size_t i = 0; i < COUNT(shapes); i++)
        check_glu(run, &shapes[i]);
    check_glu_far(run, TD_GATE_SILU);
    check_glu_far(run, TD_GATE_GELU_TANH);
}

static void checked_shapes(op_run *run) {
    static const rope_shape ropes[] = {
        {1, 1, 2, 1, 0, 0, 0, 0},     {7, 3, 10, 40, 0, 0, 0, 0},   {7, 3, 10, 40, 1, 0, 0, 0},
        {33, 9, 64, 100, 0, 0, 0, 0}, {5, 2, 96, 9, 1, 0, 0, 0},    {50, 6, 128, 64, 1, 0, 0, 0},
        {4, 3, 20, 9, 0, 0, 0, 0},    {3, 5, 80, 9, 0, 0, 0, 0},    {6, 1, 16, 9, 1, 0, 0, 0},
        {3, 2, 32, 9, 0, 0, 0, 0},    {2, 3, 48, 9, 0, 0, 0, 0},    {4, 1, 256, 9, 0, 0, 0, 0},
        {6, 3, 64, 40, 0, 0, 128, 0}, {5, 2, 64, 9, 1, 192, 64, 0}, {7, 2, 10, 9, 0, 3, 5, 0},
        {6, 2, 32, 9, 0, 64, 3, 0},   {9, 4, 16, 30, 0, 0, 0, 48},  {5, 3, 32, 9, 1, 16, 8, 32},
        {6, 2, 10, 9, 0, 0, 3, 7},    {4, 2, 24, 9, 0, 0, 0, 9}};
    check_embedding(run, OP_F32, 1, 3, 5, 1.0f);
    check_embedding(run, OP_F32, 40, 30, 576, 1.0f);
    check_embedding(run, OP_BF16, 33, 70, 67, 1.0f);
    check_embedding(run, OP_BF16, 21, 9, 520, 1.0f);
    for (int64_t tokens = 5; tokens < 12; tokens++)
        check_embedding(run, tokens % 2 ? OP_F32 : OP_BF16, tokens, 6, 24, 1.0f);
    check_embedding(run, OP_BF16, 33, 70, 67, 27.712812f); // sqrt(768)
    check_embedding(run, OP_F32, 21, 9, 520, 55.5f);
    check_embedding_outside(run, 5);
    check_embedding_outside(run, 64);
    for (size_t i = 0; i < COUNT(ropes); i++)
        check_rope(run, &ropes[i]);
    static const int64_t counts[] = {1, 7, 8, 17, 100, 1000, 40001};
    for (size_t i = 0; i < COUNT(counts); i++)
        check_add(run, counts[i]);
    glu_cases(run);
}

static void timed_shapes(op_run *run) {
    check_embedding(run, OP_BF16, 512, 49152, 576, 1.0f);
    check_embedding(run, OP_BF16, 512, 49152, 576, 24.0f);
    check_add(run, 512 * 2048);
    check_rope(run, &(rope_shape){512, 9, 64, 2048, 0, 0, 0, 0});
    check_rope(run, &(rope_shape){512, 32, 128, 2048, 0, 0, 0, 0});
    for (int kind = 0; kind < 2; kind++)
        for (int layout = 0; layout < 2; layout++)
            check_glu(run,
                      &(glu_shape){(td_gate)kind, 512, 1536, 4.0, APART, (glu_layout)layout, 0});
}

void cases_elementwise(op_run *run) {
    if (run->timing)
        timed_shapes(run);
    else
        checked_shapes(run);
}
