// Values of every blocking collective, on any number of ranks.
#include "test.h"

#include "comm/comm.h"
#include "runtime/core/rng.h"

static td_comm *comm;
static int rank, size;

// What rank `from` contributes: every rank can compute it for every other.
static int64_t value_of(int from, uint64_t index) {
    uint64_t high = td_rng_word(77, (uint32_t)from, 1, index);
    return (int64_t)(high << 32 | td_rng_word(77, (uint32_t)from, 2, index));
}

static void identity_fits_the_job(void) {
    CHECK(rank >= 0 && rank < size);
    // All ranks of the tests are on one node.
    CHECK_INT(td_comm_local_rank(comm), rank);
    CHECK_INT(td_comm_local_size(comm), size);
    CHECK_STRING(td_comm_transport_name(comm), size == 1 ? "self" : "mpi");
}

static void broadcast_from_every_root(void) {
    for (int root = 0; root < size; root++) {
        int64_t values[100];
        for (int i = 0; i < 100; i++)
            values[i] = rank == root ? value_of(root, (uint64_t)i) : -1;
        CHECK_INT(td_comm_broadcast(comm, values, sizeof values, root, "broadcast"), TD_OK);
        int wrong = 0;
        for (int i = 0; i < 100; i++)
            wrong += values[i] != value_of(root, (uint64_t)i);
        CHECK_INT(wrong, 0);
    }
}

static void node_broadcast_comes_from_local_rank_0(void) {
    int64_t value = value_of(rank, 5);
    CHECK_INT(td_comm_node_broadcast(comm, &value, sizeof value, "node"), TD_OK);
    CHECK_INT(value, value_of(0, 5));
}

static void empty_collectives_complete(void) {
    CHECK_INT(td_comm_broadcast(comm, NULL, 0, size - 1, "nothing"), TD_OK);
    CHECK_INT(td_comm_allgather(comm, NULL, NULL, 0, "nothing"), TD_OK);
    CHECK_INT(td_comm_allreduce_i64(comm, NULL, 0, "nothing"), TD_OK);
    CHECK_INT(td_comm_barrier(comm, "barrier"), TD_OK);
}

static void allgather_is_in_rank_order(void) {
    int64_t mine[3], all[3 * 64];
    REQUIRE(size <= 64);
    for (int i = 0; i < 3; i++)
        mine[i] = value_of(rank, (uint64_t)i);
    CHECK_INT(td_comm_allgather(comm, mine, all, sizeof mine, "gather"), TD_OK);
    int wrong = 0;
    for (int i = 0; i < 3 * size; i++)
        wrong += all[i] != value_of(i / 3, (uint64_t)i % 3);
    CHECK_INT(wrong, 0);
}

static int64_t serial_sum(uint64_t index) {
    uint64_t sum = 0;
    for (int from = 0; from < size; from++)
        sum += (uint64_t)value_of(from, index);
    return (int64_t)sum;
}

static void allreduce_equals_the_serial_sum(void) {
    enum { COUNT = 10007 };
    static int64_t values[COUNT];
    for (int i = 0; i < COUNT; i++)
        values[i] = value_of(rank, (uint64_t)i);
    CHECK_INT(td_comm_allreduce_i64(comm, values, COUNT, "sum"), TD_OK);
    int wrong = 0;
    for (int i = 0; i < COUNT; i++)
        wrong += values[i] != serial_sum((uint64_t)i);
    CHECK_INT(wrong, 0);
}

// Longer than one piece of the transport, and not a multiple of it.
enum { LONG_BYTES = 37 * (1 << 20) + 13 };

static unsigned char byte_of(int from, size_t index) {
    return (unsigned char)((index * 2654435761u >> 13) + (size_t)from * 101);
}

static size_t wrong_bytes(const unsigned char *data, int from) {
    size_t wrong = 0;
    for (size_t i = 0; i < LONG_BYTES; i++)
        wrong += data[i] != byte_of(from, i);
    return wrong;
}

static void fill_bytes(unsigned char *data, int from) {
    for (size_t i = 0; i < LONG_BYTES; i++)
        data[i] = byte_of(from, i);
}

static void long_broadcast_arrives_whole(void) {
    unsigned char *data = calloc(LONG_BYTES, 1);
    REQUIRE(data);
    if (rank == size - 1)
        fill_bytes(data, size - 1);
    CHECK_INT(td_comm_broadcast(comm, data, LONG_BYTES, size - 1, "long broadcast"), TD_OK);
    CHECK_INT(wrong_bytes(data, size - 1), 0);
    free(data);
}

static void long_allgather_arrives_whole(void) {
    unsigned char *mine = malloc(LONG_BYTES), *all = malloc((size_t)size * LONG_BYTES);
    REQUIRE(mine && all);
    fill_bytes(mine, rank);
    CHECK_INT(td_comm_allgather(comm, mine, all, LONG_BYTES, "long gather"), TD_OK);
    for (int from = 0; from < size; from++)
        CHECK_INT(wrong_bytes(all + (size_t)from * LONG_BYTES, from), 0);
    free(mine);
    free(all);
}

static void counters_grow(void) {
    td_comm_counters before = td_comm_read_counters(comm);
    int64_t values[8] = {0};
    CHECK_INT(td_comm_allreduce_i64(comm, values, 8, "count"), TD_OK);
    CHECK_INT(td_comm_barrier(comm, "count"), TD_OK);
    td_comm_counters after = td_comm_read_counters(comm);
    CHECK_INT(after.collectives - before.collectives, 2);
    CHECK_INT(after.bytes - before.bytes, sizeof values);
    CHECK(after.wait_seconds >= before.wait_seconds);
}

int main(void) {
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    rank = td_comm_rank(comm);
    size = td_comm_size(comm);
    TEST(identity_fits_the_job);
    TEST(broadcast_from_every_root);
    TEST(node_broadcast_comes_from_local_rank_0);
    TEST(empty_collectives_complete);
    TEST(allgather_is_in_rank_order);
    TEST(allreduce_equals_the_serial_sum);
    TEST(long_broadcast_arrives_whole);
    TEST(long_allgather_arrives_whole);
    TEST(counters_grow);
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
