// SwiGLU (Shazeer, 2020): y = silu(gate) * up. The same bits at every vector width.
#include <immintrin.h>

#include "kernels/cpu/cpu_internal.h"
#include "kernels/cpu/vector_math.h"

static inline float sigmoid_scalar(float x) {
    return 1.0f / (1.0f + td_exp_scalar(-x));
}

TD_TARGET_AVX2 static inline __m256 sigmoid_avx2(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    return _mm256_div_ps(one, _mm256_add_ps(one, td_exp_avx2(_mm256_xor_ps(x, sign))));
}

TD_TARGET_AVX512 static inline __m512 sigmoid_avx512(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, td_exp_avx512(_mm512_xor_ps(x, sign))));
}

// Each returns where it stopped, short of `end` by less than its width.
TD_TARGET_AVX2 static int64_t forward_avx2(const float *gate, const float *up, float *y, int64_t i,
                                           int64_t end) {
    for (; i + 8 <= end; i += 8) {
        __m256 g = _mm256_loadu_ps(gate + i), u = _mm256_loadu_ps(up + i);
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(g, sigmoid_avx2(g)), u));
    }
    return i;
}

TD_TARGET_AVX512 static int64_t forward_avx512(const float *gate, const float *up, float *y,
                                               int64_t i, int64_t end) {
    for (; i + 16 <= end; i += 16) {
        __m512 g = _mm512_loadu_ps(gate + i), u = _mm512_loadu_ps(up + i);
        _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid_avx512(g)), u));
    }
    return i;
}

static void forward_range(const td_glu_forward_args *args, td_cpu_range range) {
    const float *gate = args->gate, *up = args->up;
    float *y = args->y;
    int64_t i = range.begin;
    if (td_cpu_simd() == TD_CPU_AVX512)
        i = forward_avx512(gate, up, y, i, range.end);
    else if (td_cpu_simd() == TD_CPU_AVX2)
        i = forward_avx2(gate, up, y, i, range.end);
    for (; i < range.end; i++)
        y[i] = gate[i] * sigmoid_scalar(gate[i]) * up[i];
}

// With s = sigmoid(g): dup = dy g s; dgate = dy up s (1 + g (1 - s)).
TD_TARGET_AVX2 static int64_t backward_avx2(const td_glu_backward_args *args, int64_t i,
                                            int64_t end) {
    const __m256 one = _mm256_set1_ps(1.0f);
    for (; i + 8 <= end; i += 8) {
        __m256 dy = _mm256_loadu_ps((const float *)args->dy + i);
        __m256 g = _mm256_loadu_ps((const float *)args->gate + i);
        __m256 u = _mm256_loadu_ps((const float *)args->up + i), s = sigmoid_avx2(g);
        __m256 slope = _mm256_add_ps(one, _mm256_mul_ps(g, _mm256_sub_ps(one, s)));
        __m256 dgate = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(dy, u), s), slope);
        _mm256_storeu_ps((float *)args->dgate + i, dgate);
        _mm256_storeu_ps((float *)args->dup + i, _mm256_mul_ps(dy, _mm256_mul_ps(g, s)));
    }
    return i;
}

TD_TARGET_AVX512 static int64_t backward_avx512(const td_glu_backward_args *args, int64_t i,
                                                int64_t end) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (; i + 16 <= end; i += 16) {
        __m512 dy = _mm512_loadu_ps((const float *)args->dy + i);
        __m512 g = _mm512_loadu_ps((const float *)args->gate + i);
        __m512 u = _mm512_loadu_ps((const float *)args->up + i), s = sigmoid_avx512(g);
        __m512 slope = _mm512_add_ps(one, _mm512_mul_ps(g, _mm512_sub_ps(one, s)));
        __m512 dgate = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(dy, u), s), slope);
        _mm512_storeu_ps((float *)args->dgate + i, dgate);
        _mm512_storeu_ps((float *)args->dup + i, _mm512_mul_ps(dy, _mm512_mul_ps(g, s)));
    }
    return i;
}

static void backward_scalar(const td_glu_backward_args *args, int64_t i) {
    float dy = ((const float *)args->dy)[i], g = ((const float *)args->gate)[i];
    float u = ((const float *)args->up)[i], s = sigmoid_scalar(g);
    ((float *)args->dgate)[i] = dy * u * s * (1.0f + g * (1.0f - s));
    ((float *)args->dup)[i] = dy * (g * s);
}

static void backward_range(const td_glu_backward_args *args, td_cpu_range range) {
    int64_t i = range.begin;
    if (td_cpu_simd() == TD_CPU_AVX512)
        i = backward_avx512(args, i, range.end);
    else if (td_cpu_simd() == TD_CPU_AVX2)
        i = backward_avx2(args, i, range.end);
    for (; i < range.end; i++)
        backward_scalar(args, i);
}

td_status td_cpu_glu_forward(const td_op_context *context, const td_glu_forward_args *args) {
    (void)context;
    int parts = (args->n_rows * args->n_cols) > TD_CPU_PARALLEL_ELEMENTS ? td_cpu_threads() : 1;
#pragma omp parallel for schedule(static) num_threads(parts)
    for (int part = 0; part < parts; part++)
        forward_range(args, td_cpu_split((args->n_rows * args->n_cols), 16, parts, part));
    return TD_OK;
}

td_status td_cpu_glu_backward(const td_op_context *context, const td_glu_backward_args *args) {
    (void)context;
    int parts = (args->n_rows * args->n_cols) > TD_CPU_PARALLEL_ELEMENTS ? td_cpu_threads() : 1;
#pragma omp parallel for schedule(static) num_threads(parts)
    for (int part = 0; part < parts; part++)
        backward_range(args, td_cpu_split((args->n_rows * args->n_cols), 16, parts, part));
    return TD_OK;
}
