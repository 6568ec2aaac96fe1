// From summed gradients to updated parameters, page by page: norm, clip, AdamW, gather.
#ifndef TANDEM_TRAIN_OPTIMIZER_H
#define TANDEM_TRAIN_OPTIMIZER_H

#include "comm/device_comm.h"
#include "kernels/ops.h"
#include "runtime/core/arena.h"
#include "runtime/core/config.h"
#include "runtime/core/pager.h"

// The flat vectors of a run and who owns which page of them.
typedef struct td_parameters {
    td_page_map map;
    float *values; // (n_elements, and a zero behind an odd number) fp32, device memory: the same on
                   // every rank
    int64_t *fixed; // (n_elements) gradient sums, fixed point; TD_REDUCE_EXACT
    float *floats;  // (n_elements) gradient sums; TD_REDUCE_FP32
    int64_t
        *faults; // (1) gradient values that were not finite or did not fit, this rank, this step
    int64_t *checks; // (td_parameter_check_count) sums of words, see step.c
} td_parameters;

typedef struct td_optimizer {
    const td_config *config;
    td_op_context context;
    td_device_comm *device_comm; // not owned
    td_pager *pager;             // not owned
    td_parameters *parameters;
    float *page_gradient; // (page_elements)
    double *page_sums;    // (n_pages) sums of squares of owned pages, pinned host memory
    int64_t *page_slots;  // (n_pages) the same of all pages, as bits
    td_request *requests; // (n_pages)
} td_optimizer;

// Before and after the reduction one for each page, and one of all parameters.
static inline int64_t td_parameter_check_count(const td_page_map *map) {
    return 2 * map->n_pages + 1;
}

// Bytes of optimizer state per page.
size_t td_optimizer_state_bytes(td_optimizer_kind kind, int64_t page_elements);

// Host bytes of the tables.
size_t td_optimizer_host_bytes(int64_t n_pages);

// Takes page_gradient from the arena (device memory).
void td_optimizer_take(td_optimizer *optimizer, const td_page_map *map, td_arena *arena);
// The rest. context needs the workspace that norms ask for. On failure nothing is owed.
td_status td_optimizer_init(td_optimizer *optimizer, const td_config *config,
                            const td_op_context *context, td_device_comm *device_comm,
                            td_pager *pager, td_parameters *parameters);
void td_optimizer_fini(td_optimizer *optimizer);

// Collective. The reduced gradients are on their owners. out_norm: L2 norm of the whole gradient
// before clipping, the same bits on every rank.
td_status td_optimizer_norm(td_optimizer *optimizer, double *out_norm);
// Local. Queues the update of the pages of this rank; `update` counts from 1.
td_status td_optimizer_update(td_optimizer *optimizer, double norm, double learning_rate,
                              int64_t update);
// Collective. Every owner hands out its pages; what is queued afterwards sees them.
td_status td_optimizer_gather(td_optimizer *optimizer);

#endif
