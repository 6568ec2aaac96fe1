// Finds exact and near duplicates among rows: which rows belong together, and which is the first.
//
// Rows are added in their order, each with a hash of its content and the MinHash signature of its
// text. Exact duplicates have equal hashes, all 128 bits. Near duplicates are exact duplicates, and
// rows of which one band of the signatures agrees and whose estimated Jaccard similarity is at
// least the threshold. Both are closed transitively: clusters, each named by its first row. The
// result depends on the rows and the threshold only.
//
// Chances of finding a pair: candidates are verified, so a false one costs time only, and the bands
// are chosen with false negatives weighing nine times as much as false positives. Within one bucket
// (rows with an equal band) a row is compared with up to 1,024 others, the first 64 and the most
// recent that belonged to no cluster by then; this bounds the work for millions of rows with an
// equal band, of which some pairs may so be missed by that band.
//
// Memory: a fixed buffer of about 3 MB while rows are added; 40 bytes per row in finish (10 million
// rows: 400 MB), of which 8 stay for the result. On disk, in the temporary file: 528 bytes and 8
// per band for each row (10 million rows, threshold 0.8, 14 bands: 6.4 GB); 16 per row without near
// duplicates. One thread at a time; nothing is collective.
#ifndef TANDEM_DATA_DUPLICATES_H
#define TANDEM_DATA_DUPLICATES_H

#include "runtime/core/hash.h"
#include "runtime/data/minhash.h"

typedef struct td_duplicates td_duplicates;

typedef struct td_duplicates_options {
    const char *path; // of the temporary file, which must not exist; it is unlinked at once
    int near;         // 0: exact duplicates only, signatures are ignored
    double threshold; // 0.5 to 1
} td_duplicates_options;

// Rows that are not the first of their cluster.
typedef struct td_duplicates_account {
    int64_t rows, exact_duplicates;
    int64_t near_duplicates; // exact duplicates included
    int64_t compared_pairs;
} td_duplicates_account;

// TD_ERR_USAGE for a threshold out of range; TD_ERR_IO when the file cannot be made. On failure
// there is nothing to destroy.
td_status td_duplicates_create(const td_duplicates_options *options, td_duplicates **out);
void td_duplicates_destroy(td_duplicates *duplicates); // NULL: nothing

// The next row; the first is row 0. `content` should be of all that training sees of the row: its
// token ids and mask. `signature` may be NULL for a row without a text: it has exact duplicates
// only. TD_ERR_IO when the disk is full; at most 2^32 - 2 rows.
td_status td_duplicates_add(td_duplicates *duplicates, td_hash content,
                            const uint32_t signature[TD_MINHASH_PERMUTATIONS]);

// Once, after the last row; nothing can be added after it. out_account may be NULL.
td_status td_duplicates_finish(td_duplicates *duplicates, td_duplicates_account *out_account);

// After finish, until destroyed: for each row, the first row of its cluster, itself or an earlier
// one. Keep row r when first[r] == r; rows of one split must take all of a cluster. Every exact
// cluster lies in one near cluster; without near duplicates the two are the same array.
const uint32_t *td_duplicates_exact_first(const td_duplicates *duplicates); // (rows)
const uint32_t *td_duplicates_near_first(const td_duplicates *duplicates);  // (rows)

#endif
