// The dynamic 8-bit maps on the device: each thread works out entries by the formula of
// kernels/cpu/dynamic_map.c, with the same bits, so that no table has to be passed in.
#ifndef TANDEM_KERNELS_CUDA_DYNAMIC_MAP_CUH
#define TANDEM_KERNELS_CUDA_DYNAMIC_MAP_CUH

#include "kernels/cuda/cuda_internal.cuh"
#include "kernels/dynamic_map.h"

struct td_code_map {
    float value[256], midpoint[256];
};

// Point i of n between 0.1 and 1, counted from the nearer end.
__device__ inline float td_map_edge(int i, int n) {
    float step = (1.0f - 0.1f) / static_cast<float>(n - 1);
    return i < n / 2 ? fmaf(step, static_cast<float>(i), 0.1f)
                     : fmaf(-step, static_cast<float>(n - 1 - i), 1.0f);
}

// The midpoint of part `part` of the equal parts of [0.1, 1], scaled to the exponent's power of
// ten.
__device__ inline float td_map_part(int exponent, int part, int parts) {
    const float powers[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    float middle = (td_map_edge(part, parts + 1) + td_map_edge(part + 1, parts + 1)) / 2.0f;
    return powers[exponent] * middle;
}

// The positive entry of the given rank, from 0, where exponent e has `fractions << e` parts.
__device__ inline float td_map_positive(int rank, int fractions) {
    int exponent = 0;
    while (rank >= fractions << exponent)
        rank -= fractions << exponent++;
    return td_map_part(exponent, rank, fractions << exponent);
}

// Entry `code` of the signed map: 127 negative entries, zero, 127 positive ones, one.
__device__ inline float td_map_signed(int code) {
    if (code == 127 || code == 255)
        return code == 255 ? 1.0f : 0.0f;
    return code < 127 ? -td_map_positive(126 - code, 1) : td_map_positive(code - 128, 1);
}

// Entry `code` of the unsigned map: zero, 254 positive entries, one.
__device__ inline float td_map_unsigned(int code) {
    if (code == 0 || code == 255)
        return code == 255 ? 1.0f : 0.0f;
    return td_map_positive(code - 1, 2);
}

// Filled by all threads of the block; a barrier must follow.
template <float (*ENTRY)(int)> __device__ void td_map_fill(td_code_map *map) {
    for (int code = static_cast<int>(threadIdx.x); code < 256; code += blockDim.x) {
        map->value[code] = ENTRY(code);
        map->midpoint[code] = code < 255 ? (ENTRY(code) + ENTRY(code + 1)) * 0.5f : NAN;
    }
}

#endif
