// The pager: optimizer state of the pages that this rank owns.
//
// All trainable parameters form one flat fp32 vector of n_elements, cut into pages of page_elements
// (the last may be shorter). Page boundaries do not depend on the number of ranks. Page p belongs
// to rank p % size. For each page it owns, a rank holds state_bytes of optimizer state in pinned
// host memory; to be updated it visits the device: acquire brings it (from the cache, or by a copy
// on the copy stream), release lets it go, written back when dirty. Acquired pages are pinned in
// the device cache; others leave it least recently used first. On a unified device (the CPU)
// acquire returns the host memory itself and nothing is copied. One thread at a time. Local:
// nothing here communicates.
#ifndef TANDEM_CORE_PAGER_H
#define TANDEM_CORE_PAGER_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/device.h"

typedef struct td_page_map {
    int64_t n_elements;    // P
    int64_t page_elements; // >= 1
    int64_t n_pages;
    int size; // ranks
} td_page_map;

typedef struct td_page_span {
    int64_t begin; // first element of the flat vector
    int64_t count; // page_elements, fewer in the last page
} td_page_span;

td_status td_page_map_init(td_page_map *map, int64_t n_elements, int64_t page_elements, int size);
td_page_span td_page_map_span(const td_page_map *map, int64_t page);
int td_page_map_owner(const td_page_map *map, int64_t page);
int64_t td_page_map_owned_count(const td_page_map *map, int rank);

typedef struct td_pager td_pager;

typedef struct td_pager_options {
    const td_device *device;
    td_page_map map;
    int rank;
    size_t state_bytes; // per page, the same for all; the optimizer says (td_optimizer_state_bytes)
    size_t device_cache_bytes; // rounded down to whole pages, at least two; ignored on a unified
                               // device
} td_pager_options;

// Pinned host bytes and device bytes that a pager with these options takes.
void td_pager_plan(const td_pager_options *options, size_t *host_bytes, size_t *device_bytes);
td_status td_pager_create(const td_pager_options *options, td_pager **out);
void td_pager_destroy(td_pager *pager);

// Starts bringing an owned page; optional.
td_status td_pager_prefetch(td_pager *pager, int64_t page);
// *out_state: device memory, state_bytes, usable by work queued on `stream` after this call.
td_status td_pager_acquire(td_pager *pager, int64_t page, td_stream *stream, void **out_state);
// Call after the work that uses the page was queued on `stream`.
td_status td_pager_release(td_pager *pager, int64_t page, td_stream *stream, int dirty);
// Writes every dirty page back and waits: afterwards td_pager_host_state() is current.
td_status td_pager_flush(td_pager *pager);
// Host memory of an owned page (state_bytes), for checkpoints: current after a flush; written to
// before the first acquire (or followed by td_pager_invalidate) when state is restored.
void *td_pager_host_state(td_pager *pager, int64_t page);
void td_pager_invalidate(td_pager *pager);

typedef struct td_pager_counters {
    uint64_t hits, misses, write_backs;
} td_pager_counters;
td_pager_counters td_pager_read_counters(const td_pager *pager);

#endif
