// Norms and fp32 sums of gradients: the inexact pair of fixed.cu.
#include "kernels/cuda/sum_squares.cuh"

namespace {

struct next_values {
    const float *values; // (n)
    int64_t n;
    bool aligned;
    __device__ td_quad<float> operator()(int64_t i) const {
        return td_quad_load(values, i, n, aligned);
    }
};

__global__ void f32_add_kernel(td_f32_add_args args, bool aligned) {
    int64_t i = td_quad_begin(), n = args.n_elements;
    td_quad<float> value = td_quad_load(args.values, i, n, aligned);
    td_quad<float> total = td_quad_load(args.accumulator, i, n, aligned);
    int faults = 0;
    for (int k = 0; k < 4; k++) {
        float sum = total.x[k] + value.x[k];
        bool finite = isfinite(sum);
        faults += !finite;
        total.x[k] = finite ? sum : total.x[k];
    }
    td_quad_store(args.accumulator, i, n, aligned, total);
    td_warp_count(faults, args.faults);
}

} // namespace

td_status td_cuda_sum_squares(const td_op_context *context, const td_sum_squares_args *args) {
    next_values next = {args->values, args->n_elements, td_is_quad_aligned(args->values)};
    return td_sum_squares_run(context, "sum_squares", args->n_elements, next, args->sum_squares);
}

td_status td_cuda_f32_add(const td_op_context *context, const td_f32_add_args *args) {
    bool aligned = td_is_quad_aligned(args->values) && td_is_quad_aligned(args->accumulator);
    unsigned blocks = td_cuda_blocks(args->n_elements, 4 * TD_CUDA_REDUCTION_THREADS);
    return td_cuda_launch(context, "f32_add", f32_add_kernel, blocks, TD_CUDA_REDUCTION_THREADS, 0,
                          *args, aligned);
}
