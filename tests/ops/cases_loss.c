// Rows to and from the loss, and cross entropy.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/case.h"

// Every row below y_rows is listed with probability `share`.
static op_buffer *ascending_rows(op_run *run, int64_t y_rows, double share) {
    double *rows = op_doubles(run, y_rows);
    int64_t n = 0;
    for (int64_t i = 0; i < y_rows; i++)
        if (op_uniform(run) < share)
            rows[n++] = (double)i;
    return op_given(run, TD_I32, n, rows);
}

static void check_gather(op_run *run, int64_t x_rows, int64_t cols, double share) {
    if (!op_case_begin(run, "gather_rows", "rows=%d cols=%d share=%g", (int)x_rows, (int)cols,
                       share))
        return;
    td_dtype act = run->ops->activation;
    op_buffer *rows = ascending_rows(run, x_rows, share);
    op_buffer *x = op_random(run, act, x_rows * cols, 1.0);
    op_buffer *y = op_output(run, act, rows->n * cols);
    double *expected = op_doubles(run, y->n);
    for (int64_t i = 0; i < y->n; i++)
        expected[i] = x->values[(int64_t)rows->values[i / cols] * cols + i % cols];
    td_rows_args args = {rows->n, cols, rows->memory, x->memory, y->memory, 0};
    OP_CALL(run, gather_rows, &args, 0, 2.0 * (double)td_dtype_bytes(act) * (double)y->n);
    if (y->n > 0)
        op_expect(run, "y", y, expected, 0.0);
    op_case_end(run);
}

static void check_scatter(op_run *run, int64_t y_rows, int64_t cols, double share) {
    if (!op_case_begin(run, "scatter_rows", "rows=%d cols=%d share=%g", (int)y_rows, (int)cols,
                       share))
        return;
    td_dtype act = run->ops->activation;
    op_buffer *rows = ascending_rows(run, y_rows, share);
    op_buffer *x = op_random(run, act, rows->n * cols, 1.0);
    op_buffer *y = op_output(run, act, y_rows * cols);
    double *expected = op_doubles(run, y->n);
    for (int64_t i = 0; i < x->n; i++)
        expected[(int64_t)rows->values[i / cols] * cols + i % cols] = x->values[i];
    td_rows_args args = {rows->n, cols, rows->memory, x->memory, y->memory, y_rows};
    OP_CALL(run, scatter_rows, &args, 0, (double)td_dtype_bytes(act) * (double)(x->n + y->n));
    op_expect(run, "y", y, expected, 0.0);
    op_case_end(run);
}

typedef struct loss_case {
    const char *name;
    int64_t n_rows, n_vocabulary;
    double spread; // logits are uniform in [-spread, spread]
    double target; // added to the target's logit
    double shift;  // added to all logits
    int masked;    // 1: every third logit but the target's is -infinity; 2: all but the target's
    double cap;    // soft cap, 0: none
    int timed_only;
} loss_case;

static const loss_case LOSS_CASES[] = {
    {"plain", 7, 1000, 5.0, 0.0, 0.0, 0, 0.0, 0},
    {"one class", 3, 1, 5.0, 0.0, 0.0, 0, 0.0, 0},
    {"less than a vector", 5, 13, 2.0, 0.0, 0.0, 0, 0.0, 0},
    {"shorter than a quad", 23, 3, 2.0, 0.0, 0.0, 0, 0.0, 0},
    {"two more than quads", 7, 4106, 5.0, 0.0, 0.0, 0, 0.0, 0},
    {"odd", 4, 2049, 5.0, 0.0, 0.0, 0, 0.0, 0},
    {"long", 2, 49152, 8.0, 0.0, 0.0, 0, 0.0, 0},
    {"large logits", 4, 333, 1e4, 0.0, 0.0, 0, 0.0, 0},
    {"far from zero", 4, 100, 3.0, 0.0, -5e4, 0, 0.0, 0},
    {"sure", 4, 500, 1.0, 25.0, 0.0, 0, 0.0, 0},
    {"as sure as can be", 4, 500, 1.0, 60.0, 0.0, 0, 0.0, 0},
    {"surely wrong", 4, 500, 1.0, -60.0, 0.0, 0, 0.0, 0},
    {"masked", 4, 500, 3.0, 0.0, 0.0, 1, 0.0, 0},
    {"alone", 3, 700, 3.0, 0.0, 0.0, 2, 0.0, 0},
    {"many rows", 40, 600, 5.0, 0.0, 0.0, 0, 0.0, 0},
    {"very long", 1, 262144, 6.0, 0.0, 0.0, 0, 0.0, 0},
    {"largest exponents", 3, 4100, 80.0, 0.0, 3e38, 0, 0.0, 0},
    {"capped", 7, 1000, 40.0, 0.0, 0.0, 0, 30.0, 0},
    {"capped beyond tanh's slope", 5, 333, 200.0, 0.0, 0.0, 0, 30.0, 0},
    {"all capped to almost the same", 3, 203, 10.0, 0.0, 250.0, 0, 30.0, 0},
    {"capped, one class", 3, 1, 50.0, 0.0, 0.0, 0, 30.0, 0},
    {"capped, less than a vector", 23, 3, 9.0, 0.0, 0.0, 0, 4.0, 0},
    {"capped, sure", 4, 500, 1.0, 60.0, 0.0, 0, 30.0, 0},
    {"capped, surely wrong", 4, 501, 1.0, -60.0, 0.0, 0, 30.0, 0},
    {"capped, masked", 4, 502, 3.0, 0.0, 0.0, 1, 30.0, 0},
    {"capped, alone", 3, 700, 3.0, 0.0, 0.0, 2, 30.0, 0},
    {"hardly capped", 3, 2049, 5.0, 0.0, 0.0, 0, 1e5, 0},
    {"capped, very long", 1, 262144, 200.0, 0.0, 0.0, 0, 30.0, 0},
    {"timed", 256, 49152, 5.0, 0.0, 0.0, 0, 0.0, 1},
    {"timed, capped", 256, 49152, 5.0, 0.0, 0.0, 0, 30.0, 1},
};

static const float SCALE = 0.37f;

typedef struct loss_data {
    int64_t n_rows, n_vocabulary;
    double cap;
    const double *targets;
    double *logits;   // as given
    double *loss;     // (rows) reference
    double *gradient; // (rows, vocabulary) reference
} loss_data;

static double capped(double x, double cap) {
    return cap > 0.0 ? cap * tanh(x / cap) : x;
}

static double row_total(const double *x, int64_t n, double cap, double largest, int64_t skip) {
    double total = 0.0;
    for (int64_t i = 0; i < n; i++)
        total += i == skip ? 0.0 : exp(capped(x[i], cap) - largest);
    return total;
}

static void reference_row(loss_data *data, int64_t row) {
    int64_t n = data->n_vocabulary, target = (int64_t)data->targets[row];
    const double *x = data->logits + row * n;
    double *gradient = data->gradient + row * n, cap = data->cap, largest = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, capped(x[i], cap));
    double total = row_total(x, n, cap, largest, -1);
    double others = row_total(x, n, cap, largest, target), z = capped(x[target], cap);
    data->loss[row] = z == largest ? log1p(others) : log(total) + (largest - z);
    for (int64_t i = 0; i < n; i++)
        gradient[i] = (double)SCALE * exp(capped(x[i], cap) - largest) / total;
    gradient[target] = -(double)SCALE * others / total;
    for (int64_t i = 0; i < n && cap > 0.0; i++)
        gradient[i] /= cosh(x[i] / cap) * cosh(x[i] / cap);
}

static double reference_loss(void *closure) {
    loss_data *data = closure;
    double sum = 0.0;
    for (int64_t row = 0; row < data->n_rows; row++) {
        reference_row(data, row);
        sum += data->loss[row];
    }
    return sum * (double)SCALE;
}

static double *case_logits(op_run *run, const loss_case *c, const double *targets) {
    int64_t n = c->n_rows * c->n_vocabulary;
    double *logits = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++) {
        int is_target = i % c->n_vocabulary == (int64_t)targets[i / c->n_vocabulary];
        double value = c->spread * (2.0 * op_uniform(run) - 1.0) + c->shift;
        value = is_target ? value + c->target : value;
        int masked = !is_target && (c->masked == 2 || (c->masked == 1 && i % 3 == 0));
        logits[i] = masked ? -INFINITY : (double)(float)value;
    }
    return logits;
}

static void call_loss(op_run *run, const loss_case *c, op_buffer *logits, const op_buffer *targets,
                      int gradient, op_buffer *loss) {
    td_cross_entropy_args args = {.n_rows = c->n_rows,
                                  .n_vocabulary = c->n_vocabulary,
                                  .logits = logits->memory,
                                  .targets = targets->memory,
                                  .softcap = (float)c->cap,
                                  .gradient_scale = SCALE,
                                  .gradient = gradient,
                                  .loss = loss->memory};
    op_workspace(
        run, &(td_workspace_query){.max_head_rows = c->n_vocabulary, .max_head_tokens = c->n_rows});
    OP_CALL(run, cross_entropy, &args, 0, (gradient ? 8.0 : 4.0) * (double)logits->n);
}

static void check_loss(op_run *run, const loss_case *c) {
    if ((c->timed_only && !run->timing) || !op_case_begin(run, "cross_entropy", "%s %dx%d", c->name,
                                                          (int)c->n_rows, (int)c->n_vocabulary))
        return;
    op_buffer *targets = op_indices(run, TD_I32, c->n_rows, c->n_vocabulary);
    double *values = case_logits(run, c, targets->values);
    int64_t n = c->n_rows * c->n_vocabulary;
    loss_data data = {c->n_rows,         c->n_vocabulary, c->cap,
                      targets->values,   values,          op_doubles(run, c->n_rows),
                      op_doubles(run, n)};
    reference_loss(&data);
    op_buffer *logits = op_given(run, TD_F32, n, values);
    op_buffer *loss = op_output(run, TD_F32, c->n_rows);
    call_loss(run, c, logits, targets, 0, loss);
    op_expect(run, "loss", loss, data.loss, 1e-5);
    op_expect_true(run, "logits stay without gradient",
                   (op_fetch(run, logits), memcmp(logits->values, values, (size_t)n * 8) == 0));
    op_buffer *same = op_output(run, TD_F32, c->n_rows);
    call_loss(run, c, logits, targets, 1, same);
    op_expect(run, "loss beside the gradient", same, data.loss, 1e-5);
    op_expect(run, "gradient", logits, data.gradient, 1e-5);
    op_case_end(run);
}

// NaN among the logits, where every thread of a GPU's block may meet it, makes loss and gradient
// NaN: the step counts them as faults. The row beside it is as without.
static void check_nan(op_run *run, int64_t vocabulary, int64_t where, double cap) {
    if (!op_case_begin(run, "cross_entropy", "NaN at %d of %d cap=%g", (int)where, (int)vocabulary,
                       cap))
        return;
    loss_case c = {"NaN", 2, vocabulary, 3.0, 0.0, 0.0, 0, cap, 0};
    double targets[2] = {1, 0};
    double *values = case_logits(run, &c, targets), *expected = op_doubles(run, 2);
    double *gradient = op_doubles(run, 2 * vocabulary);
    loss_data data = {2, vocabulary, cap, targets, values, expected, gradient};
    reference_loss(&data);
    values[where] = NAN;
    op_buffer *logits = op_given(run, TD_F32, 2 * vocabulary, values);
    op_buffer *loss = op_output(run, TD_F32, 2);
    call_loss(run, &c, logits, op_given(run, TD_I32, 2, targets), 1, loss);
    op_fetch(run, loss);
    op_fetch(run, logits);
    int all_nan = 1;
    for (int64_t i = 0; i < vocabulary; i++)
        all_nan &= isnan(logits->values[i]) != 0;
    op_expect_true(run, "the gradient is NaN", all_nan);
    op_expect_true(run, "the loss is NaN", isnan(loss->values[0]) != 0);
    op_expect_true(run, "the next row's is not",
                   fabs(loss->values[1] - expected[1]) <= 1e-5 * expected[1]);
    op_case_end(run);
}

// On a GPU nobody can look at the targets first: one that is no class must touch nothing else.
static void check_wrong_target(op_run *run, double target, double cap) {
    enum { V = 257 };
    if (run->context.device->unified ||
        !op_case_begin(run, "cross_entropy", "target %g of %d cap=%g", target, V, cap))
        return;
    loss_case c = {"wrong", 3, V, 3.0, 0.0, 0.0, 0, cap, 0};
    double targets[3] = {5, target, V - 1};
    double *values = case_logits(run, &c, targets);
    op_buffer *logits = op_given(run, TD_F32, 3 * V, values);
    op_buffer *loss = op_output(run, TD_F32, 3);
    call_loss(run, &c, logits, op_given(run, TD_I32, 3, targets), 1, loss);
    op_fetch(run, loss);
    op_expect_true(run, "its loss is NaN", isnan(loss->values[1]) != 0);
    op_expect_true(run, "the other losses are not",
                   isfinite(loss->values[0]) && isfinite(loss->values[2]));
    op_case_end(run);
}

// The reference against differences of its own loss, and the operation with it.
static void check_differences(op_run *run, double cap) {
    loss_case c = {"differences", 3, 37, 2.0, 0.0, 0.0, 0, cap, 0};
    if (!op_case_begin(run, "cross_entropy", "%s cap=%g", c.name, cap))
        return;
    op_buffer *targets = op_indices(run, TD_I32, c.n_rows, c.n_vocabulary);
    int64_t n = c.n_rows * c.n_vocabulary;
    loss_data data = {c.n_rows,
                      c.n_vocabulary,
                      cap,
                      targets->values,
                      case_logits(run, &c, targets->values),
                      op_doubles(run, c.n_rows),
                      op_doubles(run, n)};
    op_buffer *logits = op_given(run, TD_F32, n, data.logits);
    op_buffer *loss = op_output(run, TD_F32, c.n_rows);
    call_loss(run, &c, logits, targets, 1, loss);
    op_expect_gradient(run, "gradient", logits, data.logits, reference_loss, &data, 1e-4);
    op_case_end(run);
}

void cases_loss(op_run *run) {
    static const int64_t shapes[][2] = {{1, 1},     {9, 3},   {40, 64}, {300, 100},
                                        {33, 1000}, {12, 16}, {21, 8},  {10, 40}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0] && !run->timing; i++)
        for (double share = 0.0; share <= 1.0; share += 0.5) {
            check_gather(run, shapes[i][0], shapes[i][1], share);
            check_scatter(run, shapes[i][0], shapes[i][1], share);
        }
    if (run->timing) {
        check_gather(run, 4096, 2048, 0.5);
        check_scatter(run, 4096, 2048, 0.5);
    }
    for (size_t i = 0; i < sizeof LOSS_CASES / sizeof LOSS_CASES[0]; i++)
        check_loss(run, &LOSS_CASES[i]);
    check_differences(run, 0.0);
    check_differences(run, 1.5);
    static const double wrong[] = {-1, 257, 258, 2147483647, -2147483648.0};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0] && !run->timing; i++)
        check_wrong_target(run, wrong[i], i == 1 ? 30.0 : 0.0);
    for (int64_t where = 0; where < 6000 && !run->timing; where = 3 * where + 1)
        check_nan(run, where < 6 ? 7 : 6000, where, where % 2 ? 30.0 : 0.0);
}
