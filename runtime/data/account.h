// What became of the rows of a preparation: how many were read, which are in which store, and why
// the others are not, each reason with the first row it met.
#ifndef TANDEM_DATA_ACCOUNT_H
#define TANDEM_DATA_ACCOUNT_H

#include <stdio.h>

#include "runtime/data/filters.h"
#include "runtime/data/histogram.h"

typedef enum td_outcome {
    TD_OUTCOME_KEPT,
    TD_OUTCOME_MALFORMED,
    TD_OUTCOME_TOO_LONG,
    TD_OUTCOME_UNTRAINED,
    TD_OUTCOME_EXACT_DUPLICATE,
    TD_OUTCOME_NEAR_DUPLICATE,
    TD_OUTCOME_FILTERED, // and the td_filter_verdict, which is at least 1
    TD_OUTCOMES = TD_OUTCOME_FILTERED + TD_FILTER_VERDICTS,
} td_outcome;

// As a key ("too_long") and for people ("longer than max_length"); NULL for an outcome that is
// none.
const char *td_outcome_name(td_outcome outcome);
const char *td_outcome_text(td_outcome outcome);

// Rows and where the first of them stands; line 0: there are none.
typedef struct td_dropped_rows {
    int64_t rows;
    int file; // among the sources
    int64_t line;
    int is_list;
} td_dropped_rows;

typedef struct td_file_account {
    char *path; // owned
    int64_t rows_read, rows_kept;
} td_file_account;

typedef struct td_store_account_part {
    char name[64]; // of its file, without ".h5"; "": there is no such store
    int64_t rows, tokens, trained_tokens, longest;
} td_store_account_part;

struct td_prepare_account {
    int64_t rows_read, rows_kept, rows_truncated;
    int64_t tokens, trained_tokens; // of all stores
    td_dropped_rows dropped[TD_OUTCOMES];
    td_store_account_part stores[TD_SPLITS];
    td_histogram lengths;   // of all rows that were tokenized, before max_length
    td_file_account *files; // owned
    int n_files;
};

// The zero account is empty; nothing is owned after fini.
td_status td_account_init(td_prepare_account *account, const td_string_list *files,
                          const char *const stores[TD_SPLITS]);
void td_account_fini(td_prepare_account *account);

// The outcome that most rows share of those that were dropped; TD_OUTCOME_KEPT: none were.
td_outcome td_account_main_reason(const td_prepare_account *account);
// "file:line" of the first row with that outcome.
void td_account_where(const td_prepare_account *account, td_outcome outcome, char *out,
                      size_t room);

// The caller frees. Short: one line without files and lengths, for the attribute of a store. It
// says nothing of ranks, threads or time, so that equal data makes equal files.
td_status td_account_to_json(const td_prepare_account *account, int is_short, char **out);
// For people: rows, reasons with examples, stores, a bar chart of lengths.
void td_account_print(const td_prepare_account *account, FILE *out);

#endif
