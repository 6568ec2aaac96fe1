#include "runtime/data/lines.h"
#include "unit/scratch.h"

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

int main(void) {
    TEST(ends_of_lines_are_removed);
    TEST(a_byte_order_mark_is_removed);
    TEST(empty_files_have_no_lines);
    TEST(long_lines_are_passed_over);
    TEST(lines_beyond_the_buffer_are_read);
    TEST(missing_files_and_folders_are_refused);
    return test_report();
}
