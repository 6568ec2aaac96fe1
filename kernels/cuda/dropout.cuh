// Dropout without its scale: elements that the mask drops become zero, the others stay as they are.
// The scale goes into the products, so that masking rounds nothing. The mask is that of
// runtime/core/rng.h, the same on every backend; it is computed where it is needed and never
// stored.
#ifndef TANDEM_KERNELS_CUDA_DROPOUT_CUH
#define TANDEM_KERNELS_CUDA_DROPOUT_CUH

#include "kernels/cuda/cuda_internal.cuh"

// out = kept ? x : 0 for n elements of the context's activation type, the first of which is element
// 0 of the mask; out may be x.
td_status td_cuda_dropout_mask(const td_op_context *context, const char *op,
                               const td_dropout *dropout, int64_t n, const void *x, void *out);

// out += kept ? x : 0.
td_status td_cuda_dropout_add(const td_op_context *context, const char *op,
                              const td_dropout *dropout, int64_t n, const void *x, void *out);

#endif
