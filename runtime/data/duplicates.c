#include "runtime/data/duplicates.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/core/progress.h"
#include "runtime/data/duplicates_internal.h"

// Candidates are verified: a missed pair is worse than one compared in vain.
#define FALSE_POSITIVE_WEIGHT 0.1
#define FALSE_NEGATIVE_WEIGHT 0.9

struct td_duplicates {
    td_duplicates_file file;
    int near;
    double threshold;
    td_minhash_bands bands; // {0, 0} without near duplicates
    int is_finished;
    uint32_t *exact_first, *near_first; // (rows), the same array without near duplicates
    td_keyed_row *items, *spare;        // (rows), within finish
    int64_t compared;
};

static td_status check_options(const td_duplicates_options *options) {
    int is_in_range = options->threshold >= 0.5 && options->threshold <= 1; // not so of NaN
    if (options->near && !is_in_range)
        return td_fail(TD_ERR_USAGE, "threshold of near duplicates: %g is not from 0.5 to 1",
                       options->threshold);
    return TD_OK;
}

td_status td_duplicates_create(const td_duplicates_options *options, td_duplicates **out) {
    TD_TRY(check_options(options));
    td_duplicates *duplicates = calloc(1, sizeof *duplicates);
    if (!duplicates)
        return td_fail(TD_ERR_MEMORY, "no memory to look for duplicates");
    duplicates->near = options->near != 0;
    duplicates->threshold = options->threshold;
    if (duplicates->near)
        duplicates->bands = td_minhash_choose_bands(options->threshold, FALSE_POSITIVE_WEIGHT,
                                                    FALSE_NEGATIVE_WEIGHT);
    td_status status = td_duplicates_file_create(&duplicates->file, options->path,
                                                 TD_DUPLICATES_FIRST_BAND + duplicates->bands.bands,
                                                 duplicates->near);
    if (status != TD_OK) {
        free(duplicates);
        return status;
    }
    *out = duplicates;
    return TD_OK;
}

static void free_work(td_duplicates *duplicates) {
    free(duplicates->items);
    free(duplicates->spare);
    duplicates->items = duplicates->spare = NULL;
}

void td_duplicates_destroy(td_duplicates *duplicates) {
    if (!duplicates)
        return;
    td_duplicates_file_destroy(&duplicates->file);
    free_work(duplicates);
    if (duplicates->near_first != duplicates->exact_first)
        free(duplicates->near_first);
    free(duplicates->exact_first);
    free(duplicates);
}

static uint64_t band_key(const uint32_t *places, int count) {
    uint64_t key = td_hash_bytes(places, (size_t)count * sizeof *places).low;
    return key != TD_DUPLICATES_NO_KEY ? key : 1;
}

td_status td_duplicates_add(td_duplicates *duplicates, td_hash content,
                            const uint32_t signature[TD_MINHASH_PERMUTATIONS]) {
    uint64_t columns[TD_DUPLICATES_FIRST_BAND + TD_MINHASH_PERMUTATIONS];
    if (duplicates->is_finished)
        return td_fail(TD_ERR_INTERNAL, "a row was added after duplicates were looked for");
    if (duplicates->file.n_rows >= UINT32_MAX - 1)
        return td_fail(TD_ERR_DATA,
                       "duplicates are found among %u rows at most; prepare the data "
                       "in parts",
                       UINT32_MAX - 1);
    columns[TD_DUPLICATES_LOW] = content.low;
    columns[TD_DUPLICATES_HIGH] = content.high;
    for (int i = 0; i < duplicates->bands.bands; i++)
        columns[TD_DUPLICATES_FIRST_BAND + i] =
            signature ? band_key(signature + i * duplicates->bands.places, duplicates->bands.places)
                      : TD_DUPLICATES_NO_KEY;
    return td_duplicates_file_add(&duplicates->file, columns, signature);
}

static td_status allocate(td_duplicates *duplicates) {
    size_t rows = (size_t)duplicates->file.n_rows, count = rows ? rows : 1;
    duplicates->exact_first = malloc(count * sizeof *duplicates->exact_first);
    duplicates->near_first =
        duplicates->near ? malloc(count * sizeof *duplicates->near_first) : duplicates->exact_first;
    duplicates->items = malloc(count * sizeof *duplicates->items);
    duplicates->spare = malloc(count * sizeof *duplicates->spare);
    if (!duplicates->exact_first || !duplicates->near_first || !duplicates->items ||
        !duplicates->spare)
        return td_fail(TD_ERR_MEMORY, "no memory to find duplicates among %zu rows (40 bytes each)",
                       rows);
    return TD_OK;
}

// Every row's value of the column.
static td_status read_column(const td_duplicates *duplicates, int column, uint64_t *out) {
    uint64_t values[TD_DUPLICATES_BLOCK];
    size_t count;
    for (uint64_t row = 0; row < duplicates->file.n_rows; row += count) {
        TD_TRY(td_duplicates_file_read(&duplicates->file, column, row, values, &count));
        memcpy(out + row, values, count * sizeof *values);
        td_progress_tick();
    }
    return TD_OK;
}

// Does the row take part in the comparisons by this key of a band? A copy need not when the first
// row of its content does. The spare items, unused while the others are filled, note which rows do.
static int takes_part(const td_duplicates *duplicates, uint32_t row, uint64_t key) {
    uint32_t first = duplicates->exact_first[row];
    int has_key = key != TD_DUPLICATES_NO_KEY;
    duplicates->spare[row].row = (uint32_t)has_key;
    return has_key && (first == row || !duplicates->spare[first].row);
}

// Items of all rows (column of content) or of those that take part (column of a band).
static td_status read_items(td_duplicates *duplicates, int column, size_t *out_count) {
    uint64_t keys[TD_DUPLICATES_BLOCK];
    int is_band = column >= TD_DUPLICATES_FIRST_BAND;
    size_t read, count = 0;
    for (uint64_t row = 0; row < duplicates->file.n_rows; row += read) {
        TD_TRY(td_duplicates_file_read(&duplicates->file, column, row, keys, &read));
        for (size_t i = 0; i < read; i++) {
            uint32_t here = (uint32_t)(row + i);
            if (!is_band || takes_part(duplicates, here, keys[i]))
                duplicates->items[count++] =
                    (td_keyed_row){(uint32_t)keys[i], (uint32_t)(keys[i] >> 32), here};
        }
        td_progress_tick();
    }
    *out_count = count;
    return TD_OK;
}

// End of the group of equal keys that begins at `begin`.
static size_t group_end(const td_keyed_row *items, size_t begin, size_t count) {
    size_t end = begin + 1;
    while (end < count && td_keyed_row_key(items[end]) == td_keyed_row_key(items[begin]))
        end++;
    return end;
}

// Rows of equal low halves: joins those whose high halves agree too. Two different high halves in
// one group are a chance of 2^-64 per pair, so that the inner loop ends at its first step.
static void join_equal(const td_keyed_row *group, size_t count, const uint64_t *high,
                       uint32_t *parent) {
    for (size_t i = 1; i < count; i++) {
        for (size_t j = 0; j < i; j++) {
            uint32_t row = group[i].row, other = group[j].row;
            if (high[row] == high[other]) {
                td_rows_join(parent, other, row);
                break;
            }
        }
    }
}

static td_status find_exact(td_duplicates *duplicates) {
    size_t count, rows = (size_t)duplicates->file.n_rows;
    uint64_t *high = malloc((rows ? rows : 1) * sizeof *high);
    if (!high)
        return td_fail(TD_ERR_MEMORY, "no memory to find duplicates among %zu rows (40 bytes each)",
                       rows);
    td_status status;
    TD_TRY_GOTO(status, read_column(duplicates, TD_DUPLICATES_HIGH, high), cleanup);
    TD_TRY_GOTO(status, read_items(duplicates, TD_DUPLICATES_LOW, &count), cleanup);
    const td_keyed_row *items = td_keyed_rows_sort(duplicates->items, duplicates->spare, count);
    for (size_t begin = 0, end; begin < count; begin = end) {
        end = group_end(items, begin, count);
        join_equal(items + begin, end - begin, high, duplicates->exact_first);
    }
cleanup:
    free(high);
    return status;
}

static td_status join_band(td_duplicates *duplicates, td_bucket *bucket, int band) {
    size_t count;
    TD_TRY(read_items(duplicates, TD_DUPLICATES_FIRST_BAND + band, &count));
    const td_keyed_row *items = td_keyed_rows_sort(duplicates->items, duplicates->spare, count);
    for (size_t begin = 0, end; begin < count; begin = end) {
        end = group_end(items, begin, count);
        if (end - begin < 2)
            continue;
        TD_TRY(td_bucket_join(bucket, items + begin, end - begin, duplicates->near_first));
        td_progress_tick();
    }
    return TD_OK;
}

static td_status find_near(td_duplicates *duplicates) {
    td_bucket *bucket;
    TD_TRY(td_bucket_create(&duplicates->file, duplicates->threshold, &bucket));
    td_status status = TD_OK;
    for (int band = 0; band < duplicates->bands.bands && status == TD_OK; band++)
        status = join_band(duplicates, bucket, band);
    duplicates->compared = td_bucket_compared(bucket);
    td_bucket_destroy(bucket);
    return status;
}

td_status td_duplicates_finish(td_duplicates *duplicates, td_duplicates_account *out_account) {
    size_t rows = (size_t)duplicates->file.n_rows;
    if (duplicates->is_finished)
        return td_fail(TD_ERR_INTERNAL, "duplicates were looked for already");
    duplicates->is_finished = 1;
    TD_TRY(td_duplicates_file_finish(&duplicates->file));
    TD_TRY(allocate(duplicates));
    for (size_t row = 0; row < rows; row++)
        duplicates->exact_first[row] = (uint32_t)row;
    TD_TRY(find_exact(duplicates));
    td_duplicates_account account = {.rows = (int64_t)rows};
    account.exact_duplicates = td_rows_flatten(duplicates->exact_first, rows);
    account.near_duplicates = account.exact_duplicates;
    if (duplicates->near) {
        memcpy(duplicates->near_first, duplicates->exact_first,
               rows * sizeof *duplicates->near_first);
        TD_TRY(find_near(duplicates));
        account.near_duplicates = td_rows_flatten(duplicates->near_first, rows);
        account.compared_pairs = duplicates->compared;
    }
    free_work(duplicates);
    if (out_account)
        *out_account = account;
    return TD_OK;
}

const uint32_t *td_duplicates_exact_first(const td_duplicates *duplicates) {
    return duplicates->exact_first;
}

const uint32_t *td_duplicates_near_first(const td_duplicates *duplicates) {
    return duplicates->near_first;
}
