// What filling the base needs while it lasts: staging buffers, and where the values come from.
#ifndef TANDEM_MODEL_BASE_FILL_INTERNAL_H
#define TANDEM_MODEL_BASE_FILL_INTERNAL_H

#include "model/base_internal.h"

typedef struct td_base_filler {
    td_base *base;
    const td_base_options *options;
    const td_base_source *source;
    const td_base_share *share;
    td_op_context context; // with a workspace of its own
    td_base_staging plan;
    float *host;   // (slice_elements) pinned
    float *slice;  // the same on the device
    float *absmax; // (n_blocks) on the device
    // Pinned. Nested offsets in the order of the walk: a device writes them when it gets there, and
    // they become the views' when all is filled.
    float *offsets;
    int64_t n_offsets;
    td_event *sent[2]; // the stream has read that half of `host`
} td_base_filler;

// The views of the base are read-only for everybody else.
static inline void *td_base_writable(const void *memory) {
    return (void *)(uintptr_t)memory;
}

// Reads, converts and stores one tensor of files by all threads. On a device the work may still be
// queued when it returns; `host` and `slice` may be used again by what is queued behind it.
td_status td_base_store_tensor(td_base_filler *filler, const td_base_item *item);

#endif
