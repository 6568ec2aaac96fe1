// What the files of duplicates share. Not for other folders.
//
// The temporary file is a sequence of blocks of TD_DUPLICATES_BLOCK rows, column by column: the
// content hash's halves, one key per band, then the signatures. A pass over one column reads long
// pieces and nothing else; a signature is read alone, and only of rows whose keys agree.
#ifndef TANDEM_DATA_DUPLICATES_INTERNAL_H
#define TANDEM_DATA_DUPLICATES_INTERNAL_H

#include "runtime/data/duplicates.h"

enum {
    TD_DUPLICATES_BLOCK = 4096, // rows
    TD_DUPLICATES_LOW = 0,      // columns
    TD_DUPLICATES_HIGH = 1,
    TD_DUPLICATES_FIRST_BAND = 2,
};

// Key of a band of a row without a signature; of no other.
#define TD_DUPLICATES_NO_KEY 0u

typedef struct td_duplicates_file {
    int file;
    char *path; // for messages
    int n_columns;
    int has_signatures;
    unsigned char *block; // the one being filled, as in the file
    uint64_t n_rows;
} td_duplicates_file;

td_status td_duplicates_file_create(td_duplicates_file *file, const char *path, int n_columns,
                                    int has_signatures);
void td_duplicates_file_destroy(td_duplicates_file *file); // after zeroing or creating
// columns: (n_columns); signature: NULL for a row without one.
td_status td_duplicates_file_add(td_duplicates_file *file, const uint64_t *columns,
                                 const uint32_t *signature);
// Writes the last block; then nothing is added and everything can be read.
td_status td_duplicates_file_finish(td_duplicates_file *file);
// Rows first_row to first_row + *out_count - 1 of a column; first_row is that of a block.
td_status td_duplicates_file_read(const td_duplicates_file *file, int column, uint64_t first_row,
                                  uint64_t out[TD_DUPLICATES_BLOCK], size_t *out_count);
td_status td_duplicates_file_signature(const td_duplicates_file *file, uint32_t row,
                                       uint32_t out[TD_MINHASH_PERMUTATIONS]);

// A row by the value that it is grouped by; 12 bytes.
typedef struct td_keyed_row {
    uint32_t low, high; // of the key
    uint32_t row;
} td_keyed_row;

static inline uint64_t td_keyed_row_key(td_keyed_row item) {
    return (uint64_t)item.high << 32 | item.low;
}

// Orders by key and leaves rows of equal keys as they are. `spare` has as many items. Returns which
// of the two holds the result.
td_keyed_row *td_keyed_rows_sort(td_keyed_row *items, td_keyed_row *spare, size_t count);

// Disjoint sets of rows: parent[row] <= row, equal for the first row of a set.
uint32_t td_rows_first(uint32_t *parent, uint32_t row);
// Joins the sets of two rows; returns the first row of the result.
uint32_t td_rows_join(uint32_t *parent, uint32_t a, uint32_t b);
// Makes every parent the first row of its set; returns the number of rows that are not first.
int64_t td_rows_flatten(uint32_t *parent, size_t count);

// The rows of one bucket that later rows are compared with.
typedef struct td_bucket td_bucket;
td_status td_bucket_create(const td_duplicates_file *file, double threshold, td_bucket **out);
void td_bucket_destroy(td_bucket *bucket);
// Joins the similar ones of rows whose key of one band agrees, in row order.
td_status td_bucket_join(td_bucket *bucket, const td_keyed_row *rows, size_t count,
                         uint32_t *parent);
int64_t td_bucket_compared(const td_bucket *bucket); // pairs so far

#endif
