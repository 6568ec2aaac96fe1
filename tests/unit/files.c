#include "runtime/core/files.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scratch.h"

static void check_content(const char *path, const char *expected) {
    char *text = NULL;
    size_t bytes = 0;
    CHECK_INT(td_file_read(path, 1000, &text, &bytes), TD_OK);
    CHECK_STRING(text, expected);
    CHECK_INT(bytes, strlen(expected));
    free(text);
}

static size_t count_entries(const char *folder) {
    char **names = NULL;
    size_t count = 0;
    CHECK_INT(td_folder_list(folder, &names, &count), TD_OK);
    td_names_free(names, count);
    return count;
}

static void paths_are_joined_and_bounded(void) {
    char out[TD_PATH_MAX], folder[TD_PATH_MAX];
    REQUIRE(td_path_join(out, "a", "b") == TD_OK);
    CHECK_STRING(out, "a/b");
    REQUIRE(td_path_join(out, "/", "b") == TD_OK);
    CHECK_STRING(out, "/b");
    memset(folder, 'x', sizeof folder);
    folder[TD_PATH_MAX - 3] = '\0';
    CHECK_INT(td_path_join(out, folder, "b"), TD_OK);
    CHECK_INT(td_path_join(out, folder, "bc"), TD_ERR_USAGE);
    CHECK_MESSAGE("longer");
}

static void only_plain_names_are_plain(void) {
    CHECK(td_path_is_plain_name("model.safetensors"));
    CHECK(td_path_is_plain_name("..."));
    CHECK(!td_path_is_plain_name(""));
    CHECK(!td_path_is_plain_name("."));
    CHECK(!td_path_is_plain_name(".."));
    CHECK(!td_path_is_plain_name("../x"));
    CHECK(!td_path_is_plain_name("/x"));
    CHECK(!td_path_is_plain_name("x/"));
}

static void reading_is_bounded(void) {
    char *text = NULL;
    size_t bytes = 0;
    const char *path = scratch_file("text", "hello");
    check_content(path, "hello");
    CHECK_INT(td_file_read(path, 5, &text, &bytes), TD_OK);
    free(text);
    CHECK_INT(td_file_read(path, 4, &text, &bytes), TD_ERR_DATA);
    CHECK_MESSAGE("at most 4");
    CHECK_INT(td_file_read(scratch("none"), 4, &text, &bytes), TD_ERR_DATA);
    CHECK_MESSAGE("No such file");
    CHECK_INT(td_file_read(scratch(""), 4, &text, &bytes), TD_ERR_DATA);
    CHECK_MESSAGE("not a regular file");
    uint64_t size = 0;
    CHECK_INT(td_file_size(path, &size), TD_OK);
    CHECK_INT(size, 5);
}

static void a_pipe_is_refused_and_does_not_hang(void) {
    char *text = NULL;
    REQUIRE(mkfifo(scratch("pipe"), 0600) == 0);
    CHECK_INT(td_file_read(scratch("pipe"), 10, &text, NULL), TD_ERR_DATA);
    CHECK_MESSAGE("not a regular file");
}

static void an_atomic_write_replaces_whole_files(void) {
    REQUIRE(td_folder_make(scratch("atomic")) == TD_OK);
    umask(0);
    CHECK_INT(td_file_write_atomic(scratch("atomic/f"), "old", 3), TD_OK);
    CHECK_INT(td_file_write_atomic(scratch("atomic/f"), "newer", 5), TD_OK);
    check_content(scratch("atomic/f"), "newer");
    CHECK_INT(td_file_write_atomic(scratch("atomic/empty"), NULL, 0), TD_OK);
    check_content(scratch("atomic/empty"), "");
    CHECK_INT(count_entries(scratch("atomic")), 2);
    struct stat info;
    REQUIRE(stat(scratch("atomic/f"), &info) == 0);
    CHECK_INT(info.st_mode & 0777, 0644);
    umask(022);
}

// Status of an atomic write of `bytes` in a child whose files may have at most 1000 bytes.
static int status_with_file_limit(const char *path, size_t bytes) {
    static char data[5000];
    fflush(NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        struct rlimit limit = {1000, 1000};
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
        _exit(td_file_write_atomic(path, data, bytes));
    }
    int status;
    REQUIRE(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void a_failed_atomic_write_leaves_the_old_file_alone(void) {
    REQUIRE(td_folder_make(scratch("failed/folder")) == TD_OK);
    REQUIRE(td_file_write_atomic(scratch("failed/f"), "old", 3) == TD_OK);
    CHECK_INT(status_with_file_limit(scratch("failed/f"), 900), TD_OK);
    REQUIRE(td_file_write_atomic(scratch("failed/f"), "old", 3) == TD_OK);
    CHECK_INT(status_with_file_limit(scratch("failed/f"), 2000), TD_ERR_IO);
    check_content(scratch("failed/f"), "old");
    CHECK_INT(td_file_write_atomic(scratch("failed/folder"), "x", 1), TD_ERR_IO);
    CHECK_MESSAGE("failed/folder");
    CHECK_INT(td_file_write_atomic(scratch("failed/none/f"), "x", 1), TD_ERR_IO);
    CHECK_MESSAGE("No such file");
    CHECK_INT(count_entries(scratch("failed")), 2);
}

static void folders_are_made_with_parents(void) {
    CHECK_INT(td_folder_make(scratch("a/b/c")), TD_OK);
    CHECK(td_path_is_folder(scratch("a/b/c")));
    CHECK_INT(td_folder_make(scratch("a/b/c")), TD_OK);
    CHECK_INT(td_folder_make(scratch("a/b//d/")), TD_OK);
    CHECK(td_path_is_folder(scratch("a/b/d")));
    scratch_file("a/file", "x");
    CHECK(td_path_exists(scratch("a/file")) && !td_path_is_folder(scratch("a/file")));
    CHECK_INT(td_folder_make(scratch("a/file")), TD_ERR_IO);
    CHECK_MESSAGE("a/file");
    CHECK_INT(td_folder_make(scratch("a/file/x")), TD_ERR_IO);
    CHECK_MESSAGE("a/file");
}

static void removal_does_not_follow_links(void) {
    REQUIRE(td_folder_make(scratch("keep")) == TD_OK);
    REQUIRE(td_folder_make(scratch("tree/sub/deep")) == TD_OK);
    scratch_file("keep/precious", "x");
    scratch_file("tree/sub/deep/f", "x");
    REQUIRE(symlink(scratch("keep"), scratch("tree/link")) == 0);
    REQUIRE(symlink(scratch("keep/precious"), scratch("tree/sub/link")) == 0);
    CHECK_INT(td_folder_remove_tree(scratch("tree")), TD_OK);
    CHECK(!td_path_exists(scratch("tree")));
    check_content(scratch("keep/precious"), "x");
    REQUIRE(symlink(scratch("keep"), scratch("outer")) == 0);
    CHECK_INT(td_folder_remove_tree(scratch("outer")), TD_OK);
    CHECK(!td_path_exists(scratch("outer")));
    check_content(scratch("keep/precious"), "x");
    CHECK_INT(td_folder_remove_tree(scratch("tree")), TD_OK);
}

// Files in a folder that others may have filled: what is there is neither followed nor written
// over.
static void traps_are_refused(void) {
    int file;
    uint64_t bytes;
    char *text;
    scratch_file("outside", "precious");
    REQUIRE(symlink(scratch("outside"), scratch("trap")) == 0);
    REQUIRE(link(scratch("outside"), scratch("second")) == 0);
    REQUIRE(mkfifo(scratch("queue"), 0600) == 0);
    CHECK(td_path_is_link(scratch("trap")) && !td_path_is_link(scratch("second")));
    CHECK_INT(td_file_read_no_link(scratch("trap"), 100, &text, NULL), TD_ERR_DATA);
    CHECK_MESSAGE("is a link");
    CHECK_INT(td_file_open(scratch("trap"), 0, &file, &bytes), TD_ERR_DATA);
    CHECK_MESSAGE("is a link");
    CHECK_INT(td_file_open(scratch("queue"), 1, &file, &bytes), TD_ERR_DATA);
    CHECK_MESSAGE("not a regular file");
    CHECK_INT(td_file_open_append(scratch("trap"), &file), TD_ERR_IO);
    CHECK_MESSAGE("is a link");
    CHECK_INT(td_file_open_append(scratch("second"), &file), TD_ERR_IO);
    CHECK_MESSAGE("hard link");
    CHECK_INT(td_file_open_append(scratch("queue"), &file), TD_ERR_IO);
    CHECK_MESSAGE("queue");
    CHECK_INT(td_folder_make_new(scratch("trap")), TD_ERR_IO);
    CHECK_MESSAGE("trap");
    CHECK_INT(td_file_write_atomic(scratch("trap"), "new", 3), TD_OK); // in the place of the link
    CHECK(!td_path_is_link(scratch("trap")));
    check_content(scratch("trap"), "new");
    check_content(scratch("outside"), "precious");
}

// Names that a process with the same id has left, or somebody has planted, are passed over.
static void temporaries_are_new(void) {
    char first[TD_PATH_MAX], second[TD_PATH_MAX], planted[TD_PATH_MAX];
    unsigned number;
    int file;
    REQUIRE(td_folder_make(scratch("elsewhere")) == TD_OK);
    REQUIRE(td_folder_make_beside(scratch("out/new/"), first) == TD_OK);
    REQUIRE(sscanf(strrchr(first, '-'), "-%u", &number) == 1);
    for (unsigned i = 1; i <= 3; i++) {
        snprintf(planted, sizeof planted, "%s.tmp-%ld-%u", scratch("out/new"), (long)getpid(),
                 number + i);
        REQUIRE(symlink(scratch(i == 2 ? "nowhere" : "elsewhere"), planted) == 0);
    }
    REQUIRE(td_folder_make_beside(scratch("out/new"), second) == TD_OK);
    CHECK(!td_path_is_link(second) && td_path_is_folder(second) && strcmp(first, second) != 0);
    REQUIRE(sscanf(strrchr(second, '-'), "-%u", &number) == 1);
    for (unsigned i = 1; i <= 2; i++) {
        snprintf(planted, sizeof planted, "%s.tmp-%ld-%u", scratch("out/new"), (long)getpid(),
                 number + i);
        REQUIRE(symlink(scratch("nowhere"), planted) == 0);
    }
    REQUIRE(td_file_create_beside(scratch("out/new/"), first, &file) == TD_OK);
    CHECK(write(file, "x", 1) == 1 && close(file) == 0);
    CHECK_INT(count_entries(scratch("elsewhere")), 0);
    CHECK(!td_path_exists(scratch("nowhere")));
}

static int mode_of(const char *path) {
    struct stat info;
    REQUIRE(lstat(path, &info) == 0);
    return (int)(info.st_mode & 0777);
}

static void only_the_owner_may_write(void) {
    char temporary[TD_PATH_MAX];
    int file;
    mode_t before = umask(0);
    REQUIRE(td_file_write_atomic(scratch("modes/f"), "x", 1) == TD_ERR_IO);
    td_error_clear();
    REQUIRE(td_folder_make(scratch("modes/sub")) == TD_OK);
    REQUIRE(td_file_write_atomic(scratch("modes/f"), "x", 1) == TD_OK);
    REQUIRE(td_file_open_append(scratch("modes/g"), &file) == TD_OK && close(file) == 0);
    REQUIRE(td_folder_make_beside(scratch("modes/h"), temporary) == TD_OK);
    umask(before);
    CHECK_INT(mode_of(scratch("modes")), 0755);
    CHECK_INT(mode_of(scratch("modes/sub")), 0755);
    CHECK_INT(mode_of(temporary), 0755);
    CHECK_INT(mode_of(scratch("modes/f")), 0644);
    CHECK_INT(mode_of(scratch("modes/g")), 0644);
}

static void listings_are_sorted(void) {
    char **names = NULL;
    size_t count = 0;
    REQUIRE(td_folder_make(scratch("list")) == TD_OK);
    CHECK_INT(count_entries(scratch("list")), 0);
    scratch_file("list/b", "");
    scratch_file("list/c", "");
    scratch_file("list/.a", "");
    REQUIRE(td_folder_list(scratch("list"), &names, &count) == TD_OK);
    REQUIRE(count == 3);
    CHECK_STRING(names[0], ".a");
    CHECK_STRING(names[1], "b");
    CHECK_STRING(names[2], "c");
    td_names_free(names, count);
    CHECK_INT(td_folder_list(scratch("nowhere"), &names, &count), TD_ERR_DATA);
    CHECK_MESSAGE("nowhere");
    uint64_t free_bytes = 0;
    CHECK_INT(td_folder_free_bytes(scratch("list"), &free_bytes), TD_OK);
    CHECK(free_bytes > 0);
}

static void mappings_show_the_whole_file(void) {
    td_mapping mapping;
    REQUIRE(td_file_map(scratch_file("mapped", "content"), &mapping) == TD_OK);
    CHECK_INT(mapping.bytes, 7);
    CHECK(memcmp(mapping.data, "content", 7) == 0);
    td_file_unmap(&mapping);
    CHECK(mapping.data == NULL);
    CHECK_INT(td_file_map(scratch_file("empty", ""), &mapping), TD_ERR_DATA);
    CHECK_MESSAGE("empty");
    CHECK_INT(td_file_map(scratch("absent"), &mapping), TD_ERR_DATA);
    CHECK_MESSAGE("absent");
    CHECK_INT(td_file_sync(scratch("mapped")), TD_OK);
    CHECK_INT(td_file_sync(scratch("")), TD_OK);
    CHECK_INT(td_file_sync(scratch("absent")), TD_ERR_IO);
    CHECK_MESSAGE("absent");
}

int main(void) {
    TEST(paths_are_joined_and_bounded);
    TEST(only_plain_names_are_plain);
    TEST(reading_is_bounded);
    TEST(a_pipe_is_refused_and_does_not_hang);
    TEST(an_atomic_write_replaces_whole_files);
    TEST(a_failed_atomic_write_leaves_the_old_file_alone);
    TEST(folders_are_made_with_parents);
    TEST(removal_does_not_follow_links);
    TEST(traps_are_refused);
    TEST(temporaries_are_new);
    TEST(only_the_owner_may_write);
    TEST(listings_are_sorted);
    TEST(mappings_show_the_whole_file);
    return test_report();
}
