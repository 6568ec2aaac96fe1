// libFuzzer target: a data file, read line by line, as it is or compressed. Whatever its bytes, the
// lines are within their limit and without line ends, the same whenever it is read, or it is
// refused.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/hash.h"
#include "runtime/data/lines.h"
#include "tests/fuzz/support/fuzz.h"

enum { MOST_LINES = 1 << 16 };

typedef struct reading {
    td_status status;
    int64_t lines, too_long;
    size_t bytes;
    td_hash hash;
} reading;

static void check_line(const td_line *line, size_t max_bytes, int is_list) {
    fuzz_require(line->bytes <= max_bytes, "a line is within the limit");
    fuzz_require(!line->is_too_long || line->bytes == 0, "a line that is too long is empty");
    fuzz_require(is_list || line->bytes == 0 || !memchr(line->text, '\n', line->bytes),
                 "one line is read");
}

static void read_lines(td_line_reader *reader, size_t max_bytes, td_hasher *hasher, reading *out) {
    td_line line;
    int found = 1;
    while (out->lines < MOST_LINES) {
        out->status = td_line_reader_next(reader, &line, &found);
        if (out->status != TD_OK || !found)
            return;
        check_line(&line, max_bytes, reader->is_list);
        td_hasher_add(hasher, line.text, line.bytes);
        out->lines++;
        out->too_long += line.is_too_long;
        out->bytes += line.bytes;
        fuzz_require(reader->number == out->lines, "lines are counted");
    }
}

static reading read_file(const char *path, size_t max_bytes) {
    td_line_reader reader;
    td_hasher *hasher;
    reading out = {0};
    fuzz_require(td_hasher_create(&hasher) == TD_OK, "there is memory");
    out.status = td_line_reader_open(&reader, path, max_bytes);
    if (out.status == TD_OK) {
        read_lines(&reader, max_bytes, hasher, &out);
        td_line_reader_close(&reader);
    }
    fuzz_require(out.status == TD_OK || td_error_message()[0], "a refusal says why");
    td_error_clear();
    out.hash = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_write("rows.jsonl", data, size);
    const char *path = fuzz_path("rows.jsonl");
    reading all = read_file(path, 1 << 20), again = read_file(path, 1 << 20);
    reading few = read_file(path, 16);
    fuzz_require(all.status == again.status && all.lines == again.lines &&
                     all.bytes == again.bytes && td_hash_equal(all.hash, again.hash),
                 "the same again");
    fuzz_require(few.lines == all.lines || all.status != TD_OK || few.status != TD_OK,
                 "the limit does not change the number of lines");
    fuzz_require(few.bytes <= all.bytes || all.status != TD_OK, "and leaves lines out");
    return 0;
}
