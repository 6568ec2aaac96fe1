// Asynchronous collectives: many at once, waited for in any order, sums exact.
#include "test.h"

#include <time.h>

#include "comm/comm.h"
#include "runtime/core/rng.h"

static td_comm *comm;
static int rank, size;

static int64_t value_of(int from, uint64_t index) {
    uint64_t high = td_rng_word(99, (uint32_t)from, 1, index);
    return (int64_t)(high << 32 | td_rng_word(99, (uint32_t)from, 2, index));
}

static int64_t serial_sum(uint64_t index) {
    uint64_t sum = 0;
    for (int from = 0; from < size; from++)
        sum += (uint64_t)value_of(from, index);
    return (int64_t)sum;
}

enum { N_REQUESTS = 1500, COUNT = 17 };
static int64_t buffers[N_REQUESTS][COUNT];
static td_request requests[N_REQUESTS];

// Alternates sums and broadcasts with changing roots; request i has COUNT values from index i *
// COUNT.
static void start_many(void) {
    for (int i = 0; i < N_REQUESTS; i++) {
        int root = i % size;
        for (int j = 0; j < COUNT; j++)
            buffers[i][j] = value_of(rank, (uint64_t)(i * COUNT + j));
        if (i % 3 == 2)
            REQUIRE(td_comm_broadcast_start(comm, buffers[i], sizeof buffers[i], root, "many",
                                            &requests[i]) == TD_OK);
        else
            REQUIRE(td_comm_reduce_i64_start(comm, buffers[i], COUNT, root, "many", &requests[i]) ==
                    TD_OK);
    }
}

static int wrong_values(int i) {
    int root = i % size, wrong = 0;
    if (i % 3 != 2 && rank != root)
        return 0;
    for (int j = 0; j < COUNT; j++) {
        uint64_t index = (uint64_t)(i * COUNT + j);
        wrong += buffers[i][j] != (i % 3 == 2 ? value_of(root, index) : serial_sum(index));
    }
    return wrong;
}

static void many_outstanding_requests_give_the_serial_values(void) {
    int wrong = 0;
    start_many();
    for (int i = 0; i < N_REQUESTS; i++) {
        REQUIRE(td_comm_wait(comm, requests[i]) == TD_OK);
        wrong += wrong_values(i);
    }
    CHECK_INT(wrong, 0);
}

static void requests_may_be_waited_for_in_any_order(void) {
    int wrong = 0;
    start_many();
    for (int i = N_REQUESTS - 1; i >= 0; i--) {
        REQUIRE(td_comm_wait(comm, requests[i]) == TD_OK);
        wrong += wrong_values(i);
    }
    CHECK_INT(wrong, 0);
}

static void blocking_ones_come_after_those_started_before(void) {
    int64_t value = value_of(rank, 1), sum = value_of(rank, 2);
    td_request request;
    REQUIRE(td_comm_reduce_i64_start(comm, &value, 1, 0, "started", &request) == TD_OK);
    REQUIRE(td_comm_allreduce_i64(comm, &sum, 1, "blocking") == TD_OK);
    CHECK_INT(sum, serial_sum(2));
    REQUIRE(td_comm_wait(comm, request) == TD_OK);
    if (rank == 0)
        CHECK_INT(value, serial_sum(1));
}

// 3 pieces of the transport on the way, with a short one behind them.
static void long_sum_is_exact(void) {
    enum { LONG = 5 * (1 << 20) + 3 };
    int64_t *values = malloc(LONG * sizeof *values);
    td_request request;
    REQUIRE(values);
    for (int i = 0; i < LONG; i++)
        values[i] = value_of(rank, (uint64_t)i % 4099) + i;
    REQUIRE(td_comm_reduce_i64_start(comm, values, LONG, size - 1, "long", &request) == TD_OK);
    REQUIRE(td_comm_barrier(comm, "behind") == TD_OK);
    REQUIRE(td_comm_wait(comm, request) == TD_OK);
    int wrong = 0;
    for (int i = 0; rank == size - 1 && i < LONG; i++)
        wrong += values[i] !=
                 (int64_t)((uint64_t)serial_sum((uint64_t)i % 4099) + (uint64_t)i * (uint64_t)size);
    CHECK_INT(wrong, 0);
    free(values);
}

// Small integers: every order of adding them in fp32 is exact.
static void fp32_sums_of_integers_are_exact(void) {
    float values[1000];
    td_request request;
    for (int i = 0; i < 1000; i++)
        values[i] = (float)(i + 1000 * rank);
    REQUIRE(td_comm_reduce_f32_start(comm, values, 1000, 0, "fp32", &request) == TD_OK);
    REQUIRE(td_comm_wait(comm, request) == TD_OK);
    int wrong = 0;
    for (int i = 0; rank == 0 && i < 1000; i++)
        wrong += values[i] != (float)(i * size + 1000 * (size * (size - 1) / 2));
    CHECK_INT(wrong, 0);
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Rank 0 comes late; the others' start must return at once all the same.
static void start_does_not_wait_for_other_ranks(void) {
    int64_t value = rank;
    td_request request;
    REQUIRE(td_comm_barrier(comm, "before") == TD_OK);
    double begin = seconds_now();
    if (rank == 0 && size > 1)
        nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
    double start = seconds_now();
    REQUIRE(td_comm_reduce_i64_start(comm, &value, 1, 0, "late", &request) == TD_OK);
    CHECK(seconds_now() - start < 0.25);
    REQUIRE(td_comm_wait(comm, request) == TD_OK);
    if (rank == 0)
        CHECK_INT(value, size * (size - 1) / 2);
    REQUIRE(td_comm_barrier(comm, "after") == TD_OK);
    if (size > 1)
        CHECK(seconds_now() - begin > 0.4);
}

// Rank 0 comes late: the others look in vain first, and find it done in the end.
static void a_test_returns_at_once(void) {
    int64_t value = value_of(rank, 3);
    td_request request;
    int done = 0, n_looks = 0;
    REQUIRE(td_comm_barrier(comm, "before") == TD_OK);
    if (rank == 0 && size > 1)
        nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    REQUIRE(td_comm_broadcast_start(comm, &value, sizeof value, 0, "late", &request) == TD_OK);
    double start = seconds_now();
    REQUIRE(td_comm_test(comm, request, &done) == TD_OK);
    CHECK(seconds_now() - start < 0.1);
    for (; !done; n_looks++) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        REQUIRE(td_comm_test(comm, request, &done) == TD_OK);
    }
    if (rank > 0)
        CHECK(n_looks > 0);
    REQUIRE(td_comm_wait(comm, request) == TD_OK);
    CHECK_INT(value, value_of(0, 3));
}

// More than the queue has room for at first, among operations that are still under way.
static void waits_elsewhere_keep_the_order(void) {
    td_comm_counters before = td_comm_read_counters(comm);
    int wrong = 0;
    start_many();
    for (int i = 0; i < N_REQUESTS; i++) {
        td_request elsewhere;
        REQUIRE(td_comm_enter(comm, 8, 0, "elsewhere", &elsewhere) == TD_OK);
        if (i == 0)
            nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
        REQUIRE(td_comm_leave(comm, elsewhere) == TD_OK);
        REQUIRE(td_comm_wait(comm, requests[i]) == TD_OK);
        wrong += wrong_values(i);
    }
    CHECK_INT(wrong, 0);
    td_comm_counters after = td_comm_read_counters(comm);
    CHECK_INT(after.collectives - before.collectives, 2 * N_REQUESTS);
    CHECK(after.wait_seconds - before.wait_seconds >= 0.05);
}

static void unknown_requests_are_refused(void) {
    td_request request;
    int64_t value = 1;
    REQUIRE(td_comm_reduce_i64_start(comm, &value, 1, 0, "one", &request) == TD_OK);
    REQUIRE(td_comm_wait(comm, request) == TD_OK);
    CHECK_INT(td_comm_wait(comm, request + 100), TD_ERR_INTERNAL);
    CHECK(strstr(td_error_message(), "request"));
    td_error_clear();
    int done;
    CHECK_INT(td_comm_test(comm, request + 100, &done), TD_ERR_INTERNAL);
    td_error_clear();
    CHECK_INT(td_comm_reduce_i64_start(comm, &value, 1, size, "one", &request), TD_ERR_INTERNAL);
    td_error_clear();
}

int main(void) {
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    rank = td_comm_rank(comm);
    size = td_comm_size(comm);
    TEST(many_outstanding_requests_give_the_serial_values);
    TEST(requests_may_be_waited_for_in_any_order);
    TEST(blocking_ones_come_after_those_started_before);
    TEST(long_sum_is_exact);
    TEST(fp32_sums_of_integers_are_exact);
    TEST(start_does_not_wait_for_other_ranks);
    TEST(a_test_returns_at_once);
    TEST(waits_elsewhere_keep_the_order);
    TEST(unknown_requests_are_refused);
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
