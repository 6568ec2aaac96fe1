// JSON in and out: variables as values, and the tojson filter as Python's json.dumps() writes.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/template_internal.h"
#include "model/unicode.h"

enum { MAX_DEPTH = 64 };

typedef struct reader {
    td_render *render;
    const char *text;
    size_t bytes, at;
    int depth;
} reader;

_Noreturn static void malformed(reader *self) {
    td_raise(self->render, "malformed JSON at byte %zu", self->at);
}

static void skip_space(reader *self) {
    while (self->at < self->bytes && strchr(" \t\r\n", self->text[self->at]) &&
           self->text[self->at])
        self->at++;
}

static bool take(reader *self, char expected) {
    skip_space(self);
    bool found = self->at < self->bytes && self->text[self->at] == expected;
    self->at += found;
    return found;
}

static uint32_t read_hex(reader *self) {
    uint32_t code = 0;
    if (self->bytes - self->at < 4)
        malformed(self);
    for (int i = 0; i < 4; i++) {
        char digit = self->text[self->at++];
        uint32_t value = digit >= '0' && digit <= '9'   ? (uint32_t)(digit - '0')
                         : digit >= 'a' && digit <= 'f' ? (uint32_t)(digit - 'a') + 10
                         : digit >= 'A' && digit <= 'F' ? (uint32_t)(digit - 'A') + 10
                                                        : 16;
        if (value > 15)
            malformed(self);
        code = code * 16 + value;
    }
    return code;
}

static uint32_t read_unicode(reader *self) {
    uint32_t code = read_hex(self);
    if (code < 0xD800 || code > 0xDFFF)
        return code;
    if (code > 0xDBFF || self->bytes - self->at < 2 || self->text[self->at] != '\\' ||
        self->text[self->at + 1] != 'u')
        td_raise(self->render, "half of a surrogate pair in JSON at byte %zu", self->at);
    self->at += 2;
    uint32_t low = read_hex(self);
    if (low < 0xDC00 || low > 0xDFFF)
        td_raise(self->render, "half of a surrogate pair in JSON at byte %zu", self->at);
    return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
}

static void read_escape(reader *self, td_builder *out) {
    static const char letters[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
    if (self->at >= self->bytes)
        malformed(self);
    char letter = self->text[self->at++];
    const char *found = letter ? strchr(letters, letter) : NULL;
    if (found)
        td_build(self->render, out, meaning + (found - letters), 1, 0);
    else if (letter == 'u')
        td_build_code(self->render, out, read_unicode(self), 0);
    else
        malformed(self);
}

static td_value read_string(reader *self) {
    td_builder out = {0};
    size_t begin = ++self->at;
    while (self->at < self->bytes && self->text[self->at] != '"') {
        if ((unsigned char)self->text[self->at] < 0x20)
            malformed(self);
        if (self->text[self->at++] != '\\')
            continue;
        td_build(self->render, &out, self->text + begin, self->at - 1 - begin, 0);
        read_escape(self, &out);
        begin = self->at;
    }
    if (self->at >= self->bytes)
        malformed(self);
    size_t end = self->at++;
    if (out.bytes == 0)
        return td_text(td_string_make(self->render, self->text + begin, end - begin, 0));
    td_build(self->render, &out, self->text + begin, end - begin, 0);
    return td_text(td_built(self->render, &out));
}

static td_value read_number(reader *self) {
    char digits[400], *end;
    size_t count = 0;
    while (self->at < self->bytes && self->text[self->at] &&
           strchr("+-.0123456789eE", self->text[self->at])) {
        if (count + 1 >= sizeof digits)
            malformed(self);
        digits[count++] = self->text[self->at++];
    }
    digits[count] = '\0';
    const char *first = digits + (digits[0] == '-');
    if (count == 0 || !(*first >= '0' && *first <= '9'))
        malformed(self);
    td_string text = {.text = digits, .bytes = (uint32_t)count, .chars = (uint32_t)count};
    int64_t integer;
    if (!strpbrk(digits, ".eE") && td_parse_int(&text, 10, &integer))
        return td_int(integer);
    double real = strtod(digits, &end);
    if (*end != '\0')
        malformed(self);
    return td_float(real);
}

static td_value read_word(reader *self) {
    static const struct {
        const char *word;
        td_value value;
    } words[] = {
        {"true", {.kind = TD_BOOL, .truth = true}},
        {"false", {.kind = TD_BOOL, .truth = false}},
        {"null", {.kind = TD_NONE}},
        {"NaN", {.kind = TD_FLOAT, .real = NAN}},
        {"Infinity", {.kind = TD_FLOAT, .real = INFINITY}},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t length = strlen(words[i].word);
        if (length <= self->bytes - self->at &&
            memcmp(self->text + self->at, words[i].word, length) == 0) {
            self->at += length;
            return words[i].value;
        }
    }
    return read_number(self);
}

static td_value read_value(reader *self);

static td_value read_list(reader *self) {
    td_value list = td_list_make(self->render, TD_LIST, 0);
    self->at++;
    if (take(self, ']'))
        return list;
    do
        td_list_add(self->render, list.list, read_value(self));
    while (take(self, ','));
    if (!take(self, ']'))
        malformed(self);
    return list;
}

static td_value read_dict(reader *self) {
    td_value dict = td_dict_make(self->render, TD_DICT);
    self->at++;
    if (take(self, '}'))
        return dict;
    do {
        skip_space(self);
        if (self->at >= self->bytes || self->text[self->at] != '"')
            malformed(self);
        td_value key = read_string(self);
        if (!take(self, ':'))
            malformed(self);
        td_dict_set(self->render, dict.dict, key, read_value(self));
    } while (take(self, ','));
    if (!take(self, '}'))
        malformed(self);
    return dict;
}

static td_value read_value(reader *self) {
    td_value value;
    skip_space(self);
    if (self->at >= self->bytes)
        malformed(self);
    if (++self->depth > MAX_DEPTH)
        td_raise(self->render, "JSON nested more than %d deep", MAX_DEPTH);
    switch (self->text[self->at]) {
    case '"':
        value = read_string(self);
        break;
    case '[':
        value = read_list(self);
        break;
    case '{':
        value = read_dict(self);
        break;
    default:
        value = read_word(self);
    }
    self->depth--;
    return value;
}

td_value td_parse_json(td_render *self, const char *text, size_t bytes) {
    reader source = {.render = self, .text = text, .bytes = bytes};
    size_t valid = td_utf8_check(text, bytes);
    if (valid < bytes)
        td_raise(self, "invalid UTF-8 at byte %zu", valid);
    td_value value = read_value(&source);
    skip_space(&source);
    if (source.at < bytes)
        malformed(&source);
    return value;
}

static td_value tagged(td_render *self, td_value value, uint32_t tag) {
    if (value.kind == TD_STRING) {
        td_string *string = td_take(self, sizeof *string);
        *string = *value.string;
        string->tag = tag;
        string->runs = NULL;
        string->n_runs = 0;
        return td_text(string);
    }
    if (value.kind == TD_LIST)
        for (size_t i = 0; i < value.list->count; i++)
            value.list->items[i] = tagged(self, value.list->items[i], tag);
    if (value.kind == TD_DICT)
        for (size_t i = 0; i < value.dict->count; i++)
            value.dict->entries[i].value = tagged(self, value.dict->entries[i].value, tag);
    return value;
}

static td_source_kind field_kind(td_value key) {
    static const struct {
        const char *name;
        td_source_kind kind;
    } fields[] = {
        {"content", TD_SOURCE_CONTENT},       {"reasoning_content", TD_SOURCE_REASONING},
        {"reasoning", TD_SOURCE_REASONING},   {"thinking", TD_SOURCE_REASONING},
        {"tool_calls", TD_SOURCE_TOOL_CALLS},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (td_string_is(key.string, fields[i].name))
            return fields[i].kind;
    return TD_SOURCE_OTHER;
}

// The role is the template's to write: it has no source of its own.
static void tag_message(td_render *self, td_dict *message, int index) {
    message->message = index;
    for (size_t i = 0; i < message->count; i++) {
        td_entry *entry = &message->entries[i];
        if (!td_string_is(entry->key.string, "role"))
            entry->value = tagged(self, entry->value, td_tag(index, field_kind(entry->key)));
    }
}

td_value td_tag_messages(td_render *self, td_value messages) {
    for (size_t i = 0; messages.kind == TD_LIST && i < messages.list->count; i++)
        if (messages.list->items[i].kind == TD_DICT)
            tag_message(self, messages.list->items[i].dict, (int)i);
    return messages;
}

typedef struct writer {
    td_render *render;
    td_builder *out;
    bool is_ascii, is_sorted;
    const td_string *indent; // NULL: all on one line
    const td_string *comma, *colon;
    size_t level;
} writer;

static void write_code(writer *self, uint32_t code, uint32_t tag) {
    char text[16];
    int bytes = code < 0x10000 ? snprintf(text, sizeof text, "\\u%04x", code)
                               : snprintf(text, sizeof text, "\\u%04x\\u%04x",
                                          0xD800 + ((code - 0x10000) >> 10),
                                          0xDC00 + ((code - 0x10000) & 0x3FF));
    td_build(self->render, self->out, text, (size_t)bytes, tag);
}

static bool needs_escape(const writer *self, unsigned char byte) {
    return byte < 0x20 || byte == '"' || byte == '\\' || (self->is_ascii && byte >= 0x7F);
}

static size_t write_escape(writer *self, const td_string *text, size_t at, uint32_t tag) {
    static const char bytes_in[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
    size_t bytes;
    uint32_t code = td_utf8_decode(text->text + at, &bytes);
    const char *found = code > 0 && code < 0x80 ? strchr(bytes_in, (int)code) : NULL;
    char pair[2] = {'\\', found ? letters[found - bytes_in] : 0};
    if (found)
        td_build(self->render, self->out, pair, 2, tag);
    else if (code == 0x7F)
        td_build(self->render, self->out, "\x7F", 1, tag);
    else
        write_code(self, code, tag);
    return at + bytes;
}

static void write_string(writer *self, const td_string *text) {
    size_t run_end = 0, plain;
    uint32_t tag = text->tag;
    td_build(self->render, self->out, "\"", 1, text->n_runs ? 0 : tag);
    for (size_t at = 0; at < text->bytes;) {
        if (at >= run_end)
            tag = td_tag_at(text, at, &run_end);
        for (plain = at; plain < run_end && !needs_escape(self, (unsigned char)text->text[plain]);)
            plain++;
        td_build(self->render, self->out, text->text + at, plain - at, tag);
        at = plain < run_end ? write_escape(self, text, plain, tag) : plain;
    }
    td_build(self->render, self->out, "\"", 1, text->n_runs ? 0 : text->tag);
}

static void new_line(writer *self) {
    if (!self->indent)
        return;
    td_build(self->render, self->out, "\n", 1, 0);
    td_build_repeated(self->render, self->out, self->indent, (int64_t)self->level);
}

static void write_value(writer *self, td_value value);

static void write_list(writer *self, const td_list *list) {
    td_build_literal(self->render, self->out, "[");
    self->level++;
    for (size_t i = 0; i < list->count; i++) {
        if (i > 0)
            td_build_string(self->render, self->out, self->comma);
        new_line(self);
        write_value(self, list->items[i]);
    }
    self->level--;
    if (list->count > 0)
        new_line(self);
    td_build_literal(self->render, self->out, "]");
}

// Keys of other types than string become strings.
static void write_key(writer *self, td_value key) {
    if (key.kind == TD_STRING) {
        write_string(self, key.string);
        return;
    }
    if (key.kind != TD_NONE && !td_is_number(key))
        td_raise(self->render, "keys must be str, int, float, bool or None, not %s",
                 td_type_name(key));
    td_build_literal(self->render, self->out, "\"");
    write_value(self, key);
    td_build_literal(self->render, self->out, "\"");
}

static const td_entry *sorted_entries(writer *self, const td_dict *dict) {
    td_entry *entries = td_take(self->render, (dict->count + 1) * sizeof *entries);
    for (size_t i = 0; i < dict->count; i++) {
        size_t at = i;
        td_steps(self->render, i / 8);
        for (; at > 0 && td_order(self->render, entries[at - 1].key, dict->entries[i].key, "<") > 0;
             at--)
            entries[at] = entries[at - 1];
        entries[at] = dict->entries[i];
    }
    return entries;
}

static void write_dict(writer *self, const td_dict *dict) {
    const td_entry *entries = self->is_sorted ? sorted_entries(self, dict) : dict->entries;
    td_build_literal(self->render, self->out, "{");
    self->level++;
    for (size_t i = 0; i < dict->count; i++) {
        if (i > 0)
            td_build_string(self->render, self->out, self->comma);
        new_line(self);
        write_key(self, entries[i].key);
        td_build_string(self->render, self->out, self->colon);
        write_value(self, entries[i].value);
    }
    self->level--;
    if (dict->count > 0)
        new_line(self);
    td_build_literal(self->render, self->out, "}");
}

static void write_float(writer *self, double real) {
    char text[40];
    size_t bytes = td_format_float(real, text);
    if (isfinite(real))
        td_build(self->render, self->out, text, bytes, 0);
    else
        td_build_literal(self->render, self->out,
                         isnan(real) ? "NaN"
                         : real < 0  ? "-Infinity"
                                     : "Infinity");
}

static void write_value(writer *self, td_value value) {
    td_steps(self->render, 1);
    td_deeper(self->render);
    switch (value.kind) {
    case TD_NONE:
        td_build_literal(self->render, self->out, "null");
        break;
    case TD_BOOL:
        td_build_literal(self->render, self->out, value.truth ? "true" : "false");
        break;
    case TD_INT:
        td_build_string(self->render, self->out, td_str(self->render, value));
        break;
    case TD_FLOAT:
        write_float(self, value.real);
        break;
    case TD_STRING:
        write_string(self, value.string);
        break;
    case TD_LIST:
    case TD_TUPLE:
        write_list(self, value.list);
        break;
    case TD_DICT:
        write_dict(self, value.dict);
        break;
    default:
        td_raise(self->render, "Object of type %s is not JSON serializable", td_type_name(value));
    }
    td_shallower(self->render);
}

static const td_string *indent_of(td_render *self, td_value value) {
    if (value.kind == TD_NONE)
        return NULL;
    if (value.kind == TD_STRING)
        return value.string;
    int64_t count = td_as_int(self, "tojson", value);
    td_builder out = {0};
    td_build_repeated(self, &out, td_string_literal(self, " "), count);
    return td_built(self, &out);
}

td_value td_tojson(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"ensure_ascii", "indent", "separators", "sort_keys"};
    td_value values[4] = {td_bool(false), td_none(), td_none(), td_bool(false)};
    td_builder out = {0};
    td_bind(self, "tojson", arguments, names, 4, values);
    writer json = {.render = self,
                   .out = &out,
                   .is_ascii = td_truth(values[0]),
                   .is_sorted = td_truth(values[3]),
                   .indent = indent_of(self, values[1])};
    json.comma = td_string_literal(self, json.indent ? "," : ", ");
    json.colon = td_string_literal(self, ": ");
    if (values[2].kind != TD_NONE) {
        const td_list *pair = td_items(self, values[2]);
        if (pair->count != 2)
            td_raise(self, "tojson(): separators must be two strings");
        json.comma = td_as_string(self, "tojson", pair->items[0]);
        json.colon = td_as_string(self, "tojson", pair->items[1]);
    }
    write_value(&json, base);
    return td_text(td_built(self, &out));
}
