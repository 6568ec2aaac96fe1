#include "kernels/cpu/cpu_internal.h"
#include "kernels/cpu/weights_internal.h"

// The ids come from files: one outside the table is refused, not read.
static td_status check_ids(const td_embedding_args *args) {
    for (int64_t t = 0; t < args->n_tokens; t++)
        if (args->ids[t] < 0 || args->ids[t] >= args->table->rows)
            return td_fail(TD_ERR_INTERNAL,
                           "embedding: token %lld has id %d, the table has %lld rows", (long long)t,
                           args->ids[t], (long long)args->table->rows);
    return TD_OK;
}

static void scale_row(float *x, int64_t n, float scale) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        x[i] *= scale;
}

td_status td_cpu_embedding(const td_op_context *context, const td_embedding_args *args) {
    (void)context;
    TD_TRY(check_ids(args));
    int64_t cols = args->table->cols, n = args->n_tokens;
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (n * cols > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t t = 0; t < n; t++) {
        float *y = (float *)args->y + t * cols;
        td_cpu_dequantize_span(args->table, args->ids[t] * cols, (args->ids[t] + 1) * cols, y);
        if (args->scale != 1.0f)
            scale_row(y, cols, args->scale);
    }
    return TD_OK;
}
