// How what one rank knows becomes what all ranks know.
#include "test.h"

#include "comm/comm.h"

static td_comm *comm;
static int rank, size;

static void all_fine_is_fine(void) {
    CHECK_INT(td_comm_agree(comm, TD_OK, "fine"), TD_OK);
    CHECK_STRING(td_error_message(), "");
}

static void one_failure_is_told_on_all(void) {
    for (int bad = 0; bad < size; bad++) {
        td_status mine = TD_OK;
        char expected[100];
        if (rank == bad)
            mine = td_fail(TD_ERR_DATA, "file %d is broken", bad);
        // Alone, there is no other rank to tell it from.
        int prefix = size > 1 ? snprintf(expected, sizeof expected, "rank %d: ", bad) : 0;
        snprintf(expected + prefix, sizeof expected - (size_t)prefix, "file %d is broken", bad);
        CHECK_INT(td_comm_agree(comm, mine, "read"), TD_ERR_DATA);
        CHECK_STRING(td_error_message(), expected);
        td_error_clear();
    }
}

static void the_lowest_of_several_failures_counts(void) {
    if (size < 3)
        return;
    td_status mine = TD_OK;
    if (rank == 1)
        mine = td_fail(TD_ERR_IO, "no space");
    if (rank == 2)
        mine = td_fail(TD_ERR_NUMERIC, "not a number");
    CHECK_INT(td_comm_agree(comm, mine, "mixed"), TD_ERR_IO);
    CHECK_STRING(td_error_message(), "rank 1: no space");
    td_error_clear();
}

static void a_failure_of_all_has_no_prefix(void) {
    td_status mine = td_fail(TD_ERR_USAGE, "bad config");
    CHECK_INT(td_comm_agree(comm, mine, "config"), TD_ERR_USAGE);
    CHECK_STRING(td_error_message(), "bad config");
    td_error_clear();
}

static void a_status_without_message_has_its_name(void) {
    if (size == 1)
        return;
    CHECK_INT(td_comm_agree(comm, rank == 1 ? TD_STOPPED : TD_OK, "stop"), TD_STOPPED);
    CHECK_STRING(td_error_message(), "rank 1: stopped on request");
    td_error_clear();
}

static void equal_hashes_pass(void) {
    CHECK_INT(td_comm_require_same(comm, td_hash_bytes("abc", 3), "config"), TD_OK);
}

static void a_differing_hash_is_named(void) {
    for (int odd = 0; odd < size && size > 1; odd++) {
        td_hash hash = rank == odd ? td_hash_bytes("odd", 3) : td_hash_bytes("same", 4);
        // Of two ranks, the first one is the reference.
        char expected[40];
        snprintf(expected, sizeof expected, "rank %d has", size == 2 ? 1 : odd);
        CHECK_INT(td_comm_require_same(comm, hash, "the config"), TD_ERR_USAGE);
        CHECK(strstr(td_error_message(), "the config is not the same"));
        CHECK(strstr(td_error_message(), expected));
        td_error_clear();
    }
}

// Only the high half differs.
static void all_bits_of_a_hash_count(void) {
    td_hash hash = {.low = 5, .high = (uint64_t)(rank == 0)};
    CHECK_INT(td_comm_require_same(comm, hash, "x"), size == 1 ? TD_OK : TD_ERR_USAGE);
    td_error_clear();
}

int main(void) {
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    rank = td_comm_rank(comm);
    size = td_comm_size(comm);
    TEST(all_fine_is_fine);
    TEST(one_failure_is_told_on_all);
    TEST(the_lowest_of_several_failures_counts);
    TEST(a_failure_of_all_has_no_prefix);
    TEST(a_status_without_message_has_its_name);
    TEST(equal_hashes_pass);
    TEST(a_differing_hash_is_named);
    TEST(all_bits_of_a_hash_count);
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
