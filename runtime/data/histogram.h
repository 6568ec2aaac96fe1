// How long rows are: counts by length, for any length, in fixed memory. Lengths below 256 are
// counted each for themselves, longer ones in 128 steps per factor of two, so a quantile is right
// to within 0.8 %.
#ifndef TANDEM_DATA_HISTOGRAM_H
#define TANDEM_DATA_HISTOGRAM_H

#include <stdint.h>

enum {
    TD_HISTOGRAM_STEPS = 128,
    TD_HISTOGRAM_COUNTS = TD_HISTOGRAM_STEPS * 25, // lengths to 2^31
    TD_HISTOGRAM_MAX_BARS = 64,
};

// Zero-initialise.
typedef struct td_histogram {
    int64_t counts[TD_HISTOGRAM_COUNTS];
    int64_t n, longest;
} td_histogram;

void td_histogram_add(td_histogram *histogram, int64_t length);
// The length that `share` of the rows do not exceed; 0 without rows.
int64_t td_histogram_quantile(const td_histogram *histogram, double share);

// Rows of lengths in [from, to], from the shortest to the longest: equal parts of each factor of
// two, as many as it takes for eight bars, at most 16.
typedef struct td_histogram_bar {
    int64_t from, to, rows;
} td_histogram_bar;
// Returns how many bars there are.
int td_histogram_bars(const td_histogram *histogram, td_histogram_bar out[TD_HISTOGRAM_MAX_BARS]);

#endif
