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
// to the code below, and the numbers right above them; blocks with another scale and numbers around
// the thresholds, where x / absmax would have other codes than x * (1 / absmax).
static void plant_special_blocks(double *weight, int64_t n) {
    for (int64_t i = 64; i < 128 && i < n; i++)
        weight[i] = 0.0;
    for (int64_t i = 128; i < 192 && i < n; i++)
        weight[i] = i == 130 ? -1e30 : 1e-3;
    for (int i = 0; i < 64 && 192 + i < n; i++) {
        float threshold = ref_nf4_threshold(i / 2 % 15);
        weight[192 + i] = i == 63 ? 1.0 : (double)(i % 2 ? nextafterf(threshold, 2.0f) : threshold);
    }
    for (int i = 0; i < 512 && 256 + i < n; i++) {
        float scale = 0.7f + 0.0123f * (float)(i / 64);
        float x = ref_nf4_threshold(i % 15) * scale;
        x = i / 15 % 3 == 0 ? x : nextafterf(x, i / 15 % 3 == 1 ? -2.0f : 2.0f);
        weight[256 + i] = i % 64 == 63 ? (double)scale : (double)x;
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

static void check_nf4(op_run *run, int64_t n, td_dtype dtype) {
    if (!op_case_begin(run, "nf4_quantize", "%s n=%d", td_dtype_name(dtype), (int)n))
        return;
    double *values = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        values[i] = op_uniform(run) - 0.5;
    plant_special_blocks(values, n);
    op_buffer *weight = op_given(run, dtype, n, values);
    op_buffer *codes = op_output(run, TD_U8, (n + 1) / 2);
    op_buffer *absmax = op_output(run, TD_F32, td_nf4_block_count(n));
    td_nf4_quantize_args args = {n, weight->memory, codes->memory, absmax->memory, dtype};
    OP_CALL(run, nf4_quantize, &args, 0, 4.5 * (double)n);
    double *expected_codes = op_doubles(run, n / 2 + 1), *expected_absmax = op_doubles(run, n);
    quantize(weight->values, n, expected_codes, expected_absmax);
    op_expect(run, "codes", codes, expected_codes, 0.0);
    op_expect(run, "absmax", absmax, expected_absmax, 0.0);
    op_case_end(run);
}

// What is no ordinary number: NaN among others and alone, subnormal blocks (whose inverse is
// infinite), infinity, and an odd end within a subnormal block.
static float odd_number(int i) {
    static const float block_scale[] = {1.0f, 1.0f, 1e-41f, 1.0f, 0x1p-149f, 1e-41f};
    int block = i / 64;
    if (block == 1 || (block == 0 && i % 5 == 2))
        return i % 2 ? -NAN : NAN;
    if (block == 3 && i % 64 == 9)
        return -INFINITY;
    if (block == 4)
        return i % 2 ? 0.0f : 0x1p-149f;
    return block_scale[block] * (float)(i % 17 - 8) / 8.0f;
}

static uint8_t odd_code(const float *weight, int i, int n, float scale) {
    if (i >= n)
        return 7;
    return (uint8_t)ref_nf4_code(weight[i] * (scale > 0.0f ? 1.0f / scale : 0.0f));
}

static void check_nf4_odd_numbers(op_run *run) {
    enum { N = 5 * 64 + 31 };
    if (!op_case_begin(run, "nf4_quantize", "numbers that are none"))
        return;
    float weight[N + 1], scales[6] = {0}, found_scales[6];
    uint8_t expected[N / 2 + 1], found[N / 2 + 1];
    for (int i = 0; i < N; i++) {
        weight[i] = odd_number(i);
        if (fabsf(weight[i]) > scales[i / 64])
            scales[i / 64] = fabsf(weight[i]);
    }
    for (int i = 0; i < N; i += 2)
        expected[i / 2] = (uint8_t)(odd_code(weight, i, N, scales[i / 64]) << 4 |
                                    odd_code(weight, i + 1, N, scales[i / 64]));
    op_buffer *given = op_raw(run, TD_F32, N, weight);
    op_buffer *codes = op_output(run, TD_U8, N / 2 + 1), *absmax = op_output(run, TD_F32, 6);
    td_nf4_quantize_args args = {N, given->memory, codes->memory, absmax->memory, TD_F32};
    OP_CALL(run, nf4_quantize, &args, 0, 0);
    op_fetch_raw(run, codes, found);
    op_fetch_raw(run, absmax, found_scales);
    op_expect_true(run, "codes", memcmp(found, expected, sizeof found) == 0);
    op_expect_true(run, "absmax", memcmp(found_scales, scales, sizeof scales) == 0);
    op_case_end(run);
}

// Sum of x[0], x[step], ... of a group of `width`, as repeatedly adding the upper half to the lower
// one leaves it.
static double folded(const double *x, int width, int step) {
    return step == width ? *x : folded(x, width, 2 * step) + folded(x + step, width, 2 * step);
}

// The mean in the order of kernels/absmax_mean.h.
static float reference_mean(const double *absmax, int64_t n) {
    double lanes[8192] = {0}, warps[256], blocks[32];
    for (int64_t i = 0; i < n; i++)
        lanes[i % 8192] += absmax[i];
    for (int i = 0; i < 256; i++)
        warps[i] = folded(lanes + 32 * i, 32, 1);
    for (int i = 0; i < 32; i++)
        blocks[i] = folded(warps + 8 * i, 8, 1);
    return (float)(folded(blocks, 32, 1) / (double)n);
}

// Ties go to the even code.
static int nearest_even(const float *map, float x) {
    int code = ref_nearest(map, x);
    return code % 2 == 1 && code < 255 && (map[code] + map[code + 1]) * 0.5f == x ? code + 1 : code;
}

// Codes, nested absmax; returns the offset.
static float double_quantize(const double *absmax, int64_t n, double *codes, double *nested) {
    float offset = reference_mean(absmax, n), map[256];
    td_dynamic_map_signed(map);
    for (int64_t i = 0; i < n; i++) {
        float magnitude = fabsf((float)absmax[i] - offset);
        if (magnitude > (float)nested[i / 256])
            nested[i / 256] = magnitude;
    }
    for (int64_t i = 0; i < n; i++) {
        float scale = (float)nested[i / 256];
        codes[i] =
            scale > 0.0f ? nearest_even(map, ((float)absmax[i] - offset) * (1.0f / scale)) : 0;
    }
    return offset;
}

typedef enum absmax_kind {
    ABSMAX_RANDOM,
    ABSMAX_CONSTANT, // nothing is left beside the mean
    ABSMAX_ORDER,    // the mean's last bit depends on the order of the sum
    ABSMAX_MIDPOINT, // mean zero, numbers around the middle of two codes
} absmax_kind;

// 2^52 and -2^52 swallow part of what is added between them, and what is lost tells the order of
// the sum. Signed, as no absmax is.
// Element i of a pair of nested blocks is the negative of its neighbour.
static double midpoint_value(int64_t i) {
    float map[256], scale = 0.7f + 0.0123f * (float)(i / 256);
    td_dynamic_map_signed(map);
    int code = 128 + (int)(i / 2) % 126, side = (int)(i / 256) % 3;
    float middle = (map[code] + map[code + 1]) * 0.5f * scale;
    middle = side == 0 ? middle : nextafterf(middle, side == 1 ? 0.0f : 2.0f);
    double value = i % 256 < 2 ? (double)scale : (double)middle;
    return i % 2 ? -value : value;
}

static double *absmax_values(op_run *run, int64_t n, absmax_kind kind) {
    double *values = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++) {
        values[i] = kind == ABSMAX_CONSTANT ? 0.75 : op_uniform(run) - 0.5;
        if (kind == ABSMAX_ORDER && i % 97 < 2)
            values[i] = i % 97 == 0 ? 0x1p52 : -0x1p52;
        if (kind == ABSMAX_MIDPOINT)
            values[i] = midpoint_value(i);
    }
    return values;
}

static void check_absmax(op_run *run, int64_t n, absmax_kind kind) {
    static const char *const names[] = {"random", "constant", "order", "midpoints"};
    if (!op_case_begin(run, "absmax_quantize", "%s n=%d", names[kind], (int)n))
        return;
    op_buffer *absmax = op_given(run, TD_F32, n, absmax_values(run, n, kind));
    op_workspace(run, &(td_workspace_query){0});
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

static void check_dequantize(op_run *run, op_matrix_kind kind, const row_range *range,
                             int out_is_act) {
    td_dtype type = out_is_act ? run->ops->activation : TD_F32;
    if (!op_case_begin(run, "dequantize", "%s rows %d..+%d of %dx%d%s", op_matrix_name(kind),
                       (int)range->begin, (int)range->count, (int)range->rows, (int)range->cols,
                       out_is_act ? " to the activations' type" : ""))
        return;
    op_matrix matrix = op_matrix_random(run, kind, range->rows, range->cols);
    op_buffer *out = op_output(run, type, range->count * range->cols);
    td_dequantize_args args = {&matrix.view, range->begin, range->count, out->memory, out_is_act};
    OP_CALL(run, dequantize, &args, 0, (double)td_dtype_bytes(type) * (double)out->n);
    if (run->timing) {
        op_case_end(run);
        return;
    }
    double *expected = op_doubles(run, out->n);
    for (int64_t i = 0; i < out->n; i++) {
        double value = matrix.values[range->begin * range->cols + i];
        expected[i] = type == TD_F32 ? value : (double)td_bf16_to_f32(td_f32_to_bf16((float)value));
    }
    op_expect(run, "out", out, expected, 0.0);
    op_case_end(run);
}

static void cases_nf4(op_run *run) {
    static const td_dtype dtypes[] = {TD_F32, TD_BF16};
    static const int64_t counts[] = {1, 2, 63, 64, 65, 129, 300, 1024, 5001};
    for (size_t i = 0; i < sizeof counts / sizeof *counts && !run->timing; i++)
        for (int j = 0; j < 2; j++)
            check_nf4(run, counts[i], dtypes[j]);
    for (int j = 0; j < 2 && run->timing; j++)
        check_nf4(run, 4 << 20, dtypes[j]);
    if (!run->timing)
        check_nf4_odd_numbers(run);
}

static void cases_absmax(op_run *run) {
    static const int64_t counts[] = {1, 2, 255, 256, 257, 1000, 20000};
    for (size_t i = 0; i < sizeof counts / sizeof *counts && !run->timing; i++)
        check_absmax(run, counts[i], ABSMAX_RANDOM);
    if (run->timing) {
        check_absmax(run, 1 << 18, ABSMAX_RANDOM);
        return;
    }
    check_absmax(run, 300, ABSMAX_CONSTANT);
    check_absmax(run, 700, ABSMAX_ORDER);
    check_absmax(run, 30011, ABSMAX_ORDER);
    check_absmax(run, 9 * 256, ABSMAX_MIDPOINT);
}

static void cases_dequantize(op_run *run) {
    static const row_range checked[] = {{1, 1, 0, 1},      {4, 64, 0, 4},     {9, 63, 0, 9},
                                        {9, 63, 3, 5},     {40, 31, 7, 33},   {3, 129, 1, 1},
                                        {300, 96, 0, 300}, {5, 7, 2, 3},      {200, 64, 101, 97},
                                        {120, 96, 33, 66}, {120, 96, 1, 119}, {200, 81, 2, 150}};
    static const row_range timed[] = {{2048, 2048, 0, 2048}, {2048, 2048, 0, 256}};
    const row_range *ranges = run->timing ? timed : checked;
    size_t n = (run->timing ? sizeof timed : sizeof checked) / sizeof *ranges;
    for (int kind = 0; kind < OP_MATRIX_KINDS; kind++)
        for (size_t i = 0; i < 2 * n; i++)
            check_dequantize(run, (op_matrix_kind)kind, &ranges[i / 2], i % 2);
}

void cases_quantize(op_run *run) {
    cases_nf4(run);
    cases_absmax(run);
    cases_dequantize(run);
}
