// The right operand of products in bf16: strips of 16 columns in words of two rows. NF4 goes there
// without a detour where the processor rounds to bf16 itself, bf16 everywhere; what is left goes
// through td_gemm_pack(), a few rows at a time. The same values by every way.
#include <string.h>

#include "kernels/cpu/bf16_pairs.h"
#include "kernels/cpu/gemm_internal.h"
#include "kernels/cpu/nf4_internal.h"

enum { STRIP = TD_GEMM_STRIP, CHUNK = TD_NF4_BLOCK };

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// One strip of any operand.
static void pack_strip(const td_gemm_right *right, td_cpu_range k, td_cpu_range n, float *out) {
    static const float zero[STRIP];
    float rows[CHUNK * STRIP] = {0};
    for (int64_t begin = k.begin; begin < k.end; begin += CHUNK) {
        int64_t end = smaller(begin + CHUNK, k.end);
        td_gemm_pack(right, (td_cpu_range){begin, end}, n, rows, CHUNK * STRIP);
        for (int64_t i = 0; i < end - begin; i += 2, out += STRIP) {
            const float *even = rows + i * STRIP;
            const float *odd = begin + i + 1 < end ? even + STRIP : zero;
            td_bf16_interleave(even, odd, STRIP, out);
        }
    }
}

static void pack_any(const td_gemm_right *right, td_cpu_range k, td_cpu_range n, float *out,
                     int64_t strip) {
    for (int64_t i = n.begin; i < n.end; i += STRIP, out += strip)
        pack_strip(right, k, (td_cpu_range){i, smaller(i + STRIP, n.end)}, out);
}

// Sixteen rows of the matrix, whose blocks begin where the row does.
TD_TARGET_BF16 static void nf4_rows_bf16(const td_matrix *matrix, td_cpu_range k, int64_t n,
                                         float *out) {
    static const unsigned shift[8] = {4, 0, 12, 8, 20, 16, 28, 24};
    const __m512 table = _mm512_loadu_ps(td_nf4_code);
    int64_t row_bytes = matrix->cols / 2;
    for (int64_t begin = k.begin; begin < k.end; begin += CHUNK) {
        float scales[STRIP];
        int64_t element = n * matrix->cols + begin;
        for (int64_t i = 0; i < STRIP; i++)
            scales[i] = td_nf4_scale(matrix, (element + i * matrix->cols) / TD_NF4_BLOCK);
        __m512 scale = _mm512_loadu_ps(scales);
        __m512i word[8];
        td_nf4_load_words((const uint8_t *)matrix->data + element / 2, row_bytes, word);
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 8; j += 2, out += STRIP) {
                __m512i first = _mm512_srli_epi32(word[i], shift[j]);
                __m512i second = _mm512_srli_epi32(word[i], shift[j + 1]);
                td_lanes_avx512 even = {_mm512_mul_ps(_mm512_permutexvar_ps(first, table), scale)};
                td_lanes_avx512 odd = {_mm512_mul_ps(_mm512_permutexvar_ps(second, table), scale)};
                td_lanes_store_avx512(out, td_pairs_join_native(even, odd));
            }
    }
}

static void bf16_rows(const td_matrix *matrix, td_cpu_range k, int64_t n, float *out) {
    const uint16_t *from = (const uint16_t *)matrix->data + n * matrix->cols + k.begin;
    for (int64_t i = 0; i < k.end - k.begin; i += 2 * STRIP, out += STRIP * STRIP)
        td_gemm_transpose((const float *)(const void *)(from + i), matrix->cols / 2, out);
}

// Of operands whose columns are rows of the matrix.
static void pack_rows(const td_gemm_right *right, td_cpu_range k, td_cpu_range n, float *out,
                      int64_t strip) {
    const td_matrix *matrix = right->matrix;
    int aligned = matrix->cols % CHUNK == 0 && k.begin % CHUNK == 0 && k.end % CHUNK == 0;
    int nf4 = aligned && matrix->format == TD_MATRIX_NF4 && td_cpu_has_bf16();
    int bf16 = aligned && matrix->format == TD_MATRIX_BF16;
    for (int64_t i = n.begin; i < n.end; i += STRIP, out += strip) {
        if (nf4 && n.end - i >= STRIP)
            nf4_rows_bf16(matrix, k, i, out);
        else if (bf16 && n.end - i >= STRIP)
            bf16_rows(matrix, k, i, out);
        else
            pack_strip(right, k, (td_cpu_range){i, smaller(i + STRIP, n.end)}, out);
    }
}

// What the 16 codes stand for in a block, in 16 bits each.
TD_TARGET_BF16 static inline __m512i nf4_values_bf16(const td_matrix *matrix, int64_t element) {
    float scale = td_nf4_scale(matrix, element / TD_NF4_BLOCK);
    __m512 values = _mm512_mul_ps(_mm512_loadu_ps(td_nf4_code), _mm512_set1_ps(scale));
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(values));
}

TD_TARGET_BF16 static inline __m512i nf4_index(const uint8_t *codes) {
    const __m512i shift =
        _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
    const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    __m512i words = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i *)codes));
    return _mm512_srlv_epi32(_mm512_permutexvar_epi32(half, words), shift);
}

// Two rows of the matrix from two elements on: n in whole strips, which lie in one block each.
TD_TARGET_BF16 static void nf4_row_pair_bf16(const td_matrix *matrix, int64_t even, int64_t odd,
                                             int64_t n, float *out, int64_t strip) {
    const uint8_t *codes = matrix->data;
    __m512i low = _mm512_setzero_si512(), high = low;
    for (int64_t i = 0; i < n; i += STRIP, out += strip) {
        if (i == 0 || (even + i) % TD_NF4_BLOCK == 0)
            low = nf4_values_bf16(matrix, even + i);
        if (i == 0 || (odd + i) % TD_NF4_BLOCK == 0)
            high = _mm512_slli_epi32(nf4_values_bf16(matrix, odd + i), 16);
        __m512i first = _mm512_permutexvar_epi32(nf4_index(codes + (even + i) / 2), low);
        __m512i second = _mm512_permutexvar_epi32(nf4_index(codes + (odd + i) / 2), high);
        _mm512_storeu_si512(out, _mm512_or_si512(first, second));
    }
}

TD_TARGET_BF16 static void f32_row_pair_bf16(const float *even, const float *odd, int64_t n,
                                             float *out, int64_t strip) {
    for (int64_t i = 0; i < n; i += STRIP, out += strip)
        td_lanes_store_avx512(out, td_pairs_join_native(td_lanes_load_avx512(even + i),
                                                        td_lanes_load_avx512(odd + i)));
}

TD_TARGET_AVX512 static void bf16_row_pair_avx512(const uint16_t *even, const uint16_t *odd,
                                                  int64_t n, float *out, int64_t strip) {
    for (int64_t i = 0; i < n; i += STRIP, out += strip) {
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(even + i)));
        __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(odd + i)));
        _mm512_storeu_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

static int has_row_pairs(const td_gemm_right *right, td_cpu_range n) {
    const td_matrix *matrix = right->matrix;
    if ((n.end - n.begin) % STRIP != 0 || right->scale != 1.0f)
        return 0;
    switch (matrix->format) {
    case TD_MATRIX_NF4:
        return td_cpu_has_bf16() && matrix->cols % STRIP == 0;
    case TD_MATRIX_F32:
        return td_cpu_has_bf16();
    case TD_MATRIX_BF16:
        return td_cpu_simd() == TD_CPU_AVX512;
    }
    return 0;
}

static void pack_row_pair(const td_matrix *matrix, int64_t row, td_cpu_range n, float *out,
                          int64_t strip) {
    int64_t even = row * matrix->cols + n.begin, odd = even + matrix->cols;
    int64_t count = n.end - n.begin;
    switch (matrix->format) {
    case TD_MATRIX_NF4:
        nf4_row_pair_bf16(matrix, even, odd, count, out, strip);
        break;
    case TD_MATRIX_F32:
        f32_row_pair_bf16((const float *)matrix->data + even, (const float *)matrix->data + odd,
                          count, out, strip);
        break;
    case TD_MATRIX_BF16:
        bf16_row_pair_avx512((const uint16_t *)matrix->data + even,
                             (const uint16_t *)matrix->data + odd, count, out, strip);
        break;
    }
}

// Of operands whose columns are columns of the matrix: pairs of rows, and a last one by itself.
static void pack_columns(const td_gemm_right *right, td_cpu_range k, td_cpu_range n, float *out,
                         int64_t strip) {
    int64_t whole = has_row_pairs(right, n) ? k.begin + (k.end - k.begin) / 2 * 2 : k.begin;
    for (int64_t row = k.begin; row < whole; row += 2, out += STRIP)
        pack_row_pair(right->matrix, row, n, out, strip);
    if (whole < k.end)
        pack_any(right, (td_cpu_range){whole, k.end}, n, out, strip);
}

void td_gemm_pack_pairs(const td_gemm_right *right, td_cpu_range k, td_cpu_range n, float *out,
                        int64_t strip) {
    if (right->transposed)
        pack_rows(right, k, n, out, strip);
    else
        pack_columns(right, k, n, out, strip);
}
