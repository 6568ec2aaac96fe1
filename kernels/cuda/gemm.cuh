// Matrix products by cuBLASLt, with plans kept per device.
//
// The same product gives the same bits in every run on the same kind of GPU: an algorithm is chosen
// by extents, types and alignments only, it may not split sums by atomics, and it gets the same
// amount of workspace always. Any thread may call; one product at a time is queued per device.
#ifndef TANDEM_KERNELS_CUDA_GEMM_CUH
#define TANDEM_KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/cuda_internal.cuh"

// Row-major c = alpha * op(a) op(b) + beta * c, summed in fp32 and rounded once. Types are TD_F32
// or TD_BF16; c may be fp32 with bf16 operands. Leading dimensions are from row to row. Any address
// that is a multiple of the element will do.
typedef struct td_cuda_gemm_args {
    int transpose_a, transpose_b;
    int64_t m, n, k; // op(a) is (m, k), op(b) (k, n)
    float alpha;
    const void *a;
    int64_t lda;
    const void *b;
    int64_t ldb;
    float beta;
    void *c; // (m, n)
    int64_t ldc;
    td_dtype type; // of a and b
    td_dtype c_type;
} td_cuda_gemm_args;

// Queues the product on the context's stream. The first TD_CUDA_GEMM_PART_BYTES of the
// context's workspace are overwritten. `op` is named in errors.
td_status td_cuda_gemm(const td_op_context *context, const char *op, const td_cuda_gemm_args *args);

// How often a plan was found and had to be made, on one device since the start.
typedef struct td_cuda_gemm_counts {
    uint64_t found, made;
} td_cuda_gemm_counts;
td_cuda_gemm_counts td_cuda_gemm_counts_of(int device_index);

#endif
