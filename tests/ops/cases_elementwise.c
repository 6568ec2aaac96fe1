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

static double rounded_to_activation(const op_run *run, double value) {
    return run->ops->activation == TD_F32 ? (double)(float)value
                                          : td_bf16_to_f32(td_f32_to_bf16((float)value));
}

static void check_embedding(op_run *run, op_matrix_kind kind, int64_t n_tokens, int64_t rows,
                            int64_t cols) {
    if (!op_case_begin(run, "embedding", "T=%d of %dx%d %s", (int)n_tokens, (int)rows, (int)cols,
                       op_matrix_name(kind)))
        return;
    op_matrix table = op_matrix_random(run, kind, rows, cols);
    op_buffer *ids = op_indices(run, TD_I32, n_tokens, rows);
    op_buffer *y = op_output(run, run->ops->activation, n_tokens * cols);
    td_embedding_args args = {n_tokens, 1.0f, ids->memory, &table.view, y->memory};
    OP_CALL(run, embedding, &args, 0,
            (act_bytes(run) + (kind == OP_F32 ? 4.0 : 2.0)) * (double)(n_tokens * cols));
    double *expected = op_doubles(run, n_tokens * cols);
    for (int64_t i = 0; i < n_tokens * cols && !run->timing; i++)
        expected[i] = rounded_to_activation(
            run, table.values[(int64_t)ids->values[i / cols] * cols + i % cols]);
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
    td_embedding_args args = {N, 1.0f, id->memory, &table.view, y->memory};
    td_status status = run->ops->embedding(&run->context, &args);
    op_fetch(run, y);
    td_error_clear();
    int as_promised = status == TD_ERR_INTERNAL;
    for (int64_t t = 0; t < N && status == TD_OK; t++) {
        int inside = ids[t] >= 0 && ids[t] < ROWS;
        as_promised = (t == 0 || as_promised) && nan_row(y->values + t * cols, cols) == !inside;
        for (int64_t i = 0; i < cols && inside; i++)
            as_promised &= y->values[t * cols + i] ==
                           rounded_to_activation(run, table.values[(int64_t)ids[t] * cols + i]);
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
} rope_shape;

static op_buffer *angles(op_run *run, const rope_shape *shape, double (*function)(double)) {
    int64_t half = shape->head_dim / 2;
    double *values = op_doubles(run, shape->n_positions * half);
    for (int64_t i = 0; i < shape->n_positions * half; i++)
        values[i] = function((double)(i / half) * pow(1e4, -(double)(i % half) / (double)half));
    return op_given(run, TD_F32, shape->n_positions * half, values);
}

static void check_rope(op_run *run, const rope_shape *shape) {
    if (!op_case_begin(run, "rope", "T=%d heads=%d dim=%d%s", (int)shape->n_tokens,
                       (int)shape->n_heads, (int)shape->head_dim, shape->inverse ? " inverse" : ""))
        return;
    int64_t n = shape->n_tokens * shape->n_heads * shape->head_dim;
    op_buffer *x = op_random(run, run->ops->activation, n, 1.0);
    op_buffer *positions = op_indices(run, TD_I32, shape->n_tokens, shape->n_positions);
    op_buffer *cosine = angles(run, shape, cos), *sine = angles(run, shape, sin);
    double *expected = op_doubles(run, n);
    memcpy(expected, x->values, (size_t)n * sizeof *expected);
    ref_rope(shape->n_tokens, shape->n_heads, shape->head_dim, expected, positions->values,
             cosine->values, sine->values, shape->inverse ? -1.0 : 1.0);
    td_rope_args args = {.n_tokens = shape->n_tokens,
                         .n_heads = shape->n_heads,
                         .head_dim = shape->head_dim,
                         .x = x->memory,
                         .x_stride = shape->n_heads * shape->head_dim,
                         .positions = positions->memory,
                         .n_positions = shape->n_positions,
                         .cos = cosine->memory,
                         .sin = sine->memory,
                         .inverse = shape->inverse};
    OP_CALL(run, rope, &args, 0, 2.0 * act_bytes(run) * (double)n);
    op_expect(run, "x", x, expected, op_tolerance(run));
    op_case_end(run);
}

// Where outputs go: beside the inputs, or over one of them.
typedef enum overlap { APART, OVER_GATE, OVER_UP } overlap;

static void check_glu_forward(op_run *run, int64_t n, double scale, overlap where) {
    if (!op_case_begin(run, "glu_forward", "n=%d scale=%g overlap=%d", (int)n, scale, (int)where))
        return;
    td_dtype act = run->ops->activation;
    op_buffer *gate = op_random(run, act, n, scale), *up = op_random(run, act, n, 1.0);
    op_buffer *y = where == OVER_GATE ? gate : where == OVER_UP ? up : op_output(run, act, n);
    double *expected = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        expected[i] = ref_silu(gate->values[i]) * up->values[i];
    td_glu_forward_args args = {.n_rows = 1,
                                .n_cols = n,
                                .gate = gate->memory,
                                .up = up->memory,
                                .gate_stride = n,
                                .up_stride = n,
                                .y = y->memory};
    OP_CALL(run, glu_forward, &args, 0, 3.0 * act_bytes(run) * (double)n);
    op_expect(run, "y", y, expected, op_tolerance(run));
    op_case_end(run);
}

typedef struct glu_case {
    int64_t n;
    const double *dy;
    double *gate, *up;
} glu_case;

static double weighted_output(void *closure) {
    const glu_case *inputs = closure;
    double sum = 0.0;
    for (int64_t i = 0; i < inputs->n; i++)
        sum += inputs->dy[i] * ref_silu(inputs->gate[i]) * inputs->up[i];
    return sum;
}

static double *copy_values(op_run *run, const op_buffer *buffer) {
    double *copy = op_doubles(run, buffer->n);
    memcpy(copy, buffer->values, (size_t)buffer->n * sizeof *copy);
    return copy;
}

static void check_glu_backward(op_run *run, int64_t n, double scale, int in_place) {
    if (!op_case_begin(run, "glu_backward", "n=%d scale=%g%s", (int)n, scale,
                       in_place ? " in place" : ""))
        return;
    td_dtype act = run->ops->activation;
    op_buffer *gate = op_random(run, act, n, scale), *up = op_random(run, act, n, 1.0);
    op_buffer *dy = op_random(run, act, n, 1.0);
    op_buffer *dgate = in_place ? gate : op_output(run, act, n);
    op_buffer *dup = in_place ? up : op_output(run, act, n);
    glu_case inputs = {n, copy_values(run, dy), copy_values(run, gate), copy_values(run, up)};
    td_glu_backward_args args = {.n_rows = 1,
                                 .n_cols = n,
                                 .gate_stride = n,
                                 .up_stride = n,
                                 .dy = dy->memory,
                                 .gate = gate->memory,
                                 .up = up->memory,
                                 .dgate = dgate->memory,
                                 .dup = dup->memory};
    OP_CALL(run, glu_backward, &args, 0, 5.0 * act_bytes(run) * (double)n);
    op_expect_gradient(run, "dgate", dgate, inputs.gate, weighted_output, &inputs,
                       op_tolerance(run));
    op_expect_gradient(run, "dup", dup, inputs.up, weighted_output, &inputs, op_tolerance(run));
    op_case_end(run);
}

static void checked_shapes(op_run *run) {
    static const rope_shape ropes[] = {{1, 1, 2, 1, 0},     {7, 3, 10, 40, 0}, {7, 3, 10, 40, 1},
                                       {33, 9, 64, 100, 0}, {5, 2, 96, 9, 1},  {50, 6, 128, 64, 1},
                                       {4, 3, 20, 9, 0},    {3, 5, 80, 9, 0},  {6, 1, 16, 9, 1},
                                       {3, 2, 32, 9, 0},    {2, 3, 48, 9, 0},  {4, 1, 256, 9, 0}};
    static const int64_t counts[] = {1, 7, 8, 17, 100, 1000, 40001};
    check_embedding(run, OP_F32, 1, 3, 5);
    check_embedding(run, OP_F32, 40, 30, 576);
    check_embedding(run, OP_BF16, 33, 70, 67);
    check_embedding(run, OP_BF16, 21, 9, 520);
    for (int64_t tokens = 5; tokens < 12; tokens++)
        check_embedding(run, tokens % 2 ? OP_F32 : OP_BF16, tokens, 6, 24);
    check_embedding_outside(run, 5);
    check_embedding_outside(run, 64);
    for (size_t i = 0; i < COUNT(ropes); i++)
        check_rope(run, &ropes[i]);
    for (size_t i = 0; i < COUNT(counts); i++) {
        check_add(run, counts[i]);
        check_glu_forward(run, counts[i], 4.0, (overlap)(i % 3));
        check_glu_backward(run, counts[i], 4.0, i % 2 == 1);
    }
    for (int64_t n = 96; n < 102; n++) { // as many as operands that may lie elsewhere
        check_glu_forward(run, n, 1.0, APART);
        check_glu_backward(run, n, 1.0, 0);
    }
    check_glu_forward(run, 500, 200.0, APART); // where exp() overflows
    check_glu_backward(run, 500, 200.0, 0);
}

static void timed_shapes(op_run *run) {
    check_embedding(run, OP_BF16, 512, 49152, 576);
    check_add(run, 512 * 2048);
    check_rope(run, &(rope_shape){512, 9, 64, 2048, 0});
    check_rope(run, &(rope_shape){512, 32, 128, 2048, 0});
    check_glu_forward(run, 512 * 1536, 4.0, APART);
    check_glu_backward(run, 512 * 1536, 4.0, 0);
}

void cases_elementwise(op_run *run) {
    if (run->timing)
        timed_shapes(run);
    else
        checked_shapes(run);
}
