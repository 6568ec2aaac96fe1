// Operands whose first values can be told from their index, so that a plain computation on the host
// needs no copy of them. Shared by the bench_ops sources.
#ifndef TANDEM_TRAIN_BENCH_OPS_INTERNAL_H
#define TANDEM_TRAIN_BENCH_OPS_INTERNAL_H

#include "runtime/train/bench_ops.h"

// Numbers drawn from [-scale, scale), integers from [0, scale); with scale 0 all are zero.
typedef struct td_operand {
    void *data; // device
    td_dtype type;
    uint64_t seed;
    double scale;
    int is_rounded; // fp32 that bf16 can hold: rounding it for a product changes nothing
} td_operand;

enum { TD_BENCH_MAX_OPERANDS = 32 };

typedef struct td_ops_bench {
    td_op_context context;
    const td_model_config *model;
    const td_bench_ops_options *options;
    td_bench_ops_result *out;
    td_dtype act;
    void *operands[TD_BENCH_MAX_OPERANDS]; // of the running case
    int n_operands;
    uint64_t next_seed;
    td_status status; // the first failure of the functions below that return none
    // The call that is being verified.
    const char *name;
    td_op op;
    double worst, largest;
} td_ops_bench;

td_operand td_bench_take(td_ops_bench *bench, td_dtype type, int64_t count, double scale);
// What it held at first.
double td_bench_at(const td_operand *operand, int64_t index);
// What it holds now.
void td_bench_read(td_ops_bench *bench, const td_operand *operand, int64_t begin, int64_t count,
                   double *out);
double td_bench_read_one(td_ops_bench *bench, const td_operand *operand, int64_t index);
// Frees the operands of a case.
void td_bench_release(td_ops_bench *bench);

// Sample number k of [0, n): the first, the last, then some between.
int64_t td_bench_sample(int k, int64_t n);

// Runs the operation once and waits. `name` says at what shape.
td_status td_bench_call(td_ops_bench *bench, const char *name, td_op op, const void *args);
// One number of the result; settle() fails when the worst difference since the last one is more
// than tolerance times the largest number expected. 0: all of them are equal.
void td_bench_expect(td_ops_bench *bench, double got, double want);
td_status td_bench_settle(td_ops_bench *bench, double tolerance);
// Of sums in the type of the activations, or in fp32.
double td_bench_tolerance(const td_ops_bench *bench, int is_f32);
// Repeats the verified call.
td_status td_bench_time_op(td_ops_bench *bench, const void *args);

td_status td_bench_linear_ops(td_ops_bench *bench);
td_status td_bench_weight_ops(td_ops_bench *bench);
td_status td_bench_row_ops(td_ops_bench *bench);
td_status td_bench_attention_ops(td_ops_bench *bench);
td_status td_bench_sum_ops(td_ops_bench *bench);

// A weight (rows, cols): NF4 with values of about 1 / sqrt(cols), or dense in the type of the
// activations.
typedef struct td_bench_weight {
    td_matrix matrix;
    td_operand codes, absmax, absmax_codes, nested_absmax; // NF4
    td_operand values;                                     // dense
    float map[256];
} td_bench_weight;

void td_bench_take_weight(td_ops_bench *bench, int64_t rows, int64_t cols, int is_nf4,
                          td_bench_weight *out);
double td_bench_weight_at(const td_bench_weight *weight, int64_t row, int64_t col);

#endif
