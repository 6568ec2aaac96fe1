#include "kernels/blas_product.h"

#include <cblas.h>
#include <omp.h>

#include "kernels/cpu/cpu_internal.h"

void td_cpu_blas_product(int64_t extent, const float *a, const float *b, float *c) {
    blasint n = (blasint)extent;
    omp_set_num_threads(td_cpu_threads());
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, n, n, 1.0f, a, n, b, n, 0.0f, c, n);
}
