// What a run reports: metrics.jsonl (one object per logged step), and the progress line. Rank 0
// only; local.
#ifndef TANDEM_TRAIN_METRICS_H
#define TANDEM_TRAIN_METRICS_H

#include <stdint.h>
#include <stdio.h>

#include "runtime/core/status.h"
#include "runtime/train/step.h"

typedef struct td_metrics {
    FILE *file; // NULL on other ranks
    int64_t total_steps;
    double last;         // monotonic seconds: end of the step before
    double shown;        // likewise: the last progress line
    double rate;         // tokens per second, smoothed over about 20 steps
    double step_seconds; // likewise
} td_metrics;

// Opens OUTPUT/metrics.jsonl for appending and drops the lines that a resumed run writes again: of
// steps after steps_done and, with evaluates_again, the evaluation after that step.
td_status td_metrics_open(td_metrics *metrics, const char *folder, int64_t steps_done,
                          int evaluates_again, int64_t total_steps, int is_writer);
void td_metrics_close(td_metrics *metrics);

// `index` from 0; `write`: also a line in metrics.jsonl. Call after every step.
void td_metrics_step(td_metrics *metrics, int64_t index, const td_step_result *result, double epoch,
                     int write);
void td_metrics_evaluation(td_metrics *metrics, int64_t index, double loss, int is_best);
// exp(loss), finite.
double td_perplexity(double loss);
double td_seconds_now(void); // monotonic

#endif
