// The writer: snapshot, writer thread, and the collective decisions.
#include "runtime/train/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/core/tensor.h"
#include "runtime/train/checkpoint_internal.h"
#include "runtime/train/parallel_copy.h"

enum { MESSAGE_BYTES = 2048 };

// What rank 0 must know of every rank's file.
typedef struct shard_record {
    uint64_t bytes;
    td_hash hash;
} shard_record;

struct td_checkpoint_writer {
    td_checkpoint_options options;
    int rank, size;
    char folder[TD_PATH_MAX]; // RUN/checkpoints
    char incarnation[TD_INCARNATION_CHARS];
    int fenced;

    // The snapshot, pinned host memory
    int64_t width;                // floats of a stored page
    int64_t n_owned;              // pages of this rank
    float *params;                // rank 0: (n_pages, width), else (n_owned, width)
    unsigned char *state;         // (n_owned, state_bytes)
    float *scratch_params;        // (width)
    unsigned char *scratch_state; // (state_bytes)
    td_copy_span *spans;          // (2 n_owned + 1) what is copied into it
    td_stream *stream;

    // The save under way: every rank writes its files, then rank 0 publishes them. While the thread
    // runs, these are its own but for `done` and `cancel`.
    int pending;
    int publishing; // every rank has written
    int thread_started;
    pthread_t thread;
    atomic_int done; // this rank's thread has ended, or there is none
    atomic_int cancel;
    td_manifest manifest; // step, and on rank 0 the adapter's files
    char temporary[TD_PATH_MAX];
    shard_record record;
    shard_record *records; // (size) of all ranks
    td_status status;
    int found_fence; // while publishing
    char message[MESSAGE_BYTES];
};

// Rank 0 keeps every page, for the adapter.
static int64_t snapshot_pages(const td_page_map *map, int rank) {
    return rank == 0 ? map->n_pages : td_page_map_owned_count(map, rank);
}

static size_t page_params_bytes(const td_page_map *map) {
    return td_mul_bytes((size_t)td_page_width(map), sizeof(float));
}

size_t td_checkpoint_plan(const td_page_map *map, size_t state_bytes, int rank) {
    size_t params = td_mul_bytes((size_t)snapshot_pages(map, rank) + 1, page_params_bytes(map));
    size_t state = td_mul_bytes((size_t)td_page_map_owned_count(map, rank) + 1, state_bytes);
    return params > SIZE_MAX - state ? SIZE_MAX : params + state;
}

static td_status allocate(const td_checkpoint_writer *writer, size_t count, size_t item_bytes,
                          void **out) {
    const td_device *device = writer->options.device;
    return device->table->alloc_pinned(device, td_mul_bytes(count, item_bytes),
                                       "the checkpoint snapshot", out);
}

static td_status allocate_snapshot(td_checkpoint_writer *writer) {
    const td_checkpoint_options *options = &writer->options;
    size_t params_bytes = page_params_bytes(&options->map);
    void *memory;
    TD_TRY(allocate(writer, (size_t)snapshot_pages(&options->map, writer->rank), params_bytes,
                    &memory));
    writer->params = memory;
    TD_TRY(allocate(writer, (size_t)writer->n_owned, options->state_bytes, &memory));
    writer->state = memory;
    TD_TRY(allocate(writer, 1, params_bytes, &memory));
    writer->scratch_params = memory;
    TD_TRY(allocate(writer, 1, options->state_bytes, &memory));
    writer->scratch_state = memory;
    writer->spans = calloc(2 * (size_t)writer->n_owned + 1, sizeof *writer->spans);
    writer->records = calloc((size_t)writer->size, sizeof *writer->records);
    if (!writer->spans || !writer->records)
        return td_fail(TD_ERR_MEMORY, "no memory for the lists of a checkpoint's pages and files");
    return options->device->table->stream_create(options->device, &writer->stream);
}

static td_status prepare_folder(td_checkpoint_writer *writer) {
    TD_TRY(td_path_join(writer->folder, writer->options.run_folder, "checkpoints"));
    if (writer->rank != 0)
        return TD_OK;
    TD_TRY(td_checkpoint_require_own(writer->folder));
    TD_TRY(td_folder_make(writer->folder));
    // First the incarnation: after it, no older process can put its files where we clean up.
    TD_TRY(td_incarnation_take(writer->options.run_folder, writer->incarnation));
    td_checkpoint_clean(writer->options.run_folder, writer->folder);
    return TD_OK;
}

static td_status prepare(td_checkpoint_writer *writer) {
    td_status status = TD_OK;
    if (writer->options.map.n_elements < 1)
        status = td_fail(TD_ERR_INTERNAL, "a checkpoint of no parameters");
    if (status == TD_OK)
        status = prepare_folder(writer);
    if (status == TD_OK)
        status = allocate_snapshot(writer);
    TD_TRY(td_comm_agree(writer->options.comm, status, "checkpoint folder"));
    return td_comm_broadcast(writer->options.comm, writer->incarnation, sizeof writer->incarnation,
                             0, "incarnation");
}

td_status td_checkpoint_create(const td_checkpoint_options *options, td_checkpoint_writer **out) {
    td_checkpoint_writer *writer = calloc(1, sizeof *writer);
    td_status status =
        writer ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for the checkpoint writer");
    status = td_comm_agree(options->comm, status, "checkpoint writer");
    if (status != TD_OK) {
        free(writer);
        return status;
    }
    writer->options = *options;
    writer->rank = td_comm_rank(options->comm);
    writer->size = td_comm_size(options->comm);
    writer->width = td_page_width(&options->map);
    writer->n_owned = td_page_map_owned_count(&options->map, writer->rank);
    status = prepare(writer);
    if (status != TD_OK) {
        td_checkpoint_destroy(writer);
        return status;
    }
    *out = writer;
    return TD_OK;
}

static void join_thread(td_checkpoint_writer *writer) {
    if (writer->thread_started)
        pthread_join(writer->thread, NULL);
    writer->thread_started = 0;
}

static void free_pinned(const td_checkpoint_writer *writer, void *memory) {
    const td_device *device = writer->options.device;
    if (memory)
        device->table->free_pinned(device, memory);
}

// A run that fails while a save is under way would leave it on the disk until it is started again.
// Every rank removes its own part: another one's thread may still be writing.
static void remove_uncommitted(const td_checkpoint_writer *writer) {
    char path[TD_PATH_MAX], name[TD_CHECKPOINT_NAME_CHARS];
    int had_error = td_error_message()[0] != '\0';
    if (!writer->pending)
        return;
    td_shard_name(name, writer->rank, writer->size);
    if (writer->rank == 0)
        (void)td_folder_remove_tree(writer->temporary);
    else if (td_path_join(path, writer->temporary, name) == TD_OK)
        (void)unlink(path);
    (void)rmdir(writer->temporary); // the last one can
    if (!had_error)
        td_error_clear();
}

void td_checkpoint_destroy(td_checkpoint_writer *writer) {
    if (!writer)
        return;
    atomic_store(&writer->cancel, 1);
    join_thread(writer);
    remove_uncommitted(writer);
    if (writer->stream) // a snapshot that failed may have copies under way
        (void)writer->options.device->table->stream_synchronize(writer->stream);
    td_manifest_fini(&writer->manifest);
    free_pinned(writer, writer->params);
    free_pinned(writer, writer->state);
    free_pinned(writer, writer->scratch_params);
    free_pinned(writer, writer->scratch_state);
    free(writer->spans);
    free(writer->records);
    if (writer->stream)
        writer->options.device->table->stream_destroy(writer->stream);
    free(writer);
}

int td_checkpoint_stage(const td_checkpoint_writer *writer) {
    return writer->pending + writer->publishing;
}

int td_checkpoint_is_fenced(const td_checkpoint_writer *writer) {
    return writer->fenced;
}

td_status td_checkpoint_require_newest(const td_checkpoint_writer *writer) {
    int is_stale = 0; // not `fenced`, which all ranks know alike
    td_status status =
        td_incarnation_require(writer->options.run_folder, writer->incarnation, &is_stale);
    if (is_stale)
        return status;
    td_error_clear(); // the file cannot be read, which says nothing of another process
    return TD_OK;
}

// Page `index` of this rank in the snapshot.
static const float *snapshot_params(const void *context, int64_t index) {
    const td_checkpoint_writer *writer = context;
    int64_t row = writer->rank == 0 ? index * writer->size : index;
    return writer->params + row * writer->width;
}

static const unsigned char *snapshot_state(const void *context, int64_t index) {
    const td_checkpoint_writer *writer = context;
    return writer->state + (size_t)index * writer->options.state_bytes;
}

static td_status measure_file(const char *folder, const char *name, shard_record *out) {
    char path[TD_PATH_MAX];
    TD_TRY(td_path_join(path, folder, name));
    TD_TRY(td_file_size(path, &out->bytes));
    return td_hash_file(path, &out->hash);
}

static td_status write_shard(td_checkpoint_writer *writer) {
    char path[TD_PATH_MAX], name[TD_CHECKPOINT_NAME_CHARS];
    td_shard shard = {.map = writer->options.map,
                      .rank = writer->rank,
                      .step = writer->manifest.meta.step,
                      .state_bytes = writer->options.state_bytes};
    td_shard_memory memory = {.params = snapshot_params,
                              .state = snapshot_state,
                              .context = writer,
                              .cancel = &writer->cancel,
                              .scratch_params = writer->scratch_params,
                              .scratch_state = writer->scratch_state};
    td_shard_name(name, writer->rank, writer->size);
    TD_TRY(td_path_join(path, writer->temporary, name));
    TD_TRY(td_shard_write(path, &shard, &memory));
    return measure_file(writer->temporary, name, &writer->record);
}

// Flushes and lists one of the files that write_adapter() has left.
static td_status take_adapter_file(td_checkpoint_writer *writer, const char *name) {
    char path[TD_PATH_MAX];
    shard_record record = {0};
    if (strlen(name) >= TD_CHECKPOINT_NAME_CHARS)
        return td_fail(TD_ERR_INTERNAL, "the adapter's file name %.80s... is too long", name);
    TD_TRY(td_path_join(path, writer->temporary, name));
    TD_TRY(td_file_sync(path));
    TD_TRY(measure_file(writer->temporary, name, &record));
    return td_manifest_add_file(&writer->manifest, name, record.bytes, record.hash);
}

// The adapter goes into a folder of its own first, so that its files are known from those of other
// ranks.
static td_status collect_adapter(td_checkpoint_writer *writer, const char *folder) {
    char **names = NULL;
    size_t count = 0;
    TD_TRY(td_folder_list(folder, &names, &count));
    td_status status = TD_OK;
    for (size_t i = 0; i < count && status == TD_OK; i++) {
        char from[TD_PATH_MAX], to[TD_PATH_MAX];
        TD_TRY_GOTO(status, td_path_join(from, folder, names[i]), done);
        TD_TRY_GOTO(status, td_path_join(to, writer->temporary, names[i]), done);
        if (rename(from, to) != 0)
            status = td_fail(TD_ERR_IO, "%s: cannot rename to %s: %s", from, to, strerror(errno));
        else
            status = take_adapter_file(writer, names[i]);
        td_progress_tick();
    }
done:
    td_names_free(names, count);
    return status;
}

static td_status write_adapter(td_checkpoint_writer *writer) {
    char folder[TD_PATH_MAX];
    const td_checkpoint_options *options = &writer->options;
    if (!options->write_adapter)
        return TD_OK;
    TD_TRY(td_path_join(folder, writer->temporary, ".adapter"));
    TD_TRY(td_folder_make(folder));
    TD_TRY(options->write_adapter(options->write_adapter_context, folder, writer->params));
    TD_TRY(collect_adapter(writer, folder));
    return td_folder_remove_tree(folder);
}

static td_status write_files(td_checkpoint_writer *writer) {
    TD_TRY(td_folder_make(writer->temporary));
    if (writer->n_owned > 0)
        TD_TRY(write_shard(writer));
    return writer->rank == 0 ? write_adapter(writer) : TD_OK;
}

// The end of a thread's work.
static void set_done(td_checkpoint_writer *writer, td_status status) {
    writer->status = status;
    if (status != TD_OK)
        snprintf(writer->message, sizeof writer->message, "%s", td_error_message());
    atomic_store(&writer->done, 1);
}

static void *write_main(void *argument) {
    td_checkpoint_writer *writer = argument;
    set_done(writer, write_files(writer));
    return NULL;
}

// Signals are for the training thread. A thread that does not start is a failure of this rank's,
// and shows in the commit.
static void start_thread(td_checkpoint_writer *writer, void *(*thread_main)(void *)) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&writer->thread, NULL, thread_main, writer);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    writer->thread_started = error == 0;
    if (error == 0)
        return; // from here on the result is the thread's to write
    set_done(writer,
             td_fail(TD_ERR_MEMORY, "cannot start the checkpoint thread: %s", strerror(error)));
    td_error_clear();
}

// What the thread has come to on this rank, after its end.
static td_status local_result(td_checkpoint_writer *writer) {
    join_thread(writer);
    return writer->status == TD_OK ? TD_OK : td_fail(writer->status, "%s", writer->message);
}

static td_status list_shards(td_checkpoint_writer *writer) {
    const td_page_map *map = &writer->options.map;
    for (int rank = 0; rank < writer->size; rank++) {
        char name[TD_CHECKPOINT_NAME_CHARS];
        td_shard_name(name, rank, writer->size);
        if (td_page_map_owned_count(map, rank) > 0)
            TD_TRY(td_manifest_add_file(&writer->manifest, name, writer->records[rank].bytes,
                                        writer->records[rank].hash));
    }
    return TD_OK;
}

// Rank 0, in the thread: flushes wait for the disk, and removing an old checkpoint takes as long as
// its pages in memory ask for.
static td_status publish(td_checkpoint_writer *writer) {
    td_checkpoint_commit commit = {.run_folder = writer->options.run_folder,
                                   .folder = writer->folder,
                                   .temporary = writer->temporary,
                                   .incarnation = writer->incarnation,
                                   .keep_last = writer->options.keep_last};
    TD_TRY(list_shards(writer));
    return td_checkpoint_publish(&commit, &writer->manifest, &writer->found_fence);
}

static void *publish_main(void *argument) {
    td_checkpoint_writer *writer = argument;
    set_done(writer, publish(writer));
    return NULL;
}

// A newer incarnation removes our files, so that anything may have failed: then that is the reason
// to give.
static td_status look_for_fence(td_checkpoint_writer *writer) {
    if (writer->rank != 0)
        return TD_OK;
    return td_incarnation_require(writer->options.run_folder, writer->incarnation, &writer->fenced);
}

// Collective. Leaves nothing of a failed save, and the message on every rank.
static td_status abandon(td_checkpoint_writer *writer, td_status status) {
    td_comm *comm = writer->options.comm;
    char message[MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", td_error_message());
    td_error_clear();
    td_status fence = td_comm_agree(comm, look_for_fence(writer), "checkpoint fence");
    TD_TRY(td_comm_broadcast(comm, &writer->fenced, sizeof writer->fenced, 0, "checkpoint fence"));
    if (writer->fenced)
        return fence;
    if (writer->rank == 0)
        (void)td_folder_remove_tree(writer->temporary);
    td_error_clear();
    td_comm_set_agreed(comm); // it was, before we looked for a fence
    return td_fail(status, "%s", message);
}

// The save is over; only what it has come to is left to tell.
static td_status end_save(td_checkpoint_writer *writer, td_status status) {
    writer->pending = 0;
    writer->publishing = 0;
    td_manifest_fini(&writer->manifest);
    return status == TD_OK ? TD_OK : abandon(writer, status);
}

// Collective. Every rank's thread has written its files, or is waited for.
static td_status start_publishing(td_checkpoint_writer *writer) {
    td_status status =
        td_comm_agree(writer->options.comm, local_result(writer), "checkpoint write");
    if (status == TD_OK)
        status = td_comm_allgather(writer->options.comm, &writer->record, writer->records,
                                   sizeof writer->record, "checkpoint files");
    if (status != TD_OK)
        return end_save(writer, status);
    writer->publishing = 1;
    if (writer->rank != 0)
        return TD_OK;
    atomic_store(&writer->done, 0);
    start_thread(writer, publish_main);
    return TD_OK;
}

// Collective. Rank 0 has published, or is waited for.
static td_status commit(td_checkpoint_writer *writer, int64_t *out_committed) {
    td_status status = local_result(writer);
    writer->fenced |= writer->found_fence;
    status = td_comm_agree(writer->options.comm, status, "checkpoint commit");
    int64_t step = writer->manifest.meta.step;
    TD_TRY(end_save(writer, status));
    if (out_committed)
        *out_committed = step;
    return TD_OK;
}

td_status td_checkpoint_poll(td_checkpoint_writer *writer, int64_t *out_committed) {
    if (out_committed)
        *out_committed = -1;
    if (!writer->pending)
        return TD_OK;
    int64_t done = atomic_load(&writer->done);
    TD_TRY(td_comm_allreduce_i64(writer->options.comm, &done, 1, "checkpoint poll"));
    if (done != writer->size)
        return TD_OK;
    return writer->publishing ? commit(writer, out_committed) : start_publishing(writer);
}

td_status td_checkpoint_finish(td_checkpoint_writer *writer, int64_t *out_committed) {
    if (out_committed)
        *out_committed = -1;
    if (writer->pending && !writer->publishing)
        TD_TRY(start_publishing(writer));
    return writer->pending ? commit(writer, out_committed) : TD_OK;
}

static uint64_t total_bytes(const td_checkpoint_options *options) {
    size_t page = page_params_bytes(&options->map);
    uint64_t pages = td_mul_bytes((size_t)options->map.n_pages, page + options->state_bytes);
    uint64_t adapter = options->write_adapter ? (uint64_t)options->map.n_elements * 4 : 0;
    return pages + adapter;
}

// Rank 0 looks before anybody writes.
static td_status begin(td_checkpoint_writer *writer) {
    if (writer->rank != 0)
        return TD_OK;
    TD_TRY(
        td_incarnation_require(writer->options.run_folder, writer->incarnation, &writer->fenced));
    TD_TRY(td_checkpoint_require_space(writer->folder, total_bytes(&writer->options)));
    return td_folder_make(writer->temporary);
}

// Parameters that this rank keeps; returns how many spans.
static int64_t list_params(const td_checkpoint_writer *writer, const float *params) {
    const td_page_map *map = &writer->options.map;
    if (writer->rank == 0) {
        size_t bytes = (size_t)map->n_elements * sizeof *params;
        writer->spans[0] = (td_copy_span){writer->params, params, bytes};
        return 1;
    }
    for (int64_t i = 0; i < writer->n_owned; i++) {
        td_page_span span = td_page_map_span(map, writer->rank + i * writer->size);
        writer->spans[i] = (td_copy_span){writer->params + i * writer->width, params + span.begin,
                                          (size_t)span.count * sizeof *params};
    }
    return writer->n_owned;
}

static int64_t list_state(const td_checkpoint_writer *writer, td_pager *pager, int64_t count) {
    size_t bytes = writer->options.state_bytes;
    for (int64_t i = 0; i < writer->n_owned; i++)
        writer->spans[count++] =
            (td_copy_span){writer->state + (size_t)i * bytes,
                           td_pager_host_state(pager, writer->rank + i * writer->size), bytes};
    return count;
}

// Training waits for this. Optimizer state is in host memory on any device; parameters come from a
// GPU while it is copied.
static td_status take_snapshot(td_checkpoint_writer *writer, const float *params, td_pager *pager) {
    const td_device *device = writer->options.device;
    int64_t count = list_params(writer, params), first = device->unified ? 0 : count;
    for (int64_t i = 0; i < first; i++)
        TD_TRY(device->table->copy(writer->stream, writer->spans[i].to, writer->spans[i].from,
                                   writer->spans[i].bytes));
    TD_TRY(td_pager_flush(pager));
    count = list_state(writer, pager, count);
    td_copy_parallel(writer->spans + first, count - first);
    return device->table->stream_synchronize(writer->stream);
}

static td_status fill_manifest(td_checkpoint_writer *writer, const td_checkpoint_meta *meta) {
    td_manifest *manifest = &writer->manifest;
    *manifest = (td_manifest){.meta = *meta,
                              .identity = writer->options.identity,
                              .map = writer->options.map,
                              .state_bytes = writer->options.state_bytes};
    snprintf(manifest->incarnation, sizeof manifest->incarnation, "%s", writer->incarnation);
    if (writer->rank != 0 || !writer->options.config)
        return TD_OK;
    manifest->config = cJSON_Duplicate(writer->options.config, 1);
    return manifest->config ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for a checkpoint manifest");
}

static td_status name_temporary(td_checkpoint_writer *writer, int64_t step) {
    char name[TD_CHECKPOINT_NAME_CHARS], temporary[2 * TD_CHECKPOINT_NAME_CHARS];
    td_checkpoint_step_name(name, step);
    snprintf(temporary, sizeof temporary, ".tmp-%s-%s", name, writer->incarnation);
    return td_path_join(writer->temporary, writer->folder, temporary);
}

// A failure from here on is this rank's part of the result and shows in the commit.
static void start(td_checkpoint_writer *writer, const float *params, td_pager *pager) {
    writer->record = (shard_record){0};
    writer->found_fence = 0;
    atomic_store(&writer->cancel, 0);
    atomic_store(&writer->done, 0);
    writer->pending = 1;
    td_status status = take_snapshot(writer, params, pager);
    if (status == TD_OK) {
        start_thread(writer, write_main);
        return;
    }
    set_done(writer, status);
    td_error_clear();
}

// What can be otherwise next time. After anything else there is no next time.
static int is_passing(const td_checkpoint_writer *writer, td_status status) {
    return !writer->fenced &&
           (status == TD_ERR_IO || status == TD_ERR_DATA || status == TD_ERR_MEMORY);
}

// A failure of the save before does not stand in the way of this one.
static td_status finish_earlier(td_checkpoint_writer *writer) {
    int64_t step = writer->manifest.meta.step;
    td_status status = td_checkpoint_finish(writer, NULL);
    if (status == TD_OK || !is_passing(writer, status))
        return status;
    if (writer->rank == 0)
        td_warn("the checkpoint of step %lld was not written: %s", (long long)step,
                td_error_message());
    td_error_clear();
    td_comm_forget_failure(writer->options.comm);
    return TD_OK;
}

td_status td_checkpoint_save(td_checkpoint_writer *writer, const td_checkpoint_meta *meta,
                             const float *params, td_pager *pager) {
    TD_TRY(finish_earlier(writer));
    td_status status = name_temporary(writer, meta->step);
    if (status == TD_OK)
        status = fill_manifest(writer, meta);
    if (status == TD_OK)
        status = begin(writer);
    status = td_comm_agree(writer->options.comm, status, "checkpoint start");
    if (status != TD_OK) {
        td_manifest_fini(&writer->manifest);
        return abandon(writer, status);
    }
    start(writer, params, pager);
    return TD_OK;
}
