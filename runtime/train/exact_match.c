#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/train/evaluation.h"

enum { MAX_MESSAGES = 256 };
static const size_t max_file_bytes = (size_t)1 << 30;

typedef struct answerer {
    const td_session *session;
    td_transformer *transformer;
    const float *parameters;
    td_kv_cache *cache;
    const td_exact_match_options *options;
    td_generate_options generate;
    const td_chat *chat; // the tokenizer's
    int32_t stop_ids[TD_MAX_EOS + 2];
    int32_t *ids; // (max_new_tokens)
    int shown;
} answerer;

static td_status read_messages(const char *where, const cJSON *row, td_message *messages,
                               size_t *out_count) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(row, "messages"), *item;
    size_t count = 0;
    if (!cJSON_IsArray(list))
        return td_fail(TD_ERR_DATA, "%s: exact match needs rows with \"messages\"", where);
    cJSON_ArrayForEach(item, list) {
        if (count == MAX_MESSAGES)
            return td_fail(TD_ERR_DATA, "%s: more than %d messages", where, MAX_MESSAGES);
        messages[count] = (td_message){NULL, NULL};
        TD_TRY(td_json_string(where, item, "role", &messages[count].role));
        TD_TRY(td_json_string(where, item, "content", &messages[count].content));
        if (!messages[count].role || !messages[count].content)
            return td_fail(TD_ERR_DATA, "%s: message %zu lacks role or content", where, count + 1);
        count++;
    }
    *out_count = count;
    return TD_OK;
}

// *out_text stays NULL when the prompt is too long to be answered.
static td_status answer(answerer *self, const char *where, const td_tokens *prompt,
                        char **out_text) {
    const td_config *config = self->session->config;
    int64_t count = 0;
    size_t bytes;
    if ((int64_t)prompt->count > self->options->max_length)
        return config->too_long != TD_TOO_LONG_ERROR
                   ? TD_OK
                   : td_fail(TD_ERR_DATA, "%s: a prompt of %zu tokens, max_length is %lld", where,
                             prompt->count, (long long)self->options->max_length);
    TD_TRY(td_generate(self->transformer, self->parameters, self->cache, prompt->ids,
                       (int64_t)prompt->count, &self->generate, self->ids, &count));
    return td_tokenizer_decode(self->session->tokenizer, self->ids, (size_t)count, 0, out_text,
                               &bytes);
}

static void count_answer(answerer *self, const char *where, const char *expected, const char *text,
                         td_exact_match *out) {
    if (!text) {
        out->n_skipped++;
        return;
    }
    out->n_rows++;
    if (strcmp(text, expected) == 0)
        out->n_matches++;
    else if (self->shown++ < self->options->show)
        td_info("%s: expected %s, got %s", where, expected, text);
}

static td_status compare_chat(answerer *self, const char *where, const td_message *messages,
                              size_t count, td_exact_match *out) {
    td_rendered prompt = {0};
    td_tokens tokens = {0};
    char *text = NULL;
    td_status status = td_chat_render_prompt(self->chat, messages, count - 1, &prompt);
    if (status == TD_OK)
        status =
            td_tokenizer_encode(self->session->tokenizer, prompt.text, prompt.bytes, 0, &tokens);
    if (status == TD_OK)
        status = answer(self, where, &tokens, &text);
    if (status == TD_OK)
        count_answer(self, where, messages[count - 1].content, text, out);
    free(text);
    td_tokens_fini(&tokens);
    td_rendered_fini(&prompt);
    return status;
}

static td_status compare_tree(answerer *self, const char *where, const cJSON *row,
                              td_exact_match *out) {
    td_message messages[MAX_MESSAGES];
    size_t count = 0;
    TD_TRY(read_messages(where, row, messages, &count));
    if (count > 0 && strcmp(messages[count - 1].role, "assistant") == 0)
        return compare_chat(self, where, messages, count, out);
    out->n_skipped++;
    return TD_OK;
}

static td_status compare_line(answerer *self, const char *where, const char *line, size_t bytes,
                              td_exact_match *out) {
    cJSON *tree;
    td_status status = td_json_parse(where, line, bytes, &tree);
    if (status == TD_OK) {
        status = compare_tree(self, where, tree, out);
        cJSON_Delete(tree);
    }
    if (status == TD_ERR_DATA && self->session->config->bad_rows == TD_BAD_ROWS_SKIP) {
        td_error_clear();
        out->n_skipped++;
        return TD_OK;
    }
    return status;
}

// Rows rank, rank + size, ... of the file.
static td_status compare_file(answerer *self, const char *path, td_exact_match *out) {
    char *text;
    const char *line;
    size_t bytes, length;
    int rank = td_comm_rank(self->session->comm), size = td_comm_size(self->session->comm);
    int64_t row = 0, number = 0;
    td_status status = td_file_read(path, max_file_bytes, &text, &bytes);
    if (status != TD_OK)
        return status;
    for (line = text; line < text + bytes && status == TD_OK; line += length + 1) {
        char where[TD_PATH_MAX + 32];
        const char *end = memchr(line, '\n', (size_t)(text + bytes - line));
        length = end ? (size_t)(end - line) : (size_t)(text + bytes - line);
        number++;
        if (strspn(line, " \t\r") >= length)
            continue;
        if (self->options->limit > 0 && row == self->options->limit)
            break;
        if (row++ % size != rank)
            continue;
        snprintf(where, sizeof where, "%s:%lld", path, (long long)number);
        status = compare_line(self, where, line, length, out);
    }
    free(text);
    return status;
}

static td_status compare_mine(answerer *self, const char *path, td_exact_match *out) {
    const td_session *session = self->session;
    if (!session->tokenizer)
        return td_fail(TD_ERR_DATA, "%s: exact match needs a tokenizer.json",
                       session->config->model_name_or_path);
    TD_TRY(td_tokenizer_chat(session->tokenizer, &self->chat));
    self->generate = (td_generate_options){
        .max_new_tokens = self->options->max_new_tokens,
        .top_p = 1,
        .stop_ids = self->stop_ids,
        .n_stop_ids = td_session_stop_ids(session, self->stop_ids),
    };
    self->ids = calloc((size_t)self->options->max_new_tokens, sizeof *self->ids);
    if (!self->ids)
        return td_fail(TD_ERR_MEMORY, "no memory for %lld tokens",
                       (long long)self->options->max_new_tokens);
    TD_TRY(td_kv_cache_create(&session->model,
                              self->options->max_length + self->options->max_new_tokens,
                              &session->context, &self->cache));
    return compare_file(self, path, out);
}

td_status td_evaluation_exact_match(const td_session *session, td_transformer *transformer,
                                    const float *parameters, const char *path,
                                    const td_exact_match_options *options, td_exact_match *out) {
    answerer self = {.session = session,
                     .transformer = transformer,
                     .parameters = parameters,
                     .options = options};
    td_exact_match mine = {0};
    td_progress_phase(TD_PHASE_GENERATE);
    td_status status = compare_mine(&self, path, &mine);
    td_kv_cache_destroy(self.cache);
    free(self.ids);
    TD_TRY(td_comm_agree(session->comm, status, "exact match"));
    int64_t sums[3] = {mine.n_rows, mine.n_matches, mine.n_skipped};
    TD_TRY(td_comm_allreduce_i64(session->comm, sums, 3, "exact match"));
    *out = (td_exact_match){.n_rows = sums[0], .n_matches = sums[1], .n_skipped = sums[2]};
    return TD_OK;
}
