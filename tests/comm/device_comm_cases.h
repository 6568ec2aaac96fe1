// What every transport for device memory must do, on whatever device: one list of cases, included
// by the programs that bring the device.
//
// Everything around an operation is queued on streams and nothing is synchronized until the end, so
// that on a device whose streams run when they like a missing order shows as a wrong value.
#ifndef TANDEM_TESTS_COMM_DEVICE_COMM_CASES_H
#define TANDEM_TESTS_COMM_DEVICE_COMM_CASES_H

#include "test.h"

#include <time.h>

#include "comm/buckets.h"
#include "runtime/core/rng.h"

enum { N_OPERATIONS = 24, LARGEST = 5000, IN_FLIGHT = N_OPERATIONS };

static td_comm *comm;
static int rank, size;
static const td_device *device;
static const td_device_transport *transport;
static td_stream *stream;
static uint32_t round_number; // sizes and values differ from round to round

static td_device_comm *make(size_t max_bytes, size_t in_flight) {
    td_device_comm *out = NULL;
    td_device_comm_options options = {comm, device, max_bytes, in_flight};
    REQUIRE(transport->create(&options, &out) == TD_OK);
    return out;
}

static void *alloc_device(size_t bytes) {
    void *memory = NULL;
    REQUIRE(device->table->alloc(device, bytes, "a test", &memory) == TD_OK);
    return memory;
}

static void *alloc_pinned(size_t bytes) {
    void *memory = NULL;
    REQUIRE(device->table->alloc_pinned(device, bytes, "a test", &memory) == TD_OK);
    return memory;
}

// One operation with its memory; the same size and root on every rank.
typedef struct device_trial {
    size_t count; // int64
    int root, is_reduction;
    int64_t *device_values; // (count) device memory
    int64_t *given, *got;   // (count) pinned
    int64_t *before;        // (count) pinned: what the device had when the operation was started
    td_request request;
} device_trial;

static int64_t value_of(int from, uint32_t trial_number, size_t i) {
    uint32_t stream_number = round_number * 1000 + trial_number;
    uint64_t high = td_rng_word(5, (uint32_t)from, stream_number, 2 * i);
    return (int64_t)(high << 32 | td_rng_word(5, (uint32_t)from, stream_number, 2 * i + 1));
}

static size_t count_of(uint32_t trial_number) {
    uint32_t word = td_rng_word(6, round_number, trial_number, 0);
    return word % 5 == 0 ? 0 : word % 7 == 0 ? LARGEST : word % 999 + 1;
}

static device_trial make_trial(uint32_t number) {
    device_trial out = {
        .count = count_of(number),
        .root = (int)(number % (uint32_t)size),
        .is_reduction = td_rng_word(7, round_number, number, 0) % 2 == 0,
    };
    size_t bytes = out.count * sizeof(int64_t);
    out.device_values = alloc_device(bytes);
    out.given = alloc_pinned(bytes);
    out.got = alloc_pinned(bytes);
    out.before = alloc_pinned(bytes);
    for (size_t i = 0; i < out.count; i++)
        out.given[i] = value_of(rank, number, i);
    return out;
}

static void free_trial(device_trial *trial) {
    device->table->free_pinned(device, trial->before);
    device->table->free_pinned(device, trial->got);
    device->table->free_pinned(device, trial->given);
    device->table->free(device, trial->device_values);
}

static void queue_copy(void *to, const void *from, size_t count) {
    REQUIRE(device->table->copy(stream, to, from, count * sizeof(int64_t)) == TD_OK);
}

static void start_trial(td_device_comm *device_comm, device_trial *trial) {
    queue_copy(trial->device_values, trial->given, trial->count);
    queue_copy(trial->before, trial->device_values, trial->count);
    if (trial->is_reduction)
        REQUIRE(transport->reduce_start(device_comm, trial->device_values, trial->count,
                                        TD_COLLECTIVE_I64, trial->root, stream, "sum",
                                        &trial->request) == TD_OK);
    else
        REQUIRE(transport->broadcast_start(device_comm, trial->device_values,
                                           trial->count * sizeof(int64_t), trial->root, stream,
                                           "copy", &trial->request) == TD_OK);
}

// The buffer is the caller's again: it is read and overwritten at once.
static void wait_trial(td_device_comm *device_comm, device_trial *trial) {
    REQUIRE(transport->wait(device_comm, trial->request, stream) == TD_OK);
    queue_copy(trial->got, trial->device_values, trial->count);
    REQUIRE(device->table->set(stream, trial->device_values, 0x5a,
                               trial->count * sizeof(int64_t)) == TD_OK);
}

static int64_t expected_value(const device_trial *trial, uint32_t number, size_t i) {
    uint64_t sum = 0;
    if (!trial->is_reduction)
        return value_of(trial->root, number, i);
    for (int from = 0; from < size; from++)
        sum += (uint64_t)value_of(from, number, i);
    return (int64_t)sum;
}

static int count_wrong(const device_trial *trial, uint32_t number) {
    int wrong = 0, has_result = !trial->is_reduction || trial->root == rank;
    for (size_t i = 0; i < trial->count; i++) {
        wrong += has_result && trial->got[i] != expected_value(trial, number, i);
        wrong += trial->before[i] != value_of(rank, number, i);
    }
    return wrong;
}

static void check_trials(const device_trial *trials, uint32_t n) {
    REQUIRE(device->table->stream_synchronize(stream) == TD_OK);
    int wrong = 0;
    for (uint32_t i = 0; i < n; i++)
        wrong += count_wrong(&trials[i], i);
    CHECK_INT(wrong, 0);
}

static void make_trials(device_trial *trials, uint32_t n) {
    round_number++;
    for (uint32_t i = 0; i < n; i++)
        trials[i] = make_trial(i);
}

static void free_trials(device_trial *trials, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        free_trial(&trials[i]);
}

static void many_in_flight_are_exact(void) {
    td_device_comm *device_comm = make(LARGEST * sizeof(int64_t), IN_FLIGHT);
    device_trial trials[N_OPERATIONS];
    for (int step = 0; step < 3; step++) {
        make_trials(trials, N_OPERATIONS);
        for (int i = 0; i < N_OPERATIONS; i++) {
            start_trial(device_comm, &trials[i]);
            if (i % 3 == step)
                REQUIRE(transport->progress(device_comm) == TD_OK);
        }
        for (int i = 0; i < N_OPERATIONS; i++)
            wait_trial(device_comm, &trials[i]);
        check_trials(trials, N_OPERATIONS);
        free_trials(trials, N_OPERATIONS);
    }
    transport->destroy(device_comm);
}

static void waits_may_come_in_another_order(void) {
    td_device_comm *device_comm = make(LARGEST * sizeof(int64_t), IN_FLIGHT);
    device_trial trials[N_OPERATIONS];
    make_trials(trials, N_OPERATIONS);
    for (int i = 0; i < N_OPERATIONS; i++)
        start_trial(device_comm, &trials[i]);
    for (int i = 0; i < N_OPERATIONS; i++)
        wait_trial(device_comm, &trials[i * 7 % N_OPERATIONS]);
    check_trials(trials, N_OPERATIONS);
    free_trials(trials, N_OPERATIONS);
    transport->destroy(device_comm);
}

// A receiver has nothing to hand out, so nothing but an event makes the result come after what its
// stream still does with the buffer.
static void receivers_read_the_old_values_first(void) {
    enum { N_COPIES = 8 };
    td_device_comm *device_comm = make(LARGEST * sizeof(int64_t), 1);
    device_trial trials[N_COPIES];
    make_trials(trials, N_COPIES);
    for (int i = 0; i < N_COPIES; i++) {
        trials[i].is_reduction = 0;
        trials[i].root = 0;
        start_trial(device_comm, &trials[i]);
        wait_trial(device_comm, &trials[i]);
    }
    check_trials(trials, N_COPIES);
    free_trials(trials, N_COPIES);
    transport->destroy(device_comm);
}

// Few places: every wait makes room for the next start, for as long as one likes.
static void places_are_used_again(void) {
    enum { PLACES = 3 };
    td_device_comm *device_comm = make(LARGEST * sizeof(int64_t), PLACES);
    device_trial trials[N_OPERATIONS];
    make_trials(trials, N_OPERATIONS);
    for (int i = 0; i < N_OPERATIONS + PLACES; i++) {
        if (i >= PLACES)
            wait_trial(device_comm, &trials[i - PLACES]);
        if (i < N_OPERATIONS)
            start_trial(device_comm, &trials[i]);
    }
    check_trials(trials, N_OPERATIONS);
    free_trials(trials, N_OPERATIONS);
    transport->destroy(device_comm);
}

static void slow_ranks_are_waited_for(void) {
    td_device_comm *device_comm = make(LARGEST * sizeof(int64_t), IN_FLIGHT);
    device_trial trials[6];
    make_trials(trials, 6);
    for (int i = 0; i < 6; i++) {
        if (i % size == rank)
            nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
        start_trial(device_comm, &trials[i]);
    }
    for (int i = 0; i < 6; i++)
        wait_trial(device_comm, &trials[i]);
    check_trials(trials, 6);
    free_trials(trials, 6);
    transport->destroy(device_comm);
}

enum { BUCKET_ELEMENTS = 10 * 64 + 17, BUCKET_PAGE = 64 };

// Backward passes of two steps, all of them queued and none waited for: a layer's values are on
// their way to the device when its buckets are started.
static void queue_step(td_buckets *buckets, int64_t *values, const int64_t *given) {
    td_buckets_reset(buckets);
    for (int64_t end = BUCKET_ELEMENTS; end > 0;) {
        int64_t begin = end > 90 ? end - 90 : 0;
        queue_copy(values + begin, given + begin, (size_t)(end - begin));
        REQUIRE(td_buckets_advance(buckets, begin, stream) == TD_OK);
        end = begin;
    }
    REQUIRE(td_buckets_wait(buckets, stream) == TD_OK);
}

static int wrong_sums(const td_page_map *map, const int64_t *sums, uint32_t step) {
    int wrong = 0;
    for (int64_t i = 0; i < BUCKET_ELEMENTS; i++) {
        uint64_t sum = 0;
        for (int from = 0; from < size; from++)
            sum += (uint64_t)value_of(from, step, (size_t)i);
        wrong += td_page_map_owner(map, i / BUCKET_PAGE) == rank && sums[i] != (int64_t)sum;
    }
    return wrong;
}

static void buckets_follow_the_stream(void) {
    enum { BYTES = BUCKET_ELEMENTS * sizeof(int64_t) };
    td_page_map map;
    td_buckets *buckets;
    td_device_comm *device_comm = make(BUCKET_PAGE * sizeof(int64_t), BUCKET_ELEMENTS / 64 + 1);
    int64_t *values = alloc_device(BYTES), *given = alloc_pinned(2 * BYTES);
    int64_t *sums = alloc_pinned(2 * BYTES);
    REQUIRE(td_page_map_init(&map, BUCKET_ELEMENTS, BUCKET_PAGE, size) == TD_OK);
    REQUIRE(td_buckets_create(device_comm, &map, TD_COLLECTIVE_I64, values, 3, &buckets) == TD_OK);
    for (uint32_t step = 0; step < 2; step++)
        for (size_t i = 0; i < BUCKET_ELEMENTS; i++)
            given[step * BUCKET_ELEMENTS + i] = value_of(rank, step, i);
    for (uint32_t step = 0; step < 2; step++) {
        queue_step(buckets, values, given + step * BUCKET_ELEMENTS);
        queue_copy(sums + step * BUCKET_ELEMENTS, values, BUCKET_ELEMENTS);
    }
    REQUIRE(device->table->stream_synchronize(stream) == TD_OK);
    CHECK_INT(wrong_sums(&map, sums, 0), 0);
    CHECK_INT(wrong_sums(&map, sums + BUCKET_ELEMENTS, 1), 0);
    td_buckets_destroy(buckets);
    device->table->free_pinned(device, sums);
    device->table->free_pinned(device, given);
    device->table->free(device, values);
    transport->destroy(device_comm);
}

// Small integers: every order of the sum gives the same.
static void floats_are_summed(void) {
    enum { COUNT = 3001 };
    td_device_comm *device_comm = make(COUNT * sizeof(float), 1);
    float *values = alloc_device(COUNT * sizeof(float)), *host = alloc_pinned(sizeof *host * COUNT);
    int root = size - 1, wrong = 0;
    td_request request;
    for (int i = 0; i < COUNT; i++)
        host[i] = (float)(i * (rank + 1));
    REQUIRE(device->table->copy(stream, values, host, COUNT * sizeof(float)) == TD_OK);
    REQUIRE(transport->reduce_start(device_comm, values, COUNT, TD_COLLECTIVE_F32, root, stream,
                                    "floats", &request) == TD_OK);
    REQUIRE(transport->wait(device_comm, request, stream) == TD_OK);
    REQUIRE(device->table->copy(stream, host, values, COUNT * sizeof(float)) == TD_OK);
    REQUIRE(device->table->stream_synchronize(stream) == TD_OK);
    for (int i = 0; i < COUNT; i++)
        wrong += rank == root && host[i] != (float)(i * (size * (size + 1) / 2));
    CHECK_INT(wrong, 0);
    device->table->free_pinned(device, host);
    device->table->free(device, values);
    transport->destroy(device_comm);
}

static void a_communicator_without_operations_is_fine(void) {
    td_device_comm *device_comm = make(0, 0);
    CHECK_INT(transport->progress(device_comm), TD_OK);
    transport->destroy(device_comm);
}

static void roots_that_do_not_exist_are_refused(void) {
    td_device_comm *device_comm = make(64, 2);
    void *values = alloc_device(64);
    td_request request;
    CHECK_INT(transport->reduce_start(device_comm, values, 8, TD_COLLECTIVE_I64, size, stream,
                                      "sum", &request),
              TD_ERR_INTERNAL);
    td_error_clear();
    CHECK_INT(transport->broadcast_start(device_comm, values, 64, -1, stream, "copy", &request),
              TD_ERR_INTERNAL);
    td_error_clear();
    device->table->free(device, values);
    transport->destroy(device_comm);
}

// For the transports with places and staging memory of their own.
static void more_than_planned_is_refused(void) {
    td_device_comm *device_comm = make(64, 1);
    void *values = alloc_device(128);
    td_request request, other;
    CHECK_INT(transport->broadcast_start(device_comm, values, 65, 0, stream, "copy", &request),
              TD_ERR_INTERNAL);
    td_error_clear();
    REQUIRE(transport->broadcast_start(device_comm, values, 64, 0, stream, "copy", &request) ==
            TD_OK);
    CHECK_INT(transport->broadcast_start(device_comm, values, 64, 0, stream, "copy", &other),
              TD_ERR_INTERNAL);
    td_error_clear();
    REQUIRE(transport->wait(device_comm, request, stream) == TD_OK);
    CHECK_INT(transport->wait(device_comm, request, stream), TD_ERR_INTERNAL);
    td_error_clear();
    CHECK_INT(transport->wait(device_comm, request + 1, stream), TD_ERR_INTERNAL);
    td_error_clear();
    REQUIRE(device->table->stream_synchronize(stream) == TD_OK);
    device->table->free(device, values);
    transport->destroy(device_comm);
}

static void run_cases(void) {
    REQUIRE(device->table->stream_create(device, &stream) == TD_OK);
    TEST(many_in_flight_are_exact);
    TEST(waits_may_come_in_another_order);
    TEST(receivers_read_the_old_values_first);
    TEST(places_are_used_again);
    TEST(slow_ranks_are_waited_for);
    TEST(buckets_follow_the_stream);
    TEST(floats_are_summed);
    TEST(a_communicator_without_operations_is_fine);
    TEST(roots_that_do_not_exist_are_refused);
    if (transport != &td_device_transport_host)
        TEST(more_than_planned_is_refused);
    device->table->stream_destroy(stream);
}

#endif
