// Activations eight at a time: one 16-byte access for bf16, two for fp32.
//
// A row is cut into chunks of eight from its start on, the last one may be shorter. Where the
// caller found that all chunks lie on 16-byte addresses ("wide") whole chunks move in 16-byte
// accesses, else element by element: in both ways a thread gets the same elements, so the results
// have the same bits.
#ifndef TANDEM_KERNELS_CUDA_ELEMENTS_CUH
#define TANDEM_KERNELS_CUDA_ELEMENTS_CUH

#include "kernels/cuda/cuda_internal.cuh"

constexpr int TD_CHUNK = 8;

// A chunk as it lies in memory. Kept so until it is used: taking it apart at once would wait for
// one load before the next is under way.
template <typename T> struct td_chunk { uint32_t word[TD_CHUNK * sizeof(T) / 4]; };

struct td_floats {
    float at[TD_CHUNK];
};

// What one access moves, whatever type the memory has.
struct __attribute__((may_alias, aligned(16))) td_access {
    uint32_t word[4];
};

template <typename... P> static inline bool td_cuda_aligned(const P *...pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

static inline int64_t td_cuda_chunks(int64_t n) {
    return (n + TD_CHUNK - 1) / TD_CHUNK;
}

__device__ __forceinline__ td_floats td_chunk_floats(const td_chunk<float> &chunk) {
    td_floats x;
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++)
        x.at[k] = __uint_as_float(chunk.word[k]);
    return x;
}

// A bf16 is the upper half of a float; the first of a pair lies in the lower half of its word.
__device__ __forceinline__ td_floats td_chunk_floats(const td_chunk<bf16> &chunk) {
    td_floats x;
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k += 2) {
        x.at[k] = __uint_as_float(chunk.word[k / 2] << 16);
        x.at[k + 1] = __uint_as_float(chunk.word[k / 2] & 0xffff0000u);
    }
    return x;
}

__device__ __forceinline__ uint32_t td_bits(bf16 x) {
    return __bfloat16_as_ushort(x);
}

// Rounded to nearest even.
template <typename T> __device__ __forceinline__ td_chunk<T> td_chunk_of(const td_floats &x);
template <> __device__ __forceinline__ td_chunk<float> td_chunk_of<float>(const td_floats &x) {
    td_chunk<float> chunk;
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++)
        chunk.word[k] = __float_as_uint(x.at[k]);
    return chunk;
}
template <> __device__ __forceinline__ td_chunk<bf16> td_chunk_of<bf16>(const td_floats &x) {
    td_chunk<bf16> chunk;
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k += 2) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(x.at[k], x.at[k + 1]);
        chunk.word[k / 2] = td_bits(pair.x) | td_bits(pair.y) << 16;
    }
    return chunk;
}

__device__ __forceinline__ void td_chunk_gather(const float *row, int64_t left,
                                                td_chunk<float> &chunk) {
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++)
        chunk.word[k] = k < left ? __float_as_uint(row[k]) : 0;
}

__device__ __forceinline__ void td_chunk_gather(const bf16 *row, int64_t left,
                                                td_chunk<bf16> &chunk) {
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k += 2) {
        uint32_t low = k < left ? td_bits(row[k]) : 0;
        uint32_t high = k + 1 < left ? td_bits(row[k + 1]) : 0;
        chunk.word[k / 2] = low | high << 16;
    }
}

__device__ __forceinline__ void td_chunk_scatter(const td_chunk<float> &chunk, int64_t left,
                                                 float *row) {
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++)
        if (k < left)
            row[k] = __uint_as_float(chunk.word[k]);
}

__device__ __forceinline__ void td_chunk_scatter(const td_chunk<bf16> &chunk, int64_t left,
                                                 bf16 *row) {
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++)
        if (k < left)
            row[k] = __ushort_as_bfloat16(
                static_cast<unsigned short>(chunk.word[k / 2] >> (k % 2 * 16)));
}

// Elements [i, i + 8) of n; zeros from n on.
template <typename T>
__device__ __forceinline__ td_chunk<T> td_chunk_load(const T *row, int64_t i, int64_t n,
                                                     bool wide) {
    td_chunk<T> chunk;
    if (wide && i + TD_CHUNK <= n) {
        auto *from = reinterpret_cast<const td_access *>(row + i);
#pragma unroll
        for (int k = 0; k < static_cast<int>(sizeof chunk / 16); k++) {
            td_access part = from[k];
#pragma unroll
            for (int j = 0; j < 4; j++)
                chunk.word[4 * k + j] = part.word[j];
        }
    } else {
        td_chunk_gather(row + i, n - i, chunk);
    }
    return chunk;
}

// Elements [i, i + 8) of n; nothing from n on.
template <typename T>
__device__ __forceinline__ void td_chunk_store(T *row, int64_t i, int64_t n, bool wide,
                                               const td_chunk<T> &chunk) {
    if (wide && i + TD_CHUNK <= n) {
        auto *to = reinterpret_cast<td_access *>(row + i);
#pragma unroll
        for (int k = 0; k < static_cast<int>(sizeof chunk / 16); k++)
            to[k] = {{chunk.word[4 * k], chunk.word[4 * k + 1], chunk.word[4 * k + 2],
                      chunk.word[4 * k + 3]}};
    } else {
        td_chunk_scatter(chunk, n - i, row + i);
    }
}

// For kernels over the chunks of a flat array: each thread takes a few chunks, a block's width
// apart, and has all their loads under way before the first store.
constexpr int TD_FLAT_THREADS = 256;

template <int EACH> static inline dim3 td_flat_grid(int64_t n_chunks) {
    return dim3(td_cuda_blocks(n_chunks, TD_FLAT_THREADS * EACH));
}

// Element index of the thread's chunk number `number`.
template <int EACH> __device__ __forceinline__ int64_t td_flat_element(int number) {
    int64_t first = static_cast<int64_t>(blockIdx.x) * (TD_FLAT_THREADS * EACH) + threadIdx.x;
    return (first + number * TD_FLAT_THREADS) * TD_CHUNK;
}

#endif
