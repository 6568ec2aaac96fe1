// On a device with memory of its own, pages live in cache slots. All copies run on one copy stream,
// so a page that is written back and fetched again needs no further ordering between the two
// copies. Work and copies are ordered by two events per slot: `fetched` (recorded on the copy
// stream; work waits) and `used` (recorded on the work's stream; copies wait).
#include "runtime/core/pager.h"

#include <stdlib.h>

#include "runtime/core/tensor.h"

enum { STATE_ALIGN = 64, MIN_SLOTS = 2, NO_SLOT = -1 };

typedef struct slot {
    int64_t page; // -1: empty
    int pins;
    int dirty;
    int unclaimed; // fetched, and not acquired since
    td_event *fetched;
    td_event *used;
    td_stream *used_on; // stream of the last release; NULL: copies need not wait
    uint64_t last_use;
    unsigned char *memory;
} slot;

struct td_pager {
    td_pager_options options;
    size_t stride; // state_bytes, aligned
    int64_t owned_count;
    unsigned char *host;   // (owned_count, stride)
    unsigned char *device; // (slot_count, stride); NULL on a unified device
    int slot_count;
    slot *slots;
    int *slot_of; // (owned_count) slot or NO_SLOT
    td_stream *copy_stream;
    uint64_t clock;
    td_pager_counters counters;
};

static size_t stride_of(size_t state_bytes) {
    size_t padded;
    if (__builtin_add_overflow(state_bytes, (size_t)STATE_ALIGN - 1, &padded))
        return SIZE_MAX;
    return padded / STATE_ALIGN * STATE_ALIGN;
}

// More slots than owned pages would be wasted.
static int64_t slots_for(const td_pager_options *options, size_t stride, int64_t owned) {
    size_t affordable = stride ? options->device_cache_bytes / stride : MIN_SLOTS;
    if (affordable < MIN_SLOTS)
        affordable = MIN_SLOTS;
    return affordable < (size_t)owned ? (int64_t)affordable : owned;
}

void td_pager_plan(const td_pager_options *options, size_t *host_bytes, size_t *device_bytes) {
    size_t stride = stride_of(options->state_bytes);
    int64_t owned = td_page_map_owned_count(&options->map, options->rank);
    *host_bytes = td_mul_bytes((size_t)owned, stride);
    *device_bytes = options->device->unified
                        ? 0
                        : td_mul_bytes((size_t)slots_for(options, stride, owned), stride);
}

static const td_device_table *table_of(const td_pager *pager) {
    return pager->options.device->table;
}

static td_status create_slot(td_pager *pager, int index) {
    slot *new_slot = &pager->slots[index];
    new_slot->page = -1;
    new_slot->memory = pager->device + (size_t)index * pager->stride;
    TD_TRY(table_of(pager)->event_create(pager->options.device, &new_slot->fetched));
    return table_of(pager)->event_create(pager->options.device, &new_slot->used);
}

static td_status create_cache(td_pager *pager, size_t device_bytes) {
    const td_device *device = pager->options.device;
    pager->slot_of = malloc(((size_t)pager->owned_count + 1) * sizeof *pager->slot_of);
    pager->slots = calloc((size_t)pager->slot_count + 1, sizeof *pager->slots);
    if (!pager->slot_of || !pager->slots)
        return td_fail(TD_ERR_MEMORY, "no memory for the table of optimizer pages");
    for (int64_t i = 0; i < pager->owned_count; i++)
        pager->slot_of[i] = NO_SLOT;
    TD_TRY(device->table->stream_create(device, &pager->copy_stream));
    void *memory;
    TD_TRY(device->table->alloc(device, device_bytes, "the cache of optimizer pages", &memory));
    pager->device = memory;
    for (int i = 0; i < pager->slot_count; i++)
        TD_TRY(create_slot(pager, i));
    return TD_OK;
}

static td_status create_memory(td_pager *pager) {
    const td_device *device = pager->options.device;
    size_t host_bytes, device_bytes;
    td_pager_plan(&pager->options, &host_bytes, &device_bytes);
    if (pager->owned_count == 0)
        return TD_OK;
    void *memory;
    TD_TRY(device->table->alloc_pinned(device, host_bytes, "optimizer state", &memory));
    pager->host = memory;
    return device->unified ? TD_OK : create_cache(pager, device_bytes);
}

td_status td_pager_create(const td_pager_options *options, td_pager **out) {
    td_pager *pager = calloc(1, sizeof *pager);
    if (!pager)
        return td_fail(TD_ERR_MEMORY, "no memory for the pager");
    pager->options = *options;
    pager->stride = stride_of(options->state_bytes);
    pager->owned_count = td_page_map_owned_count(&options->map, options->rank);
    if (!options->device->unified)
        pager->slot_count = (int)slots_for(options, pager->stride, pager->owned_count);
    td_status status = create_memory(pager);
    if (status != TD_OK) {
        td_pager_destroy(pager);
        return status;
    }
    *out = pager;
    return TD_OK;
}

static void destroy_slots(td_pager *pager) {
    for (int i = 0; pager->slots && i < pager->slot_count; i++) {
        if (pager->slots[i].fetched)
            table_of(pager)->event_destroy(pager->slots[i].fetched);
        if (pager->slots[i].used)
            table_of(pager)->event_destroy(pager->slots[i].used);
    }
    free(pager->slots);
}

void td_pager_destroy(td_pager *pager) {
    if (!pager)
        return;
    const td_device *device = pager->options.device;
    if (pager->copy_stream)
        (void)device->table->stream_synchronize(pager->copy_stream);
    destroy_slots(pager);
    if (pager->device)
        device->table->free(device, pager->device);
    if (pager->copy_stream)
        device->table->stream_destroy(pager->copy_stream);
    if (pager->host)
        device->table->free_pinned(device, pager->host);
    free(pager->slot_of);
    free(pager);
}

static int owns(const td_pager *pager, int64_t page) {
    const td_page_map *map = &pager->options.map;
    return page >= 0 && page < map->n_pages && td_page_map_owner(map, page) == pager->options.rank;
}

static td_status require_owned(const td_pager *pager, int64_t page) {
    if (owns(pager, page))
        return TD_OK;
    return td_fail(TD_ERR_INTERNAL, "optimizer page %lld does not belong to rank %d",
                   (long long)page, pager->options.rank);
}

static int64_t owned_index(const td_pager *pager, int64_t page) {
    return page / pager->options.map.size;
}

static unsigned char *host_of(const td_pager *pager, int64_t page) {
    return pager->host + (size_t)owned_index(pager, page) * pager->stride;
}

static slot *slot_holding(td_pager *pager, int64_t page) {
    int index = pager->slot_of[owned_index(pager, page)];
    return index == NO_SLOT ? NULL : &pager->slots[index];
}

// An empty slot, else the least recently used one that nobody holds, else NULL.
static slot *choose_slot(td_pager *pager) {
    slot *oldest = NULL;
    for (int i = 0; i < pager->slot_count; i++) {
        slot *candidate = &pager->slots[i];
        if (candidate->page < 0)
            return candidate;
        if (candidate->pins == 0 && (!oldest || candidate->last_use < oldest->last_use))
            oldest = candidate;
    }
    return oldest;
}

// The copy stream continues after the last work that used the slot.
static td_status wait_for_work(td_pager *pager, slot *used) {
    if (!used->used_on)
        return TD_OK;
    TD_TRY(table_of(pager)->event_wait(used->used, pager->copy_stream));
    used->used_on = NULL;
    return TD_OK;
}

static td_status write_back(td_pager *pager, slot *dirty) {
    TD_TRY(wait_for_work(pager, dirty));
    TD_TRY(table_of(pager)->copy(pager->copy_stream, host_of(pager, dirty->page), dirty->memory,
                                 pager->options.state_bytes));
    dirty->dirty = 0;
    pager->counters.write_backs++;
    return TD_OK;
}

static td_status evict(td_pager *pager, slot *victim) {
    if (victim->page < 0)
        return TD_OK;
    if (victim->dirty)
        TD_TRY(write_back(pager, victim));
    pager->slot_of[owned_index(pager, victim->page)] = NO_SLOT;
    victim->page = -1;
    return TD_OK;
}

static td_status fetch(td_pager *pager, int64_t page, slot *target) {
    TD_TRY(evict(pager, target));
    TD_TRY(wait_for_work(pager, target));
    TD_TRY(table_of(pager)->copy(pager->copy_stream, target->memory, host_of(pager, page),
                                 pager->options.state_bytes));
    TD_TRY(table_of(pager)->event_record(target->fetched, pager->copy_stream));
    target->page = page;
    target->unclaimed = 1;
    target->last_use = ++pager->clock;
    pager->slot_of[owned_index(pager, page)] = (int)(target - pager->slots);
    pager->counters.misses++;
    return TD_OK;
}

td_status td_pager_prefetch(td_pager *pager, int64_t page) {
    TD_TRY(require_owned(pager, page));
    if (pager->options.device->unified || slot_holding(pager, page))
        return TD_OK;
    slot *target = choose_slot(pager);
    return target ? fetch(pager, page, target) : TD_OK;
}

static td_status fail_all_pinned(const td_pager *pager) {
    return td_fail(TD_ERR_INTERNAL,
                   "all %d pages in the optimizer cache are in use; release one before the next is "
                   "acquired, or raise optimizer_cache_bytes",
                   pager->slot_count);
}

// Brings the page if it is not there, and orders the work on `stream` behind the fetch and behind
// work that other streams did on the page.
static td_status hold(td_pager *pager, int64_t page, td_stream *stream, slot **out) {
    slot *held = slot_holding(pager, page);
    if (!held) {
        held = choose_slot(pager);
        if (!held)
            return fail_all_pinned(pager);
        TD_TRY(fetch(pager, page, held));
    } else if (!held->unclaimed) {
        pager->counters.hits++;
    }
    TD_TRY(table_of(pager)->event_wait(held->fetched, stream));
    if (held->used_on && held->used_on != stream)
        TD_TRY(table_of(pager)->event_wait(held->used, stream));
    *out = held;
    return TD_OK;
}

td_status td_pager_acquire(td_pager *pager, int64_t page, td_stream *stream, void **out_state) {
    TD_TRY(require_owned(pager, page));
    if (pager->options.device->unified) {
        pager->counters.hits++;
        *out_state = host_of(pager, page);
        return TD_OK;
    }
    slot *held = NULL;
    TD_TRY(hold(pager, page, stream, &held));
    held->unclaimed = 0;
    held->pins++;
    held->last_use = ++pager->clock;
    *out_state = held->memory;
    return TD_OK;
}

td_status td_pager_release(td_pager *pager, int64_t page, td_stream *stream, int dirty) {
    TD_TRY(require_owned(pager, page));
    if (pager->options.device->unified)
        return TD_OK;
    slot *held = slot_holding(pager, page);
    if (!held || held->pins == 0)
        return td_fail(TD_ERR_INTERNAL, "optimizer page %lld is released but was not acquired",
                       (long long)page);
    // One event stands for all streams that used the slot: this stream goes on after the others.
    if (held->used_on && held->used_on != stream)
        TD_TRY(table_of(pager)->event_wait(held->used, stream));
    TD_TRY(table_of(pager)->event_record(held->used, stream));
    held->used_on = stream;
    held->dirty |= dirty != 0;
    held->pins--;
    return TD_OK;
}

td_status td_pager_flush(td_pager *pager) {
    for (int i = 0; i < pager->slot_count; i++)
        if (pager->slots[i].page >= 0 && pager->slots[i].dirty)
            TD_TRY(write_back(pager, &pager->slots[i]));
    return pager->copy_stream ? table_of(pager)->stream_synchronize(pager->copy_stream) : TD_OK;
}

void *td_pager_host_state(td_pager *pager, int64_t page) {
    return owns(pager, page) ? host_of(pager, page) : NULL;
}

void td_pager_invalidate(td_pager *pager) {
    for (int i = 0; i < pager->slot_count; i++) {
        slot *cached = &pager->slots[i];
        if (cached->page >= 0)
            pager->slot_of[owned_index(pager, cached->page)] = NO_SLOT;
        cached->page = -1;
        cached->dirty = 0;
        cached->pins = 0;
    }
    // A write-back still under way would overwrite what the caller is about to restore.
    if (pager->copy_stream)
        (void)table_of(pager)->stream_synchronize(pager->copy_stream);
}

td_pager_counters td_pager_read_counters(const td_pager *pager) {
    return pager->counters;
}
