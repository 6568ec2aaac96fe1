// The index of a token store: addresses of all pieces, the account, and then what says how many of
// them there are.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/data/store_internal.h"

// In the byte order of the machine: all that the program runs on are little-endian, as the file is.
typedef struct index_end {
    int64_t version, n_rows, n_tokens, max_token;
    int64_t piece_items[TD_STORE_ARRAYS];
    uint64_t account_bytes;
    td_hash fingerprint;
    td_hash hashes[TD_STORE_ARRAYS];
    td_hash header; // td_store_header_hash()
} index_end;

_Static_assert(sizeof(index_end) == 168, "no padding in the file");

static int64_t pieces_of(const td_store_header *header, const td_store_pieces *pieces, int array) {
    return td_store_n_pieces(td_store_items(header, (td_store_array)array), pieces[array].items);
}

td_status td_store_write_index(int file, const char *path, const td_store_header *header,
                               const td_store_pieces pieces[TD_STORE_ARRAYS], const char *account) {
    index_end end = {.version = TD_STORE_VERSION,
                     .n_rows = header->n_rows,
                     .n_tokens = header->n_tokens,
                     .max_token = header->max_token,
                     .account_bytes = strlen(account),
                     .fingerprint = header->fingerprint};
    memcpy(end.hashes, header->hashes, sizeof end.hashes);
    TD_TRY(td_store_header_hash(header, account, &end.header));
    if (lseek(file, 0, SEEK_END) < 0)
        return td_fail(TD_ERR_IO, "%s: cannot find its end", path);
    for (int array = 0; array < TD_STORE_ARRAYS; array++) {
        size_t n = (size_t)pieces_of(header, pieces, array);
        end.piece_items[array] = pieces[array].items;
        TD_TRY(td_file_write_all(file, path, pieces[array].addresses, n * sizeof(uint64_t)));
    }
    TD_TRY(td_file_write_all(file, path, account, end.account_bytes));
    return td_file_write_all(file, path, &end, sizeof end);
}

static td_status fail_damaged(const char *path, const char *what) {
    return td_fail(TD_ERR_DATA,
                   "%s: damaged token store: %s; delete it and it is made again from the rows",
                   path, what);
}

// Sizes that can be, so that sums of them cannot overflow, and a file of `bytes` can hold.
static td_status check_sizes(const char *path, const index_end *end, uint64_t bytes) {
    if (end->version != TD_STORE_VERSION)
        return td_fail(TD_ERR_DATA, "%s: is a token store of version %lld; this program reads %d",
                       path, (long long)end->version, TD_STORE_VERSION);
    if (end->n_tokens < 1 || end->n_tokens > TD_STORE_MAX_TOKENS || end->n_rows < 1 ||
        end->n_rows > end->n_tokens || end->max_token < 0 || end->max_token > INT32_MAX ||
        end->account_bytes >= TD_STORE_MAX_ACCOUNT_BYTES)
        return fail_damaged(path, "its numbers are out of range");
    const td_store_header header = {.n_rows = end->n_rows, .n_tokens = end->n_tokens};
    uint64_t needed = end->account_bytes;
    for (int array = 0; array < TD_STORE_ARRAYS; array++) {
        int64_t items = td_store_items(&header, (td_store_array)array);
        if (end->piece_items[array] < 1 || end->piece_items[array] > TD_STORE_MAX_TOKENS + 1)
            return fail_damaged(path, "its numbers are out of range");
        needed += (uint64_t)items * td_store_arrays[array].item_bytes;
        needed += (uint64_t)td_store_n_pieces(items, end->piece_items[array]) * sizeof(uint64_t);
    }
    return needed <= bytes ? TD_OK : fail_damaged(path, "the file is too short for its rows");
}

static void take_header(const index_end *end, td_store_header *header, td_store_pieces *pieces) {
    header->n_rows = end->n_rows;
    header->n_tokens = end->n_tokens;
    header->max_token = end->max_token;
    header->fingerprint = end->fingerprint;
    memcpy(header->hashes, end->hashes, sizeof end->hashes);
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        pieces[array].items = end->piece_items[array];
}

// `end`: where the index begins. No piece may reach beyond.
static td_status check_places(const char *path, const td_store_header *header, int array,
                              const td_store_pieces *pieces, uint64_t end) {
    int64_t items = td_store_items(header, (td_store_array)array), size = pieces->items;
    for (int64_t i = 0; i < td_store_n_pieces(items, size); i++) {
        int64_t left = items - i * size;
        uint64_t bytes = (uint64_t)(left < size ? left : size) * td_store_arrays[array].item_bytes;
        if (bytes > end || pieces->addresses[i] > end - bytes)
            return fail_damaged(path, "rows lie outside the file");
    }
    return TD_OK;
}

static td_status read_addresses(int file, const char *path, uint64_t begin,
                                const td_store_header *header, td_store_pieces *pieces) {
    uint64_t at = begin;
    for (int array = 0; array < TD_STORE_ARRAYS; array++) {
        size_t bytes = (size_t)pieces_of(header, pieces, array) * sizeof(uint64_t);
        pieces[array].addresses = malloc(bytes);
        if (!pieces[array].addresses)
            return td_fail(TD_ERR_MEMORY, "%s: no memory for its index", path);
        TD_TRY(td_file_read_at(file, path, at, pieces[array].addresses, bytes));
        TD_TRY(check_places(path, header, array, &pieces[array], begin));
        at += bytes;
    }
    return TD_OK;
}

static td_status read_account(int file, const char *path, uint64_t at, size_t bytes, char **out) {
    *out = calloc(bytes + 1, 1);
    if (!*out)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its account", path);
    TD_TRY(td_file_read_at(file, path, at, *out, bytes));
    return memchr(*out, 0, bytes) ? fail_damaged(path, "its account is no text") : TD_OK;
}

td_status td_store_read_index(int file, const char *path, uint64_t bytes, td_store_header *header,
                              td_store_pieces pieces[TD_STORE_ARRAYS], char **account) {
    index_end end;
    td_hash hash = {0};
    if (bytes < sizeof end)
        return fail_damaged(path, "it has no index");
    bytes -= sizeof end;
    TD_TRY(td_file_read_at(file, path, bytes, &end, sizeof end));
    TD_TRY(check_sizes(path, &end, bytes));
    take_header(&end, header, pieces);
    bytes -= end.account_bytes;
    TD_TRY(read_account(file, path, bytes, end.account_bytes, account));
    TD_TRY(td_store_header_hash(header, *account, &hash));
    if (!td_hash_equal(hash, end.header))
        return fail_damaged(path, "its header does not match its checksum");
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        bytes -= (uint64_t)pieces_of(header, pieces, array) * sizeof(uint64_t);
    return read_addresses(file, path, bytes, header, pieces);
}
