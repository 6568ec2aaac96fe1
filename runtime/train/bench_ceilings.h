// What this machine can do at most, measured in the same run as what is held against it: the rate
// of a large square product as the operations compute theirs, and of a copy.
#ifndef TANDEM_TRAIN_BENCH_CEILINGS_H
#define TANDEM_TRAIN_BENCH_CEILINGS_H

#include "kernels/op_list.h"
#include "runtime/train/bench_record.h"

typedef struct td_bench_ceilings {
    int is_bf16;             // the product's operands
    double flops;            // flop/s of the fastest square product with such operands
    int64_t extent;          // rows of its matrices
    const char *product;     // what ran it: "linear_forward", "cblas_sgemm"
    double fp32_flops;       // of one with fp32 operands, where the CPU computes in bf16; or 0
    double register_flops;   // of the CPU's multiply-adds on such operands in registers; or 0
    double bytes_per_second; // of copying, what is read and what is written together
    size_t copy_bytes;       // of one copy
} td_bench_ceilings;

// Local. The context needs no workspace. On the CPU the threads of the operations take part.
td_status td_bench_ceilings_measure(const td_op_context *context, td_bench_ceilings *out);
// *out keeps of itself and of `other`, measured at another time, what was faster: a machine that
// does something else meanwhile is slower than it can be.
void td_bench_ceilings_keep_larger(const td_bench_ceilings *other, td_bench_ceilings *out);
// Some lines for a person.
void td_bench_ceilings_print(const td_bench_ceilings *ceilings);
void td_bench_ceilings_record(const td_bench_ceilings *ceilings, cJSON *record);

// Seconds that the work takes at least: at the rate of products, or of copies, whatever is more.
double td_bench_bound(const td_bench_ceilings *ceilings, double flops, double bytes);

#endif
