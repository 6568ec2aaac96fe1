// The memory plan: what a run will take, part by part, known and printed before anything large is
// allocated.
#ifndef TANDEM_TRAIN_MEMORY_PLAN_H
#define TANDEM_TRAIN_MEMORY_PLAN_H

#include "model/transformer.h"
#include "model/weight_copies.h"
#include "runtime/core/pager.h"
#include "runtime/train/session.h"

enum { TD_PLAN_MAX_LINES = 24 };

// Where a part lies. On a unified device (the CPU) everything is TD_POOL_DEVICE.
typedef enum td_memory_pool {
    TD_POOL_DEVICE,
    TD_POOL_HOST,
    TD_N_POOLS,
} td_memory_pool;

typedef struct td_plan_line {
    const char *name;
    td_memory_pool pool;
    size_t bytes;
} td_plan_line;

typedef struct td_memory_plan {
    td_plan_line lines[TD_PLAN_MAX_LINES];
    int n_lines;
    int is_unified;
    size_t total_bytes[TD_N_POOLS]; // per rank
    size_t limit_bytes[TD_N_POOLS]; // per rank
    td_recompute recompute;         // chosen
    int host_embedding;             // the table of embeddings stays in host memory
    size_t optimizer_cache_bytes;   // for the pager
    td_weight_copies_plan copies;   // of dequantized layers
    int dequantize_ahead;           // layers without a copy: under the product before
    int ahead_is_given_up;          // asked for, and there is no memory for it
    td_transformer_options transformer;
} td_memory_plan;

typedef struct td_plan_needs {
    int64_t max_tokens; // of a micro-batch
    int64_t max_sequences;
    int64_t max_positions;
    size_t checkpoint_bytes;                       // snapshot
    td_pager_options pager;                        // with the cache that the config asks for
    size_t travel_host_bytes, travel_device_bytes; // of the device communicator
    int n_loaders;                                 // of training and evaluation data
    td_dtype embedding_dtype;
    int base_is_mapped; // from an image, of which the ranks of a node share one copy
    // Of a machine other than this one; 0: what is there.
    int n_ranks;
    size_t limit_bytes[TD_N_POOLS]; // per rank
} td_plan_needs;

// Picks the cheapest recompute policy that fits, or the given one, and gives what is left of a GPU
// to optimizer pages, then to weights dequantized ahead where copies of all layers do not fit, and
// then to copies. TD_ERR_MEMORY with the numbers and the nearest micro_batch_tokens that would fit.
// Local; the same on ranks with the same limit.
td_status td_memory_plan_make(const td_session *session, const td_plan_needs *needs,
                              td_memory_plan *out);
void td_memory_plan_print(const td_memory_plan *plan);

// Resident memory of this process now, and the most it has been. 0 where the system does not say.
size_t td_memory_resident_bytes(void);
size_t td_memory_peak_bytes(void);
// Bytes of gradient sums and parameters together.
size_t td_memory_parameter_bytes(const td_config *config, int64_t n_parameters);
const char *td_recompute_name(td_recompute policy);

#endif
