#define _GNU_SOURCE
#include "model/base_image.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/log.h"
#include "runtime/core/progress.h"

enum {
    VERSION = 2, // of this file's layout, the fingerprint, and how weights are quantized
    PAGE_BYTES = 4096,
    CHUNK_BYTES = 1 << 20, // that one checksum covers
    NAME_CHARS = 48,       // of the model folder's name in the image's
};
static const char magic[8] = "tdimage";
static const size_t step_bytes = (size_t)8 << 20; // two of which are in the plan as a slice

// Behind it: the nested offsets (n_offsets) fp32, the checksums of the chunks (n_chunks), zeros up
// to a page, and the arena's bytes to the end of the file.
typedef struct image_header {
    char magic[8];
    uint32_t version, byte_order;
    td_hash key, fingerprint;
    td_hash placement; // where the arena has what
    td_hash tables;    // checksum of offsets and chunks
    uint64_t arena_bytes, n_offsets, n_chunks;
    td_hash self; // checksum of all above
} image_header;

enum { BYTE_ORDER_MARK = 0x01020304 };

// The part in front of the arena's bytes, in memory.
typedef struct image_front {
    image_header header;
    float *offsets;  // (n_offsets)
    td_hash *chunks; // (n_chunks)
    size_t data_offset;
} image_front;

static void add_number(td_hasher *hasher, uint64_t number) {
    td_hasher_add(hasher, &number, sizeof number);
}

static void add_settings(td_hasher *hasher, const td_base_options *options, td_dtype matrix_dtype) {
    add_number(hasher, VERSION);
    add_number(hasher, (uint64_t)(options->quantize != 0));
    add_number(hasher, (uint64_t)(options->double_quantize != 0));
    add_number(hasher, (uint64_t)options->stored);
    add_number(hasher, (uint64_t)options->compute);
    add_number(hasher, (uint64_t)matrix_dtype);
}

// "FOLDER/NAME-0123456789abcdef.base", by the model folder's real path and the settings.
static td_status name_image(const char *image_folder, const char *model_folder,
                            const td_base_options *options, td_dtype matrix_dtype,
                            char out[TD_PATH_MAX]) {
    td_hasher *hasher;
    char name[NAME_CHARS + 32], hex[TD_HASH_HEX_CHARS];
    char *real = realpath(model_folder, NULL);
    if (!real)
        return td_fail(TD_ERR_DATA, "%s: cannot find its path: %s", model_folder, strerror(errno));
    td_status status = td_hasher_create(&hasher);
    if (status == TD_OK) {
        td_hasher_add_string(hasher, real);
        add_settings(hasher, options, matrix_dtype);
        td_hash_to_hex(td_hasher_value(hasher), hex);
        snprintf(name, sizeof name, "%.*s-%.16s.base", NAME_CHARS, strrchr(real, '/') + 1, hex);
        status = td_path_join(out, image_folder, name);
        td_hasher_destroy(hasher);
    }
    free(real);
    return status;
}

td_status td_base_image_find(const char *image_folder, const char *model_folder,
                             const td_safetensors *files, const td_model_config *config,
                             const td_base_options *options, td_dtype matrix_dtype,
                             td_base_image *out) {
    enum { DESCRIPTION_BYTES = 32 * 1024 };
    td_hasher *hasher = NULL;
    TD_TRY(name_image(image_folder, model_folder, options, matrix_dtype, out->path));
    char *text = malloc(DESCRIPTION_BYTES);
    td_status status = text ? td_hasher_create(&hasher)
                            : td_fail(TD_ERR_MEMORY, "no memory for the key of an image");
    if (status == TD_OK) {
        td_base_describe(config, text, DESCRIPTION_BYTES);
        td_hasher_add_string(hasher, text);
        add_settings(hasher, options, matrix_dtype);
        status = td_safetensors_identify(files, hasher);
    }
    if (status == TD_OK)
        out->key = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    free(text);
    return status;
}

typedef struct placement {
    td_base *base;
    td_hasher *hasher;
} placement;

static void add_place(const placement *self, const void *memory) {
    uint64_t place =
        memory ? (uint64_t)((const unsigned char *)memory - self->base->arena.base) : UINT64_MAX;
    add_number(self->hasher, place);
}

static td_status add_item(void *self, const td_base_item *item) {
    const placement *all = self;
    td_hasher_add_string(all->hasher, item->name);
    add_number(all->hasher, (uint64_t)item->n_elements);
    if (!td_base_item_is_matrix(item)) {
        add_place(all, *td_base_vector(all->base, item));
        return TD_OK;
    }
    const td_matrix *matrix = td_base_matrix(all->base, item);
    add_number(all->hasher, (uint64_t)matrix->format);
    add_place(all, matrix->data);
    add_place(all, matrix->absmax);
    add_place(all, matrix->absmax_codes);
    add_place(all, matrix->nested_absmax);
    add_place(all, matrix->nested_map);
    return TD_OK;
}

static td_status find_placement(td_base *base, td_hash *out) {
    placement all = {.base = base};
    TD_TRY(td_hasher_create(&all.hasher));
    td_status status = td_base_visit(&base->config, add_item, &all);
    *out = td_hasher_value(all.hasher);
    td_hasher_destroy(all.hasher);
    return status;
}

static size_t offsets_of(const td_model_config *config) {
    return (size_t)config->n_layers * TD_PROJ_COUNT;
}

static size_t table_bytes(const image_front *front) {
    return front->header.n_offsets * sizeof(float) + front->header.n_chunks * sizeof(td_hash);
}

// With the tables' room. What an image must have follows from config and settings alone.
static td_status init_front(image_front *front, const td_base_image *image,
                            const td_model_config *config, size_t arena_bytes) {
    *front = (image_front){.header = {.version = VERSION,
                                      .byte_order = BYTE_ORDER_MARK,
                                      .key = image->key,
                                      .arena_bytes = arena_bytes,
                                      .n_offsets = offsets_of(config),
                                      .n_chunks = (arena_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES}};
    memcpy(front->header.magic, magic, sizeof magic);
    size_t bytes = sizeof front->header + table_bytes(front);
    front->data_offset = (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    front->chunks = calloc(front->header.n_chunks + 1, sizeof *front->chunks);
    front->offsets = calloc(front->header.n_offsets + 1, sizeof *front->offsets);
    if (!front->chunks || !front->offsets)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its checksums", image->path);
    return TD_OK;
}

static void fini_front(image_front *front) {
    free(front->chunks);
    free(front->offsets);
}

static td_status hash_tables(const image_front *front, td_hash *out) {
    td_hasher *hasher;
    TD_TRY(td_hasher_create(&hasher));
    td_hasher_add(hasher, front->offsets, front->header.n_offsets * sizeof(float));
    td_hasher_add(hasher, front->chunks, front->header.n_chunks * sizeof(td_hash));
    *out = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    return TD_OK;
}

static td_hash hash_header(const image_header *header) {
    return td_hash_bytes(header, offsetof(image_header, self));
}

static td_status read_tables(int file, const td_base_image *image, image_front *front) {
    size_t offsets = front->header.n_offsets * sizeof(float);
    TD_TRY(td_file_read_at(file, image->path, sizeof front->header, front->offsets, offsets));
    return td_file_read_at(file, image->path, sizeof front->header + offsets, front->chunks,
                           front->header.n_chunks * sizeof(td_hash));
}

// Nothing of the file is used before it is what is expected: `front` comes with that.
static td_status read_front(int file, uint64_t file_bytes, const td_base_image *image,
                            image_front *front) {
    image_header expected = front->header, *found = &front->header;
    td_hash tables;
    if (file_bytes < sizeof *found)
        return td_fail(TD_ERR_DATA, "%s: is truncated", image->path);
    TD_TRY(td_file_read_at(file, image->path, 0, found, sizeof *found));
    if (memcmp(found->magic, magic, sizeof magic) != 0 ||
        !td_hash_equal(found->self, hash_header(found)))
        return td_fail(TD_ERR_DATA, "%s: is damaged (header)", image->path);
    if (found->version != expected.version || found->byte_order != expected.byte_order ||
        !td_hash_equal(found->key, expected.key) || found->arena_bytes != expected.arena_bytes ||
        found->n_offsets != expected.n_offsets || found->n_chunks != expected.n_chunks)
        return td_fail(TD_ERR_DATA, "%s: is of other weights or settings", image->path);
    if (file_bytes != front->data_offset + expected.arena_bytes)
        return td_fail(TD_ERR_DATA, "%s: is truncated", image->path);
    TD_TRY(read_tables(file, image, front));
    TD_TRY(hash_tables(front, &tables));
    if (!td_hash_equal(found->tables, tables))
        return td_fail(TD_ERR_DATA, "%s: is damaged (checksums)", image->path);
    return TD_OK;
}

static td_status check_owner(int file, const char *path) {
    struct stat info;
    if (fstat(file, &info) != 0)
        return td_fail(TD_ERR_DATA, "%s: cannot examine: %s", path, strerror(errno));
    if ((info.st_uid != geteuid() && info.st_uid != 0) || (info.st_mode & (S_IWGRP | S_IWOTH)))
        return td_fail(TD_ERR_DATA, "%s: others may write it", path);
    return TD_OK;
}

// Chunks of data[0, bytes), which begins at chunk `first`. The number of the first damaged one, or
// -1. By all threads.
static int64_t find_damage(const image_front *front, size_t first, const unsigned char *data,
                           size_t bytes) {
    int64_t chunks = (int64_t)((bytes + CHUNK_BYTES - 1) / CHUNK_BYTES), damaged = INT64_MAX;
#pragma omp parallel for schedule(dynamic, 4) reduction(min : damaged)
    for (int64_t i = 0; i < chunks; i++) {
        size_t begin = (size_t)i * CHUNK_BYTES, left = bytes - begin;
        size_t n = left < CHUNK_BYTES ? left : CHUNK_BYTES;
        td_safetensors_fetch(data + begin, n);
        td_hash found = td_hash_bytes(data + begin, n);
        if (!td_hash_equal(found, front->chunks[first + (size_t)i]) && i < damaged)
            damaged = i;
        td_progress_tick();
    }
    return damaged == INT64_MAX ? -1 : damaged + (int64_t)first;
}

static td_status fail_damaged(const td_base_image *image, int64_t chunk) {
    return td_fail(TD_ERR_DATA, "%s: is damaged (MiB %lld)", image->path, (long long)chunk);
}

static td_status map_base(int file, const td_base_image *image, const image_front *front,
                          const td_op_context *context, int verify, td_base *base) {
    size_t arena_bytes = front->header.arena_bytes, bytes = front->data_offset + arena_bytes;
    unsigned char *data = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
    if (data == MAP_FAILED)
        return td_fail(TD_ERR_IO, "%s: cannot map: %s", image->path, strerror(errno));
    base->mapped = data;
    base->mapped_bytes = bytes;
    (void)madvise(data, bytes, MADV_WILLNEED);
    td_base_use_memory(base, context->device, data + front->data_offset, arena_bytes);
    if (!verify)
        return TD_OK;
    int64_t damaged = find_damage(front, 0, base->arena.base, arena_bytes);
    return damaged < 0 ? TD_OK : fail_damaged(image, damaged);
}

typedef struct device_reader {
    int file;
    const td_base_image *image;
    const image_front *front;
    const td_op_context *context;
    unsigned char *host; // (2, step_bytes) pinned
    td_event *sent[2];
} device_reader;

static td_status read_chunks(const device_reader *reader, unsigned char *host, size_t begin,
                             size_t bytes) {
    td_status first = TD_OK;
    int64_t chunks = (int64_t)((bytes + CHUNK_BYTES - 1) / CHUNK_BYTES);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < chunks; i++) {
        size_t at = (size_t)i * CHUNK_BYTES, left = bytes - at;
        td_status status = td_file_read_at(reader->file, reader->image->path,
                                           reader->front->data_offset + begin + at, host + at,
                                           left < CHUNK_BYTES ? left : CHUNK_BYTES);
        if (status == TD_OK)
            continue;
        td_error_clear();
#pragma omp critical(td_base_image)
        first = status;
    }
    if (first != TD_OK)
        return td_fail(first, "%s: cannot read", reader->image->path);
    int64_t damaged = find_damage(reader->front, begin / CHUNK_BYTES, host, bytes);
    return damaged < 0 ? TD_OK : fail_damaged(reader->image, damaged);
}

static td_status copy_chunks(const device_reader *reader, td_base *base) {
    const td_device_table *device = reader->context->device->table;
    size_t all = reader->front->header.arena_bytes;
    for (size_t begin = 0, half = 0; begin < all; begin += step_bytes, half = !half) {
        size_t left = all - begin, bytes = left < step_bytes ? left : step_bytes;
        unsigned char *host = reader->host + half * step_bytes;
        TD_TRY(device->event_synchronize(reader->sent[half]));
        TD_TRY(read_chunks(reader, host, begin, bytes));
        TD_TRY(device->copy(reader->context->stream, base->arena.base + begin, host, bytes));
        TD_TRY(device->event_record(reader->sent[half], reader->context->stream));
    }
    return device->stream_synchronize(reader->context->stream);
}

// Large pieces by way of pinned memory, one of which is read while the other one travels.
static td_status read_base(int file, const td_base_image *image, const image_front *front,
                           const td_op_context *context, td_base *base) {
    const td_device *device = context->device;
    device_reader reader = {.file = file, .image = image, .front = front, .context = context};
    void *memory = NULL;
    td_status status = td_arena_init(&base->arena, device, front->header.arena_bytes, "base model");
    if (status == TD_OK)
        status = device->table->alloc_pinned(device, 2 * step_bytes, "reading an image", &memory);
    reader.host = memory;
    for (int half = 0; half < 2 && status == TD_OK; half++)
        status = device->table->event_create(device, &reader.sent[half]);
    if (status == TD_OK)
        status = copy_chunks(&reader, base);
    (void)device->table->stream_synchronize(context->stream);
    for (int half = 0; half < 2; half++)
        if (reader.sent[half])
            device->table->event_destroy(reader.sent[half]);
    if (memory)
        device->table->free_pinned(device, memory);
    return status;
}

typedef struct offset_walk {
    td_base *base;
    float *offsets;
    int64_t count;
    int writes; // to the table, from the base
} offset_walk;

static td_status move_offset(void *self, const td_base_item *item) {
    offset_walk *walk = self;
    if (item->kind != TD_BASE_LINEAR)
        return TD_OK;
    float *entry = &walk->offsets[walk->count++];
    td_matrix *matrix = td_base_matrix(walk->base, item);
    if (walk->writes)
        *entry = matrix->nested_offset;
    else
        matrix->nested_offset = *entry;
    return TD_OK;
}

static td_status finish_base(const td_base_image *image, image_front *front,
                             const td_base_options *options, td_dtype matrix_dtype, td_base *base) {
    offset_walk walk = {.base = base, .offsets = front->offsets};
    td_hash places;
    td_base_lay_out(base, options, matrix_dtype);
    TD_TRY(find_placement(base, &places));
    if (!td_hash_equal(places, front->header.placement))
        return td_fail(TD_ERR_DATA, "%s: is of another version of this program", image->path);
    base->fingerprint = front->header.fingerprint;
    return td_base_visit(&base->config, move_offset, &walk);
}

static td_status open_image(int file, uint64_t file_bytes, const td_base_image *image,
                            const td_base_options *options, td_dtype matrix_dtype,
                            const td_op_context *context, int verify, td_base *base) {
    td_base_sizes sizes;
    image_front front;
    td_base_plan(&base->config, options, matrix_dtype, &sizes);
    td_status status = init_front(&front, image, &base->config, sizes.arena_bytes);
    if (status == TD_OK)
        status = check_owner(file, image->path);
    if (status == TD_OK)
        status = read_front(file, file_bytes, image, &front);
    if (status == TD_OK)
        status = context->device->unified ? map_base(file, image, &front, context, verify, base)
                                          : read_base(file, image, &front, context, base);
    if (status == TD_OK)
        status = finish_base(image, &front, options, matrix_dtype, base);
    fini_front(&front);
    return status;
}

td_status td_base_image_open(const td_base_image *image, const td_model_config *config,
                             const td_base_options *options, td_dtype matrix_dtype,
                             const td_op_context *context, int verify, int says_why,
                             td_base **out) {
    int file;
    uint64_t bytes;
    struct stat info;
    double start = omp_get_wtime();
    if (lstat(image->path, &info) != 0 && errno == ENOENT)
        return TD_OK;
    td_base *base = calloc(1, sizeof *base);
    if (base)
        base->layers = calloc((size_t)config->n_layers, sizeof *base->layers);
    td_status status =
        base && base->layers ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for the base model");
    if (status == TD_OK) {
        base->config = *config;
        status = td_file_open(image->path, 0, &file, &bytes);
    }
    if (status == TD_OK) {
        status = open_image(file, bytes, image, options, matrix_dtype, context, verify, base);
        close(file);
    }
    if (status == TD_OK) {
        base->times.image = omp_get_wtime() - start;
        *out = base;
        return TD_OK;
    }
    td_base_destroy(base);
    if (says_why)
        td_warn("%s; the base model is read from its own files", td_error_message());
    td_error_clear();
    return TD_OK;
}

static td_status write_at(int file, const char *path, const void *data, size_t bytes,
                          uint64_t offset) {
    for (size_t done = 0; done < bytes;) {
        ssize_t written =
            pwrite(file, (const unsigned char *)data + done, bytes - done, (off_t)(offset + done));
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return td_fail(TD_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
        done += (size_t)written;
    }
    return TD_OK;
}

static void hash_chunks(image_front *front, size_t first, const unsigned char *data, size_t bytes) {
    int64_t chunks = (int64_t)((bytes + CHUNK_BYTES - 1) / CHUNK_BYTES);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < chunks; i++) {
        size_t begin = (size_t)i * CHUNK_BYTES, left = bytes - begin;
        front->chunks[first + (size_t)i] =
            td_hash_bytes(data + begin, left < CHUNK_BYTES ? left : CHUNK_BYTES);
    }
}

// `host` is NULL where the arena is host memory.
static td_status write_arena(int file, const char *path, image_front *front, const td_base *base,
                             const td_op_context *context, unsigned char *host) {
    const td_device_table *device = context->device->table;
    size_t all = front->header.arena_bytes;
    for (size_t begin = 0; begin < all; begin += step_bytes) {
        size_t left = all - begin, bytes = left < step_bytes ? left : step_bytes;
        const unsigned char *data = base->arena.base + begin;
        td_progress_tick();
        if (host) {
            TD_TRY(device->copy(context->stream, host, data, bytes));
            TD_TRY(device->stream_synchronize(context->stream));
            data = host;
        }
        hash_chunks(front, begin / CHUNK_BYTES, data, bytes);
        TD_TRY(write_at(file, path, data, bytes, front->data_offset + begin));
    }
    return TD_OK;
}

static td_status write_front(int file, const char *path, image_front *front) {
    image_header *header = &front->header;
    size_t offsets = header->n_offsets * sizeof(float);
    TD_TRY(hash_tables(front, &header->tables));
    header->self = hash_header(header);
    TD_TRY(write_at(file, path, front->offsets, offsets, sizeof *header));
    TD_TRY(write_at(file, path, front->chunks, header->n_chunks * sizeof(td_hash),
                    sizeof *header + offsets));
    return write_at(file, path, header, sizeof *header, 0);
}

static td_status write_content(int file, const char *path, image_front *front, td_base *base,
                               const td_op_context *context) {
    const td_device *device = context->device;
    offset_walk walk = {.base = base, .offsets = front->offsets, .writes = 1};
    void *host = NULL;
    front->header.fingerprint = base->fingerprint;
    TD_TRY(find_placement(base, &front->header.placement));
    TD_TRY(td_base_visit(&base->config, move_offset, &walk));
    if (!device->unified)
        TD_TRY(device->table->alloc_pinned(device, step_bytes, "writing an image", &host));
    td_status status = write_arena(file, path, front, base, context, host);
    if (host)
        device->table->free_pinned(device, host);
    return status == TD_OK ? write_front(file, path, front) : status;
}

static td_status write_temporary(const td_base_image *image, image_front *front, td_base *base,
                                 const td_op_context *context) {
    char temporary[TD_PATH_MAX];
    int file;
    TD_TRY(td_file_create_beside(image->path, temporary, &file));
    // Says that somebody is at it, until it is closed or we are killed.
    (void)flock(file, LOCK_EX | LOCK_NB);
    td_status status = write_content(file, temporary, front, base, context);
    if (status == TD_OK && rename(temporary, image->path) != 0)
        status = td_fail(TD_ERR_IO, "%s: cannot replace: %s", image->path, strerror(errno));
    if (status != TD_OK)
        unlink(temporary);
    if (close(file) != 0 && status == TD_OK)
        status = td_fail(TD_ERR_IO, "%s: cannot close: %s", image->path, strerror(errno));
    return status;
}

// A temporary that nobody holds is of a process that was killed. Returns 1 when somebody does. An
// empty one may be about to be locked, and takes no room.
static int is_being_written(const char *path) {
    int file, is_held = 0;
    uint64_t bytes;
    if (td_file_open(path, 0, &file, &bytes) != TD_OK) {
        td_error_clear();
        return 0;
    }
    if (flock(file, LOCK_EX | LOCK_NB) != 0)
        is_held = errno == EWOULDBLOCK;
    else if (bytes > 0)
        unlink(path);
    close(file);
    return is_held;
}

static int clear_temporaries(const td_base_image *image, const char *folder) {
    char prefix[TD_PATH_MAX + 8], path[TD_PATH_MAX], **names;
    size_t count;
    int is_busy = 0;
    snprintf(prefix, sizeof prefix, "%s.tmp-", strrchr(image->path, '/') + 1);
    if (td_folder_list(folder, &names, &count) != TD_OK) {
        td_error_clear();
        return 0;
    }
    for (size_t i = 0; i < count; i++)
        if (strncmp(names[i], prefix, strlen(prefix)) == 0 &&
            td_path_join(path, folder, names[i]) == TD_OK)
            is_busy |= is_being_written(path);
    td_names_free(names, count);
    return is_busy;
}

static td_status require_room(const char *folder, uint64_t bytes) {
    uint64_t free_bytes;
    TD_TRY(td_folder_free_bytes(folder, &free_bytes));
    if (free_bytes / 10 * 9 < bytes)
        return td_fail(TD_ERR_IO, "%s: an image takes %.0f MiB, and %.0f MiB are free", folder,
                       (double)bytes / 1048576, (double)free_bytes / 1048576);
    return TD_OK;
}

td_status td_base_image_write(const td_base_image *image, const td_base *base,
                              const td_op_context *context) {
    char folder[TD_PATH_MAX];
    image_front front;
    td_base view = *base; // the walk over items wants one that could be written
    // With the slash, which the root folder has too.
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(image->path, '/') + 1 - image->path),
             image->path);
    TD_TRY(td_folder_make(folder));
    if (clear_temporaries(image, folder))
        return TD_OK;
    TD_TRY(require_room(folder, base->arena.used_bytes));
    td_status status = init_front(&front, image, &base->config, base->arena.used_bytes);
    if (status == TD_OK)
        status = write_temporary(image, &front, &view, context);
    fini_front(&front);
    return status;
}
