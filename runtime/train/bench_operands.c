#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dynamic_map.h"
#include "runtime/train/bench_ops_internal.h"

enum { SLICE_ELEMENTS = 1 << 20 };

// Steele, Lea, Flood (2014), "Fast splittable pseudorandom number generators".
static uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static int is_integer(td_dtype type) {
    return type != TD_F32 && type != TD_BF16;
}

double td_bench_at(const td_operand *operand, int64_t index) {
    double unit = (double)(mix(operand->seed + (uint64_t)index) >> 11) * 0x1p-53;
    if (is_integer(operand->type))
        return floor(unit * operand->scale);
    float value = (float)(operand->scale * (2 * unit - 1));
    int is_bf16 = operand->type == TD_BF16 || operand->is_rounded;
    return is_bf16 ? td_bf16_to_f32(td_f32_to_bf16(value)) : value;
}

static void put(const td_operand *operand, int64_t index, unsigned char *to) {
    double value = td_bench_at(operand, index);
    float single = (float)value;
    int64_t wide = (int64_t)value;
    int32_t narrow = (int32_t)value;
    uint16_t half = td_f32_to_bf16(single);
    uint8_t byte = (uint8_t)narrow;
    size_t bytes = td_dtype_bytes(operand->type);
    const void *from = bytes == 8                ? (void *)&wide
                       : operand->type == TD_F32 ? (void *)&single
                       : bytes == 4              ? (void *)&narrow
                       : bytes == 2              ? (void *)&half
                                                 : (void *)&byte;
    memcpy(to, from, bytes);
}

static td_status fill(const td_ops_bench *bench, const td_operand *operand, int64_t count) {
    const td_op_context *context = &bench->context;
    size_t item = td_dtype_bytes(operand->type);
    unsigned char *slice = malloc(SLICE_ELEMENTS * item);
    td_status status = slice ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for operands");
    for (int64_t begin = 0; status == TD_OK && begin < count; begin += SLICE_ELEMENTS) {
        int64_t left = count - begin, n = left < SLICE_ELEMENTS ? left : SLICE_ELEMENTS;
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++)
            put(operand, begin + i, slice + (size_t)i * item);
        status = context->device->table->copy(context->stream,
                                              (unsigned char *)operand->data + (size_t)begin * item,
                                              slice, (size_t)n * item);
        td_status done = context->device->table->stream_synchronize(context->stream);
        status = status == TD_OK ? done : status;
    }
    free(slice);
    return status;
}

td_operand td_bench_take(td_ops_bench *bench, td_dtype type, int64_t count, double scale) {
    const td_device *device = bench->context.device;
    td_operand operand = {.type = type, .scale = scale, .seed = mix(bench->next_seed++)};
    operand.is_rounded = type == TD_F32 && bench->context.ops->product == TD_BF16;
    if (bench->status != TD_OK)
        return operand;
    if (bench->n_operands == TD_BENCH_MAX_OPERANDS)
        bench->status = td_fail(TD_ERR_INTERNAL, "more than %d operands", TD_BENCH_MAX_OPERANDS);
    else
        bench->status =
            device->table->alloc(device, td_mul_bytes((size_t)count, td_dtype_bytes(type)),
                                 "operands of the benchmark", &operand.data);
    if (bench->status != TD_OK)
        return operand;
    bench->operands[bench->n_operands++] = operand.data;
    if (scale > 0)
        bench->status = fill(bench, &operand, count);
    return operand;
}

void td_bench_release(td_ops_bench *bench) {
    const td_device *device = bench->context.device;
    (void)device->table->stream_synchronize(bench->context.stream);
    while (bench->n_operands > 0)
        device->table->free(device, bench->operands[--bench->n_operands]);
}

static double number_at(td_dtype type, const unsigned char *from) {
    int64_t wide;
    int32_t narrow;
    float single;
    uint16_t half;
    switch (type) {
    case TD_F32:
        memcpy(&single, from, sizeof single);
        return single;
    case TD_BF16:
        memcpy(&half, from, sizeof half);
        return td_bf16_to_f32(half);
    case TD_I64:
        memcpy(&wide, from, sizeof wide);
        return (double)wide;
    case TD_I32:
        memcpy(&narrow, from, sizeof narrow);
        return narrow;
    default:
        return *from;
    }
}

static td_status read_now(const td_ops_bench *bench, const td_operand *operand, int64_t begin,
                          int64_t count, double *out) {
    const td_op_context *context = &bench->context;
    size_t item = td_dtype_bytes(operand->type);
    unsigned char *bytes = malloc((size_t)count * item);
    if (!bytes)
        return td_fail(TD_ERR_MEMORY, "no memory to verify results");
    td_status status = context->device->table->copy(
        context->stream, bytes, (unsigned char *)operand->data + (size_t)begin * item,
        (size_t)count * item);
    td_status done = context->device->table->stream_synchronize(context->stream);
    for (int64_t i = 0; i < count; i++)
        out[i] = number_at(operand->type, bytes + (size_t)i * item);
    free(bytes);
    return status == TD_OK ? done : status;
}

void td_bench_read(td_ops_bench *bench, const td_operand *operand, int64_t begin, int64_t count,
                   double *out) {
    if (bench->status == TD_OK)
        bench->status = read_now(bench, operand, begin, count, out);
    if (bench->status != TD_OK)
        memset(out, 0, (size_t)count * sizeof *out);
}

double td_bench_read_one(td_ops_bench *bench, const td_operand *operand, int64_t index) {
    double value;
    td_bench_read(bench, operand, index, 1, &value);
    return value;
}

int64_t td_bench_sample(int k, int64_t n) {
    if (k < 2)
        return k == 0 ? 0 : n - 1;
    return (int64_t)(mix((uint64_t)k * 7919u) % (uint64_t)n);
}

void td_bench_expect(td_ops_bench *bench, double got, double want) {
    double difference = fabs(got - want);
    bench->largest = fmax(bench->largest, fabs(want));
    bench->worst = isnan(difference) ? INFINITY : fmax(bench->worst, difference);
}

double td_bench_tolerance(const td_ops_bench *bench, int is_f32) {
    // Operands of fp32 are rounded on the way into such a product.
    if (bench->act == TD_F32 && bench->context.ops->product == TD_BF16 &&
        td_op_is_product(bench->op))
        return 1e-2;
    return bench->act == TD_BF16 && !is_f32 ? 2e-2 : bench->act == TD_BF16 ? 5e-3 : 2e-5;
}

td_status td_bench_settle(td_ops_bench *bench, double tolerance) {
    double worst = bench->worst, largest = bench->largest;
    bench->worst = bench->largest = 0;
    TD_TRY(bench->status);
    if (worst <= tolerance * largest)
        return TD_OK;
    return td_fail(TD_ERR_NUMERIC,
                   "%s of %s is wrong at %s: off by %g where the largest number is %g; nothing "
                   "was timed",
                   td_op_name(bench->op), bench->context.ops->name, bench->name, worst, largest);
}

static void take_nf4(td_ops_bench *bench, int64_t n, double scale, td_bench_weight *out) {
    int64_t blocks = td_nf4_block_count(n);
    out->codes = td_bench_take(bench, TD_U8, (n + 1) / 2, 256);
    out->matrix.data = out->codes.data;
    if (!bench->options->nested) {
        out->absmax = td_bench_take(bench, TD_F32, blocks, scale);
        out->matrix.absmax = out->absmax.data;
        return;
    }
    td_operand map = td_bench_take(bench, TD_F32, 256, 0);
    out->absmax_codes = td_bench_take(bench, TD_U8, blocks, 256);
    out->nested_absmax = td_bench_take(bench, TD_F32, td_nf4_nested_count(n), scale);
    out->matrix.absmax_codes = out->absmax_codes.data;
    out->matrix.nested_absmax = out->nested_absmax.data;
    out->matrix.nested_map = map.data;
    out->matrix.nested_offset = (float)scale;
    if (bench->status == TD_OK)
        bench->status = bench->context.device->table->copy(bench->context.stream, map.data,
                                                           out->map, sizeof out->map);
    if (bench->status == TD_OK)
        bench->status = bench->context.device->table->stream_synchronize(bench->context.stream);
}

void td_bench_take_weight(td_ops_bench *bench, int64_t rows, int64_t cols, int is_nf4,
                          td_bench_weight *out) {
    double scale = 1 / sqrt((double)cols);
    *out = (td_bench_weight){.matrix = {.rows = rows, .cols = cols, .compute = bench->act}};
    td_dynamic_map_signed(out->map);
    if (is_nf4) {
        out->matrix.format = TD_MATRIX_NF4;
        take_nf4(bench, rows * cols, scale, out);
        return;
    }
    out->matrix.format = bench->act == TD_BF16 ? TD_MATRIX_BF16 : TD_MATRIX_F32;
    out->values = td_bench_take(bench, bench->act, rows * cols, scale);
    out->matrix.data = out->values.data;
}

double td_bench_weight_at(const td_bench_weight *weight, int64_t row, int64_t col) {
    static const float code_values[16] = {TD_NF4_CODES};
    int64_t i = row * weight->matrix.cols + col, block = i / TD_NF4_BLOCK;
    if (weight->matrix.format != TD_MATRIX_NF4)
        return td_bench_at(&weight->values, i);
    int byte = (int)td_bench_at(&weight->codes, i / 2), code = i % 2 ? byte & 15 : byte >> 4;
    float absmax;
    if (weight->matrix.absmax) {
        absmax = (float)td_bench_at(&weight->absmax, block);
    } else {
        float nested = (float)td_bench_at(&weight->nested_absmax, block / TD_NF4_NESTED_BLOCK);
        absmax = weight->map[(int)td_bench_at(&weight->absmax_codes, block)] * nested;
        absmax += weight->matrix.nested_offset;
    }
    float value = code_values[code] * absmax;
    return weight->matrix.compute == TD_BF16 ? td_bf16_to_f32(td_f32_to_bf16(value)) : value;
}
