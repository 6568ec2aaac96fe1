// RMSNorm (Zhang and Sennrich, NeurIPS 2019). Sums of a row run in 16 lanes of double that are
// added up in a fixed order.
#include <math.h>

#include "kernels/cpu/cpu_internal.h"

enum { LANES = 16 };

static inline __attribute__((always_inline)) double add_lanes(const double *lane) {
    double total = 0.0;
    for (int i = 0; i < LANES; i++)
        total += lane[i];
    return total;
}

static inline __attribute__((always_inline)) double sum_of_squares(const float *x, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += (double)x[i + j] * (double)x[i + j];
    for (int j = 0; i < n; i++, j++)
        lane[j] += (double)x[i] * (double)x[i];
    return add_lanes(lane);
}

// Sum of dy * weight * x.
static inline __attribute__((always_inline)) double
sum_of_products(const float *dy, const float *x, const float *weight, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += (double)(dy[i + j] * weight[i + j]) * (double)x[i + j];
    for (int j = 0; i < n; i++, j++)
        lane[j] += (double)(dy[i] * weight[i]) * (double)x[i];
    return add_lanes(lane);
}

static inline __attribute__((always_inline)) void forward_row(const td_rmsnorm_forward_args *args,
                                                              int64_t row) {
    int64_t n = args->n_cols;
    const float *x = (const float *)args->x + row * n;
    float *y = (float *)args->y + row * n;
    double mean = sum_of_squares(x, n) / (double)n;
    float rstd = (float)(1.0 / sqrt(mean + (double)args->eps));
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * rstd * args->weight[i];
    if (args->rstd)
        args->rstd[row] = rstd;
}

static inline __attribute__((always_inline)) void backward_row(const td_rmsnorm_backward_args *args,
                                                               int64_t row) {
    int64_t n = args->n_cols;
    const float *dy = (const float *)args->dy + row * n, *x = (const float *)args->x + row * n;
    float *dx = (float *)args->dx + row * n;
    float rstd = args->rstd[row];
    double mean = sum_of_products(dy, x, args->weight, n) * (double)rstd / (double)n;
    float pull = (float)(mean * (double)rstd);
    if (args->accumulate) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dx[i] += rstd * (dy[i] * args->weight[i] - x[i] * pull);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            dx[i] = rstd * (dy[i] * args->weight[i] - x[i] * pull);
    }
}

static void forward_row_scalar(const td_rmsnorm_forward_args *args, int64_t row) {
    forward_row(args, row);
}

TD_TARGET_AVX2 static void forward_row_avx2(const td_rmsnorm_forward_args *args, int64_t row) {
    forward_row(args, row);
}

static void backward_row_scalar(const td_rmsnorm_backward_args *args, int64_t row) {
    backward_row(args, row);
}

TD_TARGET_AVX2 static void backward_row_avx2(const td_rmsnorm_backward_args *args, int64_t row) {
    backward_row(args, row);
}

td_status td_cpu_rmsnorm_forward(const td_op_context *context,
                                 const td_rmsnorm_forward_args *args) {
    (void)context;
    int wide = td_cpu_simd() >= TD_CPU_AVX2;
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (args->n_rows * args->n_cols > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < args->n_rows; row++) {
        if (wide)
            forward_row_avx2(args, row);
        else
            forward_row_scalar(args, row);
    }
    return TD_OK;
}

td_status td_cpu_rmsnorm_backward(const td_op_context *context,
                                  const td_rmsnorm_backward_args *args) {
    (void)context;
    int wide = td_cpu_simd() >= TD_CPU_AVX2;
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (args->n_rows * args->n_cols > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < args->n_rows; row++) {
        if (wide)
            backward_row_avx2(args, row);
        else
            backward_row_scalar(args, row);
    }
    return TD_OK;
}
