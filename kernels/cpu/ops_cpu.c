// The tables of the CPU backend, which differ in what matrix products round their operands to.
#include "kernels/cpu/cpu_internal.h"

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static size_t workspace_bytes(const td_workspace_query *query, td_dtype product) {
    size_t bytes = td_cpu_linear_workspace_bytes(query, product);
    bytes = larger(bytes, td_cpu_attention_workspace_bytes(query));
    return larger(bytes, td_cpu_cross_entropy_workspace_bytes(query));
}

static size_t workspace_bytes_fp32(const td_workspace_query *query) {
    return workspace_bytes(query, TD_F32);
}

static size_t workspace_bytes_bf16(const td_workspace_query *query) {
    return workspace_bytes(query, TD_BF16);
}

#define OPERATIONS                                                                                 \
    .linear_forward = td_cpu_linear_forward, .linear_backward = td_cpu_linear_backward,            \
    .nf4_quantize = td_cpu_nf4_quantize, .absmax_quantize = td_cpu_absmax_quantize,                \
    .dequantize = td_cpu_dequantize, .embedding = td_cpu_embedding,                                \
    .rmsnorm_forward = td_cpu_rmsnorm_forward, .rmsnorm_backward = td_cpu_rmsnorm_backward,        \
    .rope = td_cpu_rope, .attention_forward = td_cpu_attention_forward,                            \
    .attention_backward = td_cpu_attention_backward, .glu_forward = td_cpu_glu_forward,            \
    .glu_backward = td_cpu_glu_backward, .add = td_cpu_add, .gather_rows = td_cpu_gather_rows,     \
    .scatter_rows = td_cpu_scatter_rows, .cross_entropy = td_cpu_cross_entropy,                    \
    .fixed_add = td_cpu_fixed_add, .fixed_to_f32 = td_cpu_fixed_to_f32, .f32_add = td_cpu_f32_add, \
    .sum_squares = td_cpu_sum_squares, .word_sum = td_cpu_word_sum, .adamw = td_cpu_adamw,         \
    .adamw_8bit = td_cpu_adamw_8bit

const td_ops td_ops_cpu = {
    .name = "cpu",
    .activation = TD_F32,
    .product = TD_F32,
    .workspace_bytes = workspace_bytes_fp32,
    OPERATIONS,
};

const td_ops td_ops_cpu_medium = {
    .name = "cpu medium",
    .activation = TD_F32,
    .product = TD_BF16,
    .workspace_bytes = workspace_bytes_bf16,
    OPERATIONS,
};
