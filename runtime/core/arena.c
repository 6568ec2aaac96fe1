#include "runtime/core/arena.h"

#include <stdlib.h>

#include "runtime/core/log.h"
#include "runtime/core/tensor.h"

void td_arena_init_measure(td_arena *arena, const char *name) {
    *arena = (td_arena){.capacity_bytes = SIZE_MAX, .name = name};
}

td_status td_arena_init(td_arena *arena, const td_device *device, size_t bytes, const char *name) {
    void *base;
    TD_TRY(device->table->alloc(device, bytes, name, &base));
    *arena = (td_arena){.device = device, .base = base, .capacity_bytes = bytes, .name = name};
    return TD_OK;
}

void td_arena_fini(td_arena *arena) {
    if (arena->base)
        arena->device->table->free(arena->device, arena->base);
    *arena = (td_arena){0};
}

int td_arena_is_measuring(const td_arena *arena) {
    return arena->device == NULL;
}

static size_t add_saturating(size_t a, size_t b) {
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

static size_t align_up(size_t bytes) {
    return add_saturating(bytes, TD_ARENA_ALIGN - 1) / TD_ARENA_ALIGN * TD_ARENA_ALIGN;
}

// Checked in optimized builds too: the alternative is writing past the allocation.
static void require_room(const td_arena *arena, size_t end) {
    if (end <= arena->capacity_bytes)
        return;
    td_error("arena \"%s\": %zu bytes were planned and %zu are taken; this is a bug in the plan",
             arena->name, arena->capacity_bytes, end);
    abort();
}

void *td_arena_take(td_arena *arena, size_t count, size_t item_bytes) {
    size_t begin = arena->used_bytes;
    size_t end = add_saturating(begin, align_up(td_mul_bytes(count, item_bytes)));
    if (!td_arena_is_measuring(arena))
        require_room(arena, end);
    arena->used_bytes = end;
    if (end > arena->peak_bytes)
        arena->peak_bytes = end;
    return td_arena_is_measuring(arena) ? NULL : arena->base + begin;
}

size_t td_arena_mark(const td_arena *arena) {
    return arena->used_bytes;
}

void td_arena_release_to(td_arena *arena, size_t mark) {
    if (mark > arena->used_bytes) {
        td_error("arena \"%s\": released to %zu, beyond the %zu bytes in use", arena->name, mark,
                 arena->used_bytes);
        abort();
    }
    arena->used_bytes = mark;
}
