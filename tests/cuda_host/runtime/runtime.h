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

// Held while anything below is touched and while the emulated devices run. Recursive.
extern std::recursive_mutex emulation_lock;
using locked = std::lock_guard<std::recursive_mutex>;

// Where an address lies: in a live device or pinned allocation, or in none.
enum memory_kind { memory_unknown, memory_device, memory_pinned };
struct memory_range {
    memory_kind kind;
    int device;
    const char *base;
    size_t bytes;
};
memory_range find_memory(const void *address);

#endif
