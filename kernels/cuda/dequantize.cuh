// Frozen weights in a type that products take.
#ifndef TANDEM_KERNELS_CUDA_DEQUANTIZE_CUH
#define TANDEM_KERNELS_CUDA_DEQUANTIZE_CUH

#include "kernels/cuda/cuda_internal.cuh"

// Elements [begin, begin + n) of the flattened matrix, of any format, as `type` (TD_F32 or
// TD_BF16), queued on the context's stream. Fastest where begin is a multiple of 64 and data and
// out are 16-byte aligned; the bits are the same everywhere.
td_status td_cuda_dequantize_span(const td_op_context *context, const char *op,
                                  const td_matrix *matrix, int64_t begin, int64_t n, td_dtype type,
                                  void *out);

// n fp32 numbers rounded to bf16.
td_status td_cuda_round_to_bf16(const td_op_context *context, const char *op, const float *from,
                                int64_t n, void *to);

#endif
