// fp32 sums of gradients: the inexact pair of fixed.c.
//
// Squares of fp32 values are exact in double. Within a block sixteen lanes are summed side by side,
// then pairwise; the sums of blocks are added in ascending order.
#include "kernels/cpu/sum_squares_internal.h"

enum { LANES = 16 };

static inline __attribute__((always_inline)) double block_body(const float *values, int64_t n) {
    double lane[LANES] = {0};
    int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += (double)values[i + l] * (double)values[i + l];
    for (int64_t i = whole; i < n; i++)
        lane[i - whole] += (double)values[i] * (double)values[i];
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        for (int l = 0; l < distance; l++)
            lane[l] += lane[l + distance];
    return lane[0];
}

static double block_scalar(const float *values, int64_t n) {
    return block_body(values, n);
}

TD_TARGET_AVX2 static double block_avx2(const float *values, int64_t n) {
    return block_body(values, n);
}

TD_TARGET_AVX512 static double block_avx512(const float *values, int64_t n) {
    return block_body(values, n);
}

double td_cpu_sum_squares_block(const float *values, int64_t n) {
    static double (*const levels[])(const float *, int64_t) = {
        [TD_CPU_SCALAR] = block_scalar, [TD_CPU_AVX2] = block_avx2, [TD_CPU_AVX512] = block_avx512};
    return levels[td_cpu_simd()](values, n);
}

// Blocks whose sums are kept before they are added up.
enum { ROUND = 1024 };

double td_cpu_sum_blocks(int64_t n_elements,
                         double (*block_sum)(const void *args, int64_t begin, int64_t n),
                         const void *args) {
    int64_t n_blocks = (n_elements + TD_SQUARES_BLOCK - 1) / TD_SQUARES_BLOCK;
    double partial[ROUND], sum = 0.0;
    for (int64_t first = 0; first < n_blocks; first += ROUND) {
        int64_t count = n_blocks - first < ROUND ? n_blocks - first : ROUND;
#pragma omp parallel for schedule(static) num_threads(td_cpu_threads()) if (count > 4)
        for (int64_t i = 0; i < count; i++) {
            int64_t begin = (first + i) * TD_SQUARES_BLOCK, left = n_elements - begin;
            partial[i] = block_sum(args, begin, left < TD_SQUARES_BLOCK ? left : TD_SQUARES_BLOCK);
        }
        for (int64_t i = 0; i < count; i++)
            sum += partial[i];
    }
    return sum;
}

static double squares_of(const void *args, int64_t begin, int64_t n) {
    return td_cpu_sum_squares_block(((const td_sum_squares_args *)args)->values + begin, n);
}

td_status td_cpu_sum_squares(const td_op_context *context, const td_sum_squares_args *args) {
    (void)context;
    *args->sum_squares = td_cpu_sum_blocks(args->n_elements, squares_of, args);
    return TD_OK;
}

td_status td_cpu_f32_add(const td_op_context *context, const td_f32_add_args *args) {
    (void)context;
    const float *values = args->values;
    float *accumulator = args->accumulator;
    int64_t faults = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : faults)                               \
    num_threads(td_cpu_threads()) if (args->n_elements > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < args->n_elements; i++) {
        float sum = accumulator[i] + values[i];
        // The difference of a number with itself is zero unless it is infinite or NaN.
        int finite = sum - sum == 0.0f;
        faults += !finite;
        accumulator[i] = finite ? sum : accumulator[i];
    }
    *args->faults += faults;
    return TD_OK;
}
