// What the emulation's own tests share: launching, device memory, and children
// that run a fault.
#ifndef TANDEM_TESTS_CUDA_HOST_SELFTEST_CUH
#define TANDEM_TESTS_CUDA_HOST_SELFTEST_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <vector>

#include "test.h"

template <typename... P, typename... A>
cudaError_t launch_on(cudaStream_t stream, void (*kernel)(P...), dim3 grid, dim3 block,
                      size_t shared_bytes, A... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

template <typename... P, typename... A>
void run(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A... arguments) {
    CHECK_INT(launch_on(nullptr, kernel, grid, block, shared_bytes, arguments...), cudaSuccess);
    CHECK_INT(cudaDeviceSynchronize(), cudaSuccess);
}

// An array on the device.
template <typename T> struct device_array {
    T *data = nullptr;
    size_t n;

    explicit device_array(size_t count) : n(count) {
        REQUIRE(cudaMalloc(&data, n * sizeof(T)) == cudaSuccess);
    }
    explicit device_array(const std::vector<T> &values) : device_array(values.size()) {
        cudaMemcpy(data, values.data(), n * sizeof(T), cudaMemcpyHostToDevice);
    }
    device_array(const device_array &) = delete;
    device_array &operator=(const device_array &) = delete;
    ~device_array() {
        cudaFree(data);
    }
    std::vector<T> get() const {
        std::vector<T> values(n);
        cudaMemcpy(values.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost);
        return values;
    }
};

#endif
