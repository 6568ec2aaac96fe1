// Arrays of files on their way into the base. Threads take chunks of all arrays of a group from one
// queue and meet at its end only: a chunk is brought in, hashed for the fingerprint and quantized
// while it is in the cache of the thread. What a device with memory of its own receives travels in
// the type of the file and is quantized there.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/base_fill_internal.h"
#include "runtime/core/progress.h"

enum {
    CHUNK_ELEMENTS = TD_BASE_CHUNK_ELEMENTS,
    NEST_CHUNKS = 8,    // nesting the scales of so many takes no longer than quantizing one
    SLICE_CHUNKS = 256, // after which mapped pages are let go
    ROUNDING_ELEMENTS = 1024,
};

// Elements [begin, begin + count) of an array.
typedef struct span {
    td_base_stream *stream;
    int64_t begin, count;
    int64_t first_chunk;   // in the queue
    unsigned char *staged; // buffer on the way to a device; NULL: to where the base has it
} span;

typedef struct queue {
    const td_base_filler *filler;
    const span *spans;
    int n_spans;
    int64_t n_chunks;
} queue;

// Seconds of one thread.
enum { FETCHING, HASHING, STORING, NESTING, TIMES };

static int64_t chunks_of(int64_t elements) {
    return (elements + CHUNK_ELEMENTS - 1) / CHUNK_ELEMENTS;
}

static const unsigned char *source_at(const td_base_stream *stream, int64_t element) {
    return (const unsigned char *)stream->view.data +
           (size_t)element * td_dtype_bytes(stream->view.dtype);
}

static void widen(const td_base_stream *stream, int64_t begin, int64_t count, float *out) {
    td_convert_to_f32(source_at(stream, begin), stream->view.dtype, count, out);
    for (int64_t i = 0; i < count && stream->adds_one; i++)
        out[i] += 1.0f;
}

static void round_values(const td_base_stream *stream, int64_t begin, int64_t count,
                         uint16_t *out) {
    float wide[ROUNDING_ELEMENTS];
    for (int64_t done = 0; done < count; done += ROUNDING_ELEMENTS) {
        int64_t left = count - done, n = left < ROUNDING_ELEMENTS ? left : ROUNDING_ELEMENTS;
        widen(stream, begin + done, n, wide);
        for (int64_t i = 0; i < n; i++)
            out[done + i] = td_f32_to_bf16(wide[i]);
    }
}

static void write_values(const td_base_stream *stream, int64_t begin, int64_t count, void *out) {
    if (stream->view.dtype == stream->travel && !stream->adds_one)
        memcpy(out, source_at(stream, begin), (size_t)count * td_dtype_bytes(stream->travel));
    else if (stream->travel == TD_F32)
        widen(stream, begin, count, out);
    else
        round_values(stream, begin, count, out);
}

static td_status quantize(const td_base_filler *filler, const td_base_stream *stream,
                          const void *weight, int64_t begin, int64_t count) {
    td_nf4_quantize_args args = {.n_elements = count,
                                 .weight = weight,
                                 .codes = stream->target + begin / 2,
                                 .absmax = stream->absmax + begin / TD_NF4_BLOCK,
                                 .weight_dtype = stream->travel};
    return filler->context.ops->nf4_quantize(&filler->context, &args);
}

static td_status store_chunk(const td_base_filler *filler, const td_base_stream *stream,
                             int64_t begin, int64_t count, void *staged) {
    unsigned char *scratch = (unsigned char *)filler->host +
                             (size_t)omp_get_thread_num() * CHUNK_ELEMENTS * sizeof(float);
    if (staged) {
        write_values(stream, begin, count, staged);
        return TD_OK;
    }
    if (!stream->absmax) {
        write_values(stream, begin, count,
                     stream->target + (size_t)begin * td_dtype_bytes(stream->travel));
        return TD_OK;
    }
    if (stream->travel == TD_BF16)
        return quantize(filler, stream, source_at(stream, begin), begin, count);
    write_values(stream, begin, count, scratch);
    return quantize(filler, stream, scratch, begin, count);
}

static void forget(const td_base_filler *filler, const td_base_stream *stream, int64_t begin,
                   int64_t count) {
    td_tensor slice = {.data = (void *)(uintptr_t)source_at(stream, begin),
                       .dtype = stream->view.dtype,
                       .n_dims = 1,
                       .shape = {count}};
    filler->source->forget(filler->source->self, &slice);
}

static td_status nest(const td_base_filler *filler, const td_base_stream *stream) {
    const td_matrix *matrix = stream->nested;
    td_absmax_quantize_args args = {.n_blocks = td_nf4_block_count(stream->n_elements),
                                    .absmax = stream->absmax,
                                    .codes = td_base_writable(matrix->absmax_codes),
                                    .nested_absmax = td_base_writable(matrix->nested_absmax),
                                    .offset = stream->offset};
    return filler->context.ops->absmax_quantize(&filler->context, &args);
}

static td_status timed_nest(const td_base_filler *filler, td_base_stream *stream, double *seconds) {
    double start = omp_get_wtime();
    stream->is_nested = 1;
    td_status status = nest(filler, stream);
    *seconds += omp_get_wtime() - start;
    return status;
}

// By one thread while the others have chunks to take. What comes too late for that is left to all
// of them together.
static int can_nest(const queue *all, const td_base_stream *stream, int64_t chunk) {
    int64_t costs = chunks_of(stream->n_elements) / NEST_CHUNKS;
    return stream->nested && all->n_chunks - chunk >= costs * omp_get_num_threads();
}

static td_status nest_late(const td_base_filler *filler, td_base_group *group) {
    for (int i = 0; i < group->n_streams; i++) {
        td_base_stream *stream = &group->streams[i];
        if (stream->nested && !stream->is_nested)
            TD_TRY(timed_nest(filler, stream, &filler->base->times.nest));
    }
    return TD_OK;
}

// On the host. Other threads may still be reading chunks of the slice that is let go: their pages
// come back, and go with the rest when all is done.
static td_status end_chunk(const queue *all, td_base_stream *stream, int64_t chunk, int64_t end,
                           double *times) {
    int64_t slice = (int64_t)SLICE_CHUNKS * CHUNK_ELEMENTS, left;
    if (end % slice == 0)
        forget(all->filler, stream, end - slice, slice);
#pragma omp atomic capture seq_cst
    left = --stream->chunks_left;
    if (left > 0)
        return TD_OK;
    forget(all->filler, stream, 0, stream->n_elements);
    return can_nest(all, stream, chunk) ? timed_nest(all->filler, stream, &times[NESTING]) : TD_OK;
}

static td_status run_chunk(const queue *all, const span *piece, int64_t chunk, double *times) {
    const td_base_filler *filler = all->filler;
    td_base_stream *stream = piece->stream;
    int64_t first = (chunk - piece->first_chunk) * CHUNK_ELEMENTS, left = piece->count - first;
    int64_t begin = piece->begin + first, count = left < CHUNK_ELEMENTS ? left : CHUNK_ELEMENTS;
    const unsigned char *source = source_at(stream, begin);
    size_t bytes = (size_t)count * td_dtype_bytes(stream->view.dtype);
    void *staged =
        piece->staged ? piece->staged + (size_t)first * td_dtype_bytes(stream->travel) : NULL;
    double start = omp_get_wtime();
    filler->source->fetch(filler->source->self, source, bytes);
    double fetched = omp_get_wtime();
    stream->hashes[begin / CHUNK_ELEMENTS] = td_hash_bytes(source, bytes);
    double hashed = omp_get_wtime();
    TD_TRY(store_chunk(filler, stream, begin, count, staged));
    td_progress_tick();
    times[FETCHING] += fetched - start;
    times[HASHING] += hashed - fetched;
    times[STORING] += omp_get_wtime() - hashed;
    return staged ? TD_OK : end_chunk(all, stream, chunk, begin + count, times);
}

static const span *find_span(const queue *all, int64_t chunk) {
    int low = 0, high = all->n_spans; // the last one that begins at or before it is in [low, high)
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (all->spans[middle].first_chunk <= chunk)
            low = middle;
        else
            high = middle;
    }
    return &all->spans[low];
}

// What went wrong in a team, for the thread that waits for it: messages belong to threads.
typedef struct team_failure {
    td_status status;
    char message[512];
} team_failure;

static void keep_failure(team_failure *first, td_status status) {
#pragma omp critical(td_base_stream)
    if (first->status == TD_OK) {
        first->status = status;
        snprintf(first->message, sizeof first->message, "%s", td_error_message());
    }
    if (omp_get_thread_num() != 0)
        td_error_clear();
}

// As many as there is scratch memory for.
static int threads_of(const td_base_filler *filler) {
    int64_t room = filler->plan.slice_elements / CHUNK_ELEMENTS, threads = omp_get_max_threads();
    return (int)(threads < room ? threads : room);
}

static td_status run_queue(const queue *all) {
    double times[TIMES] = {0};
    team_failure failure = {.status = TD_OK};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_of(all->filler))                 \
    reduction(+ : times[:TIMES]) if (all->n_chunks > 2)
    for (int64_t chunk = 0; chunk < all->n_chunks; chunk++) {
        td_status status = run_chunk(all, find_span(all, chunk), chunk, times);
        if (status != TD_OK)
            keep_failure(&failure, status);
    }
    td_base_times *total = &all->filler->base->times;
    total->fetch += times[FETCHING];
    total->fingerprint += times[HASHING];
    total->store += times[STORING];
    total->nest += times[NESTING];
    if (failure.status != TD_OK)
        return td_fail(failure.status, "%s", failure.message);
    return TD_OK;
}

// Small ones last, so that nobody waits long for the last one.
static int by_size(const void *a, const void *b) {
    const span *left = a, *right = b;
    if (left->count != right->count)
        return left->count < right->count ? 1 : -1;
    return left->stream < right->stream ? -1 : left->stream > right->stream;
}

static td_status store_here(const td_base_filler *filler, td_base_group *group) {
    span spans[TD_BASE_GROUP_STREAMS];
    queue all = {.filler = filler, .spans = spans};
    for (int i = 0; i < group->n_streams; i++)
        if (group->streams[i].n_elements > 0)
            spans[all.n_spans++] =
                (span){.stream = &group->streams[i], .count = group->streams[i].n_elements};
    qsort(spans, (size_t)all.n_spans, sizeof *spans, by_size);
    for (int i = 0; i < all.n_spans; i++) {
        spans[i].first_chunk = all.n_chunks;
        all.n_chunks += chunks_of(spans[i].count);
    }
    TD_TRY(run_queue(&all));
    return nest_late(filler, group);
}

// One half of the staging buffers: filled while the other one travels.
static td_status send_half(const td_base_filler *filler, td_base_stream *stream, int half,
                           int64_t begin, int64_t count) {
    const td_device_table *device = filler->context.device->table;
    size_t offset = (size_t)half * filler->plan.slice_bytes / 2;
    size_t bytes = (size_t)count * td_dtype_bytes(stream->travel);
    unsigned char *host = (unsigned char *)filler->host + offset;
    unsigned char *slice = (unsigned char *)filler->slice + offset;
    unsigned char *to =
        stream->absmax ? slice : stream->target + (size_t)begin * td_dtype_bytes(stream->travel);
    span piece = {.stream = stream, .begin = begin, .count = count, .staged = host};
    queue all = {.filler = filler, .spans = &piece, .n_spans = 1, .n_chunks = chunks_of(count)};
    TD_TRY(device->event_synchronize(filler->sent[half]));
    TD_TRY(run_queue(&all));
    TD_TRY(device->copy(filler->context.stream, to, host, bytes));
    TD_TRY(device->event_record(filler->sent[half], filler->context.stream));
    return stream->absmax ? quantize(filler, stream, slice, begin, count) : TD_OK;
}

static td_status send_stream(td_base_filler *filler, td_base_stream *stream) {
    int64_t step = filler->plan.slice_elements / 2;
    for (int64_t begin = 0; begin < stream->n_elements; begin += step) {
        int64_t left = stream->n_elements - begin, count = left < step ? left : step;
        TD_TRY(send_half(filler, stream, filler->half, begin, count));
        forget(filler, stream, begin, count);
        filler->half = !filler->half;
    }
    return stream->nested ? nest(filler, stream) : TD_OK;
}

static td_status send(td_base_filler *filler, td_base_group *group) {
    for (int i = 0; i < group->n_streams; i++)
        TD_TRY(send_stream(filler, &group->streams[i]));
    return TD_OK;
}

td_status td_base_store_group(td_base_filler *filler, td_base_group *group) {
    int is_here = filler->context.device->unified;
    TD_TRY(is_here ? store_here(filler, group) : send(filler, group));
    const td_base_source *source = filler->source;
    for (int i = 0; i < group->n_streams; i++)
        source->pass(source->self, group->streams[i].item, &group->streams[i].view,
                     group->streams[i].hashes, group->streams[i].n_hashes);
    return TD_OK;
}

static td_base_stream *add(td_base_group *group, const td_base_item *item, const td_tensor *view) {
    td_base_stream *stream = &group->streams[group->n_streams++];
    *stream = (td_base_stream){.item = item, .view = *view, .travel = view->dtype};
    (void)td_tensor_elements(view, &stream->n_elements); // it was when the file was opened
    stream->chunks_left = stream->n_hashes = chunks_of(stream->n_elements);
    stream->hashes = group->hashes + group->n_hashes;
    group->n_hashes += stream->n_hashes;
    return stream;
}

static float *take_offset(td_base_filler *filler) {
    return &filler->offsets[filler->n_offsets++];
}

// Absmax that will be quantized are kept for the whole group.
static void add_quantized(td_base_filler *filler, td_base_group *group, td_base_stream *stream,
                          const td_matrix *matrix) {
    stream->absmax = td_base_writable(matrix->absmax);
    if (stream->absmax)
        return;
    stream->absmax = filler->absmax + group->n_blocks;
    group->n_blocks += td_nf4_block_count(stream->n_elements);
    stream->nested = matrix;
    stream->offset = take_offset(filler);
}

// What a folder holds of a nested matrix beside its arrays.
static td_hash hash_rest(const td_nf4_stored *stored) {
    float values[257]; // the map and the offset
    memcpy(values, stored->nested_map, sizeof stored->nested_map);
    values[256] = stored->nested_offset;
    return td_hash_bytes(values, sizeof values);
}

// Arrays of codes and absmax as they are in the folder.
static td_status add_stored(td_base_filler *filler, td_base_group *group,
                            const td_base_item *item) {
    const td_base_source *source = filler->source;
    const td_matrix *matrix = td_base_matrix(filler->base, item);
    td_nf4_stored stored;
    TD_TRY(source->find_nf4(source->self, item, &stored));
    add(group, item, &stored.codes)->target = td_base_writable(matrix->data);
    const void *absmax = stored.is_nested ? (const void *)matrix->absmax_codes : matrix->absmax;
    add(group, item, &stored.absmax)->target = td_base_writable(absmax);
    if (!stored.is_nested)
        return TD_OK;
    td_base_stream *nested = add(group, item, &stored.nested_absmax);
    nested->target = td_base_writable(matrix->nested_absmax);
    nested->hashes[nested->n_hashes++] = hash_rest(&stored);
    group->n_hashes++;
    *take_offset(filler) = stored.nested_offset;
    return td_base_copy_now(filler, td_base_writable(matrix->nested_map), stored.nested_map,
                            sizeof stored.nested_map);
}

td_status td_base_add_streams(td_base_filler *filler, td_base_group *group,
                              const td_base_item *item) {
    const td_base_source *source = filler->source;
    td_tensor view;
    if (source->find_nf4 && td_base_item_is_stored_nf4(&filler->base->config, item))
        return add_stored(filler, group, item);
    TD_TRY(source->find(source->self, item, &view));
    td_base_stream *stream = add(group, item, &view);
    stream->travel = TD_F32;
    if (!td_base_item_is_matrix(item)) {
        stream->target = td_base_writable(*td_base_vector(filler->base, item));
        stream->adds_one = filler->base->config.family->norm_adds_one && td_base_item_is_norm(item);
        return TD_OK;
    }
    const td_matrix *matrix = td_base_matrix(filler->base, item);
    int is_nf4 = matrix->format == TD_MATRIX_NF4;
    stream->target = td_base_writable(matrix->data);
    if (is_nf4)
        add_quantized(filler, group, stream, matrix);
    if (matrix->format == TD_MATRIX_BF16 || (is_nf4 && view.dtype == TD_BF16))
        stream->travel = TD_BF16;
    return TD_OK;
}
