// Which rows make up which micro-batch of which step: a function of (data, settings, seed, step)
// alone, never of the ranks.
//
// With packing, rows are packed once, in dataset order, into bins of micro_batch_tokens by best-fit
// decreasing (as TRL's "bfd"); each bin is a micro-batch. Without, `sequences` consecutive rows of
// the epoch's order are one. Every epoch visits all micro-batches (packing) or rows once, in an
// order shuffled by (seed, epoch). A step takes the next `accumulation` micro-batches; an epoch's
// last step may have fewer.
#ifndef TANDEM_DATA_SAMPLER_H
#define TANDEM_DATA_SAMPLER_H

#include <stdint.h>

#include "runtime/core/status.h"

typedef struct td_sampler td_sampler;

typedef struct td_sampler_options {
    int64_t n_rows;
    const int64_t *offsets;     // (n_rows + 1); lengths are the differences; kept by reference
    const int32_t *row_trained; // (n_rows); kept by reference
    int packing;
    int64_t micro_batch_tokens; // packing: capacity of a bin; no row is longer
    int64_t sequences;          // not packing: rows per micro-batch
    int64_t accumulation;       // micro-batches per step
    int shuffle;
    uint64_t seed;
} td_sampler_options;

typedef struct td_micro_batch {
    const int64_t *rows; // into the store
    int64_t n_rows;
    int64_t n_tokens;
    int64_t n_trained; // after the shift
    double cost;       // relative time, for balancing: tokens plus attention's quadratic part
} td_micro_batch;

typedef struct td_batch {
    const td_micro_batch
        *micro_batches; // owned by the sampler, valid until the next call of td_sampler_batch
    int64_t n_micro_batches;
    const int *by_cost; // (n_micro_batches) indices, the most expensive first
    int64_t n_trained;  // of the step
    int64_t n_tokens;
    int64_t epoch; // from 0
} td_batch;

td_status td_sampler_create(const td_sampler_options *options, td_sampler **out);
void td_sampler_destroy(td_sampler *sampler);
int64_t td_sampler_steps_per_epoch(const td_sampler *sampler);
int64_t td_sampler_micro_batches_per_epoch(const td_sampler *sampler);
// Largest n_tokens and n_rows of any micro-batch there will ever be: what the memory plan needs.
int64_t td_sampler_max_tokens(const td_sampler *sampler);
int64_t td_sampler_max_rows(const td_sampler *sampler);
// step from 0, without upper bound: epochs follow each other.
td_status td_sampler_batch(td_sampler *sampler, int64_t step, td_batch *out);

enum { TD_ASSIGN_MAX_RANKS = 4096 };
// Balanced assignment (longest processing time first): owner[i] = rank of micro-batch i. The same
// on every rank. Within a rank micro-batches run in ascending order. Of more than
// TD_ASSIGN_MAX_RANKS ranks the rest get none.
void td_assign(const td_batch *batch, int size, int *owner);

// Best-fit decreasing: bin[i] for each of n items, bins numbered by first use in order of
// descending length (ties by index). Returns the number of bins, or -1 when an item exceeds the
// capacity. O(n log capacity).
int64_t td_pack_best_fit_decreasing(int64_t n, const int64_t *lengths, int64_t capacity,
                                    int64_t *bin);

#endif
