#include "runtime/core/pager.h"

#include "fake_device.h"
#include "scratch.h"

enum { STATE_ITEMS = 24, STATE_BYTES = STATE_ITEMS * 8 + 4 }; // not a multiple of the alignment

static void page_maps_cover_every_element_once(void) {
    static const int64_t sizes[] = {0, 1, 99, 100, 101, 1000};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (int ranks = 1; ranks <= 4; ranks++) {
            td_page_map map;
            REQUIRE(td_page_map_init(&map, sizes[s], 100, ranks) == TD_OK);
            int64_t covered = 0, owned = 0;
            for (int64_t page = 0; page < map.n_pages; page++) {
                td_page_span span = td_page_map_span(&map, page);
                CHECK_INT(span.begin, covered);
                CHECK(span.count > 0 && span.count <= 100);
                CHECK_INT(td_page_map_owner(&map, page), page % ranks);
                covered += span.count;
            }
            for (int rank = 0; rank < ranks; rank++)
                owned += td_page_map_owned_count(&map, rank);
            CHECK_INT(covered, sizes[s]);
            CHECK_INT(owned, map.n_pages);
        }
    }
    td_page_map map;
    CHECK_INT(td_page_map_init(&map, 10, 0, 1), TD_ERR_INTERNAL);
    CHECK_MESSAGE("page map");
    CHECK_INT(td_page_map_init(&map, -1, 1, 1), TD_ERR_INTERNAL);
    CHECK_MESSAGE("page map");
}

static td_pager_options options_for(const td_device *device, int64_t n_pages, int size, int rank,
                                    size_t cache_pages) {
    td_pager_options options = {.device = device,
                                .rank = rank,
                                .state_bytes = STATE_BYTES,
                                .device_cache_bytes = cache_pages * 256};
    REQUIRE(td_page_map_init(&options.map, n_pages * 10 - 3, 10, size) == TD_OK);
    return options;
}

static td_pager *make_pager(const td_device *device, int64_t n_pages, int size, int rank,
                            size_t cache_pages) {
    td_pager_options options = options_for(device, n_pages, size, rank, cache_pages);
    td_pager *pager = NULL;
    REQUIRE(td_pager_create(&options, &pager) == TD_OK);
    return pager;
}

static td_stream *make_stream(const td_device *device) {
    td_stream *stream = NULL;
    REQUIRE(device->table->stream_create(device, &stream) == TD_OK);
    return stream;
}

// An update whose result depends on every earlier one, in order.
static void update(void *memory, int64_t argument) {
    uint64_t *state = memory;
    for (int i = 0; i < STATE_ITEMS; i++)
        state[i] = state[i] * 31 + (uint64_t)(argument + i);
}

static uint64_t seen[64]; // per page, what the reading work has met

static void look(void *memory, int64_t argument) {
    const uint64_t *state = memory;
    for (int i = 0; i < STATE_ITEMS; i++)
        seen[argument % 64] = seen[argument % 64] * 31 + state[i];
}

static void run_work(const td_device *device, td_stream *stream, fake_work work, void *state,
                     int64_t argument) {
    if (device->unified)
        work(state, argument);
    else
        fake_launch(stream, work, state, argument);
}

// Steps over the pages that `rank` owns, alternating between two streams, with the next page
// prefetched; back and forth, so that small caches get some hits.
static void run_steps(td_pager *pager, const td_device *device, int64_t n_pages, int size, int rank,
                      int steps) {
    td_stream *streams[2] = {make_stream(device), make_stream(device)};
    int64_t owned = (n_pages - rank + size - 1) / size;
    for (int step = 0; step < steps; step++) {
        for (int64_t i = 0; i < owned; i++) {
            int64_t index = step % 2 ? owned - 1 - i : i;
            int64_t next = step % 2 ? index - 1 : index + 1;
            int64_t page = rank + index * size;
            td_stream *stream = streams[(step + i) % 2];
            void *state = NULL;
            REQUIRE(td_pager_acquire(pager, page, stream, &state) == TD_OK);
            if (next >= 0 && next < owned)
                REQUIRE(td_pager_prefetch(pager, rank + next * size) == TD_OK);
            int changes = (step * 7 + index) % 3 != 0;
            run_work(device, stream, changes ? update : look, state,
                     changes ? step * 1000 + page : page);
            REQUIRE(td_pager_release(pager, page, stream, changes) == TD_OK);
        }
        if (step == steps / 2)
            REQUIRE(td_pager_flush(pager) == TD_OK);
    }
    REQUIRE(td_pager_flush(pager) == TD_OK);
    for (int i = 0; i < 2; i++) {
        device->table->stream_synchronize(streams[i]);
        device->table->stream_destroy(streams[i]);
    }
}

static void fill_host(td_pager *pager, int64_t n_pages, int size, int rank) {
    for (int64_t page = rank; page < n_pages; page += size)
        memset(td_pager_host_state(pager, page), (int)(page * 37 + 1), STATE_BYTES);
}

static void check_equal_to_unified(int64_t n_pages, int size, int rank, size_t cache_pages) {
    td_pager *plain = make_pager(td_device_cpu(), n_pages, size, rank, 0);
    td_pager *paged = make_pager(&fake_device, n_pages, size, rank, cache_pages);
    fill_host(plain, n_pages, size, rank);
    fill_host(paged, n_pages, size, rank);
    uint64_t seen_plain[64];
    memset(seen, 0, sizeof seen);
    run_steps(plain, td_device_cpu(), n_pages, size, rank, 9);
    memcpy(seen_plain, seen, sizeof seen);
    memset(seen, 0, sizeof seen);
    run_steps(paged, &fake_device, n_pages, size, rank, 9);
    CHECK(memcmp(seen, seen_plain, sizeof seen) == 0);
    for (int64_t page = rank; page < n_pages; page += size)
        CHECK(memcmp(td_pager_host_state(plain, page), td_pager_host_state(paged, page),
                     STATE_BYTES) == 0);
    td_pager_destroy(plain);
    td_pager_destroy(paged);
    CHECK_INT(fake_live_allocations, 0);
}

static void paged_results_equal_unified_ones(void) {
    for (size_t cache_pages = 0; cache_pages <= 12; cache_pages += 3) {
        for (int rank = 0; rank < 3; rank++)
            check_equal_to_unified(20, 3, rank, cache_pages);
        check_equal_to_unified(1, 1, 0, cache_pages);
    }
}

static void with_late_streams(void) {
    fake_order = FAKE_LAZY;
    paged_results_equal_unified_ones();
}

static void with_streams_that_run_at_random(void) {
    fake_order = FAKE_RANDOM;
    for (fake_seed = 1; fake_seed < 20; fake_seed++) {
        unsigned seed = fake_seed;
        check_equal_to_unified(11, 2, 1, seed % 4);
        fake_seed = seed;
    }
    fake_order = FAKE_LAZY;
}

static void touch(td_pager *pager, td_stream *stream, int64_t page, int dirty) {
    void *state = NULL;
    REQUIRE(td_pager_acquire(pager, page, stream, &state) == TD_OK);
    if (dirty)
        fake_launch(stream, update, state, page);
    REQUIRE(td_pager_release(pager, page, stream, dirty) == TD_OK);
}

static void check_counters(const td_pager *pager, uint64_t hits, uint64_t misses,
                           uint64_t write_backs) {
    td_pager_counters counters = td_pager_read_counters(pager);
    CHECK_INT(counters.hits, hits);
    CHECK_INT(counters.misses, misses);
    CHECK_INT(counters.write_backs, write_backs);
}

static void the_least_recently_used_page_leaves_first(void) {
    td_pager *pager = make_pager(&fake_device, 5, 1, 0, 3);
    td_stream *stream = make_stream(&fake_device);
    touch(pager, stream, 0, 0);
    touch(pager, stream, 1, 0);
    touch(pager, stream, 2, 0);
    check_counters(pager, 0, 3, 0);
    touch(pager, stream, 0, 0);
    touch(pager, stream, 3, 0); // in place of 1
    touch(pager, stream, 0, 0);
    touch(pager, stream, 2, 0);
    check_counters(pager, 3, 4, 0);
    touch(pager, stream, 1, 0);
    check_counters(pager, 3, 5, 0);
    fake_stream_destroy(stream);
    td_pager_destroy(pager);
}

static void only_dirty_pages_are_written_back(void) {
    td_pager *pager = make_pager(&fake_device, 5, 1, 0, 2);
    td_stream *stream = make_stream(&fake_device);
    fake_copies = 0;
    touch(pager, stream, 0, 1);
    touch(pager, stream, 1, 0);
    touch(pager, stream, 2, 0); // 0 leaves, written back
    touch(pager, stream, 3, 0); // 1 leaves
    check_counters(pager, 0, 4, 1);
    CHECK_INT(fake_copies, 5);
    touch(pager, stream, 3, 1);
    REQUIRE(td_pager_flush(pager) == TD_OK);
    check_counters(pager, 1, 4, 2);
    REQUIRE(td_pager_flush(pager) == TD_OK);
    check_counters(pager, 1, 4, 2);
    uint64_t expected[STATE_ITEMS] = {0};
    update(expected, 3);
    CHECK(memcmp(td_pager_host_state(pager, 3), expected, sizeof expected) == 0);
    fake_stream_synchronize(stream);
    fake_stream_destroy(stream);
    td_pager_destroy(pager);
}

static void a_prefetched_page_is_one_miss_and_no_hit(void) {
    td_pager *pager = make_pager(&fake_device, 5, 1, 0, 3);
    td_stream *stream = make_stream(&fake_device);
    REQUIRE(td_pager_prefetch(pager, 4) == TD_OK);
    REQUIRE(td_pager_prefetch(pager, 4) == TD_OK);
    check_counters(pager, 0, 1, 0);
    touch(pager, stream, 4, 0);
    check_counters(pager, 0, 1, 0);
    touch(pager, stream, 4, 0);
    check_counters(pager, 1, 1, 0);
    fake_stream_destroy(stream);
    td_pager_destroy(pager);
}

static void acquired_pages_stay(void) {
    td_pager *pager = make_pager(&fake_device, 6, 1, 0, 2);
    td_stream *stream = make_stream(&fake_device);
    void *first, *second, *other;
    REQUIRE(td_pager_acquire(pager, 0, stream, &first) == TD_OK);
    touch(pager, stream, 1, 1);
    touch(pager, stream, 2, 1);
    REQUIRE(td_pager_acquire(pager, 0, stream, &second) == TD_OK);
    CHECK(first == second);
    REQUIRE(td_pager_acquire(pager, 3, stream, &other) == TD_OK);
    CHECK_INT(td_pager_acquire(pager, 4, stream, &other), TD_ERR_INTERNAL);
    CHECK_MESSAGE("all 2 pages in the optimizer cache are in use");
    CHECK_INT(td_pager_prefetch(pager, 4), TD_OK); // no room: nothing happens
    REQUIRE(td_pager_release(pager, 0, stream, 0) == TD_OK);
    CHECK_INT(td_pager_acquire(pager, 4, stream, &other), TD_ERR_INTERNAL); // held once more
    td_error_clear();
    REQUIRE(td_pager_release(pager, 0, stream, 0) == TD_OK);
    CHECK_INT(td_pager_acquire(pager, 4, stream, &other), TD_OK);
    fake_stream_destroy(stream);
    td_pager_destroy(pager);
}

// The page leaves only after the work of both streams, whichever released it last.
static void two_streams_may_hold_one_page(void) {
    td_pager *pager = make_pager(&fake_device, 6, 1, 0, 2);
    td_stream *streams[2] = {make_stream(&fake_device), make_stream(&fake_device)};
    uint64_t expected[STATE_ITEMS] = {0};
    void *state = NULL;
    for (int i = 0; i < 2; i++)
        REQUIRE(td_pager_acquire(pager, 0, streams[i], &state) == TD_OK);
    fake_launch(streams[0], update, state, 77);
    for (int i = 0; i < 2; i++)
        REQUIRE(td_pager_release(pager, 0, streams[i], i == 0) == TD_OK);
    REQUIRE(td_pager_flush(pager) == TD_OK);
    update(expected, 77);
    CHECK(memcmp(td_pager_host_state(pager, 0), expected, sizeof expected) == 0);
    for (int i = 0; i < 2; i++)
        fake_stream_destroy(streams[i]);
    td_pager_destroy(pager);
}

static void misuse_is_refused(void) {
    td_pager *pager = make_pager(&fake_device, 6, 2, 1, 2);
    td_stream *stream = make_stream(&fake_device);
    void *state;
    CHECK_INT(td_pager_acquire(pager, 2, stream, &state), TD_ERR_INTERNAL);
    CHECK_MESSAGE("page 2 does not belong to rank 1");
    CHECK_INT(td_pager_prefetch(pager, 7), TD_ERR_INTERNAL);
    CHECK_MESSAGE("page 7");
    CHECK_INT(td_pager_acquire(pager, -1, stream, &state), TD_ERR_INTERNAL);
    CHECK_MESSAGE("page -1");
    CHECK_INT(td_pager_release(pager, 1, stream, 0), TD_ERR_INTERNAL);
    CHECK_MESSAGE("was not acquired");
    touch(pager, stream, 1, 0);
    CHECK_INT(td_pager_release(pager, 1, stream, 0), TD_ERR_INTERNAL);
    CHECK_MESSAGE("was not acquired");
    CHECK(td_pager_host_state(pager, 0) == NULL && td_pager_host_state(pager, 1) != NULL);
    fake_stream_destroy(stream);
    td_pager_destroy(pager);
}

static void restored_state_is_seen_after_invalidate(void) {
    td_pager *pager = make_pager(&fake_device, 4, 1, 0, 4);
    td_stream *stream = make_stream(&fake_device);
    void *state = NULL;
    touch(pager, stream, 2, 1);
    td_pager_invalidate(pager);
    memset(td_pager_host_state(pager, 2), 0x55, STATE_BYTES);
    REQUIRE(td_pager_acquire(pager, 2, stream, &state) == TD_OK);
    fake_stream_synchronize(stream);
    for (int i = 0; i < STATE_BYTES; i++)
        CHECK_INT(((unsigned char *)state)[i], 0x55);
    REQUIRE(td_pager_release(pager, 2, stream, 0) == TD_OK);
    REQUIRE(td_pager_flush(pager) == TD_OK);
    CHECK_INT(((unsigned char *)td_pager_host_state(pager, 2))[0], 0x55);
    check_counters(pager, 0, 2, 0);
    fake_stream_destroy(stream);
    td_pager_destroy(pager);
}

static void a_write_back_under_way_does_not_undo_a_restore(void) {
    td_pager *pager = make_pager(&fake_device, 4, 1, 0, 2);
    td_stream *stream = make_stream(&fake_device);
    for (int64_t page = 0; page < 3; page++)
        touch(pager, stream, page, 1);
    check_counters(pager, 0, 3, 1);
    td_pager_invalidate(pager);
    memset(td_pager_host_state(pager, 0), 0x55, STATE_BYTES);
    REQUIRE(td_pager_flush(pager) == TD_OK);
    CHECK_INT(((unsigned char *)td_pager_host_state(pager, 0))[0], 0x55);
    fake_stream_destroy(stream);
    td_pager_destroy(pager);
}

static void the_plan_says_what_is_taken(void) {
    size_t host_bytes, device_bytes;
    td_pager_options options = options_for(&fake_device, 20, 3, 0, 5);
    td_pager_plan(&options, &host_bytes, &device_bytes);
    CHECK_INT(host_bytes, 7 * 256);
    CHECK_INT(device_bytes, 5 * 256);
    options.device_cache_bytes = 700; // whole pages
    td_pager_plan(&options, &host_bytes, &device_bytes);
    CHECK_INT(device_bytes, 2 * 256);
    options.device_cache_bytes = 0; // at least two
    td_pager_plan(&options, &host_bytes, &device_bytes);
    CHECK_INT(device_bytes, 2 * 256);
    options.device_cache_bytes = SIZE_MAX; // not more than there are
    td_pager_plan(&options, &host_bytes, &device_bytes);
    CHECK_INT(device_bytes, 7 * 256);
    options.device = td_device_cpu();
    td_pager_plan(&options, &host_bytes, &device_bytes);
    CHECK_INT(host_bytes, 7 * 256);
    CHECK_INT(device_bytes, 0);
}

static void a_rank_without_pages_has_a_pager(void) {
    td_pager *pager = make_pager(&fake_device, 2, 4, 3, 2);
    CHECK_INT(td_pager_flush(pager), TD_OK);
    td_pager_invalidate(pager);
    td_pager_destroy(pager);
    CHECK_INT(fake_live_allocations, 0);
}

static void a_failed_creation_owes_nothing(void) {
    for (int nth = 1; nth <= 2; nth++) {
        td_pager_options options = options_for(&fake_device, 6, 1, 0, 3);
        td_pager *pager = NULL;
        fake_fail_allocation = nth;
        CHECK_INT(td_pager_create(&options, &pager), TD_ERR_MEMORY);
        CHECK_MESSAGE(nth == 1 ? "optimizer state" : "cache of optimizer pages");
        CHECK(pager == NULL);
        CHECK_INT(fake_live_allocations, 0);
    }
}

static void a_unified_device_hands_out_host_memory(void) {
    td_pager *pager = make_pager(td_device_cpu(), 3, 1, 0, 2);
    void *state = NULL;
    for (int64_t page = 0; page < 3; page++) {
        REQUIRE(td_pager_acquire(pager, page, NULL, &state) == TD_OK);
        CHECK(state == td_pager_host_state(pager, page));
    }
    CHECK_INT(td_pager_release(pager, 1, NULL, 1), TD_OK);
    CHECK_INT(td_pager_flush(pager), TD_OK);
    check_counters(pager, 3, 0, 0);
    td_pager_destroy(pager);
}

int main(void) {
    TEST(page_maps_cover_every_element_once);
    TEST(with_late_streams);
    TEST(with_streams_that_run_at_random);
    TEST(the_least_recently_used_page_leaves_first);
    TEST(only_dirty_pages_are_written_back);
    TEST(a_prefetched_page_is_one_miss_and_no_hit);
    TEST(acquired_pages_stay);
    TEST(two_streams_may_hold_one_page);
    TEST(misuse_is_refused);
    TEST(restored_state_is_seen_after_invalidate);
    TEST(a_write_back_under_way_does_not_undo_a_restore);
    TEST(the_plan_says_what_is_taken);
    TEST(a_rank_without_pages_has_a_pager);
    TEST(a_failed_creation_owes_nothing);
    TEST(a_unified_device_hands_out_host_memory);
    return test_report();
}
