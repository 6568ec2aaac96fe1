// Reductions in a fixed order, and four elements at a time.
//
// A sum over a whole array has two stages: each block writes one partial sum to the workspace, and
// one block adds those up. The number of blocks depends on the array's length alone, so that the
// bits depend on neither the GPU nor the addresses.
#ifndef TANDEM_KERNELS_CUDA_REDUCTION_CUH
#define TANDEM_KERNELS_CUDA_REDUCTION_CUH

#include "kernels/cuda/cuda_internal.cuh"

enum {
    TD_CUDA_REDUCTION_BLOCKS = 1024, // most partial sums
    TD_CUDA_REDUCTION_THREADS = 256,
    TD_CUDA_MOST_WARPS = 32, // of a block
    // The partial sums, and one line for the result.
    TD_CUDA_REDUCTION_WORKSPACE_BYTES = TD_CUDA_REDUCTION_BLOCKS * 8 + 64,
};

// The workspace, once it is known to hold a reduction.
td_status td_cuda_reduction_workspace(const td_op_context *context, const char *op,
                                      double **out_partial);

// Adds up the partial sums and copies the result to the host: *out_sum, which may be pageable, is
// valid when the stream has been synchronized.
td_status td_cuda_reduction_finish(const td_op_context *context, const char *op, int64_t n_partial,
                                   double *partial, double *out_sum);

// Sum over a block of whole warps, for thread 0. `shared`: one element per warp; a barrier must
// come before it is used again.
template <typename T> __device__ __forceinline__ T td_block_sum(T x, T *shared) {
    x = td_warp_sum(x);
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x >= 32)
        return x;
    return td_warp_sum(threadIdx.x < blockDim.x / 32 ? shared[threadIdx.x] : T(0));
}

// Maximum over a block of whole warps, for every thread; `shared` as above.
__device__ __forceinline__ float td_block_max(float x, float *shared) {
    x = td_warp_max(x);
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = x;
    __syncthreads();
    unsigned lane = threadIdx.x % 32;
    return td_warp_max(lane < blockDim.x / 32 ? shared[lane] : -INFINITY);
}

// Adds what a whole warp has, modulo 2^64; integers may be added in any order.
__device__ __forceinline__ void td_warp_add(uint64_t word, int64_t *sum) {
    if (threadIdx.x % 32 == 0 && word != 0)
        atomicAdd(reinterpret_cast<unsigned long long *>(sum),
                  static_cast<unsigned long long>(word));
}

// Counts of all threads of a warp into a counter.
__device__ __forceinline__ void td_warp_count(int count, int64_t *counter) {
    td_warp_add(static_cast<uint64_t>(td_warp_sum(count)), counter);
}

// Four consecutive elements, moved 16 bytes at a time where `aligned` (td_is_quad_aligned) says so.
// Which elements a thread takes does not depend on it.
template <typename T> struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) td_quad { T x[4]; };

template <typename T> __host__ __device__ __forceinline__ bool td_is_quad_aligned(const T *array) {
    return reinterpret_cast<uintptr_t>(array) % alignof(td_quad<T>) == 0;
}

// Elements [i, i + 4) of an array of n, `beyond` behind its end; i is a multiple of four.
template <typename T>
__device__ __forceinline__ td_quad<T> td_quad_load(const T *array, int64_t i, int64_t n,
                                                   bool aligned, T beyond = T(0)) {
    if (aligned && i + 4 <= n)
        return *reinterpret_cast<const td_quad<T> *>(array + i);
    td_quad<T> quad;
    for (int k = 0; k < 4; k++)
        quad.x[k] = i + k < n ? array[i + k] : beyond;
    return quad;
}

template <typename T>
__device__ __forceinline__ void td_quad_store(T *array, int64_t i, int64_t n, bool aligned,
                                              const td_quad<T> &quad) {
    if (aligned && i + 4 <= n) {
        *reinterpret_cast<td_quad<T> *>(array + i) = quad;
        return;
    }
    for (int k = 0; k < 4; k++)
        if (i + k < n)
            array[i + k] = quad.x[k];
}

// The first element of this thread's quad, in a grid of one quad per thread.
__device__ __forceinline__ int64_t td_quad_begin() {
    return 4 * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
}

#endif
