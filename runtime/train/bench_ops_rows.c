// What goes over rows of activations: embedding, norms, RoPE, GLU, additions, rows of targets,
// loss.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/train/bench_ops_internal.h"

enum { SAMPLES = 8 };

static td_status finish(td_ops_bench *bench, const void *args, double tolerance) {
    TD_TRY(td_bench_settle(bench, tolerance));
    TD_TRY(td_bench_time_op(bench, args));
    td_bench_release(bench);
    return TD_OK;
}

static void say_extents(char name[64], const char *what, int64_t rows, int64_t cols) {
    snprintf(name, 64, "%s(%lld, %lld)", what, (long long)rows, (long long)cols);
}

static td_status embedding(td_ops_bench *bench) {
    int64_t tokens = bench->options->tokens, cols = bench->model->hidden;
    char name[64];
    td_operand ids = td_bench_take(bench, TD_I32, tokens, (double)bench->model->vocabulary);
    td_operand table = td_bench_take(bench, TD_BF16, bench->model->vocabulary * cols, 1);
    td_operand y = td_bench_take(bench, bench->act, tokens * cols, 0);
    td_matrix matrix = {.format = TD_MATRIX_BF16,
                        .rows = bench->model->vocabulary,
                        .cols = cols,
                        .data = table.data,
                        .compute = bench->act};
    td_embedding_args args = {
        .n_tokens = tokens, .scale = 1, .ids = ids.data, .table = &matrix, .y = y.data};
    say_extents(name, "", tokens, cols);
    TD_TRY(td_bench_call(bench, name, TD_OP_embedding, &args));
    for (int s = 0; s < SAMPLES; s++)
        for (int k = 0; k < SAMPLES; k++) {
            int64_t t = td_bench_sample(s, tokens), i = td_bench_sample(k, cols);
            int64_t id = (int64_t)td_bench_at(&ids, t);
            td_bench_expect(bench, td_bench_read_one(bench, &y, t * cols + i),
                            td_bench_at(&table, id * cols + i));
        }
    return finish(bench, &args, 0);
}

typedef struct norm {
    int64_t rows, cols;
    td_operand x, y, dy, dx, weight, rstd;
} norm;

static double rstd_of(const norm *n, int64_t row) {
    double sum = 0;
    for (int64_t i = 0; i < n->cols; i++)
        sum += td_bench_at(&n->x, row * n->cols + i) * td_bench_at(&n->x, row * n->cols + i);
    return 1 / sqrt(sum / (double)n->cols + 1e-5);
}

static td_status norm_forward(td_ops_bench *bench, const norm *n, const char *name) {
    td_rmsnorm_forward_args args = {.n_rows = n->rows,
                                    .n_cols = n->cols,
                                    .x = n->x.data,
                                    .weight = n->weight.data,
                                    .eps = 1e-5f,
                                    .y = n->y.data,
                                    .rstd = n->rstd.data};
    TD_TRY(td_bench_call(bench, name, TD_OP_rmsnorm_forward, &args));
    for (int s = 0; s < SAMPLES; s++) {
        int64_t row = td_bench_sample(s, n->rows);
        double rstd = rstd_of(n, row);
        for (int k = 0; k < SAMPLES; k++) {
            int64_t i = td_bench_sample(k, n->cols), at = row * n->cols + i;
            td_bench_expect(bench, td_bench_read_one(bench, &n->y, at),
                            td_bench_at(&n->x, at) * rstd * td_bench_at(&n->weight, i));
        }
    }
    TD_TRY(td_bench_settle(bench, td_bench_tolerance(bench, 0)));
    return td_bench_time_op(bench, &args);
}

static double mean_gx(const norm *n, int64_t row, double rstd) {
    double sum = 0;
    for (int64_t i = 0; i < n->cols; i++)
        sum += td_bench_at(&n->dy, row * n->cols + i) * td_bench_at(&n->weight, i) *
               td_bench_at(&n->x, row * n->cols + i) * rstd;
    return sum / (double)n->cols;
}

// rstd is the forward pass's, which was verified.
static td_status norm_backward(td_ops_bench *bench, const norm *n, const char *name) {
    td_rmsnorm_backward_args args = {.n_rows = n->rows,
                                     .n_cols = n->cols,
                                     .dy = n->dy.data,
                                     .x = n->x.data,
                                     .weight = n->weight.data,
                                     .rstd = n->rstd.data,
                                     .dx = n->dx.data};
    TD_TRY(td_bench_call(bench, name, TD_OP_rmsnorm_backward, &args));
    for (int s = 0; s < SAMPLES; s++) {
        int64_t row = td_bench_sample(s, n->rows);
        double rstd = rstd_of(n, row), mean = mean_gx(n, row, rstd);
        for (int k = 0; k < SAMPLES; k++) {
            int64_t i = td_bench_sample(k, n->cols), at = row * n->cols + i;
            double g = td_bench_at(&n->dy, at) * td_bench_at(&n->weight, i);
            td_bench_expect(bench, td_bench_read_one(bench, &n->dx, at),
                            rstd * (g - td_bench_at(&n->x, at) * rstd * mean));
        }
    }
    return finish(bench, &args, td_bench_tolerance(bench, 0));
}

static td_status norms(td_ops_bench *bench, const char *what, int64_t rows, int64_t cols) {
    char name[64];
    norm n = {.rows = rows,
              .cols = cols,
              .x = td_bench_take(bench, bench->act, rows * cols, 1),
              .y = td_bench_take(bench, bench->act, rows * cols, 0),
              .dy = td_bench_take(bench, bench->act, rows * cols, 1),
              .dx = td_bench_take(bench, bench->act, rows * cols, 0),
              .weight = td_bench_take(bench, TD_F32, cols, 1),
              .rstd = td_bench_take(bench, TD_F32, rows, 0)};
    say_extents(name, what, rows, cols);
    TD_TRY(norm_forward(bench, &n, name));
    return norm_backward(bench, &n, name);
}

// Pairs (i, i + half) are rotated by angles whose cosines and sines are any numbers.
static td_status rope(td_ops_bench *bench, int inverse) {
    const td_model_config *model = bench->model;
    int64_t tokens = bench->options->tokens, heads = model->n_heads, dim = model->rotary_dim;
    int64_t stride = heads * model->head_dim, half = dim / 2, positions = 4096;
    td_operand x = td_bench_take(bench, bench->act, tokens * stride, 1);
    td_operand at = td_bench_take(bench, TD_I32, tokens, (double)positions);
    td_operand cosine = td_bench_take(bench, TD_F32, positions * half, 1);
    td_operand sine = td_bench_take(bench, TD_F32, positions * half, 1);
    td_rope_args args = {.n_tokens = tokens,
                         .n_heads = heads,
                         .head_dim = dim,
                         .x = x.data,
                         .x_stride = stride,
                         .head_stride = model->head_dim,
                         .positions = at.data,
                         .n_positions = positions,
                         .cos = cosine.data,
                         .sin = sine.data,
                         .inverse = inverse};
    TD_TRY(td_bench_call(bench, inverse ? "inverse" : "forward", TD_OP_rope, &args));
    for (int s = 0; s < SAMPLES; s++)
        for (int k = 0; k < SAMPLES; k++) {
            int64_t t = td_bench_sample(s, tokens), i = td_bench_sample(k, half);
            int64_t first = t * stride + td_bench_sample(k, heads) * model->head_dim + i;
            int64_t table = (int64_t)td_bench_at(&at, t) * half + i;
            double c = td_bench_at(&cosine, table);
            double z = td_bench_at(&sine, table) * (inverse ? -1 : 1);
            double a = td_bench_at(&x, first), b = td_bench_at(&x, first + half);
            td_bench_expect(bench, td_bench_read_one(bench, &x, first), a * c - b * z);
            td_bench_expect(bench, td_bench_read_one(bench, &x, first + half), b * c + a * z);
        }
    return finish(bench, &args, td_bench_tolerance(bench, 0));
}

static double activate(td_gate kind, double x) {
    if (kind == TD_GATE_SILU)
        return x / (1 + exp(-x));
    return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

// By a central difference: plain, and near enough.
static double activation_slope(td_gate kind, double x) {
    double h = 1e-5;
    return (activate(kind, x + h) - activate(kind, x - h)) / (2 * h);
}

typedef struct glu {
    int64_t rows, cols;
    td_operand gate, up, y, dy, dgate, dup;
} glu;

static td_status glu_forward(td_ops_bench *bench, const glu *g, const char *name) {
    td_gate kind = bench->model->activation;
    td_glu_forward_args args = {.activation = kind,
                                .n_rows = g->rows,
                                .n_cols = g->cols,
                                .gate = g->gate.data,
                                .up = g->up.data,
                                .gate_stride = g->cols,
                                .up_stride = g->cols,
                                .y = g->y.data};
    TD_TRY(td_bench_call(bench, name, TD_OP_glu_forward, &args));
    for (int s = 0; s < SAMPLES * SAMPLES; s++) {
        int64_t i = td_bench_sample(s, g->rows * g->cols);
        td_bench_expect(bench, td_bench_read_one(bench, &g->y, i),
                        activate(kind, td_bench_at(&g->gate, i)) * td_bench_at(&g->up, i));
    }
    TD_TRY(td_bench_settle(bench, td_bench_tolerance(bench, 0)));
    return td_bench_time_op(bench, &args);
}

static td_status glu_backward(td_ops_bench *bench, const glu *g, const char *name) {
    td_gate kind = bench->model->activation;
    td_glu_backward_args args = {.activation = kind,
                                 .n_rows = g->rows,
                                 .n_cols = g->cols,
                                 .dy = g->dy.data,
                                 .gate = g->gate.data,
                                 .up = g->up.data,
                                 .dgate = g->dgate.data,
                                 .dup = g->dup.data,
                                 .gate_stride = g->cols,
                                 .up_stride = g->cols};
    TD_TRY(td_bench_call(bench, name, TD_OP_glu_backward, &args));
    for (int s = 0; s < SAMPLES * SAMPLES; s++) {
        int64_t i = td_bench_sample(s, g->rows * g->cols);
        double gate = td_bench_at(&g->gate, i), dy = td_bench_at(&g->dy, i);
        td_bench_expect(bench, td_bench_read_one(bench, &g->dup, i), dy * activate(kind, gate));
        td_bench_expect(bench, td_bench_read_one(bench, &g->dgate, i),
                        dy * td_bench_at(&g->up, i) * activation_slope(kind, gate));
    }
    return finish(bench, &args, td_bench_tolerance(bench, 0));
}

static td_status glus(td_ops_bench *bench) {
    int64_t rows = bench->options->tokens, cols = bench->model->intermediate, n = rows * cols;
    char name[64];
    glu g = {.rows = rows,
             .cols = cols,
             .gate = td_bench_take(bench, bench->act, n, 4),
             .up = td_bench_take(bench, bench->act, n, 1),
             .y = td_bench_take(bench, bench->act, n, 0),
             .dy = td_bench_take(bench, bench->act, n, 1),
             .dgate = td_bench_take(bench, bench->act, n, 0),
             .dup = td_bench_take(bench, bench->act, n, 0)};
    say_extents(name, "", rows, cols);
    TD_TRY(glu_forward(bench, &g, name));
    return glu_backward(bench, &g, name);
}

static td_status add(td_ops_bench *bench) {
    int64_t rows = bench->options->tokens, cols = bench->model->hidden;
    char name[64];
    td_operand x = td_bench_take(bench, bench->act, rows * cols, 1);
    td_operand y = td_bench_take(bench, bench->act, rows * cols, 1);
    td_add_args args = {.n_elements = rows * cols, .x = x.data, .y = y.data};
    say_extents(name, "", rows, cols);
    TD_TRY(td_bench_call(bench, name, TD_OP_add, &args));
    for (int s = 0; s < SAMPLES * SAMPLES; s++) {
        int64_t i = td_bench_sample(s, rows * cols);
        td_bench_expect(bench, td_bench_read_one(bench, &y, i),
                        td_bench_at(&x, i) + td_bench_at(&y, i));
    }
    return finish(bench, &args, td_bench_tolerance(bench, 0));
}

// Every second row, so that both directions can be told.
static td_status upload_even_rows(td_ops_bench *bench, const td_operand *rows, int64_t count) {
    const td_op_context *context = &bench->context;
    int32_t *host = calloc((size_t)count, sizeof *host);
    TD_TRY(bench->status);
    if (!host)
        return td_fail(TD_ERR_MEMORY, "no memory for row numbers");
    for (int64_t i = 0; i < count; i++)
        host[i] = (int32_t)(2 * i);
    td_status status = context->device->table->copy(context->stream, rows->data, host,
                                                    (size_t)count * sizeof *host);
    td_status done = context->device->table->stream_synchronize(context->stream);
    free(host);
    return status == TD_OK ? done : status;
}

static td_status move_rows(td_ops_bench *bench, td_op op) {
    int64_t tokens = bench->options->tokens, cols = bench->model->hidden, n = (tokens + 1) / 2;
    int is_gather = op == TD_OP_gather_rows;
    char name[64];
    td_operand rows = td_bench_take(bench, TD_I32, n, 0);
    td_operand x = td_bench_take(bench, bench->act, tokens * cols, 1);
    td_operand y = td_bench_take(bench, bench->act, tokens * cols, 1);
    td_rows_args args = {.n_rows = n,
                         .n_cols = cols,
                         .rows = rows.data,
                         .x = x.data,
                         .y = y.data,
                         .y_rows = is_gather ? n : tokens};
    TD_TRY(upload_even_rows(bench, &rows, n));
    say_extents(name, "", n, cols);
    TD_TRY(td_bench_call(bench, name, op, &args));
    for (int s = 0; s < SAMPLES; s++)
        for (int k = 0; k < SAMPLES; k++) {
            int64_t row = td_bench_sample(s, is_gather ? n : tokens), i = td_bench_sample(k, cols);
            int64_t from = is_gather ? 2 * row : row / 2;
            double want = is_gather || row % 2 == 0 ? td_bench_at(&x, from * cols + i) : 0;
            td_bench_expect(bench, td_bench_read_one(bench, &y, row * cols + i), want);
        }
    return finish(bench, &args, 0);
}

typedef struct loss_case {
    int64_t rows, cols;
    td_operand logits, targets, loss;
} loss_case;

// What a result is compared for: their sizes are far apart, so each has its own largest number.
typedef enum loss_number { LOSS, AT_TARGET, ELSEWHERE } loss_number;

static void expect_loss(td_ops_bench *bench, const loss_case *c, int64_t row, loss_number which) {
    int64_t begin = row * c->cols, target = (int64_t)td_bench_at(&c->targets, row);
    double sum = 0, z = td_bench_at(&c->logits, begin + target);
    for (int64_t i = 0; i < c->cols; i++)
        sum += exp(td_bench_at(&c->logits, begin + i));
    if (which == LOSS)
        td_bench_expect(bench, td_bench_read_one(bench, &c->loss, row), log(sum) - z);
    if (which == AT_TARGET)
        td_bench_expect(bench, td_bench_read_one(bench, &c->logits, begin + target),
                        0.5 * (exp(z) / sum - 1));
    for (int k = 0; which == ELSEWHERE && k < SAMPLES; k++) {
        int64_t i = begin + td_bench_sample(k, c->cols);
        if (i != begin + target)
            td_bench_expect(bench, td_bench_read_one(bench, &c->logits, i),
                            0.5 * exp(td_bench_at(&c->logits, i)) / sum);
    }
}

// Logits are overwritten with their gradient.
static td_status cross_entropy(td_ops_bench *bench) {
    int64_t rows = bench->options->head_tokens, cols = bench->model->vocabulary;
    char name[64];
    loss_case c = {.rows = rows,
                   .cols = cols,
                   .logits = td_bench_take(bench, TD_F32, rows * cols, 4),
                   .targets = td_bench_take(bench, TD_I32, rows, (double)cols),
                   .loss = td_bench_take(bench, TD_F32, rows, 0)};
    td_cross_entropy_args args = {.n_rows = rows,
                                  .n_vocabulary = cols,
                                  .logits = c.logits.data,
                                  .targets = c.targets.data,
                                  .gradient_scale = 0.5f,
                                  .gradient = 1,
                                  .loss = c.loss.data};
    say_extents(name, "", rows, cols);
    TD_TRY(td_bench_call(bench, name, TD_OP_cross_entropy, &args));
    for (loss_number which = LOSS; which <= ELSEWHERE; which++) {
        for (int s = 0; s < SAMPLES; s++)
            expect_loss(bench, &c, td_bench_sample(s, rows), which);
        TD_TRY(td_bench_settle(bench, 5e-5));
    }
    return finish(bench, &args, 0);
}

td_status td_bench_row_ops(td_ops_bench *bench) {
    const td_model_config *model = bench->model;
    int64_t tokens = bench->options->tokens;
    TD_TRY(embedding(bench));
    TD_TRY(norms(bench, "", tokens, model->hidden));
    if (model->qk_norm)
        TD_TRY(norms(bench, "heads of q ", tokens * model->n_heads, model->head_dim));
    TD_TRY(rope(bench, 0));
    TD_TRY(rope(bench, 1));
    TD_TRY(glus(bench));
    TD_TRY(add(bench));
    TD_TRY(move_rows(bench, TD_OP_gather_rows));
    TD_TRY(move_rows(bench, TD_OP_scatter_rows));
    return cross_entropy(bench);
}
