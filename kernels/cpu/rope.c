// Rotary embedding (Su et al., 2021, "RoFormer"). Products and sums are rounded one by one: the
// same bits at every vector width.
#include "kernels/cpu/cpu_internal.h"

// Rotates the heads of one token; sign is -1 for the inverse.
static inline __attribute__((always_inline)) void rotate(float *restrict x, const float *cosine,
                                                         const float *sine, int64_t n_heads,
                                                         int64_t head_stride, int64_t half,
                                                         float sign) {
    for (int64_t head = 0; head < n_heads; head++, x += head_stride) {
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            float first = x[i], second = x[half + i], s = sign * sine[i];
            x[i] = first * cosine[i] - second * s;
            x[half + i] = second * cosine[i] + first * s;
        }
    }
}

static void rotate_scalar(float *x, const float *cosine, const float *sine, int64_t n_heads,
                          int64_t head_stride, int64_t half, float sign) {
    rotate(x, cosine, sine, n_heads, head_stride, half, sign);
}

TD_TARGET_AVX2 static void rotate_avx2(float *x, const float *cosine, const float *sine,
                                       int64_t n_heads, int64_t head_stride, int64_t half,
                                       float sign) {
    rotate(x, cosine, sine, n_heads, head_stride, half, sign);
}

td_status td_cpu_rope(const td_op_context *context, const td_rope_args *args) {
    (void)context;
    int64_t half = args->head_dim / 2, width = args->n_heads * args->head_dim;
    int64_t head_stride = args->head_stride ? args->head_stride : args->head_dim;
    float sign = args->inverse ? -1.0f : 1.0f;
    int wide = td_cpu_simd() >= TD_CPU_AVX2;
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (args->n_tokens * width > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t t = 0; t < args->n_tokens; t++) {
        float *x = (float *)args->x + t * args->x_stride;
        const float *cosine = args->cos + args->positions[t] * half;
        const float *sine = args->sin + args->positions[t] * half;
        if (wide)
            rotate_avx2(x, cosine, sine, args->n_heads, head_stride, half, sign);
        else
            rotate_scalar(x, cosine, sine, args->n_heads, head_stride, half, sign);
    }
    return TD_OK;
}
