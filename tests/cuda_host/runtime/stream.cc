// Streams that run at once.
#include <cstring>
#include <map>
#include <unistd.h>

#include "runtime.h"

struct CUstream_st {
    int device;
};
struct CUevent_st {
    int device;
};

static std::map<const void *, size_t> shared_limits;

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    locked hold(emulation_lock);
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value < 0 || static_cast<size_t>(value) > largest_shared_bytes)
            return note(cudaErrorInvalidValue);
        shared_limits[kernel] = static_cast<size_t>(value);
    }
    return cudaSuccess;
}

cudaError_t cuda_host_launch_kernel(const cudaLaunchConfig_t *config,
                                    const cuda_host_launch *launch) {
    locked hold(emulation_lock);
    dim3 g = config->gridDim, b = config->blockDim;
    cudaError_t error = cudaSuccess;
    size_t limit = default_shared_bytes;
    if (shared_limits.count(launch->kernel))
        limit = shared_limits[launch->kernel];
    if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z || g.x > 0x7fffffff || g.y > 65535 ||
        g.z > 65535 || b.x > 1024 || b.y > 1024 || b.z > 64 || b.x * b.y * b.z > largest_block)
        error = cudaErrorInvalidConfiguration;
    else if (config->dynamicSmemBytes > limit)
        error = cudaErrorInvalidValue;
    if (error == cudaSuccess) {
        for (int i = 0; i < launch->n_pointers; i++)
            if (launch->pointers[i] && find_memory(launch->pointers[i]).kind == memory_unknown)
                cuda_host_fail("kernel parameter: pointer %d (%p) is no device or pinned memory", i,
                               launch->pointers[i]);
        kernel_run run = {launch->kernel,          launch->call, launch->parameters, g, b,
                          config->dynamicSmemBytes};
        run_kernel(run);
    }
    launch->release(launch->parameters);
    return note(error);
}

cudaError_t cuda_host_enqueue(cudaStream_t, const char *, int (*poll)(void *state), void *state,
                              void (*release)(void *state)) {
    locked hold(emulation_lock);
    while (!poll(state))
        usleep(100);
    if (release)
        release(state);
    return cudaSuccess;
}

int cuda_host_stream_device(cudaStream_t stream) {
    return stream ? stream->device : current_device();
}

cudaError_t cuda_host_occupancy(int *blocks, const void *, int block_size, size_t shared_bytes) {
    int by_threads = 2048 / (block_size > 0 ? block_size : 1);
    int by_shared = static_cast<int>(164 * 1024 / (shared_bytes + 1024));
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    return cudaSuccess;
}
cudaError_t cudaDeviceReset(void) {
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
    locked hold(emulation_lock);
    memmove(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void *to, int byte, size_t bytes, cudaStream_t) {
    locked hold(emulation_lock);
    memset(to, byte, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *to, int byte, size_t bytes) {
    return cudaMemsetAsync(to, byte, bytes, nullptr);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned, int) {
    *out = new CUstream_st{current_device()};
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
    return cudaStreamCreateWithPriority(out, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *out) {
    return cudaStreamCreateWithPriority(out, cudaStreamDefault, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) {
    *out = new CUevent_st{current_device()};
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *out) {
    return cudaEventCreateWithFlags(out, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) {
    *ms = 0;
    return cudaSuccess;
}
