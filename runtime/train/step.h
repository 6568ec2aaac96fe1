// One optimizer step, as DESIGN has it: batch, forward, backward, reduce, norm, clip, update,
// gather.
#ifndef TANDEM_TRAIN_STEP_H
#define TANDEM_TRAIN_STEP_H

#include "comm/buckets.h"
#include "runtime/train/optimizer.h"
#include "runtime/train/schedule.h"
#include "runtime/train/tokens.h"

typedef struct td_step {
    const td_config *config;
    td_comm *comm;
    td_transformer *transformer;
    const td_lora *lora;
    td_sampler *sampler;
    td_token_loader *loader;
    td_parameters *parameters;
    td_optimizer *optimizer;
    td_buckets *buckets;
    td_schedule schedule;
    int64_t max_micro_batches; // of a step
    int *owners;               // (max_micro_batches)
    int64_t *slots;            // the step's table: losses, faults, requests, checks
    int64_t slot_count;
    int64_t *checks;       // (td_parameter_check_count) this rank's, host memory
    int64_t first_checked; // the pages from here on have their check of this step
    int last_of_mine; // the running micro-batch is this rank's last: its layers' buckets may start
    volatile const int *stop_requested; // set by a signal handler on any rank; may be NULL
} td_step;

typedef struct td_step_result {
    double loss;      // mean over the step's trained tokens
    double grad_norm; // before clipping
    double learning_rate;
    int64_t tokens, trained_tokens, micro_batches, epoch;
    int stop; // some rank was asked to stop
} td_step_result;

// Everything that points elsewhere is filled in by the caller, the step's own tables by init.
td_status td_step_init(td_step *step);
void td_step_fini(td_step *step);

// Collective. Update number `index` from 0. TD_ERR_NUMERIC, on every rank and with the parameters
// untouched, when the loss or a gradient is not finite, a gradient does not fit the fixed-point
// range, or, with several ranks and exact sums, when a sum that arrived is not the sum of what was
// sent, or a rank's parameters are not those of the others.
td_status td_step_run(td_step *step, int64_t index, td_step_result *out);
// After td_step_run() has failed with TD_ERR_NUMERIC, the same on every rank: the ranks began the
// step with the same parameters, so that what was saved of them before is right.
int td_step_replicas_agree(const td_step *step);

#endif
