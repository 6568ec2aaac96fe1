// rmsnorm_forward and rmsnorm_backward.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "ops/case.h"
#include "ops/reference.h"

static const float eps = 1e-5f;

typedef struct norm_shape {
    int64_t rows, cols;
    int in_place;   // forward: y is x; backward: dx is dy
    int accumulate; // backward
    double scale;   // of x
} norm_shape;

// Heads and hidden sizes, odd and even, up to rows that a GPU's registers cannot hold.
static const norm_shape checked_shapes[] = {
    {1, 3, 0, 0, 1.0},    {3, 7, 0, 0, 1.0},     {5, 16, 1, 0, 1.0},    {17, 63, 0, 1, 1.0},
    {4, 576, 1, 0, 30.0}, {33, 100, 0, 0, 1e-3}, {2, 2049, 0, 1, 1.0},  {700, 32, 0, 0, 1.0},
    {37, 64, 1, 0, 1.0},  {19, 128, 0, 1, 2.0},  {6, 256, 0, 0, 1.0},   {5, 264, 1, 0, 1.0},
    {3, 1024, 0, 1, 1.0}, {3, 1032, 0, 0, 1.0},  {3, 4096, 1, 0, 1.0},  {2, 5000, 0, 1, 1.0},
    {2, 8191, 1, 0, 1.0}, {2, 20000, 1, 0, 1.0}, {1, 16391, 0, 1, 1.0}, {2, 24576, 0, 0, 1.0},
    {130, 40, 0, 1, 1.0}, {9, 512, 0, 0, 1.0},   {4, 72, 0, 1, 1.0},    {2, 640, 0, 0, 1.0},
    {7, 96, 0, 1, 1.0},   {11, 320, 0, 0, 1.0},  {3, 88, 0, 1, 1.0},
};
static const norm_shape timed_shapes[] = {
    {512, 576, 0, 0, 1.0}, {512, 2048, 0, 0, 1.0}, {512, 2048, 0, 1, 1.0}};

static double rounded_to_activation(const op_run *run, float value) {
    return run->ops->activation == TD_F32 ? value : td_bf16_to_f32(td_f32_to_bf16(value));
}

static double act_bytes(const op_run *run) {
    return (double)td_dtype_bytes(run->ops->activation);
}

static int begin(op_run *run, const char *op, const norm_shape *shape) {
    return op_case_begin(run, op, "rows=%d cols=%d scale=%g%s%s", (int)shape->rows,
                         (int)shape->cols, shape->scale, shape->in_place ? " in place" : "",
                         shape->accumulate ? " accumulate" : "");
}

typedef struct norm_case {
    const norm_shape *shape;
    op_buffer *x, *weight, *rstd;
    const double *dy, *dx_before;
    double *y;
} norm_case;

static norm_case make_case(op_run *run, const norm_shape *shape) {
    int64_t n = shape->rows * shape->cols;
    return (norm_case){.shape = shape,
                       .x = op_random(run, run->ops->activation, n, shape->scale),
                       .weight = op_random(run, TD_F32, shape->cols, 2.0),
                       .rstd = op_output(run, TD_F32, shape->rows),
                       .y = op_doubles(run, n)};
}

static const double *copy_values(op_run *run, const op_buffer *buffer) {
    double *copy = op_doubles(run, buffer->n);
    memcpy(copy, buffer->values, (size_t)buffer->n * sizeof *copy);
    return copy;
}

// What is rounded when, as transformers does it: x * rstd to the activation type, then that times
// the weight. Given rstd there is nothing else to round.
static void check_rounding(op_run *run, const norm_case *norm, const double *x, op_buffer *y) {
    int64_t cols = norm->shape->cols;
    double *expected = op_doubles(run, y->n);
    for (int64_t i = 0; i < y->n; i++) {
        double normalized =
            rounded_to_activation(run, (float)x[i] * (float)norm->rstd->values[i / cols]);
        expected[i] =
            rounded_to_activation(run, (float)normalized * (float)norm->weight->values[i % cols]);
    }
    op_expect(run, "y given rstd", y, expected, 0.0);
}

static void check_rstd(op_run *run, const norm_case *norm, const double *x) {
    int64_t rows = norm->shape->rows, cols = norm->shape->cols;
    double *expected = op_doubles(run, rows);
    for (int64_t row = 0; row < rows; row++) {
        double sum = 0.0;
        for (int64_t i = 0; i < cols; i++)
            sum += x[row * cols + i] * x[row * cols + i];
        expected[row] = 1.0 / sqrt(sum / (double)cols + (double)eps);
    }
    op_expect(run, "rstd", norm->rstd, expected, 1e-6);
}

static void check_forward(op_run *run, const norm_shape *shape, int want_rstd) {
    if (!begin(run, "rmsnorm_forward", shape))
        return;
    norm_case norm = make_case(run, shape);
    int64_t n = shape->rows * shape->cols;
    ref_rmsnorm(shape->rows, shape->cols, norm.x->values, norm.weight->values, (double)eps, norm.y);
    const double *x = copy_values(run, norm.x);
    op_buffer *y = shape->in_place ? norm.x : op_output(run, run->ops->activation, n);
    td_rmsnorm_forward_args args = {.n_rows = shape->rows,
                                    .n_cols = shape->cols,
                                    .x = norm.x->memory,
                                    .weight = norm.weight->memory,
                                    .eps = eps,
                                    .y = y->memory,
                                    .rstd = want_rstd ? norm.rstd->memory : NULL};
    OP_CALL(run, rmsnorm_forward, &args, 0, 2.0 * act_bytes(run) * (double)n);
    op_expect(run, "y", y, norm.y, op_tolerance(run));
    if (want_rstd) {
        check_rstd(run, &norm, x);
        check_rounding(run, &norm, x, y);
    }
    op_case_end(run);
}

// sum(dy * y) + sum(dx_before * x)
static double weighted_output(void *closure) {
    norm_case *norm = closure;
    const norm_shape *shape = norm->shape;
    ref_rmsnorm(shape->rows, shape->cols, norm->x->values, norm->weight->values, (double)eps,
                norm->y);
    double sum = 0.0;
    for (int64_t i = 0; i < shape->rows * shape->cols; i++) {
        sum += norm->dy[i] * norm->y[i];
        if (norm->dx_before)
            sum += norm->dx_before[i] * norm->x->values[i];
    }
    return sum;
}

static void run_forward(op_run *run, const norm_case *norm) {
    op_buffer *y = op_output(run, run->ops->activation, norm->x->n);
    td_rmsnorm_forward_args args = {.n_rows = norm->shape->rows,
                                    .n_cols = norm->shape->cols,
                                    .x = norm->x->memory,
                                    .weight = norm->weight->memory,
                                    .eps = eps,
                                    .y = y->memory,
                                    .rstd = norm->rstd->memory};
    op_expect_true(run, "forward before backward",
                   run->ops->rmsnorm_forward(&run->context, &args) == TD_OK);
}

static void check_backward(op_run *run, const norm_shape *shape) {
    if (shape->scale < 1.0 || !begin(run, "rmsnorm_backward", shape)) // differences need steps
        return;
    norm_case norm = make_case(run, shape);
    td_dtype act = run->ops->activation;
    int64_t n = shape->rows * shape->cols;
    op_buffer *dy = op_random(run, act, n, 1.0);
    norm.dy = copy_values(run, dy);
    op_buffer *dx = shape->in_place ? dy : op_random(run, act, n, 1.0);
    norm.dx_before = shape->accumulate ? copy_values(run, dx) : NULL;
    run_forward(run, &norm);
    td_rmsnorm_backward_args args = {.n_rows = shape->rows,
                                     .n_cols = shape->cols,
                                     .dy = dy->memory,
                                     .x = norm.x->memory,
                                     .weight = norm.weight->memory,
                                     .rstd = norm.rstd->memory,
                                     .dx = dx->memory,
                                     .accumulate = shape->accumulate};
    OP_CALL(run, rmsnorm_backward, &args, 0,
            (3.0 + shape->accumulate) * act_bytes(run) * (double)n);
    op_expect_gradient(run, "dx", dx, norm.x->values, weighted_output, &norm, op_tolerance(run));
    op_case_end(run);
}

void cases_rmsnorm(op_run *run) {
    const norm_shape *shapes = run->timing ? timed_shapes : checked_shapes;
    size_t n = (run->timing ? sizeof timed_shapes : sizeof checked_shapes) / sizeof *shapes;
    for (size_t i = 0; i < n; i++) {
        check_forward(run, &shapes[i], i % 2 == 0);
        check_backward(run, &shapes[i]);
    }
}
