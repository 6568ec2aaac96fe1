// Masking by Philox words: 16 bytes per thread, one call of the generator for four elements.
#include "kernels/cuda/dropout.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WORDS = 4; // of one call of the generator

template <typename T> struct alignas(16) sixteen_bytes { T value[16 / sizeof(T)]; };

template <typename T, int ADD>
__device__ __forceinline__ T apply(uint32_t word, uint32_t threshold, T x, const T &before) {
    T kept = word >= threshold ? x : td_from_float<T>(0.0f);
    return ADD ? td_from_float<T>(__fadd_rn(td_to_float(before), td_to_float(kept))) : kept;
}

template <typename T, int ADD>
__device__ __forceinline__ void apply_four(const td_dropout &dropout, int64_t first, const T *x,
                                           T *out, int n) {
    td_philox_words words = td_dropout_words(&dropout, static_cast<uint64_t>(first) / WORDS);
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        if (i < n)
            out[i] = apply<T, ADD>(words.word[i], dropout.threshold, x[i], out[i]);
}

// x and out may be the same; each thread reads what it writes and nothing else of it.
template <typename T, int ADD>
__global__ void __launch_bounds__(THREADS)
    dropout_kernel(td_dropout dropout, int64_t n, int wide, const T *x, T *out) {
    constexpr int each = 16 / sizeof(T);
    if (dropout.place) {
        dropout.step = dropout.place[0];
        dropout.micro_batch = dropout.place[1];
    }
    int64_t first = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) * each;
    if (wide && first + each <= n) {
        sixteen_bytes<T> in = *reinterpret_cast<const sixteen_bytes<T> *>(x + first), result = in;
        if (ADD)
            result = *reinterpret_cast<const sixteen_bytes<T> *>(out + first);
#pragma unroll
        for (int i = 0; i < each; i += WORDS)
            apply_four<T, ADD>(dropout, first + i, in.value + i, result.value + i, WORDS);
        *reinterpret_cast<sixteen_bytes<T> *>(out + first) = result;
        return;
    }
    for (int64_t i = first; i < first + each && i < n; i += WORDS)
        apply_four<T, ADD>(dropout, i, x + i, out + i,
                           static_cast<int>(n - i < WORDS ? n - i : WORDS));
}

template <int ADD>
td_status launch(const td_op_context *context, const char *op, const td_dropout *dropout, int64_t n,
                 const void *x, void *out) {
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        const T *from = static_cast<const T *>(x);
        T *to = static_cast<T *>(out);
        int wide = (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % 16 == 0;
        return td_cuda_launch(context, op, dropout_kernel<T, ADD>,
                              td_cuda_blocks(n, THREADS * (16 / sizeof(T))), THREADS, 0, *dropout,
                              n, wide, from, to);
    });
}

} // namespace

td_status td_cuda_dropout_mask(const td_op_context *context, const char *op,
                               const td_dropout *dropout, int64_t n, const void *x, void *out) {
    return launch<0>(context, op, dropout, n, x, out);
}

td_status td_cuda_dropout_add(const td_op_context *context, const char *op,
                              const td_dropout *dropout, int64_t n, const void *x, void *out) {
    return launch<1>(context, op, dropout, n, x, out);
}
