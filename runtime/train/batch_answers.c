#include "runtime/train/batch_answers.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/train/batch_answers_file.h"
#include "runtime/train/metrics.h"

// Rows of each rank between two exchanges: more make less waiting and larger steps of the file.
enum { ROWS_PER_EXCHANGE = 4 };
static const char what[] = "batch answers";

typedef struct batch {
    td_inference *inference;
    td_comm *comm;
    const td_batch_answers_options *options;
    td_answerer answerer;
    td_batch_answers_account *account;
    td_answer_lines mine;    // since the last exchange
    td_answer_lines *others; // (ranks), on rank 0 in use between exchanges
    FILE *output;            // rank 0
    int64_t longest;         // prompt, of any rank
    int64_t block_begin, next;
    td_status status; // of this rank since the last exchange
    int is_agreed;    // a failure is known to all
    double start, last_progress;
} batch;

static int is_mine(const batch *self, int64_t index) {
    return index % td_comm_size(self->comm) == td_comm_rank(self->comm);
}

static td_status read_question(const batch *self, const td_row_visit *visit, td_question *out) {
    const td_session *session = &self->inference->session;
    int64_t most = session->model.max_positions;
    TD_TRY(td_question_read(session, visit->where, &visit->line, NULL, 0, out));
    int64_t count = (int64_t)out->prompt.count;
    td_status status = td_answer_keys_check(visit);
    if (status == TD_OK && count == 0)
        status = td_fail(TD_ERR_DATA,
                         "%s: the row asks nothing: there is no message or text to "
                         "answer",
                         visit->where);
    if (status == TD_OK && count + self->options->max_new_tokens > most)
        status = td_fail(TD_ERR_DATA,
                         "%s: a prompt of %lld tokens and up to %lld new ones exceed the model's "
                         "%lld positions",
                         visit->where, (long long)count, (long long)self->options->max_new_tokens,
                         (long long)most);
    if (status != TD_OK)
        td_question_fini(out);
    return status;
}

static int is_skipped(const batch *self, td_status status) {
    return status == TD_ERR_DATA && self->inference->session.config->bad_rows == TD_BAD_ROWS_SKIP;
}

static td_status look_at_row(void *context, const td_row_visit *visit) {
    batch *self = context;
    td_question question = {0};
    self->account->n_rows++;
    if (visit->index < self->account->n_kept || !is_mine(self, visit->index))
        return TD_OK;
    td_status status = read_question(self, visit, &question);
    if (is_skipped(self, status)) {
        td_error_clear();
        self->account->n_bad++;
        return TD_OK;
    }
    if ((int64_t)question.prompt.count > self->longest)
        self->longest = (int64_t)question.prompt.count;
    td_question_fini(&question);
    return status;
}

static td_status answer_question(batch *self, const td_row_visit *visit,
                                 const td_question *question) {
    td_answer answer = {0};
    const td_generate_options sampling = {
        .temperature = self->options->temperature,
        .top_p = self->options->top_p,
        .seed = self->options->seed,
        .sequence = (uint32_t)visit->index,
    };
    TD_TRY(td_answerer_ask(&self->answerer, self->inference->parameters, &question->prompt,
                           &sampling, 1, &answer));
    td_status status = td_answer_lines_add(&self->mine, visit, &answer, NULL);
    self->account->n_tokens += answer.n_tokens;
    free(answer.text);
    return status;
}

static td_status answer_row(batch *self, const td_row_visit *visit) {
    td_question question = {0};
    td_status status = read_question(self, visit, &question);
    if (is_skipped(self, status)) {
        status = td_answer_lines_add(&self->mine, visit, NULL, td_error_message());
        td_error_clear();
        return status;
    }
    if (status == TD_OK)
        status = answer_question(self, visit, &question);
    td_question_fini(&question);
    return status;
}

static td_status receive(batch *self, int rank, int64_t bytes) {
    td_answer_lines *lines = rank == td_comm_rank(self->comm) ? &self->mine : &self->others[rank];
    td_status status = TD_OK;
    if (lines->capacity < (size_t)bytes) {
        free(lines->text);
        lines->text = malloc((size_t)bytes);
        lines->capacity = lines->text ? (size_t)bytes : 0;
        status = lines->text ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for answers");
    }
    TD_TRY(td_comm_agree(self->comm, status, what));
    lines->bytes = (size_t)bytes;
    return td_comm_broadcast(self->comm, lines->text, (size_t)bytes, rank, what);
}

static td_status collect(batch *self) {
    int size = td_comm_size(self->comm);
    int64_t mine = (int64_t)self->mine.bytes, *all = calloc((size_t)size, sizeof *all);
    td_status status = all ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for answers");
    status = td_comm_agree(self->comm, status, what);
    if (status == TD_OK)
        status = td_comm_allgather(self->comm, &mine, all, sizeof mine, what);
    for (int rank = 1; rank < size && status == TD_OK; rank++)
        if (all[rank] > 0)
            status = receive(self, rank, all[rank]);
    free(all);
    return status;
}

// Each row's line is the next one of the rank that answered it.
static td_status write_block(batch *self) {
    int size = td_comm_size(self->comm);
    size_t *at = calloc((size_t)size, sizeof *at);
    td_status status = at ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for answers");
    for (int64_t index = self->block_begin; index < self->next && status == TD_OK; index++) {
        int rank = (int)(index % size);
        const td_answer_lines *lines = rank == 0 ? &self->mine : &self->others[rank];
        const char *line = lines->text + at[rank];
        size_t bytes = (size_t)((const char *)memchr(line, '\n', lines->bytes - at[rank]) - line);
        at[rank] += bytes + 1;
        if (fwrite(line, 1, bytes + 1, self->output) != bytes + 1)
            status = TD_ERR_IO;
    }
    free(at);
    if (status == TD_ERR_IO || (status == TD_OK && fflush(self->output) != 0))
        return td_fail(TD_ERR_IO, "%s: cannot be written: %s", self->options->output,
                       strerror(errno));
    return status;
}

static void report_progress(batch *self, int is_last) {
    double now = td_seconds_now();
    if (!is_last && now - self->last_progress < 2)
        return;
    self->last_progress = now;
    td_log_progress(is_last, "answered %lld of %lld rows, %.0f s", (long long)self->next,
                    (long long)self->account->n_rows, now - self->start);
}

// Collective: brings what all ranks have answered since the last time into the file.
static td_status exchange(batch *self) {
    int has_rows = self->block_begin < self->next;
    td_status status = td_comm_agree(self->comm, self->status, what);
    if (status == TD_OK)
        status = collect(self);
    if (status == TD_OK) {
        if (td_comm_rank(self->comm) == 0)
            status = write_block(self);
        status = td_comm_agree(self->comm, status, what);
    }
    self->is_agreed = status != TD_OK;
    self->mine.bytes = 0;
    self->block_begin = self->next;
    if (status == TD_OK && has_rows && td_comm_rank(self->comm) == 0)
        report_progress(self, self->next == self->account->n_rows);
    return status;
}

static td_status visit_row(void *context, const td_row_visit *visit) {
    batch *self = context;
    if (visit->index < self->account->n_kept)
        return TD_OK;
    if (self->status == TD_OK && is_mine(self, visit->index))
        self->status = answer_row(self, visit);
    self->next = visit->index + 1;
    if (self->next - self->block_begin < (int64_t)td_comm_size(self->comm) * ROWS_PER_EXCHANGE)
        return TD_OK;
    return exchange(self);
}

static td_status share_plan(batch *self) {
    struct {
        int64_t longest, n_bad;
    } mine = {self->longest, self->account->n_bad}, *all;
    size_t size = (size_t)td_comm_size(self->comm);
    all = calloc(size, sizeof *all);
    td_status status = all ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for answers");
    status = td_comm_agree(self->comm, status, what);
    if (status == TD_OK)
        status = td_comm_allgather(self->comm, &mine, all, sizeof mine, what);
    self->account->n_bad = 0;
    for (size_t i = 0; i < size && status == TD_OK; i++) {
        self->longest = all[i].longest > self->longest ? all[i].longest : self->longest;
        self->account->n_bad += all[i].n_bad;
    }
    free(all);
    return status;
}

static td_status open_output(batch *self) {
    const td_session *session = &self->inference->session;
    int64_t most = self->longest > 256 ? 256 : self->longest; // of a call
    TD_TRY(td_inference_prepare(self->inference, most > 0 ? most : 1, 1,
                                self->longest + self->options->max_new_tokens));
    td_status status = td_answerer_init(&self->answerer, session, self->inference->transformer,
                                        self->longest, self->options->max_new_tokens);
    self->others = calloc((size_t)td_comm_size(self->comm), sizeof *self->others);
    if (status == TD_OK && !self->others)
        status = td_fail(TD_ERR_MEMORY, "no memory for answers");
    if (status == TD_OK && td_comm_rank(self->comm) == 0) {
        int file;
        status = td_file_open_append(self->options->output, &file);
        if (status == TD_OK && !(self->output = fdopen(file, "a"))) {
            close(file);
            status = td_fail(TD_ERR_IO, "%s: cannot be written: %s", self->options->output,
                             strerror(errno));
        }
    }
    return td_comm_agree(self->comm, status, what);
}

static td_status answer_rows(batch *self, const td_string_list *files) {
    self->block_begin = self->next = self->account->n_kept;
    self->start = self->last_progress = td_seconds_now();
    td_progress_phase(TD_PHASE_GENERATE);
    td_status status = td_rows_visit(files, visit_row, self);
    if (self->is_agreed)
        return status;
    if (status != TD_OK)
        return td_comm_agree(self->comm, status, what); // as the others do in their exchange
    TD_TRY(exchange(self));
    self->account->seconds = td_seconds_now() - self->start;
    return td_comm_allreduce_i64(self->comm, &self->account->n_tokens, 1, what);
}

static td_status close_output(batch *self, td_status status) {
    if (self->output) {
        int is_written = fflush(self->output) == 0 && fsync(fileno(self->output)) == 0;
        is_written &= fclose(self->output) == 0;
        if (status == TD_OK && !is_written)
            status = td_fail(TD_ERR_IO, "%s: cannot be written: %s", self->options->output,
                             strerror(errno));
    }
    for (int i = 0; self->others && i < td_comm_size(self->comm); i++)
        free(self->others[i].text);
    free(self->others);
    free(self->mine.text);
    td_answerer_fini(&self->answerer);
    return status;
}

static td_status plan(batch *self, const td_string_list *files) {
    td_status status = TD_OK;
    if (td_comm_rank(self->comm) == 0)
        status = td_answer_file_begin(self->options, &self->account->n_kept);
    TD_TRY(td_comm_agree(self->comm, status, what));
    TD_TRY(td_comm_broadcast(self->comm, &self->account->n_kept, sizeof self->account->n_kept, 0,
                             what));
    TD_TRY(td_comm_agree(self->comm, td_rows_visit(files, look_at_row, self), what));
    return share_plan(self);
}

td_status td_batch_answers_run(td_inference *inference, const td_batch_answers_options *options,
                               td_batch_answers_account *out) {
    char *rows = (char *)(uintptr_t)options->rows;
    const td_string_list files = {&rows, 1};
    batch self = {.inference = inference,
                  .comm = inference->session.comm,
                  .options = options,
                  .account = out};
    *out = (td_batch_answers_account){0};
    TD_TRY(plan(&self, &files));
    td_status status = open_output(&self);
    if (status == TD_OK)
        status = answer_rows(&self, &files);
    return close_output(&self, status);
}
