// What the files behind the runtime's API share: devices, memory, streams.
#ifndef CUDA_HOST_RUNTIME_RUNTIME_H
#define CUDA_HOST_RUNTIME_RUNTIME_H

#include <mutex>

#include "internal.h"

constexpr int largest_device_count = 64;

int device_count();
int current_device(); // of the calling OS thread
size_t configured_memory_bytes();
// Remembers an error for cudaGetLastError() and hands it on.
cudaError_t note(cudaError_t error);

// Held while anything below is touched and while the emulated devices run.
// Recursive.
extern std::recursive_mutex emulation_lock;
using locked = std::lock_guard<std::recursive_mutex>;

// Where an address lies: in a live device or pinned allocation, or in none.
// `region`: in the addresses that belong to devices, allocated or not.
enum memory_kind { memory_unknown, memory_device, memory_pinned };
struct memory_range {
    memory_kind kind;
    int device;
    const char *base;
    size_t bytes;
    bool region;
};
memory_range find_memory(const void *address);
// Aborts when bytes right behind the allocation that `address` is in have been
// written.
void check_allocation_end(const void *address);

// Device memory can be touched between begin and end, and, so that a long run
// does not spend its time on protection, sometimes after.
void begin_device_access();
void end_device_access();
// The first `bytes` of the device's region are in use from now on.
void use_region(int device, size_t bytes);

// Addresses and state of a device's memory, for the protection and its fault
// handler.
struct device_region {
    char *base;
    size_t reserved, used;
};
extern device_region regions[largest_device_count];

// Queues an operation: `poll` as for cuda_host_enqueue().
struct operation_work {
    int (*poll)(void *state);
    void *state;
    void (*release)(void *state);
};
// On a failure the work is released.
cudaError_t enqueue(cudaStream_t stream, const char *name, const operation_work &work);
// Whether the stream of a handle is recording, valid or not; the default stream never is.
bool is_recording(cudaStream_t stream);
// Makes the recording that the stream is part of invalid, and hands the error on.
cudaError_t spoil_recording(cudaStream_t stream, cudaError_t error);
// For calls that a recording of the calling thread, or a global one, forbids: makes those invalid
// and returns cudaErrorStreamCaptureUnsupported.
cudaError_t check_unsafe_call();
// Runs all work of a device, or of every device (-1).
void drain_device(int device, const char *why);
// Runs all work of a stream.
void drain_stream(cudaStream_t stream, const char *why);

#endif
