// The first stage of sums of squares: sum_squares and fixed_to_f32 differ in where values come
// from.
#ifndef TANDEM_KERNELS_CUDA_SUM_SQUARES_CUH
#define TANDEM_KERNELS_CUDA_SUM_SQUARES_CUH

#include "kernels/cuda/reduction.cuh"

static inline unsigned td_sum_squares_blocks(int64_t n) {
    const unsigned most = TD_CUDA_REDUCTION_BLOCKS;
    unsigned blocks = td_cuda_blocks(n, 4 * TD_CUDA_REDUCTION_THREADS);
    return blocks < most ? blocks : most;
}

// Squares of fp32 values are exact in double.
__device__ __forceinline__ double td_quad_squares(const td_quad<float> &quad) {
    double square[4];
    for (int k = 0; k < 4; k++)
        square[k] = static_cast<double>(quad.x[k]) * static_cast<double>(quad.x[k]);
    return (square[0] + square[1]) + (square[2] + square[3]);
}

// next(i) gives values [i, i + 4) of n, zeros behind the end. partial: (blocks), or NULL when
// nobody wants the sum.
template <typename Next>
__global__ void td_sum_squares_kernel(Next next, int64_t n, double *partial) {
    double sum = 0.0;
    int64_t stride = 4 * static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = td_quad_begin(); i < n; i += stride)
        sum += td_quad_squares(next(i));
    if (!partial)
        return;
    sum = td_block_sum(sum, td_cuda_shared<double>());
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

// *out_sum: host memory, or NULL.
template <typename Next>
td_status td_sum_squares_run(const td_op_context *context, const char *op, int64_t n, Next next,
                             double *out_sum) {
    double *partial = nullptr;
    if (out_sum)
        TD_TRY(td_cuda_reduction_workspace(context, op, &partial));
    unsigned blocks = td_sum_squares_blocks(n);
    TD_TRY(td_cuda_launch(context, op, td_sum_squares_kernel<Next>, blocks,
                          TD_CUDA_REDUCTION_THREADS, TD_CUDA_MOST_WARPS * sizeof(double), next, n,
                          partial));
    return out_sum ? td_cuda_reduction_finish(context, op, blocks, partial, out_sum) : TD_OK;
}

#endif
