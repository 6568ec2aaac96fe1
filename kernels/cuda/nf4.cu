// NF4 quantization (Dettmers et al., NeurIPS 2023, "QLoRA"): sixteen lanes per block of 64, each
// with four elements of it.
#include "kernels/cuda/reduction.cuh"

namespace {

enum { THREADS = 256, QUADS_PER_THREAD = 4, LANES_PER_BLOCK = TD_NF4_BLOCK / 4 };
enum : unsigned { ZERO_CODE = 7 };

// The number of thresholds strictly below x; 0 for NaN. Each step keeps the half of the table that
// the answer is in, which makes it selections between registers.
__device__ __forceinline__ unsigned code_of(float x) {
    float threshold[15] = {
        -0.8480964004993439f,  -0.6106329262256622f,  -0.4599952697753906f,   -0.33967943489551544f,
        -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
        0.1202552504837513f,   0.2035212516784668f,   0.2920137718319893f,    0.3893125355243683f,
        0.5016634166240692f,   0.6427869200706482f,   0.8614784178118011f,
    };
    unsigned code = 0;
    for (int half = 8; half > 0; half /= 2) {
        bool above = x > threshold[half - 1];
        code += above ? half : 0;
        for (int i = 0; i < half - 1; i++)
            threshold[i] = above ? threshold[i + half] : threshold[i];
    }
    return code;
}

// Over the sixteen lanes of a block; NaN has no magnitude.
__device__ __forceinline__ float absmax_of(const td_quad<float> &quad) {
    float absmax = 0.0f;
    for (int k = 0; k < 4; k++)
        absmax = fmaxf(absmax, fabsf(quad.x[k]));
    for (int lane = LANES_PER_BLOCK / 2; lane > 0; lane /= 2)
        absmax = fmaxf(absmax, __shfl_xor_sync(0xffffffffu, absmax, lane));
    return absmax;
}

// Two bytes of codes of elements [i, i + 4).
__device__ __forceinline__ void store_codes(const td_quad<float> &quad, float inverse, int64_t i,
                                            int64_t n, bool aligned, uint8_t *codes) {
    unsigned code[4];
    for (int k = 0; k < 4; k++)
        code[k] = i + k < n ? code_of(quad.x[k] * inverse) : ZERO_CODE;
    uint8_t first = static_cast<uint8_t>(code[0] << 4 | code[1]);
    uint8_t second = static_cast<uint8_t>(code[2] << 4 | code[3]);
    uint8_t *to = codes + i / 2;
    if (aligned && i + 2 < n) {
        *reinterpret_cast<uint16_t *>(to) = static_cast<uint16_t>(second << 8 | first);
        return;
    }
    if (i < n)
        to[0] = first;
    if (i + 2 < n)
        to[1] = second;
}

__device__ __forceinline__ td_quad<float> widen(const td_quad<float> &quad) {
    return quad;
}

__device__ __forceinline__ td_quad<float> widen(const td_quad<bf16> &quad) {
    td_quad<float> wide;
    for (int k = 0; k < 4; k++)
        wide.x[k] = __bfloat162float(quad.x[k]);
    return wide;
}

// Loads first, so that all of them are under way together.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    nf4_quantize_kernel(td_nf4_quantize_args args, bool weight_aligned, bool codes_aligned) {
    const T *weight = static_cast<const T *>(args.weight);
    int64_t n = args.n_elements;
    int64_t begin = 4 * (static_cast<int64_t>(blockIdx.x) * THREADS * QUADS_PER_THREAD +
                         static_cast<int64_t>(threadIdx.x));
    td_quad<T> stored[QUADS_PER_THREAD];
    for (int q = 0; q < QUADS_PER_THREAD; q++)
        stored[q] = td_quad_load(weight, begin + 4 * THREADS * q, n, weight_aligned);
    for (int q = 0; q < QUADS_PER_THREAD; q++) {
        int64_t i = begin + 4 * THREADS * q;
        td_quad<float> quad = widen(stored[q]);
        float absmax = absmax_of(quad);
        // A block of zeros is kept at zero.
        float inverse = absmax > 0.0f ? 1.0f / absmax : 0.0f;
        store_codes(quad, inverse, i, n, codes_aligned, args.codes);
        if (i % TD_NF4_BLOCK == 0 && i < n)
            args.absmax[i / TD_NF4_BLOCK] = absmax;
    }
}

template <typename T>
td_status quantize(const td_op_context *context, const td_nf4_quantize_args *args) {
    bool codes_aligned = reinterpret_cast<uintptr_t>(args->codes) % sizeof(uint16_t) == 0;
    unsigned blocks = td_cuda_blocks(args->n_elements, 4 * THREADS * QUADS_PER_THREAD);
    return td_cuda_launch(context, "nf4_quantize", nf4_quantize_kernel<T>, blocks, THREADS, 0,
                          *args, td_is_quad_aligned(static_cast<const T *>(args->weight)),
                          codes_aligned);
}

} // namespace

td_status td_cuda_nf4_quantize(const td_op_context *context, const td_nf4_quantize_args *args) {
    return args->weight_dtype == TD_BF16 ? quantize<bf16>(context, args)
                                         : quantize<float>(context, args);
}
