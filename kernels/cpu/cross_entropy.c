// Cross entropy of rows of logits, and its gradient in place.
//
// The target's logit t is kept apart from the others: with m the largest logit and o the sum of
// exp(x - m) over the others, loss = log(o + exp(t - m)) + m - t and the target's gradient is -o /
// (o + exp(t - m)). Both keep their digits when the target's probability is nearly one, where 1 - p
// would cancel.
#include <math.h>
#include <string.h>

#include "kernels/cpu/lanes.h"

enum { CHUNK = 1024 }; // elements summed in fp32

typedef struct row_kernels {
    float (*largest)(const float *x, int64_t n);
    double (*exponentials)(float *x, int64_t n, float shift, int keep);
    void (*scale)(float *x, int64_t n, float factor);
} row_kernels;

#define TD_LANES_LEVEL scalar
#include "kernels/cpu/cross_entropy_template.h"

#define TD_LANES_LEVEL avx2
#include "kernels/cpu/cross_entropy_template.h"

#define TD_LANES_LEVEL avx512
#include "kernels/cpu/cross_entropy_template.h"

size_t td_cpu_cross_entropy_workspace_bytes(const td_workspace_query *query) {
    (void)query;
    return 0;
}

static const row_kernels *find_kernels(void) {
    static const row_kernels *const levels[] = {[TD_CPU_SCALAR] = &kernels_scalar,
                                                [TD_CPU_AVX2] = &kernels_avx2,
                                                [TD_CPU_AVX512] = &kernels_avx512};
    return levels[td_cpu_simd()];
}

// When the target is the largest logit its exponential is one, and log1p keeps small losses.
static float row_loss(double others, double target_weight, float largest, float target) {
    if (target == largest)
        return (float)log1p(others);
    return (float)(log(others + target_weight) + ((double)largest - (double)target));
}

static float row_process(const row_kernels *kernels, const td_cross_entropy_args *args,
                         int64_t row) {
    int64_t n = args->n_vocabulary;
    float *x = (float *)args->logits + row * n;
    float *target = x + args->targets[row], logit = *target;
    *target = -INFINITY;
    float largest = kernels->largest(x, n);
    largest = logit > largest ? logit : largest;
    double others = kernels->exponentials(x, n, largest, args->gradient);
    double weight = exp((double)logit - (double)largest), sum = others + weight;
    if (args->gradient) {
        kernels->scale(x, n, (float)((double)args->gradient_scale / sum));
        *target = (float)(-others / sum * (double)args->gradient_scale);
    } else {
        *target = logit;
    }
    return row_loss(others, weight, largest, logit);
}

td_status td_cpu_cross_entropy(const td_op_context *context, const td_cross_entropy_args *args) {
    (void)context;
    const row_kernels *kernels = find_kernels();
#pragma omp parallel for schedule(static) num_threads(                                             \
    td_cpu_threads()) if (args->n_rows * args->n_vocabulary > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < args->n_rows; row++)
        args->loss[row] = row_process(kernels, args, row);
    return TD_OK;
}
