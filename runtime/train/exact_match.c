#include "runtime/train/exact_match.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/core/rng.h"
#include "runtime/train/metrics.h"

typedef struct matcher {
    const td_session *session;
    const td_contender *contenders;
    int n_contenders;
    const td_exact_match_options *options;
    td_answerer answerer;
    td_exact_match *out; // of this rank
    td_answer_sample sample;
    int shown;
    double last_progress;
    int has_progress; // a line stands that must be ended
} matcher;

void td_wilson_interval(int64_t matches, int64_t n, double *out_low, double *out_high) {
    const double z = 1.959963984540054; // of the normal distribution, at 97.5 %
    *out_low = 0;
    *out_high = 1;
    if (n <= 0)
        return;
    double count = (double)n, share = (double)matches / count;
    double middle = share + z * z / (2 * count);
    double width = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count));
    *out_low = matches == 0 ? 0 : (middle - width) / (1 + z * z / count);
    *out_high = matches == n ? 1 : (middle + width) / (1 + z * z / count);
}

static int continues_character(char byte) {
    return ((unsigned char)byte & 0xC0) == 0x80;
}

static void copy_cut(char out[TD_SAMPLE_BYTES], const char *text) {
    static const char mark[] = "\xE2\x80\xA6"; // an ellipsis
    size_t bytes = strlen(text), keep = TD_SAMPLE_BYTES - sizeof mark;
    if (bytes < TD_SAMPLE_BYTES) {
        memcpy(out, text, bytes + 1);
        return;
    }
    while (keep > 0 && continues_character(text[keep]))
        keep--;
    memcpy(out, text, keep);
    memcpy(out + keep, mark, sizeof mark);
}

static void copy_end(char out[TD_SAMPLE_BYTES], const char *text) {
    size_t bytes = strlen(text), begin = 0;
    if (bytes >= TD_SAMPLE_BYTES)
        begin = bytes - (TD_SAMPLE_BYTES - 1);
    while (continues_character(text[begin]))
        begin++;
    memcpy(out, text + begin, bytes - begin + 1);
}

static int by_number(const void *a, const void *b) {
    const td_answer_sample *x = a, *y = b;
    if (x->number != y->number)
        return x->number < y->number ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

static int by_index(const void *a, const void *b) {
    const td_answer_sample *x = a, *y = b;
    return (x->index > y->index) - (x->index < y->index);
}

static uint64_t sample_number(const matcher *self, int64_t index) {
    uint64_t key = td_rng_key((uint64_t)self->session->config->seed, TD_RNG_EXAMPLES);
    uint64_t i = 2 * (uint64_t)index;
    return (uint64_t)td_rng_word(key, 1, 0, i) << 32 | td_rng_word(key, 1, 0, i + 1);
}

static td_status begin_sample(matcher *self, const td_row_visit *visit,
                              const td_question *question) {
    td_answer_sample *sample = &self->sample;
    char *text;
    size_t bytes, chars = strlen(visit->where), room = sizeof sample->where - 1;
    TD_TRY(td_tokenizer_decode(self->session->tokenizer, question->prompt.ids,
                               question->prompt.count, 1, &text, &bytes));
    memset(sample, 0, sizeof *sample);
    sample->number = sample_number(self, visit->index);
    sample->index = visit->index;
    snprintf(sample->where, sizeof sample->where, "%s",
             visit->where + (chars > room ? chars - room : 0));
    copy_end(sample->question, text);
    copy_cut(sample->expected, question->answer);
    free(text);
    return TD_OK;
}

// Keeps the samples with the smallest numbers.
static void keep_sample(matcher *self) {
    td_exact_match *out = self->out;
    int most = self->options->n_samples, at = out->n_samples;
    if (most == 0)
        return;
    if (at < most)
        out->n_samples++;
    else if (by_number(&self->sample, &out->samples[most - 1]) < 0)
        at = most - 1;
    else
        return;
    out->samples[at] = self->sample;
    qsort(out->samples, (size_t)out->n_samples, sizeof *out->samples, by_number);
}

static td_status answer_one(matcher *self, int number, const td_question *question,
                            const char *where) {
    td_score *score = &self->out->scores[number];
    td_answer answer = {0};
    const td_contender *contender = &self->contenders[number];
    TD_TRY(td_answerer_ask(&self->answerer, contender->parameters, &question->prompt, NULL, 0,
                           &answer));
    int matches = strcmp(answer.text, question->answer) == 0;
    score->n_matches += matches;
    score->n_tokens += answer.n_tokens;
    score->n_unfinished += !answer.is_finished;
    score->n_examples += question->n_examples;
    score->seconds += answer.seconds;
    self->sample.matches[number] = matches;
    copy_cut(self->sample.answers[number], answer.text);
    if (!matches && number + 1 == self->n_contenders && self->shown < self->options->show) {
        self->shown++;
        td_info("%s: expected %s, got %s", where, question->answer, answer.text);
    }
    free(answer.text);
    return TD_OK;
}

static td_status answer_with_examples(matcher *self, int number, const td_row_visit *visit) {
    const td_examples *examples = self->contenders[number].examples;
    td_question question = {0};
    TD_TRY(td_question_fit(self->session, visit->where, &visit->line, examples,
                           self->options->max_with_examples, &question));
    self->out->scores[number].n_shortened += question.n_left_out > 0;
    td_status status = answer_one(self, number, &question, visit->where);
    td_question_fini(&question);
    return status;
}

static td_status answer_all(matcher *self, const td_row_visit *visit, const td_question *question) {
    TD_TRY(begin_sample(self, visit, question));
    for (int i = 0; i < self->n_contenders; i++)
        TD_TRY(self->contenders[i].examples ? answer_with_examples(self, i, visit)
                                            : answer_one(self, i, question, visit->where));
    self->out->n_rows++;
    self->out->n_gained += self->sample.matches[1] && !self->sample.matches[0];
    self->out->n_lost += self->sample.matches[0] && !self->sample.matches[1];
    keep_sample(self);
    return TD_OK;
}

static td_status answer_row(matcher *self, const td_row_visit *visit, const td_question *question) {
    int64_t most = self->options->max_length, count = (int64_t)question->prompt.count;
    int is_too_long = count > most;
    if (is_too_long && self->session->config->too_long == TD_TOO_LONG_ERROR)
        return td_fail(TD_ERR_DATA, "%s: a prompt of %lld tokens, max_length is %lld", visit->where,
                       (long long)count, (long long)most);
    if (!is_too_long && count > 0 && question->answer)
        return answer_all(self, visit, question);
    self->out->n_skipped++;
    return TD_OK;
}

static void report_progress(matcher *self, const td_row_visit *visit) {
    double now = td_seconds_now();
    if (now - self->last_progress < 2 || td_comm_rank(self->session->comm) != 0)
        return;
    self->last_progress = now;
    self->has_progress = 1;
    td_log_progress(0, "answering row %lld", (long long)visit->index + 1);
}

// Rows rank, rank + size, ... of each file.
static td_status match_row(void *context, const td_row_visit *visit) {
    matcher *self = context;
    const td_session *session = self->session;
    td_question question = {0};
    if (self->options->limit > 0 && visit->file_index == self->options->limit)
        return TD_STOPPED;
    if (visit->file_index % td_comm_size(session->comm) != td_comm_rank(session->comm))
        return TD_OK;
    td_status status = td_question_read(session, visit->where, &visit->line, NULL, 0, &question);
    if (status == TD_OK)
        status = answer_row(self, visit, &question);
    td_question_fini(&question);
    report_progress(self, visit);
    if (status == TD_ERR_DATA && session->config->bad_rows == TD_BAD_ROWS_SKIP) {
        td_error_clear();
        self->out->n_skipped++;
        return TD_OK;
    }
    return status;
}

static td_status match_mine(matcher *self, td_transformer *transformer,
                            const td_string_list *files) {
    const td_exact_match_options *options = self->options;
    int64_t longest = options->max_length > options->max_with_examples ? options->max_length
                                                                       : options->max_with_examples;
    self->last_progress = td_seconds_now();
    TD_TRY(td_answerer_init(&self->answerer, self->session, transformer, longest,
                            options->max_new_tokens));
    return td_rows_visit(files, match_row, self);
}

static td_status sum_counts(td_comm *comm, td_exact_match *out) {
    int64_t sums[4 + 5 * TD_MAX_CONTENDERS] = {out->n_rows, out->n_skipped, out->n_gained,
                                               out->n_lost};
    for (int i = 0; i < TD_MAX_CONTENDERS; i++) {
        const td_score *score = &out->scores[i];
        const int64_t counts[5] = {score->n_matches, score->n_tokens, score->n_unfinished,
                                   score->n_examples, score->n_shortened};
        memcpy(sums + 4 + (size_t)(5 * i), counts, sizeof counts);
    }
    TD_TRY(td_comm_allreduce_i64(comm, sums, sizeof sums / sizeof *sums, "exact match"));
    out->n_rows = sums[0];
    out->n_skipped = sums[1];
    out->n_gained = sums[2];
    out->n_lost = sums[3];
    for (int i = 0; i < TD_MAX_CONTENDERS; i++) {
        const int64_t *counts = sums + 4 + (size_t)(5 * i);
        double seconds = out->scores[i].seconds;
        out->scores[i] = (td_score){counts[0], counts[1], counts[2], counts[3], counts[4], seconds};
    }
    return TD_OK;
}

// What one rank brings to the others.
typedef struct rank_part {
    double seconds[TD_MAX_CONTENDERS];
    int64_t n_samples;
    td_answer_sample samples[TD_MAX_SAMPLES];
} rank_part;

static void merge_parts(const rank_part *parts, int size, td_answer_sample *all, int most,
                        td_exact_match *out) {
    int count = 0;
    for (int rank = 0; rank < size; rank++) {
        for (int64_t i = 0; i < parts[rank].n_samples; i++)
            all[count++] = parts[rank].samples[i];
        for (int i = 0; i < TD_MAX_CONTENDERS; i++)
            out->scores[i].seconds = fmax(out->scores[i].seconds, parts[rank].seconds[i]);
    }
    qsort(all, (size_t)count, sizeof *all, by_number);
    out->n_samples = count < most ? count : most;
    memcpy(out->samples, all, (size_t)out->n_samples * sizeof *all);
    qsort(out->samples, (size_t)out->n_samples, sizeof *out->samples, by_index);
}

static td_status gather(td_comm *comm, int most, td_exact_match *out) {
    size_t size = (size_t)td_comm_size(comm);
    rank_part *parts = calloc(size + 1, sizeof *parts);
    td_answer_sample *all = calloc(size * TD_MAX_SAMPLES, sizeof *all);
    td_status status = parts && all ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for samples");
    status = td_comm_agree(comm, status, "samples");
    if (status == TD_OK) {
        rank_part *mine = &parts[size];
        mine->n_samples = out->n_samples;
        memcpy(mine->samples, out->samples, sizeof mine->samples);
        for (int i = 0; i < TD_MAX_CONTENDERS; i++)
            mine->seconds[i] = out->scores[i].seconds;
        status = td_comm_allgather(comm, mine, parts, sizeof *mine, "samples");
    }
    if (status == TD_OK)
        merge_parts(parts, (int)size, all, most, out);
    free(all);
    free(parts);
    return status;
}

td_status td_exact_match_run(const td_session *session, td_transformer *transformer,
                             const td_contender *contenders, int n_contenders,
                             const td_string_list *files, const td_exact_match_options *options,
                             td_exact_match *out) {
    matcher self = {.session = session,
                    .contenders = contenders,
                    .n_contenders = n_contenders,
                    .options = options,
                    .out = out};
    memset(out, 0, sizeof *out);
    td_progress_phase(TD_PHASE_GENERATE);
    td_status status = match_mine(&self, transformer, files);
    td_answerer_fini(&self.answerer);
    if (self.has_progress)
        td_log_progress(1, "answered %lld rows on this rank", (long long)out->n_rows);
    TD_TRY(td_comm_agree(session->comm, status, "exact match"));
    TD_TRY(sum_counts(session->comm, out));
    return gather(session->comm, options->n_samples, out);
}
