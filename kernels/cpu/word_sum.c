// The sum of words modulo 2^64, in any order.
#include "kernels/cpu/cpu_internal.h"

td_status td_cpu_word_sum(const td_op_context *context, const td_word_sum_args *args) {
    (void)context;
    const uint64_t *words = (const uint64_t *)args->words;
    uint64_t sum = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : sum)                                  \
    num_threads(td_cpu_threads()) if (args->n_elements > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < args->n_elements; i++)
        sum += words[i];
    *args->sum = (int64_t)((uint64_t)*args->sum + sum);
    return TD_OK;
}
