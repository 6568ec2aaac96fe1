#include "kernels/cuda/reduction.cuh"

namespace {

// One block. partial: (n); the sum goes behind the partial sums that there can be at most.
__global__ void finish_kernel(const double *partial, int64_t n, double *sum) {
    double mine = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        mine += partial[i];
    mine = td_block_sum(mine, td_cuda_shared<double>());
    if (threadIdx.x == 0)
        *sum = mine;
}

} // namespace

td_status td_cuda_reduction_workspace(const td_op_context *context, const char *op,
                                      double **out_partial) {
    if (!context->workspace || context->workspace_bytes < TD_CUDA_REDUCTION_WORKSPACE_BYTES)
        return td_fail(
            TD_ERR_INTERNAL,
            "%s: the workspace has %zu bytes, a reduction needs %d (workspace_bytes() of "
            "the operation table says how many to give)",
            op, context->workspace ? context->workspace_bytes : (size_t)0,
            static_cast<int>(TD_CUDA_REDUCTION_WORKSPACE_BYTES));
    *out_partial = static_cast<double *>(context->workspace);
    return TD_OK;
}

td_status td_cuda_reduction_finish(const td_op_context *context, const char *op, int64_t n_partial,
                                   double *partial, double *out_sum) {
    double *sum = partial + TD_CUDA_REDUCTION_BLOCKS;
    TD_TRY(td_cuda_launch(context, op, finish_kernel, 1, TD_CUDA_REDUCTION_THREADS,
                          TD_CUDA_MOST_WARPS * sizeof(double), partial, n_partial, sum));
    return context->device->table->copy(context->stream, out_sum, sum, sizeof *sum);
}
