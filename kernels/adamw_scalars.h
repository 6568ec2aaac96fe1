// The scalars of one AdamW step, which every backend's adamw and adamw_8bit work with.
#ifndef TANDEM_KERNELS_ADAMW_SCALARS_H
#define TANDEM_KERNELS_ADAMW_SCALARS_H

#include <math.h>

#include "kernels/ops.h"

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

static inline td_adamw_scalars td_adamw_scalars_of(const td_adamw_args *args) {
    double beta1 = args->beta1, beta2 = args->beta2, rate = args->learning_rate;
    double t = (double)args->step;
    td_adamw_scalars scalars;
    scalars.gradient_scale = args->gradient_scale;
    scalars.keep = (float)(1.0 - rate * args->weight_decay);
    scalars.beta1 = (float)beta1;
    scalars.rest1 = (float)(1.0 - beta1);
    scalars.beta2 = (float)beta2;
    scalars.rest2 = (float)(1.0 - beta2);
    scalars.correction2 = (float)sqrt(1.0 - pow(beta2, t));
    scalars.epsilon = (float)args->epsilon;
    scalars.rate = (float)(-rate / (1.0 - pow(beta1, t)));
    return scalars;
}

#endif
