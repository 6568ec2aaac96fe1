// Reading a token store. Nothing in the file is believed before it was checked.
#include "runtime/data/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/progress.h"
#include "runtime/data/hdf5_lock.h"
#include "runtime/data/store_internal.h"

#define NO_ID ((hid_t)-1)

enum {
    VERIFY_TOKENS = 1 << 18,
    RESIDENT_BYTES = 256 << 20, // up to this size tokens and masks are kept in memory
};

struct td_store {
    char path[TD_PATH_MAX];
    uint64_t bytes;
    hid_t file;
    hid_t arrays[TD_STORE_ARRAYS];
    td_store_header header;
    char *account;
    int64_t *offsets;     // (n_rows + 1)
    int32_t *row_trained; // (n_rows)
    int32_t *tokens;      // (n_tokens), NULL: read from the file
    uint8_t *trained;     // (n_tokens)
};

static td_status fail_damaged(const td_store *store, const char *what) {
    return td_fail(TD_ERR_DATA,
                   "%s: damaged token store: %s; delete it and it is made again from the rows",
                   store->path, what);
}

static td_status fail_damaged_array(const td_store *store, td_store_array array, const char *what) {
    return td_fail(TD_ERR_DATA,
                   "%s: damaged token store: /%s %s; delete it and it is made again from the rows",
                   store->path, td_store_arrays[array].name, what);
}

// By its descriptor, so that HDF5 reads the file that was checked.
static hid_t open_file(int descriptor) {
    char path[64];
    hid_t list = H5Pcreate(H5P_FILE_ACCESS), file = NO_ID;
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    // A store is complete when it gets its name and never changes, so readers need no lock.
    if (list >= 0 && H5Pset_fclose_degree(list, H5F_CLOSE_STRONG) >= 0 &&
        H5Pset_file_locking(list, 0, 1) >= 0)
        file = H5Fopen(path, H5F_ACC_RDONLY, list);
    H5Pclose(list);
    return file;
}

static hid_t open_attribute(hid_t file, const char *name) {
    if (H5Aexists(file, name) <= 0)
        return NO_ID;
    hid_t attribute = H5Aopen(file, name, H5P_DEFAULT), space = NO_ID;
    if (attribute >= 0)
        space = H5Aget_space(attribute);
    int is_scalar = space >= 0 && H5Sget_simple_extent_type(space) == H5S_SCALAR;
    H5Sclose(space);
    if (attribute >= 0 && !is_scalar) {
        H5Aclose(attribute);
        return NO_ID;
    }
    return attribute;
}

static td_status read_int(const td_store *store, const char *name, int64_t min, int64_t max,
                          int64_t *out) {
    hid_t attribute = open_attribute(store->file, name), type = NO_ID;
    int64_t value = 0;
    if (attribute >= 0)
        type = H5Aget_type(attribute);
    int done = type >= 0 && H5Tget_class(type) == H5T_INTEGER &&
               H5Aread(attribute, H5T_NATIVE_INT64, &value) >= 0;
    H5Tclose(type);
    H5Aclose(attribute);
    if (!done || value < min || value > max)
        return td_fail(TD_ERR_DATA,
                       "%s: damaged token store: attribute %s is missing or out of range",
                       store->path, name);
    *out = value;
    return TD_OK;
}

// Text of a fixed-length string attribute, NUL-terminated; the caller frees. NULL when it is no
// such thing.
static char *read_text(hid_t file, const char *name, size_t max_bytes) {
    hid_t attribute = open_attribute(file, name), type = NO_ID;
    char *text = NULL;
    if (attribute >= 0)
        type = H5Aget_type(attribute);
    if (type >= 0 && H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0) {
        size_t bytes = H5Tget_size(type);
        if (bytes > 0 && bytes <= max_bytes)
            text = calloc(bytes + 1, 1);
        if (text && H5Aread(attribute, type, text) < 0) {
            free(text);
            text = NULL;
        }
    }
    H5Tclose(type);
    H5Aclose(attribute);
    return text;
}

static td_status read_hash(const td_store *store, const char *name, td_hash *out) {
    char *text = read_text(store->file, name, TD_HASH_HEX_CHARS);
    td_hash hash;
    int done = text && strlen(text) == TD_HASH_HEX_CHARS - 1 &&
               strspn(text, "0123456789abcdef") == TD_HASH_HEX_CHARS - 1 &&
               td_hash_from_hex(text, &hash) == TD_OK;
    free(text);
    if (!done)
        return td_fail(TD_ERR_DATA, "%s: damaged token store: attribute %s is no checksum",
                       store->path, name);
    *out = hash;
    return TD_OK;
}

static td_status read_format(const td_store *store) {
    char *format = read_text(store->file, "format", 64);
    int known = format && strcmp(format, TD_STORE_FORMAT) == 0;
    int64_t version;
    free(format);
    if (!known)
        return td_fail(TD_ERR_DATA, "%s: is an HDF5 file but no token store", store->path);
    TD_TRY(read_int(store, "version", 1, INT32_MAX, &version));
    if (version != TD_STORE_VERSION)
        return td_fail(TD_ERR_DATA, "%s: is a token store of version %lld; this program reads %d",
                       store->path, (long long)version, TD_STORE_VERSION);
    return TD_OK;
}

static td_status read_header(td_store *store) {
    td_store_header *header = &store->header;
    td_hash expected, actual = {0};
    TD_TRY(read_format(store));
    TD_TRY(read_int(store, "n_rows", 1, TD_STORE_MAX_TOKENS, &header->n_rows));
    TD_TRY(read_int(store, "n_tokens", header->n_rows, TD_STORE_MAX_TOKENS, &header->n_tokens));
    TD_TRY(read_int(store, "max_token", 0, INT32_MAX, &header->max_token));
    TD_TRY(read_hash(store, "fingerprint", &header->fingerprint));
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        TD_TRY(read_hash(store, td_store_arrays[array].hash_name, &header->hashes[array]));
    TD_TRY(read_hash(store, "hash_header", &expected));
    store->account = read_text(store->file, "account", TD_STORE_MAX_ACCOUNT_BYTES);
    if (!store->account)
        return fail_damaged(store, "it has no account");
    TD_TRY(td_store_header_hash(header, store->account, &actual));
    return td_hash_equal(expected, actual) ? TD_OK
                                           : fail_damaged(store, "attributes do not fit together");
}

static int64_t expected_items(const td_store *store, td_store_array array) {
    switch (array) {
    case TD_STORE_OFFSETS:
        return store->header.n_rows + 1;
    case TD_STORE_ROW_TRAINED:
        return store->header.n_rows;
    default:
        return store->header.n_tokens;
    }
}

// Guards against extents that would make us allocate more than a file of this size can hold.
static td_status check_file_size(const td_store *store) {
    uint64_t needed = 0;
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        needed += (uint64_t)expected_items(store, (td_store_array)array) *
                  td_store_arrays[array].item_bytes;
    return store->bytes >= needed ? TD_OK
                                  : fail_damaged(store, "the file is too short for its rows");
}

// Asked before a name is opened: the file that a link leads to must not even be looked at.
static int is_hard_link(hid_t file, const char *name) {
    H5L_info_t link;
    return H5Lexists(file, name, H5P_DEFAULT) > 0 &&
           H5Lget_info(file, name, &link, H5P_DEFAULT) >= 0 && link.type == H5L_TYPE_HARD;
}

// Data must lie in this file, as it is: no virtual or external storage, no filter, and in chunks of
// the writer's size, as reading takes memory for whole ones.
static int is_plain_storage(hid_t dataset, hsize_t chunk_items) {
    hsize_t chunk = 0;
    hid_t list = H5Dget_create_plist(dataset);
    int plain = list >= 0 && H5Pget_layout(list) == H5D_CHUNKED &&
                H5Pget_chunk(list, 1, &chunk) == 1 && chunk == chunk_items &&
                H5Pget_nfilters(list) == 0 && H5Pget_external_count(list) == 0;
    H5Pclose(list);
    return plain;
}

static int is_expected_type(hid_t dataset, size_t item_bytes) {
    hid_t type = H5Dget_type(dataset);
    int expected =
        type >= 0 && H5Tget_class(type) == H5T_INTEGER && H5Tget_size(type) == item_bytes;
    H5Tclose(type);
    return expected;
}

static int is_expected_extent(hid_t dataset, int64_t items) {
    hid_t space = H5Dget_space(dataset);
    hsize_t extent = 0;
    int expected = space >= 0 && H5Sget_simple_extent_ndims(space) == 1 &&
                   H5Sget_simple_extent_dims(space, &extent, NULL) == 1 && extent == (hsize_t)items;
    H5Sclose(space);
    return expected;
}

static td_status open_array(td_store *store, td_store_array array) {
    const td_store_array_info *info = &td_store_arrays[array];
    hid_t dataset = NO_ID;
    if (is_hard_link(store->file, info->name))
        dataset = H5Dopen2(store->file, info->name, H5P_DEFAULT);
    store->arrays[array] = dataset;
    if (dataset < 0)
        return fail_damaged_array(store, array, "is missing or a link");
    if (!is_plain_storage(dataset, (hsize_t)info->chunk_items))
        return fail_damaged_array(store, array, "is not stored plainly");
    if (!is_expected_type(dataset, info->item_bytes))
        return fail_damaged_array(store, array, "has another type");
    if (!is_expected_extent(dataset, expected_items(store, array)))
        return fail_damaged_array(store, array, "has another length");
    return TD_OK;
}

static td_status read_items(const td_store *store, td_store_array array, int64_t begin,
                            int64_t count, void *out) {
    hsize_t start = (hsize_t)begin, n = (hsize_t)count;
    hid_t memory = H5Screate_simple(1, &n, NULL), space = H5Dget_space(store->arrays[array]);
    int done = memory >= 0 && space >= 0 &&
               H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &n, NULL) >= 0 &&
               H5Dread(store->arrays[array], td_store_memory_type(array), memory, space,
                       H5P_DEFAULT, out) >= 0;
    H5Sclose(memory);
    H5Sclose(space);
    return done ? TD_OK : fail_damaged_array(store, array, "cannot be read");
}

static td_status read_whole(const td_store *store, td_store_array array, void *out) {
    size_t items = (size_t)expected_items(store, array);
    TD_TRY(read_items(store, array, 0, (int64_t)items, out));
    td_hash hash = td_hash_bytes(out, items * td_store_arrays[array].item_bytes);
    if (!td_hash_equal(hash, store->header.hashes[array]))
        return fail_damaged_array(store, array, "does not match its checksum");
    return TD_OK;
}

static td_status read_index(td_store *store, td_store_array array, void **out) {
    size_t items = (size_t)expected_items(store, array);
    *out = malloc(items * td_store_arrays[array].item_bytes);
    if (!*out)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its %zu rows", store->path, items);
    return read_whole(store, array, *out);
}

static td_status check_index(const td_store *store) {
    const int64_t *offsets = store->offsets;
    int64_t n_rows = store->header.n_rows;
    if (offsets[0] != 0 || offsets[n_rows] != store->header.n_tokens)
        return fail_damaged_array(store, TD_STORE_OFFSETS, "does not cover the tokens");
    for (int64_t row = 0; row < n_rows; row++) {
        int64_t length = offsets[row + 1] - offsets[row];
        // The first test keeps the subtraction of the next row in range.
        if (offsets[row + 1] < 0 || offsets[row + 1] > store->header.n_tokens || length < 1 ||
            length > INT32_MAX)
            return fail_damaged_array(store, TD_STORE_OFFSETS, "does not ascend");
        if (store->row_trained[row] < 0 || store->row_trained[row] >= length)
            return fail_damaged_array(store, TD_STORE_ROW_TRAINED, "does not fit the rows");
    }
    return TD_OK;
}

static td_status open_locked(td_store *store, int descriptor) {
    store->file = open_file(descriptor);
    if (store->file < 0)
        return td_fail(TD_ERR_DATA,
                       "%s: cannot be opened as HDF5: it is truncated, damaged or something else; "
                       "delete it and it is made again from the rows",
                       store->path);
    TD_TRY(read_header(store));
    TD_TRY(check_file_size(store));
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        TD_TRY(open_array(store, (td_store_array)array));
    TD_TRY(read_index(store, TD_STORE_OFFSETS, (void **)&store->offsets));
    TD_TRY(read_index(store, TD_STORE_ROW_TRAINED, (void **)&store->row_trained));
    return check_index(store);
}

static td_status open_checked(td_store *store) {
    int descriptor;
    TD_TRY(td_file_open(store->path, 1, &descriptor, &store->bytes));
    td_status status = td_store_check_seal(descriptor, store->path, store->bytes);
    if (status == TD_OK) {
        td_hdf5_lock();
        status = open_locked(store, descriptor);
        td_hdf5_unlock();
    }
    close(descriptor);
    return status;
}

td_status td_store_open(const char *path, td_store **out) {
    td_store *store = calloc(1, sizeof *store);
    if (!store)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to open it", path);
    store->file = NO_ID;
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        store->arrays[array] = NO_ID;
    td_status status = TD_OK;
    if (snprintf(store->path, sizeof store->path, "%s", path) >= TD_PATH_MAX)
        status = td_fail(TD_ERR_USAGE, "path is too long: %.80s...", path);
    if (status == TD_OK)
        status = open_checked(store);
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
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        if (store->arrays[array] >= 0)
            H5Dclose(store->arrays[array]);
    if (store->file >= 0)
        H5Fclose(store->file);
    td_hdf5_unlock();
    free(store->account);
    free(store->offsets);
    free(store->row_trained);
    free(store->tokens);
    free(store->trained);
    free(store);
}

// What one pass over the tokens recomputes.
typedef struct verification {
    td_hasher *hashers[2];
    int32_t *tokens;
    uint8_t *trained;
    int64_t row;       // that the next token belongs to
    int64_t n_trained; // of that row so far
    int32_t max_token;
} verification;

static td_status check_token(const td_store *store, verification *v, int64_t at, int32_t token,
                             uint8_t trained) {
    if (token < 0 || trained > 1)
        return fail_damaged(store, "a token or mask is out of range");
    v->max_token = token > v->max_token ? token : v->max_token;
    v->n_trained += trained && at > store->offsets[v->row];
    if (at + 1 < store->offsets[v->row + 1])
        return TD_OK;
    if (v->n_trained != store->row_trained[v->row])
        return fail_damaged_array(store, TD_STORE_ROW_TRAINED, "does not match the masks");
    v->n_trained = 0;
    v->row++;
    return TD_OK;
}

static td_status verify_part(const td_store *store, verification *v, int64_t begin, int64_t count) {
    td_hdf5_lock();
    td_status status = read_items(store, TD_STORE_TOKENS, begin, count, v->tokens);
    if (status == TD_OK)
        status = read_items(store, TD_STORE_TRAINED, begin, count, v->trained);
    td_hdf5_unlock();
    TD_TRY(status);
    td_hasher_add(v->hashers[TD_STORE_TOKENS], v->tokens, (size_t)count * sizeof *v->tokens);
    td_hasher_add(v->hashers[TD_STORE_TRAINED], v->trained, (size_t)count);
    td_progress_tick();
    for (int64_t i = 0; i < count; i++)
        TD_TRY(check_token(store, v, begin + i, v->tokens[i], v->trained[i]));
    return TD_OK;
}

static td_status verify_tokens(const td_store *store, verification *v) {
    int64_t n_tokens = store->header.n_tokens;
    for (int64_t begin = 0; begin < n_tokens; begin += VERIFY_TOKENS) {
        int64_t count = n_tokens - begin < VERIFY_TOKENS ? n_tokens - begin : VERIFY_TOKENS;
        TD_TRY(verify_part(store, v, begin, count));
    }
    return TD_OK;
}

td_status td_store_verify(td_store *store) {
    verification v = {.tokens = malloc(VERIFY_TOKENS * sizeof *v.tokens),
                      .trained = malloc(VERIFY_TOKENS)};
    td_status status = TD_OK;
    if (!v.tokens || !v.trained)
        status = td_fail(TD_ERR_MEMORY, "%s: no memory to verify it", store->path);
    for (int array = 0; array < 2 && status == TD_OK; array++)
        status = td_hasher_create(&v.hashers[array]);
    if (status == TD_OK)
        status = verify_tokens(store, &v);
    for (int array = 0; array < 2 && status == TD_OK; array++)
        if (!td_hash_equal(td_hasher_value(v.hashers[array]), store->header.hashes[array]))
            status =
                fail_damaged_array(store, (td_store_array)array, "does not match its checksum");
    if (status == TD_OK && v.max_token != store->header.max_token)
        status = fail_damaged(store, "its largest token id is another one");
    td_hasher_destroy(v.hashers[0]);
    td_hasher_destroy(v.hashers[1]);
    free(v.tokens);
    free(v.trained);
    return status;
}

td_hash td_store_fingerprint(const td_store *store) {
    return store->header.fingerprint;
}

td_hash td_store_content_hash(const td_store *store) {
    return td_store_hash_content(&store->header);
}

const char *td_store_account(const td_store *store) {
    return store->account;
}

int64_t td_store_rows(const td_store *store) {
    return store->header.n_rows;
}

int64_t td_store_tokens(const td_store *store) {
    return store->header.n_tokens;
}

int64_t td_store_longest_row(const td_store *store) {
    int64_t longest = 0;
    for (int64_t row = 0; row < store->header.n_rows; row++)
        if (store->offsets[row + 1] - store->offsets[row] > longest)
            longest = store->offsets[row + 1] - store->offsets[row];
    return longest;
}

const int64_t *td_store_offsets(const td_store *store) {
    return store->offsets;
}

const int32_t *td_store_row_trained(const td_store *store) {
    return store->row_trained;
}

int32_t td_store_max_token(const td_store *store) {
    return (int32_t)store->header.max_token;
}

// Small stores are read once and kept; without memory for that rows are read one by one.
static td_status make_resident(td_store *store) {
    int64_t n_tokens = store->header.n_tokens;
    if (store->tokens || n_tokens > RESIDENT_BYTES / 5)
        return TD_OK;
    int32_t *tokens = malloc((size_t)n_tokens * sizeof *tokens);
    uint8_t *trained = malloc((size_t)n_tokens);
    td_status status = TD_OK;
    int allocated = tokens && trained;
    if (allocated)
        status = read_whole(store, TD_STORE_TOKENS, tokens);
    if (allocated && status == TD_OK)
        status = read_whole(store, TD_STORE_TRAINED, trained);
    if (!allocated || status != TD_OK) {
        free(tokens);
        free(trained);
        return status;
    }
    store->tokens = tokens;
    store->trained = trained;
    return TD_OK;
}

static td_status read_from_file(td_store *store, int64_t begin, int64_t count, int32_t *tokens,
                                uint8_t *trained) {
    TD_TRY(make_resident(store));
    if (store->tokens)
        return TD_OK;
    TD_TRY(read_items(store, TD_STORE_TOKENS, begin, count, tokens));
    return read_items(store, TD_STORE_TRAINED, begin, count, trained);
}

// Ids index the embedding, so damage that came after the last verification must not get through.
static td_status check_row(const td_store *store, int64_t row, const int32_t *tokens,
                           const uint8_t *trained, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] > store->header.max_token || trained[i] > 1)
            return td_fail(TD_ERR_DATA, "%s: damaged token store: row %lld is out of range",
                           store->path, (long long)row);
    return TD_OK;
}

td_status td_store_read_row(td_store *store, int64_t row, int32_t *tokens, uint8_t *trained) {
    if (row < 0 || row >= store->header.n_rows)
        return td_fail(TD_ERR_INTERNAL, "%s: there is no row %lld", store->path, (long long)row);
    int64_t begin = store->offsets[row], count = store->offsets[row + 1] - begin;
    if (!store->tokens) {
        td_hdf5_lock();
        td_status status = read_from_file(store, begin, count, tokens, trained);
        td_hdf5_unlock();
        TD_TRY(status);
    }
    if (store->tokens) {
        memcpy(tokens, store->tokens + begin, (size_t)count * sizeof *tokens);
        memcpy(trained, store->trained + begin, (size_t)count);
    }
    return check_row(store, row, tokens, trained, count);
}
