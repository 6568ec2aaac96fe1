#include "runtime/train/report_text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/report.h"

static int has_room(td_report_text *self, size_t bytes) {
    if (self->is_out_of_memory || self->capacity - self->bytes > bytes)
        return !self->is_out_of_memory;
    size_t capacity = 2 * self->capacity + bytes + 256;
    char *grown = realloc(self->text, capacity);
    self->is_out_of_memory = !grown;
    if (!grown)
        return 0;
    self->text = grown;
    self->capacity = capacity;
    return 1;
}

void td_report_add(td_report_text *self, const char *text, size_t bytes) {
    if (!has_room(self, bytes))
        return;
    memcpy(self->text + self->bytes, text, bytes);
    self->bytes += bytes;
    self->text[self->bytes] = '\0';
}

void td_report_print(td_report_text *self, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int chars = vsnprintf(NULL, 0, format, arguments);
    if (chars >= 0 && has_room(self, (size_t)chars)) {
        vsnprintf(self->text + self->bytes, (size_t)chars + 1, format, again);
        self->bytes += (size_t)chars;
    }
    va_end(again);
    va_end(arguments);
}

// Bytes of the character, and which it is.
static size_t next_character(const char *text, uint32_t *out) {
    unsigned char first = (unsigned char)text[0];
    size_t bytes = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    uint32_t value = bytes == 1 ? first : first & (0x7Fu >> bytes);
    for (size_t i = 1; i < bytes; i++) {
        if (((unsigned char)text[i] & 0xC0) != 0x80) { // no UTF-8
            *out = 0xFFFD;
            return i;
        }
        value = value << 6 | ((unsigned char)text[i] & 0x3F);
    }
    *out = value;
    return bytes;
}

// Controls, separators of lines, marks of direction, and others without a width.
static int is_invisible(uint32_t c) {
    return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0xAD || c == 0x61C ||
           (c >= 0x200B && c <= 0x200F) || (c >= 0x2028 && c <= 0x202E) ||
           (c >= 0x2060 && c <= 0x206F) || c == 0xFEFF || (c >= 0xE0000 && c <= 0xE0FFF);
}

static int is_one_of(uint32_t c, const char *list) {
    return c > 0 && c < 0x80 && strchr(list, (int)c);
}

// Punctuation that only makes links (www.a, http:) or templates ({{, {%) stays as it is elsewhere.
static int is_plain(uint32_t before, uint32_t c, uint32_t after) {
    if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'))
        return 1;
    if (c == '.')
        return !is_one_of(before, "wW");
    if (c == ':')
        return !is_one_of(after, "/");
    if (c == '{' || c == '}')
        return !is_one_of(before, "{}%#") && !is_one_of(after, "{}%#");
    return is_one_of(c, " \"'(),;?%=/-");
}

static void add_character(td_report_text *self, const char *text, size_t bytes, uint32_t c,
                          uint32_t before) {
    if (c == '\n')
        td_report_print(self, "<br>");
    else if (c == 0xFFFD && bytes != 3)
        td_report_print(self, "&#xFFFD;");
    else if (is_invisible(c))
        td_report_print(self, "&#92;u&#123;%02X&#125;", (unsigned)c);
    else if (c < 0x80 && !is_plain(before, c, (unsigned char)text[bytes]))
        td_report_print(self, "&#%u;", (unsigned)c);
    else
        td_report_add(self, text, bytes);
}

void td_report_add_cell(td_report_text *self, const char *text) {
    uint32_t c, before = 0;
    if (text[0] == '\0')
        td_report_print(self, "&nbsp;");
    while (*text) {
        size_t bytes = next_character(text, &c);
        // Spaces at the border and in rows would be lost.
        if (c == ' ' && (text[1] == ' ' || text[1] == '\0'))
            td_report_print(self, "&nbsp;");
        else
            add_character(self, text, bytes, c, before);
        before = c;
        text += bytes;
    }
}

char *td_markdown_cell(const char *text) {
    td_report_text out = {0};
    td_report_add(&out, "", 0);
    td_report_add_cell(&out, text);
    if (!out.is_out_of_memory)
        return out.text;
    free(out.text);
    return NULL;
}
