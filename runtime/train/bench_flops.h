// What a training step of a model asks for, counted from its config: a multiply-add is two.
#ifndef TANDEM_TRAIN_BENCH_FLOPS_H
#define TANDEM_TRAIN_BENCH_FLOPS_H

#include "model/lora.h"

typedef struct td_bench_flops {
    double base;      // products with frozen weights forward, and their dX; there is no dW
    double lora;      // three products with each of A and B
    double attention; // 4 D a pair of query and key forward, 10 D backward
    double head;      // forward, and dX
    double model;     // of the above: what the step's result needs
    // Not needed for the result, and apart:
    double recompute;  // products that the backward pass does again
    double dequantize; // one multiplication for every NF4 weight, every time it is used
} td_bench_flops;

typedef struct td_bench_shape {
    int64_t seq_tokens;
    int64_t sequences; // of all micro-batches together
    int64_t micro_batches;
    td_recompute recompute;
    double quantized; // share of the layers whose NF4 weights are dequantized at every use
} td_bench_shape;

// Of a step, all ranks together.
td_bench_flops td_bench_flops_of(const td_model_config *config, const td_lora *lora,
                                 const td_bench_shape *shape);

#endif
