// Writing one rank's pages as an HDF5 file:
//   /pages   (n) int64                 numbers of the pages
//   /params  (n, width) float32        one chunk per page
//   /state   (n, state_bytes) uint8    one chunk per page
//   /hashes  (n, 4) uint64             XXH3-128 of params (low, high) and state (low, high)
// and the attributes of td_shard_attributes on the root group. Behind what HDF5 reads the file ends
// with our own index of it (checkpoint_pages.c reads by that alone). The bytes are a function of
// the contents: no times are kept.
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
    FLUSH_BYTES =
        64 << 20, // written between two flushes to the disk, so that none of them takes long
    NO_ID = -1,
};

td_status (*td_checkpoint_test_hook)(td_checkpoint_phase phase);

// HDF5 does not pass the system's reason on; errno usually still has it.
static td_status fail_write(const char *path, const char *what) {
    return td_fail(TD_ERR_IO, "%s: cannot write %s: %s", path, what,
                   errno ? strerror(errno) : "HDF5 gives no reason");
}

// Functions named locked_* are called with the HDF5 lock held.

typedef struct shard_writer {
    const char *path;
    const td_shard *shard;
    hid_t file, params, state;
    uint64_t *hashes;      // (n, HASH_WORDS)
    td_page_place *places; // (n)
    int descriptor;        // of the same file, for flushing to the disk
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
    int64_t values[TD_SHARD_ATTRIBUTES];
    td_shard_attribute_values(shard, values);
    for (int i = 0; i < TD_SHARD_ATTRIBUTES; i++)
        if (!locked_write_attribute(file, td_shard_attributes[i], values[i]))
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
    hsize_t n = (hsize_t)td_shard_pages(shard);
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
    size_t bytes = td_shard_params_bytes(writer->shard), state_bytes = writer->shard->state_bytes;
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
    for (int64_t i = 0; i < td_shard_pages(writer->shard); i++) {
        if (atomic_load(memory->cancel))
            return td_fail(TD_STOPPED, "%s: writing was given up", writer->path);
        TD_TRY(write_page(writer, memory, i));
        unflushed += td_shard_params_bytes(writer->shard) + writer->shard->state_bytes;
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
    int64_t n = td_shard_pages(shard);
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

// Of the one page in the chunk.
static int locked_find_page(hid_t dataset, int64_t index, uint64_t expected, uint64_t *out) {
    hsize_t offset[2] = {(hsize_t)index, 0}, bytes = 0;
    haddr_t address = HADDR_UNDEF;
    unsigned filters = 0;
    int done = H5Dget_chunk_info_by_coord(dataset, offset, &filters, &address, &bytes) >= 0 &&
               address != HADDR_UNDEF && bytes == expected;
    *out = address;
    return done;
}

static td_status find_pages(shard_writer *writer) {
    const td_shard *shard = writer->shard;
    int done = 1;
    td_hdf5_lock();
    for (int64_t i = 0; i < td_shard_pages(shard) && done; i++) {
        td_page_place *place = &writer->places[i];
        memcpy(place->hashes, writer->hashes + i * HASH_WORDS, sizeof place->hashes);
        done = locked_find_page(writer->params, i, td_shard_params_bytes(shard), &place->params) &&
               locked_find_page(writer->state, i, shard->state_bytes, &place->state);
    }
    td_hdf5_unlock();
    return done ? TD_OK : fail_write(writer->path, "where its pages are");
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
    TD_TRY_GOTO(status, find_pages(writer), close);
    TD_TRY_GOTO(status, flush_shard(writer), close);
close:;
    td_status closed = close_shard(writer);
    TD_TRY(status);
    TD_TRY(closed);
    TD_TRY(td_shard_write_index(writer->descriptor, writer->path, writer->shard, writer->places));
    return settle(writer);
}

static td_status verify_shard(const shard_writer *written, const td_shard_memory *memory) {
    td_shard_reader *reader = NULL;
    TD_TRY(td_checkpoint_reach(TD_CHECKPOINT_VERIFY));
    TD_TRY(td_shard_open(written->path, written->shard, &reader));
    td_status status = TD_OK;
    for (int64_t i = 0; i < td_shard_pages(written->shard) && status == TD_OK; i++) {
        status = td_shard_read_page(reader, i, memory->scratch_params, memory->scratch_state);
        size_t bytes = td_shard_params_bytes(written->shard),
               state_bytes = written->shard->state_bytes;
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
    writer.hashes = calloc((size_t)td_shard_pages(shard), HASH_WORDS * sizeof *writer.hashes);
    writer.places = calloc((size_t)td_shard_pages(shard), sizeof *writer.places);
    td_status status = TD_OK;
    if (!writer.hashes || !writer.places)
        status = td_fail(TD_ERR_MEMORY, "%s: no memory for its checksums", path);
    if (status == TD_OK)
        status = fill_shard(&writer, memory);
    if (status == TD_OK)
        status = verify_shard(&writer, memory);
    // A file that HDF5 could not close stays open in it; when the disk is full its space is needed
    // all the more.
    if (status != TD_OK && writer.descriptor >= 0)
        (void)!ftruncate(writer.descriptor, 0);
    if (writer.descriptor >= 0)
        close(writer.descriptor);
    free(writer.hashes);
    free(writer.places);
    return status;
}
