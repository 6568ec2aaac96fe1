// Gradient buckets: runs of pages that are reduced to their owners while the backward pass is still
// running.
//
// The accumulators are one flat int64 (or fp32) vector in page order, in device memory. Backward
// finishes modules from the last layer to the first, so the vector becomes final from its end. A
// bucket is started when its first element is final; buckets start in descending order on every
// rank, whatever micro-batches it has. Each page is reduced to its owner (td_page_map_owner).
// Nothing here waits for the device: "final" means final once the stream has done what was queued
// on it before the call.
#ifndef TANDEM_COMM_BUCKETS_H
#define TANDEM_COMM_BUCKETS_H

#include "comm/device_comm.h"
#include "runtime/core/pager.h"

typedef struct td_buckets td_buckets;

// Local. device_comm: made for at least map->n_pages operations in flight of one page each
// (page_elements of the type); the caller's, like values: n_elements of the type. Both stay alive
// as long as the buckets. pages_per_bucket >= 1.
td_status td_buckets_create(td_device_comm *device_comm, const td_page_map *map,
                            td_collective_type type, void *values, int64_t pages_per_bucket,
                            td_buckets **out);
void td_buckets_destroy(td_buckets *buckets);

// Local. A new step: nothing is final.
void td_buckets_reset(td_buckets *buckets);
// Collective in effect, never blocks. Every element from first_final_element on has its final value
// on this rank after what is queued on `stream`: starts the buckets that lie wholly behind it and
// pushes along those that are under way. Values never grow within a step; 0 starts all.
td_status td_buckets_advance(td_buckets *buckets, int64_t first_final_element, td_stream *stream);
// Collective. Waits for all buckets (advance(0) must have been called); what is queued on `stream`
// afterwards sees the sums. No other collective between the first advance() and this.
td_status td_buckets_wait(td_buckets *buckets, td_stream *stream);

#endif
