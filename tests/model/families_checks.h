// The checks of the model families, for a backend's test program to run.
#ifndef TANDEM_TESTS_MODEL_FAMILIES_CHECKS_H
#define TANDEM_TESTS_MODEL_FAMILIES_CHECKS_H

#include "kernels/ops.h"

typedef struct families_backend {
    const td_device *device;
    const td_ops *ops;
    // How far from transformers' fp32: logits, with the second times the largest one; the mean
    // loss; each tensor's gradient, times its largest element.
    double logits_absolute, logits_relative, loss, gradient;
} families_backend;

// Runs all of them and returns the program's exit status.
int families_main(const families_backend *backend);

#endif
