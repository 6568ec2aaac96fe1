// The linear layer with products in bf16: its numbers are those of operands rounded to bf16 and
// summed in fp32, and its bits are the same on every level of vector instructions, with and without
// the instruction for such products, on any number of threads, with and without room for rounded
// rows.
#include "kernels/cpu/bf16_pairs.h"
#include "kernels/cpu/weights_internal.h"
#include "kernels/ops.h"
#include "test.h"

enum { MOST_TOKENS = 150, MOST_EXTENT = 1400, MOST_RANK = 20, WAYS = 9 };

typedef struct linear_case {
    int64_t tokens, in, out, rank; // rank 0: no LoRA
    td_matrix_format format;
    td_dtype compute;
    int bias, dropout;
    float magnitude; // of x and of an fp32 weight
} linear_case;

// 1,344 is more than one block of a sum; 37 and 45 are odd, and no block begins where a row does.
static const linear_case cases[] = {
    {33, 64, 48, 4, TD_MATRIX_NF4, TD_F32, 1, 0, 1.0f},
    {70, 192, 96, 3, TD_MATRIX_NF4, TD_BF16, 0, 1, 1.0f},
    {129, 1344, 80, 16, TD_MATRIX_NF4, TD_F32, 0, 0, 1.0f},
    {29, 80, 1344, 5, TD_MATRIX_NF4, TD_F32, 0, 0, 1.0f},
    {40, 37, 45, 5, TD_MATRIX_NF4, TD_F32, 1, 0, 1.0f},
    {8, 48, 17, 0, TD_MATRIX_NF4, TD_F32, 0, 0, 1.0f},
    {51, 320, 200, 0, TD_MATRIX_BF16, TD_F32, 0, 0, 1.0f},
    {19, 33, 70, 7, TD_MATRIX_BF16, TD_F32, 0, 0, 1.0f},
    {45, 130, 131, 16, TD_MATRIX_F32, TD_F32, 1, 1, 1.0f},
    {16, 128, 64, 20, TD_MATRIX_F32, TD_F32, 0, 0, 1.0f},
    {20, 64, 48, 0, TD_MATRIX_F32, TD_F32, 0, 0, 3e-19f}, // products and sums about 2^-126
};
enum { CASES = sizeof cases / sizeof cases[0] };

static uint64_t random_state;

static uint32_t random_word(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

// Of several magnitudes; some zero, some too small for bf16 to hold as a normal number.
static float random_value(float scale) {
    uint32_t kind = random_word() % 32;
    float value = ((float)(random_word() % 65536) / 32768.0f - 1.0f) * scale;
    return kind == 0 ? 0.0f : kind == 1 ? value * 1e-38f : kind == 2 ? value * 1e-3f : value;
}

static void fill(float *out, int64_t n, float scale) {
    for (int64_t i = 0; i < n; i++)
        out[i] = random_value(scale);
}

typedef struct buffers {
    float x[MOST_TOKENS * MOST_EXTENT], dy[MOST_TOKENS * MOST_EXTENT];
    float a[MOST_RANK * MOST_EXTENT], b[MOST_RANK * MOST_EXTENT], bias[MOST_EXTENT];
    float absmax[MOST_EXTENT * MOST_EXTENT / TD_NF4_BLOCK];
    float weight[MOST_EXTENT * MOST_EXTENT / 4];
    float values[MOST_EXTENT * MOST_EXTENT / 4]; // what weight stands for
} buffers;

typedef struct results {
    float y[MOST_TOKENS * MOST_EXTENT], xa[MOST_TOKENS * MOST_RANK];
    float dx[MOST_TOKENS * MOST_EXTENT];
    float da[MOST_RANK * MOST_EXTENT], db[MOST_RANK * MOST_EXTENT];
} results;

static buffers in;
static results reference, other;
static _Alignas(64) char workspace[64 << 20];

static td_matrix matrix_of(const linear_case *tested) {
    td_matrix matrix = {.format = tested->format,
                        .rows = tested->out,
                        .cols = tested->in,
                        .data = in.weight,
                        .absmax = in.absmax,
                        .compute = tested->compute};
    return matrix;
}

static void make(const linear_case *tested) {
    int64_t n = tested->in * tested->out;
    float magnitude = tested->magnitude;
    REQUIRE(n <= (int64_t)(sizeof in.weight / sizeof in.weight[0]));
    fill(in.x, tested->tokens * tested->in, magnitude);
    fill(in.dy, tested->tokens * tested->out, 1.0f);
    fill(in.a, tested->rank * tested->in, 0.2f);
    fill(in.b, tested->rank * tested->out, 0.2f);
    fill(in.bias, tested->out, 1.0f);
    for (int64_t i = 0; i < td_nf4_block_count(n); i++)
        in.absmax[i] = 0.02f + (float)(random_word() % 100) * 1e-3f;
    for (int64_t i = 0; i < n; i++)
        in.weight[i] = random_value(0.1f * magnitude);
    if (tested->format == TD_MATRIX_NF4)
        for (int64_t i = 0; i < n; i++)
            ((uint8_t *)in.weight)[i] = (uint8_t)random_word();
    if (tested->format == TD_MATRIX_BF16)
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)in.weight)[i] = td_f32_to_bf16(random_value(0.1f));
    td_matrix matrix = matrix_of(tested);
    td_cpu_dequantize_span(&matrix, 0, n, in.values);
}

static td_op_context context_of(const td_ops *ops, size_t workspace_bytes) {
    return (td_op_context){.ops = ops,
                           .device = td_device_cpu(),
                           .workspace = workspace,
                           .workspace_bytes = workspace_bytes};
}

// 1: no more workspace than the operations cannot do without, none for rounded rows.
static int is_tight;

typedef td_status linear_call(const td_ops *ops, size_t workspace_bytes, const void *args);

static td_status call_forward(const td_ops *ops, size_t workspace_bytes, const void *args) {
    td_op_context context = context_of(ops, workspace_bytes);
    return ops->linear_forward(&context, args);
}

static td_status call_backward(const td_ops *ops, size_t workspace_bytes, const void *args) {
    td_op_context context = context_of(ops, workspace_bytes);
    return ops->linear_backward(&context, args);
}

static td_status call(linear_call *operation, const td_ops *ops, const void *args) {
    size_t enough = sizeof workspace, too_few = 0;
    while (is_tight && enough - too_few > 1) {
        size_t bytes = too_few + (enough - too_few) / 2;
        if (operation(ops, bytes, args) == TD_OK)
            enough = bytes;
        else
            too_few = bytes;
    }
    return operation(ops, enough, args);
}

static void run(const td_ops *ops, const linear_case *tested, results *out) {
    td_matrix matrix = matrix_of(tested);
    td_lora_weights lora = {.a = in.a, .b = in.b, .rank = tested->rank, .scaling = 1.7f};
    if (tested->dropout)
        lora.dropout =
            (td_dropout){.key = 5, .step = 3, .threshold = 1u << 30, .scale = 4.0f / 3.0f};
    memset(out, 0, sizeof *out);
    td_linear_forward_args forward = {.n_tokens = tested->tokens,
                                      .x = in.x,
                                      .weight = &matrix,
                                      .bias = tested->bias ? in.bias : NULL,
                                      .lora = tested->rank ? &lora : NULL,
                                      .xa = out->xa,
                                      .y = out->y};
    REQUIRE(call(call_forward, ops, &forward) == TD_OK);
    td_linear_backward_args backward = {.n_tokens = tested->tokens,
                                        .dy = in.dy,
                                        .x = in.x,
                                        .xa = out->xa,
                                        .weight = &matrix,
                                        .lora = forward.lora,
                                        .dx = out->dx,
                                        .da = out->da,
                                        .db = out->db};
    REQUIRE(call(call_backward, ops, &backward) == TD_OK);
}

// Nearest number with eight significant bits; below 2^-126 zero.
static double rounded(double value) {
    int exponent;
    double fraction = frexp(value, &exponent);
    return fabs(value) < 0x1p-126 ? 0.0 : ldexp(rint(ldexp(fraction, 8)), exponent - 8);
}

typedef struct error_of_sums {
    double error, largest;
} error_of_sums;

static void compare(error_of_sums *worst, double exact, float actual) {
    worst->error = fmax(worst->error, fabs(exact - (double)actual));
    worst->largest = fmax(worst->largest, fabs(exact));
}

static double exact_y(const linear_case *tested, const results *out, int64_t t, int64_t o) {
    double sum = tested->bias ? (double)in.bias[o] : 0.0;
    for (int64_t i = 0; i < tested->in; i++)
        sum += rounded((double)in.x[t * tested->in + i]) *
               rounded((double)in.values[o * tested->in + i]);
    for (int64_t r = 0; r < tested->rank; r++)
        sum += rounded((double)out->xa[t * tested->rank + r]) *
               rounded((double)(1.7f * in.b[o * tested->rank + r]));
    return sum;
}

static double exact_dx(const linear_case *tested, int64_t t, int64_t i) {
    double sum = 0.0;
    for (int64_t o = 0; o < tested->out; o++)
        sum += rounded((double)in.dy[t * tested->out + o]) *
               rounded((double)in.values[o * tested->in + i]);
    return sum;
}

static double exact_db(const linear_case *tested, const results *out, int64_t o, int64_t r) {
    double sum = 0.0;
    for (int64_t t = 0; t < tested->tokens; t++)
        sum += rounded((double)in.dy[t * tested->out + o]) *
               rounded((double)out->xa[t * tested->rank + r]);
    return 1.7 * sum;
}

static void operands_are_rounded_and_sums_are_not(void) {
    for (int c = 0; c < CASES; c++) {
        const linear_case *tested = &cases[c];
        make(tested);
        run(&td_ops_cpu_medium, tested, &reference);
        error_of_sums y = {0}, dx = {0}, db = {0};
        for (int64_t t = 0; t < tested->tokens; t++)
            for (int64_t o = 0; o < tested->out; o++)
                compare(&y, exact_y(tested, &reference, t, o), reference.y[t * tested->out + o]);
        for (int64_t t = 0; tested->rank == 0 && t < tested->tokens; t++)
            for (int64_t i = 0; i < tested->in; i++)
                compare(&dx, exact_dx(tested, t, i), reference.dx[t * tested->in + i]);
        for (int64_t o = 0; o < tested->out; o++)
            for (int64_t r = 0; r < tested->rank; r++)
                compare(&db, exact_db(tested, &reference, o, r),
                        reference.db[o * tested->rank + r]);
        if (tested->magnitude < 1.0f) // flushed sums are no sums of doubles
            continue;
        CHECK_NEAR(y.error, 0.0, 2e-6 * y.largest);
        CHECK_NEAR(dx.error, 0.0, 2e-6 * dx.largest);
        CHECK_NEAR(db.error, 0.0, 2e-6 * db.largest);
        CHECK(y.largest > 0.0);
    }
}

typedef struct way {
    td_cpu_simd_level level;
    int bf16, threads, is_tight;
} way;

static void every_way_gives_the_same_bits(void) {
    static const way ways[WAYS] = {
        {TD_CPU_AVX512, 0, 1, 0}, {TD_CPU_AVX2, 0, 1, 0},   {TD_CPU_SCALAR, 0, 1, 0},
        {TD_CPU_AVX512, 1, 2, 0}, {TD_CPU_AVX512, 1, 3, 0}, {TD_CPU_AVX512, 1, 5, 0},
        {TD_CPU_AVX2, 0, 3, 0},   {TD_CPU_AVX512, 1, 1, 1}, {TD_CPU_AVX2, 0, 2, 1},
    };
    for (int c = 0; c < CASES; c++) {
        make(&cases[c]);
        td_ops_cpu_set_threads(1);
        run(&td_ops_cpu_medium, &cases[c], &reference);
        for (int w = 0; w < WAYS; w++) {
            td_cpu_simd_limit(ways[w].level);
            td_cpu_bf16_allow(ways[w].bf16);
            td_ops_cpu_set_threads(ways[w].threads);
            is_tight = ways[w].is_tight;
            run(&td_ops_cpu_medium, &cases[c], &other);
            CHECK(memcmp(reference.y, other.y, sizeof other.y) == 0);
            CHECK(memcmp(reference.xa, other.xa, sizeof other.xa) == 0);
            CHECK(memcmp(reference.dx, other.dx, sizeof other.dx) == 0);
            CHECK(memcmp(reference.da, other.da, sizeof other.da) == 0);
            CHECK(memcmp(reference.db, other.db, sizeof other.db) == 0);
        }
        td_cpu_simd_limit(TD_CPU_AVX512);
        td_cpu_bf16_allow(1);
        is_tight = 0;
    }
    td_ops_cpu_set_threads(1);
}

// Every kind of number, and counts that fill no vector.
static void rounding_has_one_result(void) {
    enum { N = 37, ROUNDS = 2000 };
    float even[N], odd[N];
    float expected[2][N], actual[2][N];
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < N; i++) {
            uint32_t bits[2] = {random_word() << 1 ^ random_word(),
                                random_word() << 1 ^ random_word()};
            bits[0] = round % 8 == 0 ? bits[0] & 0x80ffffff : bits[0];
            memcpy(&even[i], &bits[0], sizeof *even);
            memcpy(&odd[i], &bits[1], sizeof *odd);
        }
        int64_t n = round % N + 1;
        for (int level = 0; level < 3; level++) {
            float(*out)[N] = level == 0 ? expected : actual;
            td_cpu_simd_limit(level == 0   ? TD_CPU_SCALAR
                              : level == 1 ? TD_CPU_AVX2
                                           : TD_CPU_AVX512);
            td_bf16_interleave(even, odd, n, out[0]);
            td_bf16_pair_up(even, n, out[1]);
            CHECK(memcmp(out[0], expected[0], (size_t)n * sizeof **out) == 0);
            CHECK(memcmp(out[1], expected[1], (size_t)td_bf16_words(n) * sizeof **out) == 0);
        }
        for (int64_t i = 0; i < n; i++) {
            uint16_t first;
            memcpy(&first, &expected[0][i], sizeof first);
            if (isfinite(even[i]) && fabsf(even[i]) < 3.3e38f)
                CHECK((double)td_bf16_to_f32(first) == rounded((double)even[i]));
        }
    }
}

int main(void) {
    random_state = 1;
    printf("bf16 products: %s\n", td_cpu_has_bf16() ? "by the processor" : "emulated");
    td_ops_cpu_set_threads(1);
    TEST(rounding_has_one_result);
    TEST(operands_are_rounded_and_sums_are_not);
    TEST(every_way_gives_the_same_bits);
    return test_report();
}
