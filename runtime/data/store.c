// Reading a token store. Nothing in the file is believed before it was checked.
#include "runtime/data/store.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/progress.h"
#include "runtime/data/store_internal.h"

enum {
    VERIFY_TOKENS = 1 << 18,
    RESIDENT_BYTES = 256 << 20, // up to this size tokens and masks are kept in memory
};

struct td_store {
    char path[TD_PATH_MAX];
    int file;
    td_store_pieces pieces[TD_STORE_ARRAYS];
    td_store_header header;
    char *account;
    int64_t *offsets;     // (n_rows + 1)
    int32_t *row_trained; // (n_rows)
    int32_t *tokens;      // (n_tokens), NULL: read from the file
    uint8_t *trained;     // (n_tokens)
    pthread_mutex_t lock; // of the two above while they are read
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

static int64_t array_items(const td_store *store, td_store_array array) {
    return td_store_items(&store->header, array);
}

static td_status read_items(const td_store *store, td_store_array array, int64_t begin,
                            int64_t count, void *out) {
    const td_store_pieces *pieces = &store->pieces[array];
    size_t item_bytes = td_store_arrays[array].item_bytes;
    while (count > 0) {
        int64_t at = begin % pieces->items, left = pieces->items - at;
        int64_t n = count < left ? count : left;
        uint64_t from = pieces->addresses[begin / pieces->items] + (uint64_t)at * item_bytes;
        TD_TRY(td_file_read_at(store->file, store->path, from, out, (size_t)n * item_bytes));
        out = (char *)out + (size_t)n * item_bytes;
        begin += n;
        count -= n;
    }
    return TD_OK;
}

static td_status read_whole(const td_store *store, td_store_array array, void *out) {
    size_t items = (size_t)array_items(store, array);
    TD_TRY(read_items(store, array, 0, (int64_t)items, out));
    td_hash hash = td_hash_bytes(out, items * td_store_arrays[array].item_bytes);
    if (!td_hash_equal(hash, store->header.hashes[array]))
        return fail_damaged_array(store, array, "does not match its checksum");
    return TD_OK;
}

static td_status read_index(td_store *store, td_store_array array, void **out) {
    size_t items = (size_t)array_items(store, array);
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

static td_status open_checked(td_store *store) {
    uint64_t bytes;
    TD_TRY(td_file_open(store->path, 1, &store->file, &bytes));
    TD_TRY(td_store_check_seal(store->file, store->path, bytes, &bytes));
    TD_TRY(td_store_read_index(store->file, store->path, bytes, &store->header, store->pieces,
                               &store->account));
    TD_TRY(read_index(store, TD_STORE_OFFSETS, (void **)&store->offsets));
    TD_TRY(read_index(store, TD_STORE_ROW_TRAINED, (void **)&store->row_trained));
    return check_index(store);
}

td_status td_store_open(const char *path, td_store **out) {
    td_store *store = calloc(1, sizeof *store);
    if (!store)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to open it", path);
    store->file = -1;
    pthread_mutex_init(&store->lock, NULL);
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
    if (store->file >= 0)
        close(store->file);
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        free(store->pieces[array].addresses);
    pthread_mutex_destroy(&store->lock);
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
    TD_TRY(read_items(store, TD_STORE_TOKENS, begin, count, v->tokens));
    TD_TRY(read_items(store, TD_STORE_TRAINED, begin, count, v->trained));
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
    int64_t n_tokens = store->header.n_tokens;
    size_t most = (size_t)(n_tokens < VERIFY_TOKENS ? n_tokens : VERIFY_TOKENS);
    verification v = {.tokens = malloc(most * sizeof *v.tokens), .trained = malloc(most)};
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

static td_status read_from_file(const td_store *store, int64_t begin, int64_t count,
                                int32_t *tokens, uint8_t *trained) {
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
    pthread_mutex_lock(&store->lock);
    td_status status = make_resident(store);
    pthread_mutex_unlock(&store->lock);
    TD_TRY(status);
    if (store->tokens) {
        memcpy(tokens, store->tokens + begin, (size_t)count * sizeof *tokens);
        memcpy(trained, store->trained + begin, (size_t)count);
    } else {
        TD_TRY(read_from_file(store, begin, count, tokens, trained));
    }
    return check_row(store, row, tokens, trained, count);
}
