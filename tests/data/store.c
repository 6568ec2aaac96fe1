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

// Every bit of the file counts, also those that nothing reads.
static void damage_is_refused_before_anything_is_read(void) {
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

// Any damage is refused or (in bytes that nothing reads) harmless; never other data.
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
        step = bytes - at < 800 ? 1 : bytes / 200; // the index lies at the end
    }
    CHECK(refused > 300);
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
    CHECK_MESSAGE("has no index");
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
    CHECK_MESSAGE("token store");
}

// The index of a store of 40 rows that somebody made up: `change` makes it wrong.
static void check_index_refused(void (*change)(td_store_header *header, td_store_pieces *pieces),
                                const char *part) {
    td_store *store = NULL;
    td_store_header header;
    td_store_pieces pieces[TD_STORE_ARRAYS] = {{0}};
    char *text = NULL;
    uint64_t bytes;
    const char *path = scratch("crafted.h5");
    write_store(path, 40, 100);
    int file = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(file >= 0 && td_file_size(path, &bytes) == TD_OK);
    REQUIRE(td_store_check_seal(file, path, bytes, &bytes) == TD_OK);
    REQUIRE(td_store_read_index(file, path, bytes, &header, pieces, &text) == TD_OK);
    change(&header, pieces);
    REQUIRE(td_store_write_index(file, path, &header, pieces, text) == TD_OK);
    REQUIRE(close(file) == 0);
    seal_again(path);
    td_status status = td_store_open(path, &store);
    if (status == TD_OK)
        status = td_store_verify(store);
    CHECK_INT(status, TD_ERR_DATA);
    CHECK_MESSAGE(part);
    td_store_close(store);
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        free(pieces[array].addresses);
    free(text);
}

static void place_tokens_outside(td_store_header *header, td_store_pieces *pieces) {
    CHECK(header->n_rows == 40);
    pieces[TD_STORE_TOKENS].addresses[0] = UINT64_MAX - 8;
}

static void place_tokens_elsewhere(td_store_header *header, td_store_pieces *pieces) {
    CHECK(header->n_rows == 40);
    pieces[TD_STORE_TOKENS].addresses[0] = 0;
}

static void have_many_rows(td_store_header *header, td_store_pieces *pieces) {
    header->n_rows = header->n_tokens = TD_STORE_MAX_TOKENS;
    for (int array = 0; array < TD_STORE_ARRAYS; array++)
        pieces[array].items = TD_STORE_MAX_TOKENS + 1;
}

static void have_more_tokens(td_store_header *header, td_store_pieces *pieces) {
    header->n_tokens++;
    pieces[TD_STORE_TOKENS].items++;
    pieces[TD_STORE_TRAINED].items++;
}

static void have_no_rows(td_store_header *header, td_store_pieces *pieces) {
    header->n_rows = 0;
    pieces[TD_STORE_ROW_TRAINED].items = 1;
}

static void have_no_piece(td_store_header *header, td_store_pieces *pieces) {
    CHECK(header->n_rows == 40);
    pieces[TD_STORE_OFFSETS].items = INT64_MAX;
}

static void an_index_that_does_not_fit_is_refused(void) {
    check_index_refused(place_tokens_outside, "rows lie outside the file");
    check_index_refused(place_tokens_elsewhere, "damaged token store");
    check_index_refused(have_many_rows, "too short for its rows");
    check_index_refused(have_more_tokens, "/offsets does not cover the tokens");
    check_index_refused(have_no_rows, "numbers are out of range");
    check_index_refused(have_no_piece, "numbers are out of range");
}

static int64_t read_dataset(hid_t file, const char *name, hid_t type, void *out, int64_t most) {
    hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT), space = H5Dget_space(dataset);
    int64_t items = H5Sget_simple_extent_npoints(space);
    REQUIRE(items >= 0 && items <= most);
    REQUIRE(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) >= 0);
    REQUIRE(H5Sclose(space) >= 0 && H5Dclose(dataset) >= 0);
    return items;
}

// HDF5 finds the rows where the index says they are.
static void check_read_by_hdf5(const char *path, uint32_t n_rows, int64_t most_tokens) {
    int32_t *tokens = malloc((size_t)most_tokens * sizeof *tokens), expected[MAX_ROW];
    uint8_t *trained = malloc((size_t)most_tokens), expected_trained[MAX_ROW];
    int64_t at = 0;
    REQUIRE(tokens && trained);
    td_hdf5_lock();
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    REQUIRE(file >= 0);
    int64_t items = read_dataset(file, "tokens", H5T_NATIVE_INT32, tokens, most_tokens);
    CHECK_INT(read_dataset(file, "trained", H5T_NATIVE_UINT8, trained, most_tokens), items);
    REQUIRE(H5Fclose(file) >= 0);
    td_hdf5_unlock();
    for (uint32_t row = 0; row < n_rows; row++) {
        int64_t count = make_row(row, MAX_ROW, expected, expected_trained);
        CHECK(memcmp(tokens + at, expected, (size_t)count * sizeof *expected) == 0);
        CHECK(memcmp(trained + at, expected_trained, (size_t)count) == 0);
        at += count;
    }
    CHECK_INT(at, items);
    free(tokens);
    free(trained);
}

static void hdf5_reads_the_same(void) {
    write_store(scratch("small.h5"), 40, MAX_ROW);
    check_read_by_hdf5(scratch("small.h5"), 40, 40 * MAX_ROW);
    write_store(scratch("large.h5"), 1500, MAX_ROW);
    check_read_by_hdf5(scratch("large.h5"), 1500, 1500 * MAX_ROW);
}

// What somebody may have put there to do harm is not looked at.
static void hdf5_is_not_asked(void) {
    char zeros[48] = "";
    const char *path = scratch("spoiled.h5");
    write_store(path, 40, 100);
    int file = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(file >= 0 && pwrite(file, zeros, sizeof zeros, 0) == sizeof zeros && close(file) == 0);
    seal_again(path);
    CHECK(is_whole(path, 40, 100));
}

static void rows_may_fill_the_buffer_exactly(void) {
    static int32_t tokens[TD_STORE_BUFFER_TOKENS];
    static uint8_t trained[TD_STORE_BUFFER_TOKENS];
    td_store_writer *writer = NULL;
    td_store *store = NULL;
    const char *path = scratch("exact.h5");
    REQUIRE(td_store_writer_open(path, &writer) == TD_OK);
    REQUIRE(td_store_writer_add(writer, tokens, trained, TD_STORE_BUFFER_TOKENS) == TD_OK);
    REQUIRE(td_store_writer_commit(writer, fingerprint, account) == TD_OK);
    REQUIRE(td_store_open(path, &store) == TD_OK && td_store_verify(store) == TD_OK);
    CHECK_INT(td_store_tokens(store), TD_STORE_BUFFER_TOKENS);
    td_store_close(store);
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
    TEST(damage_is_refused_before_anything_is_read);
    TEST(traps_beside_the_target_are_not_written_over);
    TEST(a_flipped_bit_never_gets_through);
    TEST(damage_to_the_data_is_named);
    TEST(other_files_are_refused);
    TEST(an_index_that_does_not_fit_is_refused);
    TEST(hdf5_reads_the_same);
    TEST(hdf5_is_not_asked);
    TEST(rows_may_fill_the_buffer_exactly);
    TEST(bad_rows_are_refused);
    TEST(an_abandoned_store_leaves_the_old_one);
    TEST(what_a_killed_run_left_is_overwritten);
    TEST(a_full_disk_is_reported_and_keeps_the_old_store);
    return test_report();
}
