#include "runtime/data/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"

enum { FIRST_CAPACITY = 1 << 20 };

td_status td_line_reader_open(td_line_reader *reader, const char *path, size_t max_bytes) {
    uint64_t bytes;
    *reader = (td_line_reader){.path = path, .file = -1, .max_bytes = max_bytes};
    TD_TRY(td_file_size(path, &bytes));
    reader->file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (reader->file < 0)
        return td_fail(TD_ERR_DATA, "%s: cannot open: %s", path, strerror(errno));
    reader->capacity = FIRST_CAPACITY;
    reader->buffer = malloc(reader->capacity);
    if (!reader->buffer) {
        td_line_reader_close(reader);
        return td_fail(TD_ERR_MEMORY, "%s: no memory to read it", path);
    }
    return TD_OK;
}

void td_line_reader_close(td_line_reader *reader) {
    if (reader->file >= 0)
        close(reader->file);
    free(reader->buffer);
    *reader = (td_line_reader){.file = -1};
}

// Moves the unread bytes to the front and, when the buffer is full of them, doubles it.
static td_status make_room(td_line_reader *reader) {
    size_t left = reader->end - reader->begin;
    memmove(reader->buffer, reader->buffer + reader->begin, left);
    reader->begin = 0;
    reader->end = left;
    if (left < reader->capacity)
        return TD_OK;
    char *grown = realloc(reader->buffer, reader->capacity * 2);
    if (!grown)
        return td_fail(TD_ERR_MEMORY, "%s:%lld: no memory for a line of more than %zu bytes",
                       reader->path, (long long)reader->number + 1, left);
    reader->buffer = grown;
    reader->capacity *= 2;
    return TD_OK;
}

static td_status fill(td_line_reader *reader) {
    ssize_t got;
    TD_TRY(make_room(reader));
    do
        got = read(reader->file, reader->buffer + reader->end, reader->capacity - reader->end);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return td_fail(TD_ERR_IO, "%s: cannot read: %s", reader->path, strerror(errno));
    reader->end += (size_t)got;
    reader->is_at_end = got == 0;
    return TD_OK;
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

static int has_mark(const td_line *line) {
    return line->bytes >= 3 && memcmp(line->text, "\xef\xbb\xbf", 3) == 0;
}

td_status td_line_reader_next(td_line_reader *reader, td_line *out, int *out_found) {
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
    if (reader->number++ == 0 && has_mark(out)) {
        out->text += 3;
        out->bytes -= 3;
    }
    return TD_OK;
}
