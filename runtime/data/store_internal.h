// The file format of the token store, shared by its writer and its reader.
#ifndef TANDEM_DATA_STORE_INTERNAL_H
#define TANDEM_DATA_STORE_INTERNAL_H

#include <hdf5.h>
#include <stddef.h>

#include "runtime/data/store.h"

#define TD_STORE_FORMAT "tandem-token-store"

enum {
    TD_STORE_VERSION = 2,                  // 1: without an index of its own
    TD_STORE_BUFFER_TOKENS = 1 << 20,      // more of them are stored in pieces of this many
    TD_STORE_MAX_ACCOUNT_BYTES = 32 << 10, // attributes are limited to 64 KiB
};

// Beyond this nothing we could train on exists; keeps sums of sizes far from overflow.
#define TD_STORE_MAX_TOKENS ((int64_t)1 << 42)

typedef enum td_store_array {
    TD_STORE_TOKENS,
    TD_STORE_TRAINED,
    TD_STORE_OFFSETS,
    TD_STORE_ROW_TRAINED,
    TD_STORE_ARRAYS,
} td_store_array;

typedef struct td_store_array_info {
    const char *name;
    const char *hash_name; // attribute with the checksum
    size_t item_bytes;
} td_store_array_info;

extern const td_store_array_info td_store_arrays[TD_STORE_ARRAYS];

hid_t td_store_file_type(td_store_array array);   // on disk, little-endian
hid_t td_store_memory_type(td_store_array array); // native

// What describes the arrays.
typedef struct td_store_header {
    int64_t n_rows, n_tokens, max_token;
    td_hash fingerprint;
    td_hash hashes[TD_STORE_ARRAYS];
} td_store_header;

// Items of an array by what describes it.
int64_t td_store_items(const td_store_header *header, td_store_array array);

// Where the pieces of an array lie in the file. Each has the same number of items but the last.
typedef struct td_store_pieces {
    int64_t items;       // of an array's piece
    uint64_t *addresses; // (td_store_n_pieces)
} td_store_pieces;

int64_t td_store_n_pieces(int64_t array_items, int64_t piece_items);

// The index: behind what HDF5 reads, before the seal. The program reads by that alone: HDF5 does
// not stand up to files that are built to do harm, so none gets there. To HDF5's own tools the file
// is one like any other.
// Appends it to a file that HDF5 has closed.
td_status td_store_write_index(int file, const char *path, const td_store_header *header,
                               const td_store_pieces pieces[TD_STORE_ARRAYS], const char *account);
// Of a file of `bytes` without the seal. TD_ERR_DATA unless all of it fits together and lies within
// the file. The caller frees the account and every list of addresses, after failure too.
td_status td_store_read_index(int file, const char *path, uint64_t bytes, td_store_header *header,
                              td_store_pieces pieces[TD_STORE_ARRAYS], char **account);

// Over the header and the account, so that damage to an attribute shows too.
td_status td_store_header_hash(const td_store_header *header, const char *account, td_hash *out);
// Puts the seal, a checksum of everything, at the end of a file that is open for reading and
// writing, in the place of one that it has.
td_status td_store_seal(int file, const char *path);
// TD_ERR_DATA unless the file is as it was sealed. Bytes before the seal.
td_status td_store_check_seal(int file, const char *path, uint64_t bytes, uint64_t *out_bytes);

// "The data" of checkpoints: tokens, masks and where rows begin.
td_hash td_store_hash_content(const td_store_header *header);

#endif
