// Between the checkpoint_*.c files, and for their tests.
#ifndef TANDEM_TRAIN_CHECKPOINT_INTERNAL_H
#define TANDEM_TRAIN_CHECKPOINT_INTERNAL_H

#include <stdatomic.h>

#include "runtime/core/fault.h"
#include "runtime/train/checkpoint.h"

enum {
    TD_CHECKPOINT_FORMAT = 2, // 1: page files had no index
    TD_CHECKPOINT_NAME_CHARS = 128,
    TD_INCARNATION_CHARS = 48,
    TD_CHECKPOINT_MAX_FILES = 1 << 20,
};

// Points that a save passes. Tests stop there, by failure or by death.
typedef enum td_checkpoint_phase {
    TD_CHECKPOINT_CREATE,
    TD_CHECKPOINT_WRITE, // before every page
    TD_CHECKPOINT_FLUSH,
    TD_CHECKPOINT_CLOSE,
    TD_CHECKPOINT_VERIFY,
    TD_CHECKPOINT_MANIFEST,
    TD_CHECKPOINT_RENAME,
    TD_CHECKPOINT_LATEST,
    TD_CHECKPOINT_PURGE, // before every removal
    TD_CHECKPOINT_PHASE_COUNT,
} td_checkpoint_phase;

// NULL outside tests. Called by whichever thread passes the point.
extern td_status (*td_checkpoint_test_hook)(td_checkpoint_phase phase);

static inline const char *td_checkpoint_phase_name(td_checkpoint_phase phase) {
    static const char *const names[TD_CHECKPOINT_PHASE_COUNT] = {
        [TD_CHECKPOINT_CREATE] = "create", [TD_CHECKPOINT_WRITE] = "write",
        [TD_CHECKPOINT_FLUSH] = "flush",   [TD_CHECKPOINT_CLOSE] = "close",
        [TD_CHECKPOINT_VERIFY] = "verify", [TD_CHECKPOINT_MANIFEST] = "manifest",
        [TD_CHECKPOINT_RENAME] = "rename", [TD_CHECKPOINT_LATEST] = "latest",
        [TD_CHECKPOINT_PURGE] = "purge",
    };
    return names[phase];
}

static inline td_status td_checkpoint_reach(td_checkpoint_phase phase) {
    TD_TRY(TD_FAULT_DETAIL("checkpoint", td_checkpoint_phase_name(phase)));
    return td_checkpoint_test_hook ? td_checkpoint_test_hook(phase) : TD_OK;
}

// (checkpoint_pages.c)

// Floats of a page as stored: page_elements, or fewer when there is only one, shorter page. The
// last page is padded with zeros.
int64_t td_page_width(const td_page_map *map);

typedef struct td_shard {
    td_page_map map; // with the number of ranks that write
    int rank;
    int64_t step;
    size_t state_bytes;
} td_shard;

enum { TD_SHARD_ATTRIBUTES = 7 };
extern const char *const td_shard_attributes[TD_SHARD_ATTRIBUTES];
void td_shard_attribute_values(const td_shard *shard, int64_t out[TD_SHARD_ATTRIBUTES]);
int64_t td_shard_pages(const td_shard *shard);
size_t td_shard_params_bytes(const td_shard *shard); // of a page

// Where a page lies in the file, and the checksums of its parameters and its state.
typedef struct td_page_place {
    uint64_t params, state;
    td_hash hashes[2];
} td_page_place;

// Appends the index: places (td_shard_pages). The HDF5 file is closed and nothing follows it.
td_status td_shard_write_index(int file, const char *path, const td_shard *shard,
                               const td_page_place *places);

// Where the pages are: page number i of the shard (page rank + i * size).
typedef struct td_shard_memory {
    const float *(*params)(const void *context, int64_t index);        // (td_page_width)
    const unsigned char *(*state)(const void *context, int64_t index); // (state_bytes)
    const void *context;
    const atomic_int *cancel;     // not zero: stop with TD_STOPPED
    float *scratch_params;        // (td_page_width), for reading back
    unsigned char *scratch_state; // (state_bytes)
} td_shard_memory;

void td_shard_name(char out[TD_CHECKPOINT_NAME_CHARS], int rank, int size);

// Writes, flushes to the disk, closes, opens again and compares. Any thread.
td_status td_shard_write(const char *path, const td_shard *shard, const td_shard_memory *memory);

typedef struct td_shard_reader td_shard_reader;

// TD_ERR_DATA unless the file, not a link to it, is such a shard. Any thread.
td_status td_shard_open(const char *path, const td_shard *expected, td_shard_reader **out);
// The same for a file of a checkpoint folder, whose size and checksum are compared with the
// manifest's before HDF5 reads it.
td_status td_shard_open_listed(const char *folder, const struct td_manifest *manifest,
                               const td_shard *expected, td_shard_reader **out);
void td_shard_close(td_shard_reader *reader);
// Page number `index` of the shard, checked against its checksum. `state` NULL: not read.
td_status td_shard_read_page(td_shard_reader *reader, int64_t index, float *params,
                             unsigned char *state);

typedef struct td_manifest_file {
    char name[TD_CHECKPOINT_NAME_CHARS];
    uint64_t bytes;
    td_hash hash;
} td_manifest_file;

typedef struct td_manifest {
    td_checkpoint_meta meta;
    td_checkpoint_identity identity;
    td_page_map map; // with the number of ranks that wrote it
    size_t state_bytes;
    char incarnation[TD_INCARNATION_CHARS];
    cJSON *config;
    td_manifest_file *files;
    int64_t n_files;
} td_manifest;

void td_manifest_fini(td_manifest *manifest);
td_status td_manifest_add_file(td_manifest *manifest, const char *name, uint64_t bytes,
                               td_hash hash);
// Text of manifest.json with its own checksum; the caller frees.
td_status td_manifest_print(const td_manifest *manifest, char **out);
// `where` is what messages call it. TD_ERR_DATA when anything is missing, damaged or out of range;
// TD_ERR_USAGE when another version of the format is whole. Zero-initialise; fini also after
// failure.
td_status td_manifest_parse(const char *where, const char *text, size_t bytes, td_manifest *out);
// TD_ERR_DATA says which of base model, data, config and layout differs, and the config key.
td_status td_manifest_require_identity(const char *where, const td_manifest *manifest,
                                       const td_checkpoint_options *options);
// NULL when there is none of that name.
const td_manifest_file *td_manifest_find_file(const td_manifest *manifest, const char *name);
// Opens one file of the checkpoint for reading after comparing size and checksum; a link is
// refused. The caller closes it.
td_status td_manifest_open_file(const char *folder, const td_manifest_file *file, int *out_file);
// Size and checksum of one file of the checkpoint.
td_status td_manifest_verify_file(const char *folder, const td_manifest_file *file);

// Takes a new incarnation.
td_status td_incarnation_take(const char *run_folder, char out[TD_INCARNATION_CHARS]);
// TD_ERR_IO when a newer one was taken; *out_fenced says that it was that.
td_status td_incarnation_require(const char *run_folder, const char *incarnation, int *out_fenced);

// Removes temporary folders and files of killed runs from RUN and RUN/checkpoints. Failures are
// warnings.
void td_checkpoint_clean(const char *run_folder, const char *folder);
td_status td_checkpoint_require_space(const char *folder, uint64_t bytes);

typedef struct td_checkpoint_commit {
    const char *run_folder;
    const char *folder; // RUN/checkpoints
    const char *temporary;
    const char *incarnation;
    int64_t keep_last;
} td_checkpoint_commit;

// Writes the manifest into the temporary folder, renames the folder, updates `latest`, purges.
// After the rename only the flush of the parent can still fail; `latest` and the purge give
// warnings.
td_status td_checkpoint_publish(const td_checkpoint_commit *commit, const td_manifest *manifest,
                                int *out_fenced);

// Steps of the folders named step-N, newest first; the caller frees. A missing folder has none.
// TD_ERR_DATA when the folder is a link.
td_status td_checkpoint_list(const char *folder, int64_t **out_steps, size_t *out_count);
// TD_ERR_DATA when the folder of a checkpoint that was found in a run is a link to somewhere else.
td_status td_checkpoint_require_own(const char *folder);
void td_checkpoint_step_name(char out[TD_CHECKPOINT_NAME_CHARS], int64_t step);

#endif
