// Progress as nested ranges: each is closed before the next of its level, and all at the end.
#include "test.h"

#include "runtime/core/progress.h"
#include "runtime/train/profiler_ranges.h"

static char seen[1024];

static void push(const char *name) {
    snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "(%s ", name);
}

static void pop(void) {
    snprintf(seen + strlen(seen), sizeof seen - strlen(seen), ")");
}

static void a_step_is_nested(void) {
    static const td_device_table table = {.range_push = push, .range_pop = pop};
    td_device device = {.table = &table};
    td_progress_phase(TD_PHASE_FORWARD);
    td_profiler_ranges_start(&device);
    td_progress_step(1);
    td_progress_layer(1);
    td_progress_phase(TD_PHASE_BACKWARD);
    td_progress_layer(0);
    td_progress_phase(TD_PHASE_UPDATE);
    td_progress_tick();
    td_profiler_ranges_stop();
    td_progress_step(2);
    CHECK_STRING(seen, "(step 1 (micro-batch 0 (forward (layer 0 )(layer 1 ))(backward (layer 1 )"
                       "(layer 0 )))(updating parameters ))");
}

static void a_device_without_ranges_is_left_alone(void) {
    seen[0] = 0;
    td_profiler_ranges_start(td_device_cpu());
    td_progress_step(3);
    td_profiler_ranges_stop();
    CHECK_STRING(seen, "");
}

int main(void) {
    TEST(a_step_is_nested);
    TEST(a_device_without_ranges_is_left_alone);
    return test_report();
}
