// What the CUDA operations share: launching, dynamic shared memory, errors, types of activations.
//
// The sources compile for the GPU with nvcc and for the host against the emulation of
// tests/cuda_host/, which takes the place of the CUDA headers. So that both see the same kernels:
// - kernels are launched by td_cuda_launch(), never with <<<>>>;
// - shared memory is dynamic and comes from td_cuda_shared<T>(), never from __shared__;
// - PTX lives in ptx.cuh behind one function per instruction;
// - there is nothing of libcu++, CUB or cooperative groups.
#ifndef TANDEM_KERNELS_CUDA_CUDA_INTERNAL_CUH
#define TANDEM_KERNELS_CUDA_CUDA_INTERNAL_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/cuda_ops.h"
#include "runtime/core/device_cuda.h"

using bf16 = __nv_bfloat16;

// The block's dynamic shared memory, 16-byte aligned, as many bytes as the launch gave it.
#if defined(__CUDACC__)
template <typename T> __device__ __forceinline__ T *td_cuda_shared() {
    extern __shared__ __align__(16) unsigned char td_cuda_shared_bytes[];
    return reinterpret_cast<T *>(td_cuda_shared_bytes);
}
#else
template <typename T> inline T *td_cuda_shared() {
    return static_cast<T *>(cuda_host_shared_memory());
}
#endif

// TD_OK, or an internal error that names the operation and what CUDA says.
static inline td_status td_cuda_check(cudaError_t error, const char *what) {
    if (error == cudaSuccess)
        return TD_OK;
    return td_fail(TD_ERR_INTERNAL, "%s: CUDA: %s (%s)", what, cudaGetErrorString(error),
                   cudaGetErrorName(error));
}

static inline cudaStream_t td_cuda_stream(const td_op_context *context) {
    return static_cast<cudaStream_t>(td_cuda_stream_handle(context->stream));
}

// Queues a kernel on the context's stream. An empty grid is no work. More than 48 KiB of shared
// memory must be allowed per kernel.
template <typename... P, typename... A>
td_status td_cuda_launch(const td_op_context *context, const char *op, void (*kernel)(P...),
                         dim3 grid, dim3 block, size_t shared_bytes, A... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return TD_OK;
    if (shared_bytes > 48 * 1024)
        TD_TRY(td_cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(shared_bytes)),
                             op));
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = td_cuda_stream(context);
    return td_cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), op);
}

// Calls body(T()) with T the activation type of the context: bf16 or float.
template <typename Body> td_status td_cuda_by_activation(const td_op_context *context, Body body) {
    return context->ops->activation == TD_BF16 ? body(bf16()) : body(float());
}

static inline unsigned td_cuda_blocks(int64_t n, int64_t per_block) {
    return static_cast<unsigned>((n + per_block - 1) / per_block);
}

__device__ __forceinline__ float td_to_float(float x) {
    return x;
}
__device__ __forceinline__ float td_to_float(bf16 x) {
    return __bfloat162float(x);
}
template <typename T> __device__ __forceinline__ T td_from_float(float x);
template <> __device__ __forceinline__ float td_from_float<float>(float x) {
    return x;
}
template <> __device__ __forceinline__ bf16 td_from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}

// Sum and maximum over the warp, the same value in every lane, in a fixed order.
template <typename T> __device__ __forceinline__ T td_warp_sum(T x) {
    for (int lane = 16; lane > 0; lane /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}
__device__ __forceinline__ float td_warp_max(float x) {
    for (int lane = 16; lane > 0; lane /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

#endif
