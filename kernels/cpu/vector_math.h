// exp and tanh in fp32 at every vector width, with the same bits at each: every step is one
// correctly rounded operation. exp: error below 1.1 ulp (tests/ops/test_vectors.c); overflow gives
// infinity, below -104 gives 0, NaN stays NaN. tanh: error below 1.5 ulp; exactly odd, a zero keeps
// its sign, 1 from about 9.01 on, NaN stays NaN.
#ifndef TANDEM_KERNELS_CPU_VECTOR_MATH_H
#define TANDEM_KERNELS_CPU_VECTOR_MATH_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "kernels/cpu/cpu_internal.h"

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; exp(r) = 1 + r + r^2 p(r) with the
// polynomial of Cephes' expf (S. Moshier).
#define TD_EXP_LOW     -110.0f
#define TD_EXP_HIGH    89.0f
#define TD_EXP_LOG2E   1.44269504088896341f
#define TD_EXP_LN2_TOP 0.693359375f
#define TD_EXP_LN2_LOW -2.12194440e-4f
#define TD_EXP_P0      1.9875691500e-4f
#define TD_EXP_P1      1.3981999507e-3f
#define TD_EXP_P2      8.3334519073e-3f
#define TD_EXP_P3      4.1665795894e-2f
#define TD_EXP_P4      1.6666665459e-1f
#define TD_EXP_P5      5.0000001201e-1f

static inline float td_power_of_two(int exponent) {
    union {
        uint32_t u;
        float f;
    } word = {.u = (uint32_t)(exponent + 127) << 23};
    return word.f;
}

static inline float td_exp_scalar(float x) {
    if (x != x)
        return x;
    x = x < TD_EXP_HIGH ? x : TD_EXP_HIGH;
    x = x > TD_EXP_LOW ? x : TD_EXP_LOW;
    float n = rintf(x * TD_EXP_LOG2E);
    float r = fmaf(n, -TD_EXP_LN2_LOW, fmaf(n, -TD_EXP_LN2_TOP, x));
    float p = fmaf(fmaf(fmaf(TD_EXP_P0, r, TD_EXP_P1), r, TD_EXP_P2), r, TD_EXP_P3);
    p = fmaf(fmaf(p, r, TD_EXP_P4), r, TD_EXP_P5);
    p = fmaf(p, r * r, r) + 1.0f;
    int exponent = (int)n, half = exponent >> 1;
    return p * td_power_of_two(half) * td_power_of_two(exponent - half);
}

TD_TARGET_AVX2 static inline __m256 td_exp_avx2(__m256 x) {
    // The second operand of min and max is what a NaN leaves.
    x = _mm256_min_ps(_mm256_set1_ps(TD_EXP_HIGH), x);
    x = _mm256_max_ps(_mm256_set1_ps(TD_EXP_LOW), x);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(TD_EXP_LOG2E)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(TD_EXP_LN2_TOP), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(TD_EXP_LN2_LOW), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(TD_EXP_P0), r, _mm256_set1_ps(TD_EXP_P1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TD_EXP_P2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TD_EXP_P3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TD_EXP_P4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(TD_EXP_P5));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    __m256i exponent = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(exponent, 1);
    __m256i bias = _mm256_set1_epi32(127);
    __m256i rest = _mm256_sub_epi32(exponent, half);
    __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i second = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(first));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(second));
}

TD_TARGET_AVX512 static inline __m512 td_exp_avx512(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(TD_EXP_HIGH), x);
    x = _mm512_max_ps(_mm512_set1_ps(TD_EXP_LOW), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(TD_EXP_LOG2E)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(TD_EXP_LN2_TOP), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(TD_EXP_LN2_LOW), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(TD_EXP_P0), r, _mm512_set1_ps(TD_EXP_P1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TD_EXP_P2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TD_EXP_P3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TD_EXP_P4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(TD_EXP_P5));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

// tanh of |x|, then the sign of x. From TD_TANH_SMALL on 1 - 2 / (exp(2 |x|) + 1); below, where
// that would cancel, |x| + |x|^3 p(x^2) with the polynomial of Cephes' tanhf (S. Moshier).
#define TD_TANH_SMALL 0.625f
#define TD_TANH_P0    -5.70498872745e-3f
#define TD_TANH_P1    2.06390887954e-2f
#define TD_TANH_P2    -5.37397155531e-2f
#define TD_TANH_P3    1.33314422036e-1f
#define TD_TANH_P4    -3.33332819422e-1f

static inline float td_tanh_scalar(float x) {
    float size = fabsf(x), square = size * size;
    if (size < TD_TANH_SMALL) {
        float p = fmaf(fmaf(TD_TANH_P0, square, TD_TANH_P1), square, TD_TANH_P2);
        p = fmaf(fmaf(p, square, TD_TANH_P3), square, TD_TANH_P4);
        return copysignf(fmaf(p * square, size, size), x);
    }
    return copysignf(1.0f - 2.0f / (td_exp_scalar(size + size) + 1.0f), x);
}

TD_TARGET_AVX2 static inline __m256 td_tanh_avx2(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    __m256 size = _mm256_andnot_ps(sign, x), square = _mm256_mul_ps(size, size);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(TD_TANH_P0), square, _mm256_set1_ps(TD_TANH_P1));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(TD_TANH_P2));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(TD_TANH_P3));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(TD_TANH_P4));
    p = _mm256_fmadd_ps(_mm256_mul_ps(p, square), size, size);
    __m256 grown = _mm256_add_ps(td_exp_avx2(_mm256_add_ps(size, size)), one);
    __m256 y = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0f), grown));
    __m256 small = _mm256_cmp_ps(size, _mm256_set1_ps(TD_TANH_SMALL), _CMP_LT_OQ);
    return _mm256_or_ps(_mm256_blendv_ps(y, p, small), _mm256_and_ps(sign, x));
}

TD_TARGET_AVX512 static inline __m512 td_tanh_avx512(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    __m512 size = _mm512_andnot_ps(sign, x), square = _mm512_mul_ps(size, size);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(TD_TANH_P0), square, _mm512_set1_ps(TD_TANH_P1));
    p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(TD_TANH_P2));
    p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(TD_TANH_P3));
    p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(TD_TANH_P4));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, square), size, size);
    __m512 grown = _mm512_add_ps(td_exp_avx512(_mm512_add_ps(size, size)), one);
    __m512 y = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), grown));
    __mmask16 small = _mm512_cmp_ps_mask(size, _mm512_set1_ps(TD_TANH_SMALL), _CMP_LT_OQ);
    return _mm512_or_ps(_mm512_mask_blend_ps(small, y, p), _mm512_and_ps(sign, x));
}

#endif
