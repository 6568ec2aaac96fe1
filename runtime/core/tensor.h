// A view of memory as a tensor: row-major, contiguous, owns nothing.
#ifndef TANDEM_CORE_TENSOR_H
#define TANDEM_CORE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/portable.h"
#include "runtime/core/status.h"

TD_C_BEGIN

typedef enum td_dtype {
    TD_F32,
    TD_F16,
    TD_BF16,
    TD_U8,
    TD_I8,
    TD_I32,
    TD_I64,
    TD_DTYPE_COUNT,
} td_dtype;

enum { TD_MAX_DIMS = 8 };

typedef struct td_tensor {
    void *data;
    td_dtype dtype;
    int n_dims;
    int64_t shape[TD_MAX_DIMS];
} td_tensor;

size_t td_dtype_bytes(td_dtype dtype);
const char *td_dtype_name(td_dtype dtype); // safetensors spelling: "F32", "BF16", ...

// Product of the shape; fails with TD_ERR_DATA on a negative extent or overflow.
td_status td_tensor_elements(const td_tensor *tensor, int64_t *out);

// a * b, or SIZE_MAX on overflow: an allocation of that size always fails.
TD_INLINE size_t td_mul_bytes(size_t a, size_t b) {
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}

TD_INLINE float td_bf16_to_f32(uint16_t bits) {
    union {
        uint32_t u;
        float f;
    } word;
    word.u = (uint32_t)bits << 16;
    return word.f;
}

// Round to nearest even; NaN stays NaN.
TD_INLINE uint16_t td_f32_to_bf16(float value) {
    union {
        float f;
        uint32_t u;
    } word;
    word.f = value;
    if ((word.u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((word.u >> 16) | 0x40u);
    return (uint16_t)((word.u + 0x7fffu + ((word.u >> 16) & 1u)) >> 16);
}

float td_f16_to_f32(uint16_t bits);

// Converts n elements of F32, F16 or BF16 to fp32.
void td_convert_to_f32(const void *source, td_dtype dtype, int64_t n, float *out);

TD_C_END

#endif
