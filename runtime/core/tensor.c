#include "runtime/core/tensor.h"

#include <string.h>

static const struct {
    size_t bytes;
    const char *name;
} dtypes[TD_DTYPE_COUNT] = {
    [TD_F32] = {4, "F32"}, [TD_F16] = {2, "F16"}, [TD_BF16] = {2, "BF16"}, [TD_U8] = {1, "U8"},
    [TD_I8] = {1, "I8"},   [TD_I32] = {4, "I32"}, [TD_I64] = {8, "I64"},
};

static int is_known(td_dtype dtype) {
    return (unsigned)dtype < TD_DTYPE_COUNT;
}

size_t td_dtype_bytes(td_dtype dtype) {
    return is_known(dtype) ? dtypes[dtype].bytes : 0;
}

const char *td_dtype_name(td_dtype dtype) {
    return is_known(dtype) ? dtypes[dtype].name : "?";
}

td_status td_tensor_elements(const td_tensor *tensor, int64_t *out) {
    if (tensor->n_dims < 0 || tensor->n_dims > TD_MAX_DIMS)
        return td_fail(TD_ERR_DATA, "tensor has %d dimensions; at most %d are supported",
                       tensor->n_dims, TD_MAX_DIMS);
    int64_t product = 1;
    for (int i = 0; i < tensor->n_dims; i++) {
        if (tensor->shape[i] < 0)
            return td_fail(TD_ERR_DATA, "tensor extent %d is negative (%lld)", i,
                           (long long)tensor->shape[i]);
        if (__builtin_mul_overflow(product, tensor->shape[i], &product))
            return td_fail(TD_ERR_DATA, "tensor has more elements than 64 bits can count");
    }
    *out = product;
    return TD_OK;
}

float td_f16_to_f32(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 0x1fu;
    uint32_t fraction = bits & 0x3ffu;
    union {
        uint32_t u;
        float f;
    } word;
    if (exponent == 0) { // zero or subnormal: fraction * 2^-24 is exact in fp32
        word.f = (float)fraction * 0x1p-24f;
        word.u |= sign;
    } else if (exponent == 31) {
        word.u = sign | 0x7f800000u | (fraction << 13);
    } else {
        word.u = sign | ((exponent + 112) << 23) | (fraction << 13);
    }
    return word.f;
}

// Sources come from mapped files and may be unaligned: they are read by memcpy.
static uint16_t load_u16(const unsigned char *source, int64_t index) {
    uint16_t bits;
    memcpy(&bits, source + 2 * index, sizeof bits);
    return bits;
}

void td_convert_to_f32(const void *source, td_dtype dtype, int64_t n, float *out) {
    const unsigned char *bytes = source;
    if (dtype == TD_F32) {
        memcpy(out, source, (size_t)n * sizeof *out);
    } else if (dtype == TD_BF16) {
        for (int64_t i = 0; i < n; i++)
            out[i] = td_bf16_to_f32(load_u16(bytes, i));
    } else if (dtype == TD_F16) {
        for (int64_t i = 0; i < n; i++)
            out[i] = td_f16_to_f32(load_u16(bytes, i));
    }
}
