// Random weights: a thread has the eight elements of one call of the generator, which are 16 bytes
// of bf16. The table of quantiles is 256 KiB and stays in the second-level cache.
#include "kernels/cuda/cuda_internal.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int EACH = TD_DRAW_BLOCK;

template <typename T> struct alignas(16) sixteen_bytes { T value[16 / sizeof(T)]; };

template <typename T> __device__ __forceinline__ void store_wide(const T (&value)[EACH], T *out) {
    constexpr int part = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < EACH; i += part) {
        sixteen_bytes<T> packed;
#pragma unroll
        for (int j = 0; j < part; j++)
            packed.value[j] = value[i + j];
        *reinterpret_cast<sixteen_bytes<T> *>(out + i) = packed;
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    draw_kernel(uint64_t key, uint32_t tensor, int64_t first_block, int64_t n, int wide,
                const float *quantiles, T *out) {
    int64_t block = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x, begin = block * EACH;
    if (begin >= n)
        return;
    td_philox_words words = td_draw_words(key, tensor, static_cast<uint64_t>(first_block + block));
    T value[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++)
        value[i] = td_from_float<T>(quantiles[words.word[i / 2] >> (16 * (i % 2)) & 0xffffu]);
    if (wide && begin + EACH <= n) {
        store_wide(value, out + begin);
        return;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (begin + i < n)
            out[begin + i] = value[i];
}

template <typename T>
td_status draw(const td_op_context *context, const td_draw_weights_args *args, T *out) {
    int wide = reinterpret_cast<uintptr_t>(out) % 16 == 0;
    return td_cuda_launch(context, "draw_weights", draw_kernel<T>,
                          td_cuda_blocks(args->n_elements, THREADS * EACH), THREADS, 0, args->key,
                          args->tensor, args->first / EACH, args->n_elements, wide, args->quantiles,
                          out);
}

} // namespace

td_status td_cuda_draw_weights(const td_op_context *context, const td_draw_weights_args *args) {
    if (args->type == TD_BF16)
        return draw(context, args, static_cast<bf16 *>(args->out));
    return draw(context, args, static_cast<float *>(args->out));
}
