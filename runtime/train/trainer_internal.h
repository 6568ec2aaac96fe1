// Internals of the trainer, shared by its source files only.
#ifndef TANDEM_TRAIN_TRAINER_INTERNAL_H
#define TANDEM_TRAIN_TRAINER_INTERNAL_H

#include "runtime/train/checkpoint.h"
#include "runtime/train/evaluation.h"
#include "runtime/train/metrics.h"
#include "runtime/train/run.h"
#include "runtime/train/run_data.h"
#include "runtime/train/trainer.h"

typedef struct td_trainer {
    const td_config *config;
    td_comm *comm;
    cJSON *config_json;
    td_session session;
    td_run_data data;
    td_evaluation evaluation;
    td_run run;
    td_checkpoint_options checkpoint_options;
    td_checkpoint_writer *checkpoints;
    td_checkpoint_meta meta; // of the last finished step
    td_metrics metrics;
    int made_output;        // rank 0: the run's folder was not there before
    float *host_parameters; // (n_elements); NULL when the device's memory is the host's
} td_trainer;

static inline int td_trainer_is_root(const td_trainer *trainer) {
    return td_comm_rank(trainer->comm) == 0;
}

// trainer_output.c
// Collective. The run's folder: made, or checked to hold a run with the same config.
td_status td_trainer_open_output(td_trainer *trainer);
// Local. After a failure: removes OUTPUT/data, and OUTPUT if this start has made it, when there is
// nothing in them.
void td_trainer_remove_empty(const td_trainer *trainer);
// Local, rank 0. OUTPUT/config.json: from then on the folder belongs to this config. Written when
// everything else about the run is known to be right.
td_status td_trainer_write_config(td_trainer *trainer);
// Local, rank 0. Makes OUTPUT/best_adapter again from the checkpoint of that step when it is gone;
// *out_found: it is there.
td_status td_trainer_restore_best(td_trainer *trainer, int32_t *out_found);
// Local, rank 0. The current parameters as OUTPUT/name, a PEFT folder; replaces an older one.
td_status td_trainer_write_adapter(td_trainer *trainer, const char *name);
// Local, rank 0. OUTPUT/name becomes a copy of the adapter OUTPUT/from.
td_status td_trainer_copy_adapter(td_trainer *trainer, const char *from, const char *name);
// Checkpoint callback.
td_status td_trainer_write_checkpoint_adapter(void *context, const char *folder,
                                              const float *parameters);

// trainer_signals.c: set to 1 by SIGUSR1 or the first SIGTERM; a second SIGTERM, some seconds
// later, ends the process at once.
extern volatile int td_stop_requested;
void td_trainer_catch_signals(void);

#endif
