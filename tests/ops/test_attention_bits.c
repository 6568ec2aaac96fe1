// Attention with products in bf16: the same bits at every level of vector instructions, for any
// number of threads and beside any neighbours, and they are those of the sums that ops.h describes.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/cpu/cpu_internal.h"
#include "test.h"

enum { MAX_SEQUENCES = 3, FLUSH = 0x8040 };

typedef struct attention_case {
    int64_t n_heads, n_kv_heads, head_dim, window;
    float softcap, spread;
    int n_sequences;
    int32_t n_q[MAX_SEQUENCES], n_k[MAX_SEQUENCES];
} attention_case;

// Odd numbers of elements, rows and keys, which leave half words over; several blocks of rows and
// keys; sequences of one token; one key head for all, and one for each.
static const attention_case CASES[] = {
    {9, 3, 64, 0, 0.0f, 1.0f, 3, {131, 1, 40}, {131, 1, 200}},
    {5, 1, 67, 0, 0.0f, 1.0f, 2, {77, 3}, {77, 4}}, // an odd number of rows in a block
    {4, 4, 16, 33, 0.0f, 3.0f, 3, {1, 140, 9}, {1, 140, 9}},
    {2, 1, 20, 0, 1.5f, 2.0f, 2, {50, 7}, {57, 7}},
    {3, 1, 1, 0, 0.0f, 2.0f, 3, {1, 1, 130}, {1, 129, 130}},
    {7, 1, 33, 20, 0.5f, 1.0f, 1, {150}, {151}},
    {4, 2, 128, 130, 0.0f, 0.5f, 1, {270}, {300}},
    {2, 2, 32, 0, 0.0f, 1.0f, 2, {523, 256}, {523, 256}},
    {3, 1, 16, 300, 0.0f, 1.0f, 1, {651}, {651}},
};
enum { N_CASES = sizeof CASES / sizeof *CASES };

typedef struct machine_level {
    const char *name;
    td_cpu_simd_level simd;
    int bf16, threads;
} machine_level;

// The first is what the others are compared with.
static const machine_level LEVELS[] = {
    {"VDPBF16PS", TD_CPU_AVX512, 1, 1},
    {"AVX-512", TD_CPU_AVX512, 0, 1},
    {"AVX2", TD_CPU_AVX2, 0, 2},
    {"scalar", TD_CPU_SCALAR, 0, 2},
    {"two threads", TD_CPU_AVX512, 1, 2},
    {"three threads", TD_CPU_AVX512, 1, 3},
    {"five threads, AVX-512", TD_CPU_AVX512, 0, 5},
};
enum { N_LEVELS = sizeof LEVELS / sizeof *LEVELS };

static void enter(const machine_level *level) {
    td_cpu_simd_limit(level->simd);
    td_cpu_bf16_allow(level->bf16);
    td_ops_cpu_set_threads(level->threads);
}

// Inputs and outputs of one call of both operations, one allocation after the other.
typedef struct attention_data {
    td_attention_shape shape;
    int32_t cu_q[MAX_SEQUENCES + 1], cu_k[MAX_SEQUENCES + 1];
    int64_t n_q, n_k, n_lse; // elements
    float *q, *k, *v, *dout;
    float *out, *lse, *dq, *dk, *dv;
} attention_data;

static float *floats(int64_t n) {
    float *memory = calloc((size_t)n, sizeof *memory);
    REQUIRE(memory);
    return memory;
}

static attention_data data_make(const attention_case *c) {
    attention_data data = {0};
    for (int s = 0; s < c->n_sequences; s++) {
        data.cu_q[s + 1] = data.cu_q[s] + c->n_q[s];
        data.cu_k[s + 1] = data.cu_k[s] + c->n_k[s];
    }
    int64_t q_row = c->n_heads * c->head_dim, k_row = c->n_kv_heads * c->head_dim;
    data.shape = (td_attention_shape){.n_sequences = c->n_sequences,
                                      .n_heads = c->n_heads,
                                      .n_kv_heads = c->n_kv_heads,
                                      .head_dim = c->head_dim,
                                      .scale = 1.0f / sqrtf((float)c->head_dim),
                                      .softcap = c->softcap,
                                      .window = c->window,
                                      .q_stride = q_row,
                                      .k_stride = k_row,
                                      .v_stride = k_row};
    data.n_q = data.cu_q[c->n_sequences] * q_row;
    data.n_k = data.cu_k[c->n_sequences] * k_row;
    data.n_lse = data.cu_q[c->n_sequences] * c->n_heads;
    float **inputs[] = {&data.q, &data.dout, &data.out, &data.dq};
    float **keys[] = {&data.k, &data.v, &data.dk, &data.dv};
    for (int i = 0; i < 4; i++) {
        *inputs[i] = floats(data.n_q);
        *keys[i] = floats(data.n_k);
    }
    data.lse = floats(data.n_lse);
    return data;
}

static void data_free(attention_data *data) {
    float *all[] = {data->q,  data->k,  data->v,  data->dout, data->out,
                    data->dq, data->dk, data->dv, data->lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static uint32_t word(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

// Among numbers of ordinary size zeros of both signs, denormal ones, and such whose products are.
static float number(uint64_t *state, float spread) {
    float value = spread * (float)(int32_t)word(state) * 0x1p-31f;
    switch (word(state) % 32) {
    case 0:
        return copysignf(0.0f, value);
    case 1:
        return value * 1e-38f * 0x1p-6f;
    case 2:
        return value * 0x1p-60f;
    case 3:
        return value * 0x1p-66f;
    default:
        return value;
    }
}

static void fill(float *values, int64_t n, float spread, uint64_t seed) {
    for (int64_t i = 0; i < n; i++)
        values[i] = number(&seed, spread);
}

static attention_data data_random(const attention_case *c) {
    attention_data data = data_make(c);
    fill(data.q, data.n_q, c->spread, 1);
    fill(data.k, data.n_k, c->spread, 2);
    fill(data.v, data.n_k, 1.0f, 3);
    fill(data.dout, data.n_q, 1.0f, 4);
    return data;
}

static void run(attention_data *data) {
    td_attention_shape shape = data->shape;
    shape.cu_q = data->cu_q;
    shape.cu_k = data->cu_k;
    td_workspace_query query = {.max_tokens = data->cu_k[shape.n_sequences],
                                .n_heads = shape.n_heads,
                                .n_kv_heads = shape.n_kv_heads,
                                .head_dim = shape.head_dim};
    size_t bytes = td_cpu_attention_workspace_bytes(&query);
    td_op_context context = {
        .ops = &td_ops_cpu_medium, .workspace = malloc(bytes), .workspace_bytes = bytes};
    td_attention_forward_args forward = {shape, data->q, data->k, data->v, data->out, data->lse};
    td_attention_backward_args backward = {shape,     data->q,    data->k,  data->v,  data->out,
                                           data->lse, data->dout, data->dq, data->dk, data->dv};
    unsigned before = _mm_getcsr();
    CHECK(td_cpu_attention_forward(&context, &forward) == TD_OK);
    CHECK(td_cpu_attention_backward(&context, &backward) == TD_OK);
    CHECK_INT(_mm_getcsr() & FLUSH, before & FLUSH);
    free(context.workspace);
}

static int same(const float *a, const float *b, int64_t n) {
    return memcmp(a, b, (size_t)n * sizeof *a) == 0;
}

static void check_same(const attention_data *a, const attention_data *b, int number,
                       const char *name) {
    int ok = CHECK(same(a->out, b->out, a->n_q)) & CHECK(same(a->lse, b->lse, a->n_lse)) &
             CHECK(same(a->dq, b->dq, a->n_q)) & CHECK(same(a->dk, b->dk, a->n_k)) &
             CHECK(same(a->dv, b->dv, a->n_k));
    if (!ok)
        fprintf(stderr, "    case %d, %s\n", number, name);
}

static void levels_and_threads(void) {
    for (int i = 0; i < N_CASES; i++) {
        attention_data expected = data_random(&CASES[i]);
        enter(&LEVELS[0]);
        run(&expected);
        for (int l = 1; l < N_LEVELS; l++) {
            attention_data data = data_random(&CASES[i]);
            enter(&LEVELS[l]);
            run(&data);
            check_same(&expected, &data, i, LEVELS[l].name);
            data_free(&data);
        }
        data_free(&expected);
    }
}

// Sequence s of `whole` by itself.
static attention_data data_alone(const attention_case *c, int s, const attention_data *whole) {
    attention_case one = *c;
    one.n_sequences = 1;
    one.n_q[0] = c->n_q[s];
    one.n_k[0] = c->n_k[s];
    attention_data data = data_make(&one);
    int64_t q = whole->cu_q[s] * whole->shape.q_stride, k = whole->cu_k[s] * whole->shape.k_stride;
    memcpy(data.q, whole->q + q, (size_t)data.n_q * sizeof(float));
    memcpy(data.dout, whole->dout + q, (size_t)data.n_q * sizeof(float));
    memcpy(data.k, whole->k + k, (size_t)data.n_k * sizeof(float));
    memcpy(data.v, whole->v + k, (size_t)data.n_k * sizeof(float));
    return data;
}

static attention_data part_of(const attention_data *whole, int s) {
    attention_data part = *whole;
    int64_t q = whole->cu_q[s] * whole->shape.q_stride, k = whole->cu_k[s] * whole->shape.k_stride;
    part.out += q;
    part.dq += q;
    part.dk += k;
    part.dv += k;
    part.lse += whole->cu_q[s] * whole->shape.n_heads;
    return part;
}

static void neighbours(void) {
    enter(&LEVELS[0]);
    for (int i = 0; i < N_CASES; i++) {
        attention_data whole = data_random(&CASES[i]);
        run(&whole);
        for (int s = 0; s < CASES[i].n_sequences; s++) {
            attention_data alone = data_alone(&CASES[i], s, &whole);
            run(&alone);
            attention_data part = part_of(&whole, s);
            check_same(&alone, &part, i, "alone");
            data_free(&alone);
        }
        data_free(&whole);
    }
}

static float rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = bits & 0x7f800000 ? (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000 : bits & 0x80000000;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

// Denormal results to zero, as a fused multiply-add under FTZ gives them.
static float flushed(float value) {
    return fabsf(value) < 0x1p-126f ? copysignf(0.0f, value) : value;
}

static float step(float a, float b, float sum) {
    return flushed(fmaf(rounded(a), rounded(b), sum));
}

// first_late: elements 2 i + 1 and 2 i in that order; else ascending.
static float dot(const float *a, const float *b, int64_t n, int first_late) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; i += 2) {
        float second_a = i + 1 < n ? a[i + 1] : 0.0f, second_b = i + 1 < n ? b[i + 1] : 0.0f;
        if (first_late)
            sum = step(a[i], b[i], step(second_a, second_b, sum));
        else
            sum = step(second_a, second_b, step(a[i], b[i], sum));
    }
    return sum;
}

// With one key lse is its score: a sum of one row's products, and exp(0) beside it.
static void one_score(int64_t head_dim, float magnitude, int *told_apart) {
    attention_case c = {1, 1, head_dim, 0, 0.0f, magnitude, 1, {1}, {1}};
    for (int l = 0; l < N_LEVELS; l++) {
        attention_data data = data_random(&c);
        data.shape.scale = 1.0f;
        enter(&LEVELS[l]);
        run(&data);
        float expected = dot(data.q, data.k, head_dim, 1);
        if (!CHECK(data.lse[0] == expected))
            fprintf(stderr, "    head_dim %d, %s: %a, expected %a\n", (int)head_dim, LEVELS[l].name,
                    (double)data.lse[0], (double)expected);
        *told_apart += expected != dot(data.q, data.k, head_dim, 0);
        data_free(&data);
    }
}

static void scores_are_the_sums_of_the_header(void) {
    int told_apart = 0;
    for (int64_t head_dim = 1; head_dim <= 130; head_dim++) {
        one_score(head_dim, 1.0f, &told_apart);
        one_score(head_dim, 0x1p-62f, &told_apart); // products about the smallest normal number
    }
    CHECK(told_apart > N_LEVELS * 100); // else nothing here shows the order within a pair
}

int main(void) {
    TEST(levels_and_threads);
    TEST(neighbours);
    TEST(scores_are_the_sums_of_the_header);
    return test_report();
}
