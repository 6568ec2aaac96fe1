#include "runtime/data/sources.h"
#include "unit/scratch.h"

static void make_file(const char *name) {
    scratch_file(name, "{}\n");
}

// A folder "data" with files and folders in it, and the working folder around it.
static void make_tree(void) {
    REQUIRE(chdir(scratch("")) == 0);
    REQUIRE(td_folder_make("data/sub/deep") == TD_OK);
    REQUIRE(td_folder_make("data/.hidden") == TD_OK);
    REQUIRE(td_folder_make("data/d.jsonl") == TD_OK);
    REQUIRE(td_folder_make("none") == TD_OK);
    static const char *const names[] = {
        "data/b.jsonl",          "data/a.jsonl.gz",      "data/B.jsonl",
        "data/c.jsonl.zst",      "data/.a.jsonl",        "data/x.json",
        "data/README.md",        "data/x.jsonl.bak",     "data/sub/s.jsonl",
        "data/sub/deep/t.jsonl", "data/sub/deep/u.json", "data/.hidden/h.jsonl",
        "none/x.json",           "odd[1].jsonl",         "odd1.jsonl"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        make_file(names[i]);
    REQUIRE(symlink("data/b.jsonl", "link.jsonl") == 0);
    REQUIRE(symlink("..", "data/sub/up") == 0);
}

// Entries and expected files are lists with spaces between.
static char *split(const char *text, char *items[16], int *out_count) {
    char *copy = strdup(text);
    REQUIRE(copy != NULL);
    *out_count = 0;
    for (char *at = strtok(copy, " "); at; at = strtok(NULL, " "))
        items[(*out_count)++] = at;
    return copy;
}

static td_status expand(const char *entries, td_string_list *out) {
    char *items[16];
    td_string_list patterns = {.items = items};
    char *copy = split(entries, items, &patterns.count);
    td_status status = td_sources_expand(&patterns, out);
    free(copy);
    return status;
}

static void check_files(const char *entries, const char *expected) {
    td_string_list files = {0};
    char *items[16];
    int count;
    char *copy = split(expected, items, &count);
    if (!CHECK(expand(entries, &files) == TD_OK))
        fprintf(stderr, "    %s: %s\n", entries, td_error_message());
    CHECK_INT(files.count, count);
    for (int i = 0; i < count && i < files.count; i++)
        CHECK_STRING(files.items[i], items[i]);
    td_sources_fini(&files);
    free(copy);
    td_error_clear();
}

static void check_refused(const char *entries, td_status expected, const char *part) {
    td_string_list files = {0};
    CHECK_INT(expand(entries, &files), expected);
    CHECK(files.items == NULL);
    CHECK_MESSAGE(part);
    td_sources_fini(&files);
}

static void files_are_themselves_in_the_order_given(void) {
    check_files("data/x.json data/README.md data/.a.jsonl",
                "data/x.json data/README.md data/.a.jsonl");
    check_files("link.jsonl", "link.jsonl");
}

static void folders_are_their_data_files_in_order(void) {
    const char *files = "data/B.jsonl data/a.jsonl.gz data/b.jsonl data/c.jsonl.zst";
    check_files("data", files);
    check_files("data/", files);
    check_files("odd1.jsonl data/sub", "odd1.jsonl data/sub/s.jsonl");
}

static void patterns_match_files_in_order(void) {
    check_files("data/[ab]*", "data/a.jsonl.gz data/b.jsonl");
    check_files("data/?.jsonl", "data/B.jsonl data/b.jsonl");
    check_files("*/x.json", "data/x.json none/x.json");
    check_files("data/.*.jsonl", "data/.a.jsonl");
}

// A name that exists is no pattern.
static void brackets_in_names_are_brackets(void) {
    check_files("odd[1].jsonl", "odd[1].jsonl");
    check_files("odd[1-2].jsonl", "odd1.jsonl");
    REQUIRE(td_folder_make("a[1]*/b") == TD_OK);
    make_file("a[1]*/b/x.jsonl");
    check_files("**/b/x.jsonl", "./a[1]*/b/x.jsonl");
}

static void two_stars_are_any_folders(void) {
    check_files("data/**/*.json", "data/sub/deep/u.json data/x.json");
    check_files("data/**/deep/*", "data/sub/deep/t.jsonl data/sub/deep/u.json");
    check_files("data/sub/**", "data/sub/deep/t.jsonl data/sub/s.jsonl");
    check_files("**/u.json", "./data/sub/deep/u.json");
}

static void nothing_there_is_named(void) {
    check_refused("data/x.json missing.jsonl", TD_ERR_DATA,
                  "missing.jsonl: no such file or folder");
    check_refused("data/*.parquet", TD_ERR_DATA, "data/*.parquet: the pattern matches no file");
    check_refused("data/d*", TD_ERR_DATA, "data/d*: the pattern matches no file");
    check_refused("none", TD_ERR_DATA, "none: the folder has no *.jsonl");
    check_refused("data/**/z.json", TD_ERR_DATA, "matches no file");
    check_refused("nowhere/**", TD_ERR_DATA, "no such folder: nowhere");
    check_refused("data/**/x/**/y", TD_ERR_USAGE, "can stand in a pattern once");
    check_refused("d*/**", TD_ERR_USAGE, "must be a plain folder");
    check_refused("/dev/null", TD_ERR_DATA, "no regular file");
}

static void a_file_named_twice_is_refused(void) {
    check_refused("data/b.jsonl data/b.jsonl", TD_ERR_DATA, "named twice");
    check_refused("data data/?.jsonl", TD_ERR_DATA,
                  "data/B.jsonl: named twice, by \"data\" and by \"data/?.jsonl\"");
    check_refused("data/x.json link.jsonl data/../data/b.jsonl", TD_ERR_DATA,
                  "data/../data/b.jsonl: named twice");
}

int main(void) {
    make_tree();
    TEST(files_are_themselves_in_the_order_given);
    TEST(folders_are_their_data_files_in_order);
    TEST(patterns_match_files_in_order);
    TEST(brackets_in_names_are_brackets);
    TEST(two_stars_are_any_folders);
    TEST(nothing_there_is_named);
    TEST(a_file_named_twice_is_refused);
    REQUIRE(chdir("/") == 0);
    return test_report();
}
