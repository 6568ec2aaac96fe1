// A training run from config to adapter: everything between the command line and the step.
#ifndef TANDEM_TRAIN_TRAINER_H
#define TANDEM_TRAIN_TRAINER_H

#include "comm/comm.h"
#include "runtime/core/config.h"

// What a finished run has to say; rank 0's numbers are everybody's.
typedef struct td_train_summary {
    int64_t steps;
    double last_loss;      // NaN when no step was left to do
    double eval_loss;      // NaN without evaluation data
    double best_eval_loss; // NaN likewise
    char adapter_folder[4096];
    char checkpoint_folder[4096];
} td_train_summary;

// Collective. Output: OUTPUT_DIR/adapter (PEFT), best_adapter (with evaluation data), checkpoints/,
// metrics.jsonl, config.json, data/. TD_STOPPED when a signal asked to stop; a checkpoint has been
// written then.
td_status td_train(const td_config *config, td_comm *comm, td_train_summary *out);

#endif
