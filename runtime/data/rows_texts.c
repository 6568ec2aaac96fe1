// What is asked and what is answered in a row, whatever its format.
#include <stdlib.h>
#include <string.h>

#include "runtime/core/json.h"
#include "runtime/data/rows_internal.h"

void td_row_texts_fini(td_row_texts *texts) {
    free(texts->prompt);
    free(texts->response);
    *texts = (td_row_texts){0};
}

// A text that grows; once memory is short it stays as it is.
typedef struct growing_text {
    char *text;
    size_t bytes, room;
    int has_failed;
} growing_text;

static void append(growing_text *self, const char *text, size_t bytes) {
    if (self->has_failed)
        return;
    if (self->bytes + bytes + 1 > self->room) {
        size_t room =
            self->room * 2 > self->bytes + bytes + 1 ? self->room * 2 : self->bytes + bytes + 256;
        char *grown = realloc(self->text, room);
        self->has_failed = !grown;
        if (!grown)
            return;
        self->text = grown;
        self->room = room;
    }
    memcpy(self->text + self->bytes, text, bytes);
    self->bytes += bytes;
    self->text[self->bytes] = '\0';
}

static void append_json(growing_text *self, const cJSON *item) {
    char *text = td_json_print(item, 0);
    self->has_failed |= !text;
    if (text)
        append(self, text, strlen(text));
    free(text);
}

static int is_text_part(const cJSON *part) {
    return cJSON_IsObject(part) && cJSON_IsString(td_row_get(part, "text"));
}

// A string, a list of parts of text, or data that a tool gave back.
static void append_content(growing_text *self, const cJSON *content) {
    int is_parts = cJSON_IsArray(content);
    for (const cJSON *part = is_parts ? content->child : NULL; part; part = part->next)
        is_parts &= is_text_part(part);
    if (cJSON_IsString(content)) {
        append(self, content->valuestring, strlen(content->valuestring));
    } else if (is_parts) {
        for (const cJSON *part = content->child; part; part = part->next)
            append_content(self, td_row_get(part, "text"));
    } else if (content) {
        append_json(self, content);
    }
}

// Two texts that grow message by message.
typedef struct both_texts {
    growing_text prompt, response;
} both_texts;

static int is_one_of(const char *name, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0)
            return 1;
    return 0;
}

// Whose text the message belongs to; NULL: instructions that many rows share.
static growing_text *side_of(both_texts *self, const cJSON *message) {
    static const char *const assistants[] = {"assistant", "gpt", "model", "chatgpt"};
    static const char *const systems[] = {"system", "developer"};
    const cJSON *role = td_row_get(message, "role");
    role = role ? role : td_row_get(message, "from");
    const char *name = cJSON_IsString(role) ? role->valuestring : "";
    if (is_one_of(name, systems, 2))
        return NULL;
    return is_one_of(name, assistants, 4) ? &self->response : &self->prompt;
}

static void append_message(both_texts *self, const cJSON *message) {
    growing_text *side = side_of(self, message);
    const cJSON *content = td_row_get(message, "content");
    const cJSON *calls = td_row_get(message, "tool_calls");
    if (!side)
        return;
    if (side->text)
        append(side, "\n", 1);
    size_t before = side->bytes;
    append_content(side, content ? content : td_row_get(message, "value"));
    if (!calls || !calls->child)
        return;
    if (side->bytes > before)
        append(side, "\n", 1);
    append_json(side, calls);
}

static void append_messages(both_texts *self, const cJSON *messages) {
    for (const cJSON *message = messages ? messages->child : NULL; message; message = message->next)
        append_message(self, message);
}

static void append_completion(both_texts *self, const cJSON *object) {
    const cJSON *prompt = td_row_get(object, "prompt");
    const cJSON *completion = td_row_get(object, "completion");
    if (cJSON_IsArray(prompt)) {
        append_messages(self, prompt);
        append_messages(self, completion);
        return;
    }
    append_content(&self->prompt, prompt);
    append_content(&self->response, completion);
}

static td_status append_instruction(both_texts *self, const char *where, const cJSON *object) {
    cJSON *row;
    TD_TRY(td_instruction_messages(where, object, &row));
    append_messages(self, td_row_get(row, "messages"));
    cJSON_Delete(row);
    return TD_OK;
}

static td_status decode(const td_tokenizer *tokenizer, const td_row *row, int trained, int32_t *ids,
                        growing_text *out) {
    size_t count = 0, bytes;
    char *text;
    for (int64_t i = 0; i < row->count; i++) {
        // The first token is never trained; it goes with what follows it.
        int64_t judge = i == 0 && row->count > 1 ? 1 : i;
        if (row->trained[judge] == trained)
            ids[count++] = row->tokens[i];
    }
    TD_TRY(td_tokenizer_decode(tokenizer, ids, count, 1, &text, &bytes));
    append(out, text, bytes);
    free(text);
    return TD_OK;
}

static td_status append_ids(both_texts *self, const td_tokenizer *tokenizer, const char *where,
                            const td_row *row) {
    int32_t *ids = malloc(((size_t)row->count + 1) * sizeof *ids);
    if (!ids)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its text", where);
    td_status status = decode(tokenizer, row, 0, ids, &self->prompt);
    if (status == TD_OK)
        status = decode(tokenizer, row, 1, ids, &self->response);
    free(ids);
    return status;
}

static td_status append_row(both_texts *self, const td_tokenizer *tokenizer, const char *where,
                            td_row_format format, const cJSON *object, const td_row *row) {
    switch (format) {
    case TD_ROW_IDS:
        return append_ids(self, tokenizer, where, row);
    case TD_ROW_MESSAGES:
        append_messages(self, td_row_get(object, "messages"));
        return TD_OK;
    case TD_ROW_CONVERSATIONS:
        append_messages(self, td_row_get(object, "conversations"));
        return TD_OK;
    case TD_ROW_COMPLETION:
        append_completion(self, object);
        return TD_OK;
    case TD_ROW_INSTRUCTION:
        return append_instruction(self, where, object);
    case TD_ROW_TEXT:
        append_content(&self->response, td_row_get(object, "text"));
        return TD_OK;
    }
    return TD_OK;
}

td_status td_row_texts_read(const td_tokenizer *tokenizer, const char *where, td_row_format format,
                            const cJSON *object, const td_row *row, td_row_texts *out) {
    both_texts both = {0};
    if (format == TD_ROW_IDS && !tokenizer) {
        *out = (td_row_texts){0};
        return TD_OK;
    }
    td_status status = append_row(&both, tokenizer, where, format, object, row);
    append(&both.prompt, "", 0);
    append(&both.response, "", 0);
    if (status == TD_OK && (both.prompt.has_failed || both.response.has_failed))
        status = td_fail(TD_ERR_MEMORY, "%s: no memory for its texts", where);
    if (status != TD_OK) {
        free(both.prompt.text);
        free(both.response.text);
        return status;
    }
    *out = (td_row_texts){.prompt = both.prompt.text,
                          .response = both.response.text,
                          .prompt_bytes = both.prompt.bytes,
                          .response_bytes = both.response.bytes,
                          .has_prompt =
                              format == TD_ROW_IDS ? both.prompt.bytes > 0 : format != TD_ROW_TEXT,
                          .has_response = 1};
    return TD_OK;
}
