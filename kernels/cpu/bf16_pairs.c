// Rounding operands of products to bf16, in pairs.
#include "kernels/cpu/bf16_pairs.h"

#include <string.h>

static uint32_t round_one(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7f800000) == 0)
        return bits >> 31 << 15;
    if (value != value)
        return (bits | 0x400000) >> 16;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// In the high half of each lane.
TD_TARGET_AVX2 static inline __m256i round_avx2(__m256 value) {
    __m256i bits = _mm256_castps_si256(value);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    __m256i exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f800000));
    __m256i tiny = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
    __m256i sign = _mm256_and_si256(bits, _mm256_set1_epi32((int)0x80000000u));
    up = _mm256_blendv_epi8(_mm256_blendv_epi8(up, quiet, nan), sign, tiny);
    return _mm256_and_si256(up, _mm256_set1_epi32((int)0xffff0000u));
}

TD_TARGET_AVX2 static inline __m256i join_avx2(__m256 even, __m256 odd) {
    return _mm256_or_si256(_mm256_srli_epi32(round_avx2(even), 16), round_avx2(odd));
}

static void put_word(float *out, uint32_t first, uint32_t second) {
    uint32_t word = second << 16 | first;
    memcpy(out, &word, sizeof word);
}

static void interleave_scalar(const float *even, const float *odd, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++)
        put_word(out + i, round_one(even[i]), round_one(odd[i]));
}

TD_TARGET_AVX2 static void interleave_avx2(const float *even, const float *odd, int64_t n,
                                           float *out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_si256((__m256i *)(out + i),
                            join_avx2(_mm256_loadu_ps(even + i), _mm256_loadu_ps(odd + i)));
    interleave_scalar(even + i, odd + i, n - i, out + i);
}

TD_TARGET_BF16 static void interleave_bf16(const float *even, const float *odd, int64_t n,
                                           float *out) {
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 live = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : (__mmask16)0xffff;
        __m512 low = _mm512_maskz_loadu_ps(live, even + i);
        __m512 high = _mm512_maskz_loadu_ps(live, odd + i);
        _mm512_mask_storeu_epi32(out + i, live, td_bf16_interleave_bf16(low, high));
    }
}

void td_bf16_interleave(const float *even, const float *odd, int64_t n, float *out) {
    if (td_cpu_has_bf16())
        interleave_bf16(even, odd, n, out);
    else if (td_cpu_simd() >= TD_CPU_AVX2)
        interleave_avx2(even, odd, n, out);
    else
        interleave_scalar(even, odd, n, out);
}

static void pair_up_scalar(const float *in, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += 2)
        put_word(out + i / 2, round_one(in[i]), i + 1 < n ? round_one(in[i + 1]) : 0);
}

TD_TARGET_AVX2 static void pair_up_avx2(const float *in, int64_t n, float *out) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256i low = round_avx2(_mm256_loadu_ps(in + i));
        __m256i high = round_avx2(_mm256_loadu_ps(in + i + 8));
        __m256i both = _mm256_packus_epi32(_mm256_srli_epi32(low, 16), _mm256_srli_epi32(high, 16));
        _mm256_storeu_si256((__m256i *)(out + i / 2), _mm256_permute4x64_epi64(both, 0xd8));
    }
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
