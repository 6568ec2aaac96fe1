// Images of a quantized base: the same bits with and without, and what is done about one that is
// stale, damaged, a trap, being written, or cannot be written.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "model/base.h"
#include "runtime/core/files.h"
#include "safetensors_build.h"

static td_stream *stream;
static td_op_context context, other_context;
static td_device separate; // whose memory the host must copy to
static char model[512], cache[512];

static void prepare(void) {
    context = (td_op_context){.ops = &td_ops_cpu, .device = td_device_cpu()};
    REQUIRE(context.device->table->stream_create(context.device, &stream) == TD_OK);
    context.stream = stream;
    separate = *td_device_cpu();
    separate.unified = 0;
    other_context = context;
    other_context.device = &separate;
}

static td_base_options options_with(const char *image_folder, int double_quantize) {
    return (td_base_options){.quantize = 1,
                             .double_quantize = double_quantize,
                             .stored = TD_BF16,
                             .compute = TD_F32,
                             .image_folder = image_folder};
}

static td_base *load_with(const char *image_folder, const td_op_context *with) {
    td_base_options options = options_with(image_folder, 1);
    td_base *base = NULL;
    REQUIRE(td_base_load(model, &options, NULL, with, &base) == TD_OK);
    CHECK_STRING(td_error_message(), "");
    return base;
}

static int is_same(const td_base *a, const td_base *b) {
    int same = a->arena.used_bytes == b->arena.used_bytes &&
               memcmp(a->arena.base, b->arena.base, a->arena.used_bytes) == 0 &&
               td_hash_equal(a->fingerprint, b->fingerprint);
    for (int64_t layer = 0; layer < a->config.n_layers; layer++)
        for (int j = 0; j < TD_PROJ_COUNT; j++)
            same &= a->layers[layer].linear[j].nested_offset ==
                    b->layers[layer].linear[j].nested_offset;
    return same;
}

static size_t count_files(void) {
    char **names;
    size_t count;
    if (td_folder_list(cache, &names, &count) != TD_OK) {
        td_error_clear();
        return 0;
    }
    td_names_free(names, count);
    return count;
}

// The only image.
static const char *image_path(void) {
    static char path[1200];
    char **names;
    size_t count;
    REQUIRE(td_folder_list(cache, &names, &count) == TD_OK);
    REQUIRE(count == 1 && strstr(names[0], ".base") != NULL);
    snprintf(path, sizeof path, "%s/%s", cache, names[0]);
    td_names_free(names, count);
    return path;
}

static ino_t inode_of(const char *path) {
    struct stat info;
    REQUIRE(lstat(path, &info) == 0);
    return info.st_ino;
}

// A fresh copy of a fixture and an empty cache.
static void start_over(const char *family) {
    char path[600];
    snprintf(model, sizeof model, "%s", scratch("model"));
    snprintf(cache, sizeof cache, "%s", scratch("cache/of/bases"));
    REQUIRE(td_folder_remove_tree(cache) == TD_OK);
    REQUIRE(td_folder_make(model) == TD_OK);
    snprintf(path, sizeof path, "%s/families/%s/config.json", TEST_FIXTURES, family);
    copy_file(path, scratch("model/config.json"));
    snprintf(path, sizeof path, "%s/families/%s/model.safetensors", TEST_FIXTURES, family);
    copy_file(path, scratch("model/model.safetensors"));
}

// Whether a load maps the image, rather than making what it maps.
static int is_from_image(const td_base *base) {
    return base->times.store == 0;
}

// Loads, and expects the bits of a load without images.
static void check_load(const td_op_context *with, int from_image) {
    td_base *expected = load_with(NULL, &context), *base = load_with(cache, with);
    CHECK(is_same(expected, base));
    CHECK_INT(is_from_image(base), from_image);
    CHECK(base->arena.used_bytes == base->arena.capacity_bytes);
    td_base_destroy(expected);
    td_base_destroy(base);
}

static void a_second_start_has_the_bits_of_the_first(void) {
    static const char *const families[] = {"llama", "qwen2", "gemma3_multimodal"};
    for (int i = 0; i < 3; i++) {
        start_over(families[i]);
        check_load(&context, 0);
        check_load(&context, 1);
        check_load(&other_context, 1); // copied rather than mapped
        check_load(&context, 1);
        start_over(families[i]);
        check_load(&other_context, 0); // and written from there
        check_load(&context, 1);
    }
}

static void an_image_is_for_its_owner_alone_to_write(void) {
    struct stat info;
    start_over("llama");
    check_load(&context, 0);
    REQUIRE(stat(image_path(), &info) == 0);
    CHECK_INT(info.st_mode & 022, 0);
    REQUIRE(chmod(image_path(), 0666) == 0);
    check_load(&context, 0);
    check_load(&context, 1); // made again
}

static void flip(const char *path, off_t at) {
    unsigned char byte;
    int file = open(path, O_RDWR);
    REQUIRE(file >= 0 && pread(file, &byte, 1, at) == 1);
    byte ^= 16;
    REQUIRE(pwrite(file, &byte, 1, at) == 1);
    close(file);
}

// Every part of the file: header, tables, padding apart, and data.
static void a_damaged_image_is_made_again(void) {
    struct stat info;
    start_over("llama");
    check_load(&context, 0);
    REQUIRE(stat(image_path(), &info) == 0);
    const off_t places[] = {0, 9, 20, 40, 60, 90, 110, 130, 4096, 70001, info.st_size - 1};
    for (size_t i = 0; i < 2 * sizeof places / sizeof *places; i++) {
        const td_op_context *with = i % 2 ? &context : &other_context;
        flip(image_path(), places[i / 2]);
        check_load(with, 0);
        check_load(with, 1);
    }
    for (off_t bytes = 0; bytes < info.st_size; bytes += info.st_size / 3) {
        REQUIRE(truncate(image_path(), bytes) == 0);
        check_load(&context, 0);
        check_load(&context, 1);
    }
    REQUIRE(truncate(image_path(), info.st_size + 1) == 0);
    check_load(&context, 0);
}

static void other_weights_are_not_taken_from_an_image(void) {
    char *bytes;
    size_t count;
    const char *path = scratch("model/model.safetensors");
    start_over("llama");
    check_load(&context, 0);
    REQUIRE(td_file_read(path, 64 << 20, &bytes, &count) == TD_OK);
    bytes[count - 1] ^= 1;
    REQUIRE(td_file_write_atomic(path, bytes, count) == TD_OK);
    free(bytes);
    check_load(&context, 0);
    check_load(&context, 1);
    flip(path, (off_t)count - 1); // in place, with the time put back
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1000000000}};
    REQUIRE(utimensat(AT_FDCWD, path, times, 0) == 0);
    check_load(&context, 0);
    CHECK_INT(count_files(), 1);
}

static void other_settings_have_an_image_of_their_own(void) {
    td_base_options single = options_with(NULL, 0);
    td_base *expected, *base;
    start_over("llama");
    check_load(&context, 0);
    REQUIRE(td_base_load(model, &single, NULL, &context, &expected) == TD_OK);
    single.image_folder = cache;
    for (int i = 0; i < 2; i++) {
        REQUIRE(td_base_load(model, &single, NULL, &context, &base) == TD_OK);
        CHECK_INT(is_from_image(base), i);
        CHECK(is_same(expected, base));
        td_base_destroy(base);
    }
    td_base_destroy(expected);
    CHECK_INT(count_files(), 2);
    check_load(&context, 1);
}

static void a_link_is_not_followed(void) {
    char path[1200], away[512];
    start_over("llama");
    check_load(&context, 0);
    snprintf(path, sizeof path, "%s", image_path());
    snprintf(away, sizeof away, "%s", scratch("away"));
    REQUIRE(rename(path, away) == 0 && symlink(away, path) == 0);
    ino_t inode = inode_of(away);
    check_load(&context, 0);
    CHECK(inode_of(away) == inode && !td_path_is_link(path));
    check_load(&context, 1);
}

// A file in the place of the folder, which stops root too.
static void what_cannot_be_written_is_no_error(void) {
    start_over("llama");
    REQUIRE(td_folder_remove_tree(scratch("cache")) == TD_OK);
    int file = open(scratch("cache"), O_CREAT | O_WRONLY, 0600);
    REQUIRE(file >= 0);
    close(file);
    check_load(&context, 0);
    unlink(scratch("cache"));
}

static void a_mapped_base_survives_its_file(void) {
    start_over("llama");
    check_load(&context, 0);
    td_base *expected = load_with(NULL, &context), *base = load_with(cache, &context);
    REQUIRE(unlink(image_path()) == 0);
    CHECK(is_from_image(base) && is_same(expected, base));
    td_base_destroy(expected);
    td_base_destroy(base);
}

static void start_child(pid_t *out) {
    *out = fork();
    REQUIRE(*out >= 0);
    if (*out != 0)
        return;
    td_base_options options = options_with(cache, 1);
    td_base *base = NULL;
    td_status status = td_base_load(model, &options, NULL, &context, &base);
    _exit(status == TD_OK ? 0 : 1);
}

static void starts_at_once_leave_one_image(void) {
    enum { CHILDREN = 4, ROUNDS = 3 };
    for (int round = 0; round < ROUNDS; round++) {
        pid_t children[CHILDREN];
        start_over("qwen3");
        for (int i = 0; i < CHILDREN; i++)
            start_child(&children[i]);
        for (int i = 0; i < CHILDREN; i++) {
            int code;
            REQUIRE(waitpid(children[i], &code, 0) == children[i]);
            CHECK_INT(code, 0);
        }
        CHECK_INT(count_files(), 1);
        check_load(&context, 1);
    }
}

static void temporary_beside(const char *path, char out[1300], int *file) {
    snprintf(out, 1300, "%s.tmp-%d-0", path, 12345);
    *file = open(out, O_CREAT | O_WRONLY, 0600);
    REQUIRE(*file >= 0 && write(*file, "part", 4) == 4);
}

static void what_a_killed_writer_left_is_cleared(void) {
    char path[1200], temporary[1300];
    int file;
    start_over("llama");
    check_load(&context, 0);
    snprintf(path, sizeof path, "%s", image_path());
    REQUIRE(unlink(path) == 0);
    temporary_beside(path, temporary, &file);
    REQUIRE(flock(file, LOCK_EX) == 0); // somebody is at it: nobody else writes
    check_load(&context, 0);
    CHECK(td_path_exists(temporary) && !td_path_exists(path));
    close(file);
    check_load(&context, 0);
    CHECK(!td_path_exists(temporary) && td_path_exists(path));
}

static void a_writer_that_is_killed_harms_nothing(void) {
    start_over("qwen3");
    for (int i = 0; i < 12; i++) {
        pid_t child;
        int code;
        struct timespec wait = {.tv_nsec = 500000L * i};
        REQUIRE(td_folder_remove_tree(cache) == TD_OK);
        start_child(&child);
        nanosleep(&wait, NULL);
        kill(child, SIGKILL);
        REQUIRE(waitpid(child, &code, 0) == child);
        td_base *expected = load_with(NULL, &context), *base = load_with(cache, &context);
        CHECK(is_same(expected, base));
        td_base_destroy(expected);
        td_base_destroy(base);
    }
}

int main(void) {
    prepare();
    // First, before there are threads that a fork would not have.
    td_ops_cpu_set_threads(1);
    TEST(starts_at_once_leave_one_image);
    TEST(a_writer_that_is_killed_harms_nothing);
    td_ops_cpu_set_threads(2);
    TEST(a_second_start_has_the_bits_of_the_first);
    TEST(an_image_is_for_its_owner_alone_to_write);
    TEST(a_damaged_image_is_made_again);
    TEST(other_weights_are_not_taken_from_an_image);
    TEST(other_settings_have_an_image_of_their_own);
    TEST(a_link_is_not_followed);
    TEST(what_cannot_be_written_is_no_error);
    TEST(a_mapped_base_survives_its_file);
    TEST(what_a_killed_writer_left_is_cleared);
    context.device->table->stream_destroy(stream);
    return test_report();
}
