// Reading one rank's pages. The last bytes of a page file, behind what HDF5 reads, are an index of
// where the pages lie. The program reads by that alone: HDF5 does not stand up to files that are
// built to do harm, so none gets there. To HDF5's own tools the file is one like any other.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/progress.h"
#include "runtime/core/tensor.h"
#include "runtime/train/checkpoint_internal.h"

// Behind the places. In the byte order of the machine: all that the program runs on are
// little-endian, as the file is.
typedef struct index_end {
    char magic[8];
    int64_t attributes[TD_SHARD_ATTRIBUTES];
    uint64_t bytes; // of the file before the places
    td_hash hash;   // of the places and of this struct before here
} index_end;

_Static_assert(sizeof(td_page_place) == 48 && sizeof(index_end) == 88, "no padding in the file");
static const char magic[8] = "TDPAGES\n";

struct td_shard_reader {
    char path[TD_PATH_MAX];
    td_shard shard;
    int file;
    td_page_place *places; // (td_shard_pages)
};

const char *const td_shard_attributes[TD_SHARD_ATTRIBUTES] = {
    "format_version", "step", "rank", "world_size", "n_elements", "page_elements", "state_bytes"};

void td_shard_attribute_values(const td_shard *shard, int64_t out[TD_SHARD_ATTRIBUTES]) {
    out[0] = TD_CHECKPOINT_FORMAT;
    out[1] = shard->step;
    out[2] = shard->rank;
    out[3] = shard->map.size;
    out[4] = shard->map.n_elements;
    out[5] = shard->map.page_elements;
    out[6] = (int64_t)shard->state_bytes;
}

int64_t td_page_width(const td_page_map *map) {
    return map->n_elements < map->page_elements ? map->n_elements : map->page_elements;
}

void td_shard_name(char out[TD_CHECKPOINT_NAME_CHARS], int rank, int size) {
    snprintf(out, TD_CHECKPOINT_NAME_CHARS, "pages-%05d-of-%05d.h5", rank, size);
}

int64_t td_shard_pages(const td_shard *shard) {
    return td_page_map_owned_count(&shard->map, shard->rank);
}

size_t td_shard_params_bytes(const td_shard *shard) {
    return (size_t)td_page_width(&shard->map) * sizeof(float);
}

static td_status hash_index(const td_page_place *places, int64_t n, const index_end *end,
                            td_hash *out) {
    td_hasher *hasher = NULL;
    TD_TRY(td_hasher_create(&hasher));
    td_hasher_add(hasher, places, (size_t)n * sizeof *places);
    td_hasher_add(hasher, end, offsetof(index_end, hash));
    *out = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    return TD_OK;
}

td_status td_shard_write_index(int file, const char *path, const td_shard *shard,
                               const td_page_place *places) {
    int64_t n = td_shard_pages(shard);
    off_t bytes = lseek(file, 0, SEEK_END);
    if (bytes < 0)
        return td_fail(TD_ERR_IO, "%s: cannot find its end", path);
    index_end end = {.bytes = (uint64_t)bytes};
    memcpy(end.magic, magic, sizeof magic);
    td_shard_attribute_values(shard, end.attributes);
    TD_TRY(hash_index(places, n, &end, &end.hash));
    TD_TRY(td_file_write_all(file, path, places, (size_t)n * sizeof *places));
    return td_file_write_all(file, path, &end, sizeof end);
}

static td_status fail_damaged(const td_shard_reader *reader, const char *what) {
    return td_fail(TD_ERR_DATA, "%s: is damaged: %s", reader->path, what);
}

static td_status check_attributes(const td_shard_reader *reader, const index_end *end) {
    int64_t expected[TD_SHARD_ATTRIBUTES];
    td_shard_attribute_values(&reader->shard, expected);
    for (int i = 0; i < TD_SHARD_ATTRIBUTES; i++)
        if (end->attributes[i] != expected[i])
            return td_fail(TD_ERR_DATA, "%s: belongs elsewhere: its %s is %lld, expected %lld",
                           reader->path, td_shard_attributes[i], (long long)end->attributes[i],
                           (long long)expected[i]);
    return TD_OK;
}

static int lies_within(uint64_t begin, uint64_t bytes, uint64_t end) {
    return bytes <= end && begin <= end - bytes;
}

static td_status check_places(const td_shard_reader *reader, uint64_t end) {
    const td_shard *shard = &reader->shard;
    for (int64_t i = 0; i < td_shard_pages(shard); i++)
        if (!lies_within(reader->places[i].params, td_shard_params_bytes(shard), end) ||
            !lies_within(reader->places[i].state, shard->state_bytes, end))
            return fail_damaged(reader, "a page lies outside the file");
    return TD_OK;
}

// The number of pages is what the manifest says: it must fit into the file before there is memory
// for their places.
static td_status read_places(td_shard_reader *reader, const index_end *end, uint64_t bytes) {
    uint64_t n = (uint64_t)td_shard_pages(&reader->shard);
    td_hash hash = {0};
    if (bytes / sizeof *reader->places < n || end->bytes != bytes - n * sizeof *reader->places)
        return fail_damaged(reader, "its index has another length");
    reader->places = malloc((size_t)n * sizeof *reader->places + 1);
    if (!reader->places)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to open it", reader->path);
    TD_TRY(td_file_read_at(reader->file, reader->path, end->bytes, reader->places,
                           (size_t)n * sizeof *reader->places));
    TD_TRY(hash_index(reader->places, (int64_t)n, end, &hash));
    if (!td_hash_equal(hash, end->hash))
        return fail_damaged(reader, "the checksum of its index does not match");
    return check_places(reader, end->bytes);
}

static td_status read_index(td_shard_reader *reader) {
    index_end end;
    struct stat info;
    if (fstat(reader->file, &info) != 0 || (uint64_t)info.st_size < sizeof end)
        return fail_damaged(reader, "it has no index");
    uint64_t bytes = (uint64_t)info.st_size - sizeof end;
    TD_TRY(td_file_read_at(reader->file, reader->path, bytes, &end, sizeof end));
    if (memcmp(end.magic, magic, sizeof magic) != 0)
        return fail_damaged(reader, "it has no index");
    TD_TRY(check_attributes(reader, &end));
    return read_places(reader, &end, bytes);
}

// Takes the descriptor over.
static td_status open_descriptor(int descriptor, const char *path, const td_shard *expected,
                                 td_shard_reader **out) {
    td_shard_reader *reader = calloc(1, sizeof *reader);
    if (!reader) {
        close(descriptor);
        return td_fail(TD_ERR_MEMORY, "%s: no memory to open it", path);
    }
    snprintf(reader->path, sizeof reader->path, "%s", path);
    reader->shard = *expected;
    reader->file = descriptor;
    td_status status = read_index(reader);
    if (status != TD_OK) {
        td_shard_close(reader);
        return status;
    }
    *out = reader;
    return TD_OK;
}

td_status td_shard_open(const char *path, const td_shard *expected, td_shard_reader **out) {
    int descriptor;
    uint64_t bytes;
    TD_TRY(td_file_open(path, 0, &descriptor, &bytes));
    return open_descriptor(descriptor, path, expected, out);
}

td_status td_shard_open_listed(const char *folder, const td_manifest *manifest,
                               const td_shard *expected, td_shard_reader **out) {
    char path[TD_PATH_MAX], name[TD_CHECKPOINT_NAME_CHARS];
    int descriptor;
    td_shard_name(name, expected->rank, expected->map.size);
    const td_manifest_file *file = td_manifest_find_file(manifest, name);
    if (!file)
        return td_fail(TD_ERR_DATA, "%s: the manifest does not name %s", folder, name);
    TD_TRY(td_path_join(path, folder, name));
    TD_TRY(td_manifest_open_file(folder, file, &descriptor));
    return open_descriptor(descriptor, path, expected, out);
}

void td_shard_close(td_shard_reader *reader) {
    if (!reader)
        return;
    close(reader->file);
    free(reader->places);
    free(reader);
}

// Part 0: parameters, 1: optimizer state.
static td_status read_part(const td_shard_reader *reader, int64_t index, int part, void *out) {
    const td_page_place *place = &reader->places[index];
    size_t bytes = part ? reader->shard.state_bytes : td_shard_params_bytes(&reader->shard);
    TD_TRY(td_file_read_at(reader->file, reader->path, part ? place->state : place->params, out,
                           bytes));
    td_progress_tick();
    if (td_hash_equal(td_hash_bytes(out, bytes), place->hashes[part]))
        return TD_OK;
    int64_t page = reader->shard.rank + index * reader->shard.map.size;
    return td_fail(TD_ERR_DATA, "%s: is damaged: the checksum of page %lld (%s) does not match",
                   reader->path, (long long)page, part ? "optimizer state" : "parameters");
}

td_status td_shard_read_page(td_shard_reader *reader, int64_t index, float *params,
                             unsigned char *state) {
    TD_TRY(read_part(reader, index, 0, params));
    return state ? read_part(reader, index, 1, state) : TD_OK;
}
