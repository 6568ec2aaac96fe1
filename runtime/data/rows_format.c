// Which format a row has, by its keys. Every row is told for itself, so that one file may mix them.
#define _GNU_SOURCE // memmem
#include <string.h>

#include "runtime/data/rows_internal.h"

const cJSON *td_row_get(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

// A row has the format when it has the first key and one of the others, if there are any.
typedef struct format_keys {
    td_row_format format;
    const char *name, *first, *others[2];
} format_keys;

static const format_keys formats[] = {
    {TD_ROW_IDS, "\"input_ids\"", "input_ids", {NULL, NULL}},
    {TD_ROW_MESSAGES, "\"messages\"", "messages", {NULL, NULL}},
    {TD_ROW_CONVERSATIONS, "\"conversations\"", "conversations", {NULL, NULL}},
    {TD_ROW_COMPLETION, "\"prompt\" and \"completion\"", "prompt", {"completion", NULL}},
    {TD_ROW_INSTRUCTION, "\"instruction\" and \"output\"", "instruction", {"output", "response"}},
    {TD_ROW_TEXT, "\"text\"", "text", {NULL, NULL}},
};
enum { N_FORMATS = sizeof formats / sizeof *formats };

static int has_format(const cJSON *object, const format_keys *keys) {
    if (!td_row_get(object, keys->first))
        return 0;
    return !keys->others[0] || td_row_get(object, keys->others[0]) ||
           (keys->others[1] && td_row_get(object, keys->others[1]));
}

static int is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

// Templates trim what they write.
static int contains(const char *text, const char *part) {
    size_t bytes = strlen(part);
    for (; bytes > 0 && is_space(*part); bytes--)
        part++;
    while (bytes > 0 && is_space(part[bytes - 1]))
        bytes--;
    return bytes == 0 || memmem(text, strlen(text), part, bytes) != NULL;
}

static int repeats(const char *text, const cJSON *item);

static int repeats_any(const char *text, const cJSON *object, const char *const *keys, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!repeats(text, td_row_get(object, keys[i])))
            return 0;
    return 1;
}

// Is all that the item says in the text? Of messages, their contents. Depth is td_json_parse()'s.
static int repeats(const char *text, const cJSON *item) {
    static const char *const keys[] = {"content", "value", "text"};
    if (cJSON_IsString(item))
        return contains(text, item->valuestring);
    if (cJSON_IsObject(item))
        return repeats_any(text, item, keys, 3);
    for (const cJSON *child = cJSON_IsArray(item) ? item->child : NULL; child; child = child->next)
        if (!repeats(text, child))
            return 0;
    return 1;
}

// Datasets often keep what a template made of their other keys: "text" as in Alpaca's.
static int is_rendering(const cJSON *object) {
    static const char *const keys[] = {"messages",   "conversations", "prompt",
                                       "completion", "instruction",   "input",
                                       "context",    "output",        "response"};
    const cJSON *text = td_row_get(object, "text");
    return cJSON_IsString(text) &&
           repeats_any(text->valuestring, object, keys, sizeof keys / sizeof *keys);
}

static td_status fail_unknown(const char *where) {
    return td_fail(TD_ERR_DATA,
                   "%s: unknown row format: a row has \"messages\", \"conversations\", \"prompt\" "
                   "and \"completion\", \"instruction\" and \"output\", \"text\", or \"input_ids\"",
                   where);
}

td_status td_row_find_format(const char *where, const cJSON *object, td_row_format *out) {
    const format_keys *found = NULL;
    for (size_t i = 0; i < N_FORMATS; i++) {
        const format_keys *keys = &formats[i];
        if (!has_format(object, keys))
            continue;
        if (keys->format == TD_ROW_IDS) {
            *out = TD_ROW_IDS;
            return TD_OK;
        }
        if (found && (keys->format != TD_ROW_TEXT || !is_rendering(object)))
            return td_fail(TD_ERR_DATA,
                           "%s: the row has %s and also %s, two formats that say different "
                           "things: remove one of them",
                           where, found->name, keys->name);
        found = found ? found : keys;
    }
    if (!found)
        return fail_unknown(where);
    *out = found->format;
    return TD_OK;
}
