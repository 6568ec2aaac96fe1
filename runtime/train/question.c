#include "runtime/train/question.h"

#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "runtime/core/json.h"
#include "runtime/data/rows.h"

typedef struct reader {
    const td_session *session;
    const char *where;
    const td_line *line;
    const td_chat_example *examples; // of the row's kind
    int64_t n_examples;
    td_question *out;
} reader;

void td_question_fini(td_question *question) {
    td_tokens_fini(&question->prompt);
    td_tokens_fini(&question->whole);
    free(question->answer);
    free(question->plain);
    *question = (td_question){0};
}

static td_status no_memory(const reader *self) {
    return td_fail(TD_ERR_MEMORY, "%s: no memory for it", self->where);
}

static td_status encode(const reader *self, const char *text, size_t bytes, int add_special,
                        td_tokens *out) {
    return td_tokenizer_encode(self->session->tokenizer, text, bytes, add_special, out);
}

static int is_stop(const td_session *session, int32_t id) {
    int32_t ids[TD_MAX_EOS + 2];
    int count = td_session_stop_ids(session, ids);
    for (int i = 0; i < count; i++)
        if (ids[i] == id)
            return 1;
    return 0;
}

// What a model writes is cut at the token that ends its turn; so is what is expected.
static td_status cut_at_stop(const reader *self, char *text, size_t bytes) {
    td_tokens tokens = {0};
    TD_TRY(encode(self, text, bytes, 0, &tokens));
    for (size_t i = 0; i < tokens.count; i++)
        if (is_stop(self->session, tokens.ids[i])) {
            text[tokens.begins[i]] = '\0';
            break;
        }
    td_tokens_fini(&tokens);
    return TD_OK;
}

static td_status take_chat(const reader *self, td_chat_question *asked) {
    td_question *out = self->out;
    TD_TRY(encode(self, asked->prompt, asked->prompt_bytes, 0, &out->prompt));
    if (asked->text)
        TD_TRY(encode(self, asked->text, asked->text_bytes, 0, &out->whole));
    if (asked->answer && asked->answer_is_rendered)
        TD_TRY(cut_at_stop(self, asked->answer, asked->answer_bytes));
    out->answer = asked->answer;
    asked->answer = NULL;
    return TD_OK;
}

static td_status read_chat(const reader *self) {
    const td_chat *chat;
    td_chat_question asked = {0};
    td_chat_source source = {.row = self->line->text,
                             .bytes = self->line->bytes,
                             .examples = self->examples,
                             .n_examples = (size_t)self->n_examples};
    TD_TRY(td_tokenizer_chat(self->session->tokenizer, &chat));
    TD_TRY(td_chat_ask(chat, self->where, &source, &asked));
    td_status status = take_chat(self, &asked);
    td_chat_question_fini(&asked);
    return status;
}

typedef struct builder {
    char *text;
    size_t bytes;
    int is_out_of_memory;
} builder;

static void append(builder *self, const char *text) {
    size_t bytes = strlen(text);
    char *grown = self->is_out_of_memory ? NULL : realloc(self->text, self->bytes + bytes + 1);
    self->is_out_of_memory = !grown;
    if (!grown)
        return;
    memcpy(grown + self->bytes, text, bytes + 1);
    self->text = grown;
    self->bytes += bytes;
}

static const char *string_of(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

static int has(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return item && !cJSON_IsNull(item);
}

// Examples of prompts and completions, each followed by an empty line.
static td_status append_examples(const reader *self, builder *text) {
    for (int64_t i = 0; i < self->n_examples; i++) {
        cJSON *row;
        TD_TRY(td_json_parse("example", self->examples[i].row, self->examples[i].bytes, &row));
        append(text, string_of(row, "prompt"));
        append(text, string_of(row, "completion"));
        append(text, "\n\n");
        cJSON_Delete(row);
    }
    return TD_OK;
}

// Without an end that the tokenizer puts after every text: here it goes on.
static td_status encode_prompt(const reader *self, const builder *text) {
    td_tokens *prompt = &self->out->prompt;
    TD_TRY(encode(self, text->text, text->bytes, 1, prompt));
    while (prompt->count > 1 && text->bytes > 0 && prompt->begins[prompt->count - 1] == text->bytes)
        prompt->count--;
    return TD_OK;
}

static td_status append_eos(const reader *self, td_tokens *tokens) {
    int32_t eos = td_session_eos_id(self->session);
    size_t count = tokens->count;
    if (eos < 0 || (count > 0 && tokens->ids[count - 1] == eos))
        return TD_OK;
    int32_t *grown = realloc(tokens->ids, (count + 1) * sizeof *grown);
    if (!grown)
        return no_memory(self);
    tokens->ids = grown;
    tokens->ids[tokens->count++] = eos;
    return TD_OK;
}

// The row as it is trained on, when that is what `text` is now.
static td_status encode_whole(const reader *self, const builder *text) {
    if (text->is_out_of_memory)
        return no_memory(self);
    TD_TRY(encode(self, text->text, text->bytes, 1, &self->out->whole));
    return append_eos(self, &self->out->whole);
}

static td_status encode_completion(const reader *self, builder *text, const char *prompt,
                                   const char *completion) {
    TD_TRY(append_examples(self, text));
    append(text, prompt);
    if (text->is_out_of_memory)
        return no_memory(self);
    TD_TRY(encode_prompt(self, text));
    if (!completion)
        return TD_OK;
    append(text, completion);
    self->out->answer = strdup(completion);
    return self->out->answer ? encode_whole(self, text) : no_memory(self);
}

static td_status encode_text(const reader *self, builder *text, const char *source) {
    append(text, source);
    TD_TRY(encode_whole(self, text));
    return encode_prompt(self, text);
}

static td_status read_text(const reader *self, const char *prompt, const char *completion,
                           const char *source) {
    builder text = {0};
    td_status status = source ? encode_text(self, &text, source)
                              : encode_completion(self, &text, prompt, completion);
    free(text.text);
    return status;
}

static td_status read_id(const reader *self, const cJSON *item, int64_t index, int32_t *out) {
    double value = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(value >= 0 && value < (double)self->session->model.vocabulary) ||
        value != (double)(int32_t)value)
        return td_fail(TD_ERR_DATA,
                       "%s: input_ids[%lld] must be an integer below the model's vocabulary of "
                       "%lld",
                       self->where, (long long)index, (long long)self->session->model.vocabulary);
    *out = (int32_t)value;
    return TD_OK;
}

static td_status fill_ids(const reader *self, const cJSON *ids, td_tokens *out) {
    const cJSON *item = ids->child;
    size_t count = (size_t)cJSON_GetArraySize(ids);
    out->ids = malloc((count + 1) * sizeof *out->ids);
    if (!out->ids)
        return no_memory(self);
    out->count = out->capacity = count;
    for (size_t i = 0; i < count; i++, item = item->next)
        TD_TRY(read_id(self, item, (int64_t)i, &out->ids[i]));
    return TD_OK;
}

// Of the last run of trained labels, the first one's place; the end of the row when there is none.
static size_t find_answer(const cJSON *labels, size_t count) {
    size_t begin = count, i = 0;
    int was_trained = 0;
    for (const cJSON *item = labels ? labels->child : NULL; item && i < count;
         item = item->next, i++) {
        int is_trained = cJSON_IsNumber(item) && item->valuedouble >= 0;
        if (is_trained && !was_trained)
            begin = i;
        was_trained = is_trained;
    }
    return begin;
}

static td_status decode_answer(const reader *self, size_t begin) {
    const td_tokens *whole = &self->out->whole;
    size_t end = begin, bytes;
    while (end < whole->count && !is_stop(self->session, whole->ids[end]))
        end++;
    return td_tokenizer_decode(self->session->tokenizer, whole->ids + begin, end - begin, 0,
                               &self->out->answer, &bytes);
}

static td_status read_ids(const reader *self, const cJSON *object) {
    td_question *out = self->out;
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(object, "input_ids");
    const cJSON *labels = cJSON_GetObjectItemCaseSensitive(object, "labels");
    if (!cJSON_IsArray(ids))
        return td_fail(TD_ERR_DATA, "%s: \"input_ids\" must be a list of integers", self->where);
    TD_TRY(fill_ids(self, ids, &out->prompt));
    TD_TRY(fill_ids(self, ids, &out->whole));
    size_t begin = find_answer(cJSON_IsArray(labels) ? labels : NULL, out->prompt.count);
    if (begin == out->prompt.count)
        return TD_OK;
    out->prompt.count = begin;
    return decode_answer(self, begin);
}

// A prompt beside messages or a text is theirs, as preparation sees it, unless it has a completion.
static int asks_by_prompt(const cJSON *object) {
    return string_of(object, "prompt") &&
           (has(object, "completion") ||
            !(has(object, "messages") || has(object, "conversations") || has(object, "text")));
}

static int is_chat(const cJSON *object) {
    return cJSON_IsArray(cJSON_GetObjectItemCaseSensitive(object, "prompt")) ||
           (!asks_by_prompt(object) && (has(object, "messages") || has(object, "conversations")));
}

static td_status dispatch(const reader *self, const cJSON *object) {
    const char *text = string_of(object, "text");
    if (has(object, "input_ids"))
        return read_ids(self, object);
    if (self->out->is_chat)
        return read_chat(self);
    if (asks_by_prompt(object))
        return read_text(self, string_of(object, "prompt"), string_of(object, "completion"), NULL);
    if (text)
        return read_text(self, NULL, NULL, text);
    return td_fail(TD_ERR_DATA,
                   "%s: unknown row format: a row has \"messages\" (or \"conversations\"), "
                   "\"prompt\", \"instruction\", \"text\" or \"input_ids\"",
                   self->where);
}

// Examples of the row's own kind, without the row itself.
static int64_t select_examples(const td_examples *examples, int64_t most, const td_line *line,
                               int is_chat_row, td_chat_example *out) {
    int64_t count = 0;
    for (int64_t i = 0; i < examples->count && count < most; i++) {
        const struct td_example *item = &examples->items[i];
        int is_row = item->bytes == line->bytes && memcmp(item->row, line->text, item->bytes) == 0;
        if (item->is_chat == is_chat_row && !is_row)
            out[count++] = (td_chat_example){item->row, item->bytes};
    }
    return count;
}

static td_status read_object(const td_session *session, const char *where, const td_line *line,
                             const cJSON *object, const td_examples *examples, int64_t n_examples,
                             td_question *out) {
    td_chat_example chosen[TD_MAX_EXAMPLES];
    reader self = {
        .session = session, .where = where, .line = line, .examples = chosen, .out = out};
    out->is_chat = is_chat(object);
    out->takes_examples = out->is_chat || (asks_by_prompt(object) && !has(object, "input_ids"));
    if (out->takes_examples && n_examples > 0)
        self.n_examples = select_examples(examples, n_examples, line, out->is_chat, chosen);
    out->n_examples = self.n_examples;
    return dispatch(&self, object);
}

// As in preparation: the model's template, or ChatML where the tokenizer has its tokens.
static int can_chat(const td_tokenizer *tokenizer) {
    return td_tokenizer_chat_template(tokenizer) ||
           (td_tokenizer_token_id(tokenizer, "<|im_start|>") >= 0 &&
            td_tokenizer_token_id(tokenizer, "<|im_end|>") >= 0);
}

static td_status read_row(const td_session *session, const char *where, const td_line *line,
                          const cJSON *object, const td_examples *examples, int64_t n_examples,
                          td_question *out) {
    cJSON *plain;
    if (!cJSON_IsObject(object))
        return td_fail(TD_ERR_DATA, "%s: the line is not a JSON object", where);
    if (!session->tokenizer) // also for rows of ids, whose answers are compared as text
        return td_fail(TD_ERR_DATA, "%s: no tokenizer.json; questions and answers need one",
                       session->config->model_name_or_path);
    TD_TRY(td_row_as_plain(where, object, can_chat(session->tokenizer), &out->plain));
    if (!out->plain)
        return read_object(session, where, line, object, examples, n_examples, out);
    const td_line made = {.text = out->plain, .bytes = strlen(out->plain)};
    TD_TRY(td_json_parse(where, made.text, made.bytes, &plain));
    td_status status = read_object(session, where, &made, plain, examples, n_examples, out);
    cJSON_Delete(plain);
    return status;
}

td_status td_question_read(const td_session *session, const char *where, const td_line *line,
                           const td_examples *examples, int64_t n_examples, td_question *out) {
    cJSON *object;
    if (line->is_too_long)
        return td_fail(TD_ERR_DATA, "%s: the line is too long for a row", where);
    TD_TRY(td_json_parse(where, line->text, line->bytes, &object));
    td_status status = read_row(session, where, line, object, examples, n_examples, out);
    cJSON_Delete(object);
    if (status != TD_OK)
        td_question_fini(out);
    return status;
}

static int fits(const td_question *question, int64_t max_tokens) {
    return (int64_t)question->prompt.count <= max_tokens &&
           (int64_t)question->whole.count <= max_tokens;
}

// More examples are more tokens: the number that fits is found by halving.
td_status td_question_fit(const td_session *session, const char *where, const td_line *line,
                          const td_examples *examples, int64_t max_tokens, td_question *out) {
    TD_TRY(td_question_read(session, where, line, examples, examples->count, out));
    int64_t possible = out->n_examples, least = 0, most = possible;
    if (possible > 0 && !fits(out, max_tokens)) {
        for (most--; least < most;) {
            int64_t n = (least + most + 1) / 2;
            td_question_fini(out);
            TD_TRY(td_question_read(session, where, line, examples, n, out));
            least = fits(out, max_tokens) ? n : least;
            most = least == n ? most : n - 1;
        }
        if (out->n_examples != least) {
            td_question_fini(out);
            TD_TRY(td_question_read(session, where, line, examples, least, out));
        }
    }
    out->n_left_out = possible - out->n_examples;
    return TD_OK;
}
