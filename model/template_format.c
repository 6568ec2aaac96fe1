// Values as text: Python's str() and repr(), and the % and {} formats.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "model/template_internal.h"
#include "model/unicode.h"

// The shortest digits that read back as the same number, spelled as Python does.
size_t td_format_float(double real, char out[40]) {
    char digits[32];
    if (isnan(real) || isinf(real))
        return (size_t)snprintf(out, 40, "%s", isnan(real) ? "nan" : real < 0 ? "-inf" : "inf");
    int precision = 0;
    do
        snprintf(digits, sizeof digits, "%.*e", precision, real);
    while (strtod(digits, NULL) != real && ++precision < 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        int decimals = precision > exponent ? precision - exponent : 0;
        return (size_t)snprintf(out, 40, "%.*f", decimals > 0 ? decimals : 1, real);
    }
    *strchr(digits, 'e') = '\0';
    return (size_t)snprintf(out, 40, "%se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
}

static void build_number(td_render *self, td_builder *out, td_value value) {
    char text[40];
    size_t bytes = value.kind == TD_FLOAT
                       ? td_format_float(value.real, text)
                       : (size_t)snprintf(text, sizeof text, "%lld", (long long)value.integer);
    td_build(self, out, text, bytes, 0);
}

static bool is_printable(uint32_t code) {
    if (code < 0x7F)
        return code >= 0x20;
    switch (utf8proc_category((utf8proc_int32_t)code)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

static void build_escape(td_render *self, td_builder *out, uint32_t code, uint32_t tag) {
    static const char letters[] = "\t\n\r", names[] = "tnr";
    char text[16];
    const char *found = code > 0 && code < 0x80 ? strchr(letters, (int)code) : NULL;
    int bytes = found            ? snprintf(text, sizeof text, "\\%c", names[found - letters])
                : code < 0x100   ? snprintf(text, sizeof text, "\\x%02x", code)
                : code < 0x10000 ? snprintf(text, sizeof text, "\\u%04x", code)
                                 : snprintf(text, sizeof text, "\\U%08x", code);
    td_build(self, out, text, (size_t)bytes, tag);
}

static void build_quoted(td_render *self, td_builder *out, const td_string *text) {
    bool has_single = memchr(text->text, '\'', text->bytes) != NULL;
    char quote = has_single && !memchr(text->text, '"', text->bytes) ? '"' : '\'';
    size_t bytes, run_end;
    td_steps(self, text->bytes / 4);
    td_build(self, out, &quote, 1, 0);
    for (size_t at = 0; at < text->bytes; at += bytes) {
        uint32_t tag = td_tag_at(text, at, &run_end);
        uint32_t code = td_utf8_decode(text->text + at, &bytes);
        if (code == (uint32_t)quote || code == '\\')
            td_build(self, out, "\\", 1, tag);
        if (is_printable(code))
            td_build(self, out, text->text + at, bytes, tag);
        else
            build_escape(self, out, code, tag);
    }
    td_build(self, out, &quote, 1, 0);
}

static void build_list(td_render *self, td_builder *out, const td_list *list, const char *begin,
                       const char *end) {
    td_build_literal(self, out, begin);
    for (size_t i = 0; i < list->count; i++) {
        if (i > 0)
            td_build_literal(self, out, ", ");
        td_build_repr(self, out, list->items[i]);
    }
    td_build_literal(self, out, end);
}

static void build_dict(td_render *self, td_builder *out, const td_dict *dict) {
    td_build_literal(self, out, "{");
    for (size_t i = 0; i < dict->count; i++) {
        if (i > 0)
            td_build_literal(self, out, ", ");
        td_build_repr(self, out, dict->entries[i].key);
        td_build_literal(self, out, ": ");
        td_build_repr(self, out, dict->entries[i].value);
    }
    td_build_literal(self, out, "}");
}

static void build_range(td_render *self, td_builder *out, const td_range *range) {
    char text[100];
    long long end = (long long)range->end;
    int bytes = range->step == 1
                    ? snprintf(text, sizeof text, "range(%lld, %lld)", (long long)range->begin, end)
                    : snprintf(text, sizeof text, "range(%lld, %lld, %lld)",
                               (long long)range->begin, end, (long long)range->step);
    td_build(self, out, text, (size_t)bytes, 0);
}

static void build_object(td_render *self, td_builder *out, td_value value) {
    td_build_literal(self, out, "<");
    td_build_literal(self, out, td_type_name(value));
    if (value.kind == TD_NAMESPACE) {
        td_build_literal(self, out, " ");
        build_dict(self, out, value.dict);
    } else if (value.kind == TD_FUNCTION) {
        td_build_literal(self, out, " ");
        td_build_literal(self, out, value.function->name);
    }
    td_build_literal(self, out, ">");
}

static void build_view(td_render *self, td_builder *out, const td_list *list) {
    td_build_literal(self, out, list->name);
    build_list(self, out, list, "([", "])");
}

void td_build_repr(td_render *self, td_builder *out, td_value value) {
    td_steps(self, 1);
    td_deeper(self);
    switch (value.kind) {
    case TD_UNDEFINED:
        td_build_literal(self, out, "Undefined");
        break;
    case TD_NONE:
        td_build_literal(self, out, "None");
        break;
    case TD_BOOL:
        td_build_literal(self, out, value.truth ? "True" : "False");
        break;
    case TD_INT:
    case TD_FLOAT:
        build_number(self, out, value);
        break;
    case TD_STRING:
        build_quoted(self, out, value.string);
        break;
    case TD_LIST:
        build_list(self, out, value.list, "[", "]");
        break;
    case TD_TUPLE:
        build_list(self, out, value.list, "(", value.list->count == 1 ? ",)" : ")");
        break;
    case TD_DICT:
        build_dict(self, out, value.dict);
        break;
    case TD_RANGE:
        build_range(self, out, value.range);
        break;
    case TD_VIEW:
        build_view(self, out, value.list);
        break;
    default:
        build_object(self, out, value);
    }
    td_shallower(self);
}

void td_build_str(td_render *self, td_builder *out, td_value value) {
    if (value.kind == TD_STRING)
        td_build_string(self, out, value.string);
    else if (value.kind != TD_UNDEFINED)
        td_build_repr(self, out, value);
}

const td_string *td_str(td_render *self, td_value value) {
    td_builder out = {0};
    if (value.kind == TD_STRING)
        return value.string;
    td_build_str(self, &out, value);
    return td_built(self, &out);
}

// One conversion of a format: flags, width, precision, letter.
typedef struct conversion {
    bool left, zero, plus, space, alternate, comma;
    int width, precision; // -1: not given
    char letter, align, fill;
} conversion;

enum { MAX_WIDTH = 1 << 16 };

static void build_padding(td_render *self, td_builder *out, int64_t count, char fill) {
    td_build_repeated(self, out, td_string_make(self, &fill, 1, 0), count);
}

static void build_padded(td_render *self, td_builder *out, const conversion *how,
                         const td_string *text, bool is_number) {
    int64_t missing = (int64_t)how->width - text->chars;
    char align = how->align ? how->align : how->left ? '<' : is_number ? '>' : '<';
    size_t sign = is_number && text->bytes > 0 && strchr("+- ", text->text[0]) ? 1 : 0;
    if (how->zero && !how->left && is_number && !how->align)
        align = '=';
    char fill = how->fill ? how->fill : align == '=' ? '0' : ' ';
    int64_t before = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
    if (align == '=')
        td_build_cut(self, out, text, 0, sign);
    build_padding(self, out, before, fill);
    td_build_cut(self, out, text, align == '=' ? sign : 0, text->bytes);
    build_padding(self, out, missing - (before > 0 ? before : 0), fill);
}

static void add_commas(char *text, size_t capacity) {
    size_t begin = strspn(text, "+- "), digits = strspn(text + begin, "0123456789");
    for (size_t at = digits; at > 3; at -= 3) {
        size_t length = strlen(text);
        if (length + 2 > capacity)
            return;
        memmove(text + begin + at - 2, text + begin + at - 3, length - (begin + at - 3) + 1);
        text[begin + at - 3] = ',';
    }
}

static const char *sign_of(const conversion *how) {
    return how->plus ? "+" : how->space ? " " : "";
}

static void format_whole(td_render *self, const conversion *how, int64_t value, char *text,
                         size_t capacity) {
    unsigned long long size = value < 0 ? 0 - (unsigned long long)value : (unsigned long long)value;
    const char *sign = value < 0 ? "-" : sign_of(how);
    const char *prefix = !how->alternate      ? ""
                         : how->letter == 'x' ? "0x"
                         : how->letter == 'X' ? "0X"
                         : how->letter == 'o' ? "0o"
                                              : "";
    const char *shape = how->letter == 'x'   ? "%s%s%llx"
                        : how->letter == 'X' ? "%s%s%llX"
                        : how->letter == 'o' ? "%s%s%llo"
                                             : "%s%s%llu";
    (void)self;
    snprintf(text, capacity, shape, sign, prefix, size);
}

static void format_real(const conversion *how, double value, char *text, size_t capacity) {
    const char *sign = value < 0 || (value == 0 && signbit(value)) ? "-" : sign_of(how);
    int precision = how->precision < 0 ? 6 : how->precision < 300 ? how->precision : 300;
    bool is_percent = how->letter == '%';
    double size = fabs(value) * (is_percent ? 100 : 1);
    char shape[] = "%s%.*f%s";
    shape[5] = strchr("eEfFgG", how->letter) ? how->letter : 'f';
    snprintf(text, capacity, shape, sign, precision, size, is_percent ? "%" : "");
}

static int64_t whole_of(td_render *self, td_value value, char letter) {
    if (!td_is_number(value))
        td_raise(self, "%%%c format: a number is required, not %s", letter, td_type_name(value));
    if (value.kind == TD_FLOAT && !(fabs(value.real) < 9e18))
        td_raise(self, "%%%c format: a number out of range", letter);
    return value.kind == TD_FLOAT  ? (int64_t)value.real
           : value.kind == TD_BOOL ? value.truth
                                   : value.integer;
}

static void build_formatted_number(td_render *self, td_builder *out, const conversion *how,
                                   td_value value) {
    char text[700];
    if (strchr("dixXou", how->letter)) {
        format_whole(self, how, whole_of(self, value, how->letter), text, sizeof text);
    } else {
        if (!td_is_number(value))
            td_raise(self, "must be real number, not %s", td_type_name(value));
        format_real(how, td_real(value), text, sizeof text);
    }
    if (how->comma)
        add_commas(text, sizeof text);
    build_padded(self, out, how, td_string_make(self, text, strlen(text), 0), true);
}

static void build_conversion(td_render *self, td_builder *out, const conversion *how,
                             td_value value) {
    td_builder text = {0};
    if (strchr("dixXoueEfFgG%", how->letter)) {
        build_formatted_number(self, out, how, value);
        return;
    }
    if (how->letter == 'r' || how->letter == 'a')
        td_build_repr(self, &text, value);
    else
        td_build_str(self, &text, value);
    const td_string *shown = td_built(self, &text);
    if (how->precision >= 0 && (uint32_t)how->precision < shown->chars)
        shown = td_string_cut(self, shown, 0, td_string_offset(shown, (size_t)how->precision));
    conversion padding = *how;
    if (!how->align)
        padding.align = how->left ? '<' : how->letter == 's' || how->letter == 'r' ? '>' : '<';
    build_padded(self, out, &padding, shown, false);
}

static int read_number(td_render *self, const td_string *text, size_t *at) {
    int number = 0;
    for (; *at < text->bytes && text->text[*at] >= '0' && text->text[*at] <= '9'; (*at)++) {
        number = number * 10 + (text->text[*at] - '0');
        if (number > MAX_WIDTH)
            td_raise(self, "a width or precision above %d in a format", MAX_WIDTH);
    }
    return number;
}

static conversion read_percent(td_render *self, const td_string *format, size_t *at) {
    conversion how = {.precision = -1};
    for (; *at < format->bytes && strchr("-0+ #", format->text[*at]) && format->text[*at]; (*at)++)
        switch (format->text[*at]) {
        case '-':
            how.left = true;
            break;
        case '0':
            how.zero = true;
            break;
        case '+':
            how.plus = true;
            break;
        case ' ':
            how.space = true;
            break;
        default:
            how.alternate = true;
        }
    how.width = read_number(self, format, at);
    if (*at < format->bytes && format->text[*at] == '.') {
        (*at)++;
        how.precision = read_number(self, format, at);
    }
    if (*at >= format->bytes)
        td_raise(self, "incomplete format");
    how.letter = format->text[(*at)++];
    if (!how.letter || !strchr("diuxXoeEfFgGrsac%", how.letter))
        td_raise(self, "unsupported format character '%c'", how.letter);
    return how;
}

static td_value mapped(td_render *self, const td_string *format, size_t *at, td_value values,
                       const td_arguments *keywords) {
    const char *end = memchr(format->text + *at, ')', format->bytes - *at);
    if (!end)
        td_raise(self, "incomplete format key");
    const td_string *key = td_string_cut(self, format, *at + 1, (size_t)(end - format->text));
    *at = (size_t)(end - format->text) + 1;
    for (size_t i = 0; keywords && i < keywords->n_keywords; i++)
        if (td_string_equal(keywords->keywords[i].key.string, key))
            return keywords->keywords[i].value;
    const td_value *found =
        values.kind == TD_DICT ? td_dict_find(self, values.dict, td_text(key)) : NULL;
    if (!found)
        td_raise(self, "the format has no value for '%.*s'", (int)key->bytes, key->text);
    return *found;
}

td_value td_percent_format(td_render *self, const td_string *format, td_value values,
                           const td_arguments *keywords) {
    td_builder out = {0};
    size_t used = 0, count = values.kind == TD_TUPLE ? values.list->count : 1;
    bool is_mapped = keywords != NULL || values.kind == TD_DICT;
    for (size_t at = 0; at < format->bytes;) {
        const char *found = memchr(format->text + at, '%', format->bytes - at);
        size_t next = found ? (size_t)(found - format->text) : format->bytes;
        td_build_cut(self, &out, format, at, next);
        at = next + 1;
        if (next == format->bytes)
            break;
        td_value value = td_none();
        bool is_keyed = at < format->bytes && format->text[at] == '(';
        if (is_keyed)
            value = mapped(self, format, &at, values, keywords);
        conversion how = read_percent(self, format, &at);
        if (how.letter == '%') {
            td_build(self, &out, "%", 1, 0);
            continue;
        }
        if (!is_keyed && used == count)
            td_raise(self, "not enough arguments for format string");
        if (!is_keyed)
            value = values.kind == TD_TUPLE ? values.list->items[used++] : (used++, values);
        build_conversion(self, &out, &how, value);
    }
    if (used < count && !is_mapped)
        td_raise(self, "not all arguments converted during string formatting");
    return td_text(td_built(self, &out));
}

// [[fill]align][sign][#][0][width][,][.precision][letter]
static conversion read_spec(td_render *self, const td_string *spec) {
    conversion how = {.precision = -1};
    size_t at = 0;
    if (spec->bytes > 1 && strchr("<>^=", spec->text[1]) && spec->text[1]) {
        how.fill = spec->text[0];
        how.align = spec->text[1];
        at = 2;
    } else if (spec->bytes > 0 && strchr("<>^=", spec->text[0]) && spec->text[0]) {
        how.align = spec->text[at++];
    }
    for (; at < spec->bytes && spec->text[at] && strchr("+- #0", spec->text[at]); at++) {
        how.plus = how.plus || spec->text[at] == '+';
        how.space = how.space || spec->text[at] == ' ';
        how.alternate = how.alternate || spec->text[at] == '#';
        how.zero = how.zero || spec->text[at] == '0';
    }
    how.width = read_number(self, spec, &at);
    if (at < spec->bytes && spec->text[at] == ',') {
        how.comma = true;
        at++;
    }
    if (at < spec->bytes && spec->text[at] == '.') {
        at++;
        how.precision = read_number(self, spec, &at);
    }
    if (at < spec->bytes)
        how.letter = spec->text[at++];
    if (at < spec->bytes || (how.letter && !strchr("dxXoeEfFgGs%", how.letter)))
        td_raise(self, "invalid format '%.*s'", (int)spec->bytes, spec->text);
    return how;
}

static void build_spec(td_render *self, td_builder *out, const td_string *spec, td_value value) {
    conversion how = read_spec(self, spec);
    if (spec->bytes == 0 || value.kind == TD_UNDEFINED) {
        td_build_str(self, out, value);
        return;
    }
    if (!how.letter && td_is_number(value) && value.kind != TD_BOOL) {
        how.letter = value.kind == TD_INT ? 'd' : how.precision >= 0 ? 'g' : 0;
        if (!how.letter) {
            build_padded(self, out, &how, td_str(self, value), true);
            return;
        }
    }
    if (how.letter && how.letter != 's' && value.kind == TD_FLOAT && strchr("dxXo", how.letter))
        td_raise(self, "unknown format code '%c' for object of type 'float'", how.letter);
    if (!how.letter || how.letter == 's') {
        how.letter = 's';
        how.align = how.align ? how.align : '<';
    }
    build_conversion(self, out, &how, value);
}

// The value that a field names: a position or a keyword, then attributes and items.
static td_value field_value(td_render *self, const td_string *field, const td_arguments *arguments,
                            size_t *automatic) {
    size_t end = 0;
    int64_t index;
    while (end < field->bytes && field->text[end] != '.' && field->text[end] != '[')
        end++;
    const td_string *first = td_string_cut(self, field, 0, end);
    td_value value = {0};
    bool is_index = end == 0 || td_parse_int(first, 10, &index);
    if (is_index) {
        size_t position = end == 0 ? (*automatic)++ : (size_t)index;
        if (position >= arguments->count)
            td_raise(self, "the format has no argument %zu", position);
        value = arguments->items[position];
    } else {
        size_t i = 0;
        while (i < arguments->n_keywords &&
               !td_string_equal(arguments->keywords[i].key.string, first))
            i++;
        if (i == arguments->n_keywords)
            td_raise(self, "the format has no value for '%.*s'", (int)first->bytes, first->text);
        value = arguments->keywords[i].value;
    }
    while (end < field->bytes) {
        bool is_item = field->text[end++] == '[';
        size_t begin = end;
        while (end < field->bytes && (is_item ? field->text[end] != ']'
                                              : field->text[end] != '.' && field->text[end] != '['))
            end++;
        const td_string *part = td_string_cut(self, field, begin, end);
        end += is_item && end < field->bytes;
        if (is_item)
            value = td_item(self, value,
                            td_parse_int(part, 10, &index) ? td_int(index) : td_text(part));
        else
            value = td_attribute(self, value, part);
    }
    return value;
}

static void build_field(td_render *self, td_builder *out, const td_string *field,
                        const td_arguments *arguments, size_t *automatic) {
    const char *colon = memchr(field->text, ':', field->bytes);
    size_t end = colon ? (size_t)(colon - field->text) : field->bytes;
    const td_string *spec = td_string_cut(self, field, colon ? end + 1 : end, field->bytes);
    bool is_repr = end >= 2 && field->text[end - 2] == '!' && field->text[end - 1] == 'r';
    bool is_str = end >= 2 && field->text[end - 2] == '!' && field->text[end - 1] == 's';
    td_value value =
        field_value(self, td_string_cut(self, field, 0, is_repr || is_str ? end - 2 : end),
                    arguments, automatic);
    if (is_repr || is_str) {
        td_builder text = {0};
        if (is_repr)
            td_build_repr(self, &text, value);
        else
            td_build_str(self, &text, value);
        value = td_text(td_built(self, &text));
    }
    build_spec(self, out, spec, value);
}

td_value td_brace_format(td_render *self, td_value base, const td_arguments *arguments) {
    const td_string *format = base.string;
    td_builder out = {0};
    size_t automatic = 0;
    td_steps(self, format->bytes / 4);
    for (size_t at = 0; at < format->bytes;) {
        char byte = format->text[at];
        if (byte != '{' && byte != '}') {
            td_build_cut(self, &out, format, at, at + 1);
            at++;
        } else if (at + 1 < format->bytes && format->text[at + 1] == byte) {
            td_build(self, &out, &byte, 1, 0);
            at += 2;
        } else {
            const char *end =
                byte == '{' ? memchr(format->text + at, '}', format->bytes - at) : NULL;
            if (!end)
                td_raise(self, "single '%c' in a format", byte);
            size_t stop = (size_t)(end - format->text);
            build_field(self, &out, td_string_cut(self, format, at + 1, stop), arguments,
                        &automatic);
            at = stop + 1;
        }
    }
    return td_text(td_built(self, &out));
}
