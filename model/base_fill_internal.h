// What filling the base needs while it lasts: staging buffers, and where the values come from.
#ifndef TANDEM_MODEL_BASE_FILL_INTERNAL_H
#define TANDEM_MODEL_BASE_FILL_INTERNAL_H

#include "model/base_internal.h"

enum { TD_BASE_GROUP_STREAMS = 3 * TD_BASE_GROUP_ITEMS };

// One array of the files on its way into the base: a tensor, or a part of one stored as NF4.
typedef struct td_base_stream {
    const td_base_item *item;
    td_tensor view;
    int64_t n_elements;
    td_dtype travel;         // what values are turned into before they are stored or quantized
    int adds_one;            // to norms
    unsigned char *target;   // the values in the base, or their codes
    float *absmax;           // (blocks) when it is quantized, or NULL
    const td_matrix *nested; // when absmax is quantized too, or NULL
    float *offset;           // of nested
    int is_nested;           // that is done
    td_hash *hashes;         // (n_hashes) of its chunks, and what else the fingerprint has of it
    int64_t n_hashes;
    int64_t chunks_left;
} td_base_stream;

// Items that are stored together, without anybody waiting in between, and shared after it.
typedef struct td_base_group {
    td_base_item items[TD_BASE_GROUP_ITEMS];
    int n_items;
    int64_t n_elements;
    td_base_stream streams[TD_BASE_GROUP_STREAMS];
    int n_streams;
    int64_t n_blocks; // of the filler's absmax that are taken
    td_hash *hashes;  // (n_hashes)
    int64_t n_hashes;
} td_base_group;

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
    int half;          // the next one
    td_base_group *group;
} td_base_filler;

// The views of the base are read-only for everybody else.
static inline void *td_base_writable(const void *memory) {
    return (void *)(uintptr_t)memory;
}

td_status td_base_copy_now(const td_base_filler *filler, void *to, const void *from, size_t bytes);

// Finds the arrays of an item in the files. The item stays where it is until the group is stored.
td_status td_base_add_streams(td_base_filler *filler, td_base_group *group,
                              const td_base_item *item);
// Reads, converts and stores all streams of a group by all threads. On a device the work may still
// be queued when it returns; `host` and `slice` may be used again by what is queued behind it.
td_status td_base_store_group(td_base_filler *filler, td_base_group *group);

#endif
