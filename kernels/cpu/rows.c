// Gather and scatter of rows: which tokens go to the loss, and their gradients back.
#include <string.h>

#include "kernels/cpu/cpu_internal.h"

td_status td_cpu_gather_rows(const td_op_context *context, const td_rows_args *args) {
    (void)context;
    const float *x = args->x;
    float *y = args->y;
    size_t row_bytes = (size_t)args->n_cols * sizeof *x;
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (args->n_rows * args->n_cols > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < args->n_rows; i++)
        memcpy(y + i * args->n_cols, x + args->rows[i] * args->n_cols, row_bytes);
    return TD_OK;
}

static void clear_rows(float *y, int64_t begin, int64_t end, int64_t n_cols) {
    if (begin < end)
        memset(y + begin * n_cols, 0, (size_t)((end - begin) * n_cols) * sizeof *y);
}

// Step i writes the rows after index i - 1 up to and with index i; the last step, i = n_rows, what
// is left.
td_status td_cpu_scatter_rows(const td_op_context *context, const td_rows_args *args) {
    (void)context;
    const float *x = args->x;
    float *y = args->y;
    int64_t n_cols = args->n_cols;
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (args->y_rows * n_cols > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t i = 0; i <= args->n_rows; i++) {
        int64_t from = i > 0 ? args->rows[i - 1] + 1 : 0;
        int64_t row = i < args->n_rows ? args->rows[i] : args->y_rows;
        clear_rows(y, from, row, n_cols);
        if (i < args->n_rows)
            memcpy(y + row * n_cols, x + i * n_cols, (size_t)n_cols * sizeof *y);
    }
    return TD_OK;
}
