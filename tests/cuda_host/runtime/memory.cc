// Device and pinned memory.
#include <cstdlib>
#include <cstring>
#include <map>

#include "runtime.h"

std::recursive_mutex emulation_lock;

struct allocation {
    size_t bytes;
    memory_kind kind;
    int device;
};
static std::map<const char *, allocation> allocations;
static size_t used_bytes;

memory_range find_memory(const void *address) {
    auto *at = static_cast<const char *>(address);
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin())
        return {};
    auto found = std::prev(next);
    if (at > found->first + found->second.bytes)
        return {};
    return {found->second.kind, found->second.device, found->first, found->second.bytes};
}

void cuda_host_check_range(const void *memory, size_t bytes, const char *what) {
    if (bytes == 0)
        return;
    memory_range range = find_memory(memory);
    auto *at = static_cast<const char *>(memory);
    if (range.kind == memory_unknown || at + bytes > range.base + range.bytes)
        cuda_host_fail("%s: %zu bytes at %p are not inside one allocation", what, bytes, memory);
}

static cudaError_t allocate(void **out, size_t bytes, memory_kind kind) {
    locked hold(emulation_lock);
    if (kind == memory_device && used_bytes + bytes > configured_memory_bytes())
        return note(cudaErrorMemoryAllocation);
    void *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!memory)
        return note(cudaErrorMemoryAllocation);
    memset(memory, 0xff, bytes);
    allocations[static_cast<char *>(memory)] = {bytes, kind, current_device()};
    used_bytes += kind == memory_device ? bytes : 0;
    *out = memory;
    return cudaSuccess;
}

static cudaError_t release(void *memory, memory_kind kind) {
    locked hold(emulation_lock);
    if (!memory)
        return cudaSuccess;
    cudaDeviceSynchronize();
    auto found = allocations.find(static_cast<char *>(memory));
    if (found == allocations.end() || found->second.kind != kind)
        return note(cudaErrorInvalidValue);
    used_bytes -= kind == memory_device ? found->second.bytes : 0;
    allocations.erase(found);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes) {
    return allocate(out, bytes, memory_device);
}
cudaError_t cudaFree(void *memory) {
    return release(memory, memory_device);
}
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned) {
    return allocate(out, bytes, memory_pinned);
}
cudaError_t cudaMallocHost(void **out, size_t bytes) {
    return allocate(out, bytes, memory_pinned);
}
cudaError_t cudaFreeHost(void *memory) {
    return release(memory, memory_pinned);
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    locked hold(emulation_lock);
    *total_bytes = configured_memory_bytes();
    *free_bytes = *total_bytes - used_bytes;
    return cudaSuccess;
}
