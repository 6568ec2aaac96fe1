// Operands of products in bf16, at every level of vector instructions beside lanes.h. A word of 32
// bits holds two neighbours of a sum, the first in its low half; sixteen words travel as lanes,
// whose floats mean nothing then.
//
// Rounding is to nearest even, and numbers below 2^-126 are zero. A word's products are added to a
// sum the second first, each by a fused multiply-add: what VDPBF16PS does, and the levels without
// it do the same under td_bf16_enter(). A product of two bf16 numbers is exact in fp32 but for its
// exponent, which double has room for. Not for other folders.
#ifndef TANDEM_KERNELS_CPU_BF16_PAIRS_H
#define TANDEM_KERNELS_CPU_BF16_PAIRS_H

#include "kernels/cpu/lanes.h"

// Words of n elements.
static inline int64_t td_bf16_words(int64_t n) {
    return (n + 1) / 2;
}

// out[i] = (in[2 i], in[2 i + 1]), past n a zero. At the level of td_cpu_simd(), as the next one.
void td_bf16_pair_up(const float *in, int64_t n, float *out);

// out[i] = (first[i], second[i]) for i < n.
void td_bf16_interleave(const float *first, const float *second, int64_t n, float *out);

// Denormal numbers count as zero between the two, on the calling thread, as VDPBF16PS takes them.
static inline unsigned td_bf16_enter(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | _MM_FLUSH_ZERO_ON | 0x40); // results and operands
    return before;
}

static inline void td_bf16_leave(unsigned before) {
    _mm_setcsr(before);
}

// The native level is AVX-512 in all but these functions.
#define TD_PAIRS_INLINE_scalar TD_LANES_INLINE_scalar
#define TD_PAIRS_INLINE_avx2   TD_LANES_INLINE_avx2
#define TD_PAIRS_INLINE_avx512 TD_LANES_INLINE_avx512
#define TD_PAIRS_INLINE_native TD_TARGET_BF16 static inline __attribute__((always_inline, unused))
#define TD_PAIRS_TARGET_scalar
#define TD_PAIRS_TARGET_avx2   TD_TARGET_AVX2
#define TD_PAIRS_TARGET_avx512 TD_TARGET_AVX512
#define TD_PAIRS_TARGET_native TD_TARGET_BF16

// Words as a product reads them: both halves as fp32, where no instruction takes them together.
typedef struct td_pairs_scalar {
    td_lanes_scalar first, second;
} td_pairs_scalar;

typedef struct td_pairs_avx2 {
    td_lanes_avx2 first, second;
} td_pairs_avx2;

typedef struct td_pairs_avx512 {
    td_lanes_avx512 first, second;
} td_pairs_avx512;

typedef td_lanes_avx512 td_pairs_native;

// Each level has
//   join(first, second)    the words of two rows: lane l holds both numbers of lane l
//   store(words, x)        the eight words of sixteen neighbours
//   round(x)               the lanes as fp32, rounded as in a word
//   split(words)           words as multiply_add reads them
//   multiply_add(a, b, c)  c + a b of both halves
//   fma(a, b, c)           fused at every level, unlike that of lanes.h
//   exp2(x)                2^x, for what is rounded to bf16

// 2^x = 2^n 2^r, n = round(x), |r| <= 1/2; 2^r is a polynomial of least relative error, 1.9e-7 with
// its roundings. From TD_EXP2_LOW down 0, which a flushed result is before.
#define TD_EXP2_LOW  -150.0f
#define TD_EXP2_HIGH 128.0f
#define TD_EXP2_P1   0.693147004f
#define TD_EXP2_P2   0.240222424f
#define TD_EXP2_P3   0.0555073358f
#define TD_EXP2_P4   0.00967151299f
#define TD_EXP2_P5   0.00132647273f

// Scalar

TD_PAIRS_INLINE_scalar uint32_t td_pairs_rounded_scalar(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7f800000) == 0)
        return bits & 0x80000000;
    if ((bits & 0x7fffffff) > 0x7f800000) // stays NaN
        return (bits | 0x400000) & 0xffff0000;
    return (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
}

TD_PAIRS_INLINE_scalar td_lanes_scalar td_pairs_join_scalar(td_lanes_scalar first,
                                                            td_lanes_scalar second) {
    float a[TD_LANES], b[TD_LANES];
    uint32_t words[TD_LANES];
    td_lanes_store_scalar(a, first);
    td_lanes_store_scalar(b, second);
    for (int i = 0; i < TD_LANES; i++)
        words[i] = td_pairs_rounded_scalar(a[i]) >> 16 | td_pairs_rounded_scalar(b[i]);
    td_lanes_scalar joined;
    memcpy(&joined, words, sizeof joined);
    return joined;
}

TD_PAIRS_INLINE_scalar void td_pairs_store_scalar(float *words, td_lanes_scalar x) {
    float value[TD_LANES];
    uint32_t joined[TD_LANES / 2];
    td_lanes_store_scalar(value, x);
    for (int i = 0; i < TD_LANES / 2; i++)
        joined[i] =
            td_pairs_rounded_scalar(value[2 * i]) >> 16 | td_pairs_rounded_scalar(value[2 * i + 1]);
    memcpy(words, joined, sizeof joined);
}

TD_PAIRS_INLINE_scalar td_lanes_scalar td_pairs_round_scalar(td_lanes_scalar x) {
    float value[TD_LANES];
    uint32_t bits[TD_LANES];
    td_lanes_store_scalar(value, x);
    for (int i = 0; i < TD_LANES; i++)
        bits[i] = td_pairs_rounded_scalar(value[i]);
    memcpy(&x, bits, sizeof x);
    return x;
}

TD_PAIRS_INLINE_scalar td_lanes_scalar td_pairs_fma_scalar(td_lanes_scalar a, td_lanes_scalar b,
                                                           td_lanes_scalar c) {
    float x[TD_LANES], y[TD_LANES], z[TD_LANES];
    td_lanes_store_scalar(x, a);
    td_lanes_store_scalar(y, b);
    td_lanes_store_scalar(z, c);
    for (int i = 0; i < TD_LANES; i++)
        z[i] = fmaf(x[i], y[i], z[i]);
    return td_lanes_load_scalar(z);
}

TD_PAIRS_INLINE_scalar float td_pairs_power_scalar(float x) {
    if (x != x)
        return x;
    x = x < TD_EXP2_HIGH ? x : TD_EXP2_HIGH;
    x = x > TD_EXP2_LOW ? x : TD_EXP2_LOW;
    float n = rintf(x), r = x - n;
    float p = fmaf(fmaf(TD_EXP2_P5, r, TD_EXP2_P4), r, TD_EXP2_P3);
    p = fmaf(fmaf(fmaf(p, r, TD_EXP2_P2), r, TD_EXP2_P1), r, 1.0f);
    int exponent = (int)n, half = exponent >> 1;
    return p * td_power_of_two(half) * td_power_of_two(exponent - half);
}

TD_PAIRS_INLINE_scalar td_lanes_scalar td_pairs_exp2_scalar(td_lanes_scalar x) {
    float value[TD_LANES];
    td_lanes_store_scalar(value, x);
    for (int i = 0; i < TD_LANES; i++)
        value[i] = td_pairs_power_scalar(value[i]);
    return td_lanes_load_scalar(value);
}

TD_PAIRS_INLINE_scalar td_pairs_scalar td_pairs_split_scalar(td_lanes_scalar words) {
    const __m128i high = _mm_set1_epi32((int)0xffff0000u);
    td_pairs_scalar pairs;
    for (int i = 0; i < 4; i++) {
        __m128i part = _mm_castps_si128(words.part[i]);
        pairs.first.part[i] = _mm_castsi128_ps(_mm_slli_epi32(part, 16));
        pairs.second.part[i] = _mm_castsi128_ps(_mm_and_si128(part, high));
    }
    return pairs;
}

// a b + c, rounded once: in double the product is exact, and so is the sum wherever a half of
// fp32's last place is at stake.
TD_PAIRS_INLINE_scalar __m128 td_pairs_fma4_scalar(__m128 a, __m128 b, __m128 c) {
    __m128d low = _mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b));
    __m128d high = _mm_mul_pd(_mm_cvtps_pd(_mm_movehl_ps(a, a)), _mm_cvtps_pd(_mm_movehl_ps(b, b)));
    low = _mm_add_pd(low, _mm_cvtps_pd(c));
    high = _mm_add_pd(high, _mm_cvtps_pd(_mm_movehl_ps(c, c)));
    return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
}

TD_PAIRS_INLINE_scalar td_lanes_scalar td_pairs_multiply_add_scalar(td_pairs_scalar a,
                                                                    td_pairs_scalar b,
                                                                    td_lanes_scalar sum) {
    for (int i = 0; i < 4; i++) {
        __m128 part = td_pairs_fma4_scalar(a.second.part[i], b.second.part[i], sum.part[i]);
        sum.part[i] = td_pairs_fma4_scalar(a.first.part[i], b.first.part[i], part);
    }
    return sum;
}

// AVX2

// In the high half of each lane.
TD_PAIRS_INLINE_avx2 __m256i td_pairs_round8_avx2(__m256 value) {
    const __m256i sign = _mm256_set1_epi32((int)0x80000000u), zero = _mm256_setzero_si256();
    __m256i bits = _mm256_castps_si256(value);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    __m256i exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f800000));
    near = _mm256_blendv_epi8(near, quiet, nan);
    near =
        _mm256_blendv_epi8(near, _mm256_and_si256(bits, sign), _mm256_cmpeq_epi32(exponent, zero));
    return _mm256_and_si256(near, _mm256_set1_epi32((int)0xffff0000u));
}

TD_PAIRS_INLINE_avx2 __m256 td_pairs_join8_avx2(__m256 first, __m256 second) {
    __m256i low = _mm256_srli_epi32(td_pairs_round8_avx2(first), 16);
    return _mm256_castsi256_ps(_mm256_or_si256(low, td_pairs_round8_avx2(second)));
}

TD_PAIRS_INLINE_avx2 td_lanes_avx2 td_pairs_join_avx2(td_lanes_avx2 first, td_lanes_avx2 second) {
    return (td_lanes_avx2){td_pairs_join8_avx2(first.low, second.low),
                           td_pairs_join8_avx2(first.high, second.high)};
}

TD_PAIRS_INLINE_avx2 void td_pairs_store_avx2(float *words, td_lanes_avx2 x) {
    __m256i low = _mm256_srli_epi32(td_pairs_round8_avx2(x.low), 16);
    __m256i high = _mm256_srli_epi32(td_pairs_round8_avx2(x.high), 16);
    __m256i mixed = _mm256_packus_epi32(low, high); // by halves of the registers
    _mm256_storeu_si256((__m256i *)words, _mm256_permute4x64_epi64(mixed, 0xd8));
}

TD_PAIRS_INLINE_avx2 td_lanes_avx2 td_pairs_round_avx2(td_lanes_avx2 x) {
    return (td_lanes_avx2){_mm256_castsi256_ps(td_pairs_round8_avx2(x.low)),
                           _mm256_castsi256_ps(td_pairs_round8_avx2(x.high))};
}

TD_PAIRS_INLINE_avx2 td_lanes_avx2 td_pairs_fma_avx2(td_lanes_avx2 a, td_lanes_avx2 b,
                                                     td_lanes_avx2 c) {
    return td_lanes_fma_avx2(a, b, c);
}

TD_PAIRS_INLINE_avx2 __m256 td_pairs_power8_avx2(__m256 x) {
    // The second operand of min and max is what a NaN leaves.
    x = _mm256_min_ps(_mm256_set1_ps(TD_EXP2_HIGH), x);
    x = _mm256_max_ps(_mm256_set1_ps(TD_EXP2_LOW), x);
    __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_sub_ps(x, n);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(TD_EXP2_P5), r, _mm256_set1_ps(TD_EXP2_P4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TD_EXP2_P3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TD_EXP2_P2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TD_EXP2_P1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    __m256i exponent = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(exponent, 1);
    __m256i bias = _mm256_set1_epi32(127), rest = _mm256_sub_epi32(exponent, half);
    __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i second = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(first));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(second));
}

TD_PAIRS_INLINE_avx2 td_lanes_avx2 td_pairs_exp2_avx2(td_lanes_avx2 x) {
    return (td_lanes_avx2){td_pairs_power8_avx2(x.low), td_pairs_power8_avx2(x.high)};
}

TD_PAIRS_INLINE_avx2 __m256 td_pairs_first_avx2(__m256 words) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(words), 16));
}

TD_PAIRS_INLINE_avx2 __m256 td_pairs_second_avx2(__m256 words) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(words), high));
}

TD_PAIRS_INLINE_avx2 td_pairs_avx2 td_pairs_split_avx2(td_lanes_avx2 words) {
    return (td_pairs_avx2){{td_pairs_first_avx2(words.low), td_pairs_first_avx2(words.high)},
                           {td_pairs_second_avx2(words.low), td_pairs_second_avx2(words.high)}};
}

TD_PAIRS_INLINE_avx2 td_lanes_avx2 td_pairs_multiply_add_avx2(td_pairs_avx2 a, td_pairs_avx2 b,
                                                              td_lanes_avx2 sum) {
    return td_lanes_fma_avx2(a.first, b.first, td_lanes_fma_avx2(a.second, b.second, sum));
}

// AVX-512 without VDPBF16PS

TD_PAIRS_INLINE_avx512 __m512i td_pairs_round16_avx512(__m512 value) {
    const __m512i sign = _mm512_set1_epi32((int)0x80000000u);
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    __mmask16 tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
    near = _mm512_mask_or_epi32(near, nan, bits, _mm512_set1_epi32(0x400000));
    near = _mm512_mask_and_epi32(near, tiny, bits, sign);
    return _mm512_and_si512(near, _mm512_set1_epi32((int)0xffff0000u));
}

TD_PAIRS_INLINE_avx512 td_lanes_avx512 td_pairs_join_avx512(td_lanes_avx512 first,
                                                            td_lanes_avx512 second) {
    __m512i low = _mm512_srli_epi32(td_pairs_round16_avx512(first.all), 16);
    return (td_lanes_avx512){
        _mm512_castsi512_ps(_mm512_or_si512(low, td_pairs_round16_avx512(second.all)))};
}

TD_PAIRS_INLINE_avx512 void td_pairs_store_avx512(float *words, td_lanes_avx512 x) {
    __m512i low = _mm512_srli_epi32(td_pairs_round16_avx512(x.all), 16);
    _mm256_storeu_si256((__m256i *)words, _mm512_cvtepi32_epi16(low));
}

TD_PAIRS_INLINE_avx512 td_lanes_avx512 td_pairs_round_avx512(td_lanes_avx512 x) {
    return (td_lanes_avx512){_mm512_castsi512_ps(td_pairs_round16_avx512(x.all))};
}

TD_PAIRS_INLINE_avx512 td_lanes_avx512 td_pairs_fma_avx512(td_lanes_avx512 a, td_lanes_avx512 b,
                                                           td_lanes_avx512 c) {
    return td_lanes_fma_avx512(a, b, c);
}

TD_PAIRS_INLINE_avx512 td_lanes_avx512 td_pairs_exp2_avx512(td_lanes_avx512 lanes) {
    __m512 x = _mm512_min_ps(_mm512_set1_ps(TD_EXP2_HIGH), lanes.all);
    x = _mm512_max_ps(_mm512_set1_ps(TD_EXP2_LOW), x);
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(TD_EXP2_P5), r, _mm512_set1_ps(TD_EXP2_P4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TD_EXP2_P3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TD_EXP2_P2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TD_EXP2_P1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return (td_lanes_avx512){_mm512_scalef_ps(p, n)};
}

TD_PAIRS_INLINE_avx512 td_pairs_avx512 td_pairs_split_avx512(td_lanes_avx512 words) {
    __m512i bits = _mm512_castps_si512(words.all);
    __m512i second = _mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000u));
    return (td_pairs_avx512){{_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))},
                             {_mm512_castsi512_ps(second)}};
}

TD_PAIRS_INLINE_avx512 td_lanes_avx512 td_pairs_multiply_add_avx512(td_pairs_avx512 a,
                                                                    td_pairs_avx512 b,
                                                                    td_lanes_avx512 sum) {
    return td_lanes_fma_avx512(a.first, b.first, td_lanes_fma_avx512(a.second, b.second, sum));
}

// AVX-512 with VDPBF16PS

TD_PAIRS_INLINE_native td_lanes_avx512 td_pairs_join_native(td_lanes_avx512 first,
                                                            td_lanes_avx512 second) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second.all, first.all);
    return (td_lanes_avx512){_mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves))};
}

TD_PAIRS_INLINE_native void td_pairs_store_native(float *words, td_lanes_avx512 x) {
    _mm256_storeu_si256((__m256i *)words, (__m256i)_mm512_cvtneps_pbh(x.all));
}

TD_PAIRS_INLINE_native td_lanes_avx512 td_pairs_round_native(td_lanes_avx512 x) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x.all));
    return (td_lanes_avx512){_mm512_castsi512_ps(_mm512_slli_epi32(low, 16))};
}

TD_PAIRS_INLINE_native td_lanes_avx512 td_pairs_fma_native(td_lanes_avx512 a, td_lanes_avx512 b,
                                                           td_lanes_avx512 c) {
    return td_lanes_fma_avx512(a, b, c);
}

TD_PAIRS_INLINE_native td_lanes_avx512 td_pairs_exp2_native(td_lanes_avx512 x) {
    return td_pairs_exp2_avx512(x);
}

TD_PAIRS_INLINE_native td_pairs_native td_pairs_split_native(td_lanes_avx512 words) {
    return words;
}

TD_PAIRS_INLINE_native td_lanes_avx512 td_pairs_multiply_add_native(td_pairs_native a,
                                                                    td_pairs_native b,
                                                                    td_lanes_avx512 sum) {
    return (td_lanes_avx512){_mm512_dpbf16_ps(sum.all, (__m512bh)_mm512_castps_si512(a.all),
                                              (__m512bh)_mm512_castps_si512(b.all))};
}

#endif
