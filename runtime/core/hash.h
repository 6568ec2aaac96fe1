// Checksums and fingerprints: XXH3-128 of libxxhash. Not cryptographic: guards against damage and
// mix-ups.
#ifndef TANDEM_CORE_HASH_H
#define TANDEM_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/status.h"

typedef struct td_hash {
    uint64_t low, high;
} td_hash;

enum { TD_HASH_HEX_CHARS = 33 }; // 32 digits and the terminator

typedef struct td_hasher td_hasher; // streaming state, heap

td_status td_hasher_create(td_hasher **out);
void td_hasher_destroy(td_hasher *hasher);
void td_hasher_add(td_hasher *hasher, const void *data, size_t bytes);
void td_hasher_add_string(td_hasher *hasher,
                          const char *text); // with its terminator: "ab","c" != "a","bc"
td_hash td_hasher_value(const td_hasher *hasher);

td_hash td_hash_bytes(const void *data, size_t bytes);
// Contents of a whole file, read in pieces. Pipes and devices are refused.
td_status td_hash_file(const char *path, td_hash *out);
// The first `bytes` bytes of an open file, wherever it stands; `path` is for messages.
td_status td_hash_descriptor(int file, const char *path, uint64_t bytes, td_hash *out);

int td_hash_equal(td_hash a, td_hash b);
void td_hash_to_hex(td_hash hash, char out[TD_HASH_HEX_CHARS]);
td_status td_hash_from_hex(const char *hex,
                           td_hash *out); // TD_ERR_DATA unless exactly 32 hex digits

#endif
