// Gradient buckets: what reaches the owners, when it starts, and that ranks without work take part.
#include "test.h"

#include "comm/buckets.h"
#include "runtime/core/rng.h"

static td_comm *comm;
static td_device_comm *device_comm;
static td_stream *stream;
static int rank, size;

enum { N_ELEMENTS = 10 * 64 + 17, PAGE_ELEMENTS = 64 };
static int64_t values[N_ELEMENTS];

static int64_t value_of(int from, int64_t index) {
    uint64_t high = td_rng_word(11, (uint32_t)from, 1, (uint64_t)index);
    return (int64_t)(high << 32 | td_rng_word(11, (uint32_t)from, 2, (uint64_t)index));
}

static td_buckets *make(td_collective_type type, void *data, int64_t pages_per_bucket,
                        td_page_map *map) {
    td_buckets *buckets;
    REQUIRE(td_page_map_init(map, N_ELEMENTS, PAGE_ELEMENTS, size) == TD_OK);
    REQUIRE(td_buckets_create(device_comm, map, type, data, pages_per_bucket, &buckets) == TD_OK);
    return buckets;
}

// Ranks from n_working on contribute zeros.
static int wrong_sums(const td_page_map *map, int n_working) {
    int wrong = 0;
    for (int64_t page = 0; page < map->n_pages; page++) {
        td_page_span span = td_page_map_span(map, page);
        for (int64_t i = span.begin; i < span.begin + span.count; i++) {
            uint64_t sum = 0;
            for (int from = 0; from < n_working; from++)
                sum += (uint64_t)value_of(from, i);
            wrong += td_page_map_owner(map, page) == rank && values[i] != (int64_t)sum;
        }
    }
    return wrong;
}

// Elements become final from the end, as in a backward pass; what is final is not touched again.
static void run_backward(td_buckets *buckets, int64_t elements_per_layer) {
    for (int64_t end = N_ELEMENTS; end > 0;) {
        int64_t begin = end > elements_per_layer ? end - elements_per_layer : 0;
        for (int64_t i = begin; i < end; i++)
            values[i] = value_of(rank, i);
        REQUIRE(td_buckets_advance(buckets, begin, stream) == TD_OK);
        end = begin;
    }
}

static void owners_get_the_serial_sums(void) {
    td_page_map map;
    for (int64_t pages_per_bucket = 1; pages_per_bucket < 14; pages_per_bucket += 3) {
        td_buckets *buckets = make(TD_COLLECTIVE_I64, values, pages_per_bucket, &map);
        for (int step = 0; step < 3; step++) {
            td_buckets_reset(buckets);
            run_backward(buckets, 50 + 37 * step);
            REQUIRE(td_buckets_wait(buckets, stream) == TD_OK);
            CHECK_INT(wrong_sums(&map, size), 0);
        }
        td_buckets_destroy(buckets);
    }
}

static void a_rank_without_micro_batches_takes_part(void) {
    td_page_map map;
    int n_working = size > 1 ? size - 1 : 1;
    td_buckets *buckets = make(TD_COLLECTIVE_I64, values, 2, &map);
    if (rank < n_working) {
        run_backward(buckets, 100);
    } else {
        memset(values, 0, sizeof values);
        REQUIRE(td_buckets_advance(buckets, 0, stream) == TD_OK);
    }
    REQUIRE(td_buckets_wait(buckets, stream) == TD_OK);
    CHECK_INT(wrong_sums(&map, n_working), 0);
    td_buckets_destroy(buckets);
}

static uint64_t started(void) {
    return td_comm_read_counters(comm).collectives;
}

static void buckets_start_as_soon_as_they_are_final(void) {
    td_page_map map;
    td_buckets *buckets = make(TD_COLLECTIVE_I64, values, 4, &map);
    // 11 pages: bucket 2 has the pages 8 to 10, bucket 1 4 to 7, bucket 0 0 to 3.
    uint64_t before = started();
    memset(values, 0, sizeof values);
    REQUIRE(td_buckets_advance(buckets, 8 * PAGE_ELEMENTS + 1, stream) == TD_OK);
    CHECK_INT(started() - before, 0);
    REQUIRE(td_buckets_advance(buckets, 8 * PAGE_ELEMENTS, stream) == TD_OK);
    CHECK_INT(started() - before, 3);
    REQUIRE(td_buckets_advance(buckets, 3 * PAGE_ELEMENTS, stream) == TD_OK);
    CHECK_INT(started() - before, 7);
    CHECK_INT(td_buckets_wait(buckets, stream), TD_ERR_INTERNAL);
    td_error_clear();
    REQUIRE(td_buckets_advance(buckets, 0, stream) == TD_OK);
    CHECK_INT(started() - before, 11);
    REQUIRE(td_buckets_advance(buckets, 0, stream) == TD_OK);
    CHECK_INT(started() - before, 11);
    REQUIRE(td_buckets_wait(buckets, stream) == TD_OK);
    td_buckets_destroy(buckets);
}

static void fp32_buckets_reach_the_owners(void) {
    static float floats[N_ELEMENTS];
    td_page_map map;
    td_buckets *buckets = make(TD_COLLECTIVE_F32, floats, 3, &map);
    for (int i = 0; i < N_ELEMENTS; i++)
        floats[i] = (float)(i * (rank + 1));
    REQUIRE(td_buckets_advance(buckets, 0, stream) == TD_OK);
    REQUIRE(td_buckets_wait(buckets, stream) == TD_OK);
    int wrong = 0;
    for (int i = 0; i < N_ELEMENTS; i++)
        wrong += td_page_map_owner(&map, i / PAGE_ELEMENTS) == rank &&
                 floats[i] != (float)(i * (size * (size + 1) / 2));
    CHECK_INT(wrong, 0);
    td_buckets_destroy(buckets);
}

static void no_elements_are_no_buckets(void) {
    td_page_map map;
    td_buckets *buckets;
    REQUIRE(td_page_map_init(&map, 0, PAGE_ELEMENTS, size) == TD_OK);
    REQUIRE(td_buckets_create(device_comm, &map, TD_COLLECTIVE_I64, NULL, 1, &buckets) == TD_OK);
    CHECK_INT(td_buckets_advance(buckets, 0, stream), TD_OK);
    CHECK_INT(td_buckets_wait(buckets, stream), TD_OK);
    td_buckets_destroy(buckets);
}

static void a_map_of_other_ranks_is_refused(void) {
    td_page_map map;
    td_buckets *buckets = NULL;
    REQUIRE(td_page_map_init(&map, 100, 10, size + 1) == TD_OK);
    CHECK_INT(td_buckets_create(device_comm, &map, TD_COLLECTIVE_I64, values, 1, &buckets),
              TD_ERR_INTERNAL);
    CHECK(buckets == NULL);
    td_error_clear();
}

int main(void) {
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    rank = td_comm_rank(comm);
    size = td_comm_size(comm);
    const td_device *device = td_device_cpu();
    td_device_comm_options options = {
        .comm = comm,
        .device = device,
        .max_bytes = PAGE_ELEMENTS * sizeof(int64_t),
        .in_flight = N_ELEMENTS / PAGE_ELEMENTS + 1,
    };
    REQUIRE(device->table->stream_create(device, &stream) == TD_OK);
    REQUIRE(td_device_transport_host.create(&options, &device_comm) == TD_OK);
    TEST(owners_get_the_serial_sums);
    TEST(a_rank_without_micro_batches_takes_part);
    TEST(buckets_start_as_soon_as_they_are_final);
    TEST(fp32_buckets_reach_the_owners);
    TEST(no_elements_are_no_buckets);
    TEST(a_map_of_other_ranks_is_refused);
    td_device_transport_host.destroy(device_comm);
    device->table->stream_destroy(stream);
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
