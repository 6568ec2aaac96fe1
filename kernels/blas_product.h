// The BLAS library's own matrix product, for measuring what the CPU can do.
#ifndef TANDEM_KERNELS_BLAS_PRODUCT_H
#define TANDEM_KERNELS_BLAS_PRODUCT_H

#include <stdint.h>

// c = a b^T, (extent, extent) fp32 each, by cblas_sgemm on the threads of the operations.
void td_cpu_blas_product(int64_t extent, const float *a, const float *b, float *c);

#endif
