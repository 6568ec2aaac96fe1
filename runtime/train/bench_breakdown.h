// Where the time of a step goes: each part measured, beside the least that this machine needs for
// it.
#ifndef TANDEM_TRAIN_BENCH_BREAKDOWN_H
#define TANDEM_TRAIN_BENCH_BREAKDOWN_H

#include "kernels/ops_timed.h"
#include "runtime/train/bench_ceilings.h"
#include "runtime/train/run.h"

// Of linear layers, timed alone and one after the other: a step's calls of the same extents take
// together.
typedef struct td_bench_linear_split {
    double base;       // with the weight dense, in the type of the activations
    double dequantize; // what an NF4 weight takes more
    double lora;       // what LoRA takes more
} td_bench_linear_split;

typedef struct td_bench_breakdown {
    int64_t steps;       // watched; what follows is of all of them
    double seconds;      // from the first's begin to the last's end
    double wait_seconds; // in which this rank waited for others
    td_timed_sums sums;
    td_bench_linear_split forward, backward;
    int split_is_whole; // 0: no memory for a dense weight, dequantization stays with the base
} td_bench_breakdown;

// Collective. Runs updates [index, index + steps], and counts all but the first. The run's contexts
// have td_ops_timed_table(timed) as their operations. What the transformer holds is overwritten:
// the run is of no use afterwards but to be destroyed.
td_status td_bench_breakdown_run(td_run *run, td_ops_timed *timed, int64_t index, int64_t steps,
                                 td_bench_breakdown *out);

void td_bench_breakdown_print(const td_bench_breakdown *breakdown,
                              const td_bench_ceilings *ceilings);
void td_bench_breakdown_record(const td_bench_breakdown *breakdown,
                               const td_bench_ceilings *ceilings, cJSON *record);

#endif
