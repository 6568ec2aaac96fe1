// The token store: prepared rows in one HDF5 file, written once by rank 0, read by all.
//
// Datasets: /tokens (n_tokens) int32, /trained (n_tokens) uint8: 1 where the model is trained to
// produce the token, /offsets (n_rows + 1) int64, /row_trained (n_rows) int32: trained tokens of a
// row after the shift (a row's first token is never trained). Attributes: format version,
// fingerprint (of source files, tokenizer and settings), checksums of each dataset, account. Behind
// what HDF5 reads the file ends with our own index and the checksum of all of it. Reading goes by
// those: a file from anywhere never reaches HDF5.
#ifndef TANDEM_DATA_STORE_H
#define TANDEM_DATA_STORE_H

#include <stdint.h>

#include "runtime/core/hash.h"
#include "runtime/core/status.h"

typedef struct td_store td_store;

typedef struct td_store_writer td_store_writer;
// Writes to a temporary beside `path`; commit verifies, syncs and renames; abandon removes it. Both
// end the writer, commit also when it fails, and then nothing is left but what stood at `path`
// before.
td_status td_store_writer_open(const char *path, td_store_writer **out);
td_status td_store_writer_add(td_store_writer *writer, const int32_t *tokens,
                              const uint8_t *trained, int64_t count);
td_status td_store_writer_commit(td_store_writer *writer, td_hash fingerprint,
                                 const char *account_json);
void td_store_writer_abandon(td_store_writer *writer);

// Verifies the checksum of the file, then sizes, places and checksums of everything but /tokens and
// /trained, whose checksums are verified by td_store_verify().
// TD_ERR_DATA says what is wrong.
td_status td_store_open(const char *path, td_store **out);
void td_store_close(td_store *store);
td_status td_store_verify(td_store *store);

td_hash td_store_fingerprint(const td_store *store); // of how it was made
td_hash
td_store_content_hash(const td_store *store); // of the tokens and masks: "the data" in checkpoints
const char *
td_store_account(const td_store *store); // JSON: rows read, kept, dropped by reason, tokens
int64_t td_store_rows(const td_store *store);
int64_t td_store_tokens(const td_store *store);
int64_t td_store_longest_row(const td_store *store);        // tokens
const int64_t *td_store_offsets(const td_store *store);     // (n_rows + 1)
const int32_t *td_store_row_trained(const td_store *store); // (n_rows)
int32_t td_store_max_token(const td_store *store);

// Copies one row. Both buffers hold its length (offsets[row + 1] - offsets[row]). Any
// thread.
td_status td_store_read_row(td_store *store, int64_t row, int32_t *tokens, uint8_t *trained);

#endif
