// config.json, changed as text: a tree of numbers would print 500000.0 as 500000, and transformers
// tells the two apart.
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/export_internal.h"
#include "runtime/core/files.h"
#include "runtime/core/json.h"

static const size_t max_config_bytes = 4u << 20;

// A member of the outermost object. Points into the text.
typedef struct member {
    const char *key, *value;
    size_t key_chars, value_chars; // the key with its quotes
} member;

static const char *skip_space(const char *at) {
    while (isspace((unsigned char)*at))
        at++;
    return at;
}

static const char *skip_string(const char *at) {
    for (at++; *at && *at != '"'; at++)
        if (*at == '\\' && at[1])
            at++;
    return *at ? at + 1 : at;
}

// To the comma or brace that ends the value.
static const char *skip_value(const char *at) {
    int depth = 0;
    while (*at) {
        if (*at == '"') {
            at = skip_string(at);
            continue;
        }
        if (depth == 0 && (*at == ',' || *at == '}'))
            break;
        depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
        at++;
    }
    return at;
}

// The text is known to be a valid object. NULL at its end.
static const char *next_member(const char *at, member *out) {
    at = skip_space(at);
    if (*at == '{' || *at == ',')
        at = skip_space(at + 1);
    if (*at != '"')
        return NULL;
    out->key = at;
    at = skip_string(at);
    out->key_chars = (size_t)(at - out->key);
    at = skip_space(at);
    at = skip_space(*at == ':' ? at + 1 : at);
    out->value = at;
    at = skip_value(at);
    const char *end = at;
    while (end > out->value && isspace((unsigned char)end[-1]))
        end--;
    out->value_chars = (size_t)(end - out->value);
    return at;
}

static int has_key(const member *found, const char *key) {
    size_t chars = strlen(key);
    return found->key_chars == chars + 2 && memcmp(found->key + 1, key, chars) == 0;
}

static void print_member(FILE *out, int *count, const member *found) {
    fprintf(out, "%s\n  %.*s: %.*s", (*count)++ ? "," : "", (int)found->key_chars, found->key,
            (int)found->value_chars, found->value);
}

static void print_text(FILE *out, int *count, const char *key, const char *value) {
    fprintf(out, "%s\n  \"%s\": %s", (*count)++ ? "," : "", key, value);
}

static void print_edited(FILE *out, const char *text, const td_export_config *changes) {
    int count = 0, has_dtype = 0;
    char dtype[32] = "";
    member found;
    if (changes->dtype)
        snprintf(dtype, sizeof dtype, "\"%s\"", changes->dtype);
    fputc('{', out);
    for (const char *at = next_member(text, &found); at; at = next_member(at, &found)) {
        if (has_key(&found, "quantization_config"))
            continue;
        if (changes->dtype && (has_key(&found, "dtype") || has_key(&found, "torch_dtype"))) {
            found.value = dtype;
            found.value_chars = strlen(dtype);
            has_dtype = 1;
        }
        print_member(out, &count, &found);
    }
    if (changes->dtype && !has_dtype)
        print_text(out, &count, "torch_dtype", dtype);
    if (changes->quantization)
        print_text(out, &count, "quantization_config", changes->quantization);
    fputs("\n}\n", out);
}

static td_status edit(const char *path, const char *text, const td_export_config *changes,
                      char **out) {
    size_t bytes;
    char *edited = NULL;
    FILE *stream = open_memstream(&edited, &bytes);
    if (!stream)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to change it", path);
    print_edited(stream, text, changes);
    int failed = ferror(stream);
    if (fclose(stream) != 0 || failed) {
        free(edited);
        return td_fail(TD_ERR_MEMORY, "%s: no memory to change it", path);
    }
    *out = edited;
    return TD_OK;
}

td_status td_export_config_edit(const char *path, const td_export_config *changes, char **out) {
    char *text;
    size_t bytes;
    cJSON *tree;
    TD_TRY(td_file_read(path, max_config_bytes, &text, &bytes));
    td_status status = td_json_parse(path, text, bytes, &tree);
    if (status == TD_OK) {
        status = cJSON_IsObject(tree) ? edit(path, text, changes, out)
                                      : td_fail(TD_ERR_DATA, "%s: must be a JSON object", path);
        cJSON_Delete(tree);
    }
    free(text);
    return status;
}
