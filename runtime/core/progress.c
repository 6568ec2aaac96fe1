#include "runtime/core/progress.h"

#include <stdatomic.h>

static atomic_uint_least32_t phase_word, step_word, micro_batch_word, layer_word;
static atomic_uint_least64_t tick_word;
static _Atomic(td_progress_listener) listening;

static void set(atomic_uint_least32_t *word, uint32_t value) {
    atomic_store_explicit(word, value, memory_order_relaxed);
    td_progress_tick();
    td_progress_listener listener = atomic_load_explicit(&listening, memory_order_relaxed);
    if (listener) {
        td_progress now = td_progress_read();
        listener(&now);
    }
}

void td_progress_listen(td_progress_listener listener) {
    atomic_store_explicit(&listening, listener, memory_order_relaxed);
}

void td_progress_phase(td_phase phase) {
    set(&phase_word, (uint32_t)phase);
}

void td_progress_step(uint32_t step) {
    set(&step_word, step);
}

void td_progress_micro_batch(uint32_t micro_batch) {
    set(&micro_batch_word, micro_batch);
}

void td_progress_layer(uint32_t layer) {
    set(&layer_word, layer);
}

void td_progress_tick(void) {
    atomic_fetch_add_explicit(&tick_word, 1, memory_order_relaxed);
}

td_progress td_progress_read(void) {
    return (td_progress){
        .phase = atomic_load_explicit(&phase_word, memory_order_relaxed),
        .step = atomic_load_explicit(&step_word, memory_order_relaxed),
        .micro_batch = atomic_load_explicit(&micro_batch_word, memory_order_relaxed),
        .layer = atomic_load_explicit(&layer_word, memory_order_relaxed),
        .ticks = atomic_load_explicit(&tick_word, memory_order_relaxed),
    };
}

const char *td_phase_name(td_phase phase) {
    static const char *const names[TD_PHASE_COUNT] = {
        [TD_PHASE_START] = "start",
        [TD_PHASE_READ_MODEL] = "reading the model",
        [TD_PHASE_PREPARE_DATA] = "preparing data",
        [TD_PHASE_FORWARD] = "forward",
        [TD_PHASE_BACKWARD] = "backward",
        [TD_PHASE_REDUCE] = "reducing gradients",
        [TD_PHASE_UPDATE] = "updating parameters",
        [TD_PHASE_GATHER] = "gathering parameters",
        [TD_PHASE_EVALUATE] = "evaluating",
        [TD_PHASE_CHECKPOINT] = "writing a checkpoint",
        [TD_PHASE_GENERATE] = "generating",
        [TD_PHASE_FINISH] = "finishing",
    };
    return (unsigned)phase < TD_PHASE_COUNT ? names[phase] : "unknown phase";
}
