// Attention: values and gradients against plain double loops, gradients of these against finite
// differences, and what the CPU backend promises about bits.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/case.h"

enum { MAX_LENGTHS = 5, MAX_SEQUENCES = 600 };

typedef struct attention_case {
    int64_t n_heads, n_kv_heads, head_dim, window;
    double softcap; // 0: none
    int n_lengths;
    int32_t n_q[MAX_LENGTHS], n_k[MAX_LENGTHS];
    double spread;  // q and k are uniform in [-spread, spread]
    int finite;     // 1: check the reference's gradients by finite differences
    int timed_only; // 1: large, for rates
    int repeats;    // of the lengths, 0: once
} attention_case;

// Lengths around the cuts of the CPU backend (blocks of 256 keys, in backward of 128 up to 256 of
// them, 128 rows of queries, strips of 24 rows, 16 lanes), of the CUDA backend (tiles of 16 to 128
// rows, widths of 32, 64, 80, 96, 128 and 256, 256 sequences at a time) and odd ones.
static const attention_case CASES[] = {
    {2, 1, 8, 0, 0, 1, {5}, {5}, 1.0, 1, 0, 0},
    {3, 1, 16, 3, 0, 2, {6, 3}, {6, 5}, 1.0, 1, 0, 0},
    {4, 4, 16, 0, 0, 3, {33, 1, 70}, {33, 1, 70}, 1.0, 0, 0, 0},
    {9, 3, 64, 0, 0, 2, {131, 40}, {131, 40}, 1.0, 0, 0, 0},
    {9, 3, 64, 20, 0, 2, {61, 90}, {61, 90}, 1.0, 0, 0, 0},
    {4, 1, 80, 0, 0, 2, {45, 19}, {45, 19}, 1.0, 0, 0, 0},
    {4, 1, 96, 50, 0, 1, {129}, {129}, 1.0, 0, 0, 0},
    {8, 1, 128, 0, 0, 2, {17, 40}, {17, 40}, 0.5, 0, 0, 0},
    {2, 2, 256, 0, 0, 1, {37}, {37}, 0.3, 0, 0, 0},
    {3, 1, 20, 0, 0, 2, {50, 7}, {50, 7}, 1.0, 0, 0, 0}, // not whole lanes
    {4, 1, 64, 0, 0, 3, {1, 1, 1}, {300, 1, 64}, 1.0, 0, 0, 0},
    {4, 1, 64, 100, 0, 2, {1, 3}, {290, 257}, 1.0, 0, 0, 0},
    {2, 2, 40, 0, 0, 3, {5, 0, 30}, {140, 9, 160}, 1.0, 0, 0, 0},
    {1, 1, 32, 2, 0, 1, {150}, {150}, 1.0, 0, 0, 0},       // itself and the key before
    {6, 2, 64, 130, 0, 1, {300}, {300}, 1.0, 0, 0, 0},     // windows that skip blocks of keys
    {3, 1, 64, 0, 0, 2, {140, 9}, {140, 9}, 5.0, 0, 0, 0}, // scores of tens: nearly one-hot rows
    {150, 1, 8, 0, 0, 1, {9}, {9}, 1.0, 0, 0, 0}, // one token fills more than a block of rows
    {2, 1, 128, 0, 0, 2, {200, 3}, {230, 70}, 0.5, 0, 0, 0},
    {2, 1, 128, 45, 0, 2, {3, 140}, {100, 150}, 0.5, 0, 0, 0},
    {3, 1, 80, 0, 0, 1, {150}, {170}, 1.0, 0, 0, 0},
    {2, 1, 160, 0, 0, 1, {70}, {70}, 0.5, 0, 0, 0}, // between two widths
    {2, 1, 256, 70, 0, 1, {140}, {150}, 0.3, 0, 0, 0},
    {1, 1, 32, 33, 0, 2, {64, 129}, {64, 129}, 1.0, 0, 0, 0}, // whole tiles and one row more
    {2, 1, 32, 0, 0, 4, {3, 0, 1, 2}, {3, 2, 4, 2}, 1.0, 0, 0, 130},
    {2, 1, 10, 0, 0, 1, {70}, {71}, 1.0, 0, 0, 0},   // rows at any even address
    {2, 1, 67, 40, 0, 1, {70}, {103}, 1.0, 0, 0, 0}, // and at odd ones
    // Three blocks of keys, the last of one key; windows that begin in a later block.
    {2, 1, 32, 0, 0, 3, {513, 257, 256}, {513, 257, 256}, 1.0, 0, 0, 0},
    {3, 3, 20, 290, 0, 2, {600, 40}, {620, 300}, 1.0, 0, 0, 0},
    {4, 1, 16, 100, 0, 1, {640}, {640}, 1.0, 0, 0, 0},
    // Tiles of which one row sees one key or all rows but one see all; few keys have all the
    // weight.
    {2, 1, 64, 128, 0, 1, {230}, {231}, 3.0, 0, 0, 0},
    {2, 1, 128, 64, 0, 1, {100}, {101}, 2.0, 0, 0, 0},
    // Soft caps: tanh nearly linear, bent, and with most scores where it is flat.
    {2, 1, 8, 0, 20.0, 1, {5}, {5}, 1.0, 1, 0, 0},
    {3, 1, 16, 3, 0.3, 2, {6, 3}, {6, 5}, 1.0, 1, 0, 0},
    {2, 2, 16, 0, 2.0, 1, {7}, {9}, 3.0, 1, 0, 0},
    {9, 3, 64, 20, 0.5, 2, {40, 7}, {40, 7}, 1.0, 0, 0, 0},
    {3, 1, 64, 0, 5.0, 1, {70}, {70}, 5.0, 0, 0, 0},
    {2, 1, 20, 0, 1.0, 1, {50}, {57}, 2.0, 0, 0, 0},
    {2, 1, 80, 0, 30.0, 1, {40}, {40}, 2.0, 0, 0, 0},
    {2, 1, 96, 0, 1.0, 1, {40}, {40}, 1.0, 0, 0, 0},
    {2, 1, 128, 30, 2.0, 1, {40}, {70}, 2.0, 0, 0, 0},
    {8, 4, 256, 0, 50.0, 1, {20}, {20}, 2.0, 0, 0, 0}, // Gemma 2
    {2, 1, 256, 20, 0.5, 1, {20}, {45}, 1.0, 0, 0, 0},
    {4, 1, 64, 100, 1.0, 2, {1, 3}, {290, 137}, 1.0, 0, 0, 0},
    {9, 3, 64, 0, 0, 1, {512}, {512}, 1.0, 0, 1, 0},
    {9, 3, 64, 0, 0, 1, {2048}, {2048}, 1.0, 0, 1, 0},
    {32, 8, 128, 0, 0, 1, {1024}, {1024}, 1.0, 0, 1, 0},
    {9, 3, 64, 0, 0, 1, {1}, {4096}, 1.0, 0, 1, 0},
    {8, 4, 256, 0, 50.0, 1, {512}, {512}, 2.0, 0, 1, 0},
};

// One case at work: the lengths as offsets, the inputs, and where the reference puts its results.
typedef struct attention_data {
    const attention_case *shape;
    op_run *run;
    int32_t cu_q[MAX_SEQUENCES + 1], cu_k[MAX_SEQUENCES + 1];
    op_buffer *borders_q, *borders_k; // the same on the device, with empty sequences behind them
    float scale;
    op_buffer *q, *k, *v, *dout, *out, *lse;
    double *probabilities; // (longest n_k)
    double *slopes;        // (longest n_k) of the soft cap
    double *ref_out, *ref_lse, *ref_dq, *ref_dk, *ref_dv;
} attention_data;

static int n_sequences(const attention_case *c) {
    return c->n_lengths * (c->repeats ? c->repeats : 1);
}

static int32_t queries_of(const attention_case *c, int s) {
    return c->n_q[s % c->n_lengths];
}

static int32_t keys_of(const attention_case *c, int s) {
    return c->n_k[s % c->n_lengths];
}

static td_attention_shape shape_of(const attention_data *data) {
    const attention_case *c = data->shape;
    return (td_attention_shape){.n_sequences = n_sequences(c),
                                .cu_q = data->cu_q,
                                .cu_k = data->cu_k,
                                .device_cu_q = data->borders_q->memory,
                                .device_cu_k = data->borders_k->memory,
                                .n_borders = data->borders_q->n,
                                .n_heads = c->n_heads,
                                .n_kv_heads = c->n_kv_heads,
                                .head_dim = c->head_dim,
                                .scale = data->scale,
                                .softcap = (float)c->softcap,
                                .window = c->window,
                                .q_stride = c->n_heads * c->head_dim,
                                .k_stride = c->n_kv_heads * c->head_dim,
                                .v_stride = c->n_kv_heads * c->head_dim};
}

static int64_t q_tokens(const attention_data *data) {
    return data->cu_q[n_sequences(data->shape)];
}

static int64_t k_tokens(const attention_data *data) {
    return data->cu_k[n_sequences(data->shape)];
}

// Pairs of a query and a key that it sees, of all heads.
static double visible_pairs(const attention_case *c) {
    double pairs = 0;
    for (int s = 0; s < n_sequences(c); s++)
        for (int32_t i = 0; i < queries_of(c, s); i++) {
            int64_t seen = i + 1 + keys_of(c, s) - queries_of(c, s);
            pairs += (double)(c->window > 0 && seen > c->window ? c->window : seen);
        }
    return pairs * (double)c->n_heads;
}

// The row of one query token and head: which keys it sees, where its vectors are.
typedef struct reference_row {
    int64_t first_key, n_keys; // tokens of the stream
    int64_t q_at, lse_at;
    int64_t kv_head;
} reference_row;

static reference_row row_at(const attention_data *data, int s, int32_t i, int64_t head) {
    const attention_case *c = data->shape;
    int64_t end = i + 1 + keys_of(c, s) - queries_of(c, s);
    int64_t begin = c->window > 0 && end > c->window ? end - c->window : 0;
    int64_t token = data->cu_q[s] + i;
    return (reference_row){data->cu_k[s] + begin, end - begin,
                           (token * c->n_heads + head) * c->head_dim, token * c->n_heads + head,
                           head / (c->n_heads / c->n_kv_heads)};
}

static int64_t kv_at(const attention_case *c, const reference_row *row, int64_t j) {
    return ((row->first_key + j) * c->n_kv_heads + row->kv_head) * c->head_dim;
}

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

// y += factor * x
static void add_scaled(double *y, const double *x, double factor, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += factor * x[i];
}

// cap * tanh(score / cap), and its derivative.
static double capped(double score, double cap, double *slope) {
    double share = cap > 0 ? tanh(score / cap) : 0.0;
    *slope = 1.0 - share * share;
    return cap > 0 ? cap * share : score;
}

// Softmax of the row into data->probabilities, slopes into data->slopes; returns the log-sum-exp.
static double reference_softmax(const attention_data *data, const reference_row *row) {
    const attention_case *c = data->shape;
    double largest = -INFINITY, sum = 0, *p = data->probabilities;
    for (int64_t j = 0; j < row->n_keys; j++) {
        double product =
            dot(data->q->values + row->q_at, data->k->values + kv_at(c, row, j), c->head_dim);
        p[j] = capped((double)data->scale * product, (double)(float)c->softcap, &data->slopes[j]);
        largest = fmax(largest, p[j]);
    }
    for (int64_t j = 0; j < row->n_keys; j++)
        sum += exp(p[j] - largest);
    double lse = largest + log(sum);
    for (int64_t j = 0; j < row->n_keys; j++)
        p[j] = exp(p[j] - lse);
    return lse;
}

static void reference_row_forward(attention_data *data, const reference_row *row) {
    const attention_case *c = data->shape;
    double *out = data->ref_out + row->q_at;
    data->ref_lse[row->lse_at] = reference_softmax(data, row);
    memset(out, 0, (size_t)c->head_dim * sizeof *out);
    for (int64_t j = 0; j < row->n_keys; j++)
        add_scaled(out, data->v->values + kv_at(c, row, j), data->probabilities[j], c->head_dim);
}

static void reference_row_backward(attention_data *data, const reference_row *row) {
    const attention_case *c = data->shape;
    const double *dout = data->dout->values + row->q_at;
    double delta = dot(dout, data->ref_out + row->q_at, c->head_dim);
    reference_softmax(data, row);
    for (int64_t j = 0; j < row->n_keys; j++) {
        int64_t at = kv_at(c, row, j);
        double p = data->probabilities[j], slope = data->slopes[j] * data->scale;
        double ds = p * (dot(dout, data->v->values + at, c->head_dim) - delta) * slope;
        add_scaled(data->ref_dv + at, dout, p, c->head_dim);
        add_scaled(data->ref_dk + at, data->q->values + row->q_at, ds, c->head_dim);
        add_scaled(data->ref_dq + row->q_at, data->k->values + at, ds, c->head_dim);
    }
}

static void reference_rows(attention_data *data,
                           void (*visit)(attention_data *, const reference_row *)) {
    const attention_case *c = data->shape;
    for (int s = 0; s < n_sequences(c); s++)
        for (int32_t i = 0; i < queries_of(c, s); i++)
            for (int64_t head = 0; head < c->n_heads; head++) {
                reference_row row = row_at(data, s, i, head);
                visit(data, &row);
            }
}

// sum(dout * out), whose gradients are dq, dk, dv.
static double reference_loss(void *closure) {
    attention_data *data = closure;
    reference_rows(data, reference_row_forward);
    return dot(data->dout->values, data->ref_out, data->dout->n);
}

static int64_t longest(const attention_case *c) {
    int64_t n = 0;
    for (int s = 0; s < n_sequences(c); s++)
        n = keys_of(c, s) > n ? keys_of(c, s) : n;
    return n;
}

// A few empty sequences behind the last: kernels may be given room for more than there are.
static op_buffer *borders(op_run *run, const int32_t *cu, int n) {
    enum { EMPTY = 7 };
    double *values = op_doubles(run, n + 1 + EMPTY);
    for (int s = 0; s <= n + EMPTY; s++)
        values[s] = cu[s < n ? s : n];
    return op_given(run, TD_I32, n + 1 + EMPTY, values);
}

static void put_borders(attention_data *data) {
    int n = n_sequences(data->shape);
    data->borders_q = borders(data->run, data->cu_q, n);
    data->borders_k = borders(data->run, data->cu_k, n);
}

static void data_inputs(attention_data *data) {
    const attention_case *c = data->shape;
    op_run *run = data->run;
    for (int s = 0; s < n_sequences(c); s++) {
        data->cu_q[s + 1] = data->cu_q[s] + queries_of(c, s);
        data->cu_k[s + 1] = data->cu_k[s] + keys_of(c, s);
    }
    put_borders(data);
    data->scale = (float)(1.0 / sqrt((double)c->head_dim));
    int64_t n_q = q_tokens(data) * c->n_heads * c->head_dim;
    int64_t n_k = k_tokens(data) * c->n_kv_heads * c->head_dim;
    td_dtype act = run->ops->activation;
    // Large scores that were rounded would be other probabilities.
    data->q = op_random_operand(run, n_q, c->spread);
    data->k = op_random_operand(run, n_k, c->spread);
    data->v = op_random_operand(run, n_k, 1.0);
    data->dout = op_random_operand(run, n_q, 1.0);
    data->out = op_output(run, act, n_q);
    data->lse = op_output(run, TD_F32, q_tokens(data) * c->n_heads);
    op_workspace(run, &(td_workspace_query){.max_tokens = q_tokens(data),
                                            .n_heads = c->n_heads,
                                            .n_kv_heads = c->n_kv_heads,
                                            .head_dim = c->head_dim});
}

static void data_reference(attention_data *data) {
    op_run *run = data->run;
    data->probabilities = op_doubles(run, longest(data->shape));
    data->slopes = op_doubles(run, longest(data->shape));
    data->ref_out = op_doubles(run, data->q->n);
    data->ref_lse = op_doubles(run, data->lse->n);
    data->ref_dq = op_doubles(run, data->q->n);
    data->ref_dk = op_doubles(run, data->k->n);
    data->ref_dv = op_doubles(run, data->k->n);
    reference_rows(data, reference_row_forward);
    reference_rows(data, reference_row_backward);
}

static void call_forward(attention_data *data, op_buffer *out, op_buffer *lse) {
    const attention_case *c = data->shape;
    td_attention_forward_args args = {shape_of(data),  data->q->memory, data->k->memory,
                                      data->v->memory, out->memory,     op_memory(lse)};
    OP_CALL(data->run, attention_forward, &args, 4.0 * visible_pairs(c) * (double)c->head_dim, 0);
}

static void check_forward(attention_data *data) {
    op_run *run = data->run;
    call_forward(data, data->out, data->lse);
    op_expect(run, "out", data->out, data->ref_out, op_product_tolerance(run));
    op_expect(run, "lse", data->lse, data->ref_lse, 1e-5); // fp32 whatever the activations are
    op_buffer *again = op_output(run, run->ops->activation, data->out->n);
    call_forward(data, again, NULL);
    op_fetch(run, again);
    op_expect(run, "out without lse", again, data->out->values, 0.0);
}

typedef struct attention_gradients {
    op_buffer *dq, *dk, *dv;
} attention_gradients;

static td_attention_backward_args backward_args(const attention_data *data,
                                                const attention_gradients *g) {
    return (td_attention_backward_args){
        shape_of(data),    data->q->memory,    data->k->memory, data->v->memory, data->out->memory,
        data->lse->memory, data->dout->memory, g->dq->memory,   g->dk->memory,   g->dv->memory};
}

static attention_gradients call_backward(attention_data *data) {
    op_run *run = data->run;
    const attention_case *c = data->shape;
    td_dtype act = run->ops->activation;
    attention_gradients g = {op_output(run, act, data->q->n), op_output(run, act, data->k->n),
                             op_output(run, act, data->k->n)};
    td_attention_backward_args args = backward_args(data, &g);
    OP_CALL(run, attention_backward, &args, 10.0 * visible_pairs(c) * (double)c->head_dim, 0);
    return g;
}

static void check_backward(attention_data *data) {
    op_run *run = data->run;
    call_forward(data, data->out, data->lse);
    attention_gradients g = call_backward(data);
    op_expect(run, "dq", g.dq, data->ref_dq, op_product_tolerance(run));
    op_expect(run, "dk", g.dk, data->ref_dk, op_product_tolerance(run));
    op_expect(run, "dv", g.dv, data->ref_dv, op_product_tolerance(run));
    if (!data->shape->finite)
        return;
    double tolerance = run->ops->product == TD_F32 ? 1e-4 : op_product_tolerance(run);
    op_expect_gradient(run, "dq", g.dq, data->q->values, reference_loss, data, tolerance);
    op_expect_gradient(run, "dk", g.dk, data->k->values, reference_loss, data, tolerance);
    op_expect_gradient(run, "dv", g.dv, data->v->values, reference_loss, data, tolerance);
}

static void run_case(op_run *run, const char *op, const attention_case *c,
                     void (*check)(attention_data *)) {
    if (c->timed_only && !run->timing)
        return;
    char cap[24] = "";
    if (c->softcap > 0)
        snprintf(cap, sizeof cap, " cap=%g", c->softcap);
    if (!op_case_begin(run, op, "heads=%d/%d d=%d window=%d%s sequences=%d first=%d/%d",
                       (int)c->n_heads, (int)c->n_kv_heads, (int)c->head_dim, (int)c->window, cap,
                       n_sequences(c), c->n_q[0], c->n_k[0]))
        return;
    attention_data data = {.shape = c, .run = run};
    data_inputs(&data);
    data_reference(&data);
    check(&data);
    op_case_end(run);
}

// Scores of 1e5: fp32 cannot give the probabilities of near ties, but nothing overflows, and out
// stays among the values.
static void check_huge_scores(attention_data *data) {
    op_run *run = data->run;
    call_forward(data, data->out, data->lse);
    op_expect(run, "lse", data->lse, data->ref_lse, 1e-5); // fp32 whatever the activations are
    op_fetch(run, data->out);
    int within = 1;
    for (int64_t i = 0; i < data->out->n; i++)
        within &= fabs(data->out->values[i]) <= 1.0 + op_product_tolerance(run);
    op_expect_true(run, "out is a mean of values", within);
}

// The part of a tensor of the stream that belongs to token `begin` and the `count` after it, as
// bytes on the host.
static int same_rows(const op_buffer *whole, const op_buffer *part, int64_t begin,
                     int64_t row_elements) {
    return memcmp(whole->values + begin * row_elements, part->values,
                  (size_t)part->n * sizeof(double)) == 0;
}

static op_buffer *slice(const attention_data *from, const op_buffer *buffer, int64_t begin,
                        int64_t count, int64_t row_elements) {
    return op_given(from->run, buffer->dtype, count * row_elements,
                    buffer->values + begin * row_elements);
}

// Sequence s of `whole` on its own, from its query `first_query` on.
static attention_data alone(const attention_data *whole, attention_case *c, int s,
                            int32_t first_query) {
    int64_t q_row = c->n_heads * c->head_dim, k_row = c->n_kv_heads * c->head_dim;
    int64_t q_begin = whole->cu_q[s] + first_query, k_begin = whole->cu_k[s];
    c->n_lengths = 1;
    c->repeats = 0;
    c->n_q[0] = c->n_q[s] - first_query;
    c->n_k[0] = c->n_k[s];
    attention_data data = {.shape = c, .run = whole->run, .scale = whole->scale};
    data.cu_q[1] = c->n_q[0];
    data.cu_k[1] = c->n_k[0];
    put_borders(&data);
    data.q = slice(whole, whole->q, q_begin, c->n_q[0], q_row);
    data.k = slice(whole, whole->k, k_begin, c->n_k[0], k_row);
    data.v = slice(whole, whole->v, k_begin, c->n_k[0], k_row);
    data.dout = slice(whole, whole->dout, q_begin, c->n_q[0], q_row);
    data.out = op_output(whole->run, whole->out->dtype, data.q->n);
    data.lse = op_output(whole->run, TD_F32, c->n_q[0] * c->n_heads);
    call_forward(&data, data.out, data.lse);
    op_fetch(whole->run, data.out);
    op_fetch(whole->run, data.lse);
    return data;
}

static attention_gradients fetched_backward(attention_data *data) {
    attention_gradients g = call_backward(data);
    op_fetch(data->run, g.dq);
    op_fetch(data->run, g.dk);
    op_fetch(data->run, g.dv);
    return g;
}

// Each gradient in turn one element off, the others aligned.
static void check_moved_gradients(attention_data *data) {
    op_run *run = data->run;
    td_dtype act = run->ops->activation;
    call_forward(data, data->out, data->lse);
    attention_gradients g = fetched_backward(data);
    td_attention_backward_args args = backward_args(data, &g);
    void **outputs[] = {&args.dq, &args.dk, &args.dv};
    const op_buffer *expected[] = {g.dq, g.dk, g.dv};
    for (int i = 0; i < 3; i++) {
        op_buffer *moved = op_output(run, act, expected[i]->n + 1);
        args = backward_args(data, &g);
        *outputs[i] = (char *)moved->memory + td_dtype_bytes(act);
        OP_CALL(run, attention_backward, &args, 0, 0);
        op_fetch(run, moved);
        size_t bytes = (size_t)expected[i]->n * sizeof(double);
        op_expect_true(run, "a gradient at another address has the same bits",
                       memcmp(moved->values + 1, expected[i]->values, bytes) == 0);
        op_expect_true(run, "nothing is written before a gradient", isnan(moved->values[0]));
    }
}

// q, k and v side by side in one matrix, with foreign columns before, between and behind them. v
// may have every other row only, which makes its stride another than that of k.
typedef struct fused_layout {
    int64_t gap;    // foreign columns
    int64_t v_step; // 1, or 2: rows of the matrix from one token of v to the next
} fused_layout;

typedef struct fused_matrix {
    op_buffer *buffer; // (rows, cols) act
    int64_t cols;
    int64_t begin[3], stride[3]; // of each part: its first column, elements from token to token
} fused_matrix;

static int64_t part_cols(const attention_case *c, int part) {
    return (part == 0 ? c->n_heads : c->n_kv_heads) * c->head_dim;
}

static int64_t part_rows(const attention_data *data, int part) {
    return part == 0 ? q_tokens(data) : k_tokens(data);
}

// Every element is NaN.
static fused_matrix fused_make(const attention_data *data, fused_layout layout) {
    fused_matrix fused = {.cols = layout.gap};
    for (int part = 0; part < 3; part++) {
        fused.begin[part] = fused.cols;
        fused.cols += part_cols(data->shape, part) + layout.gap;
    }
    for (int part = 0; part < 3; part++)
        fused.stride[part] = fused.cols * (part == 2 ? layout.v_step : 1);
    int64_t rows = k_tokens(data) * layout.v_step; // at least as many keys as queries
    fused.buffer = op_output(data->run, data->run->ops->activation, rows * fused.cols);
    return fused;
}

// What is no part of q, k or v stays NaN.
static fused_matrix fused_inputs(const attention_data *data, fused_layout layout) {
    fused_matrix fused = fused_make(data, layout);
    const op_buffer *parts[] = {data->q, data->k, data->v};
    for (int part = 0; part < 3; part++) {
        int64_t n = part_cols(data->shape, part);
        for (int64_t row = 0; row < part_rows(data, part); row++)
            memcpy(fused.buffer->values + row * fused.stride[part] + fused.begin[part],
                   parts[part]->values + row * n, (size_t)n * sizeof(double));
    }
    fused.buffer = op_given(data->run, fused.buffer->dtype, fused.buffer->n, fused.buffer->values);
    return fused;
}

static void *fused_part(const fused_matrix *fused, int part) {
    size_t offset = (size_t)fused->begin[part] * td_dtype_bytes(fused->buffer->dtype);
    return (char *)fused->buffer->memory + offset;
}

static td_attention_shape fused_shape(const attention_data *data, const fused_matrix *fused) {
    td_attention_shape shape = shape_of(data);
    shape.q_stride = fused->stride[0];
    shape.k_stride = fused->stride[1];
    shape.v_stride = fused->stride[2];
    return shape;
}

static int same_part(const attention_data *data, const fused_matrix *fused, int part,
                     const op_buffer *expected) {
    int64_t n = part_cols(data->shape, part);
    int same = 1;
    for (int64_t row = 0; row < part_rows(data, part); row++)
        same &= memcmp(fused->buffer->values + row * fused->stride[part] + fused->begin[part],
                       expected->values + row * n, (size_t)n * sizeof(double)) == 0;
    return same;
}

static int64_t count_numbers(const op_buffer *buffer) {
    int64_t count = 0;
    for (int64_t i = 0; i < buffer->n; i++)
        count += !isnan(buffer->values[i]);
    return count;
}

static void check_fused_forward(attention_data *data, const fused_matrix *in) {
    op_run *run = data->run;
    op_buffer *out = op_output(run, run->ops->activation, data->out->n);
    op_buffer *lse = op_output(run, TD_F32, data->lse->n);
    td_attention_forward_args args = {fused_shape(data, in), fused_part(in, 0), fused_part(in, 1),
                                      fused_part(in, 2),     out->memory,       lse->memory};
    OP_CALL(run, attention_forward, &args, 0, 0);
    op_fetch(run, out);
    op_fetch(run, lse);
    op_expect_true(run, "out has the bits of contiguous q, k and v",
                   same_rows(data->out, out, 0, 1));
    op_expect_true(run, "lse has the bits of contiguous q, k and v",
                   same_rows(data->lse, lse, 0, 1));
}

static void check_fused_backward(attention_data *data, const attention_gradients *expected,
                                 const fused_matrix *in, fused_layout layout) {
    op_run *run = data->run;
    fused_matrix out = fused_make(data, layout);
    td_attention_backward_args args = {
        fused_shape(data, in), fused_part(in, 0),   fused_part(in, 1),  fused_part(in, 2),
        data->out->memory,     data->lse->memory,   data->dout->memory, fused_part(&out, 0),
        fused_part(&out, 1),   fused_part(&out, 2),
    };
    OP_CALL(run, attention_backward, &args, 0, 0);
    op_fetch(run, out.buffer);
    op_expect_true(run, "dq has the bits of the contiguous",
                   same_part(data, &out, 0, expected->dq));
    op_expect_true(run, "dk has the bits of the contiguous",
                   same_part(data, &out, 1, expected->dk));
    op_expect_true(run, "dv has the bits of the contiguous",
                   same_part(data, &out, 2, expected->dv));
    op_expect_true(run, "nothing but dq, dk and dv is written",
                   count_numbers(out.buffer) == data->q->n + data->k->n + data->v->n);
}

// Gaps of whole 16-byte accesses and others.
static void check_columns(attention_data *data) {
    static const fused_layout layouts[] = {{8, 1}, {3, 2}};
    call_forward(data, data->out, data->lse);
    op_fetch(data->run, data->out);
    op_fetch(data->run, data->lse);
    attention_gradients contiguous = fetched_backward(data);
    for (int i = 0; i < 2; i++) {
        fused_matrix in = fused_inputs(data, layouts[i]);
        check_fused_forward(data, &in);
        check_fused_backward(data, &contiguous, &in, layouts[i]);
    }
}

// Columns of a wider matrix: training, and queries that follow a cache.
static void cases_columns(op_run *run) {
    static const attention_case COLUMNS[] = {
        {6, 2, 64, 20, 0, 2, {45, 7}, {45, 7}, 1.0, 0, 0, 0},
        {2, 2, 96, 0, 0, 1, {40}, {40}, 1.0, 0, 0, 0}, // Phi-3
        {2, 1, 80, 0, 2.0, 2, {1, 30}, {140, 37}, 1.0, 0, 0, 0},
        {2, 1, 128, 0, 0, 2, {1, 20}, {70, 20}, 1.0, 0, 0, 0},
        {4, 2, 256, 15, 50.0, 1, {20}, {35}, 2.0, 0, 0, 0},
        {2, 1, 19, 0, 0, 1, {20}, {33}, 1.0, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof COLUMNS / sizeof COLUMNS[0] && !run->timing; i++)
        run_case(run, "attention_backward", &COLUMNS[i], check_columns);
}

static void check_packed_bits(attention_data *data) {
    op_run *run = data->run;
    attention_case c = *data->shape;
    int64_t q_row = c.n_heads * c.head_dim, k_row = c.n_kv_heads * c.head_dim;
    call_forward(data, data->out, data->lse);
    op_fetch(run, data->out);
    op_fetch(run, data->lse);
    attention_gradients packed = fetched_backward(data);
    for (int s = 0; s < n_sequences(data->shape); s++) {
        c = *data->shape;
        attention_data one = alone(data, &c, s, 0);
        attention_gradients g = fetched_backward(&one);
        int64_t q = data->cu_q[s], k = data->cu_k[s];
        op_expect_true(run, "out has the bits of the sequence alone",
                       same_rows(data->out, one.out, q, q_row));
        op_expect_true(run, "lse has the bits of the sequence alone",
                       same_rows(data->lse, one.lse, q, c.n_heads));
        op_expect_true(run, "dq has the bits of the sequence alone",
                       same_rows(packed.dq, g.dq, q, q_row));
        op_expect_true(run, "dk has the bits of the sequence alone",
                       same_rows(packed.dk, g.dk, k, k_row));
        op_expect_true(run, "dv has the bits of the sequence alone",
                       same_rows(packed.dv, g.dv, k, k_row));
    }
}

static void check_cached_bits(attention_data *data) {
    op_run *run = data->run;
    int64_t q_row = data->shape->n_heads * data->shape->head_dim;
    call_forward(data, data->out, data->lse);
    op_fetch(run, data->out);
    for (int32_t left = 1; left < data->shape->n_q[0]; left = left * 3 + 1) {
        attention_case c = *data->shape;
        int32_t first = c.n_q[0] - left;
        attention_data late = alone(data, &c, 0, first);
        op_expect_true(run, "queries after a cache have the bits of the whole sequence",
                       same_rows(data->out, late.out, first, q_row));
    }
}

// Promises of the CPU backend and of the tensor-core kernels: a sequence's bits depend neither on
// its neighbours nor on how many of its queries came before.
static void cases_bits(op_run *run) {
    int promised = strcmp(run->ops->name, "cpu") == 0 || run->ops->product == TD_BF16;
    if (!promised || run->timing)
        return;
    static const attention_case PACKED[] = {
        {6, 2, 64, 0, 0, 4, {37, 150, 1, 64}, {37, 150, 1, 64}, 1.0, 0, 0, 0},
        {4, 1, 48, 33, 0, 3, {129, 20, 70}, {129, 140, 70}, 1.0, 0, 0, 0},
    };
    static const attention_case CACHED[] = {
        {6, 2, 64, 0, 0, 1, {290}, {290}, 1.0, 0, 0, 0},
        {3, 3, 40, 50, 0.5, 1, {150}, {150}, 1.0, 0, 0, 0},
    };
    for (int i = 0; i < 2; i++) {
        run_case(run, "attention_backward", &PACKED[i], check_packed_bits);
        run_case(run, "attention_forward", &CACHED[i], check_cached_bits);
    }
}

void cases_attention(op_run *run) {
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        run_case(run, "attention_forward", &CASES[i], check_forward);
        run_case(run, "attention_backward", &CASES[i], check_backward);
    }
    static const attention_case HUGE_SCORES[] = {
        {3, 1, 64, 0, 0, 1, {150}, {150}, 300.0, 0, 0, 0},
        {2, 1, 64, 0, 50.0, 1, {70}, {70}, 300.0, 0, 0, 0},
    };
    for (int i = 0; i < 2; i++)
        run_case(run, "attention_forward", &HUGE_SCORES[i], check_huge_scores);
    static const attention_case MOVED = {2, 1, 64, 0, 0, 2, {40, 9}, {45, 9}, 1.0, 0, 0, 0};
    if (!run->timing)
        run_case(run, "attention_backward", &MOVED, check_moved_gradients);
    cases_columns(run);
    cases_bits(run);
}
