// Where this process is, as words that the watchdog and other ranks may read at any time. Cheap:
// relaxed atomics. Whoever works for long without a step counter calls td_progress_tick() now and
// then: a rank whose words change is alive and is given time; one whose words stand still past the
// deadline is named and the job ends.
#ifndef TANDEM_CORE_PROGRESS_H
#define TANDEM_CORE_PROGRESS_H

#include <stdint.h>

typedef enum td_phase {
    TD_PHASE_START,
    TD_PHASE_READ_MODEL,
    TD_PHASE_PREPARE_DATA,
    TD_PHASE_FORWARD,
    TD_PHASE_BACKWARD,
    TD_PHASE_REDUCE,
    TD_PHASE_UPDATE,
    TD_PHASE_GATHER,
    TD_PHASE_EVALUATE,
    TD_PHASE_CHECKPOINT,
    TD_PHASE_GENERATE,
    TD_PHASE_FINISH,
    TD_PHASE_COUNT,
} td_phase;

typedef struct td_progress {
    uint32_t phase;       // td_phase
    uint32_t step;        // optimizer step, from 1
    uint32_t micro_batch; // within the step
    uint32_t layer;
    uint64_t ticks; // grows with every call below
} td_progress;

void td_progress_phase(td_phase phase);
void td_progress_step(uint32_t step);
void td_progress_micro_batch(uint32_t micro_batch);
void td_progress_layer(uint32_t layer);
void td_progress_tick(void);
td_progress td_progress_read(void);
// Who is called whenever a word has changed, by the thread that changed it; NULL: nobody. For
// naming ranges in a profiler.
typedef void (*td_progress_listener)(const td_progress *now);
void td_progress_listen(td_progress_listener listener);
const char *td_phase_name(td_phase phase); // "forward"

#endif
