// The inner loops of attention with products in bf16 for one level of vector instructions: what
// rounds and pairs the operands (bf16_pairs.h). Included by attention_kernels.c once per level
// behind attention_kernels_template.h, with PAIRS_LEVEL set; no include guard on purpose.

#define P(name)      TD_LANES_JOIN(td_pairs_##name##_, PAIRS_LEVEL)
#define PAIRS(name)  TD_LANES_JOIN(pairs_##name##_, PAIRS_LEVEL)
#define PAIRS_INLINE TD_LANES_JOIN(TD_PAIRS_INLINE_, PAIRS_LEVEL)
#define PAIRS_TARGET TD_LANES_JOIN(TD_PAIRS_TARGET_, PAIRS_LEVEL)

#define PRODUCT(name)     PAIRS(name)
#define PRODUCT_INLINE    PAIRS_INLINE
#define PRODUCT_TARGET    PAIRS_TARGET
#define OPERAND           TD_LANES_JOIN(td_pairs_, PAIRS_LEVEL)
#define OPERAND_LOAD(p)   P(split)(L(load)(p))
#define OPERAND_SET(word) P(split)(L(set)(word))
#define MULTIPLY_ADD      P(multiply_add)
#include "kernels/cpu/attention_product_template.h"

// x = 2^(factor x - shift), rounded, in the first half of where it was; returns the sum before
// rounding.
PAIRS_INLINE float PAIRS(exponentials)(float *x, td_cpu_range columns, float factor, float shift) {
    LANES sum = L(set)(0.0f), by = L(set)(factor), less = L(set)(shift);
    for (int64_t i = columns.begin; i < columns.end; i += TD_LANES) {
        LANES p = P(exp2)(L(sub)(L(mul)(L(load)(x + i), by), less));
        P(store)(x + i / 2, p);
        sum = L(add)(sum, p);
    }
    return L(sum)(sum);
}

// The largest scores as exponents of two, which are 0 apart where the scores are equal, and what
// the sums so far shrink by.
PAIRS_INLINE void PAIRS(corrections)(softmax_rows *rows, float factor) {
    LANES by = L(set)(factor);
    for (int64_t i = 0; i < TD_ATTENTION_STRIP_LANES; i += TD_LANES) {
        LANES shift = L(mul)(L(load)(rows->after + i), by);
        LANES before = L(mul)(L(load)(rows->before + i), by);
        L(store)(rows->shifts + i, shift);
        L(store)(rows->factors + i, P(exp2)(L(sub)(before, shift)));
    }
}

PAIRS_TARGET static void PAIRS(softmax)(const td_attention_strip *strip,
                                        const td_attention_softmax *state) {
    softmax_rows rows;
    float factor = td_attention_factor(strip->scale, strip->softcap) * LOG2_E;
    KERNEL(softmax_begin)(strip, state, &rows);
    PAIRS(corrections)(&rows, factor);
    for (int64_t row = 0; row < strip->n_rows; row++) {
        float *scores = strip->scores + row * TD_ATTENTION_SCORES;
        if (!rows.seen[row]) {
            memset(scores + strip->columns.begin / 2, 0,
                   (size_t)(strip->columns.end - strip->columns.begin) / 2 * sizeof *scores);
            continue;
        }
        float sum = PAIRS(exponentials)(scores, strip->columns, factor, rows.shifts[row]);
        KERNEL(softmax_end)(state, &rows, row, sum);
    }
}

// Probabilities and gradients of a row's sixteen scores.
PAIRS_INLINE void PAIRS(gradient_lanes)(const td_attention_strip *strip, const float *scores,
                                        const float *dscores, float lse, float delta,
                                        LANES out[2]) {
    LANES score = L(load)(scores);
    LANES factor = L(set)(td_attention_factor(strip->scale, strip->softcap) * LOG2_E);
    LANES p = P(exp2)(L(sub)(L(mul)(score, factor), L(set)(lse * LOG2_E)));
    LANES change = L(sub)(L(load)(dscores), L(set)(delta));
    if (strip->softcap > 0.0f)
        change = L(mul)(change, KERNEL(slope)(score, L(set)(1.0f / strip->softcap)));
    out[0] = p;
    out[1] = L(mul)(p, change);
}

PAIRS_INLINE void PAIRS(gradient_mask)(const td_attention_strip *strip, int64_t row) {
    float *scores = strip->scores + row * TD_ATTENTION_SCORES;
    if (strip->softcap > 0.0f)
        KERNEL(cap)(scores, strip);
    KERNEL(mask)(strip, row, scores);
}

// Rows `row` and the one below it, which is zeros behind the last.
PAIRS_INLINE void PAIRS(gradient_rows)(const td_attention_strip *strip,
                                       const td_attention_gradient *state, int64_t row, int both) {
    float *scores = strip->scores + row * TD_ATTENTION_SCORES;
    float *dscores = state->dscores + row * TD_ATTENTION_SCORES;
    float *pairs = state->pairs + row * TD_ATTENTION_PAIRS;
    for (int64_t i = strip->columns.begin; i < strip->columns.end; i += TD_LANES) {
        LANES upper[2], lower[2] = {L(set)(0.0f), L(set)(0.0f)};
        PAIRS(gradient_lanes)
        (strip, scores + i, dscores + i, state->lse[row], state->delta[row], upper);
        P(store)(pairs + i / 2, upper[1]);
        if (both) {
            PAIRS(gradient_lanes)
            (strip, scores + TD_ATTENTION_SCORES + i, dscores + TD_ATTENTION_SCORES + i,
             state->lse[row + 1], state->delta[row + 1], lower);
            P(store)(pairs + TD_ATTENTION_PAIRS + i / 2, lower[1]);
        }
        L(store)(scores + i, P(join)(upper[0], lower[0]));
        L(store)(dscores + i, P(join)(upper[1], lower[1]));
    }
}

PAIRS_TARGET static void PAIRS(gradient)(const td_attention_strip *strip,
                                         const td_attention_gradient *state) {
    for (int64_t row = 0; row < strip->n_rows; row++)
        PAIRS(gradient_mask)(strip, row);
    int64_t row = 0;
    for (; row + 2 <= strip->n_rows; row += 2)
        PAIRS(gradient_rows)(strip, state, row, 1);
    if (row < strip->n_rows)
        PAIRS(gradient_rows)(strip, state, row, 0);
}

// Lane i of n; zeros behind them.
PAIRS_INLINE LANES PAIRS(load_part)(const float *x, int64_t i, int64_t n) {
    if (i + TD_LANES <= n)
        return L(load)(x + i);
    return i < n ? KERNEL(load_tail)(x + i, n - i) : L(set)(0.0f);
}

// Of b's rounded elements: what the gradients of probabilities are made of, whose mean this is.
PAIRS_TARGET static void PAIRS(row_dots)(int64_t n_rows, int64_t n_cols, const float *a,
                                         const float *b, float *out) {
    for (int64_t row = 0; row < n_rows; row++, a += n_cols, b += n_cols) {
        LANES sum = L(set)(0.0f);
        for (int64_t i = 0; i < n_cols; i += TD_LANES)
            sum = P(fma)(PAIRS(load_part)(a, i, n_cols), P(round)(PAIRS(load_part)(b, i, n_cols)),
                         sum);
        out[row] = L(sum)(sum);
    }
}

// Zeros come out positive: which rows share a strip decides how many zeros are added to a sum.
PAIRS_TARGET static void PAIRS(copy_row)(const float *from, int64_t n, float factor, float *to,
                                         int64_t n_to) {
    LANES by = L(set)(factor), zero = L(set)(0.0f);
    int64_t i = 0;
    for (; i + TD_LANES <= n; i += TD_LANES)
        L(store)(to + i, L(add)(L(mul)(L(load)(from + i), by), zero));
    for (; i < n_to; i += TD_LANES) {
        float padded[TD_LANES];
        L(store)(padded, L(add)(L(mul)(PAIRS(load_part)(from, i, n), by), zero));
        int64_t left = n_to - i;
        memcpy(to + i, padded, (size_t)(left < TD_LANES ? left : TD_LANES) * sizeof *to);
    }
}

PAIRS_TARGET static void PAIRS(pack_row)(const float *from, int64_t n, float factor, float *words,
                                         int64_t n_to) {
    LANES by = L(set)(factor);
    for (int64_t i = 0; i < n_to; i += TD_LANES)
        P(store)(words + i / 2, L(mul)(PAIRS(load_part)(from, i, n), by));
}

PAIRS_TARGET static void PAIRS(pack_pair)(const float *first, const float *second, int64_t n,
                                          float factor, float *words, int64_t n_to) {
    LANES by = L(set)(factor);
    for (int64_t i = 0; i < n_to; i += TD_LANES) {
        LANES low = L(mul)(PAIRS(load_part)(first, i, n), by), high = L(set)(0.0f);
        if (second)
            high = L(mul)(PAIRS(load_part)(second, i, n), by);
        L(store)(words + i, P(join)(low, high));
    }
}

static const td_attention_kernels PAIRS(kernels) = {
    .pair = 2,
    .multiply = PAIRS(multiply),
    .softmax = PAIRS(softmax),
    .gradient = PAIRS(gradient),
    .row_dots = PAIRS(row_dots),
    .copy_row = PAIRS(copy_row),
    .pack_row = PAIRS(pack_row),
    .pack_pair = PAIRS(pack_pair),
};

#undef P
#undef PAIRS
#undef PAIRS_INLINE
#undef PAIRS_TARGET
#undef PAIRS_LEVEL
