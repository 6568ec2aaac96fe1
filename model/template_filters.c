// Filters of single values: text and numbers. Those of sequences are in template_list_filters.c.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/template_internal.h"
#include "model/unicode.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

static void no_arguments(td_render *self, const char *filter, const td_arguments *arguments) {
    td_bind(self, filter, arguments, NULL, 0, NULL);
}

static td_value filter_trim(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"chars"};
    td_value set = td_none();
    td_bind(self, "trim", arguments, names, 1, &set);
    return td_text(td_strip(self, td_str(self, base),
                            set.kind == TD_NONE ? NULL : td_as_string(self, "trim", set), true,
                            true));
}

static td_value filter_upper(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "upper", arguments);
    return td_text(td_case(self, td_str(self, base), true));
}

static td_value filter_lower(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "lower", arguments);
    return td_text(td_case(self, td_str(self, base), false));
}

static td_value filter_capitalize(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "capitalize", arguments);
    return td_text(td_capitalize(self, td_str(self, base)));
}

// A word begins after white space or one of -({[<.
static td_value filter_title(td_render *self, td_value base, const td_arguments *arguments) {
    const td_string *text = td_str(self, base);
    td_builder out = {0};
    bool is_start = true;
    size_t bytes;
    no_arguments(self, "title", arguments);
    for (size_t at = 0; at < text->bytes; at += bytes) {
        uint32_t code = td_utf8_decode(text->text + at, &bytes);
        bool is_border = td_is_space(code) || (code && code < 0x80 && strchr("-({[<", (int)code));
        const td_string *one = td_string_cut(self, text, at, at + bytes);
        td_build_string(self, &out, is_border ? one : td_case(self, one, is_start));
        is_start = is_border;
    }
    return td_text(td_built(self, &out));
}

static td_value filter_string(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "string", arguments);
    return td_text(td_str(self, base));
}

static td_value filter_default(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"default_value", "boolean"};
    td_value values[2] = {td_text(td_string_literal(self, "")), td_bool(false)};
    td_bind(self, "default", arguments, names, 2, values);
    bool is_missing = base.kind == TD_UNDEFINED || (td_truth(values[1]) && !td_truth(base));
    return is_missing ? values[0] : base;
}

static td_value filter_replace(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"old", "new", "count"};
    td_value values[3] = {{0}, {0}, td_none()};
    td_bind(self, "replace", arguments, names, 3, values);
    int64_t limit = values[2].kind == TD_NONE ? -1 : td_as_int(self, "replace", values[2]);
    return td_text(td_replace(self, td_str(self, base), td_str(self, values[0]),
                              td_str(self, values[1]), limit));
}

static const td_string *spaces(td_render *self, int64_t count) {
    td_builder out = {0};
    td_build_repeated(self, &out, td_string_literal(self, " "), count);
    return td_built(self, &out);
}

static td_value filter_indent(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"width", "first", "blank"};
    td_value values[3] = {td_int(4), td_bool(false), td_bool(false)};
    td_builder joined = {0}, out = {0};
    td_bind(self, "indent", arguments, names, 3, values);
    const td_string *indent = values[0].kind == TD_STRING
                                  ? values[0].string
                                  : spaces(self, td_as_int(self, "indent", values[0]));
    td_build_string(self, &joined, td_as_string(self, "indent", base));
    td_build_literal(self, &joined, "\n");
    const td_list *lines = td_split_lines(self, td_built(self, &joined), false);
    for (size_t i = 0; i < lines->count; i++) {
        const td_string *line = lines->items[i].string;
        if (i > 0)
            td_build_literal(self, &out, "\n");
        if (i == 0 ? td_truth(values[1]) : line->bytes > 0 || td_truth(values[2]))
            td_build_string(self, &out, indent);
        td_build_string(self, &out, line);
    }
    return td_text(td_built(self, &out));
}

static td_value filter_truncate(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"length", "killwords", "end", "leeway"};
    td_value values[4] = {td_int(255), td_bool(false), td_text(td_string_literal(self, "...")),
                          td_none()};
    td_builder out = {0};
    td_bind(self, "truncate", arguments, names, 4, values);
    const td_string *text = td_as_string(self, "truncate", base);
    const td_string *end = td_as_string(self, "truncate", values[2]);
    int64_t length = td_as_int(self, "truncate", values[0]);
    int64_t leeway = values[3].kind == TD_NONE ? 5 : td_as_int(self, "truncate", values[3]);
    if (length < end->chars || leeway < 0)
        td_raise(self, "truncate(): the length must be at least that of the end");
    if (text->chars <= length + leeway)
        return base;
    size_t stop = td_string_offset(text, (size_t)(length - end->chars));
    if (!td_truth(values[1])) {
        const td_string *space = td_string_literal(self, " ");
        size_t last = td_string_find_last(self, td_string_cut(self, text, 0, stop), space);
        stop = last == SIZE_MAX ? stop : last;
    }
    td_build_cut(self, &out, text, 0, stop);
    td_build_string(self, &out, end);
    return td_text(td_built(self, &out));
}

static td_value filter_wordcount(td_render *self, td_value base, const td_arguments *arguments) {
    const td_string *text = td_str(self, base);
    int64_t count = 0;
    bool was_word = false;
    size_t bytes;
    no_arguments(self, "wordcount", arguments);
    for (size_t at = 0; at < text->bytes; at += bytes) {
        bool is_word = td_unicode_is_word(td_utf8_decode(text->text + at, &bytes));
        count += is_word && !was_word;
        was_word = is_word;
    }
    return td_int(count);
}

static td_value filter_escape(td_render *self, td_value base, const td_arguments *arguments) {
    const td_string *text = td_str(self, base);
    td_builder out = {0};
    no_arguments(self, "escape", arguments);
    td_steps(self, text->bytes / 4);
    for (size_t at = 0; at < text->bytes; at++) {
        const char *spelled = text->text[at] == '&'    ? "&amp;"
                              : text->text[at] == '<'  ? "&lt;"
                              : text->text[at] == '>'  ? "&gt;"
                              : text->text[at] == '"'  ? "&#34;"
                              : text->text[at] == '\'' ? "&#39;"
                                                       : NULL;
        size_t run_end;
        if (spelled)
            td_build(self, &out, spelled, strlen(spelled), td_tag_at(text, at, &run_end));
        else
            td_build_cut(self, &out, text, at, at + 1);
    }
    return td_text(td_built(self, &out));
}

static td_value filter_safe(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "safe", arguments);
    return td_text(td_str(self, base));
}

static void build_quoted(td_render *self, td_builder *out, const td_string *text, bool for_query) {
    td_steps(self, text->bytes / 4);
    for (size_t i = 0; i < text->bytes; i++) {
        unsigned char byte = (unsigned char)text->text[i];
        char spelled[8];
        bool is_plain = (byte >= '0' && byte <= '9') ||
                        ((byte | 32) >= 'a' && (byte | 32) <= 'z') ||
                        (byte && strchr("_.-~", byte)) || (byte == '/' && !for_query);
        if (is_plain || (for_query && byte == ' '))
            spelled[0] = byte == ' ' ? '+' : (char)byte;
        else
            snprintf(spelled, sizeof spelled, "%%%02X", byte);
        td_build(self, out, spelled, is_plain || (for_query && byte == ' ') ? 1 : 3, 0);
    }
}

static td_value filter_urlencode(td_render *self, td_value base, const td_arguments *arguments) {
    td_builder out = {0};
    no_arguments(self, "urlencode", arguments);
    if (base.kind == TD_STRING || !td_is_iterable(base)) {
        build_quoted(self, &out, td_str(self, base), false);
        return td_text(td_built(self, &out));
    }
    bool is_dict = base.kind == TD_DICT;
    const td_list *items = td_items(self, base);
    for (size_t i = 0; i < items->count; i++) {
        const td_list *pair = is_dict ? NULL : td_items(self, items->items[i]);
        if (pair && pair->count != 2)
            td_raise(self, "urlencode(): needs pairs");
        if (i > 0)
            td_build_literal(self, &out, "&");
        build_quoted(self, &out, td_str(self, is_dict ? items->items[i] : pair->items[0]), true);
        td_build_literal(self, &out, "=");
        build_quoted(self, &out,
                     td_str(self, is_dict ? base.dict->entries[i].value : pair->items[1]), true);
    }
    return td_text(td_built(self, &out));
}

static td_value filter_format(td_render *self, td_value base, const td_arguments *arguments) {
    td_value values = td_list_make(self, TD_TUPLE, arguments->count);
    if (arguments->count > 0 && arguments->n_keywords > 0)
        td_raise(self, "can't handle positional and keyword arguments at the same time");
    for (size_t i = 0; i < arguments->count; i++)
        td_list_add(self, values.list, arguments->items[i]);
    return td_percent_format(self, td_str(self, base), values,
                             arguments->n_keywords > 0 ? arguments : NULL);
}

static td_value filter_center(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"width"};
    td_value width = td_int(80);
    bool is_unsafe;
    td_bind(self, "center", arguments, names, 1, &width);
    td_value text = td_text(td_str(self, base));
    const td_builtin_entry *method =
        td_find_method(text, td_string_literal(self, "center"), &is_unsafe);
    return method->call(self, text, &(td_arguments){.items = &width, .count = 1});
}

static void refuse_undefined(td_render *self, td_value value) {
    if (value.kind == TD_UNDEFINED && value.missing)
        td_raise(self, "%s", value.missing->text);
}

static bool whole_of_real(double real, int64_t *out) {
    if (!(fabs(real) < 9.2e18))
        return false;
    *out = (int64_t)real;
    return true;
}

static td_value filter_int(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"default", "base"};
    td_value values[2] = {td_int(0), td_int(10)};
    int64_t whole;
    double real;
    td_bind(self, "int", arguments, names, 2, values);
    refuse_undefined(self, base);
    if (base.kind == TD_INT || base.kind == TD_BOOL)
        return td_int(base.kind == TD_INT ? base.integer : base.truth);
    if (base.kind == TD_FLOAT)
        return whole_of_real(base.real, &whole) ? td_int(whole) : values[0];
    if (base.kind != TD_STRING)
        return values[0];
    if (td_parse_int(base.string, (int)td_as_int(self, "int", values[1]), &whole))
        return td_int(whole);
    return td_parse_float(base.string, &real) && whole_of_real(real, &whole) ? td_int(whole)
                                                                             : values[0];
}

static td_value filter_float(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"default"};
    td_value fallback = td_float(0);
    double real;
    td_bind(self, "float", arguments, names, 1, &fallback);
    refuse_undefined(self, base);
    if (td_is_number(base))
        return td_float(td_real(base));
    return base.kind == TD_STRING && td_parse_float(base.string, &real) ? td_float(real) : fallback;
}

static td_value filter_abs(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "abs", arguments);
    refuse_undefined(self, base);
    if (!td_is_number(base))
        td_raise(self, "bad operand type for abs(): '%s'", td_type_name(base));
    if (base.kind == TD_FLOAT)
        return td_float(fabs(base.real));
    bool is_negative = base.kind == TD_INT && base.integer < 0;
    return is_negative ? td_binary(self, TD_TOKEN_SUBTRACT, td_int(0), base)
                       : td_int(base.kind == TD_INT ? base.integer : base.truth);
}

// Half to even, on the decimal digits of the number, as Python rounds.
static double round_common(double real, int64_t precision) {
    char text[400];
    if (precision > 300 || !isfinite(real))
        return real;
    if (precision >= 0) {
        snprintf(text, sizeof text, "%.*f", (int)precision, real);
        return strtod(text, NULL);
    }
    double unit = pow(10, (double)-precision);
    return nearbyint(real / unit) * unit;
}

static td_value filter_round(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"precision", "method"};
    td_value values[2] = {td_int(0), td_text(td_string_literal(self, "common"))};
    td_bind(self, "round", arguments, names, 2, values);
    refuse_undefined(self, base);
    if (!td_is_number(base))
        td_raise(self, "type %s doesn't define __round__ method", td_type_name(base));
    int64_t precision = td_as_int(self, "round", values[0]);
    const td_string *method = td_as_string(self, "round", values[1]);
    double unit = pow(10, (double)precision);
    if (td_string_is(method, "ceil"))
        return td_float(ceil(td_real(base) * unit) / unit);
    if (td_string_is(method, "floor"))
        return td_float(floor(td_real(base) * unit) / unit);
    if (!td_string_is(method, "common"))
        td_raise(self, "method must be common, ceil or floor");
    if (base.kind != TD_FLOAT && precision >= 0)
        return td_int(base.kind == TD_INT ? base.integer : base.truth);
    double rounded = round_common(td_real(base), precision);
    return base.kind == TD_FLOAT ? td_float(rounded) : td_int((int64_t)rounded);
}

static td_value filter_filesizeformat(td_render *self, td_value base,
                                      const td_arguments *arguments) {
    static const char *const names[] = {"binary"};
    static const char prefixes[] = "kMGTPEZY";
    td_value binary = td_bool(false);
    char text[64];
    td_bind(self, "filesizeformat", arguments, names, 1, &binary);
    td_arguments none = {0};
    double bytes = td_real(filter_float(self, base, &none)), unit = td_truth(binary) ? 1024 : 1000;
    double size = bytes / unit;
    size_t at = 0;
    if (bytes == 1 || bytes < unit) {
        snprintf(text, sizeof text, bytes == 1 ? "%.0f Byte" : "%.0f Bytes", trunc(bytes));
    } else {
        for (; size >= unit && at + 1 < sizeof prefixes - 1; at++)
            size /= unit;
        char prefix = at == 0 && td_truth(binary) ? 'K' : prefixes[at];
        snprintf(text, sizeof text, "%.1f %c%sB", size, prefix, td_truth(binary) ? "i" : "");
    }
    return td_text(td_string_make(self, text, strlen(text), 0));
}

static td_value filter_striptags(td_render *self, td_value base, const td_arguments *arguments) {
    const td_string *text = td_str(self, base);
    td_builder out = {0};
    bool is_tag = false, is_gap = false;
    size_t bytes;
    no_arguments(self, "striptags", arguments);
    for (size_t at = 0; at < text->bytes; at += bytes) {
        uint32_t code = td_utf8_decode(text->text + at, &bytes);
        bool was_tag = is_tag;
        is_tag = code == '<' ? memchr(text->text + at, '>', text->bytes - at) != NULL
                             : is_tag && code != '>';
        if (is_tag || was_tag)
            continue;
        if (td_is_space(code)) {
            is_gap = out.bytes > 0;
            continue;
        }
        if (is_gap)
            td_build(self, &out, " ", 1, 0);
        is_gap = false;
        td_build_cut(self, &out, text, at, at + bytes);
    }
    return td_text(td_built(self, &out));
}

td_builtin td_find_filter(const td_string *name) {
    static const td_builtin_entry filters[] = {
        {"trim", filter_trim},
        {"tojson", td_tojson},
        {"default", filter_default},
        {"d", filter_default},
        {"upper", filter_upper},
        {"lower", filter_lower},
        {"title", filter_title},
        {"capitalize", filter_capitalize},
        {"string", filter_string},
        {"replace", filter_replace},
        {"indent", filter_indent},
        {"int", filter_int},
        {"float", filter_float},
        {"round", filter_round},
        {"abs", filter_abs},
        {"format", filter_format},
        {"truncate", filter_truncate},
        {"wordcount", filter_wordcount},
        {"center", filter_center},
        {"escape", filter_escape},
        {"e", filter_escape},
        {"forceescape", filter_escape},
        {"safe", filter_safe},
        {"urlencode", filter_urlencode},
        {"striptags", filter_striptags},
        {"filesizeformat", filter_filesizeformat},
    };
    return td_find_builtin(filters, COUNT(filters), name);
}
