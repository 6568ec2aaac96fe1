// Frozen weights as fp32. The same bits at every vector width: one product per weight, and one
// rounding to bf16 where the matrix says so.
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/cpu_internal.h"
#include "kernels/cpu/nf4_internal.h"
#include "kernels/cpu/weights_internal.h"

const float td_nf4_code[16] = {TD_NF4_CODES};

static float round_to_compute(const td_matrix *matrix, float value) {
    return matrix->compute == TD_BF16 ? td_bf16_to_f32(td_f32_to_bf16(value)) : value;
}

// Elements [begin, end) of one block.
static void nf4_part(const td_matrix *matrix, int64_t begin, int64_t end, float *out) {
    const uint8_t *codes = matrix->data;
    float scale = td_nf4_scale(matrix, begin / TD_NF4_BLOCK), values[16];
    for (int i = 0; i < 16; i++)
        values[i] = round_to_compute(matrix, td_nf4_code[i] * scale);
    for (int64_t i = begin; i < end; i++)
        out[i - begin] = values[i & 1 ? codes[i / 2] & 15 : codes[i / 2] >> 4];
}

static void nf4_blocks_scalar(const td_matrix *matrix, int64_t block, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i++)
        nf4_part(matrix, (block + i) * TD_NF4_BLOCK, (block + i + 1) * TD_NF4_BLOCK,
                 out + i * TD_NF4_BLOCK);
}

// Eight codes lie in one 32-bit word, the first in bits 4..7: a shift per lane brings each down,
// and the table look-up ignores what is above.
TD_TARGET_AVX2 static void nf4_blocks_avx2(const td_matrix *matrix, int64_t block, int64_t count,
                                           float *out) {
    const __m256i shift = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    const __m256 low = _mm256_loadu_ps(td_nf4_code), high = _mm256_loadu_ps(td_nf4_code + 8);
    int bf16 = matrix->compute == TD_BF16;
    for (int64_t b = block; b < block + count; b++, out += TD_NF4_BLOCK) {
        const uint8_t *codes = (const uint8_t *)matrix->data + b * (TD_NF4_BLOCK / 2);
        __m256 scale = _mm256_set1_ps(td_nf4_scale(matrix, b));
        for (int i = 0; i < TD_NF4_BLOCK / 8; i++) {
            int32_t word;
            memcpy(&word, codes + 4 * i, sizeof word);
            __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(word), shift);
            __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
            __m256 value = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                                            _mm256_permutevar8x32_ps(high, index), upper);
            value = _mm256_mul_ps(value, scale);
            _mm256_storeu_ps(out + 8 * i, bf16 ? td_round_bf16_avx2(value) : value);
        }
    }
}

TD_TARGET_AVX512 static void nf4_blocks_avx512(const td_matrix *matrix, int64_t block,
                                               int64_t count, float *out) {
    const __m512i shift =
        _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
    const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512 table = _mm512_loadu_ps(td_nf4_code);
    int bf16 = matrix->compute == TD_BF16;
    for (int64_t b = block; b < block + count; b++, out += TD_NF4_BLOCK) {
        const uint8_t *codes = (const uint8_t *)matrix->data + b * (TD_NF4_BLOCK / 2);
        __m512i words = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)codes));
        __m512 scale = _mm512_set1_ps(td_nf4_scale(matrix, b));
        for (int i = 0; i < TD_NF4_BLOCK / 16; i++) {
            __m512i pair = _mm512_add_epi32(half, _mm512_set1_epi32(2 * i));
            __m512i index = _mm512_srlv_epi32(_mm512_permutexvar_epi32(pair, words), shift);
            __m512 value = _mm512_mul_ps(_mm512_permutexvar_ps(index, table), scale);
            _mm512_storeu_ps(out + 16 * i, bf16 ? td_round_bf16_avx512(value) : value);
        }
    }
}

static void nf4_blocks(const td_matrix *matrix, int64_t block, int64_t count, float *out) {
    switch (td_cpu_simd()) {
    case TD_CPU_AVX512:
        nf4_blocks_avx512(matrix, block, count, out);
        break;
    case TD_CPU_AVX2:
        nf4_blocks_avx2(matrix, block, count, out);
        break;
    case TD_CPU_SCALAR:
        nf4_blocks_scalar(matrix, block, count, out);
        break;
    }
}

static void nf4_span(const td_matrix *matrix, int64_t begin, int64_t end, float *out) {
    int64_t position = begin;
    int64_t first_border = (begin + TD_NF4_BLOCK - 1) / TD_NF4_BLOCK * TD_NF4_BLOCK;
    if (first_border > end)
        first_border = end;
    if (position < first_border) {
        nf4_part(matrix, position, first_border, out);
        position = first_border;
    }
    int64_t whole = (end - position) / TD_NF4_BLOCK;
    if (whole > 0)
        nf4_blocks(matrix, position / TD_NF4_BLOCK, whole, out + (position - begin));
    position += whole * TD_NF4_BLOCK;
    if (position < end)
        nf4_part(matrix, position, end, out + (position - begin));
}

TD_TARGET_AVX2 static int64_t bf16_avx2(const uint16_t *source, int64_t n, float *out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i halves = _mm_loadu_si128((const __m128i *)(source + i));
        __m256i words = _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
        _mm256_storeu_ps(out + i, _mm256_castsi256_ps(words));
    }
    return i;
}

static void bf16_span(const uint16_t *source, int64_t n, float *out) {
    int64_t i = td_cpu_simd() >= TD_CPU_AVX2 ? bf16_avx2(source, n, out) : 0;
    for (; i < n; i++)
        out[i] = td_bf16_to_f32(source[i]);
}

void td_cpu_dequantize_span(const td_matrix *matrix, int64_t begin, int64_t end, float *out) {
    switch (matrix->format) {
    case TD_MATRIX_F32:
        memcpy(out, (const float *)matrix->data + begin, (size_t)(end - begin) * sizeof *out);
        break;
    case TD_MATRIX_BF16:
        bf16_span((const uint16_t *)matrix->data + begin, end - begin, out);
        break;
    case TD_MATRIX_NF4:
        nf4_span(matrix, begin, end, out);
        break;
    }
}

void td_cpu_dequantize_rows(const td_matrix *matrix, int64_t row_begin, int64_t row_count,
                            float *out) {
    int64_t begin = row_begin * matrix->cols, n = row_count * matrix->cols;
    int threads = n > TD_CPU_PARALLEL_ELEMENTS ? td_cpu_threads() : 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        td_cpu_range range = td_cpu_split(n, TD_NF4_BLOCK, threads, part);
        td_cpu_dequantize_span(matrix, begin + range.begin, begin + range.end, out + range.begin);
    }
}

td_status td_cpu_dequantize(const td_op_context *context, const td_dequantize_args *args) {
    (void)context;
    td_cpu_dequantize_rows(args->matrix, args->row_begin, args->row_count, args->out);
    return TD_OK;
}
