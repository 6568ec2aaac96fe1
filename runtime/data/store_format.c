#include <stdlib.h>

#include "runtime/data/store_internal.h"

const td_store_array_info td_store_arrays[TD_STORE_ARRAYS] = {
    [TD_STORE_TOKENS] = {"tokens", "hash_tokens", sizeof(int32_t)},
    [TD_STORE_TRAINED] = {"trained", "hash_trained", sizeof(uint8_t)},
    [TD_STORE_OFFSETS] = {"offsets", "hash_offsets", sizeof(int64_t)},
    [TD_STORE_ROW_TRAINED] = {"row_trained", "hash_row_trained", sizeof(int32_t)},
};

int64_t td_store_items(const td_store_header *header, td_store_array array) {
    switch (array) {
    case TD_STORE_OFFSETS:
        return header->n_rows + 1;
    case TD_STORE_ROW_TRAINED:
        return header->n_rows;
    default:
        return header->n_tokens;
    }
}

int64_t td_store_n_pieces(int64_t array_items, int64_t piece_items) {
    return (array_items - 1) / piece_items + 1;
}

hid_t td_store_file_type(td_store_array array) {
    switch (array) {
    case TD_STORE_TRAINED:
        return H5T_STD_U8LE;
    case TD_STORE_OFFSETS:
        return H5T_STD_I64LE;
    default:
        return H5T_STD_I32LE;
    }
}

hid_t td_store_memory_type(td_store_array array) {
    switch (array) {
    case TD_STORE_TRAINED:
        return H5T_NATIVE_UINT8;
    case TD_STORE_OFFSETS:
        return H5T_NATIVE_INT64;
    default:
        return H5T_NATIVE_INT32;
    }
}

static void add_hash(td_hasher *hasher, td_hash hash) {
    char hex[TD_HASH_HEX_CHARS];
    td_hash_to_hex(hash, hex);
    td_hasher_add_string(hasher, hex);
}

td_status td_store_header_hash(const td_store_header *header, const char *account, td_hash *out) {
    td_hasher *hasher = NULL;
    TD_TRY(td_hasher_create(&hasher));
    const int64_t counts[] = {TD_STORE_VERSION, header->n_rows, header->n_tokens,
                              header->max_token};
    td_hasher_add(hasher, counts, sizeof counts);
    add_hash(hasher, header->fingerprint);
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        add_hash(hasher, header->hashes[array]);
    td_hasher_add_string(hasher, account);
    *out = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    return TD_OK;
}

td_hash td_store_hash_content(const td_store_header *header) {
    td_hash hashes[] = {header->hashes[TD_STORE_TOKENS], header->hashes[TD_STORE_TRAINED],
                        header->hashes[TD_STORE_OFFSETS]};
    return td_hash_bytes(hashes, sizeof hashes);
}
