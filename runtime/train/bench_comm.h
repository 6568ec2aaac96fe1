// Timing the collectives of a step by size, and what exact sums and their checks cost a step.
#ifndef TANDEM_TRAIN_BENCH_COMM_H
#define TANDEM_TRAIN_BENCH_COMM_H

#include <cjson/cJSON.h>

#include "runtime/train/bench_record.h"
#include "runtime/train/bench_step.h"

enum { TD_BENCH_COMM_MAX_POINTS = 128, TD_BENCH_BALANCE_POINTS = 9 };

typedef struct td_bench_comm_options {
    size_t max_bytes; // of int64 gradient sums
    int64_t rounds;   // timed, of every size
    const char *command;
    // The step of model_name_or_path besides, for the shares; steps 0: without.
    td_bench_step_options step;
} td_bench_comm_options;

typedef struct td_bench_comm_point {
    const char *op;
    int64_t count; // elements
    size_t bytes;
    td_bench_spread seconds; // of the slowest rank
    double traffic;          // bytes that every rank sends: of the best algorithm
} td_bench_comm_point;

// Medians, seconds per step, of the slowest rank.
typedef struct td_bench_comm_step {
    double step;                      // all of it
    double exposed;                   // waiting for other ranks
    double add_exact, add_fp32;       // adding a micro-batch's gradient, times its micro-batches
    double reduce_exact, reduce_fp32; // alone, nothing else running
    double checks;                    // word sums before and after the reduction, of parameters
    double exact_share, checks_share, exposed_share; // of the step
} td_bench_comm_step;

// The most expensive rank's share of a step over the mean, from the sampler's packing and
// assignment: 1 is balanced.
typedef struct td_bench_balance_point {
    int ranks;
    double packed, not_packed;
} td_bench_balance_point;

typedef struct td_bench_comm_result {
    td_bench_comm_point points[TD_BENCH_COMM_MAX_POINTS];
    int n_points;
    double copy_rate; // bytes per second of one parallel memcpy, all ranks at once
    td_bench_comm_step step;
    td_bench_step_result whole;
    td_bench_balance_point balance[TD_BENCH_BALANCE_POINTS];
    cJSON *record; // rank 0
} td_bench_comm_result;

// Collective. Every size of every collective is verified before it is timed: TD_ERR_NUMERIC.
td_status td_bench_comm(const td_config *config, td_comm *comm,
                        const td_bench_comm_options *options, td_bench_comm_result *out);

// Local. Rows with log-normal lengths, four micro-batches for every rank.
td_status td_bench_balance(const td_config *config, td_bench_balance_point *out);

#endif
