// Entries of the CUDA backend, one per operation of kernels/ops.h; each works in the activation
// type of the context's table. Internal to the module.
#ifndef TANDEM_KERNELS_CUDA_CUDA_OPS_H
#define TANDEM_KERNELS_CUDA_CUDA_OPS_H

#include "kernels/ops.h"

TD_C_BEGIN

extern const td_ops td_ops_cuda_bf16, td_ops_cuda_fp32;

// By activation type: the bf16 table needs room for dequantized weights and 16-bit copies.
size_t td_cuda_workspace_bytes_bf16(const td_workspace_query *query);
size_t td_cuda_workspace_bytes_fp32(const td_workspace_query *query);

td_status td_cuda_draw_weights(const td_op_context *, const td_draw_weights_args *);
td_status td_cuda_linear_forward(const td_op_context *, const td_linear_forward_args *);
td_status td_cuda_linear_backward(const td_op_context *, const td_linear_backward_args *);
td_status td_cuda_nf4_quantize(const td_op_context *, const td_nf4_quantize_args *);
td_status td_cuda_absmax_quantize(const td_op_context *, const td_absmax_quantize_args *);
td_status td_cuda_dequantize(const td_op_context *, const td_dequantize_args *);
td_status td_cuda_embedding(const td_op_context *, const td_embedding_args *);
td_status td_cuda_rmsnorm_forward(const td_op_context *, const td_rmsnorm_forward_args *);
td_status td_cuda_rmsnorm_backward(const td_op_context *, const td_rmsnorm_backward_args *);
td_status td_cuda_rope(const td_op_context *, const td_rope_args *);
td_status td_cuda_attention_forward(const td_op_context *, const td_attention_forward_args *);
td_status td_cuda_attention_backward(const td_op_context *, const td_attention_backward_args *);
td_status td_cuda_glu_forward(const td_op_context *, const td_glu_forward_args *);
td_status td_cuda_glu_backward(const td_op_context *, const td_glu_backward_args *);
td_status td_cuda_add(const td_op_context *, const td_add_args *);
td_status td_cuda_gather_rows(const td_op_context *, const td_rows_args *);
td_status td_cuda_scatter_rows(const td_op_context *, const td_rows_args *);
td_status td_cuda_cross_entropy(const td_op_context *, const td_cross_entropy_args *);
td_status td_cuda_fixed_add(const td_op_context *, const td_fixed_add_args *);
td_status td_cuda_fixed_to_f32(const td_op_context *, const td_fixed_to_f32_args *);
td_status td_cuda_f32_add(const td_op_context *, const td_f32_add_args *);
td_status td_cuda_sum_squares(const td_op_context *, const td_sum_squares_args *);
td_status td_cuda_word_sum(const td_op_context *, const td_word_sum_args *);
td_status td_cuda_adamw(const td_op_context *, const td_adamw_args *);
td_status td_cuda_adamw_8bit(const td_op_context *, const td_adamw_args *);

TD_C_END

#endif
