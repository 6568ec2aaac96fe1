// Loops of multiply-adds on registers alone.
#include "kernels/register_peak.h"

#include <immintrin.h>
#include <omp.h>

#include "kernels/cpu/cpu_internal.h"

// As many sums as hide the latency of an instruction and still fit into the registers.
enum { SUMS = 24, AVX2_SUMS = 12, REPEATS = 1 << 17, ROUNDS = 100 };

// Counted per repeat and sum: lanes, and two for each multiply-add.
enum { AVX2_FLOPS = 2 * 8, AVX512_FLOPS = 2 * 16, BF16_FLOPS = 2 * 32 };

typedef struct peak_loop {
    float (*run)(void); // some number that depends on every sum
    double flops;
} peak_loop;

TD_TARGET_AVX2 static float multiply_avx2(void) {
    __m256 a = _mm256_set1_ps(0.5f), sums[AVX2_SUMS];
    for (int i = 0; i < AVX2_SUMS; i++)
        sums[i] = _mm256_set1_ps((float)i);
    for (int repeat = 0; repeat < REPEATS; repeat++)
#pragma GCC unroll 12
        for (int i = 0; i < AVX2_SUMS; i++)
            sums[i] = _mm256_fmadd_ps(sums[i], a, a);
    for (int i = 1; i < AVX2_SUMS; i++)
        sums[0] = _mm256_add_ps(sums[0], sums[i]);
    return _mm256_cvtss_f32(sums[0]);
}

TD_TARGET_AVX512 static float multiply_avx512(void) {
    __m512 a = _mm512_set1_ps(0.5f), sums[SUMS];
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm512_set1_ps((float)i);
    for (int repeat = 0; repeat < REPEATS; repeat++)
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm512_fmadd_ps(sums[i], a, a);
    for (int i = 1; i < SUMS; i++)
        sums[0] = _mm512_add_ps(sums[0], sums[i]);
    return _mm512_cvtss_f32(sums[0]);
}

TD_TARGET_BF16 static float multiply_bf16(void) {
    __m512 sums[SUMS];
    __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f00); // 0.5
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm512_set1_ps((float)i);
    for (int repeat = 0; repeat < REPEATS; repeat++)
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++)
            sums[i] = _mm512_dpbf16_ps(sums[i], a, a);
    for (int i = 1; i < SUMS; i++)
        sums[0] = _mm512_add_ps(sums[0], sums[i]);
    return _mm512_cvtss_f32(sums[0]);
}

static peak_loop find_loop(td_dtype product) {
    if (product == TD_BF16)
        return td_cpu_has_bf16() ? (peak_loop){multiply_bf16, (double)REPEATS * SUMS * BF16_FLOPS}
                                 : (peak_loop){0};
    if (td_cpu_simd() == TD_CPU_AVX512)
        return (peak_loop){multiply_avx512, (double)REPEATS * SUMS * AVX512_FLOPS};
    if (td_cpu_simd() == TD_CPU_AVX2)
        return (peak_loop){multiply_avx2, (double)REPEATS * AVX2_SUMS * AVX2_FLOPS};
    return (peak_loop){0};
}

double td_cpu_register_peak(td_dtype product) {
    peak_loop loop = find_loop(product);
    double best = 0;
    for (int round = 0; loop.run && round < ROUNDS; round++) {
        int threads = td_cpu_threads();
        float sum = 0;
        double start = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        sum += loop.run();
        double rate = loop.flops * threads / (omp_get_wtime() - start);
        best = sum > 0 && rate > best ? rate : best;
    }
    return best;
}
