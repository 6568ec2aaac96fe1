#include "runtime/data/histogram.h"

#include <math.h>

enum {
    WANTED_BARS = 8, // at least, where lengths differ enough
    MAX_STEPS = 16,  // of an octave
};

// Index of the highest bit that is set.
static int log2_floor(uint64_t value) {
    return 63 - __builtin_clzll(value);
}

// Lengths below 2 * STEPS have a count each; octave k above them is cut into STEPS counts.
static int count_of(int64_t length) {
    if (length < 2 * TD_HISTOGRAM_STEPS)
        return length > 0 ? (int)length : 0;
    int shift = log2_floor((uint64_t)length) - log2_floor(TD_HISTOGRAM_STEPS);
    int64_t count = (int64_t)shift * TD_HISTOGRAM_STEPS + (length >> shift);
    return count < TD_HISTOGRAM_COUNTS ? (int)count : TD_HISTOGRAM_COUNTS - 1;
}

// The shortest length that is counted there; of the count after the last, one past all lengths.
static int64_t first_length(int count) {
    if (count < 2 * TD_HISTOGRAM_STEPS)
        return count;
    int shift = count / TD_HISTOGRAM_STEPS - 1;
    return (int64_t)(count - shift * TD_HISTOGRAM_STEPS) << shift;
}

void td_histogram_add(td_histogram *histogram, int64_t length) {
    histogram->counts[count_of(length)]++;
    histogram->n++;
    histogram->longest = length > histogram->longest ? length : histogram->longest;
}

int64_t td_histogram_quantile(const td_histogram *histogram, double share) {
    int64_t wanted = (int64_t)ceil(share * (double)histogram->n), seen = 0;
    for (int count = 0; count < TD_HISTOGRAM_COUNTS; count++) {
        seen += histogram->counts[count];
        if (seen > 0 && seen >= wanted) {
            int64_t last = first_length(count + 1) - 1;
            return last < histogram->longest ? last : histogram->longest;
        }
    }
    return 0;
}

// With two steps per octave: 1, 2, 3, 4, 6, 8, 12, 16, 24, ...
static int64_t next_edge(int64_t edge, int steps) {
    if (edge < steps)
        return edge + 1;
    int64_t octave = (int64_t)1 << log2_floor((uint64_t)edge);
    return edge + (octave > steps ? octave / steps : 1);
}

static int64_t rows_between(const td_histogram *histogram, int64_t from, int64_t to) {
    int64_t rows = 0;
    for (int count = count_of(from); count <= count_of(to); count++)
        rows += histogram->counts[count];
    return rows;
}

static int fill_bars(const td_histogram *histogram, int steps,
                     td_histogram_bar out[TD_HISTOGRAM_MAX_BARS]) {
    int n = 0;
    for (int64_t from = 0, next; from <= histogram->longest; from = next) {
        next = next_edge(from, steps);
        td_histogram_bar bar = {.from = from, .to = next - 1};
        bar.rows = rows_between(histogram, bar.from, bar.to);
        int is_before_first = n == 0 && bar.rows == 0;
        if (is_before_first)
            continue;
        if (n == TD_HISTOGRAM_MAX_BARS)
            return n + 1;
        out[n++] = bar;
    }
    return n;
}

int td_histogram_bars(const td_histogram *histogram, td_histogram_bar out[TD_HISTOGRAM_MAX_BARS]) {
    int n = 0, steps = histogram->n > 0 ? 1 : MAX_STEPS + 1;
    for (; steps <= MAX_STEPS && n < WANTED_BARS; steps *= 2)
        n = fill_bars(histogram, steps, out);
    return n;
}
