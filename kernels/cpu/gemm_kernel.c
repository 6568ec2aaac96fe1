// The inner loop of matrix products, compiled for every level. Tiles are as large as the registers
// allow. With AVX-512, 8 rows of 48 columns leave five registers for a row of b and an element of
// a; 12 x 32, 14 x 32 and 24 x 16 were slower by 2 to 60 %, 9 x 48 and 6 x 64 as fast.
#include <string.h>

#include "kernels/cpu/gemm_internal.h"
#include "kernels/cpu/lanes.h"

#define TD_LANES_LEVEL scalar
#define TILE_ROWS      2
#define TILE_LANES     1
#include "kernels/cpu/gemm_kernel_template.h"

#define TD_LANES_LEVEL avx2
#define TILE_ROWS      6
#define TILE_LANES     1
#include "kernels/cpu/gemm_kernel_template.h"

#define TD_LANES_LEVEL avx512
#define TILE_ROWS      8
#define TILE_LANES     3
#include "kernels/cpu/gemm_kernel_template.h"

td_gemm_kernel *td_gemm_kernel_find(void) {
    static td_gemm_kernel *const levels[] = {
        [TD_CPU_SCALAR] = multiply_scalar,
        [TD_CPU_AVX2] = multiply_avx2,
        [TD_CPU_AVX512] = multiply_avx512,
    };
    return levels[td_cpu_simd()];
}
