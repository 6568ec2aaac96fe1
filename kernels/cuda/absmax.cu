// Double quantization of NF4's block scales: their mean, then codes of what is left.
#include "kernels/absmax_mean.h"
#include "kernels/cuda/dynamic_map.cuh"
#include "kernels/cuda/reduction.cuh"

namespace {

enum { MEAN_THREADS = TD_MEAN_WARPS * TD_MEAN_WARP };

static_assert(TD_MEAN_WARP == 32, "a fold of td_warp_sum()");
static_assert(TD_MEAN_BLOCKS == 32, "the last fold is one warp's");
static_assert(int(TD_MEAN_BLOCKS) <= int(TD_CUDA_REDUCTION_BLOCKS),
              "partial sums in the workspace");

// In the order of absmax_mean.h. partial: (TD_MEAN_BLOCKS)
__global__ void sum_kernel(const float *values, int64_t n, double *partial) {
    double sum = 0.0;
    for (int64_t i = blockIdx.x * MEAN_THREADS + threadIdx.x; i < n; i += TD_MEAN_LANES)
        sum += static_cast<double>(values[i]);
    sum = td_block_sum(sum, td_cuda_shared<double>());
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

// One warp.
__global__ void mean_kernel(const double *partial, int64_t n, float *mean) {
    double sum = td_warp_sum(partial[threadIdx.x]);
    if (threadIdx.x == 0)
        *mean = static_cast<float>(sum / static_cast<double>(n));
}

struct nested_shared {
    td_code_map map;
    float largest[TD_CUDA_MOST_WARPS];
};

// One block of threads per nested block, one thread per element.
__global__ void __launch_bounds__(TD_NF4_NESTED_BLOCK)
    nested_kernel(td_absmax_quantize_args args, const float *mean) {
    nested_shared *shared = td_cuda_shared<nested_shared>();
    td_map_fill<td_map_signed>(&shared->map);
    int64_t i = static_cast<int64_t>(blockIdx.x) * TD_NF4_NESTED_BLOCK + threadIdx.x;
    bool inside = i < args.n_blocks;
    float rest = inside ? args.absmax[i] - *mean : 0.0f;
    // NaN has no magnitude. The barrier in here is the map's too.
    float absmax = td_block_max(fmaxf(fabsf(rest), 0.0f), shared->largest);
    if (!inside)
        return;
    args.codes[i] =
        absmax > 0.0f ? td_dynamic_map_nearest(shared->map.midpoint, rest * (1.0f / absmax)) : 0;
    if (threadIdx.x == 0)
        args.nested_absmax[blockIdx.x] = absmax;
}

} // namespace

td_status td_cuda_absmax_quantize(const td_op_context *context,
                                  const td_absmax_quantize_args *args) {
    static const char op[] = "absmax_quantize";
    double *partial;
    TD_TRY(td_cuda_reduction_workspace(context, op, &partial));
    float *mean = reinterpret_cast<float *>(partial + TD_CUDA_REDUCTION_BLOCKS);
    TD_TRY(td_cuda_launch(context, op, sum_kernel, TD_MEAN_BLOCKS, MEAN_THREADS,
                          TD_CUDA_MOST_WARPS * sizeof(double), args->absmax, args->n_blocks,
                          partial));
    TD_TRY(td_cuda_launch(context, op, mean_kernel, 1, TD_MEAN_BLOCKS, 0, partial, args->n_blocks,
                          mean));
    TD_TRY(td_cuda_launch(context, op, nested_kernel,
                          td_cuda_blocks(args->n_blocks, TD_NF4_NESTED_BLOCK), TD_NF4_NESTED_BLOCK,
                          sizeof(nested_shared), *args, mean));
    return context->device->table->copy(context->stream, args->offset, mean, sizeof *mean);
}
