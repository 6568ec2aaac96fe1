// Tensors of files on their way into the base: all threads take chunks of one tensor, and what a
// device with memory of its own receives travels in the type of the file and is quantized there.
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "model/base_fill_internal.h"
#include "runtime/core/progress.h"

// Of a chunk, so that what one thread reads for the fingerprint is in its cache when it quantizes;
// and of a slice, after which mapped pages are let go.
enum { CHUNK_ELEMENTS = 64 << 10, SLICE_ELEMENTS = 16 << 20, ROUNDING_ELEMENTS = 1024 };

typedef struct tensor_stream {
    td_base_filler *filler;
    const td_base_item *item;
    td_tensor view;
    td_dtype travel;       // what values are turned into before they are stored or quantized
    const td_matrix *nf4;  // or NULL
    unsigned char *target; // of what is not NF4
    int adds_one;          // to norms
    int n_threads;
} tensor_stream;

static const unsigned char *source_at(const tensor_stream *stream, int64_t element) {
    return (const unsigned char *)stream->view.data +
           (size_t)element * td_dtype_bytes(stream->view.dtype);
}

static void widen(const tensor_stream *stream, int64_t begin, int64_t count, float *out) {
    td_convert_to_f32(source_at(stream, begin), stream->view.dtype, count, out);
    for (int64_t i = 0; i < count && stream->adds_one; i++)
        out[i] += 1.0f;
}

static void round_values(const tensor_stream *stream, int64_t begin, int64_t count, uint16_t *out) {
    float wide[ROUNDING_ELEMENTS];
    for (int64_t done = 0; done < count; done += ROUNDING_ELEMENTS) {
        int64_t left = count - done, n = left < ROUNDING_ELEMENTS ? left : ROUNDING_ELEMENTS;
        widen(stream, begin + done, n, wide);
        for (int64_t i = 0; i < n; i++)
            out[done + i] = td_f32_to_bf16(wide[i]);
    }
}

static void write_values(const tensor_stream *stream, int64_t begin, int64_t count, void *out) {
    if (stream->view.dtype == stream->travel && !stream->adds_one)
        memcpy(out, source_at(stream, begin), (size_t)count * td_dtype_bytes(stream->travel));
    else if (stream->travel == TD_F32)
        widen(stream, begin, count, out);
    else
        round_values(stream, begin, count, out);
}

static td_status quantize(const tensor_stream *stream, const void *weight, int64_t begin,
                          int64_t count) {
    const td_base_filler *filler = stream->filler;
    const td_matrix *matrix = stream->nf4;
    float *absmax = matrix->absmax ? td_base_writable(matrix->absmax) : filler->absmax;
    td_nf4_quantize_args args = {.n_elements = count,
                                 .weight = weight,
                                 .codes = (uint8_t *)td_base_writable(matrix->data) + begin / 2,
                                 .absmax = absmax + begin / TD_NF4_BLOCK,
                                 .weight_dtype = stream->travel};
    return filler->context.ops->nf4_quantize(&filler->context, &args);
}

// Into host memory that is the base's, or into a buffer on its way to a device.
static td_status store_chunk(const tensor_stream *stream, int64_t begin, int64_t count,
                             void *staged) {
    unsigned char *scratch = (unsigned char *)stream->filler->host +
                             (size_t)omp_get_thread_num() * CHUNK_ELEMENTS * sizeof(float);
    if (staged) {
        write_values(stream, begin, count, staged);
        return TD_OK;
    }
    if (!stream->nf4) {
        write_values(stream, begin, count,
                     stream->target + (size_t)begin * td_dtype_bytes(stream->travel));
        return TD_OK;
    }
    if (stream->travel == TD_BF16)
        return quantize(stream, source_at(stream, begin), begin, count);
    write_values(stream, begin, count, scratch);
    return quantize(stream, scratch, begin, count);
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

static void pass(const tensor_stream *stream, int64_t begin, int64_t count, double *seconds) {
    const td_base_source *source = stream->filler->source;
    size_t bytes = (size_t)count * td_dtype_bytes(stream->view.dtype);
    double start = omp_get_wtime();
    source->pass(source->self, source_at(stream, begin), bytes);
    *seconds += omp_get_wtime() - start;
}

static td_status run_chunk(const tensor_stream *stream, int64_t begin, int64_t count, void *staged,
                           double *fetching, double *storing) {
    const td_base_source *source = stream->filler->source;
    size_t bytes = (size_t)count * td_dtype_bytes(stream->view.dtype);
    double start = omp_get_wtime();
    source->fetch(source->self, source_at(stream, begin), bytes);
    double fetched = omp_get_wtime();
    td_status status = store_chunk(stream, begin, count, staged);
    *fetching += fetched - start;
    *storing += omp_get_wtime() - fetched;
    return status;
}

// Elements [begin, begin + count). The fingerprint wants them in order: with several threads it is
// one more piece of work, which is several times as fast as the others together; alone, it takes
// each chunk before that is stored, while it is in the cache.
static td_status run_chunks(const tensor_stream *stream, int64_t begin, int64_t count,
                            unsigned char *staged) {
    int64_t chunks = (count + CHUNK_ELEMENTS - 1) / CHUNK_ELEMENTS;
    size_t travels = td_dtype_bytes(stream->travel);
    int is_team = stream->n_threads > 1 && chunks > 2;
    double fetching = 0, hashing = 0, storing = 0;
    team_failure failure = {.status = TD_OK};
#pragma omp parallel for schedule(dynamic, 1) num_threads(stream->n_threads)                       \
    reduction(+ : fetching, hashing, storing) if (is_team)
    for (int64_t chunk = -1; chunk < chunks; chunk++) {
        int64_t first = chunk * CHUNK_ELEMENTS, left = count - first;
        int64_t n = left < CHUNK_ELEMENTS ? left : CHUNK_ELEMENTS;
        if (chunk < 0) {
            if (is_team)
                pass(stream, begin, count, &hashing);
            continue;
        }
        if (!is_team)
            pass(stream, begin + first, n, &hashing);
        td_status status =
            run_chunk(stream, begin + first, n, staged ? staged + (size_t)first * travels : NULL,
                      &fetching, &storing);
        if (status != TD_OK)
            keep_failure(&failure, status);
    }
    td_base_times *times = &stream->filler->base->times;
    times->fetch += fetching;
    times->fingerprint += hashing;
    times->store += storing;
    if (failure.status != TD_OK)
        return td_fail(failure.status, "%s", failure.message);
    return TD_OK;
}

static void forget(const tensor_stream *stream, int64_t begin, int64_t count) {
    td_tensor slice = {.data = (void *)(uintptr_t)source_at(stream, begin),
                       .dtype = stream->view.dtype,
                       .n_dims = 1,
                       .shape = {count}};
    stream->filler->source->forget(stream->filler->source->self, &slice);
}

static td_status stream_here(const tensor_stream *stream) {
    for (int64_t begin = 0; begin < stream->item->n_elements; begin += SLICE_ELEMENTS) {
        int64_t left = stream->item->n_elements - begin;
        int64_t count = left < SLICE_ELEMENTS ? left : SLICE_ELEMENTS;
        td_progress_tick();
        TD_TRY(run_chunks(stream, begin, count, NULL));
        forget(stream, begin, count);
    }
    return TD_OK;
}

// One half of the staging buffers: filled while the other one travels.
static td_status send_half(const tensor_stream *stream, int half, int64_t begin, int64_t count) {
    const td_base_filler *filler = stream->filler;
    const td_device_table *device = filler->context.device->table;
    size_t offset = (size_t)half * filler->plan.slice_bytes / 2;
    size_t bytes = (size_t)count * td_dtype_bytes(stream->travel);
    unsigned char *host = (unsigned char *)filler->host + offset;
    unsigned char *slice = (unsigned char *)filler->slice + offset;
    unsigned char *to =
        stream->nf4 ? slice : stream->target + (size_t)begin * td_dtype_bytes(stream->travel);
    TD_TRY(device->event_synchronize(filler->sent[half]));
    TD_TRY(run_chunks(stream, begin, count, host));
    TD_TRY(device->copy(filler->context.stream, to, host, bytes));
    TD_TRY(device->event_record(filler->sent[half], filler->context.stream));
    return stream->nf4 ? quantize(stream, slice, begin, count) : TD_OK;
}

static td_status stream_to_device(const tensor_stream *stream) {
    int64_t step = stream->filler->plan.slice_elements / 2;
    int half = 0;
    for (int64_t begin = 0; begin < stream->item->n_elements; begin += step, half = !half) {
        int64_t left = stream->item->n_elements - begin, count = left < step ? left : step;
        td_progress_tick();
        TD_TRY(send_half(stream, half, begin, count));
        forget(stream, begin, count);
    }
    return TD_OK;
}

// As many as there is scratch memory for.
static int threads_of(const td_base_filler *filler) {
    int64_t room = filler->plan.slice_elements / CHUNK_ELEMENTS, threads = omp_get_max_threads();
    return (int)(threads < room ? threads : room > 1 ? room : 1);
}

td_status td_base_store_tensor(td_base_filler *filler, const td_base_item *item) {
    tensor_stream stream = {.filler = filler,
                            .item = item,
                            .travel = TD_F32,
                            .adds_one = filler->base->config.family->norm_adds_one &&
                                        td_base_item_is_norm(item),
                            .n_threads = threads_of(filler)};
    TD_TRY(filler->source->find(filler->source->self, item, &stream.view));
    if (!td_base_item_is_matrix(item)) {
        stream.target = td_base_writable(*td_base_vector(filler->base, item));
    } else {
        const td_matrix *matrix = td_base_matrix(filler->base, item);
        stream.target = td_base_writable(matrix->data);
        stream.nf4 = matrix->format == TD_MATRIX_NF4 ? matrix : NULL;
        if (matrix->format == TD_MATRIX_BF16 || (stream.nf4 && stream.view.dtype == TD_BF16))
            stream.travel = TD_BF16;
    }
    return filler->context.device->unified ? stream_here(&stream) : stream_to_device(&stream);
}
