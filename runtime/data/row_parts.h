// Prepared rows on their way from the ranks to the stores: parts in a folder that all ranks share.
//
// Lines are dealt in blocks, block b to rank b % ranks, and each rank writes what became of its
// blocks, in order, into its own part. Rank 0 reads all parts side by side and so sees every row in
// the order of the files, whatever the number of ranks. A part is three files: records of fixed
// size, payloads (tokens and mask of a row that is left, the message of one that is malformed), and
// signatures. Parts live for the length of one preparation and are read by the program that wrote
// them, so their format is the machine's own.
#ifndef TANDEM_DATA_ROW_PARTS_H
#define TANDEM_DATA_ROW_PARTS_H

#include <stdint.h>

#include "runtime/core/hash.h"
#include "runtime/core/status.h"
#include "runtime/data/account.h"
#include "runtime/data/minhash.h"

typedef struct td_part_row {
    td_hash content; // of tokens and mask
    int64_t line;    // in its file, from 1
    int32_t file;    // index among the sources
    int32_t length;  // tokens before max_length
    int32_t count;   // tokens that are left; 0: dropped
    int32_t n_trained;
    int32_t message_bytes; // of a malformed row
    uint8_t outcome;       // td_outcome; never a duplicate yet
    uint8_t is_truncated;
    uint8_t has_signature;
    uint8_t is_list; // its file is a JSON list, line its place in it
} td_part_row;

typedef struct td_part_writer td_part_writer;
// FOLDER/rank-NNNNN.*; the folder exists. TD_ERR_IO when the system refuses.
td_status td_part_writer_open(const char *folder, int rank, int with_signatures,
                              td_part_writer **out);
// `n_rows` calls of add follow, of the lines of `block`.
td_status td_part_writer_block(td_part_writer *writer, int64_t block, int64_t n_rows);
// Tokens (count) and mask (count) of a row that is left; else NULL and `message`, which may be
// NULL. signature: NULL unless row->has_signature.
td_status td_part_writer_add(td_part_writer *writer, const td_part_row *row, const int32_t *tokens,
                             const uint8_t *trained, const char *message,
                             const uint32_t *signature);
// Ends the writer, also after a failure. On success other ranks can read what it wrote.
td_status td_part_writer_close(td_part_writer *writer);
void td_part_writer_abandon(td_part_writer *writer); // NULL: nothing

typedef struct td_part_reader td_part_reader;
typedef struct td_part_item {
    td_part_row row;
    const int32_t *tokens;     // (count), with payloads and when the row is left
    const uint8_t *trained;    // (count)
    const char *message;       // with payloads and when there is one
    const uint32_t *signature; // (TD_MINHASH_PERMUTATIONS), with signatures and when it has one
} td_part_item;
// with_payloads, with_signatures: which of the files are read. TD_ERR_IO names what is missing.
td_status td_part_reader_open(const char *folder, int n_ranks, int with_payloads,
                              int with_signatures, td_part_reader **out);
void td_part_reader_close(td_part_reader *reader); // NULL: nothing
// The next row in the order of the sources; pointers hold until the next call. *out_found 0: none
// left.
td_status td_part_reader_next(td_part_reader *reader, td_part_item *out, int *out_found);

#endif
