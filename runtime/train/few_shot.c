#include "runtime/train/few_shot.h"

#include <stdlib.h>
#include <string.h>

int64_t td_few_shot_max_tokens(const td_session *session, const td_examples *examples,
                               int64_t max_new_tokens) {
    int64_t least = session->config->max_length, wanted = least;
    int64_t most = session->model.max_positions - max_new_tokens;
    // By itself an example has the text at the beginning of every chat; in between it may be cut
    // into tokens a little otherwise.
    for (int64_t i = 0; i < examples->count; i++)
        wanted += examples->items[i].n_tokens + 8;
    wanted = wanted < most ? wanted : most;
    return wanted > least ? wanted : least;
}

typedef struct builder {
    const td_session *session;
    td_store *plain;
    const td_examples *examples;
    int64_t max_tokens;
    td_store_writer *writer;
    int64_t next; // row of `plain`
    int64_t n_shortened;
    int32_t *tokens;  // of that row
    uint8_t *trained; // likewise
    uint8_t *mask;    // (max_tokens)
} builder;

static int64_t row_length(const builder *self) {
    const int64_t *offsets = td_store_offsets(self->plain);
    return offsets[self->next + 1] - offsets[self->next];
}

static td_status read_next(builder *self) {
    if (self->next == td_store_rows(self->plain))
        return TD_OK;
    size_t count = (size_t)row_length(self);
    free(self->tokens);
    free(self->trained);
    self->tokens = malloc((count + 1) * sizeof *self->tokens);
    self->trained = malloc(count + 1);
    if (!self->tokens || !self->trained)
        return td_fail(TD_ERR_MEMORY, "no memory for a row of %zu tokens", count);
    return td_store_read_row(self->plain, self->next, self->tokens, self->trained);
}

// Rows were left out when the store was prepared, and long ones perhaps cut.
static int is_next(const builder *self, const td_question *row) {
    if (self->next == td_store_rows(self->plain))
        return 0;
    size_t count = (size_t)row_length(self);
    return row->whole.count >= count &&
           memcmp(row->whole.ids, self->tokens, count * sizeof *self->tokens) == 0;
}

static size_t common_end(const td_tokens *a, const td_tokens *b) {
    size_t n = 0;
    while (n < a->count && n < b->count && a->ids[a->count - 1 - n] == b->ids[b->count - 1 - n])
        n++;
    return n;
}

static size_t first_trained(const builder *self, size_t count) {
    size_t i = 0;
    while (i < count && !self->trained[i])
        i++;
    return i;
}

// The mask of the row's tokens at the end of `with`, less what was cut off. 0: the targets, from
// the first on, are not the same tokens there.
static int64_t place_mask(builder *self, const td_question *row, const td_tokens *with) {
    size_t count = (size_t)row_length(self), cut = row->whole.count - count;
    size_t common = common_end(&row->whole, with), first = first_trained(self, count);
    if (row->whole.count - first > common || with->count <= cut ||
        (int64_t)with->count > self->max_tokens)
        return 0;
    size_t length = with->count - cut, kept = count - first;
    memset(self->mask, 0, length);
    memcpy(self->mask + length - kept, self->trained + first, kept);
    return (int64_t)length;
}

static td_status add_with_examples(builder *self, const td_row_visit *visit,
                                   const td_question *row) {
    td_question with = {0};
    TD_TRY(td_question_fit(self->session, visit->where, &visit->line, self->examples,
                           self->max_tokens, &with));
    int64_t length = place_mask(self, row, &with.whole);
    self->n_shortened += with.n_left_out > 0 || (length == 0 && with.n_examples > 0);
    td_status status =
        length > 0
            ? td_store_writer_add(self->writer, with.whole.ids, self->mask, length)
            : td_store_writer_add(self->writer, self->tokens, self->trained, row_length(self));
    td_question_fini(&with);
    return status;
}

static td_status add_row(void *context, const td_row_visit *visit) {
    builder *self = context;
    td_question row = {0};
    td_status status = td_question_read(self->session, visit->where, &visit->line, NULL, 0, &row);
    if (status == TD_ERR_DATA && self->session->config->bad_rows == TD_BAD_ROWS_SKIP) {
        td_error_clear();
        return TD_OK;
    }
    TD_TRY(status);
    if (is_next(self, &row)) {
        status = add_with_examples(self, visit, &row);
        self->next++;
        if (status == TD_OK)
            status = read_next(self);
    }
    td_question_fini(&row);
    return status;
}

static td_status add_all(builder *self, const td_string_list *files) {
    self->mask = malloc((size_t)self->max_tokens + 1);
    if (!self->mask)
        return td_fail(TD_ERR_MEMORY, "no memory for rows of %lld tokens",
                       (long long)self->max_tokens);
    TD_TRY(read_next(self));
    TD_TRY(td_rows_visit(files, add_row, self));
    if (self->next < td_store_rows(self->plain))
        return td_fail(TD_ERR_DATA, "%s: row %lld of the prepared data is not there any more",
                       files->items[0], (long long)self->next + 1);
    return TD_OK;
}

td_status td_few_shot_store(const td_session *session, td_store *plain, const td_string_list *files,
                            const td_examples *examples, int64_t max_tokens, const char *path,
                            int64_t *out_shortened) {
    builder self = {
        .session = session, .plain = plain, .examples = examples, .max_tokens = max_tokens};
    TD_TRY(td_store_writer_open(path, &self.writer));
    td_status status = add_all(&self, files);
    if (status == TD_OK)
        status = td_store_writer_commit(self.writer, td_store_fingerprint(plain), "{}");
    else
        td_store_writer_abandon(self.writer);
    free(self.tokens);
    free(self.trained);
    free(self.mask);
    if (status == TD_OK)
        *out_shortened = self.n_shortened;
    return status;
}
