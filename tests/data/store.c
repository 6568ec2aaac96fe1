#define _GNU_SOURCE // memmem
#include <fcntl.h>
#include <hdf5.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/core/rng.h"
#include "runtime/data/hdf5_lock.h"
#include "runtime/data/store_internal.h"
#include "unit/scratch.h"

enum { MAX_ROW = 4000 };

// HDF5 loses memory of its own when it meets damaged metadata; what we lose still shows.
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libhdf5";
}

static const td_hash fingerprint = {.low = 7, .high = 9};
static const char account[] = "{\"rows_read\":3}";

static uint32_t word(uint32_t row, uint32_t i) {
    return td_rng_word(td_rng_key(3, TD_RNG_TEST), row, i & 1, i);
}

// Row `row` of the store that write_store() makes.
static int64_t make_row(uint32_t row, uint32_t most, int32_t *tokens, uint8_t *trained) {
    int64_t count = 1 + word(row, 1u << 20) % most;
    for (int64_t i = 0; i < count; i++) {
        tokens[i] = (int32_t)(word(row, (uint32_t)i) % 50000);
        trained[i] = word(row, (uint32_t)i) >> 31;
    }
    return count;
}

static td_store_writer *fill(const char *path, uint32_t n_rows, uint32_t most) {
    static int32_t tokens[MAX_ROW];
    static uint8_t trained[MAX_ROW];
    td_store_writer *writer = NULL;
    REQUIRE(td_store_writer_open(path, &writer) == TD_OK);
    for (uint32_t row = 0; row < n_rows; row++) {
        int64_t count = make_row(row, most, tokens, trained);
        REQUIRE(td_store_writer_add(writer, tokens, trained, count) == TD_OK);
    }
    return writer;
}

static void write_store(const char *path, uint32_t n_rows, uint32_t most) {
    REQUIRE(td_store_writer_commit(fill(path, n_rows, most), fingerprint, account) == TD_OK);
}

// 1 when the store holds exactly what write_store() wrote; 0 when something refused it.
static int is_whole(const char *path, uint32_t n_rows, uint32_t most) {
    static int32_t tokens[MAX_ROW], expected_tokens[MAX_ROW];
    static uint8_t trained[MAX_ROW], expected_trained[MAX_ROW];
    td_store *store = NULL;
    if (td_store_open(path, &store) != TD_OK)
        return 0;
    int whole = td_store_verify(store) == TD_OK;
    CHECK(!whole || td_store_rows(store) == n_rows);
    for (uint32_t row = 0; row < n_rows && whole; row++) {
        const int64_t *offsets = td_store_offsets(store);
        int64_t count = make_row(row, most, expected_tokens, expected_trained);
        CHECK_INT(offsets[row + 1] - offsets[row], count);
        whole = td_store_read_row(store, row, tokens, trained) == TD_OK;
        CHECK(memcmp(tokens, expected_tokens, (size_t)count * sizeof *tokens) == 0);
        CHECK(memcmp(trained, expected_trained, (size_t)count) == 0);
    }
    CHECK(!whole || td_hash_equal(td_store_fingerprint(store), fingerprint));
    CHECK(!whole || strcmp(td_store_account(store), account) == 0);
    td_store_close(store);
    return whole;
}

static void reads_back_what_was_written(void) {
    // More tokens than the writer buffers at a time.
    const char *path = scratch("store.h5");
    write_store(path, 1500, MAX_ROW);
    CHECK(is_whole(path, 1500, MAX_ROW));
    CHECK(!td_path_exists(scratch("store.h5.tmp")));
}

static void describes_its_rows(void) {
    const int32_t tokens[] = {5, 900, 3};
    const uint8_t trained[] = {1, 0, 1};
    td_store_writer *writer = NULL;
    td_store *store = NULL;
    const char *path = scratch("small.h5");
    REQUIRE(td_store_writer_open(path, &writer) == TD_OK);
    CHECK(td_store_writer_add(writer, tokens, trained, 3) == TD_OK);
    CHECK(td_store_writer_add(writer, tokens + 2, trained + 2, 1) == TD_OK);
    REQUIRE(td_store_writer_commit(writer, fingerprint, account) == TD_OK);
    REQUIRE(td_store_open(path, &store) == TD_OK);
    CHECK_INT(td_store_rows(store), 2);
    CHECK_INT(td_store_tokens(store), 4);
    CHECK_INT(td_store_max_token(store), 900);
    CHECK_INT(td_store_offsets(store)[1], 3);
    CHECK_INT(td_store_offsets(store)[2], 4);
    CHECK_INT(td_store_row_trained(store)[0], 1); // the first token never counts
    CHECK_INT(td_store_row_trained(store)[1], 0);
    CHECK(td_store_read_row(store, 2, NULL, NULL) == TD_ERR_INTERNAL);
    CHECK_MESSAGE("no row 2");
    td_store_close(store);
}

static void content_hash_tells_data_apart(void) {
    td_store *a = NULL, *b = NULL, *c = NULL;
    const char *paths[] = {scratch("a.h5"), scratch("b.h5"), scratch("c.h5")};
    write_store(paths[0], 20, 30);
    write_store(paths[1], 20, 30);
    write_store(paths[2], 19, 30);
    REQUIRE(td_store_open(paths[0], &a) == TD_OK && td_store_open(paths[1], &b) == TD_OK &&
            td_store_open(paths[2], &c) == TD_OK);
    CHECK(td_hash_equal(td_store_content_hash(a), td_store_content_hash(b)));
    CHECK(!td_hash_equal(td_store_content_hash(a), td_store_content_hash(c)));
    td_store_close(a);
    td_store_close(b);
    td_store_close(c);
}

static char *read_file(const char *path, size_t *bytes) {
    char *data;
    REQUIRE(td_file_read(path, 1 << 26, &data, bytes) == TD_OK);
    return data;
}

static void a_truncated_file_is_refused(void) {
    size_t bytes;
    const char *path = scratch("whole.h5"), *cut = scratch("cut.h5");
    td_store *store;
    write_store(path, 40, 100);
    char *data = read_file(path, &bytes);
    for (size_t keep = 0; keep < bytes; keep += bytes / 23 + 1) {
        REQUIRE(td_file_write_atomic(cut, data, keep) == TD_OK);
        CHECK(td_store_open(cut, &store) == TD_ERR_DATA);
        CHECK_MESSAGE("cut.h5");
    }
    free(data);
}

// As whoever made the file could have done it: what lies behind the seal has to hold by itself.
static void seal_again(const char *path) {
    int file = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(file >= 0 && td_store_seal(file, path) == TD_OK && close(file) == 0);
}

// Before HDF5 reads anything: every bit of the file counts, also those that HDF5 does not use.
static void damage_is_refused_before_hdf5(void) {
    size_t bytes;
    td_store *store;
    const char *path = scratch("sealed.h5"), *damaged = scratch("unsealed.h5");
    write_store(path, 40, 100);
    char *data = read_file(path, &bytes);
    for (size_t at = 0; at < bytes; at += bytes / 60 + 1) {
        data[at] ^= 1 << (at % 8);
        REQUIRE(td_file_write_atomic(damaged, data, bytes) == TD_OK);
        CHECK_INT(td_store_open(damaged, &store), TD_ERR_DATA);
        CHECK_MESSAGE(at + 32 < bytes ? "checksum of the file" : "token store");
        data[at] ^= 1 << (at % 8);
    }
    free(data);
    seal_again(path);
    CHECK(is_whole(path, 40, 100));
}

static void traps_beside_the_target_are_not_written_over(void) {
    td_store_writer *writer;
    const char *path = scratch("trap.h5"), *temporary = scratch("trap.h5.tmp");
    const char *precious = scratch_file("precious", "keep this");
    size_t bytes;
    for (int i = 0; i < 3; i++) {
        REQUIRE((i == 0   ? symlink(precious, temporary)
                 : i == 1 ? link(precious, temporary)
                          : mkfifo(temporary, 0600)) == 0);
        CHECK_INT(td_store_writer_open(path, &writer), TD_ERR_IO);
        CHECK_MESSAGE("trap.h5.tmp");
        REQUIRE(unlink(temporary) == 0);
    }
    char *text = read_file(precious, &bytes);
    CHECK(strcmp(text, "keep this") == 0);
    free(text);
}

// Any damage is refused or (in bytes that HDF5 does not use) harmless; never other data.
static void a_flipped_bit_never_gets_through(void) {
    size_t bytes;
    const char *path = scratch("flip.h5"), *damaged = scratch("flipped.h5");
    int refused = 0;
    write_store(path, 40, 100);
    char *data = read_file(path, &bytes);
    size_t step = 1;
    for (size_t at = 0; at < bytes; at += step) {
        data[at] ^= 1 << (at % 8);
        REQUIRE(td_file_write_atomic(damaged, data, bytes) == TD_OK);
        seal_again(damaged);
        refused += !is_whole(damaged, 40, 100);
        td_error_clear();
        data[at] ^= 1 << (at % 8);
        step = at < 1200 ? 5 : bytes / 200;
    }
    CHECK(refused > 50);
    free(data);
}

// Where the named bytes lie in the file, and that damage there is named.
static void check_damage_named(const void *needle, size_t n, const char *part) {
    size_t bytes;
    td_store *store = NULL;
    const char *damaged = scratch("named.h5");
    char *data = read_file(scratch("name.h5"), &bytes);
    char *at = memmem(data, bytes, needle, n);
    REQUIRE(at != NULL);
    at[0] ^= 4;
    REQUIRE(td_file_write_atomic(damaged, data, bytes) == TD_OK);
    seal_again(damaged);
    td_status status = td_store_open(damaged, &store);
    if (status == TD_OK)
        status = td_store_verify(store);
    CHECK_INT(status, TD_ERR_DATA);
    CHECK_MESSAGE(part);
    td_store_close(store);
    free(data);
}

static void damage_to_the_data_is_named(void) {
    int32_t tokens[MAX_ROW];
    uint8_t trained[MAX_ROW];
    write_store(scratch("name.h5"), 40, 100);
    int64_t count = make_row(0, 100, tokens, trained);
    REQUIRE(count > 20);
    check_damage_named(tokens, 40, "/tokens does not match its checksum");
    check_damage_named(trained, 20, "damaged token store");
    int64_t offsets[] = {0, count};
    check_damage_named(offsets, sizeof offsets, "/offsets does not match its checksum");
}

static void other_files_are_refused(void) {
    td_store *store;
    const char *text = scratch_file("text.h5", "not a store");
    CHECK(td_store_open(text, &store) == TD_ERR_DATA);
    CHECK_MESSAGE("no whole token store");
    seal_again(text);
    CHECK(td_store_open(text, &store) == TD_ERR_DATA);
    CHECK_MESSAGE("cannot be opened as HDF5");
    CHECK(td_store_open(scratch("missing.h5"), &store) == TD_ERR_DATA);
    CHECK_MESSAGE("missing.h5");
    const char *other = scratch("other.h5");
    td_hdf5_lock();
    hid_t file = H5Fcreate(other, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    REQUIRE(file >= 0 && H5Fclose(file) >= 0);
    td_hdf5_unlock();
    CHECK(td_store_open(other, &store) == TD_ERR_DATA);
    CHECK_MESSAGE("no whole token store");
    seal_again(other);
    CHECK(td_store_open(other, &store) == TD_ERR_DATA);
    CHECK_MESSAGE("but no token store");
}

// Replaces /tokens of a valid store by what `make` creates under that name.
static void check_storage_refused(void (*make)(hid_t file, hsize_t items)) {
    td_store *store;
    const char *path = scratch("crafted.h5");
    write_store(path, 40, 100);
    REQUIRE(td_store_open(path, &store) == TD_OK);
    hsize_t items = (hsize_t)td_store_tokens(store);
    td_store_close(store);
    td_hdf5_lock();
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    REQUIRE(file >= 0 && H5Ldelete(file, "tokens", H5P_DEFAULT) >= 0);
    make(file, items);
    REQUIRE(H5Fclose(file) >= 0);
    td_hdf5_unlock();
    seal_again(path);
    CHECK(td_store_open(path, &store) == TD_ERR_DATA);
    CHECK_MESSAGE("/tokens");
}

static void make_nothing(hid_t file, hsize_t items) {
    CHECK(file >= 0 && items > 0);
}

static void make_external_link(hid_t file, hsize_t items) {
    CHECK(items > 0);
    REQUIRE(H5Lcreate_external("whole.h5", "/tokens", file, "tokens", H5P_DEFAULT, H5P_DEFAULT) >=
            0);
}

static hid_t make_dataset(hid_t file, hsize_t items, hid_t type, hid_t list) {
    hsize_t most = H5Pget_layout(list) == H5D_CHUNKED ? H5S_UNLIMITED : items;
    hid_t space = H5Screate_simple(1, &items, &most);
    hid_t dataset = H5Dcreate2(file, "tokens", type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    REQUIRE(space >= 0 && dataset >= 0);
    H5Sclose(space);
    H5Dclose(dataset);
    return list;
}

static hid_t chunked_list(hsize_t chunk) {
    hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    REQUIRE(list >= 0 && H5Pset_chunk(list, 1, &chunk) >= 0);
    return list;
}

static void make_virtual(hid_t file, hsize_t items) {
    hid_t list = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(1, &items, NULL);
    REQUIRE(H5Pset_virtual(list, space, "whole.h5", "/tokens", space) >= 0);
    H5Pclose(make_dataset(file, items, H5T_STD_I32LE, list));
    H5Sclose(space);
}

static void make_filtered(hid_t file, hsize_t items) {
    hid_t list = chunked_list(TD_STORE_CHUNK_TOKENS);
    REQUIRE(H5Pset_shuffle(list) >= 0);
    H5Pclose(make_dataset(file, items, H5T_STD_I32LE, list));
}

static void make_other_type(hid_t file, hsize_t items) {
    H5Pclose(make_dataset(file, items, H5T_IEEE_F32LE, chunked_list(TD_STORE_CHUNK_TOKENS)));
}

static void make_other_length(hid_t file, hsize_t items) {
    H5Pclose(make_dataset(file, items - 1, H5T_STD_I32LE, chunked_list(TD_STORE_CHUNK_TOKENS)));
}

static void make_other_chunks(hid_t file, hsize_t items) {
    H5Pclose(make_dataset(file, items, H5T_STD_I32LE, chunked_list(64)));
}

static void storage_elsewhere_or_of_other_kind_is_refused(void) {
    write_store(scratch("whole.h5"), 40, 100);
    check_storage_refused(make_nothing);
    check_storage_refused(make_external_link);
    check_storage_refused(make_virtual);
    check_storage_refused(make_filtered);
    check_storage_refused(make_other_type);
    check_storage_refused(make_other_length);
    check_storage_refused(make_other_chunks);
}

static void bad_rows_are_refused(void) {
    td_store_writer *writer = NULL;
    const int32_t tokens[] = {4, -1};
    const uint8_t trained[] = {0, 1};
    const char *path = scratch("bad.h5");
    REQUIRE(td_store_writer_open(path, &writer) == TD_OK);
    CHECK(td_store_writer_add(writer, tokens, trained, 0) == TD_ERR_DATA);
    CHECK_MESSAGE("0 tokens");
    CHECK(td_store_writer_add(writer, tokens, trained, 2) == TD_ERR_DATA);
    CHECK_MESSAGE("-1");
    CHECK(td_store_writer_commit(writer, fingerprint, account) == TD_ERR_DATA);
    CHECK_MESSAGE("no rows");
    CHECK(!td_path_exists(path));
    CHECK(!td_path_exists(scratch("bad.h5.tmp")));
}

static void an_abandoned_store_leaves_the_old_one(void) {
    const char *path = scratch("kept.h5");
    write_store(path, 10, 30);
    td_store_writer_abandon(fill(path, 700, MAX_ROW));
    CHECK(is_whole(path, 10, 30));
    CHECK(!td_path_exists(scratch("kept.h5.tmp")));
}

static void what_a_killed_run_left_is_overwritten(void) {
    const char *path = scratch("again.h5");
    scratch_file("again.h5.tmp", "half a store");
    write_store(path, 10, 30);
    CHECK(is_whole(path, 10, 30));
    CHECK(!td_path_exists(scratch("again.h5.tmp")));
}

// A limit on file sizes fails writes as a full disk does. In a process of its own: what HDF5 could
// not write it keeps until the end.
static int commit_on_a_full_disk(const char *path) {
    struct rlimit small = {.rlim_cur = 1 << 20, .rlim_max = 1 << 20};
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &small) != 0)
        return 1;
    // Fewer tokens than the buffer holds, so that the failure comes with the commit.
    td_status status = td_store_writer_commit(fill(path, 400, MAX_ROW), fingerprint, account);
    int is_named = strstr(td_error_message(), "full.h5.tmp") != NULL;
    return status == TD_OK ? 2 : is_named ? 0 : 3;
}

static void a_full_disk_is_reported_and_keeps_the_old_store(void) {
    const char *path = scratch("full.h5");
    int status = -1;
    write_store(path, 10, 30);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0)
        _exit(commit_on_a_full_disk(path));
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(!td_path_exists(scratch("full.h5.tmp")));
    CHECK(is_whole(path, 10, 30));
}

int main(void) {
    TEST(reads_back_what_was_written);
    TEST(describes_its_rows);
    TEST(content_hash_tells_data_apart);
    TEST(a_truncated_file_is_refused);
    TEST(damage_is_refused_before_hdf5);
    TEST(traps_beside_the_target_are_not_written_over);
    TEST(a_flipped_bit_never_gets_through);
    TEST(damage_to_the_data_is_named);
    TEST(other_files_are_refused);
    TEST(storage_elsewhere_or_of_other_kind_is_refused);
    TEST(bad_rows_are_refused);
    TEST(an_abandoned_store_leaves_the_old_one);
    TEST(what_a_killed_run_left_is_overwritten);
    TEST(a_full_disk_is_reported_and_keeps_the_old_store);
    return test_report();
}
