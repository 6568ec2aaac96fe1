// Writing a token store: into a temporary beside the target, checked by reading it back, then
// renamed.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/progress.h"
#include "runtime/data/hdf5_lock.h"
#include "runtime/data/store_internal.h"

#define NO_ID ((hid_t)-1)

enum { FILE_MODE = 0644 };

struct td_store_writer {
    char path[TD_PATH_MAX], temporary[TD_PATH_MAX];
    int descriptor; // of the temporary
    hid_t file;
    hid_t arrays[TD_STORE_ARRAYS]; // from the first write on
    int grows[TD_STORE_ARRAYS];    // more will come than what it was opened for
    td_store_pieces pieces[TD_STORE_ARRAYS];
    int64_t written[TD_STORE_ARRAYS]; // items in the file
    int32_t *tokens;                  // (TD_STORE_BUFFER_TOKENS)
    uint8_t *trained;                 // (TD_STORE_BUFFER_TOKENS)
    int64_t n_buffered;
    int64_t *offsets;     // (n_rows + 1)
    int32_t *row_trained; // (n_rows)
    int64_t n_rows, row_capacity, n_tokens;
    int32_t max_token;
    td_hasher *hashers[TD_STORE_ARRAYS];
};

static td_status fail_write(const td_store_writer *writer, const char *what) {
    return td_fail(TD_ERR_IO, "%s: cannot write %s: is the disk full?", writer->temporary, what);
}

// `items` 0: it grows, in pieces of what the buffer holds; else in one piece.
static hid_t create_array(hid_t file, td_store_array array, int64_t items) {
    hsize_t size = (hsize_t)items, most = items ? size : H5S_UNLIMITED;
    hsize_t piece = TD_STORE_BUFFER_TOKENS;
    hid_t space = H5Screate_simple(1, &size, &most), list = H5Pcreate(H5P_DATASET_CREATE);
    hid_t dataset = NO_ID;
    if (space >= 0 && list >= 0 && H5Pset_obj_track_times(list, 0) >= 0 &&
        H5Pset_fill_time(list, H5D_FILL_TIME_NEVER) >= 0 &&
        (items || H5Pset_chunk(list, 1, &piece) >= 0))
        dataset = H5Dcreate2(file, td_store_arrays[array].name, td_store_file_type(array), space,
                             H5P_DEFAULT, list, H5P_DEFAULT);
    H5Pclose(list);
    H5Sclose(space);
    return dataset;
}

// A killed run has left it, or nobody. What a link or a second name leads to is not written over.
static td_status open_temporary(td_store_writer *writer) {
    struct stat info;
    int flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    writer->descriptor = open(writer->temporary, flags, FILE_MODE);
    if (writer->descriptor < 0)
        return td_fail(TD_ERR_IO, "%s: cannot create it: %s", writer->temporary, strerror(errno));
    if (fstat(writer->descriptor, &info) != 0 || !S_ISREG(info.st_mode) || info.st_nlink != 1)
        return td_fail(TD_ERR_IO, "%s: is in the way: remove it", writer->temporary);
    return TD_OK;
}

static hid_t create_file(int descriptor) {
    char path[64];
    hid_t list = H5Pcreate(H5P_FILE_ACCESS), creation = H5Pcreate(H5P_FILE_CREATE), file = NO_ID;
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    // Locks keep a second run out of the temporary; file systems without them are used all the
    // same. Without times, equal rows make equal files.
    if (list >= 0 && creation >= 0 && H5Pset_obj_track_times(creation, 0) >= 0 &&
        H5Pset_libver_bounds(list, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST) >= 0 &&
        H5Pset_fclose_degree(list, H5F_CLOSE_STRONG) >= 0 && H5Pset_file_locking(list, 1, 1) >= 0)
        file = H5Fcreate(path, H5F_ACC_TRUNC, creation, list);
    H5Pclose(creation);
    H5Pclose(list);
    return file;
}

static td_status create_store(td_store_writer *writer) {
    TD_TRY(open_temporary(writer));
    writer->file = create_file(writer->descriptor);
    if (writer->file < 0)
        return td_fail(TD_ERR_IO, "%s: cannot create it: no space, or another run writes it",
                       writer->temporary);
    return TD_OK;
}

static td_status allocate(td_store_writer *writer) {
    writer->tokens = malloc(TD_STORE_BUFFER_TOKENS * sizeof *writer->tokens);
    writer->trained = malloc(TD_STORE_BUFFER_TOKENS);
    writer->offsets = calloc(1, sizeof *writer->offsets);
    if (!writer->tokens || !writer->trained || !writer->offsets)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for the write buffer", writer->path);
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        TD_TRY(td_hasher_create(&writer->hashers[array]));
    return TD_OK;
}

static td_status name_files(td_store_writer *writer, const char *path) {
    // One fixed name: what a killed run left is overwritten by the next.
    if (snprintf(writer->path, sizeof writer->path, "%s", path) >= TD_PATH_MAX ||
        snprintf(writer->temporary, sizeof writer->temporary, "%s.tmp", path) >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "path is longer than %d characters: %.80s...", TD_PATH_MAX - 5,
                       path);
    return TD_OK;
}

// Also after a failure: HDF5 may still hold data for a disk that is full.
static int close_file(td_store_writer *writer) {
    int done = 1;
    if (writer->file < 0)
        return 1;
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        if (writer->arrays[array] >= 0)
            done = H5Dclose(writer->arrays[array]) >= 0 && done;
    done = H5Fclose(writer->file) >= 0 && done;
    writer->file = NO_ID;
    return done;
}

static void destroy(td_store_writer *writer) {
    if (writer->descriptor >= 0)
        close(writer->descriptor);
    for (int array = 0; array < TD_STORE_ARRAYS; array++) {
        td_hasher_destroy(writer->hashers[array]);
        free(writer->pieces[array].addresses);
    }
    free(writer->tokens);
    free(writer->trained);
    free(writer->offsets);
    free(writer->row_trained);
    free(writer);
}

td_status td_store_writer_open(const char *path, td_store_writer **out) {
    td_store_writer *writer = calloc(1, sizeof *writer);
    if (!writer)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to write it", path);
    writer->file = NO_ID;
    writer->descriptor = -1;
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        writer->arrays[array] = NO_ID;
    td_status status = name_files(writer, path);
    if (status == TD_OK)
        status = allocate(writer);
    if (status != TD_OK) {
        destroy(writer);
        return status;
    }
    td_hdf5_lock();
    status = create_store(writer);
    td_hdf5_unlock();
    if (status != TD_OK) {
        // Without the file there is nothing of ours to remove; it may be another run's.
        if (writer->file < 0)
            destroy(writer);
        else
            td_store_writer_abandon(writer);
        return status;
    }
    *out = writer;
    return TD_OK;
}

void td_store_writer_abandon(td_store_writer *writer) {
    if (!writer)
        return;
    td_hdf5_lock();
    close_file(writer);
    td_hdf5_unlock();
    unlink(writer->temporary);
    destroy(writer);
}

// Those that nothing was written to yet. The lock is held.
static td_status open_arrays(td_store_writer *writer, td_store_array begin, td_store_array end,
                             const td_store_header *sizes) {
    for (int array = (int)begin; array < (int)end; array++) {
        int64_t items = sizes ? td_store_items(sizes, (td_store_array)array) : 0;
        if (writer->arrays[array] >= 0)
            continue;
        writer->arrays[array] = create_array(writer->file, (td_store_array)array, items);
        writer->grows[array] = items == 0;
        writer->pieces[array].items = items ? items : TD_STORE_BUFFER_TOKENS;
        if (writer->arrays[array] < 0)
            return fail_write(writer, td_store_arrays[array].name);
    }
    return TD_OK;
}

// Appends items to a dataset. The lock is held.
static td_status append(td_store_writer *writer, td_store_array array, const void *items,
                        int64_t count) {
    hsize_t start = (hsize_t)writer->written[array], n = (hsize_t)count, size = start + n;
    if (count == 0)
        return TD_OK;
    td_hasher_add(writer->hashers[array], items, (size_t)count * td_store_arrays[array].item_bytes);
    hid_t dataset = writer->arrays[array], memory = NO_ID, space = NO_ID;
    int done = !writer->grows[array] || H5Dset_extent(dataset, &size) >= 0;
    if (done) {
        memory = H5Screate_simple(1, &n, NULL);
        space = H5Dget_space(dataset);
        done =
            memory >= 0 && space >= 0 &&
            H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &n, NULL) >= 0 &&
            H5Dwrite(dataset, td_store_memory_type(array), memory, space, H5P_DEFAULT, items) >= 0;
        H5Sclose(memory);
        H5Sclose(space);
    }
    writer->written[array] += count;
    return done ? TD_OK : fail_write(writer, td_store_arrays[array].name);
}

static td_status flush_tokens(td_store_writer *writer) {
    td_hdf5_lock();
    td_status status = open_arrays(writer, TD_STORE_TOKENS, TD_STORE_OFFSETS, NULL);
    if (status == TD_OK)
        status = append(writer, TD_STORE_TOKENS, writer->tokens, writer->n_buffered);
    if (status == TD_OK)
        status = append(writer, TD_STORE_TRAINED, writer->trained, writer->n_buffered);
    td_hdf5_unlock();
    writer->n_buffered = 0;
    td_progress_tick();
    return status;
}

static td_status grow_rows(td_store_writer *writer) {
    if (writer->n_rows < writer->row_capacity)
        return TD_OK;
    int64_t capacity = writer->row_capacity ? writer->row_capacity * 2 : 1024;
    int64_t *offsets = realloc(writer->offsets, (size_t)(capacity + 1) * sizeof *writer->offsets);
    if (offsets)
        writer->offsets = offsets;
    int32_t *row_trained =
        realloc(writer->row_trained, (size_t)capacity * sizeof *writer->row_trained);
    if (row_trained)
        writer->row_trained = row_trained;
    if (!offsets || !row_trained)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for %lld rows", writer->path,
                       (long long)capacity);
    writer->row_capacity = capacity;
    return TD_OK;
}

static td_status buffer_tokens(td_store_writer *writer, const int32_t *tokens,
                               const uint8_t *trained, int64_t count) {
    while (count > 0) {
        int64_t room = TD_STORE_BUFFER_TOKENS - writer->n_buffered;
        int64_t part = count < room ? count : room;
        memcpy(writer->tokens + writer->n_buffered, tokens, (size_t)part * sizeof *tokens);
        for (int64_t i = 0; i < part; i++)
            writer->trained[writer->n_buffered + i] = trained[i] != 0;
        writer->n_buffered += part;
        if (writer->n_buffered == TD_STORE_BUFFER_TOKENS)
            TD_TRY(flush_tokens(writer));
        tokens += part;
        trained += part;
        count -= part;
    }
    return TD_OK;
}

td_status td_store_writer_add(td_store_writer *writer, const int32_t *tokens,
                              const uint8_t *trained, int64_t count) {
    int64_t n_trained = 0;
    int32_t max_token = writer->max_token;
    if (count < 1 || count > INT32_MAX)
        return td_fail(TD_ERR_DATA, "%s: row %lld has %lld tokens", writer->path,
                       (long long)writer->n_rows, (long long)count);
    for (int64_t i = 0; i < count; i++) {
        if (tokens[i] < 0)
            return td_fail(TD_ERR_DATA, "%s: row %lld has the token id %d", writer->path,
                           (long long)writer->n_rows, (int)tokens[i]);
        max_token = tokens[i] > max_token ? tokens[i] : max_token;
        n_trained += i > 0 && trained[i];
    }
    TD_TRY(grow_rows(writer));
    TD_TRY(buffer_tokens(writer, tokens, trained, count));
    writer->max_token = max_token;
    writer->n_tokens += count;
    writer->row_trained[writer->n_rows] = (int32_t)n_trained;
    writer->offsets[++writer->n_rows] = writer->n_tokens;
    return TD_OK;
}

static int write_attribute(hid_t file, const char *name, hid_t file_type, hid_t memory_type,
                           const void *value) {
    hid_t space = H5Screate(H5S_SCALAR), attribute = NO_ID;
    if (space >= 0)
        attribute = H5Acreate2(file, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT);
    int done = attribute >= 0 && H5Awrite(attribute, memory_type, value) >= 0;
    if (attribute >= 0)
        done = H5Aclose(attribute) >= 0 && done;
    H5Sclose(space);
    return done;
}

static int write_int(hid_t file, const char *name, int64_t value) {
    return write_attribute(file, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

static int write_text(hid_t file, const char *name, const char *text) {
    hid_t type = H5Tcopy(H5T_C_S1);
    int done = type >= 0 && H5Tset_size(type, strlen(text) + 1) >= 0 &&
               write_attribute(file, name, type, type, text);
    H5Tclose(type);
    return done;
}

static int write_hash(hid_t file, const char *name, td_hash hash) {
    char hex[TD_HASH_HEX_CHARS];
    td_hash_to_hex(hash, hex);
    return write_text(file, name, hex);
}

static td_status write_header(const td_store_writer *writer, const td_store_header *header,
                              const char *account) {
    td_hash hash = {0};
    TD_TRY(td_store_header_hash(header, account, &hash));
    hid_t file = writer->file;
    int done = write_text(file, "format", TD_STORE_FORMAT) &&
               write_int(file, "version", TD_STORE_VERSION) &&
               write_int(file, "n_rows", header->n_rows) &&
               write_int(file, "n_tokens", header->n_tokens) &&
               write_int(file, "max_token", header->max_token) &&
               write_hash(file, "fingerprint", header->fingerprint) &&
               write_text(file, "account", account) && write_hash(file, "hash_header", hash);
    for (int array = 0; array < TD_STORE_ARRAYS && done; array++)
        done = write_hash(file, td_store_arrays[array].hash_name, header->hashes[array]);
    return done ? TD_OK : fail_write(writer, "its attributes");
}

static td_status write_arrays(td_store_writer *writer, const td_store_header *header) {
    TD_TRY(open_arrays(writer, TD_STORE_TOKENS, TD_STORE_ARRAYS, header));
    TD_TRY(append(writer, TD_STORE_TOKENS, writer->tokens, writer->n_buffered));
    TD_TRY(append(writer, TD_STORE_TRAINED, writer->trained, writer->n_buffered));
    TD_TRY(append(writer, TD_STORE_OFFSETS, writer->offsets, writer->n_rows + 1));
    return append(writer, TD_STORE_ROW_TRAINED, writer->row_trained, writer->n_rows);
}

static haddr_t find_piece(hid_t dataset, hsize_t begin, int grows) {
    haddr_t address = HADDR_UNDEF;
    hsize_t bytes;
    unsigned filters;
    if (!grows)
        return H5Dget_offset(dataset);
    if (H5Dget_chunk_info_by_coord(dataset, &begin, &filters, &address, &bytes) < 0)
        return HADDR_UNDEF;
    return address;
}

static td_status find_pieces(td_store_writer *writer, td_store_array array) {
    td_store_pieces *pieces = &writer->pieces[array];
    int64_t n = td_store_n_pieces(writer->written[array], pieces->items);
    pieces->addresses = malloc((size_t)n * sizeof *pieces->addresses);
    if (!pieces->addresses)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its index", writer->path);
    for (int64_t i = 0; i < n; i++) {
        pieces->addresses[i] =
            find_piece(writer->arrays[array], (hsize_t)(i * pieces->items), writer->grows[array]);
        if (pieces->addresses[i] == HADDR_UNDEF)
            return fail_write(writer, "where its rows are");
    }
    return TD_OK;
}

static td_status finish_hdf5(td_store_writer *writer, td_store_header *header,
                             const char *account) {
    TD_TRY(write_arrays(writer, header));
    for (int array = 0; array < TD_STORE_ARRAYS; array++) {
        header->hashes[array] = td_hasher_value(writer->hashers[array]);
        TD_TRY(find_pieces(writer, (td_store_array)array));
    }
    TD_TRY(write_header(writer, header, account));
    int flushed = H5Fflush(writer->file, H5F_SCOPE_GLOBAL) >= 0;
    return close_file(writer) && flushed ? TD_OK : fail_write(writer, "its end");
}

static td_status finish_file(td_store_writer *writer, td_hash fingerprint, const char *account) {
    td_store_header header = {.n_rows = writer->n_rows,
                              .n_tokens = writer->n_tokens,
                              .max_token = writer->max_token,
                              .fingerprint = fingerprint};
    td_hdf5_lock();
    td_status status = finish_hdf5(writer, &header, account);
    td_hdf5_unlock();
    TD_TRY(status);
    TD_TRY(td_store_write_index(writer->descriptor, writer->temporary, &header, writer->pieces,
                                account));
    TD_TRY(td_store_seal(writer->descriptor, writer->temporary));
    return td_file_sync(writer->temporary);
}

// HDF5 reports success for some writes that a full disk swallowed, so only reading it back proves
// the file.
static td_status verify_temporary(const td_store_writer *writer, td_hash fingerprint) {
    td_store *store = NULL;
    TD_TRY(td_store_open(writer->temporary, &store));
    td_status status = td_store_verify(store);
    if (status == TD_OK &&
        (td_store_rows(store) != writer->n_rows || td_store_tokens(store) != writer->n_tokens ||
         !td_hash_equal(td_store_fingerprint(store), fingerprint)))
        status =
            td_fail(TD_ERR_IO, "%s: reads back other data than was written", writer->temporary);
    td_store_close(store);
    return status;
}

static td_status put_in_place(const td_store_writer *writer) {
    char parent[TD_PATH_MAX];
    snprintf(parent, sizeof parent, "%s", writer->path);
    char *slash = strrchr(parent, '/');
    if (!slash)
        snprintf(parent, sizeof parent, ".");
    else
        slash[slash == parent] = '\0';
    if (rename(writer->temporary, writer->path) != 0)
        return td_fail(TD_ERR_IO, "%s: cannot replace: %s", writer->path, strerror(errno));
    return td_file_sync(parent);
}

td_status td_store_writer_commit(td_store_writer *writer, td_hash fingerprint,
                                 const char *account_json) {
    td_status status = TD_OK;
    if (writer->n_rows == 0)
        status = td_fail(TD_ERR_DATA, "%s: has no rows", writer->path);
    else if (strlen(account_json) >= TD_STORE_MAX_ACCOUNT_BYTES)
        status = td_fail(TD_ERR_INTERNAL, "%s: the account is too long", writer->path);
    if (status == TD_OK)
        status = finish_file(writer, fingerprint, account_json);
    if (status == TD_OK)
        status = verify_temporary(writer, fingerprint);
    if (status == TD_OK)
        status = put_in_place(writer);
    if (status != TD_OK) {
        td_store_writer_abandon(writer);
        return status;
    }
    destroy(writer);
    return TD_OK;
}
