// nf4_quantize, absmax_quantize and dequantize: all exact. Bytes made by bitsandbytes itself are
// compared in test_nf4_fixtures.c.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels/dynamic_map.h"
#include "ops/case.h"
#include "ops/matrix_case.h"
#include "ops/reference.h"

// A block of zeros; one with a single large value; one with the thresholds themselves, which belong
// to the code below, and the numbers right above them.
static void plant_special_blocks(double *weight, int64_t n) {
    for (int64_t i = 64; i < 128 && i < n; i++)
        weight[i] = 0.0;
    for (int64_t i = 128; i < 192 && i < n; i++)
        weight[i] = i == 130 ? -1e30 : 1e-3;
    for (int i = 0; i < 64 && 192 + i < n; i++) {
        float threshold = ref_nf4_threshold(i / 2 % 15);
        weight[192 + i] = i == 63 ? 1.0 : (double)(i % 2 ? nextafterf(threshold, 2.0f) : threshold);
    }
}

static double block_absmax(const double *weight, int64_t begin, int64_t n) {
    double absmax = 0.0;
    for (int64_t i = begin; i < begin + 64 && i < n; i++)
        absmax = fabs(weight[i]) > absmax ? fabs(weight[i]) : absmax;
    return absmax;
}

static void quantize(const double *weight, int64_t n, double *codes, double *absmax) {
    codes[n / 2] = 7;
    for (int64_t i = 0; i < n; i++) {
        if (i % 64 == 0)
            absmax[i / 64] = block_absmax(weight, i, n);
        float scale = (float)absmax[i / 64];
        int code = scale > 0.0f ? ref_nf4_code((float)weight[i] * (1.0f / scale)) : 7;
        if (i % 2 == 0)
            codes[i / 2] = 16 * code + (i + 1 == n ? 7 : 0);
        else
            codes[i / 2] += code;
    }
}

static void check_nf4(op_run *run, int64_t n) {
    if (!op_case_begin(run, "nf4_quantize", "n=%d", (int)n))
        return;
    double *values = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        values[i] = op_uniform(run) - 0.5;
    plant_special_blocks(values, n);
    op_buffer *weight = op_given(run, TD_F32, n, values);
    op_buffer *codes = op_output(run, TD_U8, (n + 1) / 2);
    op_buffer *absmax = op_output(run, TD_F32, td_nf4_block_count(n));
    td_nf4_quantize_args args = {n, weight->memory, codes->memory, absmax->memory};
    OP_CALL(run, nf4_quantize, &args, 0, 4.5 * (double)n);
    double *expected_codes = op_doubles(run, n / 2 + 1), *expected_absmax = op_doubles(run, n);
    quantize(weight->values, n, expected_codes, expected_absmax);
    op_expect(run, "codes", codes, expected_codes, 0.0);
    op_expect(run, "absmax", absmax, expected_absmax, 0.0);
    op_case_end(run);
}

// Codes, nested absmax; returns the offset.
static float double_quantize(const double *absmax, int64_t n, double *codes, double *nested) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += absmax[i];
    float offset = (float)(sum / (double)n), map[256];
    td_dynamic_map_signed(map);
    for (int64_t i = 0; i < n; i++) {
        float magnitude = fabsf((float)absmax[i] - offset);
        if (magnitude > (float)nested[i / 256])
            nested[i / 256] = magnitude;
    }
    for (int64_t i = 0; i < n; i++) {
        float scale = (float)nested[i / 256];
        codes[i] =
            scale > 0.0f ? ref_nearest(map, ((float)absmax[i] - offset) * (1.0f / scale)) : 0;
    }
    return offset;
}

static void check_absmax(op_run *run, int64_t n) {
    if (!op_case_begin(run, "absmax_quantize", "n=%d", (int)n))
        return;
    op_buffer *absmax = op_random(run, TD_F32, n, 0.5);
    op_buffer *codes = op_output(run, TD_U8, n);
    op_buffer *nested = op_output(run, TD_F32, (n + 255) / 256);
    float offset = NAN;
    td_absmax_quantize_args args = {n, absmax->memory, codes->memory, nested->memory, &offset};
    OP_CALL(run, absmax_quantize, &args, 0, 5.0 * (double)n);
    double *expected_codes = op_doubles(run, n), *expected_nested = op_doubles(run, n);
    float expected_offset = double_quantize(absmax->values, n, expected_codes, expected_nested);
    op_expect(run, "codes", codes, expected_codes, 0.0);
    op_expect(run, "nested_absmax", nested, expected_nested, 0.0);
    op_expect_value(run, "offset", (double)offset, (double)expected_offset, 0.0);
    op_case_end(run);
}

typedef struct row_range {
    int64_t rows, cols, begin, count;
} row_range;

static void check_dequantize(op_run *run, op_matrix_kind kind, const row_range *range) {
    if (!op_case_begin(run, "dequantize", "%s rows %d..+%d of %dx%d", op_matrix_name(kind),
                       (int)range->begin, (int)range->count, (int)range->rows, (int)range->cols))
        return;
    op_matrix matrix = op_matrix_random(run, kind, range->rows, range->cols);
    op_buffer *out = op_output(run, TD_F32, range->count * range->cols);
    td_dequantize_args args = {&matrix.view, range->begin, range->count, out->memory};
    OP_CALL(run, dequantize, &args, 0, 4.0 * (double)out->n);
    if (!run->timing)
        op_expect(run, "out", out, matrix.values + range->begin * range->cols, 0.0);
    op_case_end(run);
}

static void cases_nf4(op_run *run) {
    static const int64_t counts[] = {1, 2, 63, 64, 65, 129, 300, 1024, 5001};
    for (size_t i = 0; i < sizeof counts / sizeof *counts && !run->timing; i++)
        check_nf4(run, counts[i]);
    if (run->timing)
        check_nf4(run, 4 << 20);
}

static void cases_absmax(op_run *run) {
    static const int64_t counts[] = {1, 2, 255, 256, 257, 1000};
    for (size_t i = 0; i < sizeof counts / sizeof *counts && !run->timing; i++)
        check_absmax(run, counts[i]);
    if (run->timing)
        check_absmax(run, 1 << 18);
}

static void cases_dequantize(op_run *run) {
    static const row_range checked[] = {{1, 1, 0, 1},      {4, 64, 0, 4},   {9, 63, 0, 9},
                                        {9, 63, 3, 5},     {40, 31, 7, 33}, {3, 129, 1, 1},
                                        {300, 96, 0, 300}, {5, 7, 2, 3}};
    static const row_range timed[] = {{2048, 2048, 0, 2048}, {2048, 2048, 0, 256}};
    const row_range *ranges = run->timing ? timed : checked;
    size_t n = (run->timing ? sizeof timed : sizeof checked) / sizeof *ranges;
    for (int kind = 0; kind < OP_MATRIX_KINDS; kind++)
        for (size_t i = 0; i < n; i++)
            check_dequantize(run, (op_matrix_kind)kind, &ranges[i]);
}

void cases_quantize(op_run *run) {
    cases_nf4(run);
    cases_absmax(run);
    cases_dequantize(run);
}
