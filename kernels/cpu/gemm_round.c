// Left operands of products in bf16, a tile's rows at a time, as they are needed: a pass of its own
// over an operand would wait for memory.
#include "kernels/cpu/bf16_pairs.h"
#include "kernels/cpu/gemm_internal.h"

enum { ROWS = TD_GEMM_TILE_ROWS };

// Rows whose elements lie side by side: one after the other.
static td_gemm_left round_rows(const td_gemm_left *left, int64_t rows, float *out) {
    int64_t words = td_bf16_words(left->k), row = td_gemm_rounded_row(words);
    for (int64_t i = 0; i < rows; i++)
        td_bf16_pair_up(left->data + i * left->row, left->k, out + i * row);
    return (td_gemm_left){.data = out, .row = row, .step = 1, .k = words};
}

static td_gemm_left keep_rows(const td_gemm_left *left, int64_t rows) {
    for (int64_t i = 0; i < rows && !left->is_rounded; i++)
        td_bf16_pair_up(left->data + i * left->row, left->k, left->words + i * left->words_row);
    return (td_gemm_left){
        .data = left->words, .row = left->words_row, .step = 1, .k = td_bf16_words(left->k)};
}

// Rows that are columns in memory: the words of all of them for one pair after the other.
static td_gemm_left round_columns(const td_gemm_left *left, int64_t rows, float *out) {
    static const float zero[ROWS];
    int64_t words = td_bf16_words(left->k);
    for (int64_t i = 0; i < words; i++) {
        const float *even = left->data + 2 * i * left->step;
        const float *odd = 2 * i + 1 < left->k ? even + left->step : zero;
        td_bf16_interleave(even, odd, rows, out + i * ROWS);
    }
    return (td_gemm_left){.data = out, .row = 1, .step = ROWS, .k = words};
}

void td_gemm_round_left(td_gemm_left left[2], int64_t rows, float *rounded) {
    for (int part = 0; part < 2 && left[part].k > 0; part++) {
        if (left[part].words) {
            left[part] = keep_rows(&left[part], rows);
            continue;
        }
        int64_t row = td_gemm_rounded_row(td_bf16_words(left[part].k));
        left[part] = left[part].step == 1 ? round_rows(&left[part], rows, rounded)
                                          : round_columns(&left[part], rows, rounded);
        rounded += ROWS * row;
    }
}
