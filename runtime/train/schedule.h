// Learning rate over steps, as transformers' get_*_schedule_with_warmup: warm-up is linear from 0.
#ifndef TANDEM_TRAIN_SCHEDULE_H
#define TANDEM_TRAIN_SCHEDULE_H

#include <stdint.h>

#include "runtime/core/config.h"

typedef struct td_schedule {
    td_schedule_kind kind;
    double peak;          // learning_rate
    int64_t warmup_steps; // W
    int64_t total_steps;  // T
} td_schedule;

// T = max_steps, or ceil(epochs * steps_per_epoch); W = warmup_steps, or ceil(T * warmup_ratio).
td_schedule td_schedule_make(const td_config *config, int64_t steps_per_epoch);
// Learning rate of the update number `step`, counted from 0.
double td_schedule_rate(const td_schedule *schedule, int64_t step);

#endif
