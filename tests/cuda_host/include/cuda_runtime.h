// CUDA C++ for the host: what kernels are written with, as ordinary functions
// run by the emulation (cuda_host.h). __CUDACC__ is not defined. There is no
// __shared__ and no __constant__ on purpose: the backend's shared memory is
// dynamic.
#ifndef CUDA_HOST_CUDA_RUNTIME_H
#define CUDA_HOST_CUDA_RUNTIME_H

#include <math.h>

#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_host.h"
#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

inline constexpr const uint3 &threadIdx = cuda_host_current.thread;
inline constexpr const uint3 &blockIdx = cuda_host_current.block;
inline constexpr const dim3 &blockDim = cuda_host_current.block_size;
inline constexpr const dim3 &gridDim = cuda_host_current.grid_size;
constexpr int warpSize = 32;

#include "cuda_host_device.h"
#include "cuda_host_vectors.h"
#include "cuda_host_warp.h"

template <typename T> struct cuda_host_identity { using type = T; };

// Storage for one launch: the parameters by value and the pointers among them.
template <typename... P> struct cuda_host_arguments {
    std::tuple<P...> values;

    static void call(const void *kernel, const void *parameters) {
        auto *function = reinterpret_cast<void (*)(P...)>(const_cast<void *>(kernel));
        std::apply(function, static_cast<const cuda_host_arguments *>(parameters)->values);
    }
    static void release(void *parameters) {
        delete static_cast<cuda_host_arguments *>(parameters);
    }
};

template <typename T> void cuda_host_note_pointer(const void **pointers, int *n, const T &value) {
    if constexpr (std::is_pointer_v<T>)
        pointers[(*n)++] = const_cast<const void *>(static_cast<const volatile void *>(value));
    else
        static_assert(std::is_trivially_copyable_v<T>, "kernel parameters travel as bytes");
}

template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...),
                               A &&...arguments) {
    constexpr size_t bytes = (sizeof(P) + ... + size_t(0));
    static_assert(bytes <= 4096, "a kernel has at most 4 KiB of parameters");
    static_assert((!std::is_reference_v<P> && ...), "kernel parameters go by value");
    using Arguments = cuda_host_arguments<P...>;
    auto *held = new Arguments{std::tuple<P...>(static_cast<P>(arguments)...)};
    const void *pointers[sizeof...(P) + 1];
    int n_pointers = 0;
    std::apply(
        [&](const P &...value) { (cuda_host_note_pointer(pointers, &n_pointers, value), ...); },
        held->values);
    cuda_host_launch launch = {};
    launch.kernel = reinterpret_cast<const void *>(kernel);
    launch.call = Arguments::call;
    launch.parameters = held;
    launch.release = Arguments::release;
    launch.parameter_bytes = bytes;
    launch.pointers = pointers;
    launch.n_pointers = n_pointers;
    return cuda_host_launch_kernel(config, &launch);
}

template <typename T> cudaError_t cudaMalloc(T **out, size_t bytes) {
    return cudaMalloc(reinterpret_cast<void **>(out), bytes);
}
template <typename T> cudaError_t cudaHostAlloc(T **out, size_t bytes, unsigned flags) {
    return cudaHostAlloc(reinterpret_cast<void **>(out), bytes, flags);
}
template <typename T> cudaError_t cudaMallocHost(T **out, size_t bytes) {
    return cudaMallocHost(reinterpret_cast<void **>(out), bytes);
}
template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), attribute, value);
}
template <typename... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*kernel)(P...),
                                                          int block_size, size_t shared_bytes) {
    return cuda_host_occupancy(blocks, reinterpret_cast<const void *>(kernel), block_size,
                               shared_bytes);
}

#endif
