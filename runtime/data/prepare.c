#include "runtime/data/prepare.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/core/rng.h"
#include "runtime/data/lines.h"
#include "runtime/data/rows.h"
#include "runtime/data/store.h"

enum {
    PREPARE_VERSION = 2, // of what rows become; part of the fingerprint
    BATCH_LINES = 1024,
    BATCH_BYTES = 32 << 20, // a batch ends with the line that reaches this
    MAX_LINE_BYTES = 64 << 20,
    MESSAGE_BYTES = 8 << 10,
    REPORTED_BAD_ROWS = 3,
};

// One line of a batch and what became of it.
typedef struct batch_line {
    char *text;
    size_t bytes;
    int is_too_long;
    int64_t number; // in its file, from 1
    td_row row;
    td_status status;
    char *message; // of a failure, owned
} batch_line;

// Which rows go to the second store. With few rows or a small share chance may leave a store empty;
// then the row that came nearest to it is moved there.
typedef struct split_state {
    int64_t moved_to_split, moved_to_main; // row, -1: none
    int64_t nearest_to_split, nearest_to_main;
    float smallest, largest;
    int64_t n_split;
} split_state;

typedef struct preparer {
    const td_prepare_options *options;
    td_store_writer *writer, *split; // split: NULL without
    td_prepare_account account;
    split_state chosen;
    batch_line *lines; // (BATCH_LINES)
    int n_lines;
    size_t batch_bytes;
    const char *path;
} preparer;

static void add_number(td_hasher *hasher, int64_t value) {
    td_hasher_add(hasher, &value, sizeof value);
}

static td_status hash_sources(td_hasher *hasher, const td_prepare_options *options) {
    td_hash hash = {0};
    for (int i = 0; i < options->files->count; i++) {
        TD_TRY(td_hash_file(options->files->items[i], &hash));
        td_hasher_add(hasher, &hash, sizeof hash);
        td_progress_tick();
    }
    if (options->tokenizer)
        hash = td_tokenizer_fingerprint(options->tokenizer);
    else
        hash = (td_hash){0};
    td_hasher_add(hasher, &hash, sizeof hash);
    return TD_OK;
}

td_status td_prepare_fingerprint(const td_prepare_options *options, td_hash *out) {
    td_hasher *hasher = NULL;
    TD_TRY(td_hasher_create(&hasher));
    td_status status = hash_sources(hasher, options);
    add_number(hasher, PREPARE_VERSION);
    add_number(hasher, options->files->count);
    add_number(hasher, options->vocabulary);
    add_number(hasher, options->eos_id);
    add_number(hasher, options->max_length);
    add_number(hasher, options->assistant_only_loss != 0);
    add_number(hasher, options->completion_only_loss != 0);
    add_number(hasher, options->bad_rows);
    add_number(hasher, options->too_long);
    if (options->split_ratio > 0) {
        td_hasher_add(hasher, &options->split_ratio, sizeof options->split_ratio);
        td_hasher_add(hasher, &options->seed, sizeof options->seed);
    }
    if (status == TD_OK)
        *out = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    return status;
}

// Runs on any thread; what goes wrong is kept with the line until its turn comes.
static void read_row(const preparer *self, batch_line *line) {
    char where[TD_PATH_MAX + 32];
    snprintf(where, sizeof where, "%s:%lld", self->path, (long long)line->number);
    if (line->is_too_long)
        line->status =
            td_fail(TD_ERR_DATA, "%s: the line is longer than %d MiB", where, MAX_LINE_BYTES >> 20);
    else
        line->status = td_row_read(self->options, where, line->text, line->bytes, &line->row);
    td_progress_tick();
    if (line->status == TD_OK)
        return;
    // The tokenizer and the chat format do not know the line.
    const char *reason = td_error_message();
    int is_named = strncmp(reason, where, strlen(where)) == 0;
    line->message = malloc(MESSAGE_BYTES);
    if (line->message)
        snprintf(line->message, MESSAGE_BYTES, "%s%s%s", is_named ? "" : where,
                 is_named ? "" : ": ", reason);
    td_error_clear();
}

static td_status take_bad_row(preparer *self, const batch_line *line) {
    int is_skipped = line->status == TD_ERR_DATA && !line->row.is_setup_error &&
                     self->options->bad_rows == TD_BAD_ROWS_SKIP;
    const char *message = line->message ? line->message : "no memory";
    if (!is_skipped)
        return td_fail(line->status, "%s", message);
    if (self->account.rows_bad++ < REPORTED_BAD_ROWS)
        td_warn("skipped: %s", message);
    return TD_OK;
}

static td_status fit_length(preparer *self, batch_line *line, int *out_keep) {
    int64_t limit = self->options->max_length;
    *out_keep = 1;
    if (line->row.count <= limit)
        return TD_OK;
    if (self->options->too_long == TD_TOO_LONG_ERROR)
        return td_fail(TD_ERR_DATA,
                       "%s:%lld: %lld tokens are more than max_length, %lld: raise it, or set "
                       "too_long to \"drop\" or \"truncate\"",
                       self->path, (long long)line->number, (long long)line->row.count,
                       (long long)limit);
    if (self->options->too_long == TD_TOO_LONG_TRUNCATE) {
        line->row.count = limit;
        return TD_OK;
    }
    self->account.rows_too_long++;
    *out_keep = 0;
    return TD_OK;
}

static int goes_to_split(preparer *self, int64_t row) {
    split_state *chosen = &self->chosen;
    if (!self->split)
        return 0;
    uint64_t key = td_rng_key(self->options->seed, TD_RNG_SPLIT);
    float value = td_rng_uniform(td_rng_word(key, 0, 0, (uint64_t)row));
    if (value < chosen->smallest) {
        chosen->smallest = value;
        chosen->nearest_to_split = row;
    }
    if (value >= chosen->largest) {
        chosen->largest = value;
        chosen->nearest_to_main = row;
    }
    if (row == chosen->moved_to_split || row == chosen->moved_to_main)
        return row == chosen->moved_to_split;
    return (double)value < self->options->split_ratio;
}

static td_status store_row(preparer *self, const td_row *row, int64_t index, int64_t n_trained) {
    int split = goes_to_split(self, index);
    self->account.rows_kept++;
    self->account.tokens += row->count;
    self->account.trained_tokens += n_trained;
    self->chosen.n_split += split;
    return td_store_writer_add(split ? self->split : self->writer, row->tokens, row->trained,
                               row->count);
}

static td_status take_row(preparer *self, batch_line *line) {
    int64_t index = self->account.rows_read++, length = line->row.count;
    int keep;
    if (line->status != TD_OK)
        return take_bad_row(self, line);
    TD_TRY(fit_length(self, line, &keep));
    if (!keep)
        return TD_OK;
    int64_t n_trained = td_row_trained_count(&line->row);
    if (n_trained == 0) {
        self->account.rows_untrained++;
        return TD_OK;
    }
    self->account.rows_truncated += line->row.count < length;
    return store_row(self, &line->row, index, n_trained);
}

static void drop_lines(preparer *self) {
    for (int i = 0; i < self->n_lines; i++) {
        free(self->lines[i].text);
        free(self->lines[i].message);
        td_row_fini(&self->lines[i].row);
    }
    self->n_lines = 0;
    self->batch_bytes = 0;
}

// Tokenizes the batch on all threads, then takes the rows in order.
static td_status finish_batch(preparer *self) {
    td_status status = TD_OK;
    int n_threads = self->options->n_threads > 0 ? self->options->n_threads : 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(n_threads)
    for (int i = 0; i < self->n_lines; i++)
        read_row(self, &self->lines[i]);
    for (int i = 0; i < self->n_lines && status == TD_OK; i++)
        status = take_row(self, &self->lines[i]);
    drop_lines(self);
    return status;
}

static int is_blank(const td_line *line) {
    for (size_t i = 0; i < line->bytes; i++)
        if (line->text[i] != ' ' && line->text[i] != '\t' && line->text[i] != '\r')
            return 0;
    return !line->is_too_long;
}

static td_status add_line(preparer *self, const td_line *line, int64_t number) {
    batch_line *slot = &self->lines[self->n_lines];
    *slot = (batch_line){.bytes = line->bytes, .is_too_long = line->is_too_long, .number = number};
    slot->text = malloc(line->bytes + 1);
    if (!slot->text)
        return td_fail(TD_ERR_MEMORY, "%s:%lld: no memory for the line", self->path,
                       (long long)number);
    memcpy(slot->text, line->text, line->bytes);
    slot->text[line->bytes] = '\0';
    self->n_lines++;
    self->batch_bytes += line->bytes;
    int is_full = self->n_lines == BATCH_LINES || self->batch_bytes >= BATCH_BYTES;
    return is_full ? finish_batch(self) : TD_OK;
}

static td_status read_lines(preparer *self, td_line_reader *reader) {
    td_line line;
    for (int found = 1;;) {
        TD_TRY(td_line_reader_next(reader, &line, &found));
        if (!found)
            return finish_batch(self);
        if (!is_blank(&line))
            TD_TRY(add_line(self, &line, reader->number));
    }
}

static td_status read_file(preparer *self, const char *path) {
    td_line_reader reader;
    self->path = path;
    TD_TRY(td_line_reader_open(&reader, path, MAX_LINE_BYTES));
    td_status status = read_lines(self, &reader);
    drop_lines(self);
    td_line_reader_close(&reader);
    return status;
}

// "a.jsonl" or "a.jsonl and 2 more".
static void name_sources(const td_string_list *files, char out[TD_PATH_MAX]) {
    if (files->count == 1)
        snprintf(out, TD_PATH_MAX, "%s", files->items[0]);
    else
        snprintf(out, TD_PATH_MAX, "%.3900s and %d more", files->items[0], files->count - 1);
}

static td_status check_rows_left(const preparer *self) {
    const td_prepare_account *account = &self->account;
    char sources[TD_PATH_MAX];
    name_sources(self->options->files, sources);
    if (account->rows_read == 0)
        return td_fail(TD_ERR_DATA, "%s: no rows: the file is empty or blank", sources);
    if (account->rows_kept == 0)
        return td_fail(TD_ERR_DATA,
                       "%s: no rows left to train on: of %lld read, %lld are malformed, %lld are "
                       "longer than max_length %lld, %lld have no trained token",
                       sources, (long long)account->rows_read, (long long)account->rows_bad,
                       (long long)account->rows_too_long, (long long)self->options->max_length,
                       (long long)account->rows_untrained);
    if (self->split && account->rows_kept < 2)
        return td_fail(TD_ERR_DATA,
                       "%s: one row cannot be divided between training and evaluation: set "
                       "eval_split_ratio to 0 or give eval_files",
                       sources);
    return TD_OK;
}

static td_status open_writers(preparer *self, const char *store_path, const char *split_path) {
    self->account = (td_prepare_account){0};
    self->chosen.n_split = 0;
    self->chosen.smallest = 2;
    self->chosen.largest = -1;
    TD_TRY(td_store_writer_open(store_path, &self->writer));
    if (split_path)
        TD_TRY(td_store_writer_open(split_path, &self->split));
    return TD_OK;
}

static void abandon(preparer *self) {
    td_store_writer_abandon(self->writer);
    td_store_writer_abandon(self->split);
    self->writer = self->split = NULL;
}

static td_status read_all(preparer *self, const char *store_path, const char *split_path) {
    TD_TRY(open_writers(self, store_path, split_path));
    for (int i = 0; i < self->options->files->count; i++)
        TD_TRY(read_file(self, self->options->files->items[i]));
    return check_rows_left(self);
}

// Reads once more, with one row moved, when chance left a store empty.
static td_status read_balanced(preparer *self, const char *store_path, const char *split_path) {
    split_state *chosen = &self->chosen;
    chosen->moved_to_split = chosen->moved_to_main = -1;
    TD_TRY(read_all(self, store_path, split_path));
    if (!self->split || (chosen->n_split > 0 && chosen->n_split < self->account.rows_kept))
        return TD_OK;
    if (chosen->n_split == 0)
        chosen->moved_to_split = chosen->nearest_to_split;
    else
        chosen->moved_to_main = chosen->nearest_to_main;
    abandon(self);
    return read_all(self, store_path, split_path);
}

static td_status print_account(const td_prepare_account *account, char **out) {
    const struct {
        const char *name;
        int64_t value;
    } fields[] = {
        {"rows_read", account->rows_read},
        {"rows_kept", account->rows_kept},
        {"rows_bad", account->rows_bad},
        {"rows_too_long", account->rows_too_long},
        {"rows_truncated", account->rows_truncated},
        {"rows_untrained", account->rows_untrained},
        {"tokens", account->tokens},
        {"trained_tokens", account->trained_tokens},
    };
    cJSON *object = cJSON_CreateObject();
    int done = object != NULL;
    for (size_t i = 0; i < sizeof fields / sizeof *fields && done; i++)
        done = cJSON_AddNumberToObject(object, fields[i].name, (double)fields[i].value) != NULL;
    *out = done ? td_json_print(object, 0) : NULL;
    cJSON_Delete(object);
    return *out ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for the account of the rows");
}

// The split goes first: a store that exists is believed to have its split beside it.
static td_status commit_stores(preparer *self, td_hash fingerprint, const char *account,
                               const char *split_path) {
    td_store_writer *writer = self->writer, *split = self->split;
    self->split = NULL;
    if (split)
        TD_TRY(td_store_writer_commit(split, fingerprint, account));
    self->writer = NULL;
    td_status status = td_store_writer_commit(writer, fingerprint, account);
    if (status != TD_OK && split)
        unlink(split_path);
    return status;
}

static td_status check_unchanged(const preparer *self, td_hash fingerprint) {
    td_hash now = {0};
    char sources[TD_PATH_MAX];
    TD_TRY(td_prepare_fingerprint(self->options, &now));
    if (td_hash_equal(now, fingerprint))
        return TD_OK;
    name_sources(self->options->files, sources);
    return td_fail(TD_ERR_DATA, "%s: changed while it was read", sources);
}

static td_status run(preparer *self, const char *store_path, const char *split_path) {
    td_hash fingerprint = {0};
    char *account;
    TD_TRY(td_prepare_fingerprint(self->options, &fingerprint));
    TD_TRY(read_balanced(self, store_path, split_path));
    TD_TRY(check_unchanged(self, fingerprint));
    TD_TRY(print_account(&self->account, &account));
    td_status status = commit_stores(self, fingerprint, account, split_path);
    free(account);
    return status;
}

td_status td_prepare(const td_prepare_options *options, const char *store_path,
                     const char *split_path, td_prepare_account *out) {
    preparer self = {.options = options};
    if (options->files->count < 1)
        return td_fail(TD_ERR_USAGE, "no files with rows: set train_files or eval_files");
    self.lines = calloc(BATCH_LINES, sizeof *self.lines);
    td_status status = self.lines
                           ? run(&self, store_path, options->split_ratio > 0 ? split_path : NULL)
                           : td_fail(TD_ERR_MEMORY, "no memory to prepare rows");
    free(self.lines);
    if (status != TD_OK) {
        abandon(&self);
        return status;
    }
    *out = self.account;
    return TD_OK;
}

td_status td_prepare_row(const td_prepare_options *options, const char *where, const char *line,
                         size_t bytes, int32_t **out_tokens, uint8_t **out_trained,
                         int64_t *out_count) {
    td_row row = {0};
    TD_TRY(td_row_read(options, where, line, bytes, &row));
    *out_tokens = row.tokens;
    *out_trained = row.trained;
    *out_count = row.count;
    return TD_OK;
}
