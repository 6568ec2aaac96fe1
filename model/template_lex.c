// From source to tokens: text outside of tags with Jinja's rules for white space around them
// (trim_blocks, lstrip_blocks, the signs - and +), and what is inside.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/template_internal.h"
#include "model/unicode.h"

static bool looking_at(const td_parser *self, size_t at, const char *text) {
    size_t bytes = strlen(text);
    return at <= self->bytes && bytes <= self->bytes - at &&
           memcmp(self->source + at, text, bytes) == 0;
}

_Noreturn static void fail_at(td_parser *self, size_t at, const char *what) {
    self->render.trap.position = (uint32_t)at;
    td_raise(&self->render, "%s", what);
}

static size_t skip_space(const td_parser *self, size_t at) {
    size_t bytes;
    while (at < self->bytes && td_is_space(td_utf8_decode(self->source + at, &bytes)))
        at += bytes;
    return at;
}

static size_t strip_end(const td_parser *self, size_t begin, size_t end) {
    size_t bytes;
    while (end > begin && td_is_space(td_utf8_decode_before(self->source, end, &bytes)))
        end -= bytes;
    return end;
}

// After the end of a tag whose closing sign is at `at`; 0 when there is none. A tag of a statement
// or comment takes the line end that follows with it.
static size_t tag_end(const td_parser *self, size_t at, const char *closing, bool is_trimmed) {
    if (looking_at(self, at, "-") && looking_at(self, at + 1, closing))
        return skip_space(self, at + 3);
    if (is_trimmed && looking_at(self, at, "+") && looking_at(self, at + 1, closing))
        return at + 3;
    if (!looking_at(self, at, closing))
        return 0;
    return at + 2 + (is_trimmed && looking_at(self, at + 2, "\n"));
}

// Where the text before a tag ends. sign: what follows the tag's opening.
static size_t text_end(const td_parser *self, size_t begin, size_t tag, char sign, bool is_print) {
    if (sign == '-')
        return strip_end(self, begin, tag);
    if (sign == '+' || is_print)
        return tag;
    size_t line = tag;
    while (line > begin && self->source[line - 1] != '\n')
        line--;
    if (line == begin && begin > 0 && self->source[begin - 1] != '\n')
        return tag;
    return skip_space(self, line) >= tag ? line : tag;
}

static char sign_at(const td_parser *self, size_t at) {
    return at < self->bytes && (self->source[at] == '-' || self->source[at] == '+')
               ? self->source[at]
               : 0;
}

// The name in a tag such as {%- raw; 0 or the offset after it.
static size_t after_word(const td_parser *self, size_t tag, const char *word) {
    if (!looking_at(self, tag, "{%"))
        return 0;
    size_t at = skip_space(self, tag + 2 + (sign_at(self, tag + 2) != 0));
    return looking_at(self, at, word) ? skip_space(self, at + strlen(word)) : 0;
}

static size_t skip_comment(td_parser *self, size_t tag) {
    for (size_t at = tag + 2; at < self->bytes; at++) {
        size_t end = tag_end(self, at, "#}", true);
        if (end > 0)
            return end;
    }
    fail_at(self, tag, "the comment does not end");
}

static td_token data_token(const td_parser *self, size_t begin, size_t end) {
    return (td_token){.kind = TD_TOKEN_DATA,
                      .position = (uint32_t)begin,
                      .text = self->source + begin,
                      .bytes = (uint32_t)(end - begin)};
}

static td_token lex_raw(td_parser *self) {
    size_t begin = self->at;
    for (size_t tag = begin; tag < self->bytes; tag++) {
        size_t word = after_word(self, tag, "endraw");
        size_t end = word ? tag_end(self, word, "%}", true) : 0;
        if (end == 0)
            continue;
        td_token token =
            data_token(self, begin, text_end(self, begin, tag, sign_at(self, tag + 2), false));
        self->is_raw = false;
        self->at = end;
        return token;
    }
    fail_at(self, begin, "the raw block does not end");
}

// -%} takes the space that follows, and %} leaves the line end: it is part of the raw text.
static size_t raw_begin(const td_parser *self, size_t tag) {
    size_t word = after_word(self, tag, "raw");
    return !word ? 0 : looking_at(self, word, "+") ? 0 : tag_end(self, word, "%}", false);
}

static td_token open_tag(td_parser *self, size_t tag) {
    bool is_print = self->source[tag + 1] == '{';
    self->state = is_print ? TD_LEX_PRINT : TD_LEX_BLOCK;
    self->at = tag + 2 + (sign_at(self, tag + 2) != 0);
    return (td_token){.kind = is_print ? TD_TOKEN_PRINT_BEGIN : TD_TOKEN_BLOCK_BEGIN,
                      .position = (uint32_t)tag};
}

static size_t find_tag(const td_parser *self, size_t at) {
    for (; at + 1 < self->bytes; at++)
        if (self->source[at] == '{' && (self->source[at + 1] == '%' ||
                                        self->source[at + 1] == '{' || self->source[at + 1] == '#'))
            return at;
    return self->bytes;
}

static td_token lex_text(td_parser *self) {
    while (self->at < self->bytes) {
        if (self->is_raw)
            return lex_raw(self);
        size_t begin = self->at, tag = find_tag(self, begin);
        if (tag >= self->bytes) {
            self->at = self->bytes;
            return data_token(self, begin, self->bytes);
        }
        char kind = self->source[tag + 1];
        size_t end = text_end(self, begin, tag, sign_at(self, tag + 2), kind == '{');
        if (end > begin) {
            self->at = tag;
            return data_token(self, begin, end);
        }
        size_t raw = raw_begin(self, tag);
        if (raw > 0) {
            self->is_raw = true;
            self->at = raw;
        } else if (kind == '#') {
            self->at = skip_comment(self, tag);
        } else {
            return open_tag(self, tag);
        }
    }
    return (td_token){.kind = TD_TOKEN_END, .position = (uint32_t)self->bytes};
}

static bool is_name_start(unsigned char byte) {
    return byte == '_' || byte >= 0x80 || (byte >= 'a' && byte <= 'z') ||
           (byte >= 'A' && byte <= 'Z');
}

static bool is_digit(char byte) {
    return byte >= '0' && byte <= '9';
}

static td_token lex_name(td_parser *self) {
    size_t begin = self->at;
    while (self->at < self->bytes && (is_name_start((unsigned char)self->source[self->at]) ||
                                      is_digit(self->source[self->at])))
        self->at++;
    return (td_token){.kind = TD_TOKEN_NAME,
                      .position = (uint32_t)begin,
                      .text = self->source + begin,
                      .bytes = (uint32_t)(self->at - begin)};
}

// Digits with single underscores between them.
static size_t digits_end(const td_parser *self, size_t at) {
    while (at < self->bytes &&
           (is_digit(self->source[at]) ||
            (self->source[at] == '_' && at + 1 < self->bytes && is_digit(self->source[at + 1]))))
        at++;
    return at;
}

static size_t exponent_end(const td_parser *self, size_t at) {
    if (at >= self->bytes || (self->source[at] | 32) != 'e')
        return at;
    size_t digits = at + 1;
    if (digits < self->bytes && (self->source[digits] == '+' || self->source[digits] == '-'))
        digits++;
    return digits < self->bytes && is_digit(self->source[digits]) ? digits_end(self, digits) : at;
}

static td_value number_value(td_parser *self, size_t begin, size_t end, bool is_float) {
    char text[64];
    size_t count = 0;
    for (size_t i = begin; i < end; i++)
        if (self->source[i] != '_') {
            if (count + 1 >= sizeof text)
                fail_at(self, begin, "the number is too long");
            text[count++] = self->source[i];
        }
    text[count] = '\0';
    td_string digits = {.text = text, .bytes = (uint32_t)count, .chars = (uint32_t)count};
    if (is_float)
        return td_float(strtod(text, NULL));
    int64_t value;
    if (!td_parse_int(&digits, 0, &value))
        fail_at(self, begin, "the number is not a 64-bit integer");
    return td_int(value);
}

static size_t based_end(const td_parser *self, size_t at) {
    while (at < self->bytes &&
           (is_digit(self->source[at]) || is_name_start((unsigned char)self->source[at])))
        at++;
    return at;
}

static td_token lex_number(td_parser *self) {
    size_t begin = self->at, end = digits_end(self, begin);
    bool is_float = false;
    if (self->source[begin] == '0' && end == begin + 1 && end < self->bytes &&
        strchr("xXoObB", self->source[end])) {
        end = based_end(self, end);
    } else {
        if (end + 1 < self->bytes && self->source[end] == '.' && is_digit(self->source[end + 1])) {
            is_float = true;
            end = digits_end(self, end + 1);
        }
        size_t exponent = exponent_end(self, end);
        is_float = is_float || exponent > end;
        end = exponent;
    }
    self->at = end;
    return (td_token){.kind = is_float ? TD_TOKEN_FLOAT : TD_TOKEN_INTEGER,
                      .position = (uint32_t)begin,
                      .value = number_value(self, begin, end, is_float)};
}

static uint32_t read_code(td_parser *self, size_t begin, size_t *at, size_t max_digits, int base) {
    uint32_t code = 0;
    size_t count = 0;
    for (; count < max_digits && *at < self->bytes; count++, (*at)++) {
        char digit[2] = {self->source[*at], 0}, *end;
        unsigned long value = strtoul(digit, &end, base);
        if (end == digit || digit[0] == '-' || digit[0] == '+' || digit[0] == ' ')
            break;
        code = code * (uint32_t)base + (uint32_t)value;
    }
    if ((base == 16 && count < max_digits) || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        fail_at(self, begin, "the string has a malformed escape");
    return code;
}

// The character or characters that a backslash makes of what follows it.
static void unescape(td_parser *self, size_t begin, size_t *at, td_builder *out) {
    static const char plain[] = "\\'\"abfnrtv", meaning[] = "\\'\"\a\b\f\n\r\t\v";
    char letter = self->source[*at];
    const char *found = letter ? strchr(plain, letter) : NULL;
    if (found) {
        td_build(&self->render, out, meaning + (found - plain), 1, 0);
        (*at)++;
    } else if (letter == '\n') {
        (*at)++;
    } else if (letter >= '0' && letter <= '7') {
        td_build_code(&self->render, out, read_code(self, begin, at, 3, 8), 0);
    } else if (letter == 'x' || letter == 'u' || letter == 'U') {
        (*at)++;
        td_build_code(&self->render, out,
                      read_code(self, begin, at,
                                letter == 'x'   ? 2
                                : letter == 'u' ? 4
                                                : 8,
                                16),
                      0);
    } else if (letter == 'N') {
        fail_at(self, begin, "names of characters (\\N) are not supported: write the character");
    } else {
        td_build(&self->render, out, "\\", 1, 0);
    }
}

static td_token lex_string(td_parser *self) {
    size_t begin = self->at, at = begin + 1;
    char quote = self->source[begin];
    td_builder text = {0};
    while (at < self->bytes && self->source[at] != quote) {
        if (self->source[at] == '\\' && at + 1 < self->bytes) {
            at++;
            unescape(self, begin, &at, &text);
            continue;
        }
        td_build(&self->render, &text, self->source + at++, 1, 0);
    }
    if (at >= self->bytes)
        fail_at(self, begin, "the string does not end");
    self->at = at + 1;
    return (td_token){.kind = TD_TOKEN_STRING,
                      .position = (uint32_t)begin,
                      .value = td_text(td_built(&self->render, &text))};
}

// Longest first.
static const struct {
    const char *text;
    td_token_kind kind;
} operators[] = {
    {"//", TD_TOKEN_FLOOR_DIVIDE}, {"**", TD_TOKEN_POWER},         {"==", TD_TOKEN_EQUAL},
    {"!=", TD_TOKEN_NOT_EQUAL},    {">=", TD_TOKEN_GREATER_EQUAL}, {"<=", TD_TOKEN_LESS_EQUAL},
    {"+", TD_TOKEN_ADD},           {"-", TD_TOKEN_SUBTRACT},       {"/", TD_TOKEN_DIVIDE},
    {"*", TD_TOKEN_MULTIPLY},      {"%", TD_TOKEN_MODULO},         {"~", TD_TOKEN_TILDE},
    {"[", TD_TOKEN_LEFT_BRACKET},  {"]", TD_TOKEN_RIGHT_BRACKET},  {"(", TD_TOKEN_LEFT_PAREN},
    {")", TD_TOKEN_RIGHT_PAREN},   {"{", TD_TOKEN_LEFT_BRACE},     {"}", TD_TOKEN_RIGHT_BRACE},
    {">", TD_TOKEN_GREATER},       {"<", TD_TOKEN_LESS},           {"=", TD_TOKEN_ASSIGN},
    {".", TD_TOKEN_DOT},           {":", TD_TOKEN_COLON},          {"|", TD_TOKEN_PIPE},
    {",", TD_TOKEN_COMMA},         {";", TD_TOKEN_SEMICOLON},
};

_Noreturn static void fail_balance(td_parser *self, char bracket, char expected) {
    char what[64];
    if (!expected)
        snprintf(what, sizeof what, "'%c' closes a bracket that was not opened", bracket);
    else
        snprintf(what, sizeof what, "found '%c' where '%c' was expected", bracket, expected);
    fail_at(self, self->at, what);
}

static void balance(td_parser *self, char bracket) {
    const char *opening = strchr("([{", bracket), *closing = strchr(")]}", bracket);
    if (opening) {
        if (self->n_open == sizeof self->open)
            fail_at(self, self->at, "too many open brackets");
        self->open[self->n_open++] = ")]}"[opening - "([{"];
        return;
    }
    if (!closing)
        return;
    char expected = self->n_open > 0 ? (char)self->open[--self->n_open] : '\0';
    if (expected != bracket)
        fail_balance(self, bracket, expected);
}

static td_token lex_operator(td_parser *self) {
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (!looking_at(self, self->at, operators[i].text))
            continue;
        td_token token = {.kind = operators[i].kind,
                          .position = (uint32_t)self->at,
                          .text = operators[i].text,
                          .bytes = (uint32_t)strlen(operators[i].text)};
        if (token.bytes == 1)
            balance(self, operators[i].text[0]);
        self->at += token.bytes;
        return token;
    }
    fail_at(self, self->at, "unexpected character");
}

static td_token lex_tag(td_parser *self) {
    bool is_print = self->state == TD_LEX_PRINT;
    self->at = skip_space(self, self->at);
    if (self->at >= self->bytes)
        fail_at(self, self->bytes, "the template ends inside of a tag");
    size_t end = self->n_open > 0 ? 0 : tag_end(self, self->at, is_print ? "}}" : "%}", !is_print);
    if (end > 0) {
        td_token token = {.kind = is_print ? TD_TOKEN_PRINT_END : TD_TOKEN_BLOCK_END,
                          .position = (uint32_t)self->at};
        self->at = end;
        self->state = TD_LEX_TEXT;
        return token;
    }
    char first = self->source[self->at];
    if (is_digit(first))
        return lex_number(self);
    if (is_name_start((unsigned char)first))
        return lex_name(self);
    return first == '\'' || first == '"' ? lex_string(self) : lex_operator(self);
}

td_token td_lex(td_parser *self) {
    return self->state == TD_LEX_TEXT ? lex_text(self) : lex_tag(self);
}
