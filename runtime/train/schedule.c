#include "runtime/train/schedule.h"

#include <math.h>

td_schedule td_schedule_make(const td_config *config, int64_t steps_per_epoch) {
    int64_t total = config->max_steps;
    if (total < 0)
        total = (int64_t)ceil(config->num_train_epochs * (double)steps_per_epoch);
    int64_t warmup = config->warmup_steps;
    if (warmup == 0)
        warmup = (int64_t)ceil((double)total * config->warmup_ratio);
    return (td_schedule){
        .kind = config->lr_scheduler_type,
        .peak = config->learning_rate,
        .warmup_steps = warmup,
        .total_steps = total,
    };
}

double td_schedule_rate(const td_schedule *schedule, int64_t step) {
    if (step < schedule->warmup_steps)
        return schedule->peak * (double)step / (double)schedule->warmup_steps;
    int64_t span = schedule->total_steps - schedule->warmup_steps;
    double part = (double)(step - schedule->warmup_steps) / (double)(span > 1 ? span : 1);
    switch (schedule->kind) {
    case TD_SCHEDULE_COSINE:
        return schedule->peak * fmax(0.0, (1.0 + cos(M_PI * part)) / 2.0);
    case TD_SCHEDULE_LINEAR:
        return schedule->peak * fmax(0.0, 1.0 - part);
    default:
        return schedule->peak;
    }
}
