// What the files of the emulated runtime share. Everything here is called with
// the lock held.
#ifndef CUDA_HOST_RUNTIME_INTERNAL_H
#define CUDA_HOST_RUNTIME_INTERNAL_H

#include <cstddef>
#include <cstdint>

#include "tests/cuda_host/include/cuda_host.h"

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_HOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_HOST_ASAN 1
#endif
#endif
#ifndef CUDA_HOST_ASAN
#define CUDA_HOST_ASAN 0
#endif

// Limits of compute capability 8.0.
constexpr size_t default_shared_bytes = 48 * 1024, largest_shared_bytes = 163 * 1024;
constexpr unsigned largest_block = 1024;

// A launch whose configuration has been checked.
struct kernel_run {
    const void *kernel;
    void (*call)(const void *kernel, const void *parameters);
    const void *parameters;
    dim3 grid, block;
    size_t shared_bytes;
};
// Runs every block of the grid to its end.
void run_kernel(const kernel_run &run);
// "block (..) thread (..)" of the running kernel, or "".
void describe_position(char *out, size_t bytes);

// Fibers: stacks on which the threads of a block run.
struct fiber {
    void *stack_pointer;
    char *stack; // lowest usable address
    size_t bytes;
    void *fake_stack; // AddressSanitizer's
};
extern fiber *running_fiber; // the OS thread's own stack is one too
fiber *take_fiber();         // runs fiber_worker() at its first switch
void return_fiber(fiber *idle);
void fiber_worker(); // defined by the user of the fibers; never returns
extern "C" void cuda_host_switch_stack(void **save, void *to);
#if CUDA_HOST_ASAN
void switch_to(fiber *next);
#else
inline void switch_to(fiber *next) {
    fiber *self = running_fiber;
    running_fiber = next;
    cuda_host_switch_stack(&self->stack_pointer, next->stack_pointer);
}
#endif
// Whether the address is in the guard below a fiber's stack.
bool is_stack_guard(const void *address);

// What separates accesses to memory, for the detection of races (race/race.cc). Every stretch of a
// block between two of its barriers has a phase of its own, in growing numbers.
struct access_phases {
    uint32_t of_launch, of_block; // the first ones
    uint32_t now;
    uint32_t of_warp[largest_block / 32];     // a warp's barriers so far
    uint32_t collectives[largest_block / 32]; // of a warp of any kind so far
    uint32_t thread; // the running thread of the block; no_thread outside kernels
};
constexpr uint32_t no_thread = 0xffffffffu;
extern access_phases phases;

// Shared memory of the running block.
void prepare_shared(size_t bytes);
void check_shared(size_t bytes);

uint64_t configured_seed();

#endif
