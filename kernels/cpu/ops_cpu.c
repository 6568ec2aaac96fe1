// The table of the CPU backend, its processor features and its threads.
#include <cblas.h>
#include <omp.h>
#include <stdatomic.h>

#include "kernels/cpu/cpu_internal.h"

static atomic_int simd_cap = TD_CPU_AVX512;
static atomic_int thread_count;

static td_cpu_simd_level detect(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return TD_CPU_SCALAR;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return TD_CPU_AVX512;
    return TD_CPU_AVX2;
}

td_cpu_simd_level td_cpu_simd(void) {
    static atomic_int detected = -1;
    int level = atomic_load_explicit(&detected, memory_order_relaxed);
    if (level < 0) {
        level = (int)detect();
        atomic_store_explicit(&detected, level, memory_order_relaxed);
    }
    int cap = atomic_load_explicit(&simd_cap, memory_order_relaxed);
    return (td_cpu_simd_level)(level < cap ? level : cap);
}

void td_cpu_simd_limit(td_cpu_simd_level level) {
    atomic_store(&simd_cap, (int)level);
}

// Without a call of td_ops_cpu_set_threads(), what OpenMP would use.
int td_cpu_threads(void) {
    int count = atomic_load_explicit(&thread_count, memory_order_relaxed);
    return count > 0 ? count : omp_get_max_threads();
}

void td_ops_cpu_set_threads(int n_threads) {
    int count = n_threads > 0 ? n_threads : 1;
    atomic_store(&thread_count, count);
    omp_set_num_threads(count);
    openblas_set_num_threads(count);
}

td_status td_cpu_need_workspace(const td_op_context *context, const char *op, size_t bytes) {
    if (bytes == 0 || (context->workspace && context->workspace_bytes >= bytes))
        return TD_OK;
    return td_fail(TD_ERR_INTERNAL, "%s needs %zu bytes of workspace, the context has %zu", op,
                   bytes, context->workspace ? context->workspace_bytes : (size_t)0);
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static size_t workspace_bytes(const td_workspace_query *query) {
    size_t bytes = td_cpu_linear_workspace_bytes(query);
    bytes = larger(bytes, td_cpu_attention_workspace_bytes(query));
    return larger(bytes, td_cpu_cross_entropy_workspace_bytes(query));
}

const td_ops td_ops_cpu = {
    .name = "cpu",
    .activation = TD_F32,
    .workspace_bytes = workspace_bytes,
    .linear_forward = td_cpu_linear_forward,
    .linear_backward = td_cpu_linear_backward,
    .nf4_quantize = td_cpu_nf4_quantize,
    .absmax_quantize = td_cpu_absmax_quantize,
    .dequantize = td_cpu_dequantize,
    .embedding = td_cpu_embedding,
    .rmsnorm_forward = td_cpu_rmsnorm_forward,
    .rmsnorm_backward = td_cpu_rmsnorm_backward,
    .rope = td_cpu_rope,
    .attention_forward = td_cpu_attention_forward,
    .attention_backward = td_cpu_attention_backward,
    .swiglu_forward = td_cpu_swiglu_forward,
    .swiglu_backward = td_cpu_swiglu_backward,
    .add = td_cpu_add,
    .gather_rows = td_cpu_gather_rows,
    .scatter_rows = td_cpu_scatter_rows,
    .cross_entropy = td_cpu_cross_entropy,
    .fixed_add = td_cpu_fixed_add,
    .fixed_to_f32 = td_cpu_fixed_to_f32,
    .f32_add = td_cpu_f32_add,
    .sum_squares = td_cpu_sum_squares,
    .adamw = td_cpu_adamw,
    .adamw_8bit = td_cpu_adamw_8bit,
};
