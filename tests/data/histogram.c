#include "runtime/data/histogram.h"
#include "test.h"

static td_histogram histogram;

static void clear(void) {
    memset(&histogram, 0, sizeof histogram);
}

static void every_length_is_in_one_bar(void) {
    td_histogram_bar bars[TD_HISTOGRAM_MAX_BARS];
    clear();
    for (int64_t length = 1; length <= 5000; length++)
        td_histogram_add(&histogram, length);
    td_histogram_add(&histogram, 1 << 24);
    int n = td_histogram_bars(&histogram, bars);
    int64_t rows = 0, next = 1;
    for (int i = 0; i < n; i++) {
        CHECK_INT(bars[i].from, next);
        // Below the last, each bar has one row for each of its lengths.
        if (bars[i].to <= 5000)
            CHECK_INT(bars[i].rows, bars[i].to - bars[i].from + 1);
        rows += bars[i].rows;
        next = bars[i].to + 1;
    }
    CHECK_INT(rows, 5001);
    CHECK(n > 0 && bars[n - 1].from <= 1 << 24 && bars[n - 1].to >= 1 << 24);
}

static void bars_begin_with_the_shortest_row(void) {
    td_histogram_bar bars[TD_HISTOGRAM_MAX_BARS];
    clear();
    CHECK_INT(td_histogram_bars(&histogram, bars), 0);
    td_histogram_add(&histogram, 70);
    CHECK_INT(td_histogram_bars(&histogram, bars), 1);
    CHECK_INT(bars[0].from, 68);
    CHECK_INT(bars[0].to, 71);
    td_histogram_add(&histogram, 1000);
    int n = td_histogram_bars(&histogram, bars);
    CHECK_INT(n, 8); // two parts of an octave: 64, 96, 128, ... 768
    CHECK_INT(bars[0].from, 64);
    CHECK_INT(bars[7].to, 1023);
}

static void quantiles_are_right_to_a_hundredth(void) {
    clear();
    CHECK_INT(td_histogram_quantile(&histogram, 0.5), 0);
    for (int64_t length = 1; length <= 10000; length++)
        td_histogram_add(&histogram, length);
    CHECK_INT(td_histogram_quantile(&histogram, 0.01), 100);
    CHECK_NEAR(td_histogram_quantile(&histogram, 0.5), 5000, 50);
    CHECK_NEAR(td_histogram_quantile(&histogram, 0.99), 9900, 99);
    CHECK_INT(td_histogram_quantile(&histogram, 1), 10000);
    clear();
    td_histogram_add(&histogram, 7777);
    CHECK_INT(td_histogram_quantile(&histogram, 0.5), 7777);
}

int main(void) {
    TEST(every_length_is_in_one_bar);
    TEST(bars_begin_with_the_shortest_row);
    TEST(quantiles_are_right_to_a_hundredth);
    return test_report();
}
