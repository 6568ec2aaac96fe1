// {"instruction", "input", "output"}, as Alpaca has them, with the names that Dolly uses
// ("context", "response") and LLaMA-Factory's "system" and "history".
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data/rows_internal.h"

// *out keeps its value when the key is missing.
static td_status read_string(const char *where, const cJSON *object, const char *key,
                             const char **out) {
    const cJSON *item = td_row_get(object, key);
    if (item && !cJSON_IsString(item))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be a string", where, key);
    if (item)
        *out = item->valuestring;
    return TD_OK;
}

static td_status read_either(const char *where, const cJSON *object, const char *key,
                             const char *other, const char **out) {
    if (td_row_get(object, key) && td_row_get(object, other))
        return td_fail(TD_ERR_DATA,
                       "%s: the row has both \"%s\" and \"%s\", which mean the same: remove one of "
                       "them",
                       where, key, other);
    TD_TRY(read_string(where, object, key, out));
    return read_string(where, object, other, out);
}

static int is_pair(const cJSON *turn) {
    return cJSON_IsArray(turn) && cJSON_GetArraySize(turn) == 2 && cJSON_IsString(turn->child) &&
           cJSON_IsString(turn->child->next);
}

static td_status check_history(const char *where, const cJSON *history) {
    if (history && !cJSON_IsArray(history))
        return td_fail(TD_ERR_DATA, "%s: \"history\" must be a list of [question, answer]", where);
    int index = 0;
    for (const cJSON *turn = history ? history->child : NULL; turn; turn = turn->next, index++)
        if (!is_pair(turn))
            return td_fail(TD_ERR_DATA, "%s: history[%d] must be [question, answer], two strings",
                           where, index);
    return TD_OK;
}

td_status td_instruction_read(const char *where, const cJSON *object, td_instruction *out) {
    *out = (td_instruction){.instruction = "", .input = "", .output = ""};
    TD_TRY(read_string(where, object, "instruction", &out->instruction));
    TD_TRY(read_either(where, object, "input", "context", &out->input));
    TD_TRY(read_either(where, object, "output", "response", &out->output));
    TD_TRY(read_string(where, object, "system", &out->system));
    if (out->system && !*out->system)
        out->system = NULL;
    out->history = td_row_get(object, "history");
    TD_TRY(check_history(where, out->history));
    if (out->history && !out->history->child)
        out->history = NULL;
    if (!*out->instruction && !*out->input)
        return td_fail(TD_ERR_DATA, "%s: the instruction is empty", where);
    return TD_OK;
}

static char *joined(const char *a, const char *between, const char *b) {
    size_t bytes = strlen(a) + strlen(between) + strlen(b) + 1;
    char *text = malloc(bytes);
    if (text)
        snprintf(text, bytes, "%s%s%s", a, between, b);
    return text;
}

// What the user says: the instruction, a blank line, the input.
static char *question(const td_instruction *row) {
    int both = *row->instruction && *row->input;
    return joined(row->instruction, both ? "\n\n" : "", row->input);
}

static int add_message(cJSON *messages, const char *role, const char *content) {
    cJSON *message = cJSON_CreateObject();
    if (!message || !cJSON_AddItemToArray(messages, message)) {
        cJSON_Delete(message);
        return 0;
    }
    return cJSON_AddStringToObject(message, "role", role) &&
           cJSON_AddStringToObject(message, "content", content);
}

static int add_messages(cJSON *messages, const td_instruction *row) {
    char *user = question(row);
    int ok = user && (!row->system || add_message(messages, "system", row->system));
    for (const cJSON *turn = row->history ? row->history->child : NULL; ok && turn;
         turn = turn->next)
        ok = add_message(messages, "user", turn->child->valuestring) &&
             add_message(messages, "assistant", turn->child->next->valuestring);
    ok = ok && add_message(messages, "user", user) &&
         add_message(messages, "assistant", row->output);
    free(user);
    return ok;
}

static int add_copy(cJSON *row, const cJSON *object, const char *key) {
    const cJSON *item = td_row_get(object, key);
    cJSON *copy = item ? cJSON_Duplicate(item, 1) : NULL;
    if (copy && cJSON_AddItemToObject(row, key, copy))
        return 1;
    cJSON_Delete(copy);
    return !item;
}

td_status td_instruction_messages(const char *where, const cJSON *object, cJSON **out) {
    td_instruction instruction;
    TD_TRY(td_instruction_read(where, object, &instruction));
    cJSON *row = cJSON_CreateObject();
    cJSON *messages = row ? cJSON_AddArrayToObject(row, "messages") : NULL;
    if (!messages || !add_messages(messages, &instruction) || !add_copy(row, object, "tools") ||
        !add_copy(row, object, "chat_template_kwargs")) {
        cJSON_Delete(row);
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its messages", where);
    }
    *out = row;
    return TD_OK;
}

td_status td_instruction_prompt(const char *where, const td_instruction *row, char **out) {
    static const char with_input[] =
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.";
    static const char without_input[] =
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.";
    if (row->history)
        return td_fail(TD_ERR_DATA, "%s: \"history\" needs a chat template, and the model has none",
                       where);
    const char *preamble = row->system ? row->system : *row->input ? with_input : without_input;
    const char *heading = *row->input ? "\n\n### Input:\n" : "";
    size_t bytes =
        strlen(preamble) + strlen(row->instruction) + strlen(row->input) + sizeof with_input;
    char *text = malloc(bytes);
    if (!text)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its text", where);
    snprintf(text, bytes, "%s\n\n### Instruction:\n%s%s%s\n\n### Response:\n", preamble,
             row->instruction, heading, row->input);
    *out = text;
    return TD_OK;
}
