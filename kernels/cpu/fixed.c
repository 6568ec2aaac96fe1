// Gradients as 64-bit fixed point: integer sums are the same in any order (DESIGN.md, "Same bits on
// any number of ranks").
#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/sum_squares_internal.h"

// Largest magnitude whose rounded value is an int64.
#define INT64_EDGE 0x1p63

// Adds one value; returns 1 for a fault.
static inline int add_one(float value, double factor, int64_t limit, int64_t *accumulator) {
    double scaled = (double)value * factor;
    if (!(fabs(scaled) < INT64_EDGE))
        return 1;
    int64_t sum;
    // The processor rounds to nearest even unless told otherwise, which nothing here does.
    if (__builtin_add_overflow(*accumulator, (int64_t)llrint(scaled), &sum) || sum > limit ||
        sum < -limit)
        return 1;
    *accumulator = sum;
    return 0;
}

// Eight at a time; stops short of `end` by less than that.
TD_TARGET_AVX512 static int64_t add_avx512(const td_fixed_add_args *args, double factor, int64_t i,
                                           int64_t end, int64_t *faults) {
    const __m512d by = _mm512_set1_pd(factor), edge = _mm512_set1_pd(INT64_EDGE);
    const __m512i most = _mm512_set1_epi64(args->limit), least = _mm512_set1_epi64(-args->limit);
    for (; i + 8 <= end; i += 8) {
        __m512d scaled = _mm512_mul_pd(_mm512_cvtps_pd(_mm256_loadu_ps(args->values + i)), by);
        __mmask8 good = _mm512_cmp_pd_mask(_mm512_abs_pd(scaled), edge, _CMP_LT_OQ);
        __m512i before = _mm512_loadu_si512(args->accumulator + i);
        __m512i change = _mm512_cvtpd_epi64(scaled), after = _mm512_add_epi64(before, change);
        // A wrapped sum differs in sign from both terms.
        __m512i wrapped =
            _mm512_and_si512(_mm512_xor_si512(before, after), _mm512_xor_si512(change, after));
        good &= (__mmask8)~_mm512_movepi64_mask(wrapped);
        good &= _mm512_cmple_epi64_mask(after, most) & _mm512_cmpge_epi64_mask(after, least);
        _mm512_mask_storeu_epi64(args->accumulator + i, good, after);
        *faults += 8 - __builtin_popcount(good);
    }
    return i;
}

static int64_t add_range(const td_fixed_add_args *args, double factor, td_cpu_range range) {
    int64_t faults = 0, i = range.begin;
    if (td_cpu_simd() == TD_CPU_AVX512)
        i = add_avx512(args, factor, i, range.end, &faults);
    for (; i < range.end; i++)
        faults += add_one(args->values[i], factor, args->limit, args->accumulator + i);
    return faults;
}

td_status td_cpu_fixed_add(const td_op_context *context, const td_fixed_add_args *args) {
    (void)context;
    double factor = ldexp(1.0, -args->quantum_log2);
    int64_t faults = 0;
    int parts = args->n_elements > TD_CPU_PARALLEL_ELEMENTS ? td_cpu_threads() : 1;
#pragma omp parallel for schedule(static) num_threads(parts) reduction(+ : faults)
    for (int part = 0; part < parts; part++)
        faults += add_range(args, factor, td_cpu_split(args->n_elements, 16, parts, part));
    *args->faults += faults;
    return TD_OK;
}

// The conversion rounds once; the product with a power of two is exact.
static inline __attribute__((always_inline)) void convert_body(const int64_t *from, int64_t n,
                                                               float factor, float *to) {
    for (int64_t i = 0; i < n; i++)
        to[i] = (float)from[i] * factor;
}

static void convert_scalar(const int64_t *from, int64_t n, float factor, float *to) {
    convert_body(from, n, factor, to);
}

TD_TARGET_AVX512 static void convert_avx512(const int64_t *from, int64_t n, float factor,
                                            float *to) {
    convert_body(from, n, factor, to);
}

static double convert_block(const void *untyped, int64_t begin, int64_t n) {
    const td_fixed_to_f32_args *args = untyped;
    float factor = ldexpf(1.0f, args->quantum_log2);
    if (td_cpu_simd() == TD_CPU_AVX512)
        convert_avx512(args->accumulator + begin, n, factor, args->values + begin);
    else
        convert_scalar(args->accumulator + begin, n, factor, args->values + begin);
    return td_cpu_sum_squares_block(args->values + begin, n);
}

td_status td_cpu_fixed_to_f32(const td_op_context *context, const td_fixed_to_f32_args *args) {
    (void)context;
    double sum = td_cpu_sum_blocks(args->n_elements, convert_block, args);
    if (args->sum_squares)
        *args->sum_squares = sum;
    return TD_OK;
}
