// The pager on a CUDA device whose streams run when they like: test_pager_streams_gpu [planted]
//
// Random sequences of what its callers may do, with caches that hold few pages. The work on a page
// is queued copies that move everything in it on by one byte and add another, so that a page is the
// list of its last changes: one that is lost, doubled or out of order shows in every later one.
//
// planted: waits for events are left out, one kind at a time, and the comparison must notice. That
// can be asked of the emulation only, a GPU may be in time by luck.
#include "runtime/core/pager.h"

#include <stdint.h>

#include "runtime/core/gpu_module.h"
#include "test.h"

enum { STATE_BYTES = 200, MOST_PAGES = 24, STREAMS = 3, MOST_LOOKS = 400, ACTIONS = 250 };

// What may be left out.
typedef enum missing_wait {
    NONE,
    WORK_BEFORE_COPY, // the copy stream does not wait for work
    FETCH_BEFORE_WORK,
    WORK_BEFORE_WORK, // of another stream on the same page
} missing_wait;

static const td_device *real_device;
static td_device device;
static missing_wait missing;

// Of each event: the stream of its last record.
enum { MOST_EVENTS = 64 };
static td_event *events[MOST_EVENTS];
static td_stream *recorded_on[MOST_EVENTS];
static int n_events;
static td_stream *copy_stream; // the one that is made within td_pager_create()
static int creating_pager;

static int index_of(td_event *event) {
    for (int i = 0; i < n_events; i++)
        if (events[i] == event)
            return i;
    REQUIRE(n_events < MOST_EVENTS);
    events[n_events] = event;
    recorded_on[n_events] = NULL;
    return n_events++;
}

static td_status noting_stream_create(const td_device *on, td_stream **out) {
    TD_TRY(real_device->table->stream_create(on, out));
    if (creating_pager)
        copy_stream = *out;
    return TD_OK;
}

static td_status noting_record(td_event *event, td_stream *stream) {
    recorded_on[index_of(event)] = stream;
    return real_device->table->event_record(event, stream);
}

static missing_wait kind_of(td_event *event, td_stream *waiting) {
    if (waiting == copy_stream)
        return WORK_BEFORE_COPY;
    return recorded_on[index_of(event)] == copy_stream ? FETCH_BEFORE_WORK : WORK_BEFORE_WORK;
}

static td_status wait_or_not(td_event *event, td_stream *waiting) {
    if (kind_of(event, waiting) == missing)
        return TD_OK;
    return real_device->table->event_wait(event, waiting);
}

static void wrap_device(void) {
    static td_device_table table;
    table = *real_device->table;
    table.stream_create = noting_stream_create;
    table.event_record = noting_record;
    table.event_wait = wait_or_not;
    device = *real_device;
    device.table = &table;
}

// One random sequence, and what it should leave.
typedef struct trial {
    uint64_t random;
    int64_t n_pages;
    int size, rank;
    td_pager *pager;
    td_stream *streams[STREAMS];
    unsigned char *scratch[STREAMS]; // device
    unsigned char *looks;            // device: what reading work met
    unsigned char expected_looks[MOST_LOOKS][STATE_BYTES];
    int n_looks;
    unsigned char expected[MOST_PAGES][STATE_BYTES];
    unsigned char last_change;
    // Pages in use: at most one fewer than the cache has slots.
    struct holder {
        int64_t page;
        int stream, changes;
        unsigned char *state; // device
    } holders[4];
    int n_holders, most_holders;
} trial;

static uint32_t below(trial *t, uint32_t n) {
    t->random = t->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((t->random >> 33) % n);
}

static int64_t random_page(trial *t) {
    int64_t owned = (t->n_pages - t->rank + t->size - 1) / t->size;
    return t->rank + t->size * below(t, (uint32_t)owned);
}

static void *device_memory(size_t bytes) {
    void *memory = NULL;
    REQUIRE(device.table->alloc(&device, bytes, "a test", &memory) == TD_OK);
    return memory;
}

static void start_pager(trial *t, size_t cache_pages) {
    td_pager_options options = {.device = &device,
                                .rank = t->rank,
                                .state_bytes = STATE_BYTES,
                                .device_cache_bytes = cache_pages * 256};
    REQUIRE(td_page_map_init(&options.map, t->n_pages * 10 - 1, 10, t->size) == TD_OK);
    creating_pager = 1;
    REQUIRE(td_pager_create(&options, &t->pager) == TD_OK);
    creating_pager = 0;
}

static void trial_start(trial *t, uint64_t seed) {
    *t = (trial){.random = seed * 0x9e3779b97f4a7c15u};
    below(t, 2);
    n_events = 0;
    t->size = 1 + (int)below(t, 3);
    t->rank = (int)below(t, (uint32_t)t->size);
    t->n_pages = MOST_PAGES - below(t, 12);
    size_t cache_pages = 2 + below(t, 3);
    t->most_holders = (int)cache_pages - 1;
    start_pager(t, cache_pages);
    for (int i = 0; i < STREAMS; i++) {
        REQUIRE(device.table->stream_create(&device, &t->streams[i]) == TD_OK);
        t->scratch[i] = device_memory(STATE_BYTES);
    }
    t->looks = device_memory(MOST_LOOKS * STATE_BYTES);
}

static void trial_end(trial *t) {
    for (int i = 0; i < STREAMS; i++)
        device.table->stream_destroy(t->streams[i]);
    td_pager_destroy(t->pager);
    for (int i = 0; i < STREAMS; i++)
        device.table->free(&device, t->scratch[i]);
    device.table->free(&device, t->looks);
}

static void change(trial *t, const struct holder *holder) {
    td_stream *stream = t->streams[holder->stream];
    unsigned char *scratch = t->scratch[holder->stream], *model = t->expected[holder->page];
    t->last_change++;
    REQUIRE(device.table->copy(stream, scratch, holder->state + 1, STATE_BYTES - 1) == TD_OK);
    REQUIRE(device.table->set(stream, scratch + STATE_BYTES - 1, t->last_change, 1) == TD_OK);
    REQUIRE(device.table->copy(stream, holder->state, scratch, STATE_BYTES) == TD_OK);
    memmove(model, model + 1, STATE_BYTES - 1);
    model[STATE_BYTES - 1] = t->last_change;
}

static void look(trial *t, const struct holder *holder) {
    if (t->n_looks == MOST_LOOKS)
        return;
    REQUIRE(device.table->copy(t->streams[holder->stream], t->looks + t->n_looks * STATE_BYTES,
                               holder->state, STATE_BYTES) == TD_OK);
    memcpy(t->expected_looks[t->n_looks++], t->expected[holder->page], STATE_BYTES);
}

static void release(trial *t, int which) {
    struct holder holder = t->holders[which];
    t->holders[which] = t->holders[--t->n_holders];
    REQUIRE(td_pager_release(t->pager, holder.page, t->streams[holder.stream], holder.changes) ==
            TD_OK);
}

// A page may be held twice by those who only look.
static int may_hold(const trial *t, int64_t page, int changes) {
    for (int i = 0; i < t->n_holders; i++)
        if (t->holders[i].page == page && (changes || t->holders[i].changes))
            return 0;
    return t->n_holders < t->most_holders;
}

static void acquire(trial *t) {
    struct holder holder = {.page = random_page(t), .stream = (int)below(t, STREAMS)};
    void *state = NULL;
    holder.changes = below(t, 3) != 0;
    if (!may_hold(t, holder.page, holder.changes))
        return;
    REQUIRE(td_pager_acquire(t->pager, holder.page, t->streams[holder.stream], &state) == TD_OK);
    holder.state = state;
    for (uint32_t n = 1 + below(t, 2); n > 0; n--) {
        if (holder.changes)
            change(t, &holder);
        else
            look(t, &holder);
    }
    t->holders[t->n_holders++] = holder;
}

static int host_is_as_expected(const trial *t) {
    for (int64_t page = t->rank; page < t->n_pages; page += t->size)
        if (memcmp(td_pager_host_state(t->pager, page), t->expected[page], STATE_BYTES) != 0)
            return 0;
    return 1;
}

static int flush(trial *t) {
    while (t->n_holders > 0)
        release(t, 0);
    REQUIRE(td_pager_flush(t->pager) == TD_OK);
    return host_is_as_expected(t);
}

// As when a checkpoint is loaded: other state on the host, and nothing of the old one left. Work
// on the old one may still be under way.
static void restore(trial *t) {
    while (t->n_holders > 0)
        release(t, 0);
    td_pager_invalidate(t->pager);
    for (int64_t page = t->rank; page < t->n_pages; page += t->size) {
        t->last_change++;
        memset(t->expected[page], t->last_change, STATE_BYTES);
        memcpy(td_pager_host_state(t->pager, page), t->expected[page], STATE_BYTES);
    }
}

static int act(trial *t) {
    switch (below(t, 40)) {
    case 0:
        return flush(t);
    case 1:
        if (below(t, 4) == 0)
            restore(t);
        return 1;
    case 2:
        REQUIRE(device.table->stream_synchronize(t->streams[below(t, STREAMS)]) == TD_OK);
        return 1;
    default:
        break;
    }
    if (below(t, 3) == 0)
        REQUIRE(td_pager_prefetch(t->pager, random_page(t)) == TD_OK);
    else if (t->n_holders > 0 && below(t, 2))
        release(t, (int)below(t, (uint32_t)t->n_holders));
    else
        acquire(t);
    return 1;
}

static int looks_are_as_expected(trial *t) {
    static unsigned char found[MOST_LOOKS][STATE_BYTES];
    for (int i = 0; i < STREAMS; i++)
        REQUIRE(device.table->stream_synchronize(t->streams[i]) == TD_OK);
    REQUIRE(device.table->copy(t->streams[0], found, t->looks, sizeof found) == TD_OK);
    REQUIRE(device.table->stream_synchronize(t->streams[0]) == TD_OK);
    return memcmp(found, t->expected_looks, (size_t)t->n_looks * STATE_BYTES) == 0;
}

// 1: host state after every flush, and everything that was read, is as expected.
static int trial_holds(uint64_t seed, td_pager_counters *out_counters) {
    static trial t;
    int ok = 1;
    trial_start(&t, seed);
    for (int i = 0; i < ACTIONS; i++)
        ok &= act(&t);
    ok &= flush(&t);
    ok &= looks_are_as_expected(&t);
    *out_counters = td_pager_read_counters(t.pager);
    trial_end(&t);
    return ok;
}

static void every_change_arrives_whenever_streams_run(void) {
    td_pager_counters all = {0}, one;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        if (!CHECK(trial_holds(seed, &one)))
            fprintf(stderr, "    in the sequence of seed %d\n", (int)seed);
        all.hits += one.hits;
        all.misses += one.misses;
        all.write_backs += one.write_backs;
    }
    // Nothing was left out by these sequences.
    CHECK(all.hits > 100 && all.misses > 1000 && all.write_backs > 500);
}

static void notice(missing_wait kind) {
    td_pager_counters counters;
    int noticed = 0;
    missing = kind;
    for (uint64_t seed = 1; seed <= 60 && !noticed; seed++)
        noticed = !trial_holds(seed, &counters);
    missing = NONE;
    CHECK(noticed);
}

static void copies_that_do_not_wait_for_work_are_noticed(void) {
    notice(WORK_BEFORE_COPY);
}

static void work_that_does_not_wait_for_the_fetch_is_noticed(void) {
    notice(FETCH_BEFORE_WORK);
}

static void work_that_does_not_wait_for_other_work_is_noticed(void) {
    notice(WORK_BEFORE_WORK);
}

// What a device promises of memory, and CUDA does not.
static void new_memory_is_zero(void) {
    enum { BYTES = 1003 };
    const td_device_table *table = real_device->table;
    void *memory, *pinned;
    td_stream *stream;
    REQUIRE(table->alloc(real_device, BYTES, "a test", &memory) == TD_OK);
    REQUIRE(table->alloc_pinned(real_device, 2 * BYTES, "a test", &pinned) == TD_OK);
    REQUIRE(table->stream_create(real_device, &stream) == TD_OK);
    REQUIRE(table->copy(stream, pinned, memory, BYTES) == TD_OK);
    REQUIRE(table->stream_synchronize(stream) == TD_OK);
    int set = 0;
    for (int i = 0; i < 2 * BYTES; i++)
        set += ((const unsigned char *)pinned)[i] != 0;
    CHECK_INT(set, 0);
    table->stream_destroy(stream);
    table->free_pinned(real_device, pinned);
    table->free(real_device, memory);
}

static void open_device(void) {
    const td_gpu_module *module = NULL;
    char reason[256] = "";
    td_gpu_module_load(&module, reason, sizeof reason);
    if (!module)
        fprintf(stderr, "no GPU: %s\n", reason);
    REQUIRE(module != NULL);
    REQUIRE(module->device_open(0, &real_device) == TD_OK);
    wrap_device();
}

int main(int argc, char **argv) {
    open_device();
    if (argc > 1 && strcmp(argv[1], "planted") == 0) {
        TEST(copies_that_do_not_wait_for_work_are_noticed);
        TEST(work_that_does_not_wait_for_the_fetch_is_noticed);
        TEST(work_that_does_not_wait_for_other_work_is_noticed);
    } else {
        TEST(new_memory_is_zero);
        TEST(every_change_arrives_whenever_streams_run);
    }
    return test_report();
}
