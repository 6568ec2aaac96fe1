#include "runtime/data/lines.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/files.h"
#include "runtime/core/progress.h"
#include "runtime/data/lines_internal.h"

enum { FIRST_CAPACITY = 1 << 20, WHERE_BYTES = TD_PATH_MAX + 64 };

void td_line_where(const char *path, int is_list, int64_t number, char *out, size_t room) {
    snprintf(out, room, is_list ? "%s: element %lld" : "%s:%lld", path, (long long)number);
}

// Moves the unread bytes to the front and, when the buffer is full of them, doubles it.
static td_status make_room(td_line_reader *reader, const char *where) {
    size_t left = reader->end - reader->begin;
    memmove(reader->buffer, reader->buffer + reader->begin, left);
    reader->begin = 0;
    reader->end = left;
    if (left < reader->capacity)
        return TD_OK;
    char *grown = realloc(reader->buffer, reader->capacity * 2);
    if (!grown)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for a row of more than %zu bytes", where,
                       left);
    reader->buffer = grown;
    reader->capacity *= 2;
    return TD_OK;
}

static td_status fill(td_line_reader *reader) {
    char where[WHERE_BYTES];
    size_t got;
    td_line_where(reader->path, reader->is_list, reader->number + 1, where, sizeof where);
    TD_TRY(make_room(reader, where));
    TD_TRY(td_decoder_read(reader->decoder, where, reader->buffer + reader->end,
                           reader->capacity - reader->end, &got));
    reader->end += got;
    reader->is_at_end = got == 0;
    td_progress_tick();
    return TD_OK;
}

static int is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

// Passes over white space. At the end of the file nothing is left unread.
static td_status skip_spaces(td_line_reader *reader) {
    for (;;) {
        while (reader->begin < reader->end && is_space(reader->buffer[reader->begin]))
            reader->begin++;
        if (reader->begin < reader->end || reader->is_at_end)
            return TD_OK;
        TD_TRY(fill(reader));
    }
}

// Takes the byte order mark away, and tells a list from lines by the first character that is no
// white space, if it comes early. A list is read from behind its bracket. No more is read for that
// than needed: damage further on is the business of the rows there.
static td_status find_form(td_line_reader *reader) {
    size_t mark = 0;
    while (reader->end < 3 && !reader->is_at_end)
        TD_TRY(fill(reader));
    if (reader->end >= 3 && memcmp(reader->buffer, "\xef\xbb\xbf", 3) == 0)
        mark = 3;
    size_t first = mark;
    for (;; first++) {
        if (first == reader->end && !reader->is_at_end && reader->end < reader->capacity)
            TD_TRY(fill(reader));
        if (first >= reader->end || !is_space(reader->buffer[first]))
            break;
    }
    reader->is_list = first < reader->end && reader->buffer[first] == '[';
    reader->begin = reader->is_list ? first + 1 : mark;
    return TD_OK;
}

static td_status start(td_line_reader *reader) {
    TD_TRY(td_decoder_open(reader->path, &reader->decoder));
    reader->capacity = FIRST_CAPACITY;
    reader->buffer = malloc(reader->capacity);
    if (!reader->buffer)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to read it", reader->path);
    return TD_OK;
}

td_status td_line_reader_open(td_line_reader *reader, const char *path, size_t max_bytes) {
    *reader = (td_line_reader){.path = path, .max_bytes = max_bytes};
    td_status status = start(reader);
    if (status != TD_OK)
        td_line_reader_close(reader);
    return status;
}

void td_line_reader_close(td_line_reader *reader) {
    td_decoder_close(reader->decoder);
    free(reader->buffer);
    *reader = (td_line_reader){0};
}

// Reads on until the buffer holds a whole line or the rest of the file. A line that grows too long
// is thrown away as it comes.
static td_status find_line(td_line_reader *reader, size_t *out_bytes, int *out_too_long) {
    size_t searched = 0;
    *out_too_long = 0;
    for (;;) {
        const char *start = reader->buffer + reader->begin;
        size_t left = reader->end - reader->begin;
        const char *end = memchr(start + searched, '\n', left - searched);
        if (end || reader->is_at_end) {
            *out_bytes = end ? (size_t)(end - start) : left;
            *out_too_long |= *out_bytes > reader->max_bytes;
            return TD_OK;
        }
        searched = left;
        if (left > reader->max_bytes) {
            *out_too_long = 1;
            reader->begin = reader->end;
            searched = 0;
        }
        TD_TRY(fill(reader));
    }
}

static td_status next_line(td_line_reader *reader, td_line *out, int *out_found) {
    size_t bytes;
    int too_long;
    TD_TRY(find_line(reader, &bytes, &too_long));
    int is_ended = reader->begin + bytes < reader->end; // by "\n", not by the end of the file
    *out_found = bytes > 0 || is_ended || too_long;
    if (!*out_found)
        return TD_OK;
    *out = (td_line){.text = reader->buffer + reader->begin,
                     .bytes = too_long ? 0 : bytes,
                     .is_too_long = too_long};
    reader->begin += bytes + (size_t)is_ended;
    if (out->bytes > 0 && out->text[out->bytes - 1] == '\r')
        out->bytes--;
    reader->number++;
    return TD_OK;
}

typedef struct element_scan {
    size_t searched; // bytes from reader->begin on
    int depth, in_string, is_escaped;
    int too_long;
} element_scan;

// Up to the comma or bracket behind the element, if it is in the buffer. What stands inside is the
// parser's to judge.
static int scan_element(const td_line_reader *reader, element_scan *scan) {
    const char *at = reader->buffer + reader->begin;
    size_t left = reader->end - reader->begin;
    for (; scan->searched < left; scan->searched++) {
        char c = at[scan->searched];
        if (scan->in_string) {
            if (scan->is_escaped)
                scan->is_escaped = 0;
            else if (c == '\\')
                scan->is_escaped = 1;
            else if (c == '"')
                scan->in_string = 0;
        } else if (scan->depth == 0 && (c == ',' || c == ']' || c == '}')) {
            return 1;
        } else {
            scan->in_string = c == '"';
            scan->depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        }
    }
    return 0;
}

static td_status fail_list(const td_line_reader *reader, const char *what) {
    return td_fail(TD_ERR_DATA, "%s: element %lld: %s", reader->path, (long long)reader->number + 1,
                   what);
}

static td_status find_element(td_line_reader *reader, size_t *out_bytes, int *out_too_long) {
    element_scan scan = {0};
    while (!scan_element(reader, &scan)) {
        if (reader->is_at_end)
            return fail_list(reader, "the file ends inside the JSON list: it is truncated");
        if (scan.searched > reader->max_bytes) {
            scan.too_long = 1;
            reader->begin = reader->end;
            scan.searched = 0;
        }
        TD_TRY(fill(reader));
    }
    *out_bytes = scan.searched;
    *out_too_long = scan.too_long || scan.searched > reader->max_bytes;
    return TD_OK;
}

// Behind the bracket that closes the list.
static td_status finish_list(td_line_reader *reader) {
    reader->begin++;
    TD_TRY(skip_spaces(reader));
    if (reader->begin < reader->end)
        return fail_list(reader, "text after the JSON list that the file begins with");
    reader->is_at_end = 1;
    return TD_OK;
}

// Between elements: a comma before all but the first. *out_found 0 behind the list.
static td_status enter_element(td_line_reader *reader, int *out_found) {
    *out_found = 0;
    TD_TRY(skip_spaces(reader));
    if (reader->begin == reader->end)
        return reader->is_list_closed
                   ? TD_OK
                   : fail_list(reader, "the file ends inside the JSON list: it is truncated");
    char c = reader->buffer[reader->begin];
    if (c == ']') {
        reader->is_list_closed = 1;
        return finish_list(reader);
    }
    if (reader->number > 0) {
        if (c != ',')
            return fail_list(reader, "malformed JSON: ',' or ']' expected before it");
        reader->begin++;
        TD_TRY(skip_spaces(reader));
    }
    *out_found = 1;
    return TD_OK;
}

static td_status next_element(td_line_reader *reader, td_line *out, int *out_found) {
    size_t bytes;
    int too_long;
    TD_TRY(enter_element(reader, out_found));
    if (!*out_found)
        return TD_OK;
    TD_TRY(find_element(reader, &bytes, &too_long));
    const char *text = reader->buffer + reader->begin;
    reader->begin += bytes;
    while (bytes > 0 && is_space(text[bytes - 1]))
        bytes--;
    if (bytes == 0 && !too_long)
        return fail_list(reader, "malformed JSON: a value expected");
    *out = (td_line){.text = text, .bytes = too_long ? 0 : bytes, .is_too_long = too_long};
    reader->number++;
    return TD_OK;
}

td_status td_line_reader_next(td_line_reader *reader, td_line *out, int *out_found) {
    if (reader->number == 0 && !reader->is_form_known) {
        TD_TRY(find_form(reader));
        reader->is_form_known = 1;
    }
    return reader->is_list ? next_element(reader, out, out_found)
                           : next_line(reader, out, out_found);
}
