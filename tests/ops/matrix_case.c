#include "ops/matrix_case.h"

#include <string.h>

#include "ops/reference.h"

static const char *const names[OP_MATRIX_KINDS] = {
    [OP_F32] = "f32",
    [OP_BF16] = "bf16",
    [OP_NF4] = "nf4",
    [OP_NF4_BF16] = "nf4-bf16",
    [OP_NF4_NESTED] = "nf4-nested",
    [OP_NF4_NESTED_BF16] = "nf4-nested-bf16",
};

const char *op_matrix_name(op_matrix_kind kind) {
    return names[kind];
}

double op_matrix_bytes(op_matrix_kind kind, int64_t elements) {
    double n = (double)elements;
    return kind == OP_F32 ? 4.0 * n : kind == OP_BF16 ? 2.0 * n : 0.5 * n + n / 16.0;
}

// What the kernels have to compute from the parts, block by block and rounded at each step.
typedef struct nf4_parts {
    const op_buffer *data, *absmax;
    const op_buffer *codes, *nested, *map;
    float offset;
} nf4_parts;

static float scale_of(const nf4_parts *parts, int64_t block) {
    if (parts->absmax)
        return (float)parts->absmax->values[block];
    float map = (float)parts->map->values[(int)parts->codes->values[block]];
    float product = map * (float)parts->nested->values[block / 256];
    return product + parts->offset;
}

static const double *decode(op_run *run, const nf4_parts *parts, int64_t n, int bf16) {
    double *values = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++) {
        int byte = (int)parts->data->values[i / 2];
        int code = i % 2 ? byte % 16 : byte / 16;
        values[i] = ref_nf4_decode(code, scale_of(parts, i / 64), bf16);
    }
    return values;
}

static op_buffer *random_positive(op_run *run, int64_t n, double from, double to) {
    double *values = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        values[i] = from + (to - from) * op_uniform(run);
    return op_given(run, TD_F32, n, values);
}

// Scales halfway between two bf16 numbers, so that the codes 1 and -1 have to be rounded to even.
static op_buffer *random_ties(op_run *run, int64_t n) {
    double *values = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = 0x3d008000u | (op_word(run) & 0x00ff0000u);
        float value;
        memcpy(&value, &bits, sizeof value);
        values[i] = (double)value;
    }
    return op_given(run, TD_F32, n, values);
}

static op_matrix random_nf4(op_run *run, op_matrix_kind kind, int64_t rows, int64_t cols) {
    int nested = kind == OP_NF4_NESTED || kind == OP_NF4_NESTED_BF16;
    int bf16 = kind == OP_NF4_BF16 || kind == OP_NF4_NESTED_BF16;
    int64_t n = rows * cols;
    nf4_parts parts = {.data = op_indices(run, TD_U8, (n + 1) / 2, 256), .offset = 0.06f};
    if (nested) {
        parts.codes = op_indices(run, TD_U8, td_nf4_block_count(n), 256);
        parts.nested = random_positive(run, td_nf4_nested_count(n), 0.01, 0.05);
        parts.map = op_random(run, TD_F32, 256, 1.0);
    } else {
        parts.absmax = bf16 ? random_ties(run, td_nf4_block_count(n))
                            : random_positive(run, td_nf4_block_count(n), 0.01, 0.1);
    }
    op_matrix matrix = {.view = {.format = TD_MATRIX_NF4,
                                 .rows = rows,
                                 .cols = cols,
                                 .data = parts.data->memory,
                                 .absmax = op_memory(parts.absmax),
                                 .absmax_codes = op_memory(parts.codes),
                                 .nested_absmax = op_memory(parts.nested),
                                 .nested_map = op_memory(parts.map),
                                 .nested_offset = parts.offset,
                                 .compute = bf16 ? TD_BF16 : TD_F32}};
    matrix.values = run->timing ? NULL : decode(run, &parts, n, bf16);
    return matrix;
}

op_matrix op_matrix_random(op_run *run, op_matrix_kind kind, int64_t rows, int64_t cols) {
    if (kind != OP_F32 && kind != OP_BF16)
        return random_nf4(run, kind, rows, cols);
    td_dtype dtype = kind == OP_F32 ? TD_F32 : TD_BF16;
    op_buffer *data = op_random(run, dtype, rows * cols, 0.1);
    return (op_matrix){
        .view = {.format = kind == OP_F32 ? TD_MATRIX_F32 : TD_MATRIX_BF16,
                 .rows = rows,
                 .cols = cols,
                 .data = data->memory,
                 .compute = dtype},
        .values = data->values,
    };
}
