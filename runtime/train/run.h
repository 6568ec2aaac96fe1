// The machinery of a training run, between the session and the loop: sampler, plan, flat vectors,
// pager, buckets, step.
#ifndef TANDEM_TRAIN_RUN_H
#define TANDEM_TRAIN_RUN_H

#include "runtime/train/evaluation.h"
#include "runtime/train/memory_plan.h"
#include "runtime/train/session.h"
#include "runtime/train/step.h"

typedef struct td_run {
    td_session *session; // not owned
    td_sampler *sampler;
    td_memory_plan plan;
    td_arena arena; // parameters, gradient sums, one page of gradients
    td_parameters parameters;
    td_pager *pager;
    td_weight_copies copies; // of the session's base
    td_transformer *transformer;
    td_device_comm *device_comm; // of gradients and parameters
    td_buckets *buckets;
    td_token_loader loader;
    td_optimizer optimizer;
    td_step step;
} td_run;

// Local. Pages and optimizer state, from the session's LoRA layout.
td_status td_run_page_map(const td_session *session, td_page_map *out);
td_pager_options td_run_pager_options(const td_session *session, const td_page_map *map);
// How gradients and parameters travel: a page at a time, all pages under way at once.
td_device_comm_options td_run_device_comm_options(const td_session *session,
                                                  const td_page_map *map);

// Collective. Sampler over the store and memory plan, before anything large is allocated.
// evaluation: shares the transformer; NULL without. checkpoint_bytes: what a checkpoint writer will
// take. Zero-initialise run; destroy also after failure.
td_status td_run_plan(td_run *run, td_session *session, td_store *store,
                      const td_evaluation *evaluation, size_t checkpoint_bytes);
// Collective. After the base is there: everything the plan lists. Parameters are those of
// td_session_load_parameters().
td_status td_run_allocate(td_run *run, td_store *store, volatile const int *stop_requested);
void td_run_destroy(td_run *run);
// Local. A failure that the other ranks do not know of ends the job, here, as long as the buffers
// of collectives under way are alive; returns otherwise. Call before td_run_destroy().
void td_run_end_if_alone(td_comm *comm, td_status status);

#endif
