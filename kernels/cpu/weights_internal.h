// Reading frozen weights and dropping out inputs: what the linear layer is made of.
#ifndef TANDEM_KERNELS_CPU_WEIGHTS_INTERNAL_H
#define TANDEM_KERNELS_CPU_WEIGHTS_INTERNAL_H

#include "kernels/cpu/cpu_internal.h"

// Elements [begin, end) of the flattened matrix as fp32, on the calling thread.
void td_cpu_dequantize_span(const td_matrix *matrix, int64_t begin, int64_t end, float *out);

// Whole rows, on all threads.
void td_cpu_dequantize_rows(const td_matrix *matrix, int64_t row_begin, int64_t row_count,
                            float *out);

// Bit e of the mask is 1 when element first + e is kept; first is a multiple of 64. (n + 63) / 64
// words are written; the bits past n are of elements past n. On the calling thread.
void td_cpu_dropout_mask(const td_dropout *dropout, uint64_t first, int64_t n, uint64_t *mask);

// out = kept ? x * scale : 0, and out += the same. On the calling thread; out may be x.
void td_cpu_dropout_apply(const uint64_t *mask, int64_t n, float scale, const float *x, float *out);
void td_cpu_dropout_accumulate(const uint64_t *mask, int64_t n, float scale, const float *x,
                               float *out);

// y = x W^T + bias + scaling * xa B^T for a few tokens (TD_CPU_FEW_TOKENS at most), without a
// dequantized copy: the weight is read once, piece by piece through the first-level cache. The
// result of one token does not depend on the others.
enum { TD_CPU_FEW_TOKENS = 4 };
void td_cpu_linear_few(const td_linear_forward_args *args);

#endif
