// A frozen weight matrix in one of the formats the operations take. A view: owns nothing.
#ifndef TANDEM_KERNELS_MATRIX_H
#define TANDEM_KERNELS_MATRIX_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/portable.h"
#include "runtime/core/tensor.h"

typedef enum td_matrix_format {
    TD_MATRIX_F32,
    TD_MATRIX_BF16,
    TD_MATRIX_NF4,
} td_matrix_format;

enum {
    TD_NF4_BLOCK = 64,         // elements that share one absmax
    TD_NF4_NESTED_BLOCK = 256, // absmax values that share one nested absmax
};

// What the 16 codes stand for (CONTRACT.md, "NF4"), as an initializer.
#define TD_NF4_CODES                                                                               \
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,                      \
        -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,                 \
        0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,    \
        0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f

// Blocks and nested blocks of n elements.
TD_INLINE int64_t td_nf4_block_count(int64_t n_elements) {
    return (n_elements + TD_NF4_BLOCK - 1) / TD_NF4_BLOCK;
}
TD_INLINE int64_t td_nf4_nested_count(int64_t n_elements) {
    return (td_nf4_block_count(n_elements) + TD_NF4_NESTED_BLOCK - 1) / TD_NF4_NESTED_BLOCK;
}

typedef struct td_matrix {
    td_matrix_format format;
    int64_t rows, cols; // (out, in)
    const void *data;   // F32 or BF16: (rows, cols) row-major; NF4: ceil(rows * cols / 2) bytes,
                        // first code in the high half
    // NF4. Either absmax, or the nested four (double quantization).
    const float *absmax;         // (n_blocks)
    const uint8_t *absmax_codes; // (n_blocks)
    const float *nested_absmax;  // (n_nested)
    const float *nested_map;     // (256)
    float nested_offset;
    td_dtype compute; // what a dequantized weight is rounded to: TD_F32 or TD_BF16
    // NF4. NULL, or all of it dequantized to the type of the activations: (rows, cols) row-major.
    // linear_* may read it instead: the numbers are the same.
    const void *resident;
} td_matrix;

#endif
