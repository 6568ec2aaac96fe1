// Going through files of rows, and choosing rows as examples.
#include <stdlib.h>
#include <string.h>

#include "runtime/core/files.h"
#include "runtime/core/progress.h"
#include "runtime/core/rng.h"
#include "runtime/data/sources.h"
#include "runtime/train/question.h"

static const size_t max_line_bytes = (size_t)256 << 20;

static int is_blank(const td_line *line) {
    for (size_t i = 0; i < line->bytes; i++)
        if (!strchr(" \t\r", line->text[i]) || !line->text[i])
            return 0;
    return !line->is_too_long;
}

static td_status visit_file(td_line_reader *reader, td_row_visit *visit,
                            td_status (*row)(void *self, const td_row_visit *visit), void *self) {
    char where[TD_PATH_MAX + 32];
    int found = 0;
    visit->where = where;
    for (visit->file_index = 0;;) {
        TD_TRY(td_line_reader_next(reader, &visit->line, &found));
        if (!found)
            return TD_OK;
        if (is_blank(&visit->line))
            continue;
        td_line_where(visit->path, reader->is_list, reader->number, where, sizeof where);
        td_status status = row(self, visit);
        if (status != TD_OK)
            return status == TD_STOPPED ? TD_OK : status;
        visit->index++;
        visit->file_index++;
        td_progress_tick();
    }
}

static td_status visit_files(const td_string_list *files,
                             td_status (*row)(void *self, const td_row_visit *visit), void *self) {
    td_row_visit visit = {0};
    for (int i = 0; i < files->count; i++) {
        td_line_reader reader;
        visit.path = files->items[i];
        TD_TRY(td_line_reader_open(&reader, visit.path, max_line_bytes));
        td_status status = visit_file(&reader, &visit, row, self);
        td_line_reader_close(&reader);
        TD_TRY(status);
    }
    return TD_OK;
}

td_status td_rows_visit(const td_string_list *sources,
                        td_status (*row)(void *self, const td_row_visit *visit), void *self) {
    td_string_list files;
    TD_TRY(td_sources_expand(sources, &files));
    td_status status = visit_files(&files, row, self);
    td_sources_fini(&files);
    return status;
}

void td_examples_fini(td_examples *examples) {
    for (int64_t i = 0; examples->items && i < examples->count; i++)
        free(examples->items[i].row);
    free(examples->items);
    *examples = (td_examples){0};
}

// The rows with the smallest numbers win, and stand in the order of these.
typedef struct chooser {
    const td_session *session;
    uint64_t key;
    int64_t wanted;
    td_examples *out;
    uint64_t *numbers; // (wanted), ascending
} chooser;

static uint64_t number_of(const chooser *self, int64_t index) {
    uint64_t i = 2 * (uint64_t)index;
    return (uint64_t)td_rng_word(self->key, 0, 0, i) << 32 | td_rng_word(self->key, 0, 0, i + 1);
}

static td_status keep_example(const td_row_visit *visit, const td_question *question,
                              struct td_example *out) {
    const char *row = question->plain ? question->plain : visit->line.text;
    out->bytes = question->plain ? strlen(question->plain) : visit->line.bytes;
    out->is_chat = question->is_chat;
    out->n_tokens = (int64_t)question->whole.count;
    out->row = malloc(out->bytes + 1);
    if (!out->row)
        return td_fail(TD_ERR_MEMORY, "no memory for an example");
    memcpy(out->row, row, out->bytes);
    return TD_OK;
}

// A row that cannot be an example is no reason to end: training says what is wrong with it.
static td_status read_example(const chooser *self, const td_row_visit *visit,
                              struct td_example *out) {
    td_question question = {0};
    td_status status =
        td_question_read(self->session, visit->where, &visit->line, NULL, 0, &question);
    int is_usable = status == TD_OK && question.answer && question.takes_examples &&
                    question.prompt.count > 0 &&
                    (int64_t)question.whole.count <= self->session->config->max_length;
    if (is_usable)
        status = keep_example(visit, &question, out);
    td_question_fini(&question);
    if (status != TD_ERR_DATA)
        return status;
    td_error_clear();
    return TD_OK;
}

static void insert(chooser *self, uint64_t number, struct td_example example) {
    td_examples *out = self->out;
    int64_t at = out->count < self->wanted ? out->count++ : out->count - 1;
    if (at == self->wanted - 1)
        free(out->items[at].row);
    for (; at > 0 && self->numbers[at - 1] > number; at--) {
        self->numbers[at] = self->numbers[at - 1];
        out->items[at] = out->items[at - 1];
    }
    self->numbers[at] = number;
    out->items[at] = example;
}

static td_status consider(void *context, const td_row_visit *visit) {
    chooser *self = context;
    struct td_example example = {0};
    uint64_t number = number_of(self, visit->index);
    if (self->out->count == self->wanted && number >= self->numbers[self->wanted - 1])
        return TD_OK;
    TD_TRY(read_example(self, visit, &example));
    if (example.row)
        insert(self, number, example);
    return TD_OK;
}

static td_status choose(const td_session *session, const td_string_list *files, int64_t count,
                        td_examples *out) {
    chooser self = {.session = session,
                    .key = td_rng_key((uint64_t)session->config->seed, TD_RNG_EXAMPLES),
                    .wanted = count,
                    .out = out};
    self.numbers = calloc((size_t)count, sizeof *self.numbers);
    td_status status = self.numbers ? td_rows_visit(files, consider, &self)
                                    : td_fail(TD_ERR_MEMORY, "no memory for examples");
    free(self.numbers);
    return status;
}

static td_status share(td_comm *comm, td_examples *examples) {
    static const char what[] = "examples";
    int is_root = td_comm_rank(comm) == 0;
    TD_TRY(td_comm_broadcast(comm, &examples->count, sizeof examples->count, 0, what));
    for (int64_t i = 0; i < examples->count; i++) {
        struct td_example *item = &examples->items[i];
        char *row = item->row;
        TD_TRY(td_comm_broadcast(comm, item, sizeof *item, 0, what));
        item->row = is_root ? row : malloc(item->bytes + 1);
        td_status status = item->row ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for an example");
        TD_TRY(td_comm_agree(comm, status, what));
        TD_TRY(td_comm_broadcast(comm, item->row, item->bytes, 0, what));
    }
    return TD_OK;
}

td_status td_examples_choose(const td_session *session, const td_string_list *files, int64_t count,
                             td_examples *out) {
    *out = (td_examples){0};
    out->items = calloc((size_t)count + 1, sizeof *out->items);
    td_status status =
        out->items ? TD_OK
                   : td_fail(TD_ERR_MEMORY, "no memory for %lld examples", (long long)count);
    if (status == TD_OK && td_comm_rank(session->comm) == 0 && count > 0)
        status = choose(session, files, count, out);
    TD_TRY(td_comm_agree(session->comm, status, "examples"));
    return share(session->comm, out);
}
