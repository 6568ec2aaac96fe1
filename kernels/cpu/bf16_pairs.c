// Rounding operands of products to bf16, in pairs.
#include "kernels/cpu/bf16_pairs.h"

static void put_word(float *out, float first, float second) {
    uint32_t word = td_pairs_rounded_scalar(first) >> 16 | td_pairs_rounded_scalar(second);
    memcpy(out, &word, sizeof word);
}

static void interleave_scalar(const float *first, const float *second, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++)
        put_word(out + i, first[i], second[i]);
}

TD_TARGET_AVX2 static void interleave_avx2(const float *first, const float *second, int64_t n,
                                           float *out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(
            out + i, td_pairs_join8_avx2(_mm256_loadu_ps(first + i), _mm256_loadu_ps(second + i)));
    interleave_scalar(first + i, second + i, n - i, out + i);
}

TD_TARGET_BF16 static void interleave_bf16(const float *first, const float *second, int64_t n,
                                           float *out) {
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 live = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : (__mmask16)0xffff;
        td_lanes_avx512 low = {_mm512_maskz_loadu_ps(live, first + i)};
        td_lanes_avx512 high = {_mm512_maskz_loadu_ps(live, second + i)};
        td_lanes_avx512 words = td_pairs_join_native(low, high);
        _mm512_mask_storeu_ps(out + i, live, words.all);
    }
}

void td_bf16_interleave(const float *first, const float *second, int64_t n, float *out) {
    if (td_cpu_has_bf16())
        interleave_bf16(first, second, n, out);
    else if (td_cpu_simd() >= TD_CPU_AVX2)
        interleave_avx2(first, second, n, out);
    else
        interleave_scalar(first, second, n, out);
}

static void pair_up_scalar(const float *in, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += 2)
        put_word(out + i / 2, in[i], i + 1 < n ? in[i + 1] : 0.0f);
}

TD_TARGET_AVX2 static void pair_up_avx2(const float *in, int64_t n, float *out) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        td_pairs_store_avx2(out + i / 2, td_lanes_load_avx2(in + i));
    pair_up_scalar(in + i, n - i, out + i / 2);
}

TD_TARGET_BF16 static void pair_up_bf16(const float *in, int64_t n, float *out) {
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(out + i / 2, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(in + i + 16),
                                                                      _mm512_loadu_ps(in + i)));
    for (; i < n; i += 16) {
        __mmask16 live = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : (__mmask16)0xffff;
        __m512 rest = _mm512_maskz_loadu_ps(live, in + i);
        __mmask8 words = (__mmask8)((1u << ((n - i < 16 ? n - i + 1 : 16) / 2)) - 1);
        _mm256_mask_storeu_epi32(out + i / 2, words, (__m256i)_mm512_cvtneps_pbh(rest));
    }
}

void td_bf16_pair_up(const float *in, int64_t n, float *out) {
    if (td_cpu_has_bf16())
        pair_up_bf16(in, n, out);
    else if (td_cpu_simd() >= TD_CPU_AVX2)
        pair_up_avx2(in, n, out);
    else
        pair_up_scalar(in, n, out);
}
