// Matrix products by OpenBLAS. Its splitting is a function of the shape and the thread count, so
// the bits are too.
#include <cblas.h>
#include <omp.h>

#include "kernels/cpu/cpu_internal.h"

void td_cpu_gemm(const td_cpu_gemm_args *args) {
    // OpenBLAS takes its team size from the calling thread's OpenMP setting; inside a parallel loop
    // it stays on one thread.
    if (!omp_in_parallel() && omp_get_max_threads() != td_cpu_threads())
        omp_set_num_threads(td_cpu_threads());
    cblas_sgemm(CblasRowMajor, args->transpose_a ? CblasTrans : CblasNoTrans,
                args->transpose_b ? CblasTrans : CblasNoTrans, (blasint)args->m, (blasint)args->n,
                (blasint)args->k, args->alpha, args->a, (blasint)args->lda, args->b,
                (blasint)args->ldb, args->beta, args->c, (blasint)args->ldc);
}
