// Checkpoints: sharded, verified, committed by all ranks together.
//
// RUN/checkpoints/step-000100/ holds one HDF5 file per rank that owns pages
// (pages-00000-of-00004.h5), the adapter in PEFT format, and manifest.json, written last: what the
// run was (step, data position, fingerprints, config) and every other file with its size and
// checksum. A folder is made under a temporary name, written, flushed, read back and compared, and
// renamed when every rank has succeeded: what has its final name was whole once. `latest` names the
// newest; it is for people and scripts, loading looks for itself.
//
// A save takes a snapshot and returns; a thread of its own writes it while training goes on. The
// td_checkpoint_poll() that finds all ranks done lets rank 0 publish the files, in a thread too,
// and the one that finds it done there commits; so does the next save, or td_checkpoint_finish().
// All three are collective and called by the training thread, so the ranks always agree on what is
// committed.
//
// Every start of a run takes a new incarnation (RUN/incarnation). A process of an older one that
// wakes up later cannot commit.
#ifndef TANDEM_TRAIN_CHECKPOINT_H
#define TANDEM_TRAIN_CHECKPOINT_H

#include <cjson/cJSON.h>

#include "comm/comm.h"
#include "runtime/core/device.h"
#include "runtime/core/files.h"
#include "runtime/core/hash.h"
#include "runtime/core/pager.h"

// What must be the same in the run that resumes.
typedef struct td_checkpoint_identity {
    td_hash base_model; // contents of the base
    td_hash data;       // contents of the training data as tokens
    td_hash config;     // td_config_fingerprint()
    td_hash layout;     // names and shapes of the trained tensors, in order
} td_checkpoint_identity;

// Where the run is.
typedef struct td_checkpoint_meta {
    int64_t step;        // updates done; with seed and data it is the data position
    int64_t epoch;       // of the last update
    int64_t tokens_seen; // since the run's first step
    int64_t seed;
    int has_best; // an evaluation was made
    double best_loss;
    int64_t best_step; // its checkpoint is never purged
} td_checkpoint_meta;

typedef struct td_checkpoint_options {
    td_comm *comm;
    const td_device *device;
    td_page_map map;        // of this run; map.size = ranks
    size_t state_bytes;     // per page (td_optimizer_state_bytes)
    const char *run_folder; // output_dir
    int64_t keep_last;      // save_total_limit; 0: keep all
    td_checkpoint_identity identity;
    // td_config_to_json(): shown in the manifest, and names the key that differs.
    const cJSON *config;
    // Puts the adapter into `folder` (files only); params: (n_elements) fp32 host memory. Called by
    // rank 0's writer thread: it must not communicate. May be NULL.
    td_status (*write_adapter)(void *context, const char *folder, const float *params);
    void *write_adapter_context;
} td_checkpoint_options;

typedef struct td_checkpoint_writer td_checkpoint_writer;

// Pinned host bytes that a writer takes on `rank`: the snapshot and one page.
size_t td_checkpoint_plan(const td_page_map *map, size_t state_bytes, int rank);

// Collective. Takes a new incarnation, removes what killed runs left behind, allocates the
// snapshot. The options are copied; what they point to is kept by reference and must outlive the
// writer. Create the writer before looking for a checkpoint: from then on no older process can
// commit.
td_status td_checkpoint_create(const td_checkpoint_options *options, td_checkpoint_writer **out);
// Local. Waits for the writer thread. A save that was not committed is lost.
void td_checkpoint_destroy(td_checkpoint_writer *writer);

// Collective. Commits the save before, if there is one (its failure is a warning here). Then copies
// params ((n_elements) fp32, device memory, current) and the pager's pages, and starts writing.
// Both may change after the return. TD_ERR_IO: no space, no permission, or fenced.
td_status td_checkpoint_save(td_checkpoint_writer *writer, const td_checkpoint_meta *meta,
                             const float *params, td_pager *pager);
// Collective. Takes the save under way one stage further when all ranks are ready for it; waits for
// no disk. Without one, returns at once. *out_committed (may be NULL) is the step that was
// committed by this call, else -1. After an error the old checkpoints are untouched and the writer
// can save again.
td_status td_checkpoint_poll(td_checkpoint_writer *writer, int64_t *out_committed);
// Local, the same on all ranks: 0 without a save under way, 1 while ranks write, 2 while rank 0
// publishes.
int td_checkpoint_stage(const td_checkpoint_writer *writer);
// Collective. Waits for the save under way and commits it.
td_status td_checkpoint_finish(td_checkpoint_writer *writer, int64_t *out_committed);
// Local, the same on all ranks: a newer incarnation of the run has started; this one can only end.
int td_checkpoint_is_fenced(const td_checkpoint_writer *writer);
// Local, rank 0. TD_ERR_IO when a newer incarnation has started. To be asked before anything else
// in the run's folder is replaced.
td_status td_checkpoint_require_newest(const td_checkpoint_writer *writer);

// A whole checkpoint.
typedef struct td_checkpoint {
    char folder[TD_PATH_MAX];
    td_checkpoint_meta meta;
    int world_size; // ranks that wrote it
    struct td_manifest *manifest;
} td_checkpoint;

// Collective. choice "auto": the newest checkpoint in RUN/checkpoints whose files are all there
// with the right size and checksum; a damaged one is passed over with a warning that says what is
// wrong. *out is NULL when there is none. Any other choice is a checkpoint folder: TD_ERR_DATA
// unless it is whole. In both cases TD_ERR_DATA when base model, data, config or layout differ,
// saying which.
td_status td_checkpoint_find(const td_checkpoint_options *options, const char *choice,
                             td_checkpoint **out);
void td_checkpoint_close(td_checkpoint *checkpoint);

// Collective. Any number of ranks. Fills params ((n_elements) fp32, device memory) and, unless
// pager is NULL, the host state of the pages that this rank owns now; every page is checked against
// its own checksum.
td_status td_checkpoint_load(const td_checkpoint *checkpoint, const td_checkpoint_options *options,
                             float *params, td_pager *pager);

// Local. Folder of a step's checkpoint in a run.
td_status td_checkpoint_step_folder(char out[TD_PATH_MAX], const char *run_folder, int64_t step);
// Local. Step of the newest checkpoint folder, whole or not; -1 when there is none.
int64_t td_checkpoint_newest_step(const char *run_folder);

#endif
