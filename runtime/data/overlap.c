#include "runtime/data/overlap.h"

#include <stdlib.h>

#include "runtime/core/progress.h"
#include "runtime/data/store.h"

enum { TICK_ROWS = 1 << 10 };

// Rows of the second store by the hash of their tokens, ascending, and whether each was met.
typedef struct row_set {
    td_hash *hashes; // (n)
    uint8_t *is_met; // (n)
    int64_t n;
} row_set;

typedef td_status row_visitor(row_set *set, int64_t row, td_hash hash);

static int compare(const void *a, const void *b) {
    const td_hash *x = a, *y = b;
    if (x->high != y->high)
        return x->high < y->high ? -1 : 1;
    return x->low == y->low ? 0 : x->low < y->low ? -1 : 1;
}

static td_status take_hash(row_set *set, int64_t row, td_hash hash) {
    set->hashes[row] = hash;
    return TD_OK;
}

static td_status mark_equal(row_set *set, int64_t row, td_hash hash) {
    int64_t low = 0, high = set->n;
    (void)row;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (compare(&set->hashes[middle], &hash) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < set->n && !set->is_met[low] && td_hash_equal(set->hashes[low], hash); low++)
        set->is_met[low] = 1;
    return TD_OK;
}

static td_status visit_rows(td_store *store, row_visitor *visit, row_set *set) {
    const int64_t *offsets = td_store_offsets(store);
    size_t room = (size_t)td_store_longest_row(store);
    int32_t *tokens = malloc(room * sizeof *tokens);
    uint8_t *trained = malloc(room);
    td_status status =
        tokens && trained ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for a row of %zu", room);
    for (int64_t row = 0; row < td_store_rows(store) && status == TD_OK; row++) {
        size_t bytes = (size_t)(offsets[row + 1] - offsets[row]) * sizeof *tokens;
        status = td_store_read_row(store, row, tokens, trained);
        if (status == TD_OK)
            status = visit(set, row, td_hash_bytes(tokens, bytes));
        if (row % TICK_ROWS == 0)
            td_progress_tick();
    }
    free(tokens);
    free(trained);
    return status;
}

static td_status count(td_store *first, td_store *second, row_set *set, int64_t *out_rows) {
    set->n = td_store_rows(second);
    set->hashes = malloc((size_t)set->n * sizeof *set->hashes);
    set->is_met = calloc((size_t)set->n, 1);
    if (!set->hashes || !set->is_met)
        return td_fail(TD_ERR_MEMORY, "no memory to compare %lld rows", (long long)set->n);
    TD_TRY(visit_rows(second, take_hash, set));
    qsort(set->hashes, (size_t)set->n, sizeof *set->hashes, compare);
    TD_TRY(visit_rows(first, mark_equal, set));
    *out_rows = 0;
    for (int64_t i = 0; i < set->n; i++)
        *out_rows += set->is_met[i];
    return TD_OK;
}

td_status td_store_overlap(const char *first_path, const char *second_path, int64_t *out_rows) {
    td_store *first = NULL, *second = NULL;
    row_set set = {0};
    td_status status = td_store_open(first_path, &first);
    if (status == TD_OK)
        status = td_store_open(second_path, &second);
    if (status == TD_OK)
        status = count(first, second, &set, out_rows);
    free(set.hashes);
    free(set.is_met);
    td_store_close(second);
    td_store_close(first);
    return status;
}
