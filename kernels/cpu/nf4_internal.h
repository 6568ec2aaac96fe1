// Decoding NF4 in registers: what dequantize.c and gemm_pack.c share. Not for other folders.
#ifndef TANDEM_KERNELS_CPU_NF4_INTERNAL_H
#define TANDEM_KERNELS_CPU_NF4_INTERNAL_H

#include <immintrin.h>

#include "kernels/cpu/cpu_internal.h"

extern const float td_nf4_code[16];

// What the codes of a block are multiplied by.
static inline float td_nf4_scale(const td_matrix *matrix, int64_t block) {
    if (matrix->absmax)
        return matrix->absmax[block];
    float nested = matrix->nested_absmax[block / TD_NF4_NESTED_BLOCK];
    return matrix->nested_map[matrix->absmax_codes[block]] * nested + matrix->nested_offset;
}

// The bits of td_f32_to_bf16(), as fp32.
TD_TARGET_AVX2 static inline __m256 td_round_bf16_avx2(__m256 value) {
    __m256i bits = _mm256_castps_si256(value);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x400000)));
    __m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    __m256 rounded = _mm256_blendv_ps(_mm256_castsi256_ps(up), quiet, nan);
    return _mm256_and_ps(rounded, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000u)));
}

TD_TARGET_AVX512 static inline __m512 td_round_bf16_avx512(__m512 value) {
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    __m512i rounded = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32((int)0xffff0000u)));
}

#endif
