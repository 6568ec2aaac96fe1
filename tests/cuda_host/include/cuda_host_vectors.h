// CUDA's vector types: plain structures with CUDA's alignment.
#ifndef CUDA_HOST_CUDA_HOST_VECTORS_H
#define CUDA_HOST_CUDA_HOST_VECTORS_H

#include "cuda_runtime_api.h"

// One width of vectors of `element`: the structure and its make_ function.
#define CUDA_HOST_VECTOR1(name, element, align)                                                    \
    struct alignas(align) name##1 {                                                                \
        element x;                                                                                 \
    };                                                                                             \
    inline name##1 make_##name##1(element x) {                                                     \
        return name##1 {x};                                                                        \
    }
#define CUDA_HOST_VECTOR2(name, element, align)                                                    \
    struct alignas(align) name##2 {                                                                \
        element x, y;                                                                              \
    };                                                                                             \
    inline name##2 make_##name##2(element x, element y) {                                          \
        return name##2 {x, y};                                                                     \
    }
#define CUDA_HOST_VECTOR3(name, element)                                                           \
    struct name##3 {                                                                               \
        element x, y, z;                                                                           \
    };                                                                                             \
    inline name##3 make_##name##3(element x, element y, element z) {                               \
        return name##3 {x, y, z};                                                                  \
    }
#define CUDA_HOST_VECTOR4(name, element, align)                                                    \
    struct alignas(align) name##4 {                                                                \
        element x, y, z, w;                                                                        \
    };                                                                                             \
    inline name##4 make_##name##4(element x, element y, element z, element w) {                    \
        return name##4 {x, y, z, w};                                                               \
    }

CUDA_HOST_VECTOR1(char, signed char, 1)
CUDA_HOST_VECTOR2(char, signed char, 2)
CUDA_HOST_VECTOR3(char, signed char)
CUDA_HOST_VECTOR4(char, signed char, 4)
CUDA_HOST_VECTOR1(uchar, unsigned char, 1)
CUDA_HOST_VECTOR2(uchar, unsigned char, 2)
CUDA_HOST_VECTOR3(uchar, unsigned char)
CUDA_HOST_VECTOR4(uchar, unsigned char, 4)
CUDA_HOST_VECTOR1(short, short, 2)
CUDA_HOST_VECTOR2(short, short, 4)
CUDA_HOST_VECTOR3(short, short)
CUDA_HOST_VECTOR4(short, short, 8)
CUDA_HOST_VECTOR1(ushort, unsigned short, 2)
CUDA_HOST_VECTOR2(ushort, unsigned short, 4)
CUDA_HOST_VECTOR3(ushort, unsigned short)
CUDA_HOST_VECTOR4(ushort, unsigned short, 8)
CUDA_HOST_VECTOR1(int, int, 4)
CUDA_HOST_VECTOR2(int, int, 8)
CUDA_HOST_VECTOR3(int, int)
CUDA_HOST_VECTOR4(int, int, 16)
CUDA_HOST_VECTOR1(uint, unsigned, 4)
CUDA_HOST_VECTOR2(uint, unsigned, 8)
CUDA_HOST_VECTOR4(uint, unsigned, 16)
CUDA_HOST_VECTOR1(float, float, 4)
CUDA_HOST_VECTOR2(float, float, 8)
CUDA_HOST_VECTOR3(float, float)
CUDA_HOST_VECTOR4(float, float, 16)
CUDA_HOST_VECTOR1(longlong, long long, 8)
CUDA_HOST_VECTOR2(longlong, long long, 16)
CUDA_HOST_VECTOR3(longlong, long long)
CUDA_HOST_VECTOR4(longlong, long long, 16)
CUDA_HOST_VECTOR1(ulonglong, unsigned long long, 8)
CUDA_HOST_VECTOR2(ulonglong, unsigned long long, 16)
CUDA_HOST_VECTOR3(ulonglong, unsigned long long)
CUDA_HOST_VECTOR4(ulonglong, unsigned long long, 16)
CUDA_HOST_VECTOR1(double, double, 8)
CUDA_HOST_VECTOR2(double, double, 16)
CUDA_HOST_VECTOR3(double, double)
CUDA_HOST_VECTOR4(double, double, 16)

inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
    return uint3{x, y, z};
}

#undef CUDA_HOST_VECTOR1
#undef CUDA_HOST_VECTOR2
#undef CUDA_HOST_VECTOR3
#undef CUDA_HOST_VECTOR4

#endif
