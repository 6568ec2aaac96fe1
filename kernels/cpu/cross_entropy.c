// Cross entropy of rows of logits, and its gradient in place.
//
// The target's logit t is kept apart from the others: with m the largest logit and o the sum of
// exp(x - m) over the others, loss = log(o + exp(t - m)) + m - t and the target's gradient is -o /
// (o + exp(t - m)). Both keep their digits when the target's probability is nearly one, where 1 - p
// would cancel.
//
// A soft cap (Gemma 2) goes up with the logit: the largest one is found before any is capped.
#include <math.h>
#include <string.h>

#include "kernels/cpu/lanes.h"

enum { CHUNK = 1024 }; // elements summed in fp32

typedef struct soft_cap {
    float cap, inverse;
} soft_cap;

typedef struct row_kernels {
    float (*largest)(const float *x, int64_t n);
    double (*exponentials)(float *x, int64_t n, float shift, int keep);
    double (*capped_exponentials)(float *x, int64_t n, soft_cap cap, float shift, int keep);
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

// The largest of a row's logits, and the target's, as the softmax takes them; the slope is that of
// the target's soft cap.
typedef struct row_peaks {
    float largest, target, target_slope;
} row_peaks;

static row_peaks plain_peaks(const row_kernels *kernels, float *x, int64_t n, int64_t target) {
    float logit = x[target];
    x[target] = -INFINITY;
    float largest = kernels->largest(x, n);
    return (row_peaks){logit > largest ? logit : largest, logit, 1.0f};
}

static row_peaks capped_peaks(const row_peaks *plain, soft_cap cap) {
    float u = plain->target * cap.inverse, t = td_tanh_scalar(u), grown = 1.0f + fabsf(t);
    return (row_peaks){
        .largest = td_tanh_scalar(plain->largest * cap.inverse) * cap.cap,
        .target = t * cap.cap,
        .target_slope = td_exp_scalar(-2.0f * fabsf(u)) * (grown * grown),
    };
}

// Over all but the target. Capped, a logit of -infinity weighs something: the target is left out by
// its place, not by its value.
static double sum_others(const row_kernels *kernels, const td_cross_entropy_args *args, float *x,
                         int64_t target, float largest) {
    int64_t n = args->n_vocabulary;
    if (args->softcap <= 0.0f)
        return kernels->exponentials(x, n, largest, args->gradient);
    soft_cap cap = {args->softcap, 1.0f / args->softcap};
    return kernels->capped_exponentials(x, target, cap, largest, args->gradient) +
           kernels->capped_exponentials(x + target + 1, n - target - 1, cap, largest,
                                        args->gradient);
}

static float row_process(const row_kernels *kernels, const td_cross_entropy_args *args,
                         int64_t row) {
    int64_t n = args->n_vocabulary, target = args->targets[row];
    float *x = (float *)args->logits + row * n;
    row_peaks plain = plain_peaks(kernels, x, n, target), peaks = plain;
    if (args->softcap > 0.0f)
        peaks = capped_peaks(&plain, (soft_cap){args->softcap, 1.0f / args->softcap});
    double others = sum_others(kernels, args, x, target, peaks.largest);
    double weight = exp((double)peaks.target - (double)peaks.largest), sum = others + weight;
    if (args->gradient) {
        kernels->scale(x, n, (float)((double)args->gradient_scale / sum));
        x[target] =
            (float)(-others / sum * (double)args->gradient_scale * (double)peaks.target_slope);
    } else {
        x[target] = plain.target;
    }
    return row_loss(others, weight, peaks.largest, peaks.target);
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
