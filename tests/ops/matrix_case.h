// Random frozen matrices for the case files.
#ifndef TANDEM_TESTS_OPS_MATRIX_CASE_H
#define TANDEM_TESTS_OPS_MATRIX_CASE_H

#include "ops/case.h"

typedef struct op_matrix {
    td_matrix view;       // of device memory
    const double *values; // (rows, cols): what a kernel has to read out of it, exactly
} op_matrix;

typedef enum op_matrix_kind {
    OP_F32,
    OP_BF16,
    OP_NF4,             // plain absmax, fp32
    OP_NF4_BF16,        // plain absmax, rounded to bf16
    OP_NF4_NESTED,      // double quantization, fp32
    OP_NF4_NESTED_BF16, // double quantization, rounded to bf16
    OP_MATRIX_KINDS,
} op_matrix_kind;

const char *op_matrix_name(op_matrix_kind kind);
double op_matrix_bytes(op_matrix_kind kind, int64_t elements);

// Weights of magnitude up to about 0.1. values is left NULL when timing.
op_matrix op_matrix_random(op_run *run, op_matrix_kind kind, int64_t rows, int64_t cols);

#endif
