// Timing checkpoints: how long training is blocked, and how fast the rest is written.
#ifndef TANDEM_TRAIN_BENCH_CHECKPOINT_H
#define TANDEM_TRAIN_BENCH_CHECKPOINT_H

#include <cjson/cJSON.h>

#include "runtime/train/bench_step.h"

typedef struct td_bench_checkpoint_options {
    int64_t n_elements; // trained parameters; 0: as model_name_or_path and LoRA's settings have it
    int64_t saves;      // timed, after one that is verified
    const char *scratch;
    const char *command; // for the record
    // Also real steps of model_name_or_path, with saves between them; steps 0: without.
    td_bench_step_options step;
} td_bench_checkpoint_options;

// Every sample is of the slowest rank.
typedef struct td_bench_checkpoint_result {
    int64_t saves;
    int64_t n_elements, n_pages;
    size_t snapshot_bytes; // of the rank with the most: what a save copies
    size_t written_bytes;  // of a checkpoint, all files
    // (saves) seconds
    double *save;   // td_checkpoint_save()
    double *poll;   // of one td_checkpoint_poll() while files are being written
    double *commit; // the two td_checkpoint_poll() that take it further
    double *write;  // from the save's return until all is written, read back, compared, committed
    double *copy;   // one parallel memcpy of as many bytes, after each save
    double *ratio;  // (save + commit) / copy
    // With steps: medians
    double step_alone, step_writing; // seconds of a step, with nothing and with files being written
    double step_blocked;             // seconds in the save and in all polls until it is committed
    cJSON *record; // everything, rank 0
} td_bench_checkpoint_result;

// Collective. Verifies first that a save holds what was there when it was called, although
// everything is overwritten as soon as it returns: TD_ERR_NUMERIC. fini also after a failure.
td_status td_bench_checkpoint(const td_config *config, td_comm *comm,
                              const td_bench_checkpoint_options *options,
                              td_bench_checkpoint_result *out);
void td_bench_checkpoint_fini(td_bench_checkpoint_result *result);

#endif
