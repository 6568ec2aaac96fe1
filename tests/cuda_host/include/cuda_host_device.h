// Arithmetic and bit functions of device code. The rounding ones are exact; the approximate ones
// (__expf and its like) are computed otherwise than by a GPU and agree within its documented error.
#ifndef CUDA_HOST_CUDA_HOST_DEVICE_H
#define CUDA_HOST_CUDA_HOST_DEVICE_H

#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

template <typename T, typename U> inline T cuda_host_bits(U value) {
    static_assert(sizeof(T) == sizeof(U), "the same bits");
    T out;
    memcpy(static_cast<void *>(&out), &value, sizeof out);
    return out;
}
inline int __float_as_int(float x) {
    return cuda_host_bits<int>(x);
}
inline unsigned __float_as_uint(float x) {
    return cuda_host_bits<unsigned>(x);
}
inline float __int_as_float(int x) {
    return cuda_host_bits<float>(x);
}
inline float __uint_as_float(unsigned x) {
    return cuda_host_bits<float>(x);
}
inline long long __double_as_longlong(double x) {
    return cuda_host_bits<long long>(x);
}
inline double __longlong_as_double(long long x) {
    return cuda_host_bits<double>(x);
}

template <typename T> inline T __ldg(const T *at) {
    return *at;
}
template <typename T> inline T __ldcs(const T *at) {
    return *at;
}
template <typename T> inline T __ldcg(const T *at) {
    return *at;
}
template <typename T> inline void __stcs(T *at, T value) {
    *at = value;
}
template <typename T> inline void __stcg(T *at, T value) {
    *at = value;
}

// Operations that the compiler must neither fuse nor reorder, rounded to nearest even.
#define CUDA_HOST_ROUNDED(letter, T, root)                                                         \
    inline T __##letter##add_rn(T a, T b) {                                                        \
        return a + b;                                                                              \
    }                                                                                              \
    inline T __##letter##sub_rn(T a, T b) {                                                        \
        return a - b;                                                                              \
    }                                                                                              \
    inline T __##letter##mul_rn(T a, T b) {                                                        \
        return a * b;                                                                              \
    }                                                                                              \
    inline T __##letter##div_rn(T a, T b) {                                                        \
        return a / b;                                                                              \
    }                                                                                              \
    inline T __##letter##rcp_rn(T a) {                                                             \
        return 1 / a;                                                                              \
    }                                                                                              \
    inline T __##letter##sqrt_rn(T a) {                                                            \
        return root(a);                                                                            \
    }
CUDA_HOST_ROUNDED(f, float, sqrtf)
CUDA_HOST_ROUNDED(d, double, sqrt)
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline double __fma_rn(double a, double b, double c) {
    return fma(a, b, c);
}
inline float __frsqrt_rn(float a) {
    return static_cast<float>(1 / sqrt(static_cast<double>(a)));
}

// To integers as a GPU does it: out of range saturates, NaN gives 0 (64-bit: the smallest value).
template <typename T> inline T cuda_host_to_integer(double x, T nan_value) {
    constexpr bool is_signed = std::is_signed_v<T>;
    constexpr int bits = static_cast<int>(sizeof(T)) * 8 - (is_signed ? 1 : 0);
    if (x != x)
        return nan_value;
    if (x >= ldexp(1.0, bits))
        return static_cast<T>(~(is_signed ? T(1) << (bits & 63) : T(0)));
    if (x <= (is_signed ? -ldexp(1.0, bits) : 0.0))
        return is_signed ? static_cast<T>(T(1) << (bits & 63)) : T(0);
    return static_cast<T>(x);
}
#define CUDA_HOST_TO_INTEGER(from, F, to, T, nan_value)                                            \
    inline T __##from##2##to##_rn(F x) {                                                           \
        return cuda_host_to_integer<T>(rint(static_cast<double>(x)), nan_value);                   \
    }                                                                                              \
    inline T __##from##2##to##_rz(F x) {                                                           \
        return cuda_host_to_integer<T>(trunc(static_cast<double>(x)), nan_value);                  \
    }                                                                                              \
    inline T __##from##2##to##_rd(F x) {                                                           \
        return cuda_host_to_integer<T>(floor(static_cast<double>(x)), nan_value);                  \
    }                                                                                              \
    inline T __##from##2##to##_ru(F x) {                                                           \
        return cuda_host_to_integer<T>(ceil(static_cast<double>(x)), nan_value);                   \
    }
CUDA_HOST_TO_INTEGER(float, float, int, int, 0)
CUDA_HOST_TO_INTEGER(float, float, uint, unsigned, 0u)
CUDA_HOST_TO_INTEGER(float, float, ll, long long, INT64_MIN)
CUDA_HOST_TO_INTEGER(float, float, ull, unsigned long long, 1ull << 63)
CUDA_HOST_TO_INTEGER(double, double, int, int, INT32_MIN)
CUDA_HOST_TO_INTEGER(double, double, uint, unsigned, 1u << 31)
CUDA_HOST_TO_INTEGER(double, double, ll, long long, INT64_MIN)
CUDA_HOST_TO_INTEGER(double, double, ull, unsigned long long, 1ull << 63)

#define CUDA_HOST_FROM_INTEGER(from, T)                                                            \
    inline float __##from##2float_rn(T x) {                                                        \
        return static_cast<float>(x);                                                              \
    }                                                                                              \
    inline double __##from##2double_rn(T x) {                                                      \
        return static_cast<double>(x);                                                             \
    }
CUDA_HOST_FROM_INTEGER(int, int)
CUDA_HOST_FROM_INTEGER(uint, unsigned)
CUDA_HOST_FROM_INTEGER(ll, long long)
CUDA_HOST_FROM_INTEGER(ull, unsigned long long)
inline float __double2float_rn(double x) {
    return static_cast<float>(x);
}

inline float rsqrtf(float x) {
    return __frsqrt_rn(x);
}
inline double rsqrt(double x) {
    return 1 / sqrt(x);
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float __expf(float x) {
    return exp2f(x * 1.44269504f);
}
inline float __exp10f(float x) {
    return exp2f(x * 3.32192809f);
}
inline float __logf(float x) {
    return log2f(x) * 0.693147181f;
}
inline float __log2f(float x) {
    return log2f(x);
}
inline float __powf(float a, float b) {
    return exp2f(b * log2f(a));
}
inline float __sinf(float x) {
    return sinf(x);
}
inline float __cosf(float x) {
    return cosf(x);
}
inline float __saturatef(float x) {
    return x > 0 ? x < 1 ? x : 1 : 0; // NaN gives 0
}

// The mixes of arithmetic types give the type that the operands of + would have.
template <typename A, typename B>
inline std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, decltype(A() + B())>
min(A a, B b) {
    using T = decltype(A() + B());
    if constexpr (std::is_floating_point_v<T>)
        return fmin(static_cast<T>(a), static_cast<T>(b));
    else
        return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
template <typename A, typename B>
inline std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, decltype(A() + B())>
max(A a, B b) {
    using T = decltype(A() + B());
    if constexpr (std::is_floating_point_v<T>)
        return fmax(static_cast<T>(a), static_cast<T>(b));
    else
        return static_cast<T>(a) > static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}

inline int __clz(int x) {
    return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
inline int __clzll(long long x) {
    return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
inline unsigned __brev(unsigned x) {
    unsigned out = 0;
    for (int i = 0; i < 32; i++)
        out |= (x >> i & 1) << (31 - i);
    return out;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline int __mulhi(int a, int b) {
    return static_cast<int>(static_cast<long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
// Bytes of {y, x} picked by the four low nibbles of `selector`; bit 3 of one spreads the sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    unsigned long long both = static_cast<unsigned long long>(y) << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned nibble = selector >> (4 * i) & 15;
        unsigned byte = static_cast<unsigned>(both >> (8 * (nibble & 7))) & 255;
        if (nibble & 8)
            byte = byte & 128 ? 255 : 0;
        out |= byte << (8 * i);
    }
    return out;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    shift &= 31;
    return shift ? high << shift | low >> (32 - shift) : high;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    shift &= 31;
    return shift ? high << (32 - shift) | low >> shift : low;
}

#undef CUDA_HOST_ROUNDED
#undef CUDA_HOST_TO_INTEGER
#undef CUDA_HOST_FROM_INTEGER

#endif
