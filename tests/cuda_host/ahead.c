// Weights that are dequantized ahead on a stream of their own: the same bits as without, however
// calls are queued and whatever else is decided; and without one of the waits other bits, or no
// recording. On the GPU module, emulated or real.
//
//     test_ahead_gpu [planted]
//
// planted: waits are left out. That can be asked of the emulation only, a GPU may be in time by
// luck.
#include "training_calls.h"

enum { WEIGHTS = 7 }; // of a layer

// Of the calls of few_shapes(); evaluated between them, so that what was meant for one call is not
// taken by another.
static outcome run_few(way how) {
    call calls[MAX_CALLS];
    return run_calls(tested, calls, few_shapes(calls), how);
}

static int same_calls(const outcome *a, const outcome *b) {
    call calls[MAX_CALLS];
    return same(a, b, few_shapes(calls));
}

// Uses of one training call: forward, backward but for q, k and v of the lowest layer, and again.
static int64_t uses_of(td_recompute recompute, int64_t n_layers) {
    int again = recompute == TD_RECOMPUTE_BLOCK       ? WEIGHTS - 1
                : recompute == TD_RECOMPUTE_NORMS_MLP ? 2
                                                      : 0;
    return n_layers * (2 * WEIGHTS + again) - 3;
}

static void check_policy(td_recompute recompute) {
    way how = {.graphs = TD_GRAPHS_OFF, .recompute = recompute};
    outcome within = run_few(how);
    how.dequantize_ahead = 1;
    outcome ahead = run_few(how);
    how.graphs = TD_GRAPHS_ON;
    outcome repeated = run_few(how);
    CHECK(same_calls(&within, &ahead));
    CHECK(same_calls(&within, &repeated));
    CHECK_INT(within.dequantized_ahead, 0);
    // Nothing is dequantized that is not used.
    call calls[MAX_CALLS];
    int64_t each = uses_of(recompute, within.n_layers);
    CHECK_INT(ahead.dequantized_ahead, few_shapes(calls) * each);
    CHECK(!repeated.counts.is_off && repeated.counts.repeated > repeated.counts.recorded);
    int64_t recorded = repeated.counts.recorded / (within.n_layers + 1);
    int64_t calls_repeated = repeated.counts.repeated / (within.n_layers + 1);
    CHECK_INT(repeated.dequantized_ahead, (few_shapes(calls) - calls_repeated + recorded) * each);
    free(within.sums);
    free(ahead.sums);
    free(repeated.sums);
}

static void one_policy_has_the_bits_of_weights_dequantized_by_products(void) {
    check_policy(TD_RECOMPUTE_BLOCK);
}

static void every_policy_has_the_bits_of_weights_dequantized_by_products(void) {
    for (td_recompute policy = TD_RECOMPUTE_NONE; policy <= TD_RECOMPUTE_BLOCK; policy++)
        check_policy(policy);
}

// Layers with copies are passed over, and with copies of all of them nothing is left to do.
static void copies_are_not_dequantized_again(void) {
    way how = {.graphs = TD_GRAPHS_OFF, .recompute = TD_RECOMPUTE_BLOCK, .evaluates = 1};
    outcome within = run_few(how);
    how.dequantize_ahead = 1;
    REQUIRE(within.n_layers > 1);
    int64_t before = 0;
    for (int64_t copied = 0; copied <= within.n_layers; copied++) {
        how.copied_layers = copied;
        outcome ahead = run_few(how);
        CHECK(same_calls(&within, &ahead));
        CHECK(copied == 0 || ahead.dequantized_ahead < before);
        before = ahead.dequantized_ahead;
        free(ahead.sums);
    }
    CHECK_INT(before, 0);
    free(within.sums);
}

// A recording that fails is queued, with the weights from where it left off.
static void what_cannot_be_recorded_is_queued(void) {
    way how = {.graphs = TD_GRAPHS_ON, .synchronizes = 1, .dequantize_ahead = 1};
    outcome ahead = run_few(how);
    how.dequantize_ahead = 0;
    how.graphs = TD_GRAPHS_OFF;
    outcome within = run_few(how);
    CHECK(same_calls(&within, &ahead));
    CHECK_INT(ahead.counts.is_off, 1);
    free(within.sums);
    free(ahead.sums);
}

// A device that is full.
static const td_device *behind;

static td_status tell_full(const td_device *device, size_t *free_bytes, size_t *total_bytes) {
    TD_TRY(behind->table->memory_info(device, free_bytes, total_bytes));
    *free_bytes = *total_bytes / 64;
    return TD_OK;
}

static const td_device *without_memory(const td_device *real) {
    static td_device device;
    static td_device_table table;
    behind = real;
    table = *real->table;
    table.memory_info = tell_full;
    device = *real;
    device.table = &table;
    return &device;
}

static void without_memory_products_dequantize_for_themselves(void) {
    way how = {.graphs = TD_GRAPHS_OFF, .recompute = TD_RECOMPUTE_BLOCK};
    outcome within = run_few(how);
    how.dequantize_ahead = 1;
    how.device = without_memory;
    outcome ahead = run_few(how);
    CHECK(same_calls(&within, &ahead));
    CHECK_INT(ahead.dequantized_ahead, 0);
    CHECK_STRING(td_error_message(), "");
    free(within.sums);
    free(ahead.sums);
}

// A device that leaves out waits of the context's stream, which is the first one made, or of the
// other's.
static int misses_filled, misses_read;
static td_stream *first_stream;

static td_status noting_stream_create(const td_device *device, td_stream **out) {
    TD_TRY(behind->table->stream_create(device, out));
    if (!first_stream)
        first_stream = *out;
    return TD_OK;
}

static td_status wait_or_not(td_event *event, td_stream *waiting) {
    if (waiting == first_stream ? misses_filled : misses_read)
        return TD_OK;
    return behind->table->event_wait(event, waiting);
}

static const td_device *without_waits(const td_device *real) {
    static td_device device;
    static td_device_table table;
    behind = real;
    first_stream = NULL;
    table = *real->table;
    table.stream_create = noting_stream_create;
    table.event_wait = wait_or_not;
    device = *real;
    device.table = &table;
    return &device;
}

static outcome run_without(int filled, int read, td_graphs_use graphs) {
    misses_filled = filled;
    misses_read = read;
    return run_few((way){.graphs = graphs,
                         .recompute = TD_RECOMPUTE_BLOCK,
                         .dequantize_ahead = 1,
                         .device = without_waits});
}

static void a_missing_wait_shows(void) {
    outcome right = run_without(0, 0, TD_GRAPHS_OFF);
    outcome early = run_without(1, 0, TD_GRAPHS_OFF); // products before their weights
    outcome over = run_without(0, 1, TD_GRAPHS_OFF);  // weights over those that are being read
    CHECK(!same_calls(&right, &early));
    CHECK(!same_calls(&right, &over));
    free(right.sums);
    free(early.sums);
    free(over.sums);
}

// A recorded segment that its weights do not rejoin is refused.
static void a_recording_without_its_weights_fails(void) {
    outcome whole = run_without(0, 0, TD_GRAPHS_ON), open = run_without(1, 0, TD_GRAPHS_ON);
    CHECK(!whole.counts.is_off);
    CHECK(open.counts.is_off);
    free(whole.sums);
    free(open.sums);
}

int main(int argc, char **argv) {
    if (load_module())
        return 1;
    tested = module->ops_bf16;
    if (argc > 1 && strcmp(argv[1], "planted") == 0) {
        TEST(a_missing_wait_shows);
        TEST(a_recording_without_its_weights_fails);
        return test_report();
    }
    TEST(every_policy_has_the_bits_of_weights_dequantized_by_products);
    TEST(copies_are_not_dequantized_again);
    TEST(what_cannot_be_recorded_is_queued);
    TEST(without_memory_products_dequantize_for_themselves);
    tested = module->ops_fp32;
    TEST(one_policy_has_the_bits_of_weights_dequantized_by_products);
    return test_report();
}
