// Damaged checkpoints: each is refused by name, and "auto" goes back to the one before. Never are
// zeros loaded.
#define _GNU_SOURCE // memmem
#include <fcntl.h>
#include <hdf5.h>
#include <unistd.h>

#include "checkpoint_run.h"
#include "runtime/data/hdf5_lock.h"

static td_comm *comm;
static char base[256];
static toy_run run;

static void shard_path(int64_t step, char out[TD_PATH_MAX]) {
    char name[TD_CHECKPOINT_NAME_CHARS];
    td_shard_name(name, td_comm_size(comm) - 1, td_comm_size(comm));
    run_path(&run, step, name, out);
}

// Two whole checkpoints, of steps 1 and 2.
static void start(const char *name) {
    char folder[512];
    snprintf(folder, sizeof folder, "%s/%s", base, name);
    run_open(&run, comm, folder);
    td_checkpoint_writer *writer = run_writer(&run);
    REQUIRE(run_write(&run, writer, 1) == TD_OK);
    REQUIRE(run_write(&run, writer, 2) == TD_OK);
    td_checkpoint_destroy(writer);
}

static void finish(void) {
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
    run_close(&run);
}

// Whole bytes of a file, changed by `change` on the first rank.
static void change_file(const char *path, void (*change)(unsigned char *data, size_t *bytes)) {
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
    if (td_comm_rank(comm) == 0) {
        char *data = NULL;
        size_t bytes = 0;
        REQUIRE(td_file_read(path, 1 << 26, &data, &bytes) == TD_OK);
        change((unsigned char *)data, &bytes);
        REQUIRE(td_file_write_atomic(path, data, bytes) == TD_OK);
        free(data);
    }
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
}

// Checkpoint 2 is damaged: named when asked for, passed over otherwise; and 1 is loaded in full.
static void check_refused(const char *part) {
    char folder[TD_PATH_MAX];
    REQUIRE(td_checkpoint_step_folder(folder, run.folder, 2) == TD_OK);
    td_checkpoint *found = NULL;
    CHECK_INT(td_checkpoint_find(&run.options, folder, &found), TD_ERR_DATA);
    CHECK(found == NULL);
    CHECK_MESSAGE(part);
    CHECK_INT(run_resume(&run, "auto"), 1);
}

static void damage_shard(const char *name, void (*change)(unsigned char *data, size_t *bytes),
                         const char *part) {
    char path[TD_PATH_MAX];
    start(name);
    CHECK_INT(run_resume(&run, "auto"), 2);
    shard_path(2, path);
    change_file(path, change);
    check_refused(part);
    finish();
}

static void truncate_it(unsigned char *data, size_t *bytes) {
    (void)data;
    *bytes /= 2;
}

static void cut_one_byte(unsigned char *data, size_t *bytes) {
    (void)data;
    *bytes -= 1;
}

static void zero_it(unsigned char *data, size_t *bytes) {
    memset(data, 0, *bytes);
}

// Offset of the state of some page: state bytes are known.
static size_t data_offset(const unsigned char *data, size_t bytes) {
    int64_t page = td_comm_size(comm) - 1;
    unsigned char expected[64];
    for (int i = 0; i < 64; i++)
        expected[i] = run_state(2, page, i);
    const unsigned char *found = memmem(data, bytes, expected, sizeof expected);
    REQUIRE(found != NULL);
    return (size_t)(found - data);
}

static void flip_data_bit(unsigned char *data, size_t *bytes) {
    data[data_offset(data, *bytes) + 17] ^= 4;
}

// What fletcher32 does not see.
static void swap_word_of_zeros(unsigned char *data, size_t *bytes) {
    for (size_t i = 0; i + 1 < *bytes; i += 2) {
        if (data[i] == 0 && data[i + 1] == 0) {
            data[i] = data[i + 1] = 0xff;
            return;
        }
    }
    REQUIRE(!"a word of zeros");
}

static void a_truncated_shard(void) {
    damage_shard("truncated", truncate_it, "is damaged: has");
}

static void a_shard_without_its_last_byte(void) {
    damage_shard("cut", cut_one_byte, "is damaged: has");
}

static void a_zeroed_shard(void) {
    damage_shard("zeroed", zero_it, "checksum does not match");
}

static void a_flipped_data_bit(void) {
    damage_shard("bit", flip_data_bit, "checksum does not match");
}

static void a_word_of_zeros_turned_to_ones(void) {
    damage_shard("word", swap_word_of_zeros, "checksum does not match");
}

static void a_missing_shard(void) {
    char path[TD_PATH_MAX];
    start("missing");
    shard_path(2, path);
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
    if (td_comm_rank(comm) == 0)
        REQUIRE(unlink(path) == 0);
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
    check_refused("No such file");
    finish();
}

static void copy_over(const char *from, const char *to) {
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
    if (td_comm_rank(comm) == 0) {
        char *data = NULL;
        size_t bytes = 0;
        REQUIRE(td_file_read(from, 1 << 26, &data, &bytes) == TD_OK);
        REQUIRE(td_file_write_atomic(to, data, bytes) == TD_OK);
        free(data);
    }
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
}

static void a_shard_of_another_step(void) {
    char from[TD_PATH_MAX], to[TD_PATH_MAX];
    start("step");
    shard_path(1, from);
    shard_path(2, to);
    copy_over(from, to);
    check_refused("checksum does not match");
    finish();
}

static void a_missing_manifest(void) {
    char path[TD_PATH_MAX];
    start("unnamed");
    run_path(&run, 2, "manifest.json", path);
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
    if (td_comm_rank(comm) == 0)
        REQUIRE(unlink(path) == 0);
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
    check_refused("manifest.json");
    finish();
}

static void flip_middle(unsigned char *data, size_t *bytes) {
    data[*bytes / 2] ^= 1;
}

static void a_damaged_manifest(void) {
    char path[TD_PATH_MAX];
    start("manifest");
    run_path(&run, 2, "manifest.json", path);
    change_file(path, flip_middle);
    check_refused("manifest.json");
    finish();
}

static void everything_damaged_starts_anew(void) {
    char path[TD_PATH_MAX];
    start("all");
    for (int64_t step = 1; step <= 2; step++) {
        shard_path(step, path);
        change_file(path, flip_middle);
    }
    CHECK_INT(run_resume(&run, "auto"), -1);
    CHECK_STRING(td_error_message(), "");
    finish();
}

// The file's own defences, without the manifest: of every damaged byte the reader says so, or the
// pages are right.
static int reads_like_before(const char *path) {
    td_shard shard = {.map = run.options.map,
                      .rank = td_comm_size(comm) - 1,
                      .step = 2,
                      .state_bytes = RUN_STATE_BYTES};
    td_shard_reader *reader = NULL;
    float params[RUN_PAGE];
    unsigned char state[RUN_STATE_BYTES];
    int same = 1;
    if (td_shard_open(path, &shard, &reader) != TD_OK)
        return 1; // refused
    for (int64_t i = 0; i < td_page_map_owned_count(&shard.map, shard.rank) && same; i++) {
        int64_t page = shard.rank + i * shard.map.size;
        td_page_span span = td_page_map_span(&shard.map, page);
        if (td_shard_read_page(reader, i, params, state) != TD_OK)
            break; // refused
        for (int64_t e = 0; e < span.count; e++)
            same &= params[e] == run_param(2, span.begin + e);
        for (int64_t b = 0; b < RUN_STATE_BYTES; b++)
            same &= state[b] == run_state(2, page, b);
    }
    td_shard_close(reader);
    return same;
}

static void check_belongs_elsewhere(const char *path, td_shard shard, const char *part) {
    td_shard_reader *reader = NULL;
    CHECK_INT(td_shard_open(path, &shard, &reader), TD_ERR_DATA);
    CHECK(strstr(td_error_message(), "belongs elsewhere") != NULL);
    CHECK_MESSAGE(part);
}

static void a_shard_tells_where_it_belongs(void) {
    char path[TD_PATH_MAX];
    start("belongs");
    shard_path(2, path);
    td_shard shard = {.map = run.options.map,
                      .rank = td_comm_size(comm) - 1,
                      .step = 2,
                      .state_bytes = RUN_STATE_BYTES};
    td_shard other = shard;
    other.step = 1;
    check_belongs_elsewhere(path, other, "step is 2, expected 1");
    other = shard;
    other.rank++;
    other.map.size += 3;
    check_belongs_elsewhere(path, other, "rank");
    other = shard;
    other.state_bytes--;
    check_belongs_elsewhere(path, other, "state_bytes");
    other = shard;
    other.map.n_elements--;
    check_belongs_elsewhere(path, other, "n_elements is 1000, expected 999");
    finish();
}

static void overwrite(const char *path, const char *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    REQUIRE(file && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0);
}

static td_shard whole_shard(void) {
    return (td_shard){.map = run.options.map, .step = 2, .state_bytes = RUN_STATE_BYTES};
}

// As somebody could who makes up the manifest as well.
static void check_place_refused(uint64_t params, uint64_t state) {
    char path[TD_PATH_MAX];
    td_page_place places[64] = {{.params = params, .state = state}};
    td_shard shard = whole_shard();
    td_shard_reader *reader = NULL;
    shard_path(2, path);
    int file = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(file >= 0 && td_shard_pages(&shard) <= 64);
    REQUIRE(td_shard_write_index(file, path, &shard, places) == TD_OK && close(file) == 0);
    CHECK_INT(td_shard_open(path, &shard, &reader), TD_ERR_DATA);
    CHECK_MESSAGE("a page lies outside the file");
}

static void pages_outside_the_file_are_refused(void) {
    char path[TD_PATH_MAX];
    uint64_t bytes;
    start("outside");
    shard_path(2, path);
    REQUIRE(td_file_size(path, &bytes) == TD_OK);
    check_place_refused(UINT64_MAX, 0);
    check_place_refused(0, UINT64_MAX - RUN_STATE_BYTES + 1);
    REQUIRE(td_file_size(path, &bytes) == TD_OK);
    check_place_refused(0, bytes - RUN_STATE_BYTES + 1);
    finish();
}

// More pages than the file has room for, as a made-up manifest may say.
static void an_index_of_another_length_is_refused(void) {
    char path[TD_PATH_MAX];
    td_page_place place = {0};
    td_shard shard = whole_shard(), many = shard;
    td_shard_reader *reader = NULL;
    start("length");
    shard_path(2, path);
    shard = whole_shard();
    REQUIRE(td_page_map_init(&many.map, (int64_t)1 << 50, RUN_PAGE, 1) == TD_OK);
    shard.map = many.map;
    int file = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(file >= 0);
    many.map.n_pages = 1; // writes one place, with the attributes of many
    REQUIRE(td_shard_write_index(file, path, &many, &place) == TD_OK && close(file) == 0);
    CHECK_INT(td_shard_open(path, &shard, &reader), TD_ERR_DATA);
    CHECK_MESSAGE("its index has another length");
    finish();
}

static void hdf5_reads_the_same_pages(void) {
    char path[TD_PATH_MAX];
    start("hdf5");
    shard_path(2, path);
    int64_t n = run.options.map.n_pages;
    float *params = malloc((size_t)n * RUN_PAGE * sizeof *params);
    unsigned char *state = malloc((size_t)n * RUN_STATE_BYTES);
    REQUIRE(params && state);
    td_hdf5_lock();
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t sets[2] = {H5Dopen2(file, "params", H5P_DEFAULT), H5Dopen2(file, "state", H5P_DEFAULT)};
    REQUIRE(H5Dread(sets[0], H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, params) >= 0);
    REQUIRE(H5Dread(sets[1], H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, state) >= 0);
    REQUIRE(H5Dclose(sets[0]) >= 0 && H5Dclose(sets[1]) >= 0 && H5Fclose(file) >= 0);
    td_hdf5_unlock();
    for (int64_t e = 0; e < run.options.map.n_elements; e++)
        CHECK(params[e] == run_param(2, e));
    for (int64_t b = 0; b < n * RUN_STATE_BYTES; b++)
        CHECK(state[b] == run_state(2, b / RUN_STATE_BYTES, b % RUN_STATE_BYTES));
    free(params);
    free(state);
    finish();
}

// What somebody may have put there to do harm is not looked at.
static void hdf5_is_not_asked(void) {
    char path[TD_PATH_MAX], zeros[48] = "";
    td_shard shard = whole_shard();
    td_shard_reader *reader = NULL;
    start("spoiled");
    shard_path(2, path);
    shard = whole_shard();
    int file = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(file >= 0 && pwrite(file, zeros, sizeof zeros, 0) == sizeof zeros && close(file) == 0);
    CHECK_INT(td_shard_open(path, &shard, &reader), TD_OK);
    td_shard_close(reader);
    CHECK(reads_like_before(path));
    finish();
}

static void damage_behind_the_manifest(void) {
    char path[TD_PATH_MAX], copy[TD_PATH_MAX];
    char *data = NULL;
    size_t bytes = 0;
    start("deep");
    shard_path(2, path);
    snprintf(copy, sizeof copy, "%s/copy-%d.h5", base, td_comm_rank(comm));
    REQUIRE(td_file_read(path, 1 << 26, &data, &bytes) == TD_OK);
    overwrite(copy, data, bytes);
    CHECK(reads_like_before(copy));
    CHECK_STRING(td_error_message(), "");
    for (size_t i = 0; i < bytes; i++) {
        if (i % 5 != 0) // every byte has been tried; these keep watch
            continue;
        data[i] ^= (char)(1 + i % 255);
        overwrite(copy, data, bytes);
        if (!CHECK(reads_like_before(copy)))
            fprintf(stderr, "    byte %zu of %zu\n", i, bytes);
        data[i] ^= (char)(1 + i % 255);
        td_error_clear();
    }
    free(data);
    finish();
}

int main(void) {
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    td_log_init(TD_LOG_ERROR, td_comm_rank(comm), td_comm_size(comm));
    shared_scratch(comm, base);
    TEST(a_truncated_shard);
    TEST(a_shard_without_its_last_byte);
    TEST(a_zeroed_shard);
    TEST(a_flipped_data_bit);
    TEST(a_word_of_zeros_turned_to_ones);
    TEST(a_missing_shard);
    TEST(a_shard_of_another_step);
    TEST(a_missing_manifest);
    TEST(a_damaged_manifest);
    TEST(everything_damaged_starts_anew);
    TEST(a_shard_tells_where_it_belongs);
    if (td_comm_size(comm) == 1) {
        TEST(pages_outside_the_file_are_refused);
        TEST(an_index_of_another_length_is_refused);
        TEST(hdf5_reads_the_same_pages);
        TEST(hdf5_is_not_asked);
        TEST(damage_behind_the_manifest);
    }
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
    if (td_comm_rank(comm) == 0)
        td_folder_remove_tree(base);
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
