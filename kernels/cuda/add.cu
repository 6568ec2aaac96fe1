#include "kernels/cuda/elements.cuh"

namespace {

constexpr int EACH = 2; // chunks per thread

template <typename T> __global__ void add_kernel(int64_t n, const T *x, T *y, bool wide) {
    td_chunk<T> a[EACH], b[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        a[k] = td_chunk_load(x, td_flat_element<EACH>(k), n, wide);
        b[k] = td_chunk_load(y, td_flat_element<EACH>(k), n, wide);
    }
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        td_floats sum = td_chunk_floats(b[k]), x_k = td_chunk_floats(a[k]);
#pragma unroll
        for (int i = 0; i < TD_CHUNK; i++)
            sum.at[i] += x_k.at[i];
        td_chunk_store(y, td_flat_element<EACH>(k), n, wide, td_chunk_of<T>(sum));
    }
}

} // namespace

td_status td_cuda_add(const td_op_context *context, const td_add_args *args) {
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        return td_cuda_launch(context, "add", add_kernel<T>,
                              td_flat_grid<EACH>(td_cuda_chunks(args->n_elements)), TD_FLAT_THREADS,
                              0, args->n_elements, static_cast<const T *>(args->x),
                              static_cast<T *>(args->y), td_cuda_aligned(args->x, args->y));
    });
}
