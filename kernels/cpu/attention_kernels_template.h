// The inner loops of attention for one level of vector instructions. Included by
// attention_kernels.c, once per level, with TD_LANES_LEVEL, TILE_ROWS and TILE_LANES set; no
// include guard on purpose.

#define PRODUCT         KERNEL
#define PRODUCT_INLINE  TD_LANES_INLINE
#define PRODUCT_TARGET  TD_LANES_TARGET
#define OPERAND         LANES
#define OPERAND_LOAD(p) L(load)(p)
#define OPERAND_SET(x)  L(set)(x)
#define MULTIPLY_ADD    L(fma)
#include "kernels/cpu/attention_product_template.h"

// Scores as they enter the softmax, before any is masked.
TD_LANES_INLINE void KERNEL(cap)(float *x, const td_attention_strip *strip) {
    LANES cap = L(set)(strip->softcap), inverse = L(set)(strip->scale / strip->softcap);
    for (int64_t i = strip->columns.begin; i < strip->columns.end; i += TD_LANES)
        L(store)(x + i, L(mul)(cap, L(tanh)(L(mul)(L(load)(x + i), inverse))));
}

// 1 - (score / softcap)^2, of a capped score. Not below 0: a masked one is -infinity.
TD_LANES_INLINE LANES KERNEL(slope)(LANES score, LANES inverse) {
    LANES share = L(mul)(score, inverse);
    return L(max)(L(sub)(L(set)(1.0f), L(mul)(share, share)), L(set)(0.0f));
}

// Scores outside the visible keys become -infinity. Returns 0 when the row sees no column at all.
TD_LANES_INLINE int KERNEL(mask)(const td_attention_strip *strip, int64_t row, float *scores) {
    int64_t begin = strip->visible[row].begin - strip->first_key;
    int64_t end = strip->visible[row].end - strip->first_key;
    for (int64_t i = strip->columns.begin; i < begin && i < strip->columns.end; i++)
        scores[i] = -INFINITY;
    for (int64_t i = end > strip->columns.begin ? end : strip->columns.begin;
         i < strip->columns.end; i++)
        scores[i] = -INFINITY;
    return begin < strip->columns.end && end > strip->columns.begin;
}

TD_LANES_INLINE void KERNEL(clear)(float *x, td_cpu_range columns) {
    for (int64_t i = columns.begin; i < columns.end; i += TD_LANES)
        L(store)(x + i, L(set)(0.0f));
}

TD_LANES_INLINE float KERNEL(largest_of)(const float *x, td_cpu_range columns) {
    LANES largest = L(load)(x + columns.begin);
    for (int64_t i = columns.begin + TD_LANES; i < columns.end; i += TD_LANES)
        largest = L(max)(largest, L(load)(x + i));
    return L(largest)(largest);
}

// x = exp(x - shift); returns the sum.
TD_LANES_INLINE float KERNEL(exponentials)(float *x, td_cpu_range columns, float shift) {
    LANES sum = L(set)(0.0f), by = L(set)(shift);
    for (int64_t i = columns.begin; i < columns.end; i += TD_LANES) {
        LANES p = L(exp)(L(sub)(L(load)(x + i), by));
        L(store)(x + i, p);
        sum = L(add)(sum, p);
    }
    return L(sum)(sum);
}

TD_LANES_INLINE void KERNEL(scale)(float *x, int64_t n, float factor) {
    LANES by = L(set)(factor);
    for (int64_t i = 0; i < n; i += TD_LANES)
        L(store)(x + i, L(mul)(L(load)(x + i), by));
}

// Masks a row's scores. `largest` becomes the larger of it and theirs. Returns 0 when the row sees
// no column at all.
TD_LANES_INLINE int KERNEL(masked)(const td_attention_strip *strip, int64_t row, float *largest) {
    float *scores = strip->scores + row * TD_ATTENTION_SCORES;
    if (strip->softcap > 0.0f)
        KERNEL(cap)(scores, strip);
    if (!KERNEL(mask)(strip, row, scores))
        return 0;
    float here = KERNEL(largest_of)(scores, strip->columns);
    *largest = *largest > here ? *largest : here;
    return 1;
}

// What the sums so far shrink by as the largest scores grow, in whole lanes of rows.
TD_LANES_INLINE void KERNEL(corrections)(const float *before, const float *after, float *factors) {
    for (int64_t i = 0; i < TD_ATTENTION_STRIP_LANES; i += TD_LANES)
        L(store)(factors + i, L(exp)(L(sub)(L(load)(before + i), L(load)(after + i))));
}

TD_LANES_INLINE void KERNEL(softmax_begin)(const td_attention_strip *strip,
                                           const td_attention_softmax *state, softmax_rows *rows) {
    memset(rows->before, 0, sizeof rows->before);
    memset(rows->after, 0, sizeof rows->after);
    for (int64_t row = 0; row < strip->n_rows; row++) {
        rows->before[row] = rows->after[row] = state->largest[row];
        rows->seen[row] = KERNEL(masked)(strip, row, &rows->after[row]);
    }
}

// sum: of a row's new exponentials.
TD_LANES_INLINE void KERNEL(softmax_end)(const td_attention_softmax *state,
                                         const softmax_rows *rows, int64_t row, float sum) {
    state->largest[row] = rows->after[row];
    if (rows->before[row] == rows->after[row]) {
        state->sum[row] += sum;
        return;
    }
    state->sum[row] = state->sum[row] * rows->factors[row] + sum;
    KERNEL(scale)(state->out + row * state->out_stride, state->out_cols, rows->factors[row]);
}

// The rows go side by side through each pass, so that no row waits for the sum over another's
// lanes.
TD_LANES_TARGET static void KERNEL(softmax)(const td_attention_strip *strip,
                                            const td_attention_softmax *state) {
    softmax_rows rows;
    KERNEL(softmax_begin)(strip, state, &rows);
    KERNEL(corrections)(rows.before, rows.after, rows.factors);
    for (int64_t row = 0; row < strip->n_rows; row++) {
        float *scores = strip->scores + row * TD_ATTENTION_SCORES;
        if (!rows.seen[row]) {
            KERNEL(clear)(scores, strip->columns);
            continue;
        }
        float sum = KERNEL(exponentials)(scores, strip->columns, rows.after[row]);
        KERNEL(softmax_end)(state, &rows, row, sum);
    }
}

TD_LANES_TARGET static void KERNEL(gradient)(const td_attention_strip *strip,
                                             const td_attention_gradient *state) {
    LANES inverse = L(set)(strip->softcap > 0.0f ? 1.0f / strip->softcap : 0.0f);
    for (int64_t row = 0; row < strip->n_rows; row++) {
        float *scores = strip->scores + row * TD_ATTENTION_SCORES;
        float *dscores = state->dscores + row * TD_ATTENTION_SCORES;
        if (strip->softcap > 0.0f)
            KERNEL(cap)(scores, strip);
        KERNEL(mask)(strip, row, scores);
        LANES lse = L(set)(state->lse[row]), delta = L(set)(state->delta[row]);
        for (int64_t i = strip->columns.begin; i < strip->columns.end; i += TD_LANES) {
            LANES score = L(load)(scores + i), p = L(exp)(L(sub)(score, lse));
            LANES change = L(sub)(L(load)(dscores + i), delta);
            if (strip->softcap > 0.0f)
                change = L(mul)(change, KERNEL(slope)(score, inverse));
            L(store)(scores + i, p);
            L(store)(dscores + i, L(mul)(p, change));
        }
    }
}

// The tail of a row is summed with zeros beside it.
TD_LANES_INLINE LANES KERNEL(load_tail)(const float *x, int64_t n) {
    float padded[TD_LANES] = {0};
    memcpy(padded, x, (size_t)n * sizeof *x);
    return L(load)(padded);
}

TD_LANES_TARGET static void KERNEL(row_dots)(int64_t n_rows, int64_t n_cols, const float *a,
                                             const float *b, float *out) {
    for (int64_t row = 0; row < n_rows; row++, a += n_cols, b += n_cols) {
        LANES sum = L(set)(0.0f);
        int64_t i = 0;
        for (; i + TD_LANES <= n_cols; i += TD_LANES)
            sum = L(fma)(L(load)(a + i), L(load)(b + i), sum);
        if (i < n_cols)
            sum = L(fma)(KERNEL(load_tail)(a + i, n_cols - i), KERNEL(load_tail)(b + i, n_cols - i),
                         sum);
        out[row] = L(sum)(sum);
    }
}

TD_LANES_TARGET static void KERNEL(copy_row)(const float *from, int64_t n, float factor, float *to,
                                             int64_t n_to) {
    LANES by = L(set)(factor);
    int64_t i = 0;
    for (; i + TD_LANES <= n; i += TD_LANES)
        L(store)(to + i, L(mul)(L(load)(from + i), by));
    if (i < n) {
        float padded[TD_LANES];
        L(store)(padded, L(mul)(KERNEL(load_tail)(from + i, n - i), by));
        int64_t left = n_to - i;
        memcpy(to + i, padded, (size_t)(left < TD_LANES ? left : TD_LANES) * sizeof *to);
        i += TD_LANES;
    }
    for (; i < n_to; i++)
        to[i] = 0.0f;
}

static const td_attention_kernels KERNEL(kernels) = {
    .pair = 1,
    .multiply = KERNEL(multiply),
    .softmax = KERNEL(softmax),
    .gradient = KERNEL(gradient),
    .row_dots = KERNEL(row_dots),
    .copy_row = KERNEL(copy_row),
    .pack_row = KERNEL(copy_row),
};
