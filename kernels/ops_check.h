// Shape checks of the operations, the same for every backend. What fails here is an error of the
// caller: TD_ERR_INTERNAL with the operation's name and the condition. Contents of device memory
// are not looked at. For ops.c and its test.
#ifndef TANDEM_KERNELS_OPS_CHECK_H
#define TANDEM_KERNELS_OPS_CHECK_H

#include "kernels/ops.h"

// TD_ERR_INTERNAL naming the first operation that the table lacks.
td_status td_ops_check_slots(const td_ops *ops);

td_status td_check_linear_forward(const td_linear_forward_args *args);
td_status td_check_linear_backward(const td_linear_backward_args *args);
td_status td_check_nf4_quantize(const td_nf4_quantize_args *args);
td_status td_check_absmax_quantize(const td_absmax_quantize_args *args);
td_status td_check_dequantize(const td_dequantize_args *args);
td_status td_check_embedding(const td_embedding_args *args);
td_status td_check_rmsnorm_forward(const td_rmsnorm_forward_args *args);
td_status td_check_rmsnorm_backward(const td_rmsnorm_backward_args *args);
td_status td_check_rope(const td_rope_args *args);
td_status td_check_attention_forward(const td_attention_forward_args *args);
td_status td_check_attention_backward(const td_attention_backward_args *args);
td_status td_check_glu_forward(const td_glu_forward_args *args);
td_status td_check_glu_backward(const td_glu_backward_args *args);
td_status td_check_add(const td_add_args *args);
td_status td_check_gather_rows(const td_rows_args *args);
td_status td_check_scatter_rows(const td_rows_args *args);
td_status td_check_cross_entropy(const td_cross_entropy_args *args);
td_status td_check_fixed_add(const td_fixed_add_args *args);
td_status td_check_fixed_to_f32(const td_fixed_to_f32_args *args);
td_status td_check_f32_add(const td_f32_add_args *args);
td_status td_check_sum_squares(const td_sum_squares_args *args);
td_status td_check_word_sum(const td_word_sum_args *args);
td_status td_check_adamw(const td_adamw_args *args);
td_status td_check_adamw_8bit(const td_adamw_args *args);

#endif
