// What this processor can do, how many threads the backend uses, and the workspace check.
#include <cblas.h>
#include <omp.h>
#include <stdatomic.h>

#include "kernels/cpu/cpu_internal.h"

static atomic_int simd_cap = TD_CPU_AVX512;
static atomic_int bf16_allowed = 1;
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

int td_cpu_has_bf16(void) {
    return td_cpu_simd() == TD_CPU_AVX512 && __builtin_cpu_supports("avx512bf16") &&
           atomic_load_explicit(&bf16_allowed, memory_order_relaxed);
}

void td_cpu_bf16_allow(int allowed) {
    atomic_store(&bf16_allowed, allowed);
}

int td_ops_cpu_has_bf16(void) {
    return td_cpu_has_bf16();
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

int td_ops_cpu_threads(void) {
    return td_cpu_threads();
}

const char *td_ops_cpu_vectors(void) {
    static const char *const names[] = {
        [TD_CPU_SCALAR] = "none", [TD_CPU_AVX2] = "AVX2", [TD_CPU_AVX512] = "AVX-512"};
    return names[td_cpu_simd()];
}

td_status td_cpu_need_workspace(const td_op_context *context, const char *op, size_t bytes) {
    if (bytes == 0 || (context->workspace && context->workspace_bytes >= bytes))
        return TD_OK;
    return td_fail(TD_ERR_INTERNAL, "%s needs %zu bytes of workspace, the context has %zu", op,
                   bytes, context->workspace ? context->workspace_bytes : (size_t)0);
}
