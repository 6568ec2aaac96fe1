// bfloat16 of CUDA: the upper half of a float, conversions rounded to nearest even. Arithmetic is
// done in float and rounded once more, which gives the correctly rounded result (24 bits are more
// than twice 8 plus 2).
#ifndef CUDA_HOST_CUDA_BF16_H
#define CUDA_HOST_CUDA_BF16_H

#include "cuda_runtime.h"

struct __nv_bfloat16_raw {
    unsigned short x;
};
struct __nv_bfloat162_raw {
    unsigned short x, y;
};

inline unsigned short cuda_host_bf16_bits(float value) {
    unsigned bits = __float_as_uint(value);
    if (value != value)
        return 0x7fff; // CUDA's one NaN
    return static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float cuda_host_bf16_value(unsigned short bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

struct alignas(2) __nv_bfloat16 {
    __nv_bfloat16() = default;
    __nv_bfloat16(const __nv_bfloat16_raw &raw) : x(raw.x) {
    }
    __nv_bfloat16(float value) : x(cuda_host_bf16_bits(value)) {
    }
    operator float() const {
        return cuda_host_bf16_value(x);
    }
    operator __nv_bfloat16_raw() const {
        return {x};
    }

  protected:
    unsigned short x;
};
typedef __nv_bfloat16 nv_bfloat16;

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat162() = default;
    __nv_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) : x(a), y(b) {
    }
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat162 nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 a) {
    return a;
}
inline __nv_bfloat16 __float2bfloat16_rn(float a) {
    return a;
}
inline __nv_bfloat16 __float2bfloat16(float a) {
    return a;
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) {
    return static_cast<__nv_bfloat16_raw>(a).x;
}
inline short __bfloat16_as_short(__nv_bfloat16 a) {
    return static_cast<short>(__bfloat16_as_ushort(a));
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    return __nv_bfloat16_raw{bits};
}
inline __nv_bfloat16 __short_as_bfloat16(short bits) {
    return __nv_bfloat16_raw{static_cast<unsigned short>(bits)};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) {
    return {a, b};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
    return {__nv_bfloat16(a), __nv_bfloat16(b)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 a) {
    return {__nv_bfloat16(a.x), __nv_bfloat16(a.y)};
}
inline __nv_bfloat162 __float2bfloat162_rn(float a) {
    return {__nv_bfloat16(a), __nv_bfloat16(a)};
}
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) {
    return {a, a};
}
inline float2 __bfloat1622float2(__nv_bfloat162 a) {
    return {a.x, a.y};
}
inline float __low2float(__nv_bfloat162 a) {
    return a.x;
}
inline float __high2float(__nv_bfloat162 a) {
    return a.y;
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 a) {
    return a.x;
}
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 a) {
    return a.y;
}

#define CUDA_HOST_BF16_OPERATOR(op, name)                                                          \
    inline __nv_bfloat16 operator op(__nv_bfloat16 a, __nv_bfloat16 b) {                           \
        return __nv_bfloat16(__bfloat162float(a) op __bfloat162float(b));                          \
    }                                                                                              \
    inline __nv_bfloat16 name(__nv_bfloat16 a, __nv_bfloat16 b) {                                  \
        return a op b;                                                                             \
    }
CUDA_HOST_BF16_OPERATOR(+, __hadd)
CUDA_HOST_BF16_OPERATOR(-, __hsub)
CUDA_HOST_BF16_OPERATOR(*, __hmul)
CUDA_HOST_BF16_OPERATOR(/, __hdiv)
#undef CUDA_HOST_BF16_OPERATOR

CUDA_HOST_SHUFFLES(__nv_bfloat16)
CUDA_HOST_SHUFFLES(__nv_bfloat162)
#undef CUDA_HOST_SHUFFLES

#endif
