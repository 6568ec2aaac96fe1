// The linear layer for a few tokens: generation. Rows of the weight are dequantized a piece at a
// time into a small buffer and used at once, so that the compressed weight is all that is read from
// memory.
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/cpu_internal.h"
#include "kernels/cpu/weights_internal.h"

enum { PIECE = 1024 };

static float dot_scalar(const float *a, const float *b, int64_t n) {
    float sum[4] = {0};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int lane = 0; lane < 4; lane++)
            sum[lane] += a[i + lane] * b[i + lane];
    for (; i < n; i++)
        sum[i & 3] += a[i] * b[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

TD_TARGET_AVX2 static float sum_lanes(__m256 value) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// Sixty-four sums, in the order of dot_avx512(): sum[2 j] and sum[2 j + 1] are its sum[j].
TD_TARGET_AVX2 static float dot_avx2(const float *a, const float *b, int64_t n) {
    __m256 sum[8];
    for (int j = 0; j < 8; j++)
        sum[j] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 8; j++)
            sum[j] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * j), _mm256_loadu_ps(b + i + 8 * j),
                                     sum[j]);
    for (; i < n; i += 16) {
        float left[16] = {0}, right[16] = {0};
        size_t bytes = (n - i < 16 ? (size_t)(n - i) : 16) * sizeof *left;
        memcpy(left, a + i, bytes);
        memcpy(right, b + i, bytes);
        for (int j = 0; j < 2; j++)
            sum[j] = _mm256_fmadd_ps(_mm256_loadu_ps(left + 8 * j), _mm256_loadu_ps(right + 8 * j),
                                     sum[j]);
    }
    for (int j = 0; j < 2; j++)
        sum[j] =
            _mm256_add_ps(_mm256_add_ps(sum[j], sum[j + 2]), _mm256_add_ps(sum[j + 4], sum[j + 6]));
    return sum_lanes(_mm256_add_ps(sum[0], sum[1]));
}

TD_TARGET_AVX512 static float dot_avx512(const float *a, const float *b, int64_t n) {
    __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                     _mm512_setzero_ps()};
    int64_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++)
            sum[j] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16 * j),
                                     _mm512_loadu_ps(b + i + 16 * j), sum[j]);
    for (; i < n; i += 16) {
        __mmask16 live = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        sum[0] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(live, a + i),
                                 _mm512_maskz_loadu_ps(live, b + i), sum[0]);
    }
    __m512 all = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
    return sum_lanes(_mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1)));
}

static float dot(const float *a, const float *b, int64_t n) {
    switch (td_cpu_simd()) {
    case TD_CPU_AVX512:
        return dot_avx512(a, b, n);
    case TD_CPU_AVX2:
        return dot_avx2(a, b, n);
    case TD_CPU_SCALAR:
        break;
    }
    return dot_scalar(a, b, n);
}

// sums[t] = row of the weight times x[t].
static void row_dots(const td_linear_forward_args *args, int64_t row, float *sums) {
    const td_matrix *weight = args->weight;
    int64_t in = weight->cols;
    float buffer[PIECE];
    for (int64_t t = 0; t < args->n_tokens; t++)
        sums[t] = args->bias ? args->bias[row] : 0.0f;
    for (int64_t column = 0; column < in; column += PIECE) {
        int64_t begin = row * in + column, n = in - column < PIECE ? in - column : PIECE;
        const float *piece = buffer;
        if (weight->format == TD_MATRIX_F32)
            piece = (const float *)weight->data + begin;
        else
            td_cpu_dequantize_span(weight, begin, begin + n, buffer);
        for (int64_t t = 0; t < args->n_tokens; t++)
            sums[t] += dot(piece, (const float *)args->x + t * in + column, n);
    }
}

static void lora_down(const td_linear_forward_args *args) {
    int64_t in = args->weight->cols, rank = args->lora->rank;
    for (int64_t t = 0; t < args->n_tokens; t++)
        for (int64_t r = 0; r < rank; r++)
            ((float *)args->xa)[t * rank + r] =
                dot(args->lora->a + r * in, (const float *)args->x + t * in, in);
}

// Smaller weights are through in less time than a team of threads needs to meet on a busy machine.
enum { FEW_PARALLEL_ELEMENTS = 1 << 18 };

void td_cpu_linear_few(const td_linear_forward_args *args) {
    const td_lora_weights *lora = args->lora;
    int64_t out = args->weight->rows;
    if (lora)
        lora_down(args);
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (out * args->weight->cols > FEW_PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < out; row++) {
        float sums[TD_CPU_FEW_TOKENS];
        row_dots(args, row, sums);
        for (int64_t t = 0; t < args->n_tokens; t++) {
            if (lora)
                sums[t] += lora->scaling * dot((const float *)args->xa + t * lora->rank,
                                               lora->b + row * lora->rank, lora->rank);
            ((float *)args->y)[t * out + row] = sums[t];
        }
    }
}
