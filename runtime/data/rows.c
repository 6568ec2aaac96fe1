#include "runtime/data/rows.h"

#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "runtime/core/json.h"
#include "runtime/data/rows_internal.h"

typedef struct byte_range {
    size_t begin, end;
} byte_range;

// What a row says, before tokens: text with the byte ranges that the model is to produce.
typedef struct row_text {
    char *text;
    size_t bytes;
    byte_range *ranges; // ascending, disjoint
    size_t n_ranges;
    int train_all;
    int add_special; // the tokenizer's own first and last tokens belong to it
    int append_eos;  // the end-of-sequence token is appended when missing
} row_text;

// A row on its way, and what every message about it begins with.
typedef struct row_context {
    const td_prepare_options *options;
    const char *where, *line;
    size_t bytes;
    td_row *row;
} row_context;

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

static td_status allocate(const row_context *context, int64_t count) {
    td_row *row = context->row;
    row->tokens = malloc(((size_t)count + 1) * sizeof *row->tokens);
    row->trained = calloc((size_t)count + 1, 1);
    if (!row->tokens || !row->trained)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for %lld tokens", context->where,
                       (long long)count);
    row->count = count;
    return TD_OK;
}

static td_status fill_ids(const row_context *context, const cJSON *ids, const cJSON *labels) {
    const cJSON *id = ids->child, *label = labels ? labels->child : NULL;
    for (long long i = 0; id; i++, id = id->next, label = label ? label->next : NULL) {
        double value = cJSON_IsNumber(id) ? id->valuedouble : -1;
        if (!(value >= 0 && value < (double)context->options->vocabulary) ||
            value != (double)(int32_t)value)
            return td_fail(TD_ERR_DATA,
                           "%s: input_ids[%lld] must be an integer below the model's vocabulary "
                           "of %lld",
                           context->where, i, (long long)context->options->vocabulary);
        double target = !labels ? value : cJSON_IsNumber(label) ? label->valuedouble : -1;
        if (target != -100 && target != value)
            return td_fail(TD_ERR_DATA,
                           "%s: labels[%lld] must be -100 or equal input_ids[%lld] (labels are not "
                           "shifted)",
                           context->where, i, i);
        context->row->tokens[i] = (int32_t)value;
        context->row->trained[i] = i > 0 && target != -100;
    }
    return TD_OK;
}

// {"input_ids"} with or without "labels".
static td_status read_ids(const row_context *context, const cJSON *object) {
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(object, "input_ids");
    const cJSON *labels = cJSON_GetObjectItemCaseSensitive(object, "labels");
    if (cJSON_IsNull(labels))
        labels = NULL;
    if (!cJSON_IsArray(ids) || (labels && !cJSON_IsArray(labels)))
        return td_fail(TD_ERR_DATA, "%s: \"input_ids\" and \"labels\" must be lists of integers",
                       context->where);
    int count = cJSON_GetArraySize(ids);
    if (labels && cJSON_GetArraySize(labels) != count)
        return td_fail(TD_ERR_DATA, "%s: %d input_ids but %d labels", context->where, count,
                       cJSON_GetArraySize(labels));
    TD_TRY(allocate(context, count));
    return fill_ids(context, ids, labels);
}

// Takes the text over; keeps of the ranges what lies in [begin, end).
static td_status take_rendered(const row_context *context, td_rendered *rendered, size_t begin,
                               size_t end, row_text *out) {
    out->ranges = calloc(rendered->n_trained + 1, sizeof *out->ranges);
    if (!out->ranges)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its mask", context->where);
    out->text = rendered->text;
    out->bytes = rendered->bytes;
    rendered->text = NULL;
    for (size_t i = 0; i < rendered->n_trained; i++) {
        byte_range range = {rendered->trained[i].begin, rendered->trained[i].end};
        range.begin = range.begin > begin ? range.begin : begin;
        range.end = range.end < end ? range.end : end;
        if (range.begin < range.end)
            out->ranges[out->n_ranges++] = range;
    }
    return TD_OK;
}

// The completion is what follows the prompt with the opening of the assistant's turn; with
// assistant_only_loss, of that what the assistant says.
static td_status take_chat_completion(const row_context *context, td_rendered *rendered,
                                      row_text *out) {
    const td_prepare_options *options = context->options;
    size_t begin = options->completion_only_loss ? rendered->completion_begin : 0;
    size_t end = rendered->completion_end;
    TD_TRY(take_rendered(context, rendered, begin, end, out));
    if (options->assistant_only_loss)
        return TD_OK;
    out->train_all = !options->completion_only_loss;
    out->ranges[0] = (byte_range){begin, end};
    out->n_ranges = 1;
    return TD_OK;
}

// A chat, as the model's template writes it. `line` is the row.
static td_status render_chat(const row_context *context, const char *line, size_t bytes,
                             int has_completion, row_text *out) {
    const td_chat *chat;
    td_rendered rendered = {0};
    td_status status = td_tokenizer_chat(context->options->tokenizer, &chat);
    context->row->is_setup_error = status != TD_OK;
    TD_TRY(status);
    TD_TRY(td_chat_render_row(chat, context->where, line, bytes, &rendered));
    if (has_completion) {
        status = take_chat_completion(context, &rendered, out);
    } else {
        status = take_rendered(context, &rendered, 0, rendered.bytes, out);
        out->train_all = !context->options->assistant_only_loss;
    }
    td_rendered_fini(&rendered);
    return status;
}

// Two strings after each other, of which the second is trained.
static td_status join(const row_context *context, const char *first, const char *second,
                      row_text *out) {
    size_t n = strlen(first), m = strlen(second);
    out->text = malloc(n + m + 1);
    out->ranges = calloc(1, sizeof *out->ranges);
    if (!out->text || !out->ranges)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its text", context->where);
    memcpy(out->text, first, n);
    memcpy(out->text + n, second, m + 1);
    out->bytes = n + m;
    out->ranges[0] = (byte_range){n, n + m};
    out->n_ranges = 1;
    out->add_special = out->append_eos = 1;
    return TD_OK;
}

// {"prompt", "completion"}
static td_status render_completion(const row_context *context, const cJSON *object, row_text *out) {
    const cJSON *prompt = td_row_get(object, "prompt");
    const cJSON *completion = td_row_get(object, "completion");
    if (cJSON_IsArray(prompt) && cJSON_IsArray(completion) && !completion->child)
        return td_fail(TD_ERR_DATA, "%s: \"completion\" has no messages", context->where);
    if (cJSON_IsArray(prompt) && cJSON_IsArray(completion))
        return render_chat(context, context->line, context->bytes, 1, out);
    if (!cJSON_IsString(prompt) || !cJSON_IsString(completion))
        return td_fail(TD_ERR_DATA,
                       "%s: \"prompt\" and \"completion\" must both be strings or both be lists of "
                       "messages",
                       context->where);
    TD_TRY(join(context, prompt->valuestring, completion->valuestring, out));
    out->train_all = !context->options->completion_only_loss;
    return TD_OK;
}

static int can_chat(const td_tokenizer *tokenizer) {
    return td_tokenizer_chat_template(tokenizer) ||
           (td_tokenizer_token_id(tokenizer, "<|im_start|>") >= 0 &&
            td_tokenizer_token_id(tokenizer, "<|im_end|>") >= 0);
}

static td_status render_as_chat(const row_context *context, const cJSON *object, row_text *out) {
    cJSON *row;
    TD_TRY(td_instruction_messages(context->where, object, &row));
    char *line = cJSON_PrintUnformatted(row);
    cJSON_Delete(row);
    if (!line)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its messages", context->where);
    td_status status = render_chat(context, line, strlen(line), 0, out);
    free(line);
    return status;
}

// {"instruction", "input", "output"}: a chat where the model knows chats, else a prompt and its
// completion.
static td_status render_instruction(const row_context *context, const cJSON *object,
                                    row_text *out) {
    td_instruction row;
    char *prompt;
    if (can_chat(context->options->tokenizer))
        return render_as_chat(context, object, out);
    TD_TRY(td_instruction_read(context->where, object, &row));
    TD_TRY(td_instruction_prompt(context->where, &row, &prompt));
    out->train_all = !context->options->completion_only_loss;
    td_status status = join(context, prompt, row.output, out);
    free(prompt);
    return status;
}

static td_status render_text(const row_context *context, const cJSON *object, row_text *out) {
    const cJSON *text = td_row_get(object, "text");
    if (!cJSON_IsString(text))
        return td_fail(TD_ERR_DATA, "%s: \"text\" must be a string", context->where);
    out->train_all = 1;
    return join(context, "", text->valuestring, out);
}

static td_status render(const row_context *context, td_row_format format, const cJSON *object,
                        row_text *out) {
    switch (format) {
    case TD_ROW_COMPLETION:
        return render_completion(context, object, out);
    case TD_ROW_INSTRUCTION:
        return render_instruction(context, object, out);
    case TD_ROW_TEXT:
        return render_text(context, object, out);
    default:
        return render_chat(context, context->line, context->bytes, 0, out);
    }
}

// Tokens and ranges both ascend, so one pass over both marks every token that has a byte in a
// range. A token without bytes, which the post-processor put at the end, is trained with what it
// ends.
static void mark_trained(const row_text *text, const td_tokens *tokens, td_row *row) {
    size_t range = 0;
    for (size_t i = 1; i < tokens->count; i++) {
        while (range < text->n_ranges && text->ranges[range].end <= tokens->begins[i] &&
               text->ranges[range].end < text->bytes)
            range++;
        int is_at_end = tokens->begins[i] == text->bytes && text->n_ranges > 0 &&
                        text->ranges[text->n_ranges - 1].end == text->bytes;
        row->trained[i] = text->train_all || is_at_end ||
                          (range < text->n_ranges && tokens->begins[i] < text->ranges[range].end &&
                           tokens->ends[i] > text->ranges[range].begin);
    }
}

static td_status check_ids(const row_context *context) {
    const td_row *row = context->row;
    for (int64_t i = 0; i < row->count; i++)
        if (row->tokens[i] >= context->options->vocabulary) {
            context->row->is_setup_error = 1;
            return td_fail(TD_ERR_DATA,
                           "%s: token id %d is outside the model's vocabulary of %lld: tokenizer "
                           "and model do not belong together",
                           context->where, (int)row->tokens[i],
                           (long long)context->options->vocabulary);
        }
    return TD_OK;
}

static td_status take_tokens(const row_context *context, const row_text *text,
                             const td_tokens *tokens) {
    td_row *row = context->row;
    int32_t eos = context->options->eos_id;
    size_t count = tokens->count;
    int is_missing = text->append_eos && eos >= 0 && (count == 0 || tokens->ids[count - 1] != eos);
    TD_TRY(allocate(context, (int64_t)count));
    if (count > 0)
        memcpy(row->tokens, tokens->ids, count * sizeof *row->tokens);
    mark_trained(text, tokens, row);
    if (is_missing) {
        row->tokens[count] = eos;
        row->trained[count] = count > 0;
        row->count++;
    }
    return check_ids(context);
}

static td_status tokenize(const row_context *context, const row_text *text) {
    td_tokens tokens = {0};
    td_status status = td_tokenizer_encode(context->options->tokenizer, text->text, text->bytes,
                                           text->add_special, &tokens);
    if (status == TD_OK)
        status = take_tokens(context, text, &tokens);
    td_tokens_fini(&tokens);
    return status;
}

static td_status read_text(const row_context *context, td_row_format format, const cJSON *object) {
    row_text text = {0};
    if (!context->options->tokenizer) {
        context->row->is_setup_error = 1;
        return td_fail(TD_ERR_DATA,
                       "%s: the model folder has no tokenizer.json; without it rows must have "
                       "\"input_ids\"",
                       context->where);
    }
    td_status status = render(context, format, object, &text);
    if (status == TD_OK)
        status = tokenize(context, &text);
    free(text.text);
    free(text.ranges);
    return status;
}

static td_status read_object(const row_context *context, const cJSON *object, td_row_texts *texts) {
    td_row_format format;
    if (!cJSON_IsObject(object))
        return td_fail(TD_ERR_DATA, "%s: the row is not a JSON object", context->where);
    TD_TRY(td_row_find_format(context->where, object, &format));
    TD_TRY(format == TD_ROW_IDS ? read_ids(context, object) : read_text(context, format, object));
    if (!texts)
        return TD_OK;
    return td_row_texts_read(context->options->tokenizer, context->where, format, object,
                             context->row, texts);
}

td_status td_row_read_with_texts(const td_prepare_options *options, const char *where,
                                 const char *line, size_t bytes, td_row *row, td_row_texts *texts) {
    cJSON *object;
    row_context context = {
        .options = options, .where = where, .line = line, .bytes = bytes, .row = row};
    TD_TRY(td_json_parse(where, line, bytes, &object));
    td_status status = read_object(&context, object, texts);
    cJSON_Delete(object);
    if (status != TD_OK) {
        int is_setup_error = row->is_setup_error;
        td_row_fini(row);
        row->is_setup_error = is_setup_error;
    }
    return status;
}

td_status td_row_read(const td_prepare_options *options, const char *where, const char *line,
                      size_t bytes, td_row *row) {
    return td_row_read_with_texts(options, where, line, bytes, row, NULL);
}
