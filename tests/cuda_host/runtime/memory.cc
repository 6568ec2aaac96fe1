// Device and pinned memory.
//
// A device's memory is a range of addresses, reserved at its first use and
// handed out in pieces aligned to 256 bytes and no more. Behind each piece lies
// a gap. New memory holds 0xff (NaN), freed memory 0xf7 (a huge number), and it
// stays unused for a while; AddressSanitizer knows everything that is not
// allocated as poisoned.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <vector>

#include "runtime.h"

#if CUDA_HOST_ASAN
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(address, bytes)   ((void)(address), (void)(bytes))
#define __asan_unpoison_memory_region(address, bytes) ((void)(address), (void)(bytes))
#endif

std::recursive_mutex emulation_lock;

namespace {

constexpr int new_byte = 0xff, freed_byte = 0xf7;
constexpr size_t granule = 256, gap = 256, checked_gap = 64;
constexpr size_t huge_page = 2 << 20;

enum piece_state { piece_live, piece_resting, piece_free };

struct piece {
    size_t bytes, extent; // asked for; to the next piece
    piece_state state;
};

struct device_memory {
    std::map<char *, piece> pieces; // without holes up to `top`
    std::deque<char *> resting;     // freed, not to be used yet
    size_t resting_bytes, live_bytes;
    char *top;
};

// Never destroyed: the runtime may be used until the process ends.
auto &devices = *new std::vector<device_memory>(largest_device_count);
auto &pinned = *new std::map<char *, size_t>();

size_t round_up(size_t bytes, size_t to) {
    return (bytes + to - 1) / to * to;
}

bool reserve_region(int device) {
    device_region &region = regions[device];
    // Twice the capacity, for what rests and for gaps.
    region.reserved = round_up(2 * configured_memory_bytes(), huge_page) + 16 * huge_page;
    void *memory = mmap(nullptr, region.reserved + huge_page, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return false;
    region.base = reinterpret_cast<char *>(round_up(reinterpret_cast<size_t>(memory), huge_page));
    madvise(region.base, region.reserved, MADV_HUGEPAGE); // cheaper to protect
    devices[device].top = region.base + granule;          // a gap before the first piece
    return true;
}

bool grow(int device, size_t extent, char **out) {
    device_region &region = regions[device];
    device_memory &memory = devices[device];
    size_t end = static_cast<size_t>(memory.top - region.base) + extent;
    if (end > region.reserved)
        return false;
    if (end > region.used)
        use_region(device, round_up(end, huge_page));
    *out = memory.top;
    memory.pieces[memory.top] = {0, extent, piece_free};
    memory.top += extent;
    return true;
}

// The smallest free piece that is large enough, cut to size.
bool reuse(device_memory *memory, size_t extent, char **out) {
    auto best = memory->pieces.end();
    for (auto at = memory->pieces.begin(); at != memory->pieces.end(); ++at)
        if (at->second.state == piece_free && at->second.extent >= extent &&
            (best == memory->pieces.end() || at->second.extent < best->second.extent))
            best = at;
    if (best == memory->pieces.end())
        return false;
    if (best->second.extent > extent)
        memory->pieces[best->first + extent] = {0, best->second.extent - extent, piece_free};
    best->second.extent = extent;
    *out = best->first;
    return true;
}

// Makes the piece free, as one with its free neighbours.
void merge(device_memory *memory, char *address) {
    auto at = memory->pieces.find(address);
    at->second.state = piece_free;
    auto next = std::next(at);
    if (next != memory->pieces.end() && next->second.state == piece_free) {
        at->second.extent += next->second.extent;
        memory->pieces.erase(next);
    }
    if (at == memory->pieces.begin())
        return;
    auto before = std::prev(at);
    if (before->second.state == piece_free) {
        before->second.extent += at->second.extent;
        memory->pieces.erase(at);
    }
}

void end_rest(device_memory *memory, size_t keep_bytes) {
    while (memory->resting_bytes > keep_bytes) {
        char *oldest = memory->resting.front();
        memory->resting.pop_front();
        memory->resting_bytes -= memory->pieces[oldest].extent;
        merge(memory, oldest);
    }
}

bool place(int device, size_t extent, char **out) {
    device_memory &memory = devices[device];
    if (reuse(&memory, extent, out) || grow(device, extent, out))
        return true;
    end_rest(&memory, 0);
    return reuse(&memory, extent, out) || grow(device, extent, out);
}

// The n-th allocation of device or pinned memory fails when CUDA_HOST_FAIL_ALLOC is n.
bool is_planned_failure() {
    static const char *const text = getenv("CUDA_HOST_FAIL_ALLOC");
    static const long planned = text ? atol(text) : 0;
    static long count;
    return ++count == planned;
}

cudaError_t allocate_device(int device, size_t bytes, void **out) {
    device_memory &memory = devices[device];
    if (device_count() == 0)
        return cudaErrorNoDevice;
    if (is_planned_failure() || bytes > configured_memory_bytes() ||
        memory.live_bytes + bytes > configured_memory_bytes())
        return cudaErrorMemoryAllocation;
    if (!regions[device].base && !reserve_region(device))
        return cudaErrorMemoryAllocation;
    char *address;
    size_t extent = round_up(bytes, granule) + gap;
    if (!place(device, extent, &address))
        return cudaErrorMemoryAllocation;
    memory.pieces[address] = {bytes, extent, piece_live};
    memory.live_bytes += bytes;
    __asan_unpoison_memory_region(address, extent);
    begin_device_access();
    memset(address, new_byte, extent);
    end_device_access();
    __asan_poison_memory_region(address + bytes, extent - bytes);
    *out = address;
    return cudaSuccess;
}

int region_of(const void *address) {
    auto *at = static_cast<const char *>(address);
    for (int i = 0; i < device_count(); i++)
        if (regions[i].base && at >= regions[i].base && at < regions[i].base + regions[i].reserved)
            return i;
    return -1;
}

void free_piece(int device, char *address) {
    device_memory &memory = devices[device];
    piece &freed = memory.pieces[address];
    begin_device_access();
    check_allocation_end(address);
    __asan_unpoison_memory_region(address, freed.extent);
    memset(address, freed_byte, freed.extent);
    __asan_poison_memory_region(address, freed.extent);
    end_device_access();
    freed.state = piece_resting;
    memory.live_bytes -= freed.bytes;
    memory.resting.push_back(address);
    memory.resting_bytes += freed.extent;
    end_rest(&memory, configured_memory_bytes() / 8);
}

memory_range find_piece(int device, char *address) {
    memory_range range = {memory_unknown, device, nullptr, 0, true};
    auto &pieces = devices[device].pieces;
    auto next = pieces.upper_bound(address);
    if (next == pieces.begin())
        return range;
    auto found = std::prev(next);
    if (found->second.state != piece_live || address > found->first + found->second.bytes)
        return range;
    return {memory_device, device, found->first, found->second.bytes, true};
}

} // namespace

memory_range find_memory(const void *address) {
    auto *at = static_cast<char *>(const_cast<void *>(address));
    int device = region_of(address);
    if (device >= 0)
        return find_piece(device, at);
    auto next = pinned.upper_bound(at);
    if (next == pinned.begin())
        return {};
    auto found = std::prev(next);
    if (at > found->first + found->second)
        return {};
    return {memory_pinned, 0, found->first, found->second, false};
}

void check_allocation_end(const void *address) {
#if !CUDA_HOST_ASAN
    memory_range range = find_memory(address);
    for (size_t i = 0; range.kind != memory_unknown && i < checked_gap; i++)
        if (static_cast<unsigned char>(range.base[range.bytes + i]) != new_byte)
            cuda_host_fail("something wrote behind the %zu bytes allocated at %p", range.bytes,
                           static_cast<const void *>(range.base));
#else
    (void)address;
#endif
}

void cuda_host_check_range(const void *memory, size_t bytes, const char *what) {
    locked hold(emulation_lock);
    if (bytes == 0)
        return;
    memory_range range = find_memory(memory);
    auto *at = static_cast<const char *>(memory);
    if (range.kind == memory_unknown)
        cuda_host_fail("%s: %p is in no live device or pinned allocation", what, memory);
    if (bytes > range.bytes || at + bytes > range.base + range.bytes)
        cuda_host_fail("%s: %zu bytes at %p pass the end of the %zu bytes allocated at %p", what,
                       bytes, memory, range.bytes, static_cast<const void *>(range.base));
}

cudaError_t cudaMalloc(void **out, size_t bytes) {
    locked hold(emulation_lock);
    if (cudaError_t unsafe = check_unsafe_call())
        return unsafe;
    if (!out)
        return note(cudaErrorInvalidValue);
    *out = nullptr;
    return bytes ? note(allocate_device(current_device(), bytes, out)) : cudaSuccess;
}

// Waits for the device first, as CUDA does.
cudaError_t cudaFree(void *memory) {
    locked hold(emulation_lock);
    if (cudaError_t unsafe = check_unsafe_call())
        return unsafe;
    if (!memory)
        return cudaSuccess;
    drain_device(-1, "cudaFree");
    memory_range range = find_memory(memory);
    if (range.kind != memory_device || range.base != memory)
        return note(cudaErrorInvalidValue);
    free_piece(range.device, static_cast<char *>(memory));
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned) {
    locked hold(emulation_lock);
    if (cudaError_t unsafe = check_unsafe_call())
        return unsafe;
    void *memory = nullptr;
    size_t behind = CUDA_HOST_ASAN ? 0 : checked_gap;
    if (device_count() == 0)
        return note(cudaErrorNoDevice);
    if (is_planned_failure() || bytes > SIZE_MAX - behind ||
        posix_memalign(&memory, granule, bytes + behind))
        return note(cudaErrorMemoryAllocation);
    memset(memory, new_byte, bytes + behind);
    pinned[static_cast<char *>(memory)] = bytes;
    *out = memory;
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t bytes) {
    return cudaHostAlloc(out, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *memory) {
    locked hold(emulation_lock);
    if (cudaError_t unsafe = check_unsafe_call())
        return unsafe;
    if (!memory)
        return cudaSuccess;
    drain_device(-1, "cudaFreeHost");
    auto found = pinned.find(static_cast<char *>(memory));
    if (found == pinned.end())
        return note(cudaErrorInvalidValue);
    check_allocation_end(memory);
    pinned.erase(found);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    locked hold(emulation_lock);
    *total_bytes = configured_memory_bytes();
    *free_bytes = *total_bytes - devices[current_device()].live_bytes;
    return cudaSuccess;
}
