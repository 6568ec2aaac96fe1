#include "runtime/data/store.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/core/files.h"
#include "runtime/data/hdf5_lock.h"
#include "runtime/data/store_internal.h"

// Tokens and masks up to this size are held in memory; larger ones are read row by row.
static const uint64_t resident_bytes = (uint64_t)256 << 20;
static const int64_t max_elements = INT64_MAX / 64;

struct td_store {
    char path[TD_PATH_MAX];
    hid_t file, tokens, trained;
    int64_t n_rows, n_tokens;
    int64_t *offsets;     // (n_rows + 1)
    int32_t *row_trained; // (n_rows)
    int32_t max_token;
    td_hash fingerprint, content;
    char *account;
    int32_t *token_values; // (n_tokens), or NULL: read from the file
    uint8_t *trained_values;
};

static td_status damaged(const td_store *store, const char *what) {
    return td_fail(TD_ERR_DATA, "%s: not a whole token store: %s", store->path, what);
}

static td_status read_text(const td_store *store, hid_t object, const char *name, size_t limit, char **out) {
    td_status status = damaged(store, name);
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    hid_t type = attribute >= 0 ? H5Aget_type(attribute) : H5I_INVALID_HID;
    size_t bytes = type >= 0 ? H5Tget_size(type) : 0;
    char *text = NULL;
    if (type >= 0 && H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 && bytes > 0 &&
        bytes <= limit && H5Aget_storage_size(attribute) == bytes &&
        (text = calloc(bytes + 1, 1)) && H5Aread(attribute, type, text) >= 0) {
        td_error_clear();
        status = TD_OK;
        *out = text;
    } else {
        free(text);
    }
    if (type >= 0)
        H5Tclose(type);
    if (attribute >= 0)
        H5Aclose(attribute);
    return status;
}

static td_status read_hash(const td_store *store, hid_t object, const char *name, td_hash *out) {
    char *text;
    TD_TRY(read_text(store, object, name, 256, &text));
    td_status status = td_hash_from_hex(text, out);
    free(text);
    if (status == TD_OK)
        return TD_OK;
    td_error_clear();
    return damaged(store, name);
}

static td_status read_int(const td_store *store, const char *name, int *out) {
    hid_t attribute = H5Aopen(store->file, name, H5P_DEFAULT);
    int ok = attribute >= 0 && H5Aget_storage_size(attribute) == sizeof *out &&
             H5Aread(attribute, H5T_NATIVE_INT, out) >= 0;
    if (attribute >= 0)
        H5Aclose(attribute);
    return ok ? TD_OK : damaged(store, name);
}

// Opens a one-dimensional dataset of the type and tells its length.
static td_status open_dataset(const td_store *store, const char *name, hid_t type, hid_t *out,
                              int64_t *out_count) {
    hsize_t count = 0;
    hid_t dataset = H5Dopen2(store->file, name, H5P_DEFAULT);
    hid_t stored = dataset >= 0 ? H5Dget_type(dataset) : H5I_INVALID_HID;
    hid_t space = dataset >= 0 ? H5Dget_space(dataset) : H5I_INVALID_HID;
    int ok = stored >= 0 && space >= 0 && H5Tequal(stored, type) > 0 &&
             H5Sget_simple_extent_ndims(space) == 1 &&
             H5Sget_simple_extent_dims(space, &count, NULL) == 1 && count <= (hsize_t)max_elements;
    if (space >= 0)
        H5Sclose(space);
    if (stored >= 0)
        H5Tclose(stored);
    if (!ok) {
        if (dataset >= 0)
            H5Dclose(dataset);
        return damaged(store, name);
    }
    *out = dataset;
    *out_count = (int64_t)count;
    return TD_OK;
}

// The library would fill in what the file lacks; a length beyond the file's own size is refused before anything is allocated.
static td_status check_size(const td_store *store, const char *name, int64_t count, size_t item_bytes) {
    uint64_t file_bytes;
    TD_TRY(td_file_size(store->path, &file_bytes));
    if ((uint64_t)count > file_bytes / item_bytes)
        return damaged(store, name);
    return TD_OK;
}

static td_status read_span(const td_store *store, hid_t dataset, hid_t type, int64_t begin, int64_t count,
                           void *out) {
    hsize_t start = (hsize_t)begin, n = (hsize_t)count;
    hid_t space = H5Dget_space(dataset), memory = H5Screate_simple(1, &n, NULL);
    int ok = space >= 0 && memory >= 0 &&
             H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &n, NULL) >= 0 &&
             H5Dread(dataset, type, memory, space, H5P_DEFAULT, out) >= 0;
    if (memory >= 0)
        H5Sclose(memory);
    if (space >= 0)
        H5Sclose(space);
    return ok ? TD_OK : damaged(store, "a dataset cannot be read");
}

// A whole dataset, against its checksum.
static td_status read_column(const td_store *store, const char *name, hid_t type, size_t item_bytes,
                             void **out, int64_t *out_count) {
    hid_t dataset;
    td_hash expected;
    int64_t count;
    TD_TRY(open_dataset(store, name, type, &dataset, &count));
    void *data = NULL;
    td_status status = check_size(store, name, count, item_bytes);
    if (status == TD_OK)
        status = read_hash(store, dataset, TD_STORE_CHECKSUM, &expected);
    if (status == TD_OK && !(data = malloc((size_t)count * item_bytes + 1)))
        status = td_fail(TD_ERR_MEMORY, "no memory for %lld elements of %s", (long long)count, store->path);
    if (status == TD_OK && count > 0)
        status = read_span(store, dataset, type, 0, count, data);
    if (status == TD_OK && !td_hash_equal(td_hash_bytes(data, (size_t)count * item_bytes), expected))
        status = damaged(store, name);
    H5Dclose(dataset);
    if (status != TD_OK) {
        free(data);
        return status;
    }
    *out = data;
    *out_count = count;
    return TD_OK;
}

static td_status check_rows(const td_store *store) {
    if (store->offsets[0] != 0 || store->offsets[store->n_rows] != store->n_tokens)
        return damaged(store, TD_STORE_OFFSETS);
    for (int64_t row = 0; row < store->n_rows; row++) {
        int64_t length = store->offsets[row + 1] - store->offsets[row];
        if (length < 1 || length > INT32_MAX)
            return damaged(store, TD_STORE_OFFSETS);
        if (store->row_trained[row] < 0 || store->row_trained[row] >= length)
            return damaged(store, TD_STORE_ROW_TRAINED);
    }
    return TD_OK;
}

// What the run trains on: tokens, masks and borders, whatever file they came from.
static td_status hash_content(td_store *store) {
    td_hash parts[3];
    td_hasher *hasher;
    TD_TRY(read_hash(store, store->tokens, TD_STORE_CHECKSUM, &parts[0]));
    TD_TRY(read_hash(store, store->trained, TD_STORE_CHECKSUM, &parts[1]));
    parts[2] = td_hash_bytes(store->offsets, (size_t)(store->n_rows + 1) * sizeof *store->offsets);
    TD_TRY(td_hasher_create(&hasher));
    td_hasher_add(hasher, parts, sizeof parts);
    store->content = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    return TD_OK;
}

static td_status open_columns(td_store *store) {
    int64_t n_offsets, n_masks, n_row_trained;
    TD_TRY(read_column(store, TD_STORE_OFFSETS, H5T_NATIVE_INT64, sizeof(int64_t), (void **)&store->offsets,
                       &n_offsets));
    TD_TRY(read_column(store, TD_STORE_ROW_TRAINED, H5T_NATIVE_INT32, sizeof(int32_t),
                       (void **)&store->row_trained, &n_row_trained));
    TD_TRY(open_dataset(store, TD_STORE_TOKENS, H5T_NATIVE_INT32, &store->tokens, &store->n_tokens));
    TD_TRY(open_dataset(store, TD_STORE_TRAINED, H5T_NATIVE_UINT8, &store->trained, &n_masks));
    TD_TRY(check_size(store, TD_STORE_TOKENS, store->n_tokens, sizeof(int32_t)));
    store->n_rows = n_offsets - 1;
    if (n_offsets < 2 || n_row_trained != store->n_rows || n_masks != store->n_tokens)
        return damaged(store, "its parts do not fit together");
    TD_TRY(check_rows(store));
    return hash_content(store);
}

static td_status open_locked(td_store *store) {
    int version;
    store->file = H5Fopen(store->path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (store->file < 0)
        return td_fail(TD_ERR_DATA, "%s: not a whole token store: HDF5 cannot open it", store->path);
    TD_TRY(read_int(store, TD_STORE_VERSION_NAME, &version));
    if (version != TD_STORE_VERSION)
        return td_fail(TD_ERR_DATA, "%s: token store of version %d, this program reads %d", store->path,
                       version, TD_STORE_VERSION);
    TD_TRY(read_int(store, TD_STORE_MAX_TOKEN, &store->max_token));
    TD_TRY(read_hash(store, store->file, TD_STORE_FINGERPRINT, &store->fingerprint));
    TD_TRY(read_text(store, store->file, TD_STORE_ACCOUNT, TD_STORE_MAX_ACCOUNT, &store->account));
    return open_columns(store);
}

td_status td_store_open(const char *path, td_store **out) {
    if (strlen(path) >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "%s: the path is too long", path);
    td_store *store = calloc(1, sizeof *store);
    if (!store)
        return td_fail(TD_ERR_MEMORY, "no memory for %s", path);
    strcpy(store->path, path);
    store->file = store->tokens = store->trained = H5I_INVALID_HID;
    td_hdf5_lock();
    td_status status = open_locked(store);
    td_hdf5_unlock();
    if (status != TD_OK) {
        td_store_close(store);
        return status;
    }
    *out = store;
    return TD_OK;
}

void td_store_close(td_store *store) {
    if (!store)
        return;
    td_hdf5_lock();
    if (store->trained >= 0)
        H5Dclose(store->trained);
    if (store->tokens >= 0)
        H5Dclose(store->tokens);
    if (store->file >= 0)
        H5Fclose(store->file);
    td_hdf5_unlock();
    free(store->trained_values);
    free(store->token_values);
    free(store->account);
    free(store->row_trained);
    free(store->offsets);
    free(store);
}

// Streams a dataset past its checksum.
static td_status verify_column(const td_store *store, hid_t dataset, const char *name, hid_t type,
                               size_t item_bytes) {
    td_hash expected;
    td_hasher *hasher;
    TD_TRY(read_hash(store, dataset, TD_STORE_CHECKSUM, &expected));
    TD_TRY(td_hasher_create(&hasher));
    void *piece = malloc(TD_STORE_CHUNK * item_bytes);
    td_status status = piece ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory to verify %s", store->path);
    for (int64_t begin = 0; status == TD_OK && begin < store->n_tokens; begin += TD_STORE_CHUNK) {
        int64_t left = store->n_tokens - begin, count = left < TD_STORE_CHUNK ? left : TD_STORE_CHUNK;
        status = read_span(store, dataset, type, begin, count, piece);
        if (status == TD_OK)
            td_hasher_add(hasher, piece, (size_t)count * item_bytes);
    }
    if (status == TD_OK && !td_hash_equal(td_hasher_value(hasher), expected))
        status = damaged(store, name);
    free(piece);
    td_hasher_destroy(hasher);
    return status;
}

td_status td_store_verify(td_store *store) {
    td_hdf5_lock();
    td_status status =
        verify_column(store, store->tokens, TD_STORE_TOKENS, H5T_NATIVE_INT32, sizeof(int32_t));
    if (status == TD_OK)
        status =
            verify_column(store, store->trained, TD_STORE_TRAINED, H5T_NATIVE_UINT8, sizeof(uint8_t));
    td_hdf5_unlock();
    return status;
}

// Small stores are read once, against their checksums.
static td_status make_resident(td_store *store) {
    int64_t count;
    if (store->token_values || (uint64_t)store->n_tokens * 5 > resident_bytes)
        return TD_OK;
    TD_TRY(read_column(store, TD_STORE_TRAINED, H5T_NATIVE_UINT8, sizeof(uint8_t),
                       (void **)&store->trained_values, &count));
    return read_column(store, TD_STORE_TOKENS, H5T_NATIVE_INT32, sizeof(int32_t),
                       (void **)&store->token_values, &count);
}

static td_status read_row(td_store *store, int64_t begin, int64_t count, int32_t *tokens, uint8_t *trained) {
    TD_TRY(make_resident(store));
    if (store->token_values) {
        memcpy(tokens, store->token_values + begin, (size_t)count * sizeof *tokens);
        memcpy(trained, store->trained_values + begin, (size_t)count);
        return TD_OK;
    }
    TD_TRY(read_span(store, store->tokens, H5T_NATIVE_INT32, begin, count, tokens));
    return read_span(store, store->trained, H5T_NATIVE_UINT8, begin, count, trained);
}

td_status td_store_read_row(td_store *store, int64_t row, int32_t *tokens, uint8_t *trained) {
    if (row < 0 || row >= store->n_rows)
        return td_fail(TD_ERR_INTERNAL, "row %lld of a token store of %lld", (long long)row,
                       (long long)store->n_rows);
    int64_t begin = store->offsets[row];
    td_hdf5_lock();
    td_status status = read_row(store, begin, store->offsets[row + 1] - begin, tokens, trained);
    td_hdf5_unlock();
    return status;
}

td_hash td_store_fingerprint(const td_store *store) {
    return store->fingerprint;
}

td_hash td_store_content_hash(const td_store *store) {
    return store->content;
}

const char *td_store_account(const td_store *store) {
    return store->account;
}

int64_t td_store_rows(const td_store *store) {
    return store->n_rows;
}

int64_t td_store_tokens(const td_store *store) {
    return store->n_tokens;
}

const int64_t *td_store_offsets(const td_store *store) {
    return store->offsets;
}

const int32_t *td_store_row_trained(const td_store *store) {
    return store->row_trained;
}

int32_t td_store_max_token(const td_store *store) {
    return store->max_token;
}
