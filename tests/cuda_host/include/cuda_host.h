// The emulation itself: what the stand-ins for CUDA's headers, tensor-core instructions, cuBLASLt
// and NCCL are built on. Product sources use none of it but cuda_host_shared_memory().
//
// A kernel runs on the OS thread that made the runtime execute its stream, under one lock. Its
// blocks run one after another; the threads of a block are fibers that give way to each other only
// inside the functions below, in random order.
#ifndef CUDA_HOST_CUDA_HOST_H
#define CUDA_HOST_CUDA_HOST_H

#include <cstdint>

#include "cuda_runtime_api.h"

// Where a primitive was called; used in messages and to tell one call from another.
struct cuda_host_site {
    const char *primitive, *file;
    int line;
};

// The indices of the running thread; all ones outside kernels.
struct cuda_host_indices {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
extern cuda_host_indices cuda_host_current;

// The running block's dynamic shared memory: the bytes of the launch, poisoned before each block.
void *cuda_host_shared_memory();
size_t cuda_host_shared_bytes();

// Collective over the block. Returns the number of threads that gave a predicate other than 0, and
// sets *all to whether every one did.
int cuda_host_block_barrier(cuda_host_site site, int predicate, bool *all);
// The usual case of the above.
void cuda_host_barrier(cuda_host_site site);

// Collective over the lanes in `mask`: each passes a pointer to data of its own (inputs and
// outputs, of the same type in every lane). When the last lane has arrived, `step` runs once:
// lanes[i] is the pointer of lane i, NULL for a lane outside the mask. Then all lanes go on.
// Aborts when lanes differ in site, mask or step, or when a lane of the mask cannot come.
typedef void (*cuda_host_warp_step)(void *const lanes[32], unsigned mask);
void cuda_host_warp_collective(cuda_host_site site, unsigned mask, void *lane,
                               cuda_host_warp_step step);
// Index of the running thread in its warp.
unsigned cuda_host_lane();

// Lets another thread of the block run, or not. For primitives after which order is not defined.
void cuda_host_yield();

// Set while an atomic operation touches memory.
extern volatile bool cuda_host_in_atomic;

// Storage of the running emulated thread, one per kind, zeros at first use; `finish` (may be NULL)
// runs as the thread returns, before the storage goes. The block's shared memory is still there.
struct cuda_host_storage_kind {
    const char *name;
    size_t bytes;
    void (*finish)(void *storage);
};
void *cuda_host_thread_storage(const cuda_host_storage_kind *kind);

// Prints one line "cuda_host: <text> (CUDA_HOST_SEED=...)", with block and thread when a kernel is
// running, and aborts.
[[noreturn]] void cuda_host_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
// A random number below n (n > 0) from the emulation's generator. Under the lock only: in kernels
// and operations.
uint32_t cuda_host_random(uint32_t n);
// CUDA_HOST_FAULT is `name`: a planted fault is asked for.
bool cuda_host_fault(const char *name);

// Queues an operation of another library. `poll` is called with the lock held and device memory
// accessible (to the calling OS thread and any that it starts) once the operation is the first of
// its stream: 1 when it is done, 0 to be called again later, meanwhile other streams go on and
// device memory may become inaccessible. Then `release` (may be NULL) frees `state`. Neither calls
// the CUDA runtime.
cudaError_t cuda_host_enqueue(cudaStream_t stream, const char *name, int (*poll)(void *state),
                              void *state, void (*release)(void *state));
// Aborts unless the range lies inside one live device or pinned allocation (0 bytes: any pointer).
// May be called at queueing and in operations.
void cuda_host_check_range(const void *memory, size_t bytes, const char *what);
// The device a stream or the calling OS thread is on.
int cuda_host_stream_device(cudaStream_t stream);

// Under cudaLaunchKernelEx(). Pointer parameters are checked; `parameters` is handed to `call` for
// every thread and to `release` at the end.
struct cuda_host_launch {
    const void *kernel;
    void (*call)(const void *kernel, const void *parameters);
    void *parameters;
    void (*release)(void *parameters);
    size_t parameter_bytes;
    const void *const *pointers;
    int n_pointers;
};
cudaError_t cuda_host_launch_kernel(const cudaLaunchConfig_t *config,
                                    const cuda_host_launch *launch);
cudaError_t cuda_host_occupancy(int *blocks, const void *kernel, int block_size,
                                size_t shared_bytes);

#define CUDA_HOST_SITE(primitive)                                                                  \
    cuda_host_site {                                                                               \
        primitive, file, line                                                                      \
    }
// The caller's place as last parameters.
#define CUDA_HOST_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

#endif
