#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/data/hdf5_lock.h"
#include "runtime/data/store.h"
#include "runtime/data/store_internal.h"

// A dataset that grows by whole buffers.
typedef struct stored_column {
    hid_t dataset;
    hid_t type;
    size_t item_bytes;
    hsize_t written;        // elements in the file
    unsigned char *buffer;  // (TD_STORE_CHUNK) elements
    size_t buffered;
    td_hasher *hasher;
} stored_column;

struct td_store_writer {
    char path[TD_PATH_MAX], temporary[TD_PATH_MAX];
    hid_t file;
    stored_column tokens, trained, offsets, row_trained;
    int64_t n_tokens;
    int32_t max_token;
};

static td_status write_failed(const td_store_writer *writer) {
    return td_fail(TD_ERR_IO, "%s: cannot be written: %s", writer->temporary,
                   errno ? strerror(errno) : "HDF5 refused (is the disk full?)");
}

static hid_t create_dataset(hid_t file, const char *name, hid_t type) {
    hsize_t none = 0, unlimited = H5S_UNLIMITED, chunk = TD_STORE_CHUNK;
    hid_t space = H5Screate_simple(1, &none, &unlimited);
    hid_t layout = H5Pcreate(H5P_DATASET_CREATE);
    hid_t dataset = H5I_INVALID_HID;
    if (space >= 0 && layout >= 0 && H5Pset_chunk(layout, 1, &chunk) >= 0)
        dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, layout, H5P_DEFAULT);
    H5Pclose(layout);
    H5Sclose(space);
    return dataset;
}

static td_status column_open(td_store_writer *writer, stored_column *column, const char *name, hid_t type,
                             size_t item_bytes) {
    column->type = type;
    column->item_bytes = item_bytes;
    column->dataset = create_dataset(writer->file, name, type);
    if (column->dataset < 0)
        return write_failed(writer);
    column->buffer = malloc(TD_STORE_CHUNK * item_bytes);
    if (!column->buffer)
        return td_fail(TD_ERR_MEMORY, "no memory for the token store's buffers");
    return td_hasher_create(&column->hasher);
}

static void column_close(stored_column *column) {
    if (column->dataset >= 0)
        H5Dclose(column->dataset);
    column->dataset = H5I_INVALID_HID;
    free(column->buffer);
    column->buffer = NULL;
    td_hasher_destroy(column->hasher);
    column->hasher = NULL;
}

static int append(stored_column *column) {
    hsize_t begin = column->written, count = column->buffered, size = begin + count;
    if (count == 0)
        return 1;
    int ok = H5Dset_extent(column->dataset, &size) >= 0;
    hid_t space = ok ? H5Dget_space(column->dataset) : H5I_INVALID_HID;
    hid_t memory = H5Screate_simple(1, &count, NULL);
    ok = ok && space >= 0 && memory >= 0 &&
         H5Sselect_hyperslab(space, H5S_SELECT_SET, &begin, NULL, &count, NULL) >= 0 &&
         H5Dwrite(column->dataset, column->type, memory, space, H5P_DEFAULT, column->buffer) >= 0;
    if (memory >= 0)
        H5Sclose(memory);
    if (space >= 0)
        H5Sclose(space);
    column->written = size;
    column->buffered = 0;
    return ok;
}

static td_status column_add(td_store_writer *writer, stored_column *column, const void *items, int64_t count) {
    const unsigned char *next = items;
    td_hasher_add(column->hasher, items, (size_t)count * column->item_bytes);
    for (size_t left = (size_t)count; left > 0;) {
        size_t room = TD_STORE_CHUNK - column->buffered, n = left < room ? left : room;
        memcpy(column->buffer + column->buffered * column->item_bytes, next, n * column->item_bytes);
        column->buffered += n;
        next += n * column->item_bytes;
        left -= n;
        if (column->buffered == TD_STORE_CHUNK && !append(column))
            return write_failed(writer);
    }
    return TD_OK;
}

static td_status open_file(td_store_writer *writer) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    errno = 0;
    if (access >= 0 && H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST) >= 0)
        writer->file = H5Fcreate(writer->temporary, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    H5Pclose(access);
    if (writer->file < 0)
        return write_failed(writer);
    TD_TRY(column_open(writer, &writer->tokens, TD_STORE_TOKENS, H5T_NATIVE_INT32, sizeof(int32_t)));
    TD_TRY(column_open(writer, &writer->trained, TD_STORE_TRAINED, H5T_NATIVE_UINT8, sizeof(uint8_t)));
    TD_TRY(column_open(writer, &writer->offsets, TD_STORE_OFFSETS, H5T_NATIVE_INT64, sizeof(int64_t)));
    TD_TRY(column_open(writer, &writer->row_trained, TD_STORE_ROW_TRAINED, H5T_NATIVE_INT32,
                       sizeof(int32_t)));
    int64_t first = 0;
    return column_add(writer, &writer->offsets, &first, 1);
}

static void close_file(td_store_writer *writer) {
    column_close(&writer->tokens);
    column_close(&writer->trained);
    column_close(&writer->offsets);
    column_close(&writer->row_trained);
    if (writer->file >= 0)
        H5Fclose(writer->file);
    writer->file = H5I_INVALID_HID;
}

td_status td_store_writer_open(const char *path, td_store_writer **out) {
    td_store_writer *writer = calloc(1, sizeof *writer);
    if (!writer)
        return td_fail(TD_ERR_MEMORY, "no memory for the token store");
    writer->file = writer->tokens.dataset = writer->trained.dataset = writer->offsets.dataset =
        writer->row_trained.dataset = H5I_INVALID_HID;
    writer->max_token = -1;
    int path_bytes = snprintf(writer->path, sizeof writer->path, "%s", path);
    int temporary_bytes =
        snprintf(writer->temporary, sizeof writer->temporary, "%s.tmp-%ld", path, (long)getpid());
    td_status status = path_bytes < TD_PATH_MAX && temporary_bytes < TD_PATH_MAX
                           ? TD_OK
                           : td_fail(TD_ERR_USAGE, "%s: the path is too long", path);
    if (status == TD_OK) {
        td_hdf5_lock();
        status = open_file(writer);
        td_hdf5_unlock();
    }
    if (status != TD_OK) {
        td_store_writer_abandon(writer);
        return status;
    }
    *out = writer;
    return TD_OK;
}

td_status td_store_writer_add(td_store_writer *writer, const int32_t *tokens, const uint8_t *trained,
                              int64_t count) {
    int32_t n_trained = 0;
    if (count < 1)
        return td_fail(TD_ERR_INTERNAL, "an empty row for the token store");
    for (int64_t i = 0; i < count; i++) {
        n_trained += i > 0 && trained[i];
        if (tokens[i] > writer->max_token)
            writer->max_token = tokens[i];
    }
    writer->n_tokens += count;
    td_hdf5_lock();
    errno = 0;
    td_status status = column_add(writer, &writer->tokens, tokens, count);
    if (status == TD_OK)
        status = column_add(writer, &writer->trained, trained, count);
    if (status == TD_OK)
        status = column_add(writer, &writer->offsets, &writer->n_tokens, 1);
    if (status == TD_OK)
        status = column_add(writer, &writer->row_trained, &n_trained, 1);
    td_hdf5_unlock();
    return status;
}

static int write_text(hid_t object, const char *name, const char *text) {
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR), attribute = H5I_INVALID_HID;
    int ok = type >= 0 && space >= 0 && H5Tset_size(type, strlen(text) + 1) >= 0;
    if (ok)
        attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    ok = ok && attribute >= 0 && H5Awrite(attribute, type, text) >= 0;
    if (attribute >= 0)
        ok = H5Aclose(attribute) >= 0 && ok;
    H5Sclose(space);
    H5Tclose(type);
    return ok;
}

static int write_int(hid_t object, const char *name, int value) {
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attribute = H5Acreate2(object, name, H5T_NATIVE_INT, space, H5P_DEFAULT, H5P_DEFAULT);
    int ok = attribute >= 0 && H5Awrite(attribute, H5T_NATIVE_INT, &value) >= 0;
    if (attribute >= 0)
        ok = H5Aclose(attribute) >= 0 && ok;
    H5Sclose(space);
    return ok;
}

static int finish_column(stored_column *column) {
    char hex[TD_HASH_HEX_CHARS];
    td_hash_to_hex(td_hasher_value(column->hasher), hex);
    return append(column) && write_text(column->dataset, TD_STORE_CHECKSUM, hex);
}

static int finish_file(td_store_writer *writer, td_hash fingerprint, const char *account) {
    char hex[TD_HASH_HEX_CHARS];
    td_hash_to_hex(fingerprint, hex);
    return finish_column(&writer->tokens) && finish_column(&writer->trained) &&
           finish_column(&writer->offsets) && finish_column(&writer->row_trained) &&
           write_text(writer->file, TD_STORE_FINGERPRINT, hex) &&
           write_text(writer->file, TD_STORE_ACCOUNT, account) &&
           write_int(writer->file, TD_STORE_MAX_TOKEN, writer->max_token) &&
           write_int(writer->file, TD_STORE_VERSION_NAME, TD_STORE_VERSION) &&
           H5Fflush(writer->file, H5F_SCOPE_GLOBAL) >= 0;
}

// On a full disk flush and close of the library may report success: what counts is what can be read back.
static td_status verify(const char *path) {
    td_store *store;
    TD_TRY(td_store_open(path, &store));
    td_status status = td_store_verify(store);
    td_store_close(store);
    return status;
}

static td_status publish(const td_store_writer *writer) {
    char folder[TD_PATH_MAX];
    TD_TRY(td_file_sync(writer->temporary));
    td_status status = verify(writer->temporary);
    if (status != TD_OK) {
        td_error_clear();
        return td_fail(TD_ERR_IO, "%s: what was written cannot be read back (is the disk full?)",
                       writer->temporary);
    }
    if (rename(writer->temporary, writer->path) != 0)
        return td_fail(TD_ERR_IO, "%s: cannot be renamed: %s", writer->temporary, strerror(errno));
    snprintf(folder, sizeof folder, "%s", writer->path);
    char *slash = strrchr(folder, '/');
    if (slash)
        *slash = '\0';
    return td_file_sync(!slash ? "." : slash == folder ? "/" : folder);
}

td_status td_store_writer_commit(td_store_writer *writer, td_hash fingerprint, const char *account_json) {
    td_status status = TD_OK;
    td_hdf5_lock();
    errno = 0;
    if (strlen(account_json) >= TD_STORE_MAX_ACCOUNT)
        status = td_fail(TD_ERR_INTERNAL, "the account of the token store is too long");
    else if (!finish_file(writer, fingerprint, account_json))
        status = write_failed(writer);
    close_file(writer);
    td_hdf5_unlock();
    if (status == TD_OK)
        status = publish(writer);
    td_store_writer_abandon(writer);
    return status;
}

void td_store_writer_abandon(td_store_writer *writer) {
    td_hdf5_lock();
    close_file(writer);
    td_hdf5_unlock();
    if (writer->temporary[0])
        unlink(writer->temporary);
    free(writer);
}
