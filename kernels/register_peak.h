// What the CPU's vector units can do at most, with nothing to read or write.
#ifndef TANDEM_KERNELS_REGISTER_PEAK_H
#define TANDEM_KERNELS_REGISTER_PEAK_H

#include "runtime/core/tensor.h"

// Flop/s of fused multiply-adds on values in registers, on the threads of the operations together:
// the most that products of fp32 operands can reach, or of bf16 operands (TD_BF16). The fastest of
// some rounds, about 0.1 s. 0: this processor has no instruction for it.
double td_cpu_register_peak(td_dtype product);

#endif
