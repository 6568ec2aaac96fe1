// Gradient buckets: runs of pages that are reduced to their owners while the backward pass is still
// running.
//
// The accumulators are one flat int64 (or fp32) vector in page order. Backward finishes modules
// from the last layer to the first, so the vector becomes final from its end. A bucket is started
// when its first element is final; buckets start in descending order on every rank, whatever
// micro-batches it has. Each page is reduced to its owner (td_page_map_owner).
#ifndef TANDEM_COMM_BUCKETS_H
#define TANDEM_COMM_BUCKETS_H

#include "comm/comm.h"
#include "runtime/core/pager.h"

typedef struct td_buckets td_buckets;

typedef enum td_bucket_format {
    TD_BUCKET_I64,
    TD_BUCKET_F32,
} td_bucket_format;

// values: n_elements of the format, owned by the caller and alive as long as the buckets.
// pages_per_bucket >= 1.
td_status td_buckets_create(td_comm *comm, const td_page_map *map, td_bucket_format format,
                            void *values, int64_t pages_per_bucket, td_buckets **out);
void td_buckets_destroy(td_buckets *buckets);

// Local. A new step: nothing is final.
void td_buckets_reset(td_buckets *buckets);
// Collective in effect. Every element from first_final_element on has its final value on this rank:
// starts the buckets that lie wholly behind it. Values never grow within a step; 0 starts all.
td_status td_buckets_advance(td_buckets *buckets, int64_t first_final_element);
// Collective. Waits for all buckets (advance(0) must have been called).
td_status td_buckets_wait(td_buckets *buckets);

#endif
