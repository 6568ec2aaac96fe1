#include "runtime/core/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/files.h"

// Names the line, or the column when the text is one line (of a JSON Lines file, say).
static td_status fail_at(const char *where, const char *text, size_t bytes, size_t offset,
                         const char *what) {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < offset; i++) {
        column = text[i] == '\n' ? 1 : column + 1;
        line += text[i] == '\n';
    }
    if (memchr(text, '\n', bytes))
        return td_fail(TD_ERR_DATA, "%s: line %zu: %s", where, line, what);
    return td_fail(TD_ERR_DATA, "%s: column %zu: %s", where, column, what);
}

static int is_continuation(unsigned char byte) {
    return (byte & 0xc0) == 0x80;
}

// Bytes of the UTF-8 character at `text`, 0 when it is malformed (RFC 3629: no overlong forms, no
// surrogates, nothing above U+10FFFF).
static size_t utf8_length(const unsigned char *text, size_t room) {
    unsigned char first = text[0];
    if (first < 0x80)
        return 1;
    size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || length > room)
        return 0;
    unsigned char low = 0x80, high = 0xbf;
    if (first == 0xe0)
        low = 0xa0;
    else if (first == 0xed)
        high = 0x9f;
    else if (first == 0xf0)
        low = 0x90;
    else if (first == 0xf4)
        high = 0x8f;
    if (text[1] < low || text[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if (!is_continuation(text[i]))
            return 0;
    return length;
}

int td_json_is_utf8(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes;) {
        size_t length = utf8_length((const unsigned char *)text + i, bytes - i);
        if (length == 0)
            return 0;
        i += length;
    }
    return 1;
}

static int is_nul_escape(const char *text, size_t offset, size_t bytes) {
    return bytes - offset >= 6 && memcmp(text + offset, "\\u0000", 6) == 0;
}

// What cJSON does not check or would silently cut off. Runs over the text once and allocates
// nothing, so a hostile file is refused before a tree is built.
static td_status scan(const char *where, const char *text, size_t bytes) {
    int depth = 0, in_string = 0;
    for (size_t i = 0; i < bytes;) {
        char c = text[i];
        size_t length = utf8_length((const unsigned char *)text + i, bytes - i);
        if (length == 0)
            return fail_at(where, text, bytes, i, "invalid UTF-8");
        if (c == '\0')
            return fail_at(where, text, bytes, i, "NUL byte");
        if (in_string && is_nul_escape(text, i, bytes))
            return fail_at(where, text, bytes, i, "\\u0000 in a string is not supported");
        if (in_string && c == '\\' && i + 1 < bytes && (text[i + 1] == '"' || text[i + 1] == '\\'))
            length = 2;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string && (c == '{' || c == '['))
            depth++;
        else if (!in_string && (c == '}' || c == ']'))
            depth--;
        if (depth > TD_JSON_MAX_DEPTH)
            return fail_at(where, text, bytes, i, "nested too deeply");
        i += length;
    }
    return TD_OK;
}

static int is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

td_status td_json_parse(const char *where, const char *text, size_t bytes, cJSON **out) {
    TD_TRY(scan(where, text, bytes));
    const char *end = NULL;
    cJSON *tree = cJSON_ParseWithLengthOpts(text, bytes, &end, 0);
    size_t offset = end ? (size_t)(end - text) : 0;
    if (offset > bytes)
        offset = bytes;
    if (!tree)
        return fail_at(where, text, bytes, offset, "malformed JSON");
    while (offset < bytes && is_space(text[offset]))
        offset++;
    if (offset < bytes) {
        cJSON_Delete(tree);
        return fail_at(where, text, bytes, offset,
                       "unexpected text after the end of the JSON value");
    }
    *out = tree;
    return TD_OK;
}

td_status td_json_read(const char *path, size_t max_bytes, cJSON **out) {
    char *text;
    size_t bytes;
    TD_TRY(td_file_read(path, max_bytes, &text, &bytes));
    td_status status = td_json_parse(path, text, bytes, out);
    free(text);
    return status;
}

static const char *type_name(const cJSON *item) {
    switch (item->type & 0xff) {
    case cJSON_False:
    case cJSON_True:
        return "a boolean";
    case cJSON_NULL:
        return "null";
    case cJSON_Number:
        return "a number";
    case cJSON_String:
        return "a string";
    case cJSON_Array:
        return "a list";
    default:
        return "an object";
    }
}

// The item, or NULL when the key is missing or null.
static td_status look_up(const char *where, const cJSON *object, const char *key,
                         const cJSON **out) {
    if (!cJSON_IsObject(object))
        return td_fail(TD_ERR_DATA, "%s: expected an object with \"%s\", found %s", where, key,
                       object ? type_name(object) : "nothing");
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    *out = cJSON_IsNull(item) ? NULL : item;
    return TD_OK;
}

static td_status fail_type(const char *where, const char *key, const char *expected,
                           const cJSON *found) {
    return td_fail(TD_ERR_DATA, "%s: \"%s\" must be %s, found %s", where, key, expected,
                   type_name(found));
}

td_status td_json_int(const char *where, const cJSON *object, const char *key, int64_t min,
                      int64_t max, int64_t *out) {
    const cJSON *item = NULL;
    TD_TRY(look_up(where, object, key, &item));
    if (!item)
        return TD_OK;
    if (!cJSON_IsNumber(item))
        return fail_type(where, key, "an integer", item);
    double value = item->valuedouble;
    // Numbers are read as doubles: beyond 2^53 they would not be the ones written in the file.
    if (value != floor(value) || fabs(value) > 0x1p53)
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be an integer, found %.17g", where, key,
                       value);
    if ((int64_t)value < min || (int64_t)value > max)
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be from %lld to %lld, found %lld", where, key,
                       (long long)min, (long long)max, (long long)value);
    *out = (int64_t)value;
    return TD_OK;
}

td_status td_json_double(const char *where, const cJSON *object, const char *key, double *out) {
    const cJSON *item = NULL;
    TD_TRY(look_up(where, object, key, &item));
    if (!item)
        return TD_OK;
    if (!cJSON_IsNumber(item))
        return fail_type(where, key, "a number", item);
    if (!isfinite(item->valuedouble))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" is not a finite number", where, key);
    *out = item->valuedouble;
    return TD_OK;
}

td_status td_json_bool(const char *where, const cJSON *object, const char *key, int *out) {
    const cJSON *item = NULL;
    TD_TRY(look_up(where, object, key, &item));
    if (!item)
        return TD_OK;
    if (!cJSON_IsBool(item))
        return fail_type(where, key, "true or false", item);
    *out = cJSON_IsTrue(item);
    return TD_OK;
}

td_status td_json_string(const char *where, const cJSON *object, const char *key,
                         const char **out) {
    const cJSON *item = NULL;
    TD_TRY(look_up(where, object, key, &item));
    if (!item)
        return TD_OK;
    if (!cJSON_IsString(item))
        return fail_type(where, key, "a string", item);
    *out = item->valuestring;
    return TD_OK;
}

// The shortest of 15 to 17 digits that reads back as the same double. (cJSON itself stops at 15
// when the difference is within one part in 2^52, which loses the last bit.)
static void format_number(double value, char out[32]) {
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, value);
        if (strtod(out, NULL) == value)
            return;
    }
}

static int numbers_to_raw(cJSON *item) {
    for (; item; item = item->next) {
        if (cJSON_IsNumber(item) && isfinite(item->valuedouble)) {
            char text[32];
            format_number(item->valuedouble, text);
            item->valuestring = strdup(text);
            if (!item->valuestring)
                return 0;
            item->type = cJSON_Raw | (item->type & ~0xff);
        } else if (item->child && !numbers_to_raw(item->child)) {
            return 0;
        }
    }
    return 1;
}

char *td_json_print(const cJSON *tree, int pretty) {
    cJSON *copy = cJSON_Duplicate(tree, 1);
    if (!copy || !numbers_to_raw(copy)) {
        cJSON_Delete(copy);
        return NULL;
    }
    char *text = pretty ? cJSON_Print(copy) : cJSON_PrintUnformatted(copy);
    cJSON_Delete(copy);
    return text;
}
