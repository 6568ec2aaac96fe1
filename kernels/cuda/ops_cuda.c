// The CUDA backend's tables: the same entries, two types of activations.
#include "kernels/cuda/cuda_ops.h"

// clang-format off
#define ENTRIES                                                                                    \
    .draw_weights = td_cuda_draw_weights,                                                          \
    .linear_forward = td_cuda_linear_forward,                                                      \
    .linear_backward = td_cuda_linear_backward,                                                    \
    .nf4_quantize = td_cuda_nf4_quantize,                                                          \
    .absmax_quantize = td_cuda_absmax_quantize,                                                    \
    .dequantize = td_cuda_dequantize,                                                              \
    .embedding = td_cuda_embedding,                                                                \
    .rmsnorm_forward = td_cuda_rmsnorm_forward,                                                    \
    .rmsnorm_backward = td_cuda_rmsnorm_backward,                                                  \
    .rope = td_cuda_rope,                                                                          \
    .attention_forward = td_cuda_attention_forward,                                                \
    .attention_backward = td_cuda_attention_backward,                                              \
    .glu_forward = td_cuda_glu_forward,                                                      \
    .glu_backward = td_cuda_glu_backward,                                                    \
    .add = td_cuda_add,                                                                            \
    .gather_rows = td_cuda_gather_rows,                                                            \
    .scatter_rows = td_cuda_scatter_rows,                                                          \
    .cross_entropy = td_cuda_cross_entropy,                                                        \
    .fixed_add = td_cuda_fixed_add,                                                                \
    .fixed_to_f32 = td_cuda_fixed_to_f32,                                                          \
    .f32_add = td_cuda_f32_add,                                                                    \
    .sum_squares = td_cuda_sum_squares,                                                            \
    .word_sum = td_cuda_word_sum,                                                                  \
    .adamw = td_cuda_adamw,                                                                        \
    .adamw_8bit = td_cuda_adamw_8bit
// clang-format on

const td_ops td_ops_cuda_bf16 = {
    .name = "cuda bf16",
    .activation = TD_BF16,
    .product = TD_BF16,
    .workspace_bytes = td_cuda_workspace_bytes_bf16,
    ENTRIES,
};

const td_ops td_ops_cuda_fp32 = {
    .name = "cuda fp32",
    .activation = TD_F32,
    .product = TD_F32,
    .workspace_bytes = td_cuda_workspace_bytes_fp32,
    ENTRIES,
};
