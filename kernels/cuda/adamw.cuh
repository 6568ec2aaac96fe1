// What adamw.cu and adamw_8bit.cu share: one element's step in fp32, in the order of operations and
// with the roundings of torch's single-tensor AdamW. Every product and sum is rounded on its own: a
// multiply-add that the compiler fuses would move 8-bit codes.
#ifndef TANDEM_KERNELS_CUDA_ADAMW_CUH
#define TANDEM_KERNELS_CUDA_ADAMW_CUH

#include "kernels/adamw_scalars.h"
#include "kernels/cuda/reduction.cuh"

__device__ __forceinline__ float td_adamw_gradient(const td_adamw_scalars &s, float gradient) {
    return __fmul_rn(gradient, s.gradient_scale);
}

// v = b2 v + (1 - b2) g^2
__device__ __forceinline__ float td_adamw_v(const td_adamw_scalars &s, float v, float g) {
    return __fadd_rn(__fmul_rn(v, s.beta2), __fmul_rn(__fmul_rn(s.rest2, g), g));
}

// p -= rate m / (sqrt(v) / correction2 + epsilon)
__device__ __forceinline__ float td_adamw_moved(const td_adamw_scalars &s, float p, float m,
                                                float v) {
    float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), s.correction2), s.epsilon);
    return __fadd_rn(__fmul_rn(p, s.keep), __fdiv_rn(__fmul_rn(s.rate, m), denominator));
}

#endif
