// What the files of the CPU backend share. Not for other folders.
//
// Parallel loops are OpenMP with a static schedule and num_threads(td_cpu_threads()); no result may
// depend on the number of threads or on which thread did what.
//
// Vector code is chosen at run time: a function with __attribute__((target("..."))) per level,
// selected by td_cpu_simd(). Where a file promises the same bits on every level, tests/ops compares
// them.
#ifndef TANDEM_KERNELS_CPU_INTERNAL_H
#define TANDEM_KERNELS_CPU_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/ops.h"

typedef enum td_cpu_simd_level {
    TD_CPU_SCALAR = 0,
    TD_CPU_AVX2 = 1,   // avx2, fma
    TD_CPU_AVX512 = 2, // avx512f, bw, dq, vl besides
} td_cpu_simd_level;

#define TD_TARGET_AVX2   __attribute__((target("avx2,fma")))
#define TD_TARGET_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))
#define TD_TARGET_BF16                                                                             \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

// Best level of this processor, or less after td_cpu_simd_limit().
td_cpu_simd_level td_cpu_simd(void);

// Caps the level, so that tests can compare them. Not while operations run.
void td_cpu_simd_limit(td_cpu_simd_level level);

// 1: VDPBF16PS is there and td_cpu_simd() is AVX-512. Products in bf16 have the same bits without.
int td_cpu_has_bf16(void);

// 0 has td_cpu_has_bf16() return 0, for tests. Not while operations run.
void td_cpu_bf16_allow(int allowed);

int td_cpu_threads(void);

// Part `index` of `parts` of [0, n), cut at multiples of `align`: an even static split.
typedef struct td_cpu_range {
    int64_t begin, end;
} td_cpu_range;

static inline td_cpu_range td_cpu_split(int64_t n, int64_t align, int parts, int index) {
    int64_t blocks = (n + align - 1) / align;
    td_cpu_range range = {blocks * index / parts * align, blocks * (index + 1) / parts * align};
    range.begin = range.begin < n ? range.begin : n;
    range.end = range.end < n ? range.end : n;
    return range;
}

// Loops of fewer elements than this run on the calling thread: starting a team costs more.
enum { TD_CPU_PARALLEL_ELEMENTS = 16384 };

// Scratch that one call of the operations of that file needs.
size_t td_cpu_linear_workspace_bytes(const td_workspace_query *query, td_dtype product);
size_t td_cpu_attention_workspace_bytes(const td_workspace_query *query);
size_t td_cpu_cross_entropy_workspace_bytes(const td_workspace_query *query);

// TD_ERR_INTERNAL naming the operation when the context's workspace is smaller than `bytes`.
td_status td_cpu_need_workspace(const td_op_context *context, const char *op, size_t bytes);

td_status td_cpu_linear_forward(const td_op_context *context, const td_linear_forward_args *args);
td_status td_cpu_linear_backward(const td_op_context *context, const td_linear_backward_args *args);
td_status td_cpu_nf4_quantize(const td_op_context *context, const td_nf4_quantize_args *args);
td_status td_cpu_absmax_quantize(const td_op_context *context, const td_absmax_quantize_args *args);
td_status td_cpu_dequantize(const td_op_context *context, const td_dequantize_args *args);
td_status td_cpu_embedding(const td_op_context *context, const td_embedding_args *args);
td_status td_cpu_rmsnorm_forward(const td_op_context *context, const td_rmsnorm_forward_args *args);
td_status td_cpu_rmsnorm_backward(const td_op_context *context,
                                  const td_rmsnorm_backward_args *args);
td_status td_cpu_rope(const td_op_context *context, const td_rope_args *args);
td_status td_cpu_attention_forward(const td_op_context *context,
                                   const td_attention_forward_args *args);
td_status td_cpu_attention_backward(const td_op_context *context,
                                    const td_attention_backward_args *args);
td_status td_cpu_glu_forward(const td_op_context *context, const td_glu_forward_args *args);
td_status td_cpu_glu_backward(const td_op_context *context, const td_glu_backward_args *args);
td_status td_cpu_add(const td_op_context *context, const td_add_args *args);
td_status td_cpu_gather_rows(const td_op_context *context, const td_rows_args *args);
td_status td_cpu_scatter_rows(const td_op_context *context, const td_rows_args *args);
td_status td_cpu_cross_entropy(const td_op_context *context, const td_cross_entropy_args *args);
td_status td_cpu_fixed_add(const td_op_context *context, const td_fixed_add_args *args);
td_status td_cpu_fixed_to_f32(const td_op_context *context, const td_fixed_to_f32_args *args);
td_status td_cpu_f32_add(const td_op_context *context, const td_f32_add_args *args);
td_status td_cpu_sum_squares(const td_op_context *context, const td_sum_squares_args *args);
td_status td_cpu_word_sum(const td_op_context *context, const td_word_sum_args *args);
td_status td_cpu_adamw(const td_op_context *context, const td_adamw_args *args);
td_status td_cpu_adamw_8bit(const td_op_context *context, const td_adamw_args *args);

#endif
