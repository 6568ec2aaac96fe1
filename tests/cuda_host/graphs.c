// Training calls that repeat recorded work have the bits of those that queue every operation,
// whatever changes between calls of one shape; on the GPU module, emulated or real.
#include "training_calls.h"

static int changes_every_time(const outcome *self, int n) {
    int changes = 1;
    for (int i = 1; i < n; i++)
        changes &=
            self->losses[i] != self->losses[i - 1] &&
            memcmp(self->sums + (i - 1) * self->n_parameters, self->sums + i * self->n_parameters,
                   (size_t)self->n_parameters * sizeof(int64_t)) != 0;
    return changes;
}

static void repeated_work_has_the_bits_of_queued_work(void) {
    call calls[MAX_CALLS];
    int n = few_shapes(calls);
    outcome queued = run_calls(tested, calls, n, (way){.graphs = TD_GRAPHS_OFF});
    outcome repeated = run_calls(tested, calls, n, (way){.graphs = TD_GRAPHS_ON});
    CHECK(changes_every_time(&queued, n));
    CHECK(same(&queued, &repeated, n));
    CHECK_INT(repeated.layers_done, queued.layers_done);
    // Shapes that come twice are recorded: 24 and 31 tokens with 3 or 4 sequences, and 24 with one.
    CHECK_INT(queued.counts.recorded, 0);
    CHECK(queued.counts.is_off && !repeated.counts.is_off);
    CHECK_INT(repeated.counts.recorded, 3 * (queued.n_layers + 1));
    CHECK_INT(repeated.counts.repeated, (n - 4) * (queued.n_layers + 1));
    free(queued.sums);
    free(repeated.sums);
}

// A recording keeps what module_done() was given by value: here against its promise, and seen.
static void what_a_recording_holds_by_value_stays(void) {
    call calls[MAX_CALLS];
    int n = few_shapes(calls);
    outcome queued =
        run_calls(tested, calls, n, (way){.graphs = TD_GRAPHS_OFF, .quantum_changes = 1});
    outcome repeated =
        run_calls(tested, calls, n, (way){.graphs = TD_GRAPHS_ON, .quantum_changes = 1});
    CHECK(!same(&queued, &repeated, n));
    free(queued.sums);
    free(repeated.sums);
}

static void what_cannot_be_recorded_is_queued(void) {
    call calls[MAX_CALLS];
    int n = few_shapes(calls);
    outcome queued = run_calls(tested, calls, n, (way){.graphs = TD_GRAPHS_OFF, .synchronizes = 1});
    outcome tried = run_calls(tested, calls, n, (way){.graphs = TD_GRAPHS_ON, .synchronizes = 1});
    CHECK(same(&queued, &tried, n));
    CHECK_INT(tried.counts.is_off, 1);
    CHECK_INT(tried.counts.recorded, 1); // the blocks, but no layer of the backward pass
    free(queued.sums);
    free(tried.sums);
}

// Rows of a table that stays in pinned memory are those of one on the device.
static void embeddings_may_stay_on_the_host(void) {
    call calls[MAX_CALLS];
    int n = few_shapes(calls);
    outcome there = run_calls(tested, calls, n, (way){.graphs = TD_GRAPHS_OFF});
    outcome here = run_calls(tested, calls, n, (way){.graphs = TD_GRAPHS_ON, .host_embedding = 1});
    CHECK(same(&there, &here, n));
    CHECK(here.base_bytes < there.base_bytes);
    free(there.sums);
    free(here.sums);
}

// Recordings of four shapes are kept; a fifth takes the place of one that has not come for long.
static void recordings_make_room_for_others(void) {
    call calls[MAX_CALLS];
    int n = 0;
    for (int shape = 0; shape < 4; shape++)
        for (int i = 0; i < 2; i++)
            calls[n++] = (call){.n_tokens = 4 + shape, .n_sequences = 1, .n_targets = 1};
    for (int i = 0; i < 66; i++)
        calls[n++] = (call){.n_tokens = 9, .n_sequences = 1, .n_targets = 1};
    for (int i = 0; i < n; i++)
        calls[i].gradient_scale = 1.0f;
    outcome queued = run_calls(tested, calls, n, (way){.graphs = TD_GRAPHS_OFF});
    outcome repeated = run_calls(tested, calls, n, (way){.graphs = TD_GRAPHS_ON});
    CHECK(same(&queued, &repeated, n));
    CHECK_INT(repeated.counts.recorded, 5 * (queued.n_layers + 1));
    free(queued.sums);
    free(repeated.sums);
}

int main(void) {
    if (load_module())
        return 1;
    tested = module->ops_fp32;
    TEST(repeated_work_has_the_bits_of_queued_work);
    TEST(what_cannot_be_recorded_is_queued);
    tested = module->ops_bf16;
    TEST(repeated_work_has_the_bits_of_queued_work);
    TEST(embeddings_may_stay_on_the_host);
    TEST(what_a_recording_holds_by_value_stays);
    TEST(recordings_make_room_for_others);
    return test_report();
}
