// Attention over sequences of one stream. Sampled results are computed in double from q, k and v;
// going back, the probabilities come by way of the forward pass's lse and out, which were verified.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/train/bench_ops_internal.h"

enum { SAMPLES = 4 };

typedef struct attention {
    td_attention_shape shape;
    td_operand q, k, v, out, lse, dout, dq, dk, dv, borders;
    int32_t *cu; // (n_sequences + 1)
    int64_t group;
} attention;

static double dot(const td_operand *a, int64_t a_begin, const td_operand *b, int64_t b_begin,
                  int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += td_bench_at(a, a_begin + i) * td_bench_at(b, b_begin + i);
    return sum;
}

static int64_t q_at(const attention *a, int64_t token, int64_t head) {
    return token * a->shape.q_stride + head * a->shape.head_dim;
}

// Of the key head that query head `head` reads.
static int64_t k_at(const attention *a, int64_t token, int64_t head) {
    return token * a->shape.k_stride + head / a->group * a->shape.head_dim;
}

static double score(const attention *a, int64_t query, int64_t key, int64_t head) {
    double s = (double)a->shape.scale *
               dot(&a->q, q_at(a, query, head), &a->k, k_at(a, key, head), a->shape.head_dim);
    double cap = a->shape.softcap;
    return cap > 0 ? cap * tanh(s / cap) : s;
}

// The derivative of a capped score by the one before the cap.
static double cap_slope(const attention *a, double capped) {
    double cap = a->shape.softcap;
    return cap > 0 ? 1 - capped / cap * (capped / cap) : 1;
}

static int64_t sequence_of(const attention *a, int64_t token) {
    int64_t s = 0;
    while (a->cu[s + 1] <= token)
        s++;
    return s;
}

static int64_t first_key(const attention *a, int64_t query) {
    int64_t begin = a->cu[sequence_of(a, query)], window = a->shape.window;
    return window > 0 && query - window + 1 > begin ? query - window + 1 : begin;
}

// out of one query and head, (head_dim), and the logarithm of the sum.
static double attend(const attention *a, int64_t query, int64_t head, double *out) {
    int64_t dim = a->shape.head_dim;
    double sum = 0;
    for (int64_t i = 0; i < dim; i++)
        out[i] = 0;
    for (int64_t key = first_key(a, query); key <= query; key++) {
        double p = exp(score(a, query, key, head));
        sum += p;
        for (int64_t i = 0; i < dim; i++)
            out[i] += p * td_bench_at(&a->v, k_at(a, key, head) + i);
    }
    for (int64_t i = 0; i < dim; i++)
        out[i] /= sum;
    return log(sum);
}

static td_status verify_forward(td_ops_bench *bench, const attention *a, int64_t tokens,
                                double *row) {
    for (int s = 0; s < SAMPLES; s++) {
        int64_t query = td_bench_sample(s, tokens), head = td_bench_sample(s, a->shape.n_heads);
        (void)attend(a, query, head, row);
        for (int k = 0; k < SAMPLES; k++) {
            int64_t i = td_bench_sample(k, a->shape.head_dim);
            td_bench_expect(bench, td_bench_read_one(bench, &a->out, q_at(a, query, head) + i),
                            row[i]);
        }
    }
    TD_TRY(td_bench_settle(bench, td_bench_tolerance(bench, 0)));
    for (int s = 0; s < SAMPLES; s++) {
        int64_t query = td_bench_sample(s, tokens), head = td_bench_sample(s, a->shape.n_heads);
        double lse = attend(a, query, head, row);
        td_bench_expect(bench, td_bench_read_one(bench, &a->lse, query * a->shape.n_heads + head),
                        lse);
    }
    return td_bench_settle(bench, td_bench_tolerance(bench, 1));
}

// What a pair of query and key adds to the gradients: its probability and the gradient of its
// score.
typedef struct pair_gradient {
    double p, ds;
} pair_gradient;

static pair_gradient pair_of(td_ops_bench *bench, const attention *a, int64_t query, int64_t key,
                             int64_t head, double delta) {
    double lse = td_bench_read_one(bench, &a->lse, query * a->shape.n_heads + head);
    double s = score(a, query, key, head), p = exp(s - lse);
    double dp = dot(&a->dout, q_at(a, query, head), &a->v, k_at(a, key, head), a->shape.head_dim);
    return (pair_gradient){p, p * (dp - delta) * cap_slope(a, s) * (double)a->shape.scale};
}

// dout . out
static double delta_of(td_ops_bench *bench, const attention *a, int64_t query, int64_t head,
                       double *row) {
    double sum = 0;
    td_bench_read(bench, &a->out, q_at(a, query, head), a->shape.head_dim, row);
    for (int64_t i = 0; i < a->shape.head_dim; i++)
        sum += row[i] * td_bench_at(&a->dout, q_at(a, query, head) + i);
    return sum;
}

static td_status verify_dq(td_ops_bench *bench, const attention *a, int64_t tokens, double *row) {
    for (int s = 0; s < SAMPLES; s++) {
        int64_t query = td_bench_sample(s, tokens), head = td_bench_sample(s, a->shape.n_heads);
        double delta = delta_of(bench, a, query, head, row), sums[SAMPLES] = {0};
        for (int64_t key = first_key(a, query); key <= query; key++) {
            pair_gradient pair = pair_of(bench, a, query, key, head, delta);
            for (int k = 0; k < SAMPLES; k++)
                sums[k] += pair.ds * td_bench_at(&a->k, k_at(a, key, head) +
                                                            td_bench_sample(k, a->shape.head_dim));
        }
        for (int k = 0; k < SAMPLES; k++)
            td_bench_expect(
                bench,
                td_bench_read_one(bench, &a->dq,
                                  q_at(a, query, head) + td_bench_sample(k, a->shape.head_dim)),
                sums[k]);
    }
    return td_bench_settle(bench, td_bench_tolerance(bench, 0));
}

// dk and dv of one key and key head, from all queries that see it.
static void expect_key(td_ops_bench *bench, const attention *a, int64_t key, int64_t k_head,
                       int want_dv, double *row) {
    int64_t end = a->cu[sequence_of(a, key) + 1];
    double sums[SAMPLES] = {0};
    for (int64_t head = k_head * a->group; head < (k_head + 1) * a->group; head++)
        for (int64_t query = key; query < end && first_key(a, query) <= key; query++) {
            double delta = delta_of(bench, a, query, head, row);
            pair_gradient pair = pair_of(bench, a, query, key, head, delta);
            for (int k = 0; k < SAMPLES; k++) {
                int64_t i = q_at(a, query, head) + td_bench_sample(k, a->shape.head_dim);
                sums[k] +=
                    want_dv ? pair.p * td_bench_at(&a->dout, i) : pair.ds * td_bench_at(&a->q, i);
            }
        }
    for (int k = 0; k < SAMPLES; k++)
        td_bench_expect(bench,
                        td_bench_read_one(bench, want_dv ? &a->dv : &a->dk,
                                          k_at(a, key, k_head * a->group) +
                                              td_bench_sample(k, a->shape.head_dim)),
                        sums[k]);
}

static td_status verify_backward(td_ops_bench *bench, const attention *a, int64_t tokens,
                                 double *row) {
    TD_TRY(verify_dq(bench, a, tokens, row));
    for (int want_dv = 0; want_dv < 2; want_dv++) {
        for (int s = 0; s < SAMPLES; s++)
            expect_key(bench, a, td_bench_sample(s, tokens),
                       td_bench_sample(s, a->shape.n_kv_heads), want_dv, row);
        TD_TRY(td_bench_settle(bench, td_bench_tolerance(bench, 0)));
    }
    return TD_OK;
}

static td_status forward_and_back(td_ops_bench *bench, const attention *a, const char *name,
                                  double *row) {
    int64_t tokens = bench->options->tokens;
    td_attention_forward_args forward = {.shape = a->shape,
                                         .q = a->q.data,
                                         .k = a->k.data,
                                         .v = a->v.data,
                                         .out = a->out.data,
                                         .lse = a->lse.data};
    td_attention_backward_args backward = {.shape = a->shape,
                                           .q = a->q.data,
                                           .k = a->k.data,
                                           .v = a->v.data,
                                           .out = a->out.data,
                                           .lse = a->lse.data,
                                           .dout = a->dout.data,
                                           .dq = a->dq.data,
                                           .dk = a->dk.data,
                                           .dv = a->dv.data};
    TD_TRY(td_bench_call(bench, name, TD_OP_attention_forward, &forward));
    TD_TRY(verify_forward(bench, a, tokens, row));
    TD_TRY(td_bench_time_op(bench, &forward));
    TD_TRY(td_bench_call(bench, name, TD_OP_attention_backward, &backward));
    TD_TRY(verify_backward(bench, a, tokens, row));
    return td_bench_time_op(bench, &backward);
}

static void take_operands(td_ops_bench *bench, attention *a) {
    int64_t tokens = bench->options->tokens;
    int64_t q = tokens * a->shape.q_stride, k = tokens * a->shape.k_stride;
    a->q = td_bench_take(bench, bench->act, q, 1);
    a->k = td_bench_take(bench, bench->act, k, 1);
    a->v = td_bench_take(bench, bench->act, k, 1);
    a->out = td_bench_take(bench, bench->act, q, 0);
    a->lse = td_bench_take(bench, TD_F32, tokens * a->shape.n_heads, 0);
    a->dout = td_bench_take(bench, bench->act, q, 1);
    a->dq = td_bench_take(bench, bench->act, q, 0);
    a->dk = td_bench_take(bench, bench->act, k, 0);
    a->dv = td_bench_take(bench, bench->act, k, 0);
    a->borders = td_bench_take(bench, TD_I32, a->shape.n_sequences + 1, 0);
}

static td_status run(td_ops_bench *bench, attention *a, const char *name) {
    const td_op_context *context = &bench->context;
    size_t bytes = (size_t)(a->shape.n_sequences + 1) * sizeof *a->cu;
    double *row = calloc((size_t)a->shape.head_dim, sizeof *row);
    take_operands(bench, a);
    td_status status = row ? bench->status : td_fail(TD_ERR_MEMORY, "no memory to verify results");
    if (status == TD_OK)
        status = context->device->table->copy(context->stream, a->borders.data, a->cu, bytes);
    a->shape.device_cu_q = a->shape.device_cu_k = a->borders.data;
    a->shape.n_borders = a->shape.n_sequences + 1;
    if (status == TD_OK)
        status = forward_and_back(bench, a, name, row);
    td_bench_release(bench);
    free(row);
    return status;
}

static td_status attend_layer(td_ops_bench *bench, int64_t layer) {
    const td_model_config *model = bench->model;
    int64_t tokens = bench->options->tokens, length = bench->options->seq_tokens;
    int64_t n = (tokens + length - 1) / length;
    char name[64];
    attention a = {.shape = {.n_sequences = n,
                             .n_heads = model->n_heads,
                             .n_kv_heads = model->n_kv_heads,
                             .head_dim = model->head_dim,
                             .scale = 1.0f / sqrtf((float)model->attention_scalar),
                             .softcap = (float)model->attention_softcap,
                             .window = model->window[layer],
                             .q_stride = model->n_heads * model->head_dim,
                             .k_stride = model->n_kv_heads * model->head_dim,
                             .v_stride = model->n_kv_heads * model->head_dim},
                   .group = model->n_heads / model->n_kv_heads};
    a.cu = calloc((size_t)n + 1, sizeof *a.cu);
    if (!a.cu)
        return td_fail(TD_ERR_MEMORY, "no memory for the borders of sequences");
    for (int64_t s = 0; s <= n; s++)
        a.cu[s] = (int32_t)(s < n ? s * length : tokens);
    a.shape.cu_q = a.shape.cu_k = a.cu;
    snprintf(name, sizeof name, "%lld x %lld, %lld:%lld heads of %lld%s", (long long)n,
             (long long)length, (long long)model->n_heads, (long long)model->n_kv_heads,
             (long long)model->head_dim, a.shape.window > 0 ? ", window" : "");
    td_status status = run(bench, &a, name);
    free(a.cu);
    return status;
}

// The first layer, and the first with another window.
td_status td_bench_attention_ops(td_ops_bench *bench) {
    const td_model_config *model = bench->model;
    TD_TRY(attend_layer(bench, 0));
    for (int64_t layer = 1; layer < model->n_layers; layer++)
        if (model->window[layer] != model->window[0])
            return attend_layer(bench, layer);
    return TD_OK;
}
