#include "runtime/data/rows.h"

#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "runtime/core/json.h"

enum { MAX_MESSAGES = 4096 };

// What a row says, before tokens: text with the byte ranges to train.
typedef struct row_text {
    td_rendered rendered;
    int add_special;   // the tokenizer's own bos and eos belong to it
    int append_eos;    // ends with the end-of-sequence token, appended and trained when missing
    int train_all;
    size_t train_from; // else: tokens that begin here or later (SIZE_MAX: the ranges say)
} row_text;

void td_row_fini(td_row *row) {
    free(row->trained);
    free(row->tokens);
    *row = (td_row){0};
}

int64_t td_row_trained_count(const td_row *row) {
    int64_t count = 0;
    for (int64_t i = 1; i < row->count; i++)
        count += row->trained[i];
    return count;
}

static td_status allocate(const char *where, int64_t count, td_row *row) {
    if (count < 1)
        return td_fail(TD_ERR_DATA, "%s: the row has no tokens", where);
    row->tokens = malloc((size_t)count * sizeof *row->tokens);
    row->trained = calloc((size_t)count, 1);
    row->count = count;
    if (row->tokens && row->trained)
        return TD_OK;
    td_row_fini(row);
    return td_fail(TD_ERR_MEMORY, "%s: no memory for %lld tokens", where, (long long)count);
}

static td_status check_id(const td_prepare_options *options, const char *where, double id) {
    if (id < 0 || id >= (double)options->vocabulary || id != (double)(int64_t)id)
        return td_fail(TD_ERR_DATA, "%s: token id %.17g is outside the model's vocabulary of %lld", where, id,
                       (long long)options->vocabulary);
    return TD_OK;
}

// {"input_ids", "labels"}: labels are the ids themselves, or -100 where nothing is trained.
static td_status fill_ids(const td_prepare_options *options, const char *where, const cJSON *ids,
                          const cJSON *labels, td_row *row) {
    const cJSON *id = ids->child, *label = labels ? labels->child : NULL;
    for (int64_t i = 0; id; i++, id = id->next) {
        if (!cJSON_IsNumber(id))
            return td_fail(TD_ERR_DATA, "%s: input_ids[%lld] is not a number", where, (long long)i);
        TD_TRY(check_id(options, where, id->valuedouble));
        row->tokens[i] = (int32_t)id->valuedouble;
        row->trained[i] = 1;
        if (!labels)
            continue;
        if (!cJSON_IsNumber(label) ||
            (label->valuedouble != -100 && label->valuedouble != id->valuedouble))
            return td_fail(TD_ERR_DATA,
                           "%s: labels[%lld] is neither -100 nor input_ids[%lld] (labels are not shifted)",
                           where, (long long)i, (long long)i);
        row->trained[i] = label->valuedouble != -100;
        label = label->next;
    }
    return TD_OK;
}

static td_status read_ids(const td_prepare_options *options, const char *where, const cJSON *object,
                          const cJSON *ids, td_row *out) {
    const cJSON *labels = cJSON_GetObjectItemCaseSensitive(object, "labels");
    if (!cJSON_IsArray(ids) || (labels && !cJSON_IsArray(labels)))
        return td_fail(TD_ERR_DATA, "%s: input_ids and labels must be lists of numbers", where);
    int count = cJSON_GetArraySize(ids);
    if (labels && cJSON_GetArraySize(labels) != count)
        return td_fail(TD_ERR_DATA, "%s: %d input_ids but %d labels", where, count,
                       cJSON_GetArraySize(labels));
    td_row row = {0};
    TD_TRY(allocate(where, count, &row));
    td_status status = fill_ids(options, where, ids, labels, &row);
    if (status != TD_OK)
        td_row_fini(&row);
    else
        *out = row;
    return status;
}

// Appends the list's messages to messages[*count].
static td_status read_messages(const char *where, const cJSON *list, td_message *messages, size_t *count) {
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        td_message message = {0};
        if (*count == MAX_MESSAGES)
            return td_fail(TD_ERR_DATA, "%s: more than %d messages", where, MAX_MESSAGES);
        if (!cJSON_IsObject(item))
            return td_fail(TD_ERR_DATA, "%s: message %zu is not an object", where, *count + 1);
        TD_TRY(td_json_string(where, item, "role", &message.role));
        TD_TRY(td_json_string(where, item, "content", &message.content));
        if (!message.role || !message.content)
            return td_fail(TD_ERR_DATA, "%s: message %zu lacks \"%s\"", where, *count + 1,
                           message.role ? "content" : "role");
        messages[(*count)++] = message;
    }
    return TD_OK;
}

static td_status render_chat(const char *where, const cJSON *list, int assistant_only, row_text *out) {
    size_t count = 0;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) == 0)
        return td_fail(TD_ERR_DATA, "%s: \"messages\" must be a list of messages, at least one", where);
    td_message *messages = malloc(MAX_MESSAGES * sizeof *messages);
    td_status status = messages ? read_messages(where, list, messages, &count)
                                : td_fail(TD_ERR_MEMORY, "%s: no memory for the messages", where);
    if (status == TD_OK)
        status = td_chat_render(messages, count, 0, &out->rendered);
    out->train_all = !assistant_only;
    free(messages);
    return status;
}

static td_status join_texts(const char *where, const char *first, const char *second, row_text *out) {
    size_t n = strlen(first), m = strlen(second);
    out->rendered.text = malloc(n + m + 1);
    if (!out->rendered.text)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for the text", where);
    memcpy(out->rendered.text, first, n);
    memcpy(out->rendered.text + n, second, m + 1);
    out->rendered.bytes = n + m;
    return TD_OK;
}

// Lists of messages: the completion's assistant messages are trained.
static td_status render_two_chats(const char *where, const cJSON *prompt, const cJSON *completion,
                                  int completion_only, row_text *out) {
    size_t count = 0, prompt_count;
    td_rendered before = {0};
    td_message *messages = malloc(MAX_MESSAGES * sizeof *messages);
    if (!messages)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for the messages", where);
    td_status status = read_messages(where, prompt, messages, &count);
    prompt_count = count;
    if (status == TD_OK)
        status = read_messages(where, completion, messages, &count);
    if (status == TD_OK && prompt_count > 0)
        status = td_chat_render(messages, prompt_count, 1, &before);
    if (status == TD_OK)
        status = td_chat_render(messages, count, 0, &out->rendered);
    out->train_all = !completion_only;
    out->train_from = before.bytes;
    td_rendered_fini(&before);
    free(messages);
    return status;
}

static td_status render_completion(const char *where, const cJSON *prompt, const cJSON *completion,
                                   int completion_only, row_text *out) {
    if (cJSON_IsArray(prompt) && cJSON_IsArray(completion))
        return render_two_chats(where, prompt, completion, completion_only, out);
    if (!cJSON_IsString(prompt) || !cJSON_IsString(completion))
        return td_fail(TD_ERR_DATA, "%s: \"prompt\" and \"completion\" must both be strings or lists of messages",
                       where);
    out->add_special = out->append_eos = 1;
    out->train_all = !completion_only;
    out->train_from = strlen(prompt->valuestring);
    return join_texts(where, prompt->valuestring, completion->valuestring, out);
}

static td_status render(const td_prepare_options *options, const char *where, const cJSON *object,
                        row_text *out) {
    const cJSON *messages = cJSON_GetObjectItemCaseSensitive(object, "messages");
    const cJSON *prompt = cJSON_GetObjectItemCaseSensitive(object, "prompt");
    const cJSON *completion = cJSON_GetObjectItemCaseSensitive(object, "completion");
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(object, "text");
    *out = (row_text){.train_from = SIZE_MAX};
    if (messages) {
        TD_TRY(td_chat_require_tokens(options->tokenizer));
        return render_chat(where, messages, options->assistant_only_loss, out);
    }
    if (prompt && completion)
        return render_completion(where, prompt, completion, options->completion_only_loss, out);
    if (cJSON_IsString(text)) {
        out->add_special = out->append_eos = out->train_all = 1;
        return join_texts(where, text->valuestring, "", out);
    }
    return td_fail(TD_ERR_DATA,
                   "%s: no known row format; rows have \"messages\", \"prompt\" and \"completion\", \"text\", or "
                   "\"input_ids\"",
                   where);
}

// A token is trained when any of its bytes is to be produced. Special tokens that the tokenizer adds have no bytes; they are
// trained with the text around them only when everything is.
static uint8_t is_trained(const row_text *text, uint32_t begin, uint32_t end) {
    if (text->train_all)
        return 1;
    if (begin == end)
        return 0;
    if (text->train_from != SIZE_MAX && begin < text->train_from)
        return 0;
    if (text->rendered.n_trained == 0)
        return text->train_from != SIZE_MAX;
    for (size_t i = 0; i < text->rendered.n_trained; i++)
        if (begin < text->rendered.trained[i].end && end > text->rendered.trained[i].begin)
            return 1;
    return 0;
}

static td_status fill_tokens(const td_prepare_options *options, const char *where, const row_text *text,
                             const td_tokens *tokens, td_row *out) {
    int64_t count = (int64_t)tokens->count;
    int missing_eos = text->append_eos && options->eos_id >= 0 &&
                      (count == 0 || tokens->ids[count - 1] != options->eos_id);
    TD_TRY(allocate(where, count + missing_eos, out));
    for (int64_t i = 0; i < count; i++) {
        out->tokens[i] = tokens->ids[i];
        out->trained[i] = is_trained(text, tokens->begins[i], tokens->ends[i]);
    }
    if (missing_eos) {
        out->tokens[count] = options->eos_id;
        out->trained[count] = 1;
    }
    for (int64_t i = 0; i < out->count; i++)
        if (check_id(options, where, out->tokens[i]) != TD_OK) {
            td_row_fini(out);
            return TD_ERR_DATA;
        }
    return TD_OK;
}

static td_status read_text(const td_prepare_options *options, const char *where, const cJSON *object,
                           td_row *out) {
    row_text text;
    td_tokens tokens = {0};
    if (!options->tokenizer)
        return td_fail(TD_ERR_DATA, "%s: the model folder has no tokenizer.json; without one rows need \"input_ids\"",
                       where);
    td_status status = render(options, where, object, &text);
    if (status == TD_OK)
        status = td_tokenizer_encode(options->tokenizer, text.rendered.text, text.rendered.bytes,
                                     text.add_special, &tokens);
    if (status == TD_OK)
        status = fill_tokens(options, where, &text, &tokens, out);
    td_tokens_fini(&tokens);
    td_rendered_fini(&text.rendered);
    return status;
}

td_status td_row_read(const td_prepare_options *options, const char *where, const char *line, size_t bytes,
                      td_row *out) {
    cJSON *object;
    TD_TRY(td_json_parse(where, line, bytes, &object));
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(object, "input_ids");
    td_status status;
    if (!cJSON_IsObject(object))
        status = td_fail(TD_ERR_DATA, "%s: the line is not a JSON object", where);
    else
        status = ids ? read_ids(options, where, object, ids, out) : read_text(options, where, object, out);
    cJSON_Delete(object);
    return status;
}
