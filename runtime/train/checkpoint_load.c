// Finding the newest whole checkpoint, and reading it on any number of ranks.
#include <stdlib.h>
#include <string.h>

#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/core/tensor.h"
#include "runtime/train/checkpoint_internal.h"

enum { MAX_MANIFEST_BYTES = 256 << 20 };

static td_status no_memory(const char *where) {
    return td_fail(TD_ERR_MEMORY, "%s: no memory to read it", where);
}

// Rank 0's text of manifest.json on every rank, which all then read the same way. The caller frees.
static td_status share_manifest(td_comm *comm, const char *path, char **out_text,
                                uint64_t *out_bytes) {
    char *text = NULL;
    size_t bytes = 0;
    uint64_t shared;
    td_status status = TD_OK;
    if (td_comm_rank(comm) == 0)
        status = td_file_read_no_link(path, MAX_MANIFEST_BYTES, &text, &bytes);
    TD_TRY(td_comm_agree(comm, status, "checkpoint manifest"));
    shared = bytes;
    TD_TRY_GOTO(status, td_comm_broadcast(comm, &shared, sizeof shared, 0, "checkpoint manifest"),
                fail);
    if (!text && !(text = malloc((size_t)shared + 1)))
        status = no_memory(path);
    TD_TRY_GOTO(status, td_comm_agree(comm, status, "checkpoint manifest"), fail);
    TD_TRY_GOTO(status, td_comm_broadcast(comm, text, (size_t)shared, 0, "checkpoint manifest"),
                fail);
    *out_text = text;
    *out_bytes = shared;
    return TD_OK;
fail:
    free(text);
    return status;
}

static td_status read_manifest(td_comm *comm, const char *folder, td_manifest *out) {
    char path[TD_PATH_MAX];
    char *text = NULL;
    uint64_t bytes = 0;
    TD_TRY(td_path_join(path, folder, "manifest.json"));
    TD_TRY(share_manifest(comm, path, &text, &bytes));
    td_status status = td_manifest_parse(path, text, (size_t)bytes, out);
    free(text);
    return td_comm_agree(comm, status, "checkpoint manifest");
}

// The ranks share the work of reading every file once.
static td_status verify_files(td_comm *comm, const char *folder, const td_manifest *manifest) {
    td_status status = TD_OK;
    int64_t rank = td_comm_rank(comm), size = td_comm_size(comm);
    for (int64_t i = rank; i < manifest->n_files && status == TD_OK; i += size)
        status = td_manifest_verify_file(folder, &manifest->files[i]);
    return td_comm_agree(comm, status, "checkpoint files");
}

void td_checkpoint_close(td_checkpoint *checkpoint) {
    if (!checkpoint)
        return;
    if (checkpoint->manifest)
        td_manifest_fini(checkpoint->manifest);
    free(checkpoint->manifest);
    free(checkpoint);
}

static td_status create_checkpoint(td_comm *comm, const char *folder, td_checkpoint **out) {
    td_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    td_manifest *manifest = calloc(1, sizeof *manifest);
    td_status status = checkpoint && manifest ? TD_OK : no_memory(folder);
    status = td_comm_agree(comm, status, "checkpoint");
    if (status != TD_OK) {
        free(checkpoint);
        free(manifest);
        return status;
    }
    checkpoint->manifest = manifest;
    memcpy(checkpoint->folder, folder, strlen(folder) + 1);
    *out = checkpoint;
    return TD_OK;
}

// TD_ERR_DATA: not whole. *out_is_other: of another run. That is asked first: a manifest that is
// not ours may name files of any size.
static td_status open_folder(const td_checkpoint_options *options, const char *folder,
                             int *out_is_other, td_checkpoint **out) {
    td_checkpoint *checkpoint = NULL;
    *out_is_other = 0;
    TD_TRY(create_checkpoint(options->comm, folder, &checkpoint));
    td_manifest *manifest = checkpoint->manifest;
    td_status status = read_manifest(options->comm, folder, manifest);
    if (status == TD_OK) {
        status =
            td_comm_agree(options->comm, td_manifest_require_identity(folder, manifest, options),
                          "checkpoint identity");
        *out_is_other = status != TD_OK;
    }
    if (status == TD_OK)
        status = verify_files(options->comm, folder, manifest);
    if (status != TD_OK) {
        td_checkpoint_close(checkpoint);
        return status;
    }
    checkpoint->meta = manifest->meta;
    checkpoint->world_size = manifest->map.size;
    *out = checkpoint;
    return TD_OK;
}

// A folder that was found in the run, not one that was asked for by name.
static td_status open_own_folder(const td_checkpoint_options *options, const char *folder,
                                 int *out_is_other, td_checkpoint **out) {
    td_status status = TD_OK;
    if (td_comm_rank(options->comm) == 0)
        status = td_checkpoint_require_own(folder);
    TD_TRY(td_comm_agree(options->comm, status, "checkpoint folder"));
    return open_folder(options, folder, out_is_other, out);
}

// Rank 0's list on every rank. The caller frees.
static td_status share_steps(const td_checkpoint_options *options, int64_t **out_steps,
                             int64_t *out_count) {
    char folder[TD_PATH_MAX];
    int64_t *steps = NULL;
    size_t found = 0;
    td_status status = td_path_join(folder, options->run_folder, "checkpoints");
    if (status == TD_OK && td_comm_rank(options->comm) == 0)
        status = td_checkpoint_list(folder, &steps, &found);
    int64_t count = (int64_t)found;
    TD_TRY_GOTO(status, td_comm_agree(options->comm, status, "list of checkpoints"), fail);
    TD_TRY_GOTO(status,
                td_comm_broadcast(options->comm, &count, sizeof count, 0, "list of checkpoints"),
                fail);
    if (!steps && !(steps = calloc((size_t)count + 1, sizeof *steps)))
        status = no_memory(folder);
    TD_TRY_GOTO(status, td_comm_agree(options->comm, status, "list of checkpoints"), fail);
    TD_TRY_GOTO(status,
                td_comm_broadcast(options->comm, steps, (size_t)count * sizeof *steps, 0,
                                  "list of checkpoints"),
                fail);
    *out_steps = steps;
    *out_count = count;
    return TD_OK;
fail:
    free(steps);
    return status;
}

static void warn_passed_over(td_comm *comm, int is_last) {
    if (td_comm_rank(comm) == 0)
        td_warn("passing over a damaged checkpoint: %s; %s", td_error_message(),
                is_last ? "there is no older one, the run starts from its beginning"
                        : "trying the one before");
    td_error_clear();
    td_comm_forget_failure(comm); // or a later failure of one rank would pass for agreed on
}

static td_status find_newest(const td_checkpoint_options *options, td_checkpoint **out) {
    int64_t *steps = NULL, count = 0;
    TD_TRY(share_steps(options, &steps, &count));
    td_status status = TD_OK;
    td_checkpoint *found = NULL;
    for (int64_t i = 0; i < count && !found && status == TD_OK; i++) {
        char folder[TD_PATH_MAX];
        int is_other = 0;
        TD_TRY_GOTO(status, td_checkpoint_step_folder(folder, options->run_folder, steps[i]), done);
        status = open_own_folder(options, folder, &is_other, &found);
        if (status == TD_ERR_DATA && !is_other) {
            warn_passed_over(options->comm, i + 1 == count);
            status = TD_OK;
        }
    }
    if (status == TD_OK)
        *out = found;
done:
    free(steps);
    return status;
}

td_status td_checkpoint_find(const td_checkpoint_options *options, const char *choice,
                             td_checkpoint **out) {
    int is_other = 0;
    *out = NULL;
    if (strcmp(choice, "auto") == 0)
        return find_newest(options, out);
    if (strlen(choice) >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "path is longer than %d characters: %.80s...", TD_PATH_MAX - 1,
                       choice);
    return open_folder(options, choice, &is_other, out);
}

typedef struct loader {
    const td_checkpoint *checkpoint;
    const td_checkpoint_options *options;
    td_pager *pager; // or NULL
    int rank;
    int64_t width, n_owned;
    float *params; // (n_owned, width) pages of this rank
    float *page;   // (width)
} loader;

static td_status open_shard(const td_checkpoint *checkpoint, int rank, td_shard_reader **out) {
    const td_manifest *manifest = checkpoint->manifest;
    td_shard expected = {.map = manifest->map,
                         .rank = rank,
                         .step = manifest->meta.step,
                         .state_bytes = manifest->state_bytes};
    return td_shard_open_listed(checkpoint->folder, manifest, &expected, out);
}

// Those of this rank's pages that `old_rank` has written.
static td_status read_from(loader *load, int old_rank) {
    int new_size = load->options->map.size, old_size = load->checkpoint->manifest->map.size;
    td_shard_reader *reader = NULL;
    td_status status = TD_OK;
    for (int64_t i = 0; i < load->n_owned && status == TD_OK; i++) {
        int64_t page = load->rank + i * new_size;
        if (page % old_size != old_rank)
            continue;
        if (!reader)
            status = open_shard(load->checkpoint, old_rank, &reader);
        if (status == TD_OK)
            status =
                td_shard_read_page(reader, page / old_size, load->params + i * load->width,
                                   load->pager ? td_pager_host_state(load->pager, page) : NULL);
    }
    td_shard_close(reader);
    return status;
}

static td_status read_owned(loader *load) {
    load->params = malloc(
        td_mul_bytes(td_mul_bytes((size_t)load->n_owned, (size_t)load->width), sizeof(float)) + 1);
    load->page = calloc((size_t)load->width, sizeof(float));
    if (!load->params || !load->page)
        return no_memory(load->checkpoint->folder);
    for (int old_rank = 0; old_rank < load->checkpoint->manifest->map.size; old_rank++)
        TD_TRY(read_from(load, old_rank));
    return TD_OK;
}

// Every owner hands out its pages.
static td_status spread_params(loader *load, td_stream *stream, float *params) {
    const td_page_map *map = &load->options->map;
    const td_device_table *table = load->options->device->table;
    for (int64_t page = 0; page < map->n_pages; page++) {
        td_page_span span = td_page_map_span(map, page);
        size_t bytes = (size_t)span.count * sizeof *params;
        int owner = td_page_map_owner(map, page);
        if (owner == load->rank)
            memcpy(load->page, load->params + page / map->size * load->width, bytes);
        TD_TRY(td_comm_broadcast(load->options->comm, load->page, bytes, owner,
                                 "checkpoint parameters"));
        TD_TRY(table->copy(stream, params + span.begin, load->page, bytes));
        TD_TRY(table->stream_synchronize(stream));
        td_progress_tick();
    }
    return TD_OK;
}

static td_status load_all(loader *load, td_stream *stream, float *params) {
    TD_TRY(td_comm_agree(load->options->comm, read_owned(load), "checkpoint read"));
    if (load->pager)
        td_pager_invalidate(load->pager);
    return spread_params(load, stream, params);
}

td_status td_checkpoint_load(const td_checkpoint *checkpoint, const td_checkpoint_options *options,
                             float *params, td_pager *pager) {
    const td_device *device = options->device;
    loader load = {.checkpoint = checkpoint,
                   .options = options,
                   .pager = pager,
                   .rank = td_comm_rank(options->comm),
                   .width = td_page_width(&options->map)};
    load.n_owned = td_page_map_owned_count(&options->map, load.rank);
    td_stream *stream = NULL;
    TD_TRY(td_comm_agree(options->comm, device->table->stream_create(device, &stream),
                         "checkpoint read"));
    if (pager) // an unfinished write-back must not overwrite what is read
        td_pager_invalidate(pager);
    td_status status = load_all(&load, stream, params);
    device->table->stream_destroy(stream);
    free(load.params);
    free(load.page);
    return status;
}
