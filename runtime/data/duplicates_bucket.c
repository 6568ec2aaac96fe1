// Groups of rows: sorting by key, disjoint sets, and the comparisons within one bucket.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/progress.h"
#include "runtime/data/duplicates_internal.h"

enum {
    DIGIT_BITS = 11,
    DIGITS = 6, // of 64 bits
    RADIX = 1 << DIGIT_BITS,
    KEPT_ALWAYS = 64, // rows of a bucket that every later one is compared with
    KEPT = 1024,      // rows of a bucket that one is compared with, at most
    STRIDE = 32,      // places between two looks at whether a pair can still be similar
};

static size_t digit(td_keyed_row item, int place) {
    return td_keyed_row_key(item) >> (place * DIGIT_BITS) & (RADIX - 1);
}

// One pass of the radix sort, stable; 0 when all items have the same digit there.
static int distribute(const td_keyed_row *items, td_keyed_row *out, size_t count, int place) {
    size_t next[RADIX] = {0}, sum = 0;
    for (size_t i = 0; i < count; i++)
        next[digit(items[i], place)]++;
    if (next[digit(items[0], place)] == count)
        return 0;
    for (int i = 0; i < RADIX; i++) {
        size_t here = next[i];
        next[i] = sum;
        sum += here;
    }
    for (size_t i = 0; i < count; i++)
        out[next[digit(items[i], place)]++] = items[i];
    return 1;
}

td_keyed_row *td_keyed_rows_sort(td_keyed_row *items, td_keyed_row *spare, size_t count) {
    for (int place = 0; count > 0 && place < DIGITS; place++) {
        if (distribute(items, spare, count, place)) {
            td_keyed_row *sorted = spare;
            spare = items;
            items = sorted;
        }
    }
    return items;
}

uint32_t td_rows_first(uint32_t *parent, uint32_t row) {
    while (parent[row] != row) {
        parent[row] = parent[parent[row]];
        row = parent[row];
    }
    return row;
}

uint32_t td_rows_join(uint32_t *parent, uint32_t a, uint32_t b) {
    a = td_rows_first(parent, a);
    b = td_rows_first(parent, b);
    uint32_t first = a < b ? a : b;
    parent[a < b ? b : a] = first;
    return first;
}

int64_t td_rows_flatten(uint32_t *parent, size_t count) {
    int64_t later = 0;
    for (size_t row = 0; row < count; row++) {
        parent[row] = parent[parent[row]]; // whose own is final: it comes first
        later += parent[row] != row;
    }
    return later;
}

typedef struct kept_row {
    uint32_t row;
    int is_loaded;
    uint32_t signature[TD_MINHASH_PERMUTATIONS];
} kept_row;

struct td_bucket {
    const td_duplicates_file *file;
    int most_unequal; // places in which similar rows differ, at most
    int64_t compared;
    size_t n_kept, n_passed; // passed: rows kept after the first KEPT_ALWAYS, ever
    kept_row current, kept[KEPT];
};

td_status td_bucket_create(const td_duplicates_file *file, double threshold, td_bucket **out) {
    td_bucket *bucket = calloc(1, sizeof *bucket);
    if (!bucket)
        return td_fail(TD_ERR_MEMORY, "no memory (%zu bytes) to look for duplicates",
                       sizeof *bucket);
    bucket->file = file;
    bucket->most_unequal = (int)floor((1 - threshold) * TD_MINHASH_PERMUTATIONS + 1e-9);
    *out = bucket;
    return TD_OK;
}

void td_bucket_destroy(td_bucket *bucket) {
    free(bucket);
}

int64_t td_bucket_compared(const td_bucket *bucket) {
    return bucket->compared;
}

static td_status load(const td_bucket *bucket, kept_row *row) {
    if (row->is_loaded)
        return TD_OK;
    TD_TRY(td_duplicates_file_signature(bucket->file, row->row, row->signature));
    row->is_loaded = 1;
    return TD_OK;
}

static int is_similar(const uint32_t *a, const uint32_t *b, int most_unequal) {
    int unequal = 0;
    for (int i = 0; i < TD_MINHASH_PERMUTATIONS && unequal <= most_unequal; i += STRIDE)
        for (int j = i; j < i + STRIDE; j++)
            unequal += a[j] != b[j];
    return unequal <= most_unequal;
}

// Joins the current row with the clusters of those kept that are similar to it. Signatures are read
// only of rows whose clusters are still apart.
static td_status compare_with_kept(td_bucket *bucket, uint32_t *parent, int *out_joined) {
    kept_row *current = &bucket->current;
    uint32_t first = td_rows_first(parent, current->row);
    int joined = 0;
    for (size_t i = 0; i < bucket->n_kept; i++) {
        kept_row *other = &bucket->kept[i];
        if (td_rows_first(parent, other->row) == first) {
            joined = 1;
            continue;
        }
        TD_TRY(load(bucket, current));
        TD_TRY(load(bucket, other));
        bucket->compared++;
        if (is_similar(current->signature, other->signature, bucket->most_unequal)) {
            first = td_rows_join(parent, current->row, other->row);
            joined = 1;
        }
    }
    *out_joined = joined;
    return TD_OK;
}

// The first rows are kept whatever they are, so that a small bucket has all its pairs compared;
// after them, rows that stand for no cluster yet, the most recent ones.
static void keep_current(td_bucket *bucket, int joined) {
    if (bucket->n_kept < KEPT_ALWAYS) {
        bucket->kept[bucket->n_kept++] = bucket->current;
    } else if (!joined) {
        size_t place = KEPT_ALWAYS + bucket->n_passed++ % (KEPT - KEPT_ALWAYS);
        bucket->kept[place] = bucket->current;
        bucket->n_kept = place < bucket->n_kept ? bucket->n_kept : place + 1;
    }
}

td_status td_bucket_join(td_bucket *bucket, const td_keyed_row *rows, size_t count,
                         uint32_t *parent) {
    bucket->n_kept = bucket->n_passed = 0;
    for (size_t i = 0; i < count; i++) {
        int joined;
        bucket->current.row = rows[i].row;
        bucket->current.is_loaded = 0;
        TD_TRY(compare_with_kept(bucket, parent, &joined));
        keep_current(bucket, joined);
        if (i % KEPT == 0)
            td_progress_tick();
    }
    return TD_OK;
}
