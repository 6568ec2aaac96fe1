// Regular expressions of tokenizer.json: written for Oniguruma in Ruby syntax, run by PCRE2.
//
// The expression is read token by token. What means the same in both is copied, what is spelled
// differently is rewritten, and anything else is refused by name, because a pattern that splits
// differently would train on other tokens without a sign.
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"
#include "model/unicode_tables.h"

enum { MAX_GROUPS = 60 };

// White_Space and its complement, as class members.
static const char spaces[] = "\\t-\\r\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"
                             "\\x{202f}\\x{205f}\\x{3000}";
static const char non_spaces[] =
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x84\\x86-\\x9f\\xa1-\\x{167f}\\x{1681}-\\x{1fff}"
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}"
    "\\x{3001}-\\x{10ffff}";

typedef struct translation {
    const char *where;
    const char *regex; // all of it
    const char *at;    // next unread character
    td_bytes *plain, *full;
    uint64_t caseless; // bit d: letters match regardless of case in the group of depth d
    unsigned depth;
    int in_class;
    char last_letter; // of a run of caseless literals
} translation;

static td_status fail_construct(const translation *t, const char *what) {
    return td_fail(TD_ERR_DATA,
                   "%s: pre_tokenizer pattern \"%.200s\": %s at character %zu is not supported",
                   t->where, t->regex, what, (size_t)(t->at - t->regex) + 1);
}

static td_status emit(translation *t, const char *plain, const char *full) {
    TD_TRY(td_bytes_append_string(t->plain, plain));
    return td_bytes_append_string(t->full, full);
}

static td_status emit_both(translation *t, const char *text, size_t bytes) {
    TD_TRY(td_bytes_append(t->plain, text, bytes));
    return td_bytes_append(t->full, text, bytes);
}

static td_status copy(translation *t, size_t bytes) {
    TD_TRY(emit_both(t, t->at, bytes));
    t->at += bytes;
    return TD_OK;
}

static int is_caseless(const translation *t) {
    return (int)(t->caseless >> t->depth & 1);
}

// Appends the recent characters of a category, "N" or "Nd", as class members.
static td_status append_recent(td_bytes *out, const char *category) {
    for (size_t i = 0; i < td_n_recent_ranges; i++) {
        const td_recent_range *range = &td_recent_ranges[i];
        char text[32];
        if (strncmp(range->category, category, strlen(category)) != 0)
            continue;
        snprintf(text, sizeof text, "\\x{%x}-\\x{%x}", (unsigned)range->first,
                 (unsigned)range->last);
        TD_TRY(td_bytes_append_string(out, text));
    }
    return TD_OK;
}

// \p{Nd} and the like, spelled out in the full pattern.
static td_status emit_property(translation *t, const char *category, int negated) {
    char text[16];
    snprintf(text, sizeof text, "\\%c{%s}", negated ? 'P' : 'p', category);
    TD_TRY(td_bytes_append_string(t->plain, text));
    if (!t->in_class)
        TD_TRY(td_bytes_append_string(t->full, negated ? "[^" : "["));
    snprintf(text, sizeof text, "\\p{%s}", category);
    TD_TRY(td_bytes_append_string(t->full, text));
    TD_TRY(append_recent(t->full, category));
    return t->in_class ? TD_OK : td_bytes_append_string(t->full, "]");
}

static int is_known_category(const char *name, size_t length) {
    static const char *const names[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn",
                                        "Mc", "Me", "N",  "Nd", "Nl", "No", "P", "Pc",
                                        "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm",
                                        "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i]) == length && memcmp(names[i], name, length) == 0)
            return 1;
    return 0;
}

// At "\p{" or "\P{".
static td_status translate_property(translation *t) {
    int negated = t->at[1] == 'P';
    const char *name = t->at + 3, *end = strchr(t->at, '}');
    if (t->at[2] != '{' || !end)
        return fail_construct(t, "a property without braces");
    if (*name == '^') {
        negated = !negated;
        name++;
    }
    size_t length = (size_t)(end - name);
    if (!is_known_category(name, length))
        return fail_construct(t, "a property other than a general category");
    char category[3] = {0};
    memcpy(category, name, length);
    // Regardless of case, engines disagree on what an upper-case letter is.
    if (is_caseless(t) && category[0] == 'L' && category[1] != '\0' && strchr("ult", category[1]))
        return fail_construct(t, "a letter-case property in a caseless group");
    if (negated && t->in_class)
        return fail_construct(t, "a negated property in a class");
    t->at = end + 1;
    return emit_property(t, category, negated);
}

static td_status emit_space(translation *t, int negated) {
    if (!t->in_class)
        TD_TRY(td_bytes_append_string(t->full, "["));
    TD_TRY(emit(t, negated ? "\\S" : "\\s", negated ? non_spaces : spaces));
    return t->in_class ? TD_OK : td_bytes_append_string(t->full, "]");
}

// \xHH, \x{H...}, \uHHHH: always written as \x{H...}.
static td_status translate_code(translation *t) {
    const char *digits = t->at + 2;
    int braces = t->at[1] == 'x' && *digits == '{';
    size_t n = 0, most = braces ? 6 : t->at[1] == 'x' ? 2 : 4;
    digits += braces;
    while (n < most && isxdigit((unsigned char)digits[n]))
        n++;
    if (n == 0 || (t->at[1] == 'u' && n < 4) || (braces && digits[n] != '}'))
        return fail_construct(t, "a malformed character code");
    unsigned long code = strtoul(digits, NULL, 16);
    // Without braces Oniguruma takes \xHH for a byte, which is a character only in ASCII.
    if (!braces && t->at[1] == 'x') {
        char two[3] = {digits[0], n > 1 ? digits[1] : '\0', '\0'};
        code = strtoul(two, NULL, 16);
        if (code >= 0x80)
            return fail_construct(t, "a byte above 7F");
    } else if (t->at[1] == 'u') {
        char four[5] = {0};
        memcpy(four, digits, 4);
        code = strtoul(four, NULL, 16);
    }
    if (code == 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        return fail_construct(t, "a character code out of range");
    char text[16];
    snprintf(text, sizeof text, "\\x{%lx}", code);
    t->at = digits + n + braces;
    return emit(t, text, text);
}

static td_status translate_escape(translation *t) {
    char c = t->at[1];
    t->last_letter = '\0';
    switch (c) {
    case 'p':
    case 'P':
        return translate_property(t);
    case 'x':
    case 'u':
        return translate_code(t);
    case 's':
    case 'S':
        t->at += 2;
        return emit_space(t, c == 'S');
    case 'd':
        t->at += 2;
        return emit_property(t, "Nd", 0);
    case 'D':
        if (t->in_class)
            return fail_construct(t, "\\D in a class");
        t->at += 2;
        return emit_property(t, "Nd", 1);
    case 'v': // a vertical tab here, a class of line ends in PCRE2
        t->at += 2;
        return emit(t, "\\x0b", "\\x0b");
    case 'r':
    case 'n':
    case 't':
    case 'f':
        return copy(t, 2);
    default:
        if (c > ' ' && c < 0x7f && !isalnum((unsigned char)c))
            return copy(t, 2);
        return fail_construct(t, "this escape");
    }
}

// Regardless of case, Oniguruma also matches one character for several ("ss" is sharp s, "fi" a
// ligature).
static td_status check_caseless_literal(translation *t) {
    static const char *const expansions[] = {"ff", "fi", "fl", "st", "ss"};
    unsigned char c = (unsigned char)*t->at;
    if (c >= 0x80)
        return fail_construct(t, "a caseless character outside ASCII");
    char pair[3] = {t->last_letter, (char)tolower(c), '\0'};
    for (size_t i = 0; i < sizeof expansions / sizeof *expansions; i++)
        if (strcmp(pair, expansions[i]) == 0)
            return fail_construct(t, "a caseless letter pair that has a ligature");
    t->last_letter = pair[1];
    return TD_OK;
}

static td_status copy_literal(translation *t) {
    if (is_caseless(t))
        TD_TRY(check_caseless_literal(t));
    size_t length;
    td_utf8_decode(t->at, &length);
    return copy(t, length);
}

static td_status translate_class(translation *t) {
    t->last_letter = '\0';
    t->in_class = 1;
    TD_TRY(copy(t, t->at[1] == '^' ? 2 : 1));
    if (*t->at == ']')
        return fail_construct(t, "']' as the first member of a class");
    while (*t->at != ']') {
        if (*t->at == '\0')
            return fail_construct(t, "an unfinished class");
        if (*t->at == '[')
            return fail_construct(t, "a class within a class");
        if (t->at[0] == '&' && t->at[1] == '&')
            return fail_construct(t, "an intersection of classes");
        TD_TRY(*t->at == '\\' ? translate_escape(t) : copy_literal(t));
        t->last_letter = '\0';
    }
    t->in_class = 0;
    return copy(t, 1);
}

static td_status open_group(translation *t, size_t bytes, int caseless) {
    if (t->depth + 1 >= MAX_GROUPS)
        return fail_construct(t, "nesting this deep");
    TD_TRY(copy(t, bytes));
    t->depth++;
    t->caseless &= ~((uint64_t)1 << t->depth);
    t->caseless |= (uint64_t)caseless << t->depth;
    return TD_OK;
}

static td_status translate_group(translation *t) {
    static const char *const openings[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    t->last_letter = '\0';
    if (t->at[1] != '?')
        return open_group(t, 1, is_caseless(t));
    for (size_t i = 0; i < sizeof openings / sizeof *openings; i++)
        if (strncmp(t->at, openings[i], strlen(openings[i])) == 0)
            return open_group(t, strlen(openings[i]), is_caseless(t));
    if (strncmp(t->at, "(?i:", 4) == 0)
        return open_group(t, 4, 1);
    if (strncmp(t->at, "(?-i:", 5) == 0)
        return open_group(t, 5, 0);
    // In the middle of a pattern the two syntaxes give it another reach.
    if (strncmp(t->at, "(?i)", 4) == 0 && t->at == t->regex) {
        t->caseless |= 1;
        return copy(t, 4);
    }
    return fail_construct(t, "this kind of group");
}

// Length of "{n}", "{n,}", "{n,m}" or "{,m}"; 0 when the brace is a plain character.
static size_t interval_length(const char *at, int *out_fixed, int *out_open) {
    const char *c = at + 1;
    size_t low = strspn(c, "0123456789");
    c += low;
    *out_fixed = *c == '}';
    *out_open = low == 0;
    size_t high = 0;
    if (*c == ',') {
        high = strspn(c + 1, "0123456789");
        c += 1 + high;
    }
    return *c == '}' && (low > 0 || high > 0) ? (size_t)(c - at) + 1 : 0;
}

static td_status translate_interval(translation *t) {
    int fixed, open;
    size_t length = interval_length(t->at, &fixed, &open);
    t->last_letter = '\0';
    if (length == 0) {
        TD_TRY(emit(t, "\\", "\\"));
        return copy(t, 1);
    }
    if (t->at[length] == '+' || (fixed && t->at[length] == '?'))
        return fail_construct(t, "a suffix of this repetition");
    if (open) {
        t->at++;
        length--;
        TD_TRY(emit(t, "{0", "{0"));
    }
    return copy(t, length);
}

static td_status close_group(translation *t) {
    t->last_letter = '\0';
    if (t->depth == 0)
        return fail_construct(t, "an unopened ')'");
    t->depth--;
    return copy(t, 1);
}

static td_status translate_next(translation *t) {
    switch (*t->at) {
    case '\\':
        return translate_escape(t);
    case '[':
        return translate_class(t);
    case '(':
        return translate_group(t);
    case ')':
        return close_group(t);
    case '{':
        return translate_interval(t);
    case '|':
    case '*':
    case '+':
    case '?':
    case '.':
    case '^':
    case '$':
        t->last_letter = '\0';
        return copy(t, 1);
    default:
        return copy_literal(t);
    }
}

td_status td_pattern_translate(const char *where, const char *regex, td_bytes *plain,
                               td_bytes *full) {
    translation t = {.where = where, .regex = regex, .at = regex, .plain = plain, .full = full};
    while (*t.at)
        TD_TRY(translate_next(&t));
    if (t.depth > 0)
        return fail_construct(&t, "an unclosed group");
    return TD_OK;
}

static td_status compile(const char *where, const td_bytes *text, pcre2_code **out) {
    int error;
    size_t offset;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to compile a pattern", where);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_bsr(context, PCRE2_BSR_UNICODE);
    *out = pcre2_compile((PCRE2_SPTR)text->data, text->size,
                         PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                         &offset, context);
    pcre2_compile_context_free(context);
    if (!*out) {
        PCRE2_UCHAR message[128];
        pcre2_get_error_message(error, message, sizeof message);
        return td_fail(TD_ERR_DATA, "%s: pre_tokenizer pattern \"%.*s\": %s", where,
                       (int)(text->size < 200 ? text->size : 200), text->data,
                       (const char *)message);
    }
    // Matching is interpreted, only slower, where the just-in-time compiler may not run.
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE);
    return TD_OK;
}

static td_status compile_both(const char *where, const td_bytes *plain, const td_bytes *full,
                              td_pattern *out) {
    *out = (td_pattern){0};
    td_status status = compile(where, plain, &out->plain);
    if (status == TD_OK)
        status = compile(where, full, &out->full);
    if (status != TD_OK)
        td_pattern_fini(out);
    return status;
}

td_status td_pattern_compile(const char *where, const char *regex, td_pattern *out) {
    td_bytes plain = {0}, full = {0};
    td_status status = td_pattern_translate(where, regex, &plain, &full);
    // Reserved so that the data of an empty pattern is no null pointer.
    if (status == TD_OK)
        status = td_bytes_reserve(&plain, 1);
    if (status == TD_OK)
        status = td_bytes_reserve(&full, 1);
    if (status == TD_OK)
        status = compile_both(where, &plain, &full, out);
    td_bytes_fini(&plain);
    td_bytes_fini(&full);
    return status;
}

td_status td_pattern_compile_literal(const char *where, const char *text, td_pattern *out) {
    td_bytes escaped = {0};
    td_status status = td_bytes_reserve(&escaped, 1);
    for (; *text && status == TD_OK; text++) {
        if (ispunct((unsigned char)*text))
            status = td_bytes_append(&escaped, "\\", 1);
        if (status == TD_OK)
            status = td_bytes_append(&escaped, text, 1);
    }
    if (status == TD_OK)
        status = compile_both(where, &escaped, &escaped, out);
    td_bytes_fini(&escaped);
    return status;
}

td_status td_pattern_compile_digits(const char *where, td_pattern *out) {
    td_bytes plain = {0}, full = {0};
    td_status status = td_bytes_append_string(&plain, "\\p{N}");
    if (status == TD_OK)
        status = td_bytes_append_string(&full, "[\\p{N}");
    if (status == TD_OK)
        status = append_recent(&full, "N");
    if (status == TD_OK)
        status = append_recent(&full, "##");
    if (status == TD_OK)
        status = td_bytes_append_string(&full, "]");
    if (status == TD_OK)
        status = compile_both(where, &plain, &full, out);
    td_bytes_fini(&plain);
    td_bytes_fini(&full);
    return status;
}

// The first match from `offset` on.
static td_status match_at(const pcre2_code *code, const char *text, size_t bytes, size_t offset,
                          pcre2_match_data *data, pcre2_match_context *context, int *out_found,
                          td_match *out) {
    int rc = pcre2_match(code, (PCRE2_SPTR)text, bytes, offset, PCRE2_NO_UTF_CHECK, data, context);
    *out_found = rc >= 0;
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
        PCRE2_UCHAR message[128];
        pcre2_get_error_message(rc, message, sizeof message);
        return td_fail(TD_ERR_DATA, "the tokenizer's pattern fails on this text: %s",
                       (const char *)message);
    }
    if (rc >= 0) {
        const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(data);
        *out = (td_match){bounds[0], bounds[1]};
    }
    return TD_OK;
}

// An empty match right where the last one ended is passed over, as the tokenizers library's
// iterator does.
td_status td_pattern_next(const pcre2_code *code, const char *text, size_t bytes, size_t last_end,
                          int has_last, pcre2_match_data *data, pcre2_match_context *context,
                          int *out_found, td_match *out) {
    size_t offset = last_end;
    for (;;) {
        *out_found = 0;
        if (offset > bytes)
            return TD_OK;
        TD_TRY(match_at(code, text, bytes, offset, data, context, out_found, out));
        if (!*out_found || out->end > out->begin || !has_last || out->end != last_end)
            return TD_OK;
        size_t length = 1;
        if (offset < bytes)
            td_utf8_decode(text + offset, &length);
        offset += length;
    }
}

void td_pattern_fini(td_pattern *pattern) {
    pcre2_code_free(pattern->plain);
    pcre2_code_free(pattern->full);
    *pattern = (td_pattern){0};
}
