// The stages of td_prepare(): ranks read rows into parts, rank 0 decides about duplicates and
// splits, and writes the stores.
#ifndef TANDEM_DATA_PREPARE_INTERNAL_H
#define TANDEM_DATA_PREPARE_INTERNAL_H

#include "runtime/data/account.h"
#include "runtime/data/row_parts.h"

enum { TD_PREPARE_VERSION = 3 }; // of what rows become; part of the fingerprint

// What one preparation is about, on every rank.
typedef struct td_preparation {
    const td_prepare_options *options;
    const td_prepare_team *team;
    const char *const *stores; // (TD_SPLITS)
    const char *folder;        // of the parts
    td_filters *filters;       // NULL: none is on
    int wants_texts, wants_signatures;
    int64_t rows; // of all files, after reading
} td_preparation;

int td_preparation_has_splits(const td_prepare_options *options);
// Collective: `mine`, or what the first failing rank says.
td_status td_preparation_agree(const td_preparation *self, td_status mine, const char *what);

// Collective. Reads all sources and writes this rank's part; sets self->rows.
td_status td_prepare_read(td_preparation *self);

// Where each row that is left of its own merits goes, in the order of the parts: a td_split, or
// TD_CHOICE_DROP with the td_outcome of a duplicate.
enum { TD_CHOICE_DROP = 0x80 };
typedef struct td_choices {
    uint8_t *choices; // (n), NULL: all to TD_SPLIT_TRAIN
    int64_t n;
} td_choices;
// Rank 0.
td_status td_prepare_choose(const td_preparation *self, td_choices *out);

// Rank 0. Writes stores and account.
td_status td_prepare_write(const td_preparation *self, const td_choices *choices,
                           td_hash fingerprint, td_prepare_account *account);
// "a.jsonl" or "a.jsonl and 2 more".
void td_prepare_name_sources(const td_string_list *files, char out[TD_PATH_MAX]);

#endif
