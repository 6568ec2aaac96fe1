#include "kernels/cpu/cpu_internal.h"

td_status td_cpu_add(const td_op_context *context, const td_add_args *args) {
    (void)context;
    const float *x = args->x;
    float *y = args->y;
#pragma omp parallel for simd schedule(static)                                                     \
    num_threads(td_cpu_threads()) if (args->n_elements > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < args->n_elements; i++)
        y[i] += x[i];
    return TD_OK;
}
