// The right operand of matrix products in the layout that the inner loop reads: strips of 16
// columns, row after row. A frozen weight is dequantized into it directly. The same values as
// td_cpu_dequantize_span() gives, at every vector width.
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/gemm_internal.h"
#include "kernels/cpu/nf4_internal.h"
#include "kernels/cpu/weights_internal.h"

enum { STRIP = TD_GEMM_STRIP, CHUNK = TD_NF4_BLOCK };

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void transpose_scalar(const float *in, int64_t stride, float *out) {
    for (int k = 0; k < STRIP; k++)
        for (int n = 0; n < STRIP; n++)
            out[k * STRIP + n] = in[n * stride + k];
}

// Four rows of `in` meet in each 128-bit lane.
TD_TARGET_AVX2 static void transpose_8x8_avx2(const float *in, int64_t stride, float *out) {
    __m256 row[8], pair[8], four[8];
    for (int i = 0; i < 4; i++) {
        const float *low = in + i * stride, *high = low + 4 * stride;
        row[i] = _mm256_set_m128(_mm_loadu_ps(high), _mm_loadu_ps(low));
        row[i + 4] = _mm256_set_m128(_mm_loadu_ps(high + 4), _mm_loadu_ps(low + 4));
    }
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
        four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
        four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
        four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
    for (int i = 0; i < 8; i++)
        _mm256_storeu_ps(out + i * STRIP, four[i]);
}

TD_TARGET_AVX2 static void transpose_avx2(const float *in, int64_t stride, float *out) {
    for (int n = 0; n < STRIP; n += 8)
        for (int k = 0; k < STRIP; k += 8)
            transpose_8x8_avx2(in + n * stride + k, stride, out + k * STRIP + n);
}

// A 4 x 4 transposition of 128-bit lanes is done by the loads, one within the lanes follows.
TD_TARGET_AVX512 static void transpose_avx512(const float *in, int64_t stride, float *out) {
    for (int k = 0; k < STRIP; k += 4) {
        __m512 row[4];
        for (int i = 0; i < 4; i++) {
            const float *p = in + i * stride + k;
            row[i] = _mm512_castps128_ps512(_mm_loadu_ps(p));
            row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(p + 4 * stride), 1);
            row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(p + 8 * stride), 2);
            row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(p + 12 * stride), 3);
        }
        __m512 low01 = _mm512_unpacklo_ps(row[0], row[1]),
               low23 = _mm512_unpacklo_ps(row[2], row[3]);
        __m512 high01 = _mm512_unpackhi_ps(row[0], row[1]);
        __m512 high23 = _mm512_unpackhi_ps(row[2], row[3]);
        _mm512_storeu_ps(out + k * STRIP, _mm512_shuffle_ps(low01, low23, 0x44));
        _mm512_storeu_ps(out + (k + 1) * STRIP, _mm512_shuffle_ps(low01, low23, 0xee));
        _mm512_storeu_ps(out + (k + 2) * STRIP, _mm512_shuffle_ps(high01, high23, 0x44));
        _mm512_storeu_ps(out + (k + 3) * STRIP, _mm512_shuffle_ps(high01, high23, 0xee));
    }
}

void td_gemm_transpose(const float *in, int64_t stride, float *out) {
    switch (td_cpu_simd()) {
    case TD_CPU_AVX512:
        transpose_avx512(in, stride, out);
        return;
    case TD_CPU_AVX2:
        transpose_avx2(in, stride, out);
        return;
    case TD_CPU_SCALAR:
        break;
    }
    transpose_scalar(in, stride, out);
}

// Columns of a strip are rows of the matrix: `live` rows from row n, elements k of each. Through a
// buffer of as many elements of each row as lie in a block.
static void pack_rows(const td_matrix *matrix, td_cpu_range k, int64_t n, int64_t live,
                      float *out) {
    float buffer[STRIP * CHUNK] = {0};
    for (int64_t begin = k.begin; begin < k.end; begin += CHUNK) {
        int64_t count = smaller(CHUNK, k.end - begin);
        for (int64_t i = 0; i < live; i++) {
            int64_t element = (n + i) * matrix->cols + begin;
            td_cpu_dequantize_span(matrix, element, element + count, buffer + i * CHUNK);
        }
        for (int64_t j = 0; j < count; j += STRIP)
            td_gemm_transpose(buffer + j, CHUNK, out + (begin - k.begin + j) * STRIP);
    }
}

static void pack_f32_rows(const td_matrix *matrix, td_cpu_range k, int64_t n, int64_t live,
                          float *out) {
    int64_t whole = live == STRIP ? (k.end - k.begin) / STRIP * STRIP : 0;
    const float *from = (const float *)matrix->data + n * matrix->cols + k.begin;
    for (int64_t j = 0; j < whole; j += STRIP)
        td_gemm_transpose(from + j, matrix->cols, out + j * STRIP);
    td_cpu_range rest = {k.begin + whole, k.end};
    if (rest.begin < rest.end)
        pack_rows(matrix, rest, n, live, out + whole * STRIP);
}

// Sixteen rows whose blocks begin where the row does. Codes are transposed rather than values: an
// eighth of the shuffles, and every lane keeps its row's scale.
TD_TARGET_AVX512 static void pack_nf4_rows_avx512(const td_matrix *matrix, td_cpu_range k,
                                                  int64_t n, float *out) {
    static const unsigned shift[8] = {4, 0, 12, 8, 20, 16, 28, 24};
    const __m512 table = _mm512_loadu_ps(td_nf4_code);
    int bf16 = matrix->compute == TD_BF16;
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
            for (int j = 0; j < 8; j++, out += STRIP) {
                __m512i index = _mm512_srli_epi32(word[i], shift[j]);
                __m512 value = _mm512_mul_ps(_mm512_permutexvar_ps(index, table), scale);
                _mm512_storeu_ps(out, bf16 ? td_round_bf16_avx512(value) : value);
            }
    }
}

static void pack_strip_of_rows(const td_matrix *matrix, td_cpu_range k, int64_t n, int64_t live,
                               float *out) {
    int aligned = matrix->cols % TD_NF4_BLOCK == 0 && k.begin % TD_NF4_BLOCK == 0 &&
                  k.end % TD_NF4_BLOCK == 0;
    if (matrix->format == TD_MATRIX_F32)
        pack_f32_rows(matrix, k, n, live, out);
    else if (matrix->format == TD_MATRIX_NF4 && aligned && live == STRIP &&
             td_cpu_simd() == TD_CPU_AVX512)
        pack_nf4_rows_avx512(matrix, k, n, out);
    else
        pack_rows(matrix, k, n, live, out);
}

// Columns of the strips are columns of the matrix: `n` elements of a row in whole strips, which lie
// in one block each. What the 16 codes stand for in a block is looked up rather than multiplied.

TD_TARGET_AVX2 static inline __m256 look_up_avx2(const uint8_t *codes, __m256 low, __m256 high) {
    const __m256i shift = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    int32_t word;
    memcpy(&word, codes, sizeof word);
    __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(word), shift);
    __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                            _mm256_permutevar8x32_ps(high, index), upper);
}

TD_TARGET_AVX2 static void pack_nf4_row_avx2(const td_matrix *matrix, int64_t element, int64_t n,
                                             float *out, int64_t strip) {
    __m256 low = _mm256_setzero_ps(), high = low;
    for (int64_t i = 0; i < n; i += STRIP, out += strip) {
        if (i == 0 || (element + i) % TD_NF4_BLOCK == 0) {
            __m256 scale = _mm256_set1_ps(td_nf4_scale(matrix, (element + i) / TD_NF4_BLOCK));
            low = _mm256_mul_ps(_mm256_loadu_ps(td_nf4_code), scale);
            high = _mm256_mul_ps(_mm256_loadu_ps(td_nf4_code + 8), scale);
            low = matrix->compute == TD_BF16 ? td_round_bf16_avx2(low) : low;
            high = matrix->compute == TD_BF16 ? td_round_bf16_avx2(high) : high;
        }
        const uint8_t *codes = (const uint8_t *)matrix->data + (element + i) / 2;
        _mm256_storeu_ps(out, look_up_avx2(codes, low, high));
        _mm256_storeu_ps(out + 8, look_up_avx2(codes + 4, low, high));
    }
}

TD_TARGET_AVX512 static void pack_nf4_row_avx512(const td_matrix *matrix, int64_t element,
                                                 int64_t n, float *out, int64_t strip) {
    const __m512i shift =
        _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
    const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    __m512 table = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += STRIP, out += strip) {
        if (i == 0 || (element + i) % TD_NF4_BLOCK == 0) {
            float scale = td_nf4_scale(matrix, (element + i) / TD_NF4_BLOCK);
            table = _mm512_mul_ps(_mm512_loadu_ps(td_nf4_code), _mm512_set1_ps(scale));
            table = matrix->compute == TD_BF16 ? td_round_bf16_avx512(table) : table;
        }
        const uint8_t *codes = (const uint8_t *)matrix->data + (element + i) / 2;
        __m512i words = _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i *)codes));
        __m512i index = _mm512_srlv_epi32(_mm512_permutexvar_epi32(half, words), shift);
        _mm512_storeu_ps(out, _mm512_permutexvar_ps(index, table));
    }
}

// One row of any matrix, through a buffer.
static void pack_row(const td_matrix *matrix, int64_t element, int64_t n, float *out,
                     int64_t strip) {
    float buffer[TD_GEMM_COLUMNS];
    const float *from = buffer;
    if (matrix->format == TD_MATRIX_F32)
        from = (const float *)matrix->data + element;
    else
        td_cpu_dequantize_span(matrix, element, element + n, buffer);
    for (int64_t i = 0; i < n; i += STRIP)
        memcpy(out + i / STRIP * strip, from + i,
               n - i < STRIP ? (size_t)(n - i) * sizeof *out : STRIP * sizeof *out);
}

static void pack_columns(const td_matrix *matrix, td_cpu_range k, td_cpu_range n, float *out,
                         int64_t strip) {
    int whole = matrix->cols % STRIP == 0 && (n.end - n.begin) % STRIP == 0;
    td_cpu_simd_level level = matrix->format == TD_MATRIX_NF4 && whole ? td_cpu_simd() : 0;
    for (int64_t row = k.begin; row < k.end; row++, out += STRIP) {
        int64_t element = row * matrix->cols + n.begin;
        switch (level) {
        case TD_CPU_AVX512:
            pack_nf4_row_avx512(matrix, element, n.end - n.begin, out, strip);
            break;
        case TD_CPU_AVX2:
            pack_nf4_row_avx2(matrix, element, n.end - n.begin, out, strip);
            break;
        case TD_CPU_SCALAR:
            pack_row(matrix, element, n.end - n.begin, out, strip);
            break;
        }
    }
}

static void scale_strips(float scale, int64_t k, int64_t n, float *out, int64_t strip) {
    for (int64_t i = 0; i < n; i += STRIP, out += strip)
        for (int64_t j = 0; j < k * STRIP; j++)
            out[j] *= scale;
}

void td_gemm_pack(const td_gemm_right *right, td_cpu_range k, td_cpu_range n, float *out,
                  int64_t strip) {
    const td_matrix *matrix = right->matrix;
    if (right->transposed)
        for (int64_t i = n.begin; i < n.end; i += STRIP)
            pack_strip_of_rows(matrix, k, i, smaller(STRIP, n.end - i),
                               out + (i - n.begin) / STRIP * strip);
    else
        pack_columns(matrix, k, n, out, strip);
    if (right->scale != 1.0f)
        scale_strips(right->scale, k.end - k.begin, n.end - n.begin, out, strip);
}
