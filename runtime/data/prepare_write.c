// From the parts of all ranks, in the order of the sources, to the stores and the account.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/data/prepare_internal.h"
#include "runtime/data/store.h"

enum { REPORTED_BAD_ROWS = 3 };

typedef struct assembly {
    const td_preparation *preparation;
    const td_choices *choices;
    td_prepare_account *account;
    td_store_writer *writers[TD_SPLITS]; // NULL where there is no such split
    int64_t n_chosen;                    // rows that a choice was made of, so far
} assembly;

static td_status open_writers(assembly *self) {
    const td_preparation *preparation = self->preparation;
    for (int split = 0; split < TD_SPLITS; split++)
        if (split == TD_SPLIT_TRAIN || preparation->options->split_ratios[split] > 0)
            TD_TRY(td_store_writer_open(preparation->stores[split], &self->writers[split]));
    return TD_OK;
}

static void abandon(assembly *self) {
    for (int split = 0; split < TD_SPLITS; split++) {
        td_store_writer_abandon(self->writers[split]);
        self->writers[split] = NULL;
    }
}

static void drop(assembly *self, const td_part_item *item, td_outcome outcome) {
    td_dropped_rows *dropped = &self->account->dropped[outcome];
    if (dropped->rows++ == 0) {
        dropped->file = item->row.file;
        dropped->line = item->row.line;
        dropped->is_list = item->row.is_list;
    }
    if (outcome == TD_OUTCOME_MALFORMED && dropped->rows <= REPORTED_BAD_ROWS)
        td_warn("skipped: %s", item->message ? item->message : "no memory for its message");
}

static td_status keep(assembly *self, const td_part_item *item, td_split split) {
    td_prepare_account *account = self->account;
    td_store_account_part *store = &account->stores[split];
    const td_part_row *row = &item->row;
    if (!self->writers[split])
        return td_fail(TD_ERR_INTERNAL, "a row was chosen for a store that there is not");
    account->rows_kept++;
    account->rows_truncated += row->is_truncated;
    account->files[row->file].rows_kept++;
    account->tokens += row->count;
    account->trained_tokens += row->n_trained;
    store->rows++;
    store->tokens += row->count;
    store->trained_tokens += row->n_trained;
    store->longest = row->count > store->longest ? row->count : store->longest;
    return td_store_writer_add(self->writers[split], item->tokens, item->trained, row->count);
}

static td_status take(assembly *self, const td_part_item *item) {
    const td_choices *choices = self->choices;
    td_prepare_account *account = self->account;
    if (item->row.file >= account->n_files)
        return td_fail(TD_ERR_INTERNAL, "a prepared row is of no file");
    account->rows_read++;
    account->files[item->row.file].rows_read++;
    if (item->row.outcome != TD_OUTCOME_MALFORMED)
        td_histogram_add(&account->lengths, item->row.length);
    if (item->row.outcome != TD_OUTCOME_KEPT) {
        drop(self, item, (td_outcome)item->row.outcome);
        return TD_OK;
    }
    int64_t index = self->n_chosen++;
    if (choices->choices && index >= choices->n)
        return td_fail(TD_ERR_INTERNAL, "there are more prepared rows than choices");
    uint8_t choice = choices->choices ? choices->choices[index] : TD_SPLIT_TRAIN;
    if (!(choice & TD_CHOICE_DROP))
        return keep(self, item, (td_split)choice);
    drop(self, item, (td_outcome)(choice & ~TD_CHOICE_DROP));
    return TD_OK;
}

static td_status take_all(assembly *self, td_part_reader *reader) {
    td_part_item item;
    for (int found = 1;;) {
        TD_TRY(td_part_reader_next(reader, &item, &found));
        if (!found)
            break;
        TD_TRY(take(self, &item));
    }
    if (self->account->rows_read != self->preparation->rows)
        return td_fail(TD_ERR_IO,
                       "%s: %lld rows were prepared, %lld are there: start again; is the output "
                       "folder on a file system that all ranks share?",
                       self->preparation->folder, (long long)self->preparation->rows,
                       (long long)self->account->rows_read);
    return TD_OK;
}

// "3 are longer than max_length (the first: a.jsonl:7), 1 are malformed (...)", most first.
static void list_reasons(const td_prepare_account *account, char *out, size_t room) {
    char where[TD_PATH_MAX + 32];
    td_prepare_account left = *account; // its names are borrowed
    size_t used = 0;
    out[0] = '\0';
    for (td_outcome most; (most = td_account_main_reason(&left)) != TD_OUTCOME_KEPT && used < room;
         left.dropped[most].rows = 0) {
        td_account_where(account, most, where, sizeof where);
        used +=
            (size_t)snprintf(out + used, room - used, "%s%lld %s (the first: %s)", used ? ", " : "",
                             (long long)left.dropped[most].rows, td_outcome_text(most), where);
    }
}

static td_status check_rows_left(const assembly *self) {
    const td_prepare_account *account = self->account;
    char sources[TD_PATH_MAX], reasons[1024];
    td_prepare_name_sources(self->preparation->options->files, sources);
    if (account->rows_read == 0)
        return td_fail(TD_ERR_DATA, "%s: no rows: the file is empty or blank", sources);
    if (account->rows_kept > 0)
        return TD_OK;
    list_reasons(account, reasons, sizeof reasons);
    return td_fail(TD_ERR_DATA, "%s: no rows left; of %lld read: %s", sources,
                   (long long)account->rows_read, reasons);
}

static td_status check_unchanged(const assembly *self, td_hash fingerprint) {
    td_hash now = {0};
    char sources[TD_PATH_MAX];
    TD_TRY(td_prepare_fingerprint(self->preparation->options, &now));
    if (td_hash_equal(now, fingerprint))
        return TD_OK;
    td_prepare_name_sources(self->preparation->options->files, sources);
    return td_fail(TD_ERR_DATA, "%s: changed while it was read", sources);
}

static td_status write_account(const assembly *self) {
    char path[TD_PATH_MAX], *text = NULL;
    TD_TRY(td_prepare_account_path(self->preparation->stores[TD_SPLIT_TRAIN], path));
    TD_TRY(td_account_to_json(self->account, 0, &text));
    td_status status = td_file_write_atomic(path, text, strlen(text));
    free(text);
    return status;
}

static td_status commit_store(assembly *self, td_split split, td_hash fingerprint,
                              const char *account) {
    td_store_writer *writer = self->writers[split];
    self->writers[split] = NULL;
    return writer ? td_store_writer_commit(writer, fingerprint, account) : TD_OK;
}

// The training store goes last: where it is current, everything is believed to be there.
static td_status commit_all(assembly *self, td_hash fingerprint, const char *account) {
    TD_TRY(commit_store(self, TD_SPLIT_TEST, fingerprint, account));
    TD_TRY(commit_store(self, TD_SPLIT_EVAL, fingerprint, account));
    TD_TRY(write_account(self));
    return commit_store(self, TD_SPLIT_TRAIN, fingerprint, account);
}

// Splits and account without the training store would be of no use.
static void remove_companions(const assembly *self) {
    const td_preparation *preparation = self->preparation;
    char path[TD_PATH_MAX];
    for (int split = TD_SPLIT_EVAL; split < TD_SPLITS; split++)
        if (preparation->options->split_ratios[split] > 0)
            unlink(preparation->stores[split]);
    if (td_prepare_account_path(preparation->stores[TD_SPLIT_TRAIN], path) == TD_OK)
        unlink(path);
}

static td_status commit(assembly *self, td_hash fingerprint) {
    char *account = NULL;
    TD_TRY(td_account_to_json(self->account, 1, &account));
    td_status status = commit_all(self, fingerprint, account);
    if (status != TD_OK)
        remove_companions(self);
    free(account);
    return status;
}

static td_status assemble(assembly *self, td_hash fingerprint) {
    const td_preparation *preparation = self->preparation;
    td_part_reader *reader = NULL;
    TD_TRY(open_writers(self));
    TD_TRY(td_part_reader_open(preparation->folder, preparation->team->size, 1, 0, &reader));
    td_status status = take_all(self, reader);
    td_part_reader_close(reader);
    TD_TRY(status);
    TD_TRY(check_rows_left(self));
    TD_TRY(check_unchanged(self, fingerprint));
    return commit(self, fingerprint);
}

td_status td_prepare_write(const td_preparation *preparation, const td_choices *choices,
                           td_hash fingerprint, td_prepare_account *account) {
    assembly self = {.preparation = preparation, .choices = choices, .account = account};
    td_status status = td_account_init(account, preparation->options->files, preparation->stores);
    if (status == TD_OK)
        status = assemble(&self, fingerprint);
    abandon(&self);
    if (status != TD_OK)
        td_account_fini(account);
    return status;
}
