// One rank's pages as an HDF5 file:
//   /pages   (n) int64                 numbers of the pages
//   /params  (n, width) float32        one chunk per page
//   /state   (n, state_bytes) uint8    one chunk per page
//   /hashes  (n, 4) uint64             XXH3-128 of params (low, high) and state (low, high)
// and the attributes of `attribute_names` on the root group. The bytes are a function of the
// contents: no times are kept.
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/progress.h"
#include "runtime/core/tensor.h"
#include "runtime/data/hdf5_lock.h"
#include "runtime/train/checkpoint_internal.h"

enum {
    HASH_WORDS = 4,
    ATTRIBUTES = 7,
    FLUSH_BYTES =
        64 << 20, // written between two flushes to the disk, so that none of them takes long
    NO_ID = -1,
};

static const char *const attribute_names[ATTRIBUTES] = {
    "format_version", "step", "rank", "world_size", "n_elements", "page_elements", "state_bytes"};

td_status (*td_checkpoint_test_hook)(td_checkpoint_phase phase);

int64_t td_page_width(const td_page_map *map) {
    return map->n_elements < map->page_elements ? map->n_elements : map->page_elements;
}

void td_shard_name(char out[TD_CHECKPOINT_NAME_CHARS], int rank, int size) {
    snprintf(out, TD_CHECKPOINT_NAME_CHARS, "pages-%05d-of-%05d.h5", rank, size);
}

static int64_t pages_of(const td_shard *shard) {
    return td_page_map_owned_count(&shard->map, shard->rank);
}

static size_t params_bytes(const td_shard *shard) {
    return (size_t)td_page_width(&shard->map) * sizeof(float);
}

static void attribute_values(const td_shard *shard, int64_t out[ATTRIBUTES]) {
    out[0] = TD_CHECKPOINT_FORMAT;
    out[1] = shard->step;
    out[2] = shard->rank;
    out[3] = shard->map.size;
    out[4] = shard->map.n_elements;
    out[5] = shard->map.page_elements;
    out[6] = (int64_t)shard->state_bytes;
}

// HDF5 does not pass the system's reason on; errno usually still has it.
static td_status fail_write(const char *path, const char *what) {
    return td_fail(TD_ERR_IO, "%s: cannot write %s: %s", path, what,
                   errno ? strerror(errno) : "HDF5 gives no reason");
}

static td_status fail_read(const char *path, const char *what) {
    return td_fail(TD_ERR_DATA, "%s: is damaged: cannot read %s", path, what);
}

// --- Writing. Functions named locked_* are called with the HDF5 lock held.

typedef struct shard_writer {
    const char *path;
    const td_shard *shard;
    hid_t file, params, state;
    uint64_t *hashes; // (n, HASH_WORDS)
    int descriptor;   // of the same file, for flushing to the disk
} shard_writer;

static hid_t locked_access_list(void) {
    hid_t list = H5Pcreate(H5P_FILE_ACCESS);
    if (list < 0)
        return NO_ID;
    int failed = H5Pset_libver_bounds(list, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST) < 0 ||
                 H5Pset_fclose_degree(list, H5F_CLOSE_STRONG) < 0 ||
                 H5Pset_file_locking(list, 1, 1) < 0;
    if (failed) {
        H5Pclose(list);
        return NO_ID;
    }
    return list;
}

static hid_t locked_create_file(const char *path) {
    hid_t creation = H5Pcreate(H5P_FILE_CREATE), access = locked_access_list(), file = NO_ID;
    if (creation >= 0 && access >= 0 && H5Pset_obj_track_times(creation, 0) >= 0)
        file = H5Fcreate(path, H5F_ACC_EXCL, creation, access);
    if (creation >= 0)
        H5Pclose(creation);
    if (access >= 0)
        H5Pclose(access);
    return file;
}

// `chunk`: one row per chunk, else contiguous.
static hid_t locked_create_dataset(hid_t file, const char *name, hid_t type, int n_dims,
                                   const hsize_t dims[2], int chunk) {
    hsize_t row[2] = {1, dims[1]};
    hid_t space = H5Screate_simple(n_dims, dims, NULL), list = H5Pcreate(H5P_DATASET_CREATE);
    hid_t dataset = NO_ID;
    int ready = space >= 0 && list >= 0 && H5Pset_obj_track_times(list, 0) >= 0 &&
                H5Pset_fill_time(list, H5D_FILL_TIME_NEVER) >= 0 &&
                (!chunk || H5Pset_chunk(list, n_dims, row) >= 0);
    if (ready)
        dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    if (space >= 0)
        H5Sclose(space);
    if (list >= 0)
        H5Pclose(list);
    return dataset;
}

static int locked_write_attribute(hid_t file, const char *name, int64_t value) {
    hid_t space = H5Screate(H5S_SCALAR), attribute = NO_ID;
    if (space >= 0)
        attribute = H5Acreate2(file, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    int done = attribute >= 0 && H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0;
    if (attribute >= 0)
        done &= H5Aclose(attribute) >= 0;
    if (space >= 0)
        H5Sclose(space);
    return done;
}

static int locked_write_attributes(hid_t file, const td_shard *shard) {
    int64_t values[ATTRIBUTES];
    attribute_values(shard, values);
    for (int i = 0; i < ATTRIBUTES; i++)
        if (!locked_write_attribute(file, attribute_names[i], values[i]))
            return 0;
    return 1;
}

static int locked_write_table(hid_t file, const char *name, hid_t stored, hid_t native,
                              const hsize_t dims[2], const void *values) {
    hid_t dataset = locked_create_dataset(file, name, stored, dims[1] ? 2 : 1, dims, 0);
    if (dataset < 0)
        return 0;
    int done = H5Dwrite(dataset, native, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0;
    return (H5Dclose(dataset) >= 0) & done;
}

static td_status create_shard(shard_writer *writer) {
    const td_shard *shard = writer->shard;
    hsize_t n = (hsize_t)pages_of(shard);
    hsize_t params_dims[2] = {n, (hsize_t)td_page_width(&shard->map)};
    hsize_t state_dims[2] = {n, shard->state_bytes};
    errno = 0;
    td_hdf5_lock();
    writer->file = locked_create_file(writer->path);
    int done = writer->file >= 0 && locked_write_attributes(writer->file, shard);
    if (done) {
        writer->params =
            locked_create_dataset(writer->file, "params", H5T_IEEE_F32LE, 2, params_dims, 1);
        writer->state =
            locked_create_dataset(writer->file, "state", H5T_STD_U8LE, 2, state_dims, 1);
    }
    td_hdf5_unlock();
    if (!done || writer->params < 0 || writer->state < 0)
        return fail_write(writer->path, "its header");
    writer->descriptor = open(writer->path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (writer->descriptor < 0)
        return fail_write(writer->path, "its header");
    return td_checkpoint_reach(TD_CHECKPOINT_CREATE);
}

// A page is one chunk and goes to the file in this call: a full disk shows here and not in a later
// flush.
static td_status write_page(shard_writer *writer, const td_shard_memory *memory, int64_t index) {
    const float *params = memory->params(memory->context, index);
    const unsigned char *state = memory->state(memory->context, index);
    size_t bytes = params_bytes(writer->shard), state_bytes = writer->shard->state_bytes;
    td_hash hashes[2] = {td_hash_bytes(params, bytes), td_hash_bytes(state, state_bytes)};
    memcpy(writer->hashes + index * HASH_WORDS, hashes, sizeof hashes);
    hsize_t offset[2] = {(hsize_t)index, 0};
    TD_TRY(td_checkpoint_reach(TD_CHECKPOINT_WRITE));
    errno = 0;
    td_hdf5_lock();
    int done = H5Dwrite_chunk(writer->params, H5P_DEFAULT, 0, offset, bytes, params) >= 0 &&
               H5Dwrite_chunk(writer->state, H5P_DEFAULT, 0, offset, state_bytes, state) >= 0;
    td_hdf5_unlock();
    td_progress_tick();
    return done ? TD_OK : fail_write(writer->path, "a page");
}

static td_status write_pages(shard_writer *writer, const td_shard_memory *memory) {
    size_t unflushed = 0;
    for (int64_t i = 0; i < pages_of(writer->shard); i++) {
        if (atomic_load(memory->cancel))
            return td_fail(TD_STOPPED, "%s: writing was given up", writer->path);
        TD_TRY(write_page(writer, memory, i));
        unflushed += params_bytes(writer->shard) + writer->shard->state_bytes;
        if (unflushed >= FLUSH_BYTES) {
            if (fdatasync(writer->descriptor) != 0)
                return fail_write(writer->path, "its pages to the disk");
            td_progress_tick();
            unflushed = 0;
        }
    }
    return TD_OK;
}

static td_status write_tables(shard_writer *writer) {
    const td_shard *shard = writer->shard;
    int64_t n = pages_of(shard);
    hsize_t page_dims[2] = {(hsize_t)n, 0}, hash_dims[2] = {(hsize_t)n, HASH_WORDS};
    int64_t *pages = calloc((size_t)n, sizeof *pages);
    if (!pages)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for %lld page numbers", writer->path,
                       (long long)n);
    for (int64_t i = 0; i < n; i++)
        pages[i] = shard->rank + i * shard->map.size;
    errno = 0;
    td_hdf5_lock();
    int done = locked_write_table(writer->file, "pages", H5T_STD_I64LE, H5T_NATIVE_INT64, page_dims,
                                  pages) &&
               locked_write_table(writer->file, "hashes", H5T_STD_U64LE, H5T_NATIVE_UINT64,
                                  hash_dims, writer->hashes);
    td_hdf5_unlock();
    free(pages);
    return done ? TD_OK : fail_write(writer->path, "its tables");
}

// Every step's result counts: on a full disk a later one may report success.
static td_status flush_shard(shard_writer *writer) {
    TD_TRY(td_checkpoint_reach(TD_CHECKPOINT_FLUSH));
    errno = 0;
    td_hdf5_lock();
    int done = H5Fflush(writer->file, H5F_SCOPE_LOCAL) >= 0;
    td_hdf5_unlock();
    if (!done)
        return fail_write(writer->path, "its pages");
    return td_checkpoint_reach(TD_CHECKPOINT_CLOSE);
}

static td_status close_shard(shard_writer *writer) {
    errno = 0;
    td_hdf5_lock();
    int done = writer->params < 0 || H5Dclose(writer->params) >= 0;
    done &= writer->state < 0 || H5Dclose(writer->state) >= 0;
    done &= writer->file < 0 || H5Fclose(writer->file) >= 0;
    td_hdf5_unlock();
    writer->file = writer->params = writer->state = NO_ID;
    return done ? TD_OK : fail_write(writer->path, "its end");
}

// Flushes to the disk and asks the system to forget its copy, so that reading back reads what the
// disk has.
static td_status settle(shard_writer *writer) {
    if (fsync(writer->descriptor) != 0)
        return fail_write(writer->path, "its pages to the disk");
    (void)posix_fadvise(writer->descriptor, 0, 0, POSIX_FADV_DONTNEED);
    td_progress_tick();
    return TD_OK;
}

static td_status fill_shard(shard_writer *writer, const td_shard_memory *memory) {
    td_status status;
    TD_TRY_GOTO(status, create_shard(writer), close);
    TD_TRY_GOTO(status, write_pages(writer, memory), close);
    TD_TRY_GOTO(status, write_tables(writer), close);
    TD_TRY_GOTO(status, flush_shard(writer), close);
close:;
    td_status closed = close_shard(writer);
    TD_TRY(status);
    TD_TRY(closed);
    return settle(writer);
}

static td_status verify_shard(const shard_writer *written, const td_shard_memory *memory) {
    td_shard_reader *reader = NULL;
    TD_TRY(td_checkpoint_reach(TD_CHECKPOINT_VERIFY));
    TD_TRY(td_shard_open(written->path, written->shard, &reader));
    td_status status = TD_OK;
    for (int64_t i = 0; i < pages_of(written->shard) && status == TD_OK; i++) {
        status = td_shard_read_page(reader, i, memory->scratch_params, memory->scratch_state);
        size_t bytes = params_bytes(written->shard), state_bytes = written->shard->state_bytes;
        int same =
            status == TD_OK &&
            memcmp(memory->params(memory->context, i), memory->scratch_params, bytes) == 0 &&
            memcmp(memory->state(memory->context, i), memory->scratch_state, state_bytes) == 0;
        if (status == TD_OK && !same)
            status = td_fail(TD_ERR_IO, "%s: page %lld reads back differently than it was written",
                             written->path, (long long)i);
    }
    td_shard_close(reader);
    return status;
}

td_status td_shard_write(const char *path, const td_shard *shard, const td_shard_memory *memory) {
    shard_writer writer = {.path = path,
                           .shard = shard,
                           .file = NO_ID,
                           .params = NO_ID,
                           .state = NO_ID,
                           .descriptor = -1};
    writer.hashes = calloc((size_t)pages_of(shard), HASH_WORDS * sizeof *writer.hashes);
    if (!writer.hashes)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its checksums", path);
    td_status status = fill_shard(&writer, memory);
    if (status == TD_OK)
        status = verify_shard(&writer, memory);
    // A file that HDF5 could not close stays open in it; when the disk is full its space is needed
    // all the more.
    if (status != TD_OK && writer.descriptor >= 0)
        (void)!ftruncate(writer.descriptor, 0);
    if (writer.descriptor >= 0)
        close(writer.descriptor);
    free(writer.hashes);
    return status;
}

// --- Reading

struct td_shard_reader {
    char path[TD_PATH_MAX];
    td_shard shard;
    hid_t file, params, state;
    uint64_t *hashes;
};

static int locked_read_attribute(hid_t file, const char *name, int64_t *out) {
    hid_t attribute = H5Aopen(file, name, H5P_DEFAULT);
    if (attribute < 0)
        return 0;
    hid_t space = H5Aget_space(attribute);
    int done = space >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
               H5Aread(attribute, H5T_NATIVE_INT64, out) >= 0;
    if (space >= 0)
        H5Sclose(space);
    H5Aclose(attribute);
    return done;
}

// Exactly these dimensions; 0 for dims[1]: one dimension.
static int locked_has_shape(hid_t dataset, const hsize_t dims[2]) {
    hsize_t found[2] = {0, 0};
    hid_t space = H5Dget_space(dataset);
    if (space < 0)
        return 0;
    int n_dims = H5Sget_simple_extent_ndims(space);
    int same = n_dims == (dims[1] ? 2 : 1) && H5Sget_simple_extent_dims(space, found, NULL) >= 0 &&
               found[0] == dims[0] && found[1] == dims[1];
    H5Sclose(space);
    return same;
}

static int locked_has_type(hid_t dataset, hid_t expected) {
    hid_t type = H5Dget_type(dataset);
    if (type < 0)
        return 0;
    int same = H5Tequal(type, expected) > 0;
    H5Tclose(type);
    return same;
}

// What a link leads to, or a dataset's storage, may lie in any other file of the system.
static int locked_is_hard_link(hid_t file, const char *name) {
    H5L_info_t link;
    return H5Lget_info(file, name, &link, H5P_DEFAULT) >= 0 && link.type == H5L_TYPE_HARD;
}

// Stored in this file as td_shard_write() does: in chunks of one row or in one piece, and without
// filters, which could make a small file fill the memory.
static int locked_is_plain(hid_t dataset, hsize_t columns, int is_chunked) {
    hsize_t chunk[2] = {0, 0};
    hid_t list = H5Dget_create_plist(dataset);
    if (list < 0)
        return 0;
    int plain = H5Pget_nfilters(list) == 0 && H5Pget_external_count(list) == 0 &&
                H5Pget_layout(list) == (is_chunked ? H5D_CHUNKED : H5D_CONTIGUOUS);
    if (plain && is_chunked)
        plain = H5Pget_chunk(list, 2, chunk) == 2 && chunk[0] == 1 && chunk[1] == columns;
    H5Pclose(list);
    return plain;
}

static hid_t locked_open_dataset(hid_t file, const char *name, hid_t type, const hsize_t dims[2],
                                 int is_chunked) {
    hid_t dataset = NO_ID;
    if (locked_is_hard_link(file, name))
        dataset = H5Dopen2(file, name, H5P_DEFAULT);
    if (dataset < 0)
        return NO_ID;
    if (locked_has_type(dataset, type) && locked_has_shape(dataset, dims) &&
        locked_is_plain(dataset, dims[1], is_chunked))
        return dataset;
    H5Dclose(dataset);
    return NO_ID;
}

static td_status locked_check_attributes(td_shard_reader *reader) {
    int64_t expected[ATTRIBUTES];
    attribute_values(&reader->shard, expected);
    for (int i = 0; i < ATTRIBUTES; i++) {
        int64_t found = 0;
        if (!locked_read_attribute(reader->file, attribute_names[i], &found))
            return fail_read(reader->path, attribute_names[i]);
        if (found != expected[i])
            return td_fail(TD_ERR_DATA, "%s: belongs elsewhere: its %s is %lld, expected %lld",
                           reader->path, attribute_names[i], (long long)found,
                           (long long)expected[i]);
    }
    return TD_OK;
}

static td_status locked_read_hashes(td_shard_reader *reader) {
    hsize_t dims[2] = {(hsize_t)pages_of(&reader->shard), HASH_WORDS};
    hid_t table = locked_open_dataset(reader->file, "hashes", H5T_STD_U64LE, dims, 0);
    if (table < 0)
        return fail_read(reader->path, "its checksums");
    herr_t result =
        H5Dread(table, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, reader->hashes);
    H5Dclose(table);
    return result < 0 ? fail_read(reader->path, "its checksums") : TD_OK;
}

// By its descriptor: HDF5 reads the file that was compared, whatever has its name now.
static hid_t locked_open_file(int descriptor) {
    char path[64];
    hid_t access = locked_access_list(), file = NO_ID;
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    if (access >= 0) {
        file = H5Fopen(path, H5F_ACC_RDONLY, access);
        H5Pclose(access);
    }
    return file;
}

static td_status locked_open(td_shard_reader *reader, int descriptor) {
    const td_shard *shard = &reader->shard;
    hsize_t n = (hsize_t)pages_of(shard);
    hsize_t params_dims[2] = {n, (hsize_t)td_page_width(&shard->map)};
    hsize_t state_dims[2] = {n, shard->state_bytes};
    reader->file = locked_open_file(descriptor);
    if (reader->file < 0)
        return td_fail(TD_ERR_DATA, "%s: is damaged or no HDF5 file", reader->path);
    TD_TRY(locked_check_attributes(reader));
    reader->params = locked_open_dataset(reader->file, "params", H5T_IEEE_F32LE, params_dims, 1);
    if (reader->params < 0)
        return fail_read(reader->path, "its parameters");
    reader->state = locked_open_dataset(reader->file, "state", H5T_STD_U8LE, state_dims, 1);
    if (reader->state < 0)
        return fail_read(reader->path, "its optimizer state");
    return locked_read_hashes(reader);
}

static td_status open_descriptor(int descriptor, const char *path, const td_shard *expected,
                                 td_shard_reader **out) {
    td_shard_reader *reader = calloc(1, sizeof *reader);
    uint64_t *hashes = calloc((size_t)pages_of(expected), HASH_WORDS * sizeof *hashes);
    if (!reader || !hashes) {
        free(reader);
        free(hashes);
        return td_fail(TD_ERR_MEMORY, "%s: no memory to open it", path);
    }
    snprintf(reader->path, sizeof reader->path, "%s", path);
    reader->shard = *expected;
    reader->hashes = hashes;
    reader->file = reader->params = reader->state = NO_ID;
    td_hdf5_lock();
    td_status status = locked_open(reader, descriptor);
    td_hdf5_unlock();
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
    td_status status = open_descriptor(descriptor, path, expected, out);
    close(descriptor);
    return status;
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
    td_status status = open_descriptor(descriptor, path, expected, out);
    close(descriptor);
    return status;
}

void td_shard_close(td_shard_reader *reader) {
    if (!reader)
        return;
    td_hdf5_lock();
    if (reader->params >= 0)
        H5Dclose(reader->params);
    if (reader->state >= 0)
        H5Dclose(reader->state);
    if (reader->file >= 0)
        H5Fclose(reader->file);
    td_hdf5_unlock();
    free(reader->hashes);
    free(reader);
}

static int locked_read_row(hid_t dataset, hid_t type, int64_t row, size_t columns, void *out) {
    hsize_t start[2] = {(hsize_t)row, 0}, count[2] = {1, columns};
    hid_t file_space = H5Dget_space(dataset), memory_space = H5Screate_simple(2, count, NULL);
    int done = file_space >= 0 && memory_space >= 0 &&
               H5Sselect_hyperslab(file_space, H5S_SELECT_SET, start, NULL, count, NULL) >= 0 &&
               H5Dread(dataset, type, memory_space, file_space, H5P_DEFAULT, out) >= 0;
    if (file_space >= 0)
        H5Sclose(file_space);
    if (memory_space >= 0)
        H5Sclose(memory_space);
    return done;
}

static td_status check_hash(const td_shard_reader *reader, int64_t index, int part,
                            const void *data, size_t bytes) {
    td_hash expected;
    memcpy(&expected, reader->hashes + index * HASH_WORDS + 2 * part, sizeof expected);
    if (td_hash_equal(td_hash_bytes(data, bytes), expected))
        return TD_OK;
    int64_t page = reader->shard.rank + index * reader->shard.map.size;
    return td_fail(TD_ERR_DATA, "%s: is damaged: the checksum of page %lld (%s) does not match",
                   reader->path, (long long)page, part ? "optimizer state" : "parameters");
}

td_status td_shard_read_page(td_shard_reader *reader, int64_t index, float *params,
                             unsigned char *state) {
    const td_shard *shard = &reader->shard;
    size_t width = (size_t)td_page_width(&shard->map);
    td_hdf5_lock();
    int done = locked_read_row(reader->params, H5T_NATIVE_FLOAT, index, width, params) &&
               (!state ||
                locked_read_row(reader->state, H5T_NATIVE_UINT8, index, shard->state_bytes, state));
    td_hdf5_unlock();
    td_progress_tick();
    if (!done)
        return fail_read(reader->path, "a page");
    TD_TRY(check_hash(reader, index, 0, params, params_bytes(shard)));
    return state ? check_hash(reader, index, 1, state, shard->state_bytes) : TD_OK;
}
