#include "runtime/data/prepare.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/files.h"
#include "runtime/core/progress.h"
#include "runtime/core/rng.h"
#include "runtime/data/rows.h"
#include "runtime/data/store.h"

enum { LINES_PER_BATCH = 1024, MAX_LINE_BYTES = 64 << 20, MESSAGE_BYTES = 512 };

// One line of a batch and what became of it.
typedef struct batch_line {
    char *text;
    size_t bytes;
    int64_t number; // from 1
    td_row row;
    td_status status;
    char message[MESSAGE_BYTES];
} batch_line;

typedef struct preparer {
    const td_prepare_options *options;
    td_store_writer *writer, *split; // split: NULL without
    td_prepare_account account;
    int64_t n_split;
    int64_t row; // rows read, over all files
    batch_line *lines; // (LINES_PER_BATCH)
    int n_lines;
    const char *path;
} preparer;

static void hash_number(td_hasher *hasher, double value) {
    td_hasher_add(hasher, &value, sizeof value);
}

td_status td_prepare_fingerprint(const td_prepare_options *options, td_hash *out) {
    td_hasher *hasher;
    td_hash part = {0};
    TD_TRY(td_hasher_create(&hasher));
    td_status status = TD_OK;
    for (int i = 0; i < options->files->count && status == TD_OK; i++) {
        status = td_hash_file(options->files->items[i], &part);
        td_hasher_add(hasher, &part, sizeof part);
    }
    if (options->tokenizer) {
        part = td_tokenizer_fingerprint(options->tokenizer);
        td_hasher_add(hasher, &part, sizeof part);
    }
    const double numbers[] = {
        (double)options->vocabulary,          options->eos_id,
        (double)options->max_length,          options->assistant_only_loss,
        options->completion_only_loss,        options->bad_rows,
        options->too_long,                    options->split_ratio,
        (double)(options->seed & 0xffffffff), (double)(options->seed >> 32),
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        hash_number(hasher, numbers[i]);
    *out = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    return status;
}

static void read_line(const preparer *self, batch_line *line) {
    char where[TD_PATH_MAX + 32];
    snprintf(where, sizeof where, "%s:%lld", self->path, (long long)line->number);
    line->row = (td_row){0};
    line->status = td_row_read(self->options, where, line->text, line->bytes, &line->row);
    if (line->status != TD_OK) {
        // What the tokenizer or the template reports does not know the line.
        const char *reason = td_error_message();
        if (strncmp(reason, where, strlen(where)) == 0)
            snprintf(line->message, sizeof line->message, "%s", reason);
        else
            snprintf(line->message, sizeof line->message, "%.300s: %.200s", where, reason);
        td_error_clear();
    }
}

static int goes_to_split(const preparer *self, int64_t row) {
    uint64_t key = td_rng_key(self->options->seed, TD_RNG_SPLIT);
    return self->split &&
           td_rng_uniform(td_rng_word(key, 0, 0, (uint64_t)row)) < (float)self->options->split_ratio;
}

static td_status fit_length(preparer *self, batch_line *line, int *keep) {
    int64_t limit = self->options->max_length;
    if (line->row.count <= limit)
        return TD_OK;
    switch (self->options->too_long) {
    case TD_TOO_LONG_ERROR:
        return td_fail(TD_ERR_DATA, "%s:%lld: %lld tokens, max_length is %lld (too_long: \"drop\" or \"truncate\")",
                       self->path, (long long)line->number, (long long)line->row.count, (long long)limit);
    case TD_TOO_LONG_TRUNCATE:
        line->row.count = limit;
        self->account.rows_truncated++;
        return TD_OK;
    default:
        self->account.rows_too_long++;
        *keep = 0;
        return TD_OK;
    }
}

static td_status keep_line(preparer *self, batch_line *line) {
    int keep = 1;
    int64_t row = self->row++;
    self->account.rows_read++;
    if (line->status != TD_OK) {
        if (line->status != TD_ERR_DATA || self->options->bad_rows == TD_BAD_ROWS_ERROR)
            return td_fail(line->status, "%s", line->message);
        self->account.rows_bad++;
        return TD_OK;
    }
    TD_TRY(fit_length(self, line, &keep));
    int64_t n_trained = td_row_trained_count(&line->row);
    if (keep && n_trained == 0) {
        self->account.rows_untrained++;
        keep = 0;
    }
    if (!keep)
        return TD_OK;
    int split = goes_to_split(self, row);
    self->account.rows_kept++;
    self->account.tokens += line->row.count;
    self->account.trained_tokens += n_trained;
    self->n_split += split;
    return td_store_writer_add(split ? self->split : self->writer, line->row.tokens, line->row.trained,
                               line->row.count);
}

// Tokenizes the batch on all threads, then stores it in order.
static td_status flush_batch(preparer *self) {
    td_status status = TD_OK;
#pragma omp parallel for schedule(dynamic, 4) num_threads(self->options->n_threads)
    for (int i = 0; i < self->n_lines; i++)
        read_line(self, &self->lines[i]);
    for (int i = 0; i < self->n_lines; i++) {
        batch_line *line = &self->lines[i];
        if (status == TD_OK)
            status = keep_line(self, line);
        td_row_fini(&line->row);
        free(line->text);
        line->text = NULL;
    }
    self->n_lines = 0;
    td_progress_tick();
    return status;
}

static td_status add_line(preparer *self, const char *text, size_t bytes, int64_t number) {
    if (bytes > MAX_LINE_BYTES)
        return td_fail(TD_ERR_DATA, "%s:%lld: the line is longer than %d MiB", self->path, (long long)number,
                       MAX_LINE_BYTES >> 20);
    batch_line *line = &self->lines[self->n_lines];
    line->text = malloc(bytes + 1);
    if (!line->text)
        return td_fail(TD_ERR_MEMORY, "%s:%lld: no memory for the line", self->path, (long long)number);
    memcpy(line->text, text, bytes);
    line->text[bytes] = '\0';
    line->bytes = bytes;
    line->number = number;
    self->n_lines++;
    return self->n_lines == LINES_PER_BATCH ? flush_batch(self) : TD_OK;
}

static int is_blank(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (!strchr(" \t\r\n", text[i]) || text[i] == '\0')
            return 0;
    return 1;
}

static td_status read_file(preparer *self, const char *path) {
    char *buffer = NULL;
    size_t room = 0;
    ssize_t bytes;
    int64_t number = 0;
    td_status status = TD_OK;
    FILE *file = fopen(path, "rb");
    if (!file)
        return td_fail(TD_ERR_DATA, "%s: cannot be read: %s", path, strerror(errno));
    self->path = path;
    while (status == TD_OK && (bytes = getline(&buffer, &room, file)) >= 0) {
        const char *text = buffer;
        size_t left = (size_t)bytes;
        if (number++ == 0 && left >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) {
            text += 3;
            left -= 3;
        }
        if (!is_blank(text, left))
            status = add_line(self, text, left, number);
    }
    if (status == TD_OK && ferror(file))
        status = td_fail(TD_ERR_DATA, "%s: cannot be read: %s", path, strerror(errno));
    if (status == TD_OK)
        status = flush_batch(self);
    free(buffer);
    fclose(file);
    return status;
}

static td_status check_result(const preparer *self) {
    const td_prepare_account *account = &self->account;
    const char *first = self->options->files->items[0];
    if (account->rows_read == 0)
        return td_fail(TD_ERR_DATA, "%s: no rows", first);
    if (account->rows_kept == self->n_split)
        return td_fail(TD_ERR_DATA,
                       "%s: no rows left to train on: of %lld read, %lld malformed, %lld longer than max_length, "
                       "%lld without a trained token, %lld set apart for evaluation",
                       first, (long long)account->rows_read, (long long)account->rows_bad,
                       (long long)account->rows_too_long, (long long)account->rows_untrained,
                       (long long)self->n_split);
    if (self->split && self->n_split == 0)
        return td_fail(TD_ERR_DATA, "%s: eval_split_ratio %g of %lld rows leaves none for evaluation", first,
                       self->options->split_ratio, (long long)account->rows_kept);
    return TD_OK;
}

static td_status commit(preparer *self) {
    char text[512];
    td_hash fingerprint;
    const td_prepare_account *account = &self->account;
    TD_TRY(td_prepare_fingerprint(self->options, &fingerprint));
    snprintf(text, sizeof text,
             "{\"rows_read\": %lld, \"rows_kept\": %lld, \"rows_bad\": %lld, \"rows_too_long\": %lld, "
             "\"rows_truncated\": %lld, \"rows_untrained\": %lld, \"tokens\": %lld, \"trained_tokens\": %lld}",
             (long long)account->rows_read, (long long)account->rows_kept, (long long)account->rows_bad,
             (long long)account->rows_too_long, (long long)account->rows_truncated,
             (long long)account->rows_untrained, (long long)account->tokens,
             (long long)account->trained_tokens);
    td_store_writer *split = self->split, *writer = self->writer;
    self->split = NULL;
    if (split)
        TD_TRY(td_store_writer_commit(split, fingerprint, text));
    self->writer = NULL;
    return td_store_writer_commit(writer, fingerprint, text);
}

static td_status run(preparer *self, const char *store_path, const char *split_path) {
    TD_TRY(td_store_writer_open(store_path, &self->writer));
    if (split_path && self->options->split_ratio > 0)
        TD_TRY(td_store_writer_open(split_path, &self->split));
    for (int i = 0; i < self->options->files->count; i++)
        TD_TRY(read_file(self, self->options->files->items[i]));
    TD_TRY(check_result(self));
    return commit(self);
}

td_status td_prepare(const td_prepare_options *options, const char *store_path, const char *split_path,
                     td_prepare_account *out) {
    preparer self = {.options = options};
    if (options->files->count == 0)
        return td_fail(TD_ERR_USAGE, "train_files is empty: name at least one JSONL file");
    self.lines = calloc(LINES_PER_BATCH, sizeof *self.lines);
    td_status status = self.lines ? run(&self, store_path, split_path)
                                  : td_fail(TD_ERR_MEMORY, "no memory to prepare data");
    for (int i = 0; self.lines && i < self.n_lines; i++)
        free(self.lines[i].text);
    free(self.lines);
    if (self.split)
        td_store_writer_abandon(self.split);
    if (self.writer)
        td_store_writer_abandon(self.writer);
    if (status == TD_OK)
        *out = self.account;
    return status;
}

td_status td_prepare_row(const td_prepare_options *options, const char *where, const char *line, size_t bytes,
                         int32_t **out_tokens, uint8_t **out_trained, int64_t *out_count) {
    td_row row = {0};
    TD_TRY(td_row_read(options, where, line, bytes, &row));
    *out_tokens = row.tokens;
    *out_trained = row.trained;
    *out_count = row.count;
    return TD_OK;
}
