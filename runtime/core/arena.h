// An arena hands out pieces of one allocation that is made before the first step. The layout code
// of every module runs twice: on a measuring arena, which only adds up, and on the real one. So the
// memory plan and the allocation cannot disagree. Not thread-safe.
#ifndef TANDEM_CORE_ARENA_H
#define TANDEM_CORE_ARENA_H

#include <stddef.h>

#include "runtime/core/device.h"

enum { TD_ARENA_ALIGN = 64 };

typedef struct td_arena {
    const td_device *device; // NULL: measuring
    unsigned char *base;
    size_t capacity_bytes;
    size_t used_bytes;
    size_t peak_bytes;
    const char *name;
} td_arena;

// A measuring arena: td_arena_take() returns NULL and used/peak grow.
void td_arena_init_measure(td_arena *arena, const char *name);
// One allocation of `bytes` from the device; the caller owns it and calls td_arena_fini().
td_status td_arena_init(td_arena *arena, const td_device *device, size_t bytes, const char *name);
void td_arena_fini(td_arena *arena);

int td_arena_is_measuring(const td_arena *arena);

// `count` items of `item_bytes`, 64-byte aligned, zero-filled at arena creation only. Running past
// the capacity is a programmer error (the plan was measured with other sizes) and asserts. NULL
// when measuring.
void *td_arena_take(td_arena *arena, size_t count, size_t item_bytes);

// Stack discipline for scratch memory: everything taken after the mark is given back.
size_t td_arena_mark(const td_arena *arena);
void td_arena_release_to(td_arena *arena, size_t mark);

#endif
