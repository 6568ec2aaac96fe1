// The checks of the model families, for a backend's test program to run.
#ifndef TANDEM_TESTS_MODEL_FAMILIES_CHECKS_H
#define TANDEM_TESTS_MODEL_FAMILIES_CHECKS_H

#include "kernels/ops.h"

typedef struct families_backend {
    const td_device *device;
    const td_ops *ops;
    // How far from transformers' fp32, at the worst element: logits; the mean loss; each tensor's
    // gradient, times its largest element.
    double logits, loss, gradient;
    // Or, where rounding is coarse and a few rows of a random model amplify errors: the root mean
    // square of the error, relative to that of what is expected.
    double logits_relative, gradient_relative;
} families_backend;

// Runs all of them and returns the program's exit status.
int families_main(const families_backend *backend);

#endif
