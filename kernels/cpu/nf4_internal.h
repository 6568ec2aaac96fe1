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

// Eight words of codes of each of 16 rows, transposed: word[d] holds word d of every row.
TD_TARGET_AVX512 static inline void td_nf4_load_words(const uint8_t *codes, int64_t row_bytes,
                                                      __m512i *word) {
    __m512i row[8], pair[8], four[8];
    for (int i = 0; i < 8; i++) {
        const uint8_t *low = codes + (i + (i & 4)) * row_bytes, *high = low + 4 * row_bytes;
        row[i] =
            _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)low)),
                               _mm256_loadu_si256((const __m256i *)high), 1);
    }
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        pair[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        four[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
        four[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
        four[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
        four[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        word[i] = _mm512_shuffle_i32x4(four[i], four[i + 4], 0x88);
        word[i + 4] = _mm512_shuffle_i32x4(four[i], four[i + 4], 0xdd);
    }
}

#endif
