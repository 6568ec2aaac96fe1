// Gradients as 64-bit fixed point: integer sums are the same in any order.
#include "kernels/cuda/sum_squares.cuh"

namespace {

// Adds one value; returns 1 for a fault. A value of 2^63 quanta and more has no int64.
__device__ __forceinline__ int add_one(float value, double factor, int64_t limit, int64_t *sum) {
    double scaled = static_cast<double>(value) * factor;
    if (!(fabs(scaled) < 0x1p63))
        return 1;
    int64_t change = llrint(scaled), before = *sum;
    int64_t after =
        static_cast<int64_t>(static_cast<uint64_t>(before) + static_cast<uint64_t>(change));
    // A wrapped sum differs in sign from both terms.
    bool wrapped = ((before ^ after) & (change ^ after)) < 0;
    if (wrapped || after > limit || after < -limit)
        return 1;
    *sum = after;
    return 0;
}

__global__ void fixed_add_kernel(td_fixed_add_args args, double factor, bool aligned) {
    int64_t i = td_quad_begin(), n = args.n_elements;
    td_quad<float> value = td_quad_load(args.values, i, n, aligned);
    td_quad<int64_t> sum = td_quad_load(args.accumulator, i, n, aligned);
    int faults = 0;
    for (int k = 0; k < 4; k++) // zeros behind the end are no faults
        faults += add_one(value.x[k], factor, args.limit, &sum.x[k]);
    td_quad_store(args.accumulator, i, n, aligned, sum);
    td_warp_count(faults, args.faults);
}

// Converts on the way; the product with a power of two is exact.
struct next_fixed {
    const int64_t *accumulator; // (n)
    float *values;              // (n) out
    int64_t n;
    float factor;
    bool aligned;
    __device__ td_quad<float> operator()(int64_t i) const {
        td_quad<int64_t> fixed = td_quad_load(accumulator, i, n, aligned);
        td_quad<float> value;
        for (int k = 0; k < 4; k++)
            value.x[k] = static_cast<float>(fixed.x[k]) * factor;
        td_quad_store(values, i, n, aligned, value);
        return value;
    }
};

} // namespace

td_status td_cuda_fixed_add(const td_op_context *context, const td_fixed_add_args *args) {
    bool aligned = td_is_quad_aligned(args->values) && td_is_quad_aligned(args->accumulator);
    unsigned blocks = td_cuda_blocks(args->n_elements, 4 * TD_CUDA_REDUCTION_THREADS);
    return td_cuda_launch(context, "fixed_add", fixed_add_kernel, blocks, TD_CUDA_REDUCTION_THREADS,
                          0, *args, ldexp(1.0, -args->quantum_log2), aligned);
}

td_status td_cuda_fixed_to_f32(const td_op_context *context, const td_fixed_to_f32_args *args) {
    next_fixed next = {args->accumulator, args->values, args->n_elements,
                       ldexpf(1.0f, args->quantum_log2),
                       td_is_quad_aligned(args->accumulator) && td_is_quad_aligned(args->values)};
    return td_sum_squares_run(context, "fixed_to_f32", args->n_elements, next, args->sum_squares);
}
