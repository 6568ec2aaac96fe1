// AdamW (Loshchilov and Hutter, ICLR 2019) over one page, with the bits of the CPU's.
#include "kernels/cuda/adamw.cuh"

namespace {

enum { THREADS = 256 };

struct adamw_arrays {
    int64_t n;
    float *parameters, *m, *v; // (n)
    const float *gradient;     // (n)
};

// From m towards g, from the nearer end, as torch's lerp.
__device__ __forceinline__ float lerp(float m, float g, float rest) {
    float distance = __fsub_rn(g, m);
    if (rest < 0.5f)
        return __fadd_rn(m, __fmul_rn(rest, distance));
    return __fsub_rn(g, __fmul_rn(distance, __fsub_rn(1.0f, rest)));
}

__global__ void __launch_bounds__(THREADS)
    adamw_kernel(adamw_arrays arrays, td_adamw_scalars s, bool aligned) {
    int64_t i = td_quad_begin(), n = arrays.n;
    td_quad<float> gradient = td_quad_load(arrays.gradient, i, n, aligned);
    td_quad<float> p = td_quad_load(arrays.parameters, i, n, aligned);
    td_quad<float> m = td_quad_load(arrays.m, i, n, aligned);
    td_quad<float> v = td_quad_load(arrays.v, i, n, aligned);
    for (int k = 0; k < 4; k++) {
        float g = td_adamw_gradient(s, gradient.x[k]);
        m.x[k] = lerp(m.x[k], g, s.rest1);
        v.x[k] = td_adamw_v(s, v.x[k], g);
        p.x[k] = td_adamw_moved(s, p.x[k], m.x[k], v.x[k]);
    }
    td_quad_store(arrays.parameters, i, n, aligned, p);
    td_quad_store(arrays.m, i, n, aligned, m);
    td_quad_store(arrays.v, i, n, aligned, v);
}

} // namespace

td_status td_cuda_adamw(const td_op_context *context, const td_adamw_args *args) {
    float *m = static_cast<float *>(args->state), *v = m + args->page_elements;
    adamw_arrays arrays = {args->n_elements, args->parameters, m, v, args->gradient};
    bool aligned = td_is_quad_aligned(args->parameters) && td_is_quad_aligned(args->gradient) &&
                   td_is_quad_aligned(m) && td_is_quad_aligned(v);
    return td_cuda_launch(context, "adamw", adamw_kernel,
                          td_cuda_blocks(args->n_elements, 4 * THREADS), THREADS, 0, arrays,
                          td_adamw_scalars_of(args), aligned);
}
