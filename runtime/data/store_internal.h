// Names in the token store's file, and the limits a reader accepts.
#ifndef TANDEM_DATA_STORE_INTERNAL_H
#define TANDEM_DATA_STORE_INTERNAL_H

#include <hdf5.h>

#include "runtime/core/status.h"

enum {
    TD_STORE_VERSION = 1,
    TD_STORE_CHUNK = 1 << 18,       // elements per chunk and per buffer of the writer
    TD_STORE_MAX_ACCOUNT = 1 << 20, // bytes of the account
};

#define TD_STORE_TOKENS      "tokens"
#define TD_STORE_TRAINED     "trained"
#define TD_STORE_OFFSETS     "offsets"
#define TD_STORE_ROW_TRAINED "row_trained"

// Attribute of a dataset: checksum of its elements in order, as hexadecimal text.
#define TD_STORE_CHECKSUM "xxh3_128"
// Attributes of the root group.
#define TD_STORE_VERSION_NAME "tandem_token_store"
#define TD_STORE_FINGERPRINT  "fingerprint"
#define TD_STORE_MAX_TOKEN    "max_token"
#define TD_STORE_ACCOUNT      "account"

#endif
