// Detection of data races in kernels: two threads of a launch touch the same bytes, one of them
// writes, not both by atomics, and nothing orders them.
//
// Kernels are compiled with -fsanitize=thread, whose calls for every read and write arrive here;
// there is no other part of ThreadSanitizer. What orders two accesses: the same thread, a barrier
// of the block, a __syncwarp() of the warp, or the end of the launch. Shuffles and votes order
// nothing.
//
// Each two bytes of shared and device memory have a cell with the last write and the last read.
// Of several accesses in one phase a cell keeps the last, so some races are told one run later or
// not at all; what is told is a race.
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstring>

#include "tests/cuda_host/runtime/runtime.h"

namespace {

constexpr size_t granule = 2;

struct access {
    uint32_t phase, warp_phase;
    uint16_t thread;
    uint8_t bytes; // bit i: byte i of the granule
    bool atomic;
    const void *code; // the instruction after it
};

struct cell {
    access write, read;
    bool read_by_lanes, read_by_warps; // by others too since read.phase, read.warp_phase
    uint8_t foreign_bytes;             // read by a block before this one
    uint32_t foreign_launch;           // in the launch with this first phase
};

cell shared_cells[largest_shared_bytes / granule + 1];
cell *device_cells[largest_device_count];

cell *cells_of_region(int device) {
    if (!device_cells[device]) {
        size_t bytes = regions[device].reserved / granule * sizeof(cell);
        void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED)
            cuda_host_fail("no memory for the detection of races");
        device_cells[device] = static_cast<cell *>(memory);
    }
    return device_cells[device];
}

// Which cell an address has, NULL for a thread's own stack and whatever else is not shared.
cell *find_cell(const char *at, bool *is_shared) {
    auto *shared = static_cast<const char *>(cuda_host_shared_memory());
    *is_shared = at >= shared && at < shared + cuda_host_shared_bytes();
    if (*is_shared)
        return &shared_cells[static_cast<size_t>(at - shared) / granule];
    for (int i = 0; i < device_count(); i++)
        if (at >= regions[i].base && at < regions[i].base + regions[i].used)
            return cells_of_region(i) + static_cast<size_t>(at - regions[i].base) / granule;
    return nullptr;
}

uint32_t warp_phase_of(bool is_write) {
    uint32_t warp = phases.thread / 32;
    return is_write ? phases.of_warp[warp] : phases.collectives[warp];
}

// Nothing orders the earlier access and the running thread's.
bool is_unordered(const access &earlier, bool was_write, bool is_shared) {
    if (earlier.phase < phases.of_block)
        return !is_shared && earlier.phase >= phases.of_launch;
    if (earlier.phase != phases.now || earlier.thread == phases.thread)
        return false;
    return earlier.thread / 32 != phases.thread / 32 ||
           earlier.warp_phase == warp_phase_of(was_write);
}

// A write of `bytes` is not ordered after some read.
bool has_unordered_readers(const cell &at, uint8_t bytes, bool is_shared) {
    if (!is_shared && at.foreign_launch == phases.of_launch && (at.foreign_bytes & bytes))
        return true;
    if (!(at.read.bytes & bytes))
        return false;
    if (is_unordered(at.read, false, is_shared))
        return true;
    if (at.read.phase != phases.now)
        return false;
    return at.read_by_warps || (at.read_by_lanes && at.read.warp_phase == warp_phase_of(false));
}

void print_code(char *out, size_t bytes, const void *code) {
    Dl_info info;
    if (!dladdr(code, &info) || !info.dli_fname) {
        snprintf(out, bytes, "%p", code);
        return;
    }
    const char *name = strrchr(info.dli_fname, '/');
    snprintf(out, bytes, "%s+0x%zx", name ? name + 1 : info.dli_fname,
             static_cast<size_t>(static_cast<const char *>(code) -
                                 static_cast<const char *>(info.dli_fbase)));
}

void print_thread(char *out, size_t bytes, const access &by) {
    if (by.phase < phases.of_block) {
        snprintf(out, bytes, "a thread of another block");
        return;
    }
    const dim3 &size = cuda_host_current.block_size;
    snprintf(out, bytes, "thread (%u,%u,%u)", by.thread % size.x, by.thread / size.x % size.y,
             by.thread / size.x / size.y);
}

[[noreturn]] void report(const access &now, const char *does, const access &earlier,
                         const char *did, const char *at, bool is_shared) {
    char here[128], there[128], who[64], where[64];
    print_code(here, sizeof here, now.code);
    print_code(there, sizeof there, earlier.code);
    print_thread(who, sizeof who, earlier);
    if (is_shared)
        snprintf(where, sizeof where, "byte %zu of shared memory",
                 static_cast<size_t>(at - static_cast<char *>(cuda_host_shared_memory())));
    else
        snprintf(where, sizeof where, "device memory at %p", static_cast<const void *>(at));
    cuda_host_fail("data race: %s %s (code %s), %s %s it (code %s), and nothing orders the two",
                   does, where, here, who, did, there);
}

// Of threads that read different bytes the last one stays.
void note_read(cell *at, access now, bool is_shared) {
    const access last = at->read;
    if (!is_shared && last.phase >= phases.of_launch && last.phase < phases.of_block) {
        at->foreign_bytes = last.bytes;
        at->foreign_launch = phases.of_launch;
    }
    bool by_others = last.phase == now.phase && last.thread != now.thread;
    if (last.phase != now.phase || (by_others && !(last.bytes & now.bytes))) {
        at->read_by_lanes = at->read_by_warps = false;
    } else if (by_others) {
        now.bytes &= last.bytes;
        at->read_by_warps |= last.thread / 32 != now.thread / 32;
        at->read_by_lanes |= last.warp_phase == now.warp_phase;
    }
    if (last.warp_phase != now.warp_phase)
        at->read_by_lanes = false;
    at->read = now;
}

void note(cell *at, const access &now, bool is_write, const char *address, bool is_shared) {
    if ((at->write.bytes & now.bytes) && !(at->write.atomic && now.atomic) &&
        is_unordered(at->write, true, is_shared))
        report(now, is_write ? "writes" : "reads", at->write, "wrote", address, is_shared);
    if (!is_write)
        return note_read(at, now, is_shared);
    if (!(at->read.atomic && now.atomic) && has_unordered_readers(*at, now.bytes, is_shared))
        report(now, "writes", at->read, "read", address, is_shared);
    at->write = now;
}

void touch(const void *address, size_t bytes, bool is_write, const void *code) {
    if (phases.thread == no_thread)
        return;
    auto *at = static_cast<const char *>(address);
    bool is_shared;
    cell *first = find_cell(at, &is_shared);
    if (!first)
        return;
    access now = {phases.now, warp_phase_of(is_write), static_cast<uint16_t>(phases.thread),
                  0,          cuda_host_in_atomic,     code};
    size_t offset = reinterpret_cast<size_t>(at) % granule;
    for (size_t done = 0; done < bytes; first++, offset = 0) {
        size_t n = granule - offset < bytes - done ? granule - offset : bytes - done;
        now.bytes = static_cast<uint8_t>(((1u << n) - 1) << offset);
        note(first, now, is_write, at + done, is_shared);
        done += n;
    }
}

} // namespace

#define RACE_ACCESS(name, bytes, is_write)                                                         \
    extern "C" void __tsan_##name(void *address);                                                  \
    extern "C" void __tsan_##name(void *address) {                                                 \
        touch(address, bytes, is_write, __builtin_return_address(0));                              \
    }
#define RACE_ACCESSES(bytes)                                                                       \
    RACE_ACCESS(read##bytes, bytes, false)                                                         \
    RACE_ACCESS(write##bytes, bytes, true)                                                         \
    RACE_ACCESS(unaligned_read##bytes, bytes, false)                                               \
    RACE_ACCESS(unaligned_write##bytes, bytes, true)
RACE_ACCESSES(1)
RACE_ACCESSES(2)
RACE_ACCESSES(4)
RACE_ACCESSES(8)
RACE_ACCESSES(16)

extern "C" {
void __tsan_init();
void __tsan_init() {
}
void __tsan_func_entry(void *);
void __tsan_func_entry(void *) {
}
void __tsan_func_exit();
void __tsan_func_exit() {
}
void __tsan_vptr_update(void **, void *);
void __tsan_vptr_update(void **, void *) {
}
void __tsan_vptr_read(void **);
void __tsan_vptr_read(void **) {
}
void __tsan_read_range(void *address, size_t bytes);
void __tsan_read_range(void *address, size_t bytes) {
    touch(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void *address, size_t bytes);
void __tsan_write_range(void *address, size_t bytes) {
    touch(address, bytes, true, __builtin_return_address(0));
}
}
