// The sum of squares that sum_squares and fixed_to_f32 report, in an order that no thread count or
// vector width changes.
#ifndef TANDEM_KERNELS_CPU_SUM_SQUARES_INTERNAL_H
#define TANDEM_KERNELS_CPU_SUM_SQUARES_INTERNAL_H

#include "kernels/cpu/cpu_internal.h"

enum { TD_SQUARES_BLOCK = 4096 }; // elements that one thread sums at a time

// Sum over at most TD_SQUARES_BLOCK values.
double td_cpu_sum_squares_block(const float *values, int64_t n);

// Adds up block_sum(args, begin, n) over the blocks of n_elements; blocks run in parallel and their
// sums are added in order.
double td_cpu_sum_blocks(int64_t n_elements,
                         double (*block_sum)(const void *args, int64_t begin, int64_t n),
                         const void *args);

#endif
