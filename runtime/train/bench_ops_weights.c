// NF4 weights: quantizing and reading them.
#include <math.h>
#include <stdio.h>

#include "kernels/dynamic_map.h"
#include "runtime/train/bench_ops_internal.h"

enum { SAMPLES = 16 };

static td_status dequantize(td_ops_bench *bench, int64_t rows, int64_t cols) {
    char name[64];
    td_bench_weight weight;
    td_bench_take_weight(bench, rows, cols, 1, &weight);
    td_operand out = td_bench_take(bench, TD_F32, rows * cols, 0);
    td_dequantize_args args = {.matrix = &weight.matrix, .row_count = rows, .out = out.data};
    snprintf(name, sizeof name, "(%lld, %lld)", (long long)rows, (long long)cols);
    TD_TRY(td_bench_call(bench, name, TD_OP_dequantize, &args));
    for (int s = 0; s < SAMPLES; s++)
        for (int k = 0; k < SAMPLES; k++) {
            int64_t row = td_bench_sample(s, rows), col = td_bench_sample(k, cols);
            td_bench_expect(bench, td_bench_read_one(bench, &out, row * cols + col),
                            td_bench_weight_at(&weight, row, col));
        }
    TD_TRY(td_bench_settle(bench, 0));
    TD_TRY(td_bench_time_op(bench, &args));
    td_bench_release(bench);
    return TD_OK;
}

// Whether no other code stands for a number nearer to x.
static int is_nearest(const float *values, int count, double x, int code) {
    double least = INFINITY;
    for (int i = 0; i < count; i++)
        least = fmin(least, fabs((double)values[i] - x));
    return fabs((double)values[code] - x) <= least + 1e-6;
}

// Codes of block `block`: how many are not the nearest.
static int wrong_codes(td_ops_bench *bench, const td_operand *weight, const td_operand *codes,
                       int64_t block, double absmax) {
    static const float values[16] = {TD_NF4_CODES};
    double bytes[TD_NF4_BLOCK / 2];
    int wrong = 0;
    td_bench_read(bench, codes, block * TD_NF4_BLOCK / 2, TD_NF4_BLOCK / 2, bytes);
    for (int i = 0; i < TD_NF4_BLOCK; i++) {
        int byte = (int)bytes[i / 2], code = i % 2 ? byte & 15 : byte >> 4;
        double x = td_bench_at(weight, block * TD_NF4_BLOCK + i) / absmax;
        wrong += !is_nearest(values, 16, x, code);
    }
    return wrong;
}

static double largest_of(const td_operand *values, int64_t begin, int64_t count, double less) {
    double most = 0;
    for (int64_t i = begin; i < begin + count; i++)
        most = fmax(most, fabs(td_bench_at(values, i) - less));
    return most;
}

static td_status nf4_quantize(td_ops_bench *bench, int64_t n) {
    char name[64];
    td_operand weight = td_bench_take(bench, TD_F32, n, 0.05);
    td_operand codes = td_bench_take(bench, TD_U8, (n + 1) / 2, 0);
    td_operand absmax = td_bench_take(bench, TD_F32, td_nf4_block_count(n), 0);
    td_nf4_quantize_args args = {
        .n_elements = n, .weight = weight.data, .codes = codes.data, .absmax = absmax.data};
    snprintf(name, sizeof name, "%lld", (long long)n);
    TD_TRY(td_bench_call(bench, name, TD_OP_nf4_quantize, &args));
    for (int s = 0; s < SAMPLES; s++) {
        int64_t block = td_bench_sample(s, n / TD_NF4_BLOCK);
        double most = largest_of(&weight, block * TD_NF4_BLOCK, TD_NF4_BLOCK, 0);
        td_bench_expect(bench, td_bench_read_one(bench, &absmax, block), most);
        td_bench_expect(bench, wrong_codes(bench, &weight, &codes, block, most), 0);
    }
    TD_TRY(td_bench_settle(bench, 0));
    TD_TRY(td_bench_time_op(bench, &args));
    td_bench_release(bench);
    return TD_OK;
}

// The first nested blocks: the code of each value, and the largest of them.
static void expect_nested(td_ops_bench *bench, const td_operand *absmax, const td_operand *codes,
                          const td_operand *nested, int64_t n, double offset) {
    float map[256];
    td_dynamic_map_signed(map);
    for (int s = 0; s < SAMPLES; s++) {
        int64_t i = td_bench_sample(s, n), block = i / TD_NF4_NESTED_BLOCK;
        int64_t begin = block * TD_NF4_NESTED_BLOCK, left = n - begin;
        double most = largest_of(absmax, begin,
                                 left < TD_NF4_NESTED_BLOCK ? left : TD_NF4_NESTED_BLOCK, offset);
        double scale = td_bench_read_one(bench, nested, block);
        int code = (int)td_bench_read_one(bench, codes, i);
        int nearest = is_nearest(map, 256, (td_bench_at(absmax, i) - offset) / scale, code);
        td_bench_expect(bench, scale, most);
        td_bench_expect(bench, nearest ? 0 : most, 0);
    }
}

static td_status absmax_quantize(td_ops_bench *bench, int64_t n) {
    char name[64];
    float offset = NAN;
    double mean = 0;
    td_operand absmax = td_bench_take(bench, TD_F32, n, 0.05);
    td_operand codes = td_bench_take(bench, TD_U8, n, 0);
    td_operand nested =
        td_bench_take(bench, TD_F32, (n + TD_NF4_NESTED_BLOCK - 1) / TD_NF4_NESTED_BLOCK, 0);
    td_absmax_quantize_args args = {.n_blocks = n,
                                    .absmax = absmax.data,
                                    .codes = codes.data,
                                    .nested_absmax = nested.data,
                                    .offset = &offset};
    snprintf(name, sizeof name, "%lld", (long long)n);
    TD_TRY(td_bench_call(bench, name, TD_OP_absmax_quantize, &args));
    for (int64_t i = 0; i < n; i++)
        mean += td_bench_at(&absmax, i) / (double)n;
    expect_nested(bench, &absmax, &codes, &nested, n, offset);
    td_bench_expect(bench, offset, mean);
    TD_TRY(td_bench_settle(bench, 1e-5));
    TD_TRY(td_bench_time_op(bench, &args));
    td_bench_release(bench);
    return TD_OK;
}

td_status td_bench_weight_ops(td_ops_bench *bench) {
    int64_t rows = bench->model->intermediate, cols = bench->model->hidden;
    TD_TRY(dequantize(bench, rows, cols));
    TD_TRY(nf4_quantize(bench, rows * cols));
    return absmax_quantize(bench, td_nf4_block_count(rows * cols));
}
