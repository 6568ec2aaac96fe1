// What adamw.c and adamw_8bit.c share: the scalars of one step, and a block size that keeps the
// work in the first-level cache.
#ifndef TANDEM_KERNELS_CPU_ADAMW_INTERNAL_H
#define TANDEM_KERNELS_CPU_ADAMW_INTERNAL_H

#include "kernels/cpu/cpu_internal.h"

// As torch computes them: in double, then rounded once to fp32.
typedef struct td_adamw_scalars {
    float gradient_scale;
    float keep;         // 1 - lr * decay
    float beta1, rest1; // rest1 = 1 - beta1
    float beta2, rest2;
    float correction2; // sqrt(1 - beta2^t)
    float epsilon;
    float rate; // -lr / (1 - beta1^t)
} td_adamw_scalars;

td_adamw_scalars td_adamw_scalars_of(const td_adamw_args *args);

// p -= rate m / (sqrt(v) / correction2 + epsilon), for one element, in the order of torch's
// single-tensor AdamW.
static inline __attribute__((always_inline)) float td_adamw_moved(const td_adamw_scalars *s,
                                                                  float p, float m, float v) {
    float denominator = __builtin_sqrtf(v) / s->correction2 + s->epsilon;
    return p * s->keep + s->rate * m / denominator;
}

#endif
