// What the CPU backend promises below the operations: exp, dropout masks, the dynamic maps and NF4
// codes are the same at every vector width.
#include "kernels/cpu/vector_math.h"
#include "kernels/cpu/weights_internal.h"
#include "kernels/dynamic_map.h"
#include "kernels/ops.h"
#include "kernels/register_peak.h"
#include "test.h"

enum { LANES = 16, ARGUMENTS = 1 << 18 };

static td_cpu_simd_level best;

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

TD_TARGET_AVX2 static void exp_with_avx2(const float *x, float *out) {
    for (int i = 0; i < LANES; i += 8)
        _mm256_storeu_ps(out + i, td_exp_avx2(_mm256_loadu_ps(x + i)));
}

TD_TARGET_AVX512 static void exp_with_avx512(const float *x, float *out) {
    _mm512_storeu_ps(out, td_exp_avx512(_mm512_loadu_ps(x)));
}

static void exp_with(td_cpu_simd_level level, const float *x, float *out) {
    if (level == TD_CPU_AVX512)
        exp_with_avx512(x, out);
    else if (level == TD_CPU_AVX2)
        exp_with_avx2(x, out);
    else
        for (int i = 0; i < LANES; i++)
            out[i] = td_exp_scalar(x[i]);
}

// Error in units of the last place, where the exact result is a normal number.
static double error_of(float x, float actual) {
    double exact = exp((double)x);
    if (!(exact > 1.2e-38 && exact < 3.4e38))
        return 0.0;
    return fabs((double)actual - exact) / ldexp(1.0, ilogb(exact) - 23);
}

// Numbers of every sign and exponent, infinities and NaN among them.
static void exp_is_accurate_and_has_one_result(void) {
    double worst = 0.0;
    for (uint32_t block = 0; block < ARGUMENTS / LANES; block++) {
        float x[LANES], expected[LANES], actual[LANES];
        for (uint32_t i = 0; i < LANES; i++)
            x[i] = float_of((block * LANES + i) * (0xffffffffu / ARGUMENTS));
        exp_with(TD_CPU_SCALAR, x, expected);
        for (int level = TD_CPU_AVX2; level <= (int)best; level++) {
            exp_with((td_cpu_simd_level)level, x, actual);
            for (int i = 0; i < LANES; i++)
                CHECK(memcmp(&actual[i], &expected[i], sizeof(float)) == 0 || isnan(x[i]));
        }
        for (int i = 0; i < LANES; i++)
            worst = fmax(worst, error_of(x[i], expected[i]));
    }
    CHECK(worst > 0.0);
    CHECK_NEAR(worst, 0.0, 1.1);
}

static void exp_at_the_edges(void) {
    const float x[LANES] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 88.8f, 200.0f, -104.0f, -1e30f};
    for (int level = TD_CPU_SCALAR; level <= (int)best; level++) {
        float out[LANES];
        exp_with((td_cpu_simd_level)level, x, out);
        CHECK(out[0] == 1.0f && out[1] == 1.0f);
        CHECK(isinf(out[2]) && out[3] == 0.0f && isnan(out[4]));
        CHECK(isinf(out[5]) && isinf(out[6]));
        CHECK(out[7] >= 0.0f && out[7] < 2e-45f && out[8] == 0.0f);
    }
}

static td_dropout dropout_of(double p) {
    return (td_dropout){.key = 0x123456789abcdef0u,
                        .step = 0xfffffff0u,
                        .micro_batch = 7,
                        .module = 0x80000001u,
                        .threshold = (uint32_t)(p * 0x1p32),
                        .scale = 1.25f};
}

static void check_mask(const td_dropout *dropout, uint64_t first, int64_t n) {
    enum { WORDS = 16 };
    uint64_t mask[WORDS + 1];
    mask[(n + 63) / 64] = 0x5a5a5a5a5a5a5a5au;
    td_cpu_dropout_mask(dropout, first, n, mask);
    for (int64_t i = 0; i < n; i++)
        CHECK_INT(mask[i / 64] >> (i % 64) & 1, td_dropout_keep(dropout, first + (uint64_t)i));
    CHECK(mask[(n + 63) / 64] == 0x5a5a5a5a5a5a5a5au);
}

static void masks_are_those_of_the_header(void) {
    static const double rates[] = {0.05, 0.5, 0.999};
    for (int level = TD_CPU_SCALAR; level <= (int)best; level++) {
        td_cpu_simd_limit((td_cpu_simd_level)level);
        for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
            td_dropout dropout = dropout_of(rates[i]);
            check_mask(&dropout, 0, 64);
            check_mask(&dropout, 4, 1);
            check_mask(&dropout, 1000, 650);
            check_mask(&dropout, (uint64_t)0xffffffffu * 4 - 128, 200); // the counter's word wraps
        }
    }
    td_cpu_simd_limit(TD_CPU_AVX512);
}

static void masks_keep_the_given_share(void) {
    enum { N = 1 << 20 };
    static uint64_t mask[N / 64];
    td_dropout dropout = dropout_of(0.3);
    td_cpu_dropout_mask(&dropout, 0, N, mask);
    int64_t kept = 0;
    for (int i = 0; i < N / 64; i++)
        kept += __builtin_popcountll(mask[i]);
    CHECK_NEAR((double)kept / N, 0.7, 0.002); // four standard deviations
}

static void dropout_scales_or_clears(void) {
    enum { N = 77 };
    float x[N], out[N], sum[N];
    uint64_t mask[2] = {0xf0f1f2f3f4f5f6f7u, 0x123456789abcdef1u};
    for (int level = TD_CPU_SCALAR; level <= (int)best; level++) {
        td_cpu_simd_limit((td_cpu_simd_level)level);
        for (int i = 0; i < N; i++) {
            x[i] = i == 3 ? NAN : (float)i - 30.5f; // element 3 is dropped
            sum[i] = (float)i;
        }
        td_cpu_dropout_apply(mask, N, 1.25f, x, out);
        td_cpu_dropout_accumulate(mask, N, 1.25f, x, sum);
        for (int i = 0; i < N; i++) {
            float expected = mask[i / 64] >> (i % 64) & 1 ? 1.25f * x[i] : 0.0f;
            CHECK_NEAR(out[i], expected, 0.0);
            CHECK_NEAR(sum[i], (float)i + expected, 0.0);
        }
    }
    td_cpu_simd_limit(TD_CPU_AVX512);
}

static void maps_are_ascending_and_whole(void) {
    float map[256];
    td_dynamic_map_signed(map);
    CHECK(map[0] < -0.99f && map[127] == 0.0f && map[255] == 1.0f);
    for (int i = 0; i < 126; i++) // all but 1 and 0 have a negative twin
        CHECK_NEAR(map[i], -map[254 - i], 0.0);
    for (int i = 0; i < 255; i++)
        CHECK(map[i] < map[i + 1]);
    td_dynamic_map_unsigned(map);
    CHECK(map[0] == 0.0f && map[255] == 1.0f);
    for (int i = 0; i < 255; i++)
        CHECK(map[i] < map[i + 1]);
}

// Exhaustive search by distance in exact arithmetic: fp32 differences of the map are exact enough
// in double.
static int nearest(const float *map, float x) {
    int best_code = 0;
    for (int code = 1; code < 256; code++)
        if (fabs((double)x - (double)map[code]) < fabs((double)x - (double)map[best_code]))
            best_code = code;
    return best_code;
}

static void nearest_code_and_ties(void) {
    float map[256], midpoints[256];
    td_dynamic_map_signed(map);
    td_dynamic_map_midpoints(map, midpoints);
    for (int i = 0; i < 256; i++)
        CHECK_INT(td_dynamic_map_nearest(midpoints, map[i]), i);
    for (uint32_t i = 0; i < 5000; i++) {
        float x = 2.2f * td_rng_uniform(td_rng_word(1, 0, 0, i)) - 1.1f;
        CHECK_INT(td_dynamic_map_nearest(midpoints, x), nearest(map, x));
    }
    for (int i = 0; i < 255; i++) {
        int even = i % 2 ? i + 1 : i;
        CHECK_INT(td_dynamic_map_nearest(midpoints, midpoints[i]), even);
    }
    CHECK_INT(td_dynamic_map_nearest(midpoints, NAN), 0);
    CHECK_INT(td_dynamic_map_nearest(midpoints, INFINITY), 255);
    CHECK_INT(td_dynamic_map_nearest(midpoints, -INFINITY), 0);
}

static void registers_have_a_peak_where_there_is_an_instruction(void) {
    CHECK((td_cpu_register_peak(TD_F32) > 1e9) == (best >= TD_CPU_AVX2));
    CHECK((td_cpu_register_peak(TD_BF16) > 1e9) == td_cpu_has_bf16());
    td_cpu_bf16_allow(0);
    CHECK(td_cpu_register_peak(TD_BF16) <= 0);
    td_cpu_bf16_allow(1);
    td_cpu_simd_limit(TD_CPU_SCALAR);
    CHECK(td_cpu_register_peak(TD_F32) <= 0);
    td_cpu_simd_limit(TD_CPU_AVX512);
}

enum { NF4_BLOCKS = 37, NF4_NUMBERS = NF4_BLOCKS * TD_NF4_BLOCK };

// Blocks with this absmax, and with every BF16 number down to 2^-9 of it, of both signs.
static void numbers_below(uint16_t absmax, uint16_t out[NF4_NUMBERS]) {
    int below = 0;
    for (int i = 0; i < NF4_NUMBERS; i++) {
        int magnitude = i % TD_NF4_BLOCK == 0 ? absmax : absmax - below++ / 2;
        out[i] = (uint16_t)((magnitude > 0 ? magnitude : 0) | (below % 2) << 15);
    }
}

static void check_nf4(uint16_t largest) {
    uint16_t bits[NF4_NUMBERS];
    float wide[NF4_NUMBERS], absmax[2][NF4_BLOCKS];
    uint8_t codes[2][NF4_NUMBERS / 2];
    numbers_below(largest, bits);
    for (int i = 0; i < NF4_NUMBERS; i++)
        wide[i] = td_bf16_to_f32(bits[i]);
    td_nf4_quantize_args expected = {NF4_NUMBERS, wide, codes[0], absmax[0], TD_F32};
    td_nf4_quantize_args found = {NF4_NUMBERS, bits, codes[1], absmax[1], TD_BF16};
    td_cpu_simd_limit(TD_CPU_SCALAR);
    REQUIRE(td_ops_cpu.nf4_quantize(&(td_op_context){0}, &expected) == TD_OK);
    for (int level = TD_CPU_SCALAR; level <= (int)best; level++) {
        td_cpu_simd_limit((td_cpu_simd_level)level);
        REQUIRE(td_ops_cpu.nf4_quantize(&(td_op_context){0}, &found) == TD_OK);
        CHECK(memcmp(codes[0], codes[1], sizeof *codes) == 0);
        CHECK(memcmp(absmax[0], absmax[1], sizeof *absmax) == 0);
    }
    td_cpu_simd_limit(TD_CPU_AVX512);
}

// From subnormal blocks to infinite ones, and what is no number.
static void nf4_codes_of_bf16_are_those_of_fp32(void) {
    static const int exponents[] = {0, 1, 26, 27, 110, 127, 200, 224, 225, 254, 255};
    for (size_t i = 0; i < sizeof exponents / sizeof *exponents; i++)
        for (int mantissa = 0; mantissa < 128; mantissa++)
            check_nf4((uint16_t)(exponents[i] << 7 | mantissa));
}

int main(void) {
    best = td_cpu_simd();
    TEST(exp_is_accurate_and_has_one_result);
    TEST(exp_at_the_edges);
    TEST(masks_are_those_of_the_header);
    TEST(masks_keep_the_given_share);
    TEST(dropout_scales_or_clears);
    TEST(registers_have_a_peak_where_there_is_an_instruction);
    TEST(maps_are_ascending_and_whole);
    TEST(nearest_code_and_ties);
    TEST(nf4_codes_of_bf16_are_those_of_fp32);
    return test_report();
}
