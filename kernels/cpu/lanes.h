// Sixteen fp32 lanes as one value, the same functions at every level of vector instructions.
//
// A kernel is written once, as a template in these functions, and compiled once per level:
// TD_LANES_LEVEL is set to scalar, avx2 or avx512 before the template is included
// (attention_kernels.c shows how). Lane l is always element 16 i + l, and the lanes are summed in
// one fixed order, so AVX2 and AVX-512 give the same bits. The scalar level rounds after the
// product of fma() and may differ in the last bits.
#ifndef TANDEM_KERNELS_CPU_LANES_H
#define TANDEM_KERNELS_CPU_LANES_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/cpu_internal.h"
#include "kernels/cpu/vector_math.h"

enum { TD_LANES = 16 };

static inline int64_t td_lanes_round_up(int64_t n) {
    return (n + TD_LANES - 1) / TD_LANES * TD_LANES;
}

#define TD_LANES_INLINE_scalar static inline __attribute__((always_inline, unused))
#define TD_LANES_INLINE_avx2   TD_TARGET_AVX2 static inline __attribute__((always_inline, unused))
#define TD_LANES_INLINE_avx512 TD_TARGET_AVX512 static inline __attribute__((always_inline, unused))
#define TD_LANES_TARGET_scalar
#define TD_LANES_TARGET_avx2   TD_TARGET_AVX2
#define TD_LANES_TARGET_avx512 TD_TARGET_AVX512

// In a template: lanes_name(load) is td_lanes_load_avx2, and so on.
#define TD_LANES_JOIN_(a, b)  a##b
#define TD_LANES_JOIN(a, b)   TD_LANES_JOIN_(a, b)
#define TD_LANES_NAME(prefix) TD_LANES_JOIN(prefix, TD_LANES_LEVEL)
#define TD_LANES_INLINE       TD_LANES_NAME(TD_LANES_INLINE_)
#define TD_LANES_TARGET       TD_LANES_NAME(TD_LANES_TARGET_)

// Four lanes are what every x86-64 processor has.
typedef float td_lanes_quarter __attribute__((vector_size(16)));
typedef struct td_lanes_scalar {
    td_lanes_quarter part[4];
} td_lanes_scalar;

typedef struct td_lanes_avx2 {
    __m256 low, high;
} td_lanes_avx2;

typedef struct td_lanes_avx512 {
    __m512 all;
} td_lanes_avx512;

// Scalar

TD_LANES_INLINE_scalar td_lanes_scalar td_lanes_load_scalar(const float *p) {
    td_lanes_scalar x;
    memcpy(&x, p, sizeof x);
    return x;
}

TD_LANES_INLINE_scalar void td_lanes_store_scalar(float *p, td_lanes_scalar x) {
    memcpy(p, &x, sizeof x);
}

TD_LANES_INLINE_scalar td_lanes_scalar td_lanes_set_scalar(float value) {
    td_lanes_quarter part = {value, value, value, value};
    return (td_lanes_scalar){{part, part, part, part}};
}

#define TD_LANES_SCALAR(name, combine)                                                             \
    TD_LANES_INLINE_scalar td_lanes_scalar td_lanes_##name##_scalar(td_lanes_scalar x,             \
                                                                    td_lanes_scalar y) {           \
        return (td_lanes_scalar){{combine(x.part[0], y.part[0]), combine(x.part[1], y.part[1]),    \
                                  combine(x.part[2], y.part[2]), combine(x.part[3], y.part[3])}};  \
    }
TD_LANES_SCALAR(add, _mm_add_ps)
TD_LANES_SCALAR(sub, _mm_sub_ps)
TD_LANES_SCALAR(mul, _mm_mul_ps)
TD_LANES_SCALAR(div, _mm_div_ps)
TD_LANES_SCALAR(min, _mm_min_ps) // of two, one of them NaN: the second; max likewise
TD_LANES_SCALAR(max, _mm_max_ps)
#undef TD_LANES_SCALAR

TD_LANES_INLINE_scalar td_lanes_scalar td_lanes_fma_scalar(td_lanes_scalar x, td_lanes_scalar y,
                                                           td_lanes_scalar z) {
    return td_lanes_add_scalar(td_lanes_mul_scalar(x, y), z);
}

TD_LANES_INLINE_scalar td_lanes_scalar td_lanes_exp_scalar(td_lanes_scalar x) {
    float lane[TD_LANES];
    td_lanes_store_scalar(lane, x);
    for (int i = 0; i < TD_LANES; i++)
        lane[i] = td_exp_scalar(lane[i]);
    return td_lanes_load_scalar(lane);
}

TD_LANES_INLINE_scalar td_lanes_scalar td_lanes_tanh_scalar(td_lanes_scalar x) {
    float lane[TD_LANES];
    td_lanes_store_scalar(lane, x);
    for (int i = 0; i < TD_LANES; i++)
        lane[i] = td_tanh_scalar(lane[i]);
    return td_lanes_load_scalar(lane);
}

// Halves are added until one lane is left: 8 apart, 4 apart, 2 apart, neighbours.
TD_LANES_INLINE_scalar float td_lanes_sum_scalar(td_lanes_scalar x) {
    __m128 four = _mm_add_ps(_mm_add_ps(x.part[0], x.part[2]), _mm_add_ps(x.part[1], x.part[3]));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

TD_LANES_INLINE_scalar float td_lanes_largest_scalar(td_lanes_scalar x) {
    __m128 four = _mm_max_ps(_mm_max_ps(x.part[0], x.part[2]), _mm_max_ps(x.part[1], x.part[3]));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// AVX2

TD_LANES_INLINE_avx2 td_lanes_avx2 td_lanes_load_avx2(const float *p) {
    return (td_lanes_avx2){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

TD_LANES_INLINE_avx2 void td_lanes_store_avx2(float *p, td_lanes_avx2 x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}

TD_LANES_INLINE_avx2 td_lanes_avx2 td_lanes_set_avx2(float value) {
    return (td_lanes_avx2){_mm256_set1_ps(value), _mm256_set1_ps(value)};
}

#define TD_LANES_AVX2(name)                                                                        \
    TD_LANES_INLINE_avx2 td_lanes_avx2 td_lanes_##name##_avx2(td_lanes_avx2 x, td_lanes_avx2 y) {  \
        return (td_lanes_avx2){_mm256_##name##_ps(x.low, y.low),                                   \
                               _mm256_##name##_ps(x.high, y.high)};                                \
    }
TD_LANES_AVX2(add)
TD_LANES_AVX2(sub)
TD_LANES_AVX2(mul)
TD_LANES_AVX2(div)
TD_LANES_AVX2(min)
TD_LANES_AVX2(max)
#undef TD_LANES_AVX2

TD_LANES_INLINE_avx2 td_lanes_avx2 td_lanes_fma_avx2(td_lanes_avx2 x, td_lanes_avx2 y,
                                                     td_lanes_avx2 z) {
    return (td_lanes_avx2){_mm256_fmadd_ps(x.low, y.low, z.low),
                           _mm256_fmadd_ps(x.high, y.high, z.high)};
}

TD_LANES_INLINE_avx2 td_lanes_avx2 td_lanes_exp_avx2(td_lanes_avx2 x) {
    return (td_lanes_avx2){td_exp_avx2(x.low), td_exp_avx2(x.high)};
}

TD_LANES_INLINE_avx2 td_lanes_avx2 td_lanes_tanh_avx2(td_lanes_avx2 x) {
    return (td_lanes_avx2){td_tanh_avx2(x.low), td_tanh_avx2(x.high)};
}

TD_LANES_INLINE_avx2 float td_lanes_sum8_avx2(__m256 x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

TD_LANES_INLINE_avx2 float td_lanes_largest8_avx2(__m256 x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

TD_LANES_INLINE_avx2 float td_lanes_sum_avx2(td_lanes_avx2 x) {
    return td_lanes_sum8_avx2(_mm256_add_ps(x.low, x.high));
}

TD_LANES_INLINE_avx2 float td_lanes_largest_avx2(td_lanes_avx2 x) {
    return td_lanes_largest8_avx2(_mm256_max_ps(x.low, x.high));
}

// AVX-512

TD_LANES_INLINE_avx512 td_lanes_avx512 td_lanes_load_avx512(const float *p) {
    return (td_lanes_avx512){_mm512_loadu_ps(p)};
}

TD_LANES_INLINE_avx512 void td_lanes_store_avx512(float *p, td_lanes_avx512 x) {
    _mm512_storeu_ps(p, x.all);
}

TD_LANES_INLINE_avx512 td_lanes_avx512 td_lanes_set_avx512(float value) {
    return (td_lanes_avx512){_mm512_set1_ps(value)};
}

#define TD_LANES_AVX512(name)                                                                      \
    TD_LANES_INLINE_avx512 td_lanes_avx512 td_lanes_##name##_avx512(td_lanes_avx512 x,             \
                                                                    td_lanes_avx512 y) {           \
        return (td_lanes_avx512){_mm512_##name##_ps(x.all, y.all)};                                \
    }
TD_LANES_AVX512(add)
TD_LANES_AVX512(sub)
TD_LANES_AVX512(mul)
TD_LANES_AVX512(div)
TD_LANES_AVX512(min)
TD_LANES_AVX512(max)
#undef TD_LANES_AVX512

TD_LANES_INLINE_avx512 td_lanes_avx512 td_lanes_fma_avx512(td_lanes_avx512 x, td_lanes_avx512 y,
                                                           td_lanes_avx512 z) {
    return (td_lanes_avx512){_mm512_fmadd_ps(x.all, y.all, z.all)};
}

TD_LANES_INLINE_avx512 td_lanes_avx512 td_lanes_exp_avx512(td_lanes_avx512 x) {
    return (td_lanes_avx512){td_exp_avx512(x.all)};
}

TD_LANES_INLINE_avx512 td_lanes_avx512 td_lanes_tanh_avx512(td_lanes_avx512 x) {
    return (td_lanes_avx512){td_tanh_avx512(x.all)};
}

TD_LANES_INLINE_avx512 float td_lanes_sum_avx512(td_lanes_avx512 x) {
    __m256 high = _mm512_extractf32x8_ps(x.all, 1);
    return td_lanes_sum8_avx2(_mm256_add_ps(_mm512_castps512_ps256(x.all), high));
}

TD_LANES_INLINE_avx512 float td_lanes_largest_avx512(td_lanes_avx512 x) {
    __m256 high = _mm512_extractf32x8_ps(x.all, 1);
    return td_lanes_largest8_avx2(_mm256_max_ps(_mm512_castps512_ps256(x.all), high));
}

#endif
