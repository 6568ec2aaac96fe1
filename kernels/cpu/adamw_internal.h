// What adamw.c and adamw_8bit.c share.
#ifndef TANDEM_KERNELS_CPU_ADAMW_INTERNAL_H
#define TANDEM_KERNELS_CPU_ADAMW_INTERNAL_H

#include "kernels/adamw_scalars.h"
#include "kernels/cpu/cpu_internal.h"

// p -= rate m / (sqrt(v) / correction2 + epsilon), for one element, in the order of torch's
// single-tensor AdamW.
static inline __attribute__((always_inline)) float td_adamw_moved(const td_adamw_scalars *s,
                                                                  float p, float m, float v) {
    float denominator = __builtin_sqrtf(v) / s->correction2 + s->epsilon;
    return p * s->keep + s->rate * m / denominator;
}

#endif
