// The running block's shared memory: exactly the bytes asked for, between poisoned surroundings.
#include <cstring>

#include "internal.h"

#if CUDA_HOST_ASAN
#include <sanitizer/asan_interface.h>
#endif

constexpr size_t margin = 1024;
alignas(128) static unsigned char storage[margin + largest_shared_bytes + margin];
// Aligned to 16 bytes and no more.
static unsigned char *const shared = storage + margin - 16;
static size_t current_bytes;

void prepare_shared(size_t bytes) {
#if CUDA_HOST_ASAN
    __asan_unpoison_memory_region(storage, sizeof storage);
#endif
    memset(shared, 0xff, bytes);
    memset(shared + bytes, 0xff, 64);
    memset(shared - 64, 0xff, 64);
    current_bytes = bytes;
#if CUDA_HOST_ASAN
    __asan_poison_memory_region(storage, static_cast<size_t>(shared - storage));
    __asan_poison_memory_region(shared + bytes,
                                static_cast<size_t>(storage + sizeof storage - shared) - bytes);
#endif
}

void check_shared(size_t bytes) {
#if !CUDA_HOST_ASAN
    for (size_t i = 0; i < 64; i++)
        if (shared[bytes + i] != 0xff || shared[-1 - static_cast<ptrdiff_t>(i)] != 0xff)
            cuda_host_fail("a kernel wrote outside its %zu bytes of shared memory", bytes);
#else
    (void)bytes;
#endif
}

void *cuda_host_shared_memory() {
    return shared;
}

size_t cuda_host_shared_bytes() {
    return current_bytes;
}
