// Kernel launches: the limits of a GPU, the check of pointer parameters, and
// the queueing.
#include <algorithm>
#include <map>
#include <vector>

#include "runtime.h"

namespace {

auto &shared_limits = *new std::map<const void *, size_t>(); // by kernel, where set

struct queued_kernel {
    kernel_run run;
    void *parameters;
    void (*release)(void *parameters);
    std::vector<const void *> pointers;
    int device;
};

size_t shared_limit(const void *kernel) {
    auto found = shared_limits.find(kernel);
    return found == shared_limits.end() ? default_shared_bytes : found->second;
}

cudaError_t check_limits(const cudaLaunchConfig_t &config, const cuda_host_launch &launch) {
    const dim3 &grid = config.gridDim, &block = config.blockDim;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (!block.x || !block.y || !block.z || block.x > 1024 || block.y > 1024 || block.z > 64 ||
        block.x * block.y * block.z > largest_block)
        return cudaErrorInvalidConfiguration;
    if (config.dynamicSmemBytes > shared_limit(launch.kernel))
        return cudaErrorInvalidValue;
    return launch.parameter_bytes > 4096 ? cudaErrorInvalidValue : cudaSuccess;
}

void check_pointer(const void *pointer, int index, int device) {
    if (!pointer)
        return;
    memory_range range = find_memory(pointer);
    if (range.kind == memory_unknown && !range.region)
        cuda_host_fail("kernel launch: pointer parameter %d (%p) is neither device nor pinned "
                       "memory",
                       index, pointer);
    if (range.kind == memory_unknown)
        cuda_host_fail("kernel launch: pointer parameter %d (%p) is device memory that is not "
                       "allocated (any more)",
                       index, pointer);
    if (range.kind == memory_device && range.device != device)
        cuda_host_fail("kernel launch: pointer parameter %d (%p) is memory of device %d, the "
                       "stream is of device %d",
                       index, pointer, range.device, device);
}

int run_queued(void *state) {
    auto *kernel = static_cast<queued_kernel *>(state);
    int index = 0; // again: a graph may have outlived the memory
    for (const void *each : kernel->pointers)
        check_pointer(each, index++, kernel->device);
    run_kernel(kernel->run);
    for (const void *each : kernel->pointers)
        check_allocation_end(each);
    return 1;
}

void release_queued(void *state) {
    auto *kernel = static_cast<queued_kernel *>(state);
    kernel->release(kernel->parameters);
    delete kernel;
}

} // namespace

cudaError_t cuda_host_launch_kernel(const cudaLaunchConfig_t *config,
                                    const cuda_host_launch *launch) {
    locked hold(emulation_lock);
    int device = cuda_host_stream_device(config->stream);
    cudaError_t error = device_count() ? check_limits(*config, *launch) : cudaErrorNoDevice;
    if (error == cudaSuccess && device != current_device())
        error = cudaErrorInvalidResourceHandle;
    if (error != cudaSuccess) {
        launch->release(launch->parameters);
        return note(error);
    }
    for (int i = 0; i < launch->n_pointers; i++)
        check_pointer(launch->pointers[i], i, device);
    // Parentheses: in braces the two ends would be the elements.
    std::vector<const void *> pointers(launch->pointers, launch->pointers + launch->n_pointers);
    auto *kernel = new queued_kernel{{launch->kernel, launch->call, launch->parameters,
                                      config->gridDim, config->blockDim, config->dynamicSmemBytes},
                                     launch->parameters,
                                     launch->release,
                                     std::move(pointers),
                                     device};
    return enqueue(config->stream, "kernel", {run_queued, kernel, release_queued});
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    locked hold(emulation_lock);
    if (!kernel || value < 0)
        return note(cudaErrorInvalidValue);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess;
    if (static_cast<size_t>(value) > largest_shared_bytes)
        return note(cudaErrorInvalidValue);
    shared_limits[kernel] = static_cast<size_t>(value);
    return cudaSuccess;
}

// Without registers, which only a GPU's compiler knows.
cudaError_t cuda_host_occupancy(int *blocks, const void *kernel, int block_size,
                                size_t shared_bytes) {
    locked hold(emulation_lock);
    cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceProperties(&properties, current_device());
    if (error != cudaSuccess)
        return error;
    if (block_size <= 0 || block_size > static_cast<int>(largest_block))
        return note(cudaErrorInvalidValue);
    *blocks = 0;
    if (shared_bytes > shared_limit(kernel))
        return cudaSuccess;
    size_t per_block = shared_bytes + properties.reservedSharedMemPerBlock;
    int by_shared = static_cast<int>(properties.sharedMemPerMultiprocessor / per_block);
    int by_threads = properties.maxThreadsPerMultiProcessor / ((block_size + 31) / 32 * 32);
    *blocks = std::min({by_shared, by_threads, 32});
    return cudaSuccess;
}
