// Fixed point, sums of squares, AdamW. What torch and bitsandbytes computed is compared in
// cases_adamw.c.
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/case.h"
#include "ops/cases_optimizer.h"

static const int QUANTUM = -46;

// Gradients over many magnitudes, and what must round to even, be refused, or nearly overflow.
static double hard_value(op_run *run, int64_t i) {
    double magnitude = ldexp(2.0 * op_uniform(run) - 1.0, (int)(op_word(run) % 60) - 50);
    switch (i % 23) {
    case 3: // ties, both parities
        return ldexp((double)(op_word(run) % 4096) + 0.5, QUANTUM) * (i & 1 ? 1.0 : -1.0);
    case 7:
        return i % 5 == 0 ? NAN : 0.0;
    case 11:
        return i % 3 == 0 ? INFINITY : -INFINITY;
    case 13:
        return i % 2 ? (double)FLT_MAX : 0x1p17; // 2^63 quanta
    case 17:
        return ldexp(i & 1 ? 1.0 : -1.0, QUANTUM);
    case 19: // 1.5 * 2^62 quanta: wraps around beside an accumulator at its limit
        return i & 1 ? 0x1.8p16 : -0x1.8p16;
    default:
        return magnitude;
    }
}

static int64_t hard_accumulator(op_run *run, int64_t i, int64_t limit) {
    int64_t word = (int64_t)((uint64_t)op_word(run) << 32 | op_word(run));
    switch (i % 23) {
    case 17:
        return i % 3 == 0 ? limit : i % 3 == 1 ? -limit : limit - 1;
    case 19:
        return i & 1 ? limit : -limit;
    case 5:
        return word % limit;
    default:
        return word % (INT64_C(1) << 50);
    }
}

// The exact sum fits 128 bits; returns 1 for a fault.
static int reference_add(float value, int64_t limit, int64_t *accumulator) {
    long double scaled = ldexpl((long double)value, -QUANTUM);
    if (!isfinite(value) || fabsl(scaled) >= 0x1p63L)
        return 1;
    __int128 sum = (__int128)*accumulator + (__int128)rintl(scaled);
    if (sum > limit || sum < -(__int128)limit)
        return 1;
    *accumulator = (int64_t)sum;
    return 0;
}

static void expect_int64(op_run *run, const char *name, op_buffer *actual, const int64_t *expected,
                         int64_t n) {
    double *doubles = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        doubles[i] = (double)expected[i];
    op_expect(run, name, actual, doubles, 0.0);
    int64_t *found = malloc((size_t)n * sizeof *found + 1);
    op_fetch_raw(run, actual, found);
    op_expect_true(run, name, memcmp(found, expected, (size_t)n * sizeof *found) == 0);
    free(found);
}

static void check_fixed_add(op_run *run, int64_t n, int64_t limit) {
    if (!op_case_begin(run, "fixed_add", "n=%d limit=%lld", (int)n, (long long)limit))
        return;
    double *values = op_doubles(run, n);
    int64_t *sums = malloc((size_t)n * sizeof *sums + 1), faults = 5;
    for (int64_t i = 0; i < n; i++) {
        values[i] = run->timing ? op_uniform(run) : hard_value(run, i);
        sums[i] = run->timing ? 0 : hard_accumulator(run, i, limit);
    }
    op_buffer *given = op_given(run, TD_F32, n, values);
    op_buffer *accumulator = op_raw(run, TD_I64, n, sums);
    op_buffer *count = op_raw(run, TD_I64, 1, &faults);
    for (int64_t i = 0; i < n; i++)
        faults += reference_add((float)given->values[i], limit, &sums[i]);
    td_fixed_add_args args = {n, given->memory, accumulator->memory, QUANTUM, limit, count->memory};
    OP_CALL(run, fixed_add, &args, 0, 20.0 * (double)n);
    expect_int64(run, "accumulator", accumulator, sums, n);
    expect_int64(run, "faults", count, &faults, 1);
    free(sums);
    op_case_end(run);
}

// Sums of the same values in two orders and two groupings have the same bits.
static void check_any_order(op_run *run) {
    enum { N = 1000, PARTS = 4 };
    if (!op_case_begin(run, "fixed_add", "any order"))
        return;
    int64_t zeros[N] = {0}, none = 0;
    op_buffer *up = op_raw(run, TD_I64, N, zeros), *down = op_raw(run, TD_I64, N, zeros);
    op_buffer *faults = op_raw(run, TD_I64, 1, &none), *parts[PARTS];
    for (int i = 0; i < PARTS; i++)
        parts[i] = op_random(run, TD_F32, N, 1.0);
    td_fixed_add_args args = {
        .n_elements = N, .quantum_log2 = QUANTUM, .limit = INT64_MAX, .faults = faults->memory};
    for (int i = 0; i < PARTS; i++) {
        args.accumulator = up->memory;
        args.values = parts[i]->memory;
        OP_CALL(run, fixed_add, &args, 0, 0);
        args.accumulator = down->memory;
        args.values = parts[PARTS - 1 - i]->memory;
        OP_CALL(run, fixed_add, &args, 0, 0);
    }
    int64_t first[N], second[N];
    op_fetch_raw(run, up, first);
    op_fetch_raw(run, down, second);
    op_expect_true(run, "the order does not matter", memcmp(first, second, sizeof first) == 0);
    op_expect_true(run, "the sums are not zero", memcmp(first, zeros, sizeof first) != 0);
    op_case_end(run);
}

static double sum_of_squares(const double *values, int64_t n) {
    long double sum = 0.0L;
    for (int64_t i = 0; i < n; i++)
        sum += (long double)values[i] * (long double)values[i];
    return (double)sum;
}

// The same values when nobody wants their sum.
static void expect_without_sum(op_run *run, td_fixed_to_f32_args args, const double *expected) {
    op_buffer *alone = op_output(run, TD_F32, args.n_elements);
    args.values = alone->memory;
    args.sum_squares = NULL;
    OP_CALL(run, fixed_to_f32, &args, 0, 0);
    op_expect(run, "values without the sum", alone, expected, 0.0);
}

static void check_fixed_to_f32(op_run *run, int64_t n, int quantum) {
    if (!op_case_begin(run, "fixed_to_f32", "n=%d quantum=%d", (int)n, quantum))
        return;
    int64_t *fixed = malloc((size_t)n * sizeof *fixed + 1);
    double *expected = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++) {
        uint64_t word = (uint64_t)op_word(run) << 32 | op_word(run);
        fixed[i] = (int64_t)word >> (op_word(run) % 60);
        // Just above the middle of two floats, by less than a double can tell.
        fixed[i] = i % 19 == 6 ? (INT64_C(1) << 62) + (INT64_C(1) << 38) + 1 : fixed[i];
        // Rounds once: a long double holds every int64.
        expected[i] = (double)(float)ldexpl((long double)fixed[i], quantum);
    }
    op_buffer *accumulator = op_raw(run, TD_I64, n, fixed);
    op_buffer *values = op_output(run, TD_F32, n);
    double squares = NAN;
    td_fixed_to_f32_args args = {n, accumulator->memory, quantum, values->memory, &squares};
    op_workspace(run, &(td_workspace_query){0});
    OP_CALL(run, fixed_to_f32, &args, 0, 12.0 * (double)n);
    op_expect(run, "values", values, expected, 0.0);
    op_expect_value(run, "sum_squares", squares, sum_of_squares(expected, n), 1e-12);
    if (!run->timing)
        expect_without_sum(run, args, expected);
    free(fixed);
    op_case_end(run);
}

static void check_sum_squares(op_run *run, int64_t n) {
    if (!op_case_begin(run, "sum_squares", "n=%d", (int)n))
        return;
    op_buffer *values = op_random(run, TD_F32, n, 3.0);
    double squares = NAN;
    td_sum_squares_args args = {n, values->memory, &squares};
    op_workspace(run, &(td_workspace_query){0});
    OP_CALL(run, sum_squares, &args, 0, 4.0 * (double)n);
    op_expect_value(run, "sum_squares", squares, sum_of_squares(values->values, n), 1e-12);
    op_case_end(run);
}

static void check_word_sum(op_run *run, int64_t n) {
    if (!op_case_begin(run, "word_sum", "n=%d", (int)n))
        return;
    uint64_t *words = malloc((size_t)n * sizeof *words + 1), start = UINT64_C(1) << 63 | 12345;
    uint64_t expected = start;
    for (int64_t i = 0; i < n; i++) {
        words[i] = (uint64_t)op_word(run) << 32 | op_word(run);
        expected += words[i];
    }
    op_buffer *buffer = op_raw(run, TD_I64, n, words), *sum = op_raw(run, TD_I64, 1, &start);
    td_word_sum_args args = {n, buffer->memory, sum->memory};
    uint64_t result = 0;
    OP_CALL(run, word_sum, &args, 0, 8.0 * (double)n);
    op_fetch_raw(run, sum, &result);
    op_expect_true(run, "sum", run->timing || result == expected);
    free(words);
    op_case_end(run);
}

// Two sums in a row share the workspace: the first has left it before the second writes there.
static void check_two_sums(op_run *run) {
    enum { N = 30000 };
    if (!op_case_begin(run, "sum_squares", "two in a row"))
        return;
    op_buffer *large = op_random(run, TD_F32, N, 100.0), *small = op_random(run, TD_F32, N, 1.0);
    double first = NAN, second = NAN;
    op_workspace(run, &(td_workspace_query){0});
    td_sum_squares_args large_args = {N, large->memory, &first};
    td_sum_squares_args small_args = {N, small->memory, &second};
    op_expect_true(run, "the first is queued",
                   run->ops->sum_squares(&run->context, &large_args) == TD_OK);
    OP_CALL(run, sum_squares, &small_args, 0, 0);
    op_expect_value(run, "first", first, sum_of_squares(large->values, N), 1e-12);
    op_expect_value(run, "second", second, sum_of_squares(small->values, N), 1e-12);
    op_case_end(run);
}

// Where sums need a workspace, they say so instead of writing elsewhere.
static void check_no_workspace(op_run *run) {
    if (run->context.device->unified || !op_case_begin(run, "sum_squares", "no workspace"))
        return;
    op_buffer *values = op_random(run, TD_F32, 100, 1.0);
    double squares = 5.0;
    td_sum_squares_args args = {100, values->memory, &squares};
    op_expect_true(run, "refused", run->ops->sum_squares(&run->context, &args) == TD_ERR_INTERNAL);
    op_expect_true(run, "the message names the workspace",
                   strstr(td_error_message(), "workspace") != NULL);
    op_expect_true(run, "nothing is written", squares == 5.0);
    td_error_clear();
    op_case_end(run);
}

static void check_f32_add(op_run *run, int64_t n) {
    if (!op_case_begin(run, "f32_add", "n=%d", (int)n))
        return;
    double *values = op_doubles(run, n), *expected = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        values[i] = run->timing ? 0.0 : hard_value(run, i);
    op_buffer *given = op_given(run, TD_F32, n, values);
    op_buffer *accumulator = op_random(run, TD_F32, n, 1.0);
    int64_t faults = 2;
    op_buffer *count = op_raw(run, TD_I64, 1, &faults);
    for (int64_t i = 0; i < n; i++) {
        float sum = (float)(given->values[i] + accumulator->values[i]);
        expected[i] = isfinite(sum) ? (double)sum : accumulator->values[i];
        faults += !isfinite(sum);
    }
    td_f32_add_args args = {n, given->memory, accumulator->memory, count->memory};
    OP_CALL(run, f32_add, &args, 0, 12.0 * (double)n);
    op_expect(run, "accumulator", accumulator, expected, 0.0);
    expect_int64(run, "faults", count, &faults, 1);
    op_case_end(run);
}

void cases_optimizer(op_run *run) {
    static const int64_t counts[] = {1, 7, 16, 23, 4095, 4097, 50000};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0] && !run->timing; i++) {
        check_fixed_add(run, counts[i], INT64_MAX);
        check_fixed_add(run, counts[i], INT64_MAX / 3);
        check_fixed_to_f32(run, counts[i], QUANTUM);
        check_fixed_to_f32(run, counts[i], i % 2 ? -126 : 0);
        check_sum_squares(run, counts[i]);
        check_word_sum(run, counts[i]);
        check_f32_add(run, counts[i]);
    }
    if (!run->timing) {
        check_any_order(run);
        check_sum_squares(run, 0);
        check_word_sum(run, 0);
        check_sum_squares(run, 1024 * 4096 + 5000);
        check_two_sums(run);
        check_no_workspace(run);
    } else {
        check_fixed_add(run, 1 << 22, INT64_MAX);
        check_fixed_to_f32(run, 1 << 22, QUANTUM);
        check_sum_squares(run, 1 << 22);
        check_word_sum(run, 1 << 22);
        check_f32_add(run, 1 << 22);
    }
    cases_adamw(run);
}
