#include "runtime/train/profiler_ranges.h"

#include <stdio.h>

#include "runtime/core/progress.h"

// From the outermost to the innermost. A place in a step is a micro-batch, which has passes over
// the layers, or what comes after them.
enum { STEP, PLACE, PASS, LAYER, N_LEVELS };

static const td_device_table *table; // NULL: nobody is told
static int64_t open_at[N_LEVELS];
static int n_open;

static void close_to(int level) {
    for (; n_open > level; n_open--)
        table->range_pop();
}

static void open_next(int64_t value) {
    static const char *const names[] = {"step", "micro-batch", NULL, "layer"};
    char name[48];
    if (n_open == PASS || value < 0)
        snprintf(name, sizeof name, "%s", td_phase_name((td_phase)(value < 0 ? -value : value)));
    else
        snprintf(name, sizeof name, "%s %lld", names[n_open], (long long)value);
    table->range_push(name);
    open_at[n_open++] = value;
}

static void follow(const td_progress *now) {
    int is_pass = now->phase == TD_PHASE_FORWARD || now->phase == TD_PHASE_BACKWARD;
    int64_t phase = now->phase, micro_batch = now->micro_batch;
    const int64_t wanted[N_LEVELS] = {now->step, is_pass ? micro_batch : -phase, phase, now->layer};
    int levels = is_pass ? N_LEVELS : PLACE + 1, same = 0;
    while (same < n_open && same < levels && open_at[same] == wanted[same])
        same++;
    close_to(same);
    while (n_open < levels)
        open_next(wanted[n_open]);
}

void td_profiler_ranges_start(const td_device *device) {
    if (!device->table->range_push || !device->table->range_pop)
        return;
    table = device->table;
    n_open = 0;
    td_progress_listen(follow);
}

void td_profiler_ranges_stop(void) {
    if (!table)
        return;
    td_progress_listen(NULL);
    close_to(0);
    table = NULL;
}
