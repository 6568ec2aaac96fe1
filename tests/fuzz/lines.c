// libFuzzer target: a data file, read line by line, as it is or compressed. Whatever its bytes, the
// lines are within their limit and without line ends, or it is
// refused.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data/lines.h"
#include "tests/fuzz/support/fuzz.h"

enum { MOST_LINES = 1 << 16 };

typedef struct reading {
    td_status status;
    int64_t lines, too_long;
    size_t bytes;
} reading;

// Touches every byte, so that a sanitizer sees those that are not there.
static void read_bytes(const td_line *line) {
    static volatile unsigned char sum;
    for (size_t i = 0; i < line->bytes; i++)
        sum = (unsigned char)(sum + (unsigned char)line->text[i]);
}

static void check_line(const td_line *line, size_t max_bytes, int is_list) {
    fuzz_require(line->bytes <= max_bytes, "a line is within the limit");
    fuzz_require(!line->is_too_long || line->bytes == 0, "a line that is too long is empty");
    fuzz_require(is_list || line->bytes == 0 || !memchr(line->text, '\n', line->bytes),
                 "one line is read");
}

static void read_lines(td_line_reader *reader, size_t max_bytes, reading *out) {
    td_line line;
    int found = 1;
    while (out->lines < MOST_LINES) {
        out->status = td_line_reader_next(reader, &line, &found);
        if (out->status != TD_OK || !found)
            return;
        check_line(&line, max_bytes, reader->is_list);
        read_bytes(&line);
        out->lines++;
        out->too_long += line.is_too_long;
        out->bytes += line.bytes;
        fuzz_require(reader->number == out->lines, "lines are counted");
    }
}

static reading read_file(const char *path, size_t max_bytes) {
    td_line_reader reader;
    reading out = {0};
    out.status = td_line_reader_open(&reader, path, max_bytes);
    if (out.status == TD_OK) {
        read_lines(&reader, max_bytes, &out);
        td_line_reader_close(&reader);
    }
    fuzz_require(out.status == TD_OK || td_error_message()[0], "a refusal says why");
    td_error_clear();
    return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_write("rows.jsonl", data, size);
    const char *path = fuzz_path("rows.jsonl");
    reading all = read_file(path, 1 << 20), few = read_file(path, 16);
    fuzz_require(few.lines == all.lines || all.status != TD_OK || few.status != TD_OK,
                 "the limit does not change the number of lines");
    fuzz_require(few.bytes <= all.bytes || all.status != TD_OK, "and leaves lines out");
    return 0;
}
