// NF4 quantization as bitsandbytes does it (Dettmers et al., NeurIPS 2023, "QLoRA"), and double
// quantization of the block scales. The same bits at every vector width.
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/absmax_mean.h"
#include "kernels/cpu/cpu_internal.h"
#include "kernels/dynamic_map.h"

// The code of x is the number of thresholds strictly below it. The last one is out of reach: a
// search of 16 needs no end check.
static const float threshold[16] = {
    -0.8480964004993439f,  -0.6106329262256622f,  -0.4599952697753906f,   -0.33967943489551544f,
    -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
    0.1202552504837513f,   0.2035212516784668f,   0.2920137718319893f,    0.3893125355243683f,
    0.5016634166240692f,   0.6427869200706482f,   0.8614784178118011f,    INFINITY,
};

// A block of zeros is kept at zero, code 7.
static inline float inverse_of(float absmax) {
    return absmax > 0.0f ? 1.0f / absmax : 0.0f;
}

// BF16 comes from mapped files too and may lie anywhere.
static inline float weight_at(const td_nf4_quantize_args *args, int64_t i) {
    uint16_t bits;
    if (args->weight_dtype == TD_F32)
        return ((const float *)args->weight)[i];
    memcpy(&bits, (const unsigned char *)args->weight + 2 * i, sizeof bits);
    return td_bf16_to_f32(bits);
}

static inline uint8_t code_of(float x) {
    int code = 0;
    for (int step = 8; step > 0; step >>= 1)
        code += x > threshold[code + step - 1] ? step : 0;
    return (uint8_t)code;
}

static float quantize_scalar(const td_nf4_quantize_args *args, int64_t begin, int64_t n) {
    float absmax = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float magnitude = fabsf(weight_at(args, begin + i));
        absmax = magnitude > absmax ? magnitude : absmax;
    }
    float inverse = inverse_of(absmax);
    uint8_t *codes = args->codes + begin / 2;
    for (int64_t i = 0; i < n; i += 2) {
        uint8_t first = code_of(weight_at(args, begin + i) * inverse);
        uint8_t second = i + 1 < n ? code_of(weight_at(args, begin + i + 1) * inverse) : 7;
        codes[i / 2] = (uint8_t)(first << 4 | second);
    }
    return absmax;
}

TD_TARGET_AVX2 static inline __m256 load_avx2(const td_nf4_quantize_args *args, int64_t i) {
    if (args->weight_dtype == TD_F32)
        return _mm256_loadu_ps((const float *)args->weight + i);
    const unsigned char *from = (const unsigned char *)args->weight + 2 * i;
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

// Codes of 8 elements, one per 32-bit lane, counted down from zero by comparison masks.
TD_TARGET_AVX2 static inline __m256i codes_avx2(__m256 x) {
    __m256i code = _mm256_setzero_si256();
    for (int i = 0; i < 15; i++) {
        __m256 above = _mm256_cmp_ps(x, _mm256_set1_ps(threshold[i]), _CMP_GT_OQ);
        code = _mm256_sub_epi32(code, _mm256_castps_si256(above));
    }
    return code;
}

// Sixteen elements a step: their codes become bytes in order, then pairs of bytes become one.
TD_TARGET_AVX2 static float quantize_block_avx2(const td_nf4_quantize_args *args, int64_t begin) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 largest = _mm256_setzero_ps();
    for (int i = 0; i < TD_NF4_BLOCK; i += 8)
        largest = _mm256_max_ps(_mm256_and_ps(load_avx2(args, begin + i), magnitude), largest);
    float lanes[8], absmax = 0.0f;
    _mm256_storeu_ps(lanes, largest);
    for (int i = 0; i < 8; i++)
        absmax = lanes[i] > absmax ? lanes[i] : absmax;
    __m256 inverse = _mm256_set1_ps(inverse_of(absmax));
    for (int i = 0; i < TD_NF4_BLOCK; i += 16) {
        __m256i a = codes_avx2(_mm256_mul_ps(load_avx2(args, begin + i), inverse));
        __m256i b = codes_avx2(_mm256_mul_ps(load_avx2(args, begin + i + 8), inverse));
        __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xD8);
        __m128i bytes =
            _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        __m128i pairs = _mm_maddubs_epi16(bytes, _mm_set1_epi16(0x0110));
        _mm_storel_epi64((__m128i *)(args->codes + (begin + i) / 2),
                         _mm_packus_epi16(pairs, pairs));
    }
    return absmax;
}

TD_TARGET_AVX512 static inline __m512 load_avx512(const td_nf4_quantize_args *args, int64_t i) {
    if (args->weight_dtype == TD_F32)
        return _mm512_loadu_ps((const float *)args->weight + i);
    const unsigned char *from = (const unsigned char *)args->weight + 2 * i;
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

// A binary search of the thresholds in a register.
TD_TARGET_AVX512 static inline __m128i codes_avx512(__m512 x) {
    const __m512 table = _mm512_loadu_ps(threshold);
    __m512i code = _mm512_setzero_si512();
    for (int step = 8; step > 0; step >>= 1) {
        __m512i probe = _mm512_add_epi32(code, _mm512_set1_epi32(step - 1));
        __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_permutexvar_ps(probe, table), _CMP_GT_OQ);
        code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
    }
    return _mm512_cvtepi32_epi8(code);
}

TD_TARGET_AVX512 static float quantize_block_avx512(const td_nf4_quantize_args *args,
                                                    int64_t begin) {
    __m512 weight[TD_NF4_BLOCK / 16], largest = _mm512_setzero_ps();
    for (int i = 0; i < TD_NF4_BLOCK / 16; i++) {
        weight[i] = load_avx512(args, begin + 16 * i);
        largest = _mm512_max_ps(_mm512_abs_ps(weight[i]), largest);
    }
    float absmax = _mm512_reduce_max_ps(largest);
    __m512 inverse = _mm512_set1_ps(inverse_of(absmax));
    for (int i = 0; i < TD_NF4_BLOCK / 16; i++) {
        __m128i bytes = codes_avx512(_mm512_mul_ps(weight[i], inverse));
        __m128i pairs = _mm_maddubs_epi16(bytes, _mm_set1_epi16(0x0110));
        _mm_storel_epi64((__m128i *)(args->codes + begin / 2 + 8 * i),
                         _mm_packus_epi16(pairs, pairs));
    }
    return absmax;
}

// BF16 bits as signed integers in the order of their values; its own inverse.
TD_TARGET_AVX512 static inline __m512i order_words(__m512i bits) {
    __m512i sign = _mm512_srai_epi16(bits, 15);
    return _mm512_xor_si512(bits, _mm512_and_si512(sign, _mm512_set1_epi16(0x7fff)));
}

TD_TARGET_AVX512 static inline __m512i order_floats(__m512i bits) {
    __m512i sign = _mm512_srai_epi32(bits, 31);
    return _mm512_xor_si512(bits, _mm512_and_si512(sign, _mm512_set1_epi32(0x7fffffff)));
}

// For each threshold the largest BF16 number, ordered, whose product with `inverse` is not above
// it. That is threshold * absmax but for a few roundings of fp32: the number below what is surely
// not less, or the one before.
TD_TARGET_AVX512 static inline __m512i bounds_avx512(float absmax, float inverse) {
    const __m512i top = _mm512_set1_epi32((int)0xffff0000u);
    const __m512 limit = _mm512_loadu_ps(threshold);
    __m512i above = order_floats(_mm512_castps_si512(_mm512_mul_ps(limit, _mm512_set1_ps(absmax))));
    __m512i bound = _mm512_srai_epi32(_mm512_add_epi32(above, _mm512_set1_epi32(8)), 16);
    __m512i bits = _mm512_and_si512(order_floats(_mm512_slli_epi32(bound, 16)), top);
    __m512 product = _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(inverse));
    __mmask16 exceeds = _mm512_cmp_ps_mask(product, limit, _CMP_GT_OQ);
    return _mm512_mask_sub_epi32(bound, exceeds, bound, _mm512_set1_epi32(1));
}

// What four steps of a binary search compare with, by the code so far.
typedef struct search_tables {
    __m512i eighth, fourth, second, first;
} search_tables;

TD_TARGET_AVX512 static inline search_tables tables_avx512(float absmax, float inverse) {
    __m512i words = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(bounds_avx512(absmax, inverse)));
    __m512i code = _mm512_setr_epi32(0x00010000, 0x00030002, 0x00050004, 0x00070006, 0x00090008,
                                     0x000b000a, 0x000d000c, 0x000f000e, 0, 0, 0, 0, 0, 0, 0, 0);
    return (search_tables){
        .eighth = _mm512_permutexvar_epi16(_mm512_set1_epi16(7), words),
        .fourth = _mm512_permutexvar_epi16(_mm512_add_epi16(code, _mm512_set1_epi16(3)), words),
        .second = _mm512_permutexvar_epi16(_mm512_add_epi16(code, _mm512_set1_epi16(1)), words),
        .first = words};
}

// Codes of 32 numbers, one per 16-bit lane.
TD_TARGET_AVX512 static inline __m512i search_avx512(const search_tables *tables, __m512i bits) {
    __m512i x = order_words(bits);
    __m512i code = _mm512_maskz_set1_epi16(_mm512_cmpgt_epi16_mask(x, tables->eighth), 8);
    __m512i middle = _mm512_permutexvar_epi16(code, tables->fourth);
    code =
        _mm512_mask_add_epi16(code, _mm512_cmpgt_epi16_mask(x, middle), code, _mm512_set1_epi16(4));
    middle = _mm512_permutexvar_epi16(code, tables->second);
    code =
        _mm512_mask_add_epi16(code, _mm512_cmpgt_epi16_mask(x, middle), code, _mm512_set1_epi16(2));
    middle = _mm512_permutexvar_epi16(code, tables->first);
    return _mm512_mask_add_epi16(code, _mm512_cmpgt_epi16_mask(x, middle), code,
                                 _mm512_set1_epi16(1));
}

TD_TARGET_AVX512 static inline __m128i pack_avx512(__m512i codes) {
    __m512i pairs = _mm512_or_si512(_mm512_slli_epi32(codes, 4), _mm512_srli_epi32(codes, 16));
    return _mm512_cvtepi32_epi8(pairs);
}

TD_TARGET_AVX512 static inline uint16_t largest_word(__m512i words) {
    __m256i half =
        _mm256_max_epu16(_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64(words, 1));
    __m128i left = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    __m128i least = _mm_minpos_epu16(_mm_xor_si128(left, _mm_set1_epi16(-1)));
    return (uint16_t)~_mm_extract_epi16(least, 0);
}

// BF16 are compared as 16-bit integers, with thresholds scaled to the block. Not where scaling
// would leave the range of fp32: there, and with what is no number, they are compared as fp32.
TD_TARGET_AVX512 static float quantize_block_bf16(const td_nf4_quantize_args *args, int64_t begin) {
    enum { SMALLEST = 0x0d80, BEYOND = 0x7080 }; // 2^-100 and 2^98
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    const unsigned char *from = (const unsigned char *)args->weight + 2 * begin;
    __m512i low = _mm512_loadu_si512(from), high = _mm512_loadu_si512(from + 64);
    uint16_t largest = largest_word(
        _mm512_max_epu16(_mm512_and_si512(low, magnitude), _mm512_and_si512(high, magnitude)));
    if (largest < SMALLEST || largest >= BEYOND)
        return quantize_block_avx512(args, begin);
    float absmax = td_bf16_to_f32(largest);
    search_tables tables = tables_avx512(absmax, inverse_of(absmax));
    __m128i *codes = (__m128i *)(args->codes + begin / 2);
    _mm_storeu_si128(codes, pack_avx512(search_avx512(&tables, low)));
    _mm_storeu_si128(codes + 1, pack_avx512(search_avx512(&tables, high)));
    return absmax;
}

static float quantize_block(const td_nf4_quantize_args *args, int64_t begin, int64_t n) {
    td_cpu_simd_level level = n == TD_NF4_BLOCK ? td_cpu_simd() : TD_CPU_SCALAR;
    switch (level) {
    case TD_CPU_AVX512:
        return args->weight_dtype == TD_BF16 ? quantize_block_bf16(args, begin)
                                             : quantize_block_avx512(args, begin);
    case TD_CPU_AVX2:
        return quantize_block_avx2(args, begin);
    case TD_CPU_SCALAR:
        break;
    }
    return quantize_scalar(args, begin, n);
}

td_status td_cpu_nf4_quantize(const td_op_context *context, const td_nf4_quantize_args *args) {
    (void)context;
    int64_t blocks = td_nf4_block_count(args->n_elements);
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (args->n_elements > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t begin = block * TD_NF4_BLOCK, left = args->n_elements - begin;
        args->absmax[block] =
            quantize_block(args, begin, left < TD_NF4_BLOCK ? left : TD_NF4_BLOCK);
    }
    return TD_OK;
}

static void nested_codes_scalar(const float *values, int64_t n, float offset, float inverse,
                                const float *midpoints, uint8_t *codes) {
    for (int64_t i = 0; i < n; i++)
        codes[i] = td_dynamic_map_nearest(midpoints, (values[i] - offset) * inverse);
}

// td_dynamic_map_nearest() of sixteen numbers: the first four of its eight steps look among every
// sixteenth midpoint, which one register holds.
TD_TARGET_AVX512 static void nested_codes_avx512(const float *values, int64_t n, float offset,
                                                 float inverse, const float *midpoints,
                                                 uint8_t *codes) {
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i every =
        _mm512_setr_epi32(15, 31, 47, 63, 79, 95, 111, 127, 143, 159, 175, 191, 207, 223, 239, 255);
    const __m512 coarse = _mm512_i32gather_ps(every, midpoints, 4);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 inside = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : 0xffff;
        __m512 x = _mm512_maskz_loadu_ps(inside, values + i);
        x = _mm512_mul_ps(_mm512_sub_ps(x, _mm512_set1_ps(offset)), _mm512_set1_ps(inverse));
        __m512i code = _mm512_setzero_si512();
        for (int step = 8; step > 0; step >>= 1) {
            __m512i probe = _mm512_add_epi32(code, _mm512_set1_epi32(step - 1));
            __m512 middle = _mm512_permutexvar_ps(probe, coarse);
            __mmask16 above = _mm512_cmp_ps_mask(x, middle, _CMP_GT_OQ);
            code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
        }
        code = _mm512_slli_epi32(code, 4);
        for (int step = 8; step > 0; step >>= 1) {
            __m512i probe = _mm512_add_epi32(code, _mm512_set1_epi32(step - 1));
            __m512 middle = _mm512_i32gather_ps(probe, midpoints, 4);
            __mmask16 above = _mm512_cmp_ps_mask(x, middle, _CMP_GT_OQ);
            code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
        }
        __mmask16 tie = _mm512_cmp_ps_mask(x, _mm512_i32gather_ps(code, midpoints, 4), _CMP_EQ_OQ);
        tie &= _mm512_test_epi32_mask(code, one);
        code = _mm512_mask_add_epi32(code, tie, code, one);
        _mm_mask_storeu_epi8(codes + i, inside, _mm512_cvtepi32_epi8(code));
    }
}

static float nested_absmax_scalar(const float *values, int64_t n, float offset) {
    float absmax = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float magnitude = fabsf(values[i] - offset);
        absmax = magnitude > absmax ? magnitude : absmax;
    }
    return absmax;
}

// NaN has no magnitude: the second operand is the maximum then.
TD_TARGET_AVX512 static float nested_absmax_avx512(const float *values, int64_t n, float offset) {
    __m512 largest = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 inside = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : 0xffff;
        __m512 x = _mm512_sub_ps(_mm512_maskz_loadu_ps(inside, values + i), _mm512_set1_ps(offset));
        largest = _mm512_mask_max_ps(largest, inside, _mm512_abs_ps(x), largest);
    }
    return _mm512_reduce_max_ps(largest);
}

// One nested block: codes of values[i] - offset, returns their largest magnitude.
static float quantize_nested(const float *values, int64_t n, float offset, const float *midpoints,
                             uint8_t *codes) {
    int is_wide = td_cpu_simd() == TD_CPU_AVX512;
    float absmax =
        is_wide ? nested_absmax_avx512(values, n, offset) : nested_absmax_scalar(values, n, offset);
    if (!(absmax > 0.0f))
        memset(codes, 0, (size_t)n);
    else if (is_wide)
        nested_codes_avx512(values, n, offset, 1.0f / absmax, midpoints, codes);
    else
        nested_codes_scalar(values, n, offset, 1.0f / absmax, midpoints, codes);
    return absmax;
}

// Folds each group of `width` sums into one; returns how many are left.
static int fold(double *sums, int n, int width) {
    for (int group = 0; group < n / width; group++) {
        double *x = sums + group * width;
        for (int half = width / 2; half > 0; half /= 2)
            for (int i = 0; i < half; i++)
                x[i] += x[i + half];
        sums[group] = x[0];
    }
    return n / width;
}

// In the order of absmax_mean.h.
static float mean_of(const float *values, int64_t n) {
    double sums[TD_MEAN_LANES] = {0};
    for (int64_t begin = 0; begin < n; begin += TD_MEAN_LANES) {
        int64_t count = n - begin < TD_MEAN_LANES ? n - begin : TD_MEAN_LANES;
        for (int64_t i = 0; i < count; i++)
            sums[i] += (double)values[begin + i];
    }
    int left = fold(sums, TD_MEAN_LANES, TD_MEAN_WARP);
    left = fold(sums, left, TD_MEAN_WARPS);
    fold(sums, left, TD_MEAN_BLOCKS);
    return (float)(sums[0] / (double)n);
}

td_status td_cpu_absmax_quantize(const td_op_context *context,
                                 const td_absmax_quantize_args *args) {
    (void)context;
    float offset = mean_of(args->absmax, args->n_blocks);
    float map[256], midpoints[256];
    td_dynamic_map_signed(map);
    td_dynamic_map_midpoints(map, midpoints);
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (args->n_blocks > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t begin = 0; begin < args->n_blocks; begin += TD_NF4_NESTED_BLOCK) {
        int64_t left = args->n_blocks - begin;
        args->nested_absmax[begin / TD_NF4_NESTED_BLOCK] = quantize_nested(
            args->absmax + begin, left < TD_NF4_NESTED_BLOCK ? left : TD_NF4_NESTED_BLOCK, offset,
            midpoints, args->codes + begin);
    }
    *args->offset = offset;
    return TD_OK;
}
