// Attention of the CUDA backend: bf16 on tensor cores (FlashAttention-2, Dao, ICLR 2024), fp32 on
// ordinary arithmetic. The entries in attention.cu choose by the activation type.
#ifndef TANDEM_KERNELS_CUDA_ATTENTION_INTERNAL_CUH
#define TANDEM_KERNELS_CUDA_ATTENTION_INTERNAL_CUH

#include "kernels/cuda/cuda_internal.cuh"

td_status td_cuda_attention_forward_bf16(const td_op_context *context,
                                         const td_attention_forward_args *args);
td_status td_cuda_attention_backward_bf16(const td_op_context *context,
                                          const td_attention_backward_args *args);
td_status td_cuda_attention_forward_f32(const td_op_context *context,
                                        const td_attention_forward_args *args);
td_status td_cuda_attention_backward_f32(const td_op_context *context,
                                         const td_attention_backward_args *args);

// Of the bf16 pair: the backward pass keeps rowsum(dout * out), (Tq, n_heads) fp32.
size_t td_cuda_attention_workspace_bytes(const td_workspace_query *query);

#endif
