// Copies and fills. They happen when the stream comes to them, also those of
// pageable host memory, which CUDA may read earlier: the source must stay as it
// is, the target is not written before.
#include <cstdint>
#include <cstring>

#include "runtime.h"

namespace {

struct queued_copy {
    char *to;
    const char *from;
    size_t bytes;
};

struct queued_set {
    char *to;
    int byte;
    size_t bytes;
};

template <typename T> void release_as(void *state) {
    delete static_cast<T *>(state);
}

// A range that begins in memory of ours must end there.
void check_side(const void *memory, size_t bytes, const char *what) {
    memory_range range = find_memory(memory);
    if (range.kind != memory_unknown || range.region)
        cuda_host_check_range(memory, bytes, what);
}

bool is_device(const void *memory) {
    return find_memory(memory).region;
}

bool fits_kind(const void *to, const void *from, cudaMemcpyKind kind) {
    switch (kind) {
    case cudaMemcpyHostToHost:
        return !is_device(to) && !is_device(from);
    case cudaMemcpyHostToDevice:
        return is_device(to) && !is_device(from);
    case cudaMemcpyDeviceToHost:
        return !is_device(to) && is_device(from);
    case cudaMemcpyDeviceToDevice:
        return is_device(to) && is_device(from);
    default:
        return kind == cudaMemcpyDefault;
    }
}

int run_copy(void *state) {
    auto *copy = static_cast<queued_copy *>(state);
    check_side(copy->to, copy->bytes, "target of a copy");
    check_side(copy->from, copy->bytes, "source of a copy");
    memcpy(copy->to, copy->from, copy->bytes);
    check_allocation_end(copy->to);
    return 1;
}

int run_set(void *state) {
    auto *set = static_cast<queued_set *>(state);
    check_side(set->to, set->bytes, "target of a fill");
    memset(set->to, set->byte, set->bytes);
    return 1;
}

bool overlap(const char *a, const char *b, size_t bytes) {
    auto x = reinterpret_cast<uintptr_t>(a), y = reinterpret_cast<uintptr_t>(b);
    return x < y + bytes && y < x + bytes;
}

} // namespace

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    locked hold(emulation_lock);
    if (bytes == 0)
        return cudaSuccess;
    if (device_count() == 0)
        return note(cudaErrorNoDevice);
    if (!to || !from)
        return note(cudaErrorInvalidValue);
    if (!fits_kind(to, from, kind))
        return note(cudaErrorInvalidMemcpyDirection);
    check_side(to, bytes, "target of a copy");
    check_side(from, bytes, "source of a copy");
    bool pageable = (find_memory(to).kind == memory_unknown && !find_memory(to).region) ||
                    (find_memory(from).kind == memory_unknown && !find_memory(from).region);
    if (pageable && is_recording(stream))
        return spoil_recording(stream, cudaErrorStreamCaptureUnsupported);
    auto *copy = new queued_copy{static_cast<char *>(to), static_cast<const char *>(from), bytes};
    if (overlap(copy->to, copy->from, bytes))
        cuda_host_fail("copy of %zu bytes from %p to %p: the ranges overlap", bytes, from, to);
    return enqueue(stream, "copy", {run_copy, copy, release_as<queued_copy>});
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    locked hold(emulation_lock);
    cudaError_t error = check_unsafe_call();
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    if (error == cudaSuccess)
        drain_stream(nullptr, "cudaMemcpy");
    return error;
}

cudaError_t cudaMemsetAsync(void *to, int byte, size_t bytes, cudaStream_t stream) {
    locked hold(emulation_lock);
    if (bytes == 0)
        return cudaSuccess;
    if (device_count() == 0)
        return note(cudaErrorNoDevice);
    if (find_memory(to).kind == memory_unknown && !find_memory(to).region)
        return note(cudaErrorInvalidValue);
    check_side(to, bytes, "target of a fill");
    auto *set = new queued_set{static_cast<char *>(to), byte, bytes};
    return enqueue(stream, "fill", {run_set, set, release_as<queued_set>});
}

cudaError_t cudaMemset(void *to, int byte, size_t bytes) {
    return cudaMemsetAsync(to, byte, bytes, nullptr);
}
