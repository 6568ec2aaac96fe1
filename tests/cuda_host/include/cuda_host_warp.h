// Barriers, warp primitives and atomics.
#ifndef CUDA_HOST_CUDA_HOST_WARP_H
#define CUDA_HOST_CUDA_HOST_WARP_H

#include <cstdint>
#include <cstring>

#include "cuda_host.h"

inline void __syncthreads(CUDA_HOST_PLACE) {
    cuda_host_barrier(CUDA_HOST_SITE("__syncthreads"));
}
inline int __syncthreads_count(int predicate, CUDA_HOST_PLACE) {
    bool all;
    return cuda_host_block_barrier(CUDA_HOST_SITE("__syncthreads_count"), predicate, &all);
}
inline int __syncthreads_or(int predicate, CUDA_HOST_PLACE) {
    bool all;
    return cuda_host_block_barrier(CUDA_HOST_SITE("__syncthreads_or"), predicate, &all) != 0;
}
inline int __syncthreads_and(int predicate, CUDA_HOST_PLACE) {
    bool all;
    cuda_host_block_barrier(CUDA_HOST_SITE("__syncthreads_and"), predicate, &all);
    return all;
}

void cuda_host_warp_barrier(cuda_host_site site, unsigned mask);
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_PLACE) {
    cuda_host_warp_barrier(CUDA_HOST_SITE("__syncwarp"), mask);
}

// One lane of a shuffle: gets the value of lane `source`, which may be its own.
// What a lane outside the mask holds is not defined: poison.
struct cuda_host_shuffle_lane {
    uint64_t value, result;
    int source, width;
};
void cuda_host_shuffle_step(void *const *lanes, unsigned mask);
// The source lanes of CUDA's four shuffles (PTX ISA, shfl.sync); width is a
// power of two to 32.
inline int cuda_host_shuffle_index(int from, int width) {
    int segment = static_cast<int>(cuda_host_lane()) & ~(width - 1);
    return segment | (from & (width - 1));
}
inline int cuda_host_shuffle_up(unsigned delta, int width) {
    int lane = static_cast<int>(cuda_host_lane()), from = lane - static_cast<int>(delta & 31);
    return from >= (lane & ~(width - 1)) ? from : lane;
}
inline int cuda_host_shuffle_down(unsigned delta, int width) {
    int lane = static_cast<int>(cuda_host_lane()), from = lane + static_cast<int>(delta & 31);
    return from <= (lane | (width - 1)) ? from : lane;
}
inline int cuda_host_shuffle_xor(int mask, int width) {
    int lane = static_cast<int>(cuda_host_lane()), from = lane ^ (mask & 31);
    return from <= (lane | (width - 1)) ? from : lane;
}
template <typename T>
T cuda_host_shuffle(cuda_host_site site, unsigned mask, T value, int source, int width) {
    static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
    cuda_host_shuffle_lane lane = {0, 0, source, width};
    memcpy(&lane.value, &value, sizeof value);
    cuda_host_warp_collective(site, mask, &lane, cuda_host_shuffle_step);
    memcpy(static_cast<void *>(&value), &lane.result, sizeof value);
    return value;
}

#define CUDA_HOST_SHUFFLES(T)                                                                      \
    inline T __shfl_sync(unsigned mask, T value, int from, int width = 32, CUDA_HOST_PLACE) {      \
        return cuda_host_shuffle<T>(CUDA_HOST_SITE("__shfl_sync"), mask, value,                    \
                                    cuda_host_shuffle_index(from, width), width);                  \
    }                                                                                              \
    inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,                \
                            CUDA_HOST_PLACE) {                                                     \
        return cuda_host_shuffle<T>(CUDA_HOST_SITE("__shfl_up_sync"), mask, value,                 \
                                    cuda_host_shuffle_up(delta, width), width);                    \
    }                                                                                              \
    inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,              \
                              CUDA_HOST_PLACE) {                                                   \
        return cuda_host_shuffle<T>(CUDA_HOST_SITE("__shfl_down_sync"), mask, value,               \
                                    cuda_host_shuffle_down(delta, width), width);                  \
    }                                                                                              \
    inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_HOST_PLACE) { \
        return cuda_host_shuffle<T>(CUDA_HOST_SITE("__shfl_xor_sync"), mask, value,                \
                                    cuda_host_shuffle_xor(lanes, width), width);                   \
    }
CUDA_HOST_SHUFFLES(int)
CUDA_HOST_SHUFFLES(unsigned)
CUDA_HOST_SHUFFLES(long)
CUDA_HOST_SHUFFLES(unsigned long)
CUDA_HOST_SHUFFLES(long long)
CUDA_HOST_SHUFFLES(unsigned long long)
CUDA_HOST_SHUFFLES(float)
CUDA_HOST_SHUFFLES(double)

// Votes: every lane of the mask gets the lanes whose predicate holds.
struct cuda_host_vote_lane {
    bool predicate;
    unsigned holds;
};
void cuda_host_vote_step(void *const *lanes, unsigned mask);
inline unsigned cuda_host_vote(cuda_host_site site, unsigned mask, bool predicate) {
    cuda_host_vote_lane lane = {predicate, 0};
    cuda_host_warp_collective(site, mask, &lane, cuda_host_vote_step);
    return lane.holds;
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_HOST_PLACE) {
    return cuda_host_vote(CUDA_HOST_SITE("__ballot_sync"), mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_HOST_PLACE) {
    return cuda_host_vote(CUDA_HOST_SITE("__any_sync"), mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_HOST_PLACE) {
    return cuda_host_vote(CUDA_HOST_SITE("__all_sync"), mask, predicate != 0) == mask;
}

// Reductions over the lanes of a mask, the same result in each (32-bit
// integers, as sm_80 has).
template <typename T> struct cuda_host_reduce_lane { T value; };
template <typename T, T (*Combine)(T, T)>
void cuda_host_reduce_step(void *const *lanes, unsigned mask) {
    T total = static_cast<cuda_host_reduce_lane<T> *>(lanes[__builtin_ctz(mask)])->value;
    for (unsigned rest = mask & (mask - 1); rest; rest &= rest - 1)
        total = Combine(total,
                        static_cast<cuda_host_reduce_lane<T> *>(lanes[__builtin_ctz(rest)])->value);
    for (unsigned rest = mask; rest; rest &= rest - 1)
        static_cast<cuda_host_reduce_lane<T> *>(lanes[__builtin_ctz(rest)])->value = total;
}
template <typename T, T (*Combine)(T, T)>
T cuda_host_reduce(cuda_host_site site, unsigned mask, T value) {
    cuda_host_reduce_lane<T> lane = {value};
    cuda_host_warp_collective(site, mask, &lane, cuda_host_reduce_step<T, Combine>);
    return lane.value;
}
#define CUDA_HOST_REDUCE(name, T, expression)                                                      \
    inline T cuda_host_combine_##name(T a, T b) {                                                  \
        return static_cast<T>(expression);                                                         \
    }                                                                                              \
    inline T __reduce_##name##_sync(unsigned mask, T value, CUDA_HOST_PLACE) {                     \
        return cuda_host_reduce<T, cuda_host_combine_##name>(                                      \
            CUDA_HOST_SITE("__reduce_" #name "_sync"), mask, value);                               \
    }
CUDA_HOST_REDUCE(add, unsigned, a + b)
CUDA_HOST_REDUCE(min, unsigned, a < b ? a : b)
CUDA_HOST_REDUCE(max, unsigned, a > b ? a : b)
CUDA_HOST_REDUCE(and, unsigned, a &b)
CUDA_HOST_REDUCE(or, unsigned, a | b)
CUDA_HOST_REDUCE(xor, unsigned, a ^ b)
CUDA_HOST_REDUCE(add, int, static_cast<unsigned>(a) + static_cast<unsigned>(b))
CUDA_HOST_REDUCE(min, int, a < b ? a : b)
CUDA_HOST_REDUCE(max, int, a > b ? a : b)

// Atomics are indivisible here by themselves: fibers change only where they ask
// for it.
template <typename T, typename Function> T cuda_host_atomic(T *at, Function next) {
    cuda_host_yield();
    cuda_host_in_atomic = true;
    T old = *at;
    *at = next(old);
    cuda_host_in_atomic = false;
    return old;
}
#define CUDA_HOST_ATOMIC(name, T, expression)                                                      \
    inline T name(T *at, T b) {                                                                    \
        return cuda_host_atomic(at, [b](T a) { return static_cast<T>(expression); });              \
    }
CUDA_HOST_ATOMIC(atomicAdd, int, static_cast<unsigned>(a) + static_cast<unsigned>(b))
CUDA_HOST_ATOMIC(atomicAdd, unsigned, a + b)
CUDA_HOST_ATOMIC(atomicAdd, unsigned long long, a + b)
CUDA_HOST_ATOMIC(atomicAdd, float, a + b)
CUDA_HOST_ATOMIC(atomicAdd, double, a + b)
CUDA_HOST_ATOMIC(atomicSub, int, static_cast<unsigned>(a) - static_cast<unsigned>(b))
CUDA_HOST_ATOMIC(atomicSub, unsigned, a - b)
#define CUDA_HOST_ATOMIC_INTEGERS(T)                                                               \
    CUDA_HOST_ATOMIC(atomicMax, T, a > b ? a : b)                                                  \
    CUDA_HOST_ATOMIC(atomicMin, T, a < b ? a : b)                                                  \
    CUDA_HOST_ATOMIC(atomicOr, T, a | b)                                                           \
    CUDA_HOST_ATOMIC(atomicAnd, T, a &b)                                                           \
    CUDA_HOST_ATOMIC(atomicXor, T, a ^ b)                                                          \
    inline T atomicExch(T *at, T b) {                                                              \
        return cuda_host_atomic(at, [b](T) { return b; });                                         \
    }                                                                                              \
    inline T atomicCAS(T *at, T expected, T desired) {                                             \
        return cuda_host_atomic(at, [=](T a) { return a == expected ? desired : a; });             \
    }
CUDA_HOST_ATOMIC_INTEGERS(int)
CUDA_HOST_ATOMIC_INTEGERS(unsigned)
CUDA_HOST_ATOMIC_INTEGERS(unsigned long long)
CUDA_HOST_ATOMIC(atomicMax, long long, a > b ? a : b)
CUDA_HOST_ATOMIC(atomicMin, long long, a < b ? a : b)
inline float atomicExch(float *at, float b) {
    return cuda_host_atomic(at, [b](float) { return b; });
}

inline void __threadfence() {
    cuda_host_yield();
}
inline void __threadfence_block() {
    cuda_host_yield();
}
inline void __threadfence_system() {
    cuda_host_yield();
}
inline void __nanosleep(unsigned) {
    cuda_host_yield();
}

#undef CUDA_HOST_REDUCE
#undef CUDA_HOST_ATOMIC
#undef CUDA_HOST_ATOMIC_INTEGERS

#endif
