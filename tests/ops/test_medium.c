// float32_matmul_precision: with "medium" linear layers and attention really round their operands,
// and with "highest" they do not: both against doubles.
#include <math.h>

#include "kernels/ops.h"
#include "runtime/core/rng.h"
#include "test.h"

enum {
    TOKENS = 96,
    IN = 160,
    OUT = 112,
    HEADS = 2,
    HEAD_DIM = 64,
    ROW = HEADS * HEAD_DIM,
    WORKSPACE_BYTES = 16 << 20
};

static float x[TOKENS * IN], weight[OUT * IN], y[TOKENS * OUT];
static float q[TOKENS * ROW], k[TOKENS * ROW], v[TOKENS * ROW], out[TOKENS * ROW];
static double expected[TOKENS * OUT + TOKENS * ROW];
static _Alignas(64) unsigned char workspace[WORKSPACE_BYTES];

static void fill(float *values, int64_t n, uint32_t what) {
    for (int64_t i = 0; i < n; i++)
        values[i] = 2 * td_rng_uniform(td_rng_word(what, 0, 0, (uint64_t)i)) - 1;
}

static td_op_context context_of(const td_ops *backend) {
    static const td_workspace_query query = {.max_tokens = TOKENS,
                                             .max_in = IN,
                                             .max_out = OUT,
                                             .max_weight_elements = IN * OUT,
                                             .n_heads = HEADS,
                                             .n_kv_heads = HEADS,
                                             .head_dim = HEAD_DIM};
    td_op_context context = {
        .device = td_device_cpu(), .workspace = workspace, .workspace_bytes = sizeof workspace};
    REQUIRE(td_ops_check(backend, &context.ops) == TD_OK);
    REQUIRE(context.ops->workspace_bytes(&query) <= sizeof workspace);
    return context;
}

// The largest difference over the largest number.
static double error_of(const float *actual, int64_t n) {
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)actual[i] - expected[i]));
        largest = fmax(largest, fabs(expected[i]));
    }
    return worst / largest;
}

static double linear_error(const td_ops *backend, int64_t n_tokens) {
    td_op_context context = context_of(backend);
    td_matrix matrix = {
        .format = TD_MATRIX_F32, .rows = OUT, .cols = IN, .data = weight, .compute = TD_F32};
    td_linear_forward_args args = {.n_tokens = n_tokens, .x = x, .weight = &matrix, .y = y};
    REQUIRE(context.ops->linear_forward(&context, &args) == TD_OK);
    for (int64_t i = 0; i < n_tokens * OUT; i++) {
        expected[i] = 0;
        for (int64_t j = 0; j < IN; j++)
            expected[i] += (double)x[i / OUT * IN + j] * (double)weight[i % OUT * IN + j];
    }
    return error_of(y, n_tokens * OUT);
}

// One row of out: of token `query` and the head that begins at column `head`.
static void attend(int64_t query, int64_t head, double scale, double *row) {
    double sum = 0;
    for (int64_t i = 0; i < HEAD_DIM; i++)
        row[i] = 0;
    for (int64_t key = 0; key <= query; key++) {
        double score = 0;
        for (int64_t i = 0; i < HEAD_DIM; i++)
            score += (double)q[query * ROW + head + i] * (double)k[key * ROW + head + i];
        double p = exp(score * scale);
        sum += p;
        for (int64_t i = 0; i < HEAD_DIM; i++)
            row[i] += p * (double)v[key * ROW + head + i];
    }
    for (int64_t i = 0; i < HEAD_DIM; i++)
        row[i] /= sum;
}

static double attention_error(const td_ops *backend) {
    static const int32_t borders[] = {0, TOKENS};
    td_op_context context = context_of(backend);
    td_attention_forward_args args = {.shape = {.n_sequences = 1,
                                                .cu_q = borders,
                                                .cu_k = borders,
                                                .n_heads = HEADS,
                                                .n_kv_heads = HEADS,
                                                .head_dim = HEAD_DIM,
                                                .scale = 0.125f,
                                                .q_stride = ROW,
                                                .k_stride = ROW,
                                                .v_stride = ROW},
                                      .q = q,
                                      .k = k,
                                      .v = v,
                                      .out = out};
    REQUIRE(context.ops->attention_forward(&context, &args) == TD_OK);
    for (int64_t query = 0; query < TOKENS; query++)
        for (int64_t head = 0; head < ROW; head += HEAD_DIM)
            attend(query, head, 0.125, expected + query * ROW + head);
    return error_of(out, TOKENS * ROW);
}

static void highest_rounds_nothing(void) {
    CHECK(linear_error(&td_ops_cpu, TOKENS) < 1e-6);
    CHECK(attention_error(&td_ops_cpu) < 1e-6);
}

static void linear_layers_round_with_medium(void) {
    double error = linear_error(&td_ops_cpu_medium, TOKENS);
    CHECK(error > 1e-5 && error < 1e-2);
}

static void attention_rounds_with_medium(void) {
    double error = attention_error(&td_ops_cpu_medium);
    CHECK(error > 1e-5 && error < 1e-2);
}

// Of which each weight is read once: memory is the limit, not products.
static void a_few_tokens_stay_in_fp32(void) {
    CHECK(linear_error(&td_ops_cpu_medium, 1) < 1e-6);
}

int main(void) {
    fill(x, TOKENS * IN, 1);
    fill(weight, OUT * IN, 2);
    fill(q, TOKENS * ROW, 3);
    fill(k, TOKENS * ROW, 4);
    fill(v, TOKENS * ROW, 5);
    TEST(highest_rounds_nothing);
    TEST(linear_layers_round_with_medium);
    TEST(attention_rounds_with_medium);
    TEST(a_few_tokens_stay_in_fp32);
    return test_report();
}
