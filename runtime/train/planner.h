// What a run will take and what an adapter can hold, before there are weights or a machine to run
// on: parameters by kind of matrix, information capacity by rank, memory per rank, steps, time,
// cost.
//
// Everything comes from config.json, the run's settings and the numbers that the user gives. Memory
// is planned by the code that plans it for a run. Local; one thread.
#ifndef TANDEM_TRAIN_PLANNER_H
#define TANDEM_TRAIN_PLANNER_H

#include <stdio.h>

#include "runtime/data/store.h"
#include "runtime/train/memory_plan.h"

// What a parameter can store (Morris et al., "How much do language models memorize?", 2025).
#define TD_PLANNER_BITS_PER_PARAMETER 3.6
// Tokens to capacity at which an adapter generalizes with room to spare.
#define TD_PLANNER_BEST_RATIO 1.8

enum { TD_PLANNER_N_RANKS = 9, TD_PLANNER_N_POLICIES = 3 };

typedef struct td_planner_options {
    const td_config *config; // batches, schedule, optimizer, quantization
    const td_model_config *model;
    const td_lora_options *lora;
    // The data: a store, or one epoch's tokens and rows as far as they are known; 0: not.
    const td_store *store;
    int64_t tokens, rows;
    double bits_per_token; // entropy of the data
    int n_ranks;
    size_t gpu_bytes;         // memory of the GPU that the ranks have one of each; 0: the CPU
    td_dtype embedding_dtype; // td_base_peek_dtype(), or what config.json says
    double tokens_per_second; // of all ranks together; 0: not known
    double price_per_hour;    // of one rank; negative: not known
} td_planner_options;

typedef struct td_planner_capacity {
    int64_t rank, n_parameters;
    // NAN where the data's tokens are not known.
    double tokens_per_parameter;
    double ratio;          // information in the tokens / capacity of the parameters
    double memorization;   // share of the data that fits as it is
    double generalization; // the rest
    const char *status;    // "Under", "Knee", "Optimal", "Over"; NULL when not known
} td_planner_capacity;

typedef struct td_planner_steps {
    int64_t tokens, rows;                         // of an epoch; 0: not known
    int64_t micro_batch_tokens, micro_batch_rows; // the largest there will be
    int64_t longest_row;                          // tokens
    int64_t micro_batches;                        // of an epoch; 0: not known
    int is_exact;                                 // counted on the rows themselves
    int64_t steps_per_epoch, steps;               // 0: not known
    double epochs;
    double tokens_seen;   // by the whole run; 0: not known
    double seconds, cost; // NAN: not known
} td_planner_steps;

typedef struct td_planner_memory {
    int is_gpu;
    int has_workspace;  // 0: only the GPU module can tell, and there is no GPU that it can use
    size_t limit_bytes; // of the device, per rank; 0: none was given
    td_memory_plan plans[TD_PLANNER_N_POLICIES]; // one per policy that the config allows
    int fits[TD_PLANNER_N_POLICIES];
    int n_plans;
    int chosen;        // the first that fits; -1: none
    char refusal[512]; // of the last plan, when none fits
    int is_nf4;        // as the folder holds the weights, or as configured
    // Bits per quantized parameter for the block scales of NF4: these, and with fp32 scales.
    double scale_bits, plain_scale_bits;
} td_planner_memory;

typedef struct td_planner {
    td_planner_options options;
    td_base_counts base;
    int64_t without_embeddings;
    td_lora lora; // as configured
    td_planner_capacity capacities[TD_PLANNER_N_RANKS];
    int recommended; // index; -1: not known
    td_planner_steps steps;
    td_planner_memory memory;
} td_planner;

// What `options` points to must outlive the plan. TD_ERR_USAGE for settings that no run accepts.
// That the memory does not fit is an answer, not a failure: memory.chosen is -1. Zero-initialise;
// fini also after a failure.
td_status td_planner_make(const td_planner_options *options, td_planner *out);
void td_planner_fini(td_planner *planner);

// An adapter of n_parameters that sees `tokens`: (Morris et al., 2025) capacity = 3.6 bits per
// parameter; ratio = tokens * bits_per_token / capacity; memorization = ratio up to 1, ratio^-0.7
// beyond.
td_planner_capacity td_planner_capacity_of(int64_t rank, int64_t n_parameters, double tokens,
                                           double bits_per_token);

// Tables for people; one JSON object with the raw numbers. `name` is what the model is called.
void td_planner_print(const td_planner *planner, const char *name, FILE *out);
td_status td_planner_print_json(const td_planner *planner, const char *name, FILE *out);

#endif
