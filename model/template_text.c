// Work on strings that keeps their sources: strip, case, replace, lines; and reading numbers.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "model/template_internal.h"
#include "model/unicode.h"

bool td_is_space(uint32_t code) {
    return (code >= 0x1C && code <= 0x1F) || td_unicode_is_space(code);
}

static bool in_set(const td_string *set, uint32_t code) {
    if (!set)
        return td_is_space(code);
    size_t bytes;
    for (size_t at = 0; at < set->bytes; at += bytes)
        if (td_utf8_decode(set->text + at, &bytes) == code)
            return true;
    return false;
}

const td_string *td_strip(td_render *self, const td_string *text, const td_string *set, bool left,
                          bool right) {
    size_t begin = 0, end = text->bytes, bytes;
    td_steps(self, text->bytes / 256);
    while (left && begin < end && in_set(set, td_utf8_decode(text->text + begin, &bytes)))
        begin += bytes;
    while (right && end > begin && in_set(set, td_utf8_decode_before(text->text, end, &bytes)))
        end -= bytes;
    return td_string_cut(self, text, begin, end);
}

static void build_cased(td_render *self, td_builder *out, uint32_t code, bool upper, uint32_t tag) {
    if (upper && code == 0xDF) {
        td_build(self, out, "SS", 2, tag);
        return;
    }
    utf8proc_int32_t cased =
        upper ? utf8proc_toupper((utf8proc_int32_t)code) : utf8proc_tolower((utf8proc_int32_t)code);
    td_build_code(self, out, (uint32_t)cased, tag);
}

static void build_case(td_render *self, td_builder *out, const td_string *text, size_t begin,
                       size_t end, bool upper) {
    size_t bytes, run_end = 0;
    uint32_t tag = 0;
    td_steps(self, (end - begin) / 4);
    for (size_t at = begin; at < end; at += bytes) {
        if (at >= run_end)
            tag = td_tag_at(text, at, &run_end);
        build_cased(self, out, td_utf8_decode(text->text + at, &bytes), upper, tag);
    }
}

const td_string *td_case(td_render *self, const td_string *text, bool upper) {
    td_builder out = {0};
    build_case(self, &out, text, 0, text->bytes, upper);
    return td_built(self, &out);
}

const td_string *td_capitalize(td_render *self, const td_string *text) {
    td_builder out = {0};
    size_t first = td_string_offset(text, text->chars > 0);
    build_case(self, &out, text, 0, first, true);
    build_case(self, &out, text, first, text->bytes, false);
    return td_built(self, &out);
}

// Of nothing: before every character and at the end.
static const td_string *replace_nothing(td_render *self, const td_string *text, const td_string *to,
                                        int64_t limit) {
    td_builder out = {0};
    size_t at = 0;
    td_steps(self, text->bytes / 4);
    for (size_t i = 0; i <= text->chars && (limit < 0 || (int64_t)i < limit); i++) {
        size_t next = i < text->chars ? at + 1 : at;
        while (next < text->bytes && ((unsigned char)text->text[next] & 0xC0) == 0x80)
            next++;
        td_build_string(self, &out, to);
        td_build_cut(self, &out, text, at, next);
        at = next;
    }
    td_build_cut(self, &out, text, at, text->bytes);
    return td_built(self, &out);
}

const td_string *td_replace(td_render *self, const td_string *text, const td_string *from,
                            const td_string *to, int64_t limit) {
    td_builder out = {0};
    size_t at = 0, found;
    if (from->bytes == 0)
        return replace_nothing(self, text, to, limit);
    for (; limit != 0 && (found = td_string_find(self, text, from, at)) != SIZE_MAX; limit--) {
        td_build_cut(self, &out, text, at, found);
        td_build_string(self, &out, to);
        at = found + from->bytes;
    }
    if (at == 0)
        return text;
    td_build_cut(self, &out, text, at, text->bytes);
    return td_built(self, &out);
}

// Bytes of the line end at `at`, 0: there is none.
static size_t line_end(const td_string *text, size_t at) {
    size_t bytes;
    if (text->text[at] == '\r' && at + 1 < text->bytes && text->text[at + 1] == '\n')
        return 2;
    uint32_t code = td_utf8_decode(text->text + at, &bytes);
    bool is_end = (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) ||
                  code == 0x85 || code == 0x2028 || code == 0x2029;
    return is_end ? bytes : 0;
}

td_list *td_split_lines(td_render *self, const td_string *text, bool keep_ends) {
    td_list *lines = td_list_make(self, TD_LIST, 0).list;
    size_t begin = 0, bytes;
    td_steps(self, text->bytes / 16);
    for (size_t at = 0; at < text->bytes;) {
        size_t end = line_end(text, at);
        if (end > 0) {
            size_t stop = keep_ends ? at + end : at;
            td_list_add(self, lines, td_text(td_string_cut(self, text, begin, stop)));
            at += end;
            begin = at;
        } else {
            td_utf8_decode(text->text + at, &bytes);
            at += bytes;
        }
    }
    if (begin < text->bytes)
        td_list_add(self, lines, td_text(td_string_cut(self, text, begin, text->bytes)));
    return lines;
}

// Trimmed, without the single underscores that Python allows between digits. False when too long.
static bool plain_number(const td_string *text, char *out, size_t capacity) {
    size_t begin = 0, end = text->bytes, count = 0, bytes;
    while (begin < end && td_is_space(td_utf8_decode(text->text + begin, &bytes)))
        begin += bytes;
    while (end > begin && td_is_space(td_utf8_decode_before(text->text, end, &bytes)))
        end -= bytes;
    for (size_t i = begin; i < end; i++) {
        if (text->text[i] == '_' && i > begin && i + 1 < end && text->text[i - 1] != '_')
            continue;
        if (count + 1 >= capacity || text->text[i] == '\0')
            return false;
        out[count++] = text->text[i];
    }
    out[count] = '\0';
    return count > 0;
}

bool td_parse_int(const td_string *text, int base, int64_t *out) {
    char plain[80], *end;
    if ((base != 0 && (base < 2 || base > 36)) || !plain_number(text, plain, sizeof plain))
        return false;
    char *digits = plain + (*plain == '-' || *plain == '+');
    int prefix = digits[0] != '0'          ? 0
                 : (digits[1] | 32) == 'x' ? 16
                 : (digits[1] | 32) == 'o' ? 8
                 : (digits[1] | 32) == 'b' ? 2
                                           : 0;
    if (prefix && (base == 0 || base == prefix)) {
        base = prefix;
        memmove(digits, digits + 2, strlen(digits + 2) + 1);
    }
    if (!strchr("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", *digits) ||
        *digits == '\0')
        return false;
    errno = 0;
    *out = strtoll(plain, &end, base ? base : 10);
    return errno == 0 && *end == '\0';
}

bool td_parse_float(const td_string *text, double *out) {
    char plain[400], *end;
    if (!plain_number(text, plain, sizeof plain) || strpbrk(plain, "xXpP("))
        return false;
    *out = strtod(plain, &end);
    return *end == '\0';
}
