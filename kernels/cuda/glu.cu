// SwiGLU (Shazeer, 2020): y = silu(gate) * up. Sums of products are explicit fused multiply-adds,
// so that every compilation gives the same bits. Outputs may lie over inputs: a thread reads its
// elements before it writes them.
#include "kernels/cuda/elements.cuh"

namespace {

constexpr int EACH = 2; // chunks per thread

// exp() overflows to infinity below -88, which gives the limit 0.
__device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

template <typename T>
__global__ void forward_kernel(int64_t n, const T *gate, const T *up, T *y, bool wide) {
    td_chunk<T> g[EACH], u[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        g[k] = td_chunk_load(gate, td_flat_element<EACH>(k), n, wide);
        u[k] = td_chunk_load(up, td_flat_element<EACH>(k), n, wide);
    }
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        td_floats x = td_chunk_floats(g[k]), product = td_chunk_floats(u[k]);
#pragma unroll
        for (int i = 0; i < TD_CHUNK; i++)
            product.at[i] *= x.at[i] * sigmoid(x.at[i]);
        td_chunk_store(y, td_flat_element<EACH>(k), n, wide, td_chunk_of<T>(product));
    }
}

// With s = sigmoid(g): dup = dy g s; dgate = dy up s (1 + g (1 - s)).
template <typename T>
__global__ void backward_kernel(int64_t n, const T *dy, const T *gate, const T *up, T *dgate,
                                T *dup, bool wide) {
    int64_t at = td_flat_element<1>(0);
    td_chunk<T> loaded[3] = {td_chunk_load(dy, at, n, wide), td_chunk_load(gate, at, n, wide),
                             td_chunk_load(up, at, n, wide)};
    td_floats d = td_chunk_floats(loaded[0]), g = td_chunk_floats(loaded[1]);
    td_floats u = td_chunk_floats(loaded[2]);
#pragma unroll
    for (int i = 0; i < TD_CHUNK; i++) {
        float s = sigmoid(g.at[i]), slope = fmaf(g.at[i], 1.0f - s, 1.0f);
        float dsilu = d.at[i] * u.at[i];
        u.at[i] = d.at[i] * (g.at[i] * s);
        g.at[i] = dsilu * s * slope;
    }
    td_chunk_store(dgate, at, n, wide, td_chunk_of<T>(g));
    td_chunk_store(dup, at, n, wide, td_chunk_of<T>(u));
}

} // namespace

td_status td_cuda_glu_forward(const td_op_context *context, const td_glu_forward_args *args) {
    bool wide = td_cuda_aligned(args->gate, args->up, args->y);
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        return td_cuda_launch(context, "glu_forward", forward_kernel<T>,
                              td_flat_grid<EACH>(td_cuda_chunks((args->n_rows * args->n_cols))),
                              TD_FLAT_THREADS, 0, (args->n_rows * args->n_cols),
                              static_cast<const T *>(args->gate), static_cast<const T *>(args->up),
                              static_cast<T *>(args->y), wide);
    });
}

td_status td_cuda_glu_backward(const td_op_context *context, const td_glu_backward_args *args) {
    bool wide = td_cuda_aligned(args->dy, args->gate, args->up, args->dgate, args->dup);
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        return td_cuda_launch(context, "glu_backward", backward_kernel<T>,
                              td_flat_grid<1>(td_cuda_chunks((args->n_rows * args->n_cols))),
                              TD_FLAT_THREADS, 0, (args->n_rows * args->n_cols),
                              static_cast<const T *>(args->dy), static_cast<const T *>(args->gate),
                              static_cast<const T *>(args->up), static_cast<T *>(args->dgate),
                              static_cast<T *>(args->dup), wide);
    });
}
