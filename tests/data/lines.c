#include <zlib.h>
#include <zstd.h>

#include "runtime/data/lines.h"
#include "unit/scratch.h"

// Bytes for a file, in pieces.
typedef struct packed_bytes {
    unsigned char data[8 << 20];
    size_t count;
} packed_bytes;

static packed_bytes packed; // one at a time

static const char *write_bytes(const char *name) {
    const char *path = scratch(name);
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL);
    REQUIRE(fwrite(packed.data, 1, packed.count, file) == packed.count);
    REQUIRE(fclose(file) == 0);
    return path;
}

static void add_raw(const char *data, size_t count) {
    REQUIRE(packed.count + count <= sizeof packed.data);
    memcpy(packed.data + packed.count, data, count);
    packed.count += count;
}

// A gzip member.
static void add_gzip(const char *text, size_t count) {
    z_stream zlib = {.next_in = (unsigned char *)(uintptr_t)text,
                     .avail_in = (unsigned)count,
                     .next_out = packed.data + packed.count,
                     .avail_out = (unsigned)(sizeof packed.data - packed.count)};
    REQUIRE(deflateInit2(&zlib, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    REQUIRE(deflate(&zlib, Z_FINISH) == Z_STREAM_END);
    packed.count += zlib.total_out;
    deflateEnd(&zlib);
}

// A zstd frame with a checksum.
static void add_zstd(const char *text, size_t count, int window_log) {
    ZSTD_CCtx *context = ZSTD_createCCtx();
    REQUIRE(context != NULL);
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    if (window_log > 0) {
        ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window_log);
        ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, 0);
    }
    ZSTD_inBuffer input = {text, count, 0};
    ZSTD_outBuffer output = {packed.data, sizeof packed.data, packed.count};
    ZSTD_compressStream2(context, &output, &input, ZSTD_e_continue);
    REQUIRE(ZSTD_compressStream2(context, &output, &input, ZSTD_e_end) == 0);
    packed.count = output.pos;
    ZSTD_freeCCtx(context);
}

static void add_compressed(int is_zstd, const char *text, size_t count) {
    if (is_zstd)
        add_zstd(text, count, 0);
    else
        add_gzip(text, count);
}

// Reads the file and checks its lines; NULL stands for one that is too long, numbers are those in
// the file.
static void check_lines(const char *path, size_t max_bytes, const char *const *expected,
                        int64_t count) {
    td_line_reader reader;
    td_line line = {0};
    int found;
    REQUIRE(td_line_reader_open(&reader, path, max_bytes) == TD_OK);
    for (int64_t i = 0; i < count; i++) {
        REQUIRE(td_line_reader_next(&reader, &line, &found) == TD_OK);
        CHECK(found);
        CHECK_INT(reader.number, i + 1);
        CHECK_INT(line.is_too_long, expected[i] == NULL);
        const char *text = expected[i] ? expected[i] : "";
        if (CHECK(line.bytes == strlen(text)))
            CHECK(memcmp(line.text, text, line.bytes) == 0);
    }
    REQUIRE(td_line_reader_next(&reader, &line, &found) == TD_OK);
    CHECK(!found);
    td_line_reader_close(&reader);
}

static void ends_of_lines_are_removed(void) {
    const char *const lines[] = {"one", "two", "", "three\r3", "four"};
    check_lines(scratch_file("a", "one\ntwo\r\n\nthree\r3\r\nfour"), 100, lines, 5);
    check_lines(scratch_file("b", "one\ntwo\r\n\nthree\r3\r\nfour\n"), 100, lines, 5);
}

static void a_byte_order_mark_is_removed(void) {
    const char *const lines[] = {"one", "\xef\xbb\xbftwo"};
    check_lines(scratch_file("mark", "\xef\xbb\xbfone\n\xef\xbb\xbftwo\n"), 100, lines, 2);
}

static void empty_files_have_no_lines(void) {
    const char *const lines[] = {"", ""};
    check_lines(scratch_file("empty", ""), 100, lines, 0);
    check_lines(scratch_file("blank", "\n\n"), 100, lines, 2);
}

static void long_lines_are_passed_over(void) {
    const char *const lines[] = {"0123456789", NULL, "x", NULL};
    check_lines(scratch_file("long", "0123456789\n0123456789a\nx\n0123456789ab"), 10, lines, 4);
}

// Longer than the reader's buffer, so that it is thrown away in pieces or kept by growing.
static void lines_beyond_the_buffer_are_read(void) {
    size_t bytes = 3 << 20;
    char *text = malloc(bytes + 8);
    REQUIRE(text != NULL);
    memset(text, 'a', bytes);
    memcpy(text + bytes, "\nb\n", 4);
    const char *path = scratch_file("beyond", text);
    const char *const passed_over[] = {NULL, "b"};
    check_lines(path, 1000, passed_over, 2);
    text[bytes] = '\0';
    const char *const kept[] = {text, "b"};
    check_lines(path, bytes, kept, 2);
    free(text);
}

static void missing_files_and_folders_are_refused(void) {
    td_line_reader reader;
    CHECK(td_line_reader_open(&reader, scratch("missing"), 10) == TD_ERR_DATA);
    CHECK_MESSAGE("missing");
    CHECK(td_line_reader_open(&reader, "/", 10) == TD_ERR_DATA);
    CHECK_MESSAGE("regular file");
}

// Reads to the end or the failure; counts the rows before it.
static td_status read_rows(const char *path, size_t max_bytes, int64_t *out_rows) {
    td_line_reader reader;
    td_line line;
    int found = 1;
    *out_rows = 0;
    TD_TRY(td_line_reader_open(&reader, path, max_bytes));
    td_status status = TD_OK;
    while (status == TD_OK && found) {
        status = td_line_reader_next(&reader, &line, &found);
        *out_rows += status == TD_OK && found;
    }
    td_line_reader_close(&reader);
    return status;
}

static void check_fails(const char *path, int64_t rows_before, const char *part) {
    int64_t rows;
    CHECK_INT(read_rows(path, 1 << 20, &rows), TD_ERR_DATA);
    CHECK_INT(rows, rows_before);
    CHECK_MESSAGE(part);
}

// The name says nothing, members and frames join without a line end between them, and empty ones,
// frames to be skipped and gzip's padding are nothing.
static void compressed_files_are_read_as_their_text(void) {
    const char *const lines[] = {"one", "twothree", "four"};
    for (int is_zstd = 0; is_zstd < 2; is_zstd++) {
        packed.count = 0;
        add_compressed(is_zstd, "\xef\xbb\xbfone\ntwo", 10);
        add_compressed(is_zstd, "", 0);
        add_compressed(is_zstd, "three\r\nfour\n", 12);
        if (is_zstd)
            add_raw("\x5e\x2a\x4d\x18\x02\0\0\0xy", 10);
        else
            add_raw("\0\0\0\0\0\0", 6);
        check_lines(write_bytes("packed"), 100, lines, 3);
        packed.count = 0;
        add_compressed(is_zstd, "", 0);
        check_lines(write_bytes("packed"), 100, lines, 0);
    }
}

// Many times the buffers, which begin and end anywhere in it.
static void long_compressed_files_are_read_whole(void) {
    enum { ROWS = 60000 };
    char *text = malloc(ROWS * 64), *at = text;
    REQUIRE(text != NULL);
    for (int row = 0; row < ROWS; row++)
        at +=
            sprintf(at, "row %d %.*s\n", row, row % 40, "0123456789012345678901234567890123456789");
    for (int is_zstd = 0; is_zstd < 2; is_zstd++) {
        size_t half = (size_t)(at - text) / 2;
        td_line_reader reader;
        td_line line;
        int found;
        packed.count = 0;
        add_compressed(is_zstd, text, half);
        add_compressed(is_zstd, text + half, (size_t)(at - text) - half);
        REQUIRE(td_line_reader_open(&reader, write_bytes("packed"), 100) == TD_OK);
        const char *expected = text;
        for (int row = 0; row < ROWS; row++) {
            size_t bytes = strcspn(expected, "\n");
            REQUIRE(td_line_reader_next(&reader, &line, &found) == TD_OK && found);
            REQUIRE(line.bytes == bytes && memcmp(line.text, expected, bytes) == 0);
            expected += bytes + 1;
        }
        CHECK(td_line_reader_next(&reader, &line, &found) == TD_OK && !found);
        td_line_reader_close(&reader);
    }
    free(text);
}

// Rows that differ, so that they do not compress to nothing: one of 8 bytes per line.
static char *random_rows(int n_rows) {
    char *text = malloc((size_t)n_rows * 8 + 1);
    uint32_t state = 1;
    REQUIRE(text != NULL);
    for (int i = 0; i < n_rows; i++) {
        state = state * 1664525 + 1013904223;
        sprintf(text + (size_t)i * 8, "%07u\n", state >> 10);
    }
    return text;
}

static void truncated_data_is_named_with_its_line(void) {
    char *text = random_rows(100000);
    for (int is_zstd = 0; is_zstd < 2; is_zstd++) {
        int64_t rows;
        char part[64];
        packed.count = 0;
        add_compressed(is_zstd, text, 100000 * 8);
        packed.count /= 2;
        const char *path = write_bytes("half");
        CHECK_INT(read_rows(path, 1 << 20, &rows), TD_ERR_DATA);
        CHECK(rows > 10000 && rows < 90000);
        snprintf(part, sizeof part, "half:%lld: the %s data ends too early", (long long)rows + 1,
                 is_zstd ? "zstd" : "gzip");
        CHECK_MESSAGE(part);
    }
    free(text);
}

static void every_truncation_is_found(void) {
    for (int is_zstd = 0; is_zstd < 2; is_zstd++) {
        packed.count = 0;
        add_compressed(is_zstd, "one\ntwo\n", 8);
        size_t whole = packed.count;
        add_compressed(is_zstd, "three\n", 6);
        for (size_t count = packed.count - 1; count > 8; count--) {
            int64_t rows;
            packed.count = count;
            td_status status = read_rows(write_bytes("cut"), 100, &rows);
            CHECK_INT(status, count == whole ? TD_OK : TD_ERR_DATA);
            td_error_clear();
        }
    }
}

static void damaged_data_is_refused(void) {
    char *text = random_rows(20000);
    for (int is_zstd = 0; is_zstd < 2; is_zstd++) {
        int64_t rows;
        packed.count = 0;
        add_compressed(is_zstd, text, 20000 * 8);
        size_t count = packed.count;
        packed.data[count / 2] ^= 0x10;
        CHECK_INT(read_rows(write_bytes("damaged"), 1 << 20, &rows), TD_ERR_DATA);
        CHECK_MESSAGE(is_zstd ? "corrupt zstd data (" : "corrupt gzip data (");
        // The checksum behind the last row.
        packed.data[count / 2] ^= 0x10;
        packed.data[count - (is_zstd ? 1 : 5)] ^= 1;
        CHECK_INT(read_rows(write_bytes("damaged"), 1 << 20, &rows), TD_ERR_DATA);
        CHECK_MESSAGE("corrupt");
        packed.data[count - (is_zstd ? 1 : 5)] ^= 1;
        add_raw("something", 9);
        check_fails(write_bytes("more"), 20000, "followed by something else");
    }
    free(text);
}

static void wide_zstd_windows_are_refused(void) {
    packed.count = 0;
    add_zstd("one\n", 4, 27);
    int64_t rows;
    CHECK_INT(read_rows(write_bytes("wide"), 100, &rows), TD_OK);
    CHECK_INT(rows, 1);
    packed.count = 0;
    add_zstd("one\n", 4, 28);
    check_fails(write_bytes("wide"), 0, "window of more than 128 MiB");
}

// A few KB that hold 200 MB: passed over as one long row, in the memory of the limit.
static void bombs_are_one_long_row(void) {
    enum { CHUNK = 1 << 20 };
    char *zeros = calloc(CHUNK, 1);
    REQUIRE(zeros != NULL);
    memset(zeros, 'a', CHUNK);
    packed.count = 0;
    for (int i = 0; i < 200; i++)
        add_zstd(zeros, CHUNK, 0);
    add_zstd("\nnext\n", 6, 0);
    free(zeros);
    td_line_reader reader;
    td_line line;
    int found;
    REQUIRE(td_line_reader_open(&reader, write_bytes("bomb"), 3 << 20) == TD_OK);
    REQUIRE(td_line_reader_next(&reader, &line, &found) == TD_OK);
    CHECK(found && line.is_too_long);
    CHECK(reader.capacity <= 8 << 20);
    REQUIRE(td_line_reader_next(&reader, &line, &found) == TD_OK);
    CHECK(found && !line.is_too_long && line.bytes == 4 && reader.number == 2);
    td_line_reader_close(&reader);
}

static void other_formats_are_named(void) {
    static const struct {
        const char *bytes;
        size_t count;
        const char *part;
    } cases[] = {
        {"\xfd\x37zXZ\0\0\x04", 8, "other.jsonl: is xz data"},
        {"BZh91AY&SY", 10, "bzip2"},
        {"PK\x03\x04\x14\0\0\0", 8, "zip archive"},
        {"PAR1\x15\x04\x15\x20", 8, "Parquet"},
        {"ARROW1\0\0", 8, "Arrow"},
        {"\xff\xfe{\0\"\0", 6, "UTF-16"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        packed.count = 0;
        add_raw(cases[i].bytes, cases[i].count);
        check_fails(write_bytes("other.jsonl"), 0, cases[i].part);
    }
}

static void lists_are_read_element_by_element(void) {
    const char *const elements[] = {"{\"a\": \"],\\\"}[\\\\\"}", "[1,[2]]", "3",
                                    "{\n \"b\":\n{}\n}",         NULL,      "\"x\""};
    const char *text = "\xef\xbb\xbf \n[ {\"a\": \"],\\\"}[\\\\\"} ,\n\t[1,[2]],3\r\n,{\n "
                       "\"b\":\n{}\n},\"01234567890123456789\",\"x\"\n]\n\n";
    check_lines(scratch_file("list.json", text), 19, elements, 6);
    check_lines(scratch_file("list.json", " [ ] "), 19, elements, 0);
    packed.count = 0;
    add_gzip(text, strlen(text));
    check_lines(write_bytes("list.json.gz"), 19, elements, 6);
}

static void bombs_are_one_long_element(void) {
    enum { CHUNK = 1 << 20 };
    char *text = malloc(CHUNK);
    REQUIRE(text != NULL);
    memset(text, '[', CHUNK);
    packed.count = 0;
    add_zstd("[1,\"", 4, 0);
    for (int i = 0; i < 100; i++)
        add_zstd(text, CHUNK, 0);
    add_zstd("\",2]", 4, 0);
    free(text);
    td_line_reader reader;
    td_line line;
    int found;
    REQUIRE(td_line_reader_open(&reader, write_bytes("bomb"), 3 << 20) == TD_OK);
    for (int i = 0; i < 3; i++) {
        REQUIRE(td_line_reader_next(&reader, &line, &found) == TD_OK && found);
        CHECK_INT(line.is_too_long, i == 1);
    }
    CHECK(line.bytes == 1 && line.text[0] == '2');
    CHECK(reader.capacity <= 8 << 20);
    td_line_reader_close(&reader);
}

// Elements longer than the buffer, kept by growing or thrown away in pieces.
static void long_elements_are_read_or_passed_over(void) {
    size_t bytes = 3 << 20;
    char *text = malloc(bytes + 32);
    REQUIRE(text != NULL);
    memset(text, 'a', bytes);
    memcpy(text, "[\"", 2);
    strcpy(text + bytes, "\", [2]]");
    const char *path = scratch_file("long.json", text);
    const char *const passed_over[] = {NULL, "[2]"};
    check_lines(path, 1000, passed_over, 2);
    text[bytes + 1] = '\0';
    const char *const kept[] = {text + 1, "[2]"};
    check_lines(path, bytes, kept, 2);
    free(text);
}

static void malformed_lists_are_refused(void) {
    static const struct {
        const char *text;
        int64_t rows;
        const char *part;
    } cases[] = {
        {"[{}, {}", 1, "bad.json: element 2: the file ends inside the JSON list"},
        {"[{}, ", 1, "element 2: the file ends inside"},
        {"[{},\n{\"a\": \"", 1, "element 2: the file ends inside"},
        {"[", 0, "element 1: the file ends inside"},
        {"[{}", 0, "element 1: the file ends inside"},
        {"[{},]", 1, "element 2: malformed JSON: a value expected"},
        {"[,{}]", 0, "element 1: malformed JSON: a value expected"},
        {"[{}}]", 1, "element 2: malformed JSON: ',' or ']' expected"},
        {"[{}] [{}]", 1, "element 2: text after the JSON list"},
        {"[1]\n[2]\n", 1, "element 2: text after the JSON list"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_fails(scratch_file("bad.json", cases[i].text), cases[i].rows, cases[i].part);
}

static void rows_are_called_by_their_place(void) {
    char where[64];
    td_line_where("a.jsonl", 0, 7, where, sizeof where);
    CHECK_STRING(where, "a.jsonl:7");
    td_line_where("a.json", 1, 7, where, sizeof where);
    CHECK_STRING(where, "a.json: element 7");
    td_line_where("a.json", 1, 7, where, 5);
    CHECK_STRING(where, "a.js");
}

int main(void) {
    TEST(ends_of_lines_are_removed);
    TEST(a_byte_order_mark_is_removed);
    TEST(empty_files_have_no_lines);
    TEST(long_lines_are_passed_over);
    TEST(lines_beyond_the_buffer_are_read);
    TEST(missing_files_and_folders_are_refused);
    TEST(compressed_files_are_read_as_their_text);
    TEST(long_compressed_files_are_read_whole);
    TEST(truncated_data_is_named_with_its_line);
    TEST(every_truncation_is_found);
    TEST(damaged_data_is_refused);
    TEST(wide_zstd_windows_are_refused);
    TEST(bombs_are_one_long_row);
    TEST(other_formats_are_named);
    TEST(lists_are_read_element_by_element);
    TEST(bombs_are_one_long_element);
    TEST(long_elements_are_read_or_passed_over);
    TEST(malformed_lists_are_refused);
    TEST(rows_are_called_by_their_place);
    return test_report();
}
