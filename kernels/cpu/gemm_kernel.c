// The inner loop of matrix products, compiled for every level, of fp32 and of pairs of bf16. Tiles
// are as large as the registers allow. With AVX-512, 8 rows of 48 columns leave five registers for
// a row of b and an element of a; 12 x 32, 14 x 32 and 24 x 16 were slower by 2 to 60 %, 9 x 48 and
// 6 x 64 as fast.
#include <string.h>

#include "kernels/cpu/bf16_pairs.h"
#include "kernels/cpu/gemm_internal.h"
#include "kernels/cpu/lanes.h"

enum { MOST_ROWS = 8, MOST_LANES = 3 };

typedef struct td_gemm_tile {
    td_gemm_left left[2];
    const float *b, *from;
    float *c;
    int64_t strip, step;     // of b
    int64_t from_row, c_row; // from row to row
} td_gemm_tile;

typedef void td_gemm_tile_function(const td_gemm_tile *tile);

// Rows of both left operands from `row` on: where they are, or rounded.
static void take_left(const td_gemm_block *block, int64_t row, int64_t rows, td_gemm_left *left) {
    for (int part = 0; part < 2; part++) {
        left[part] = block->left[part];
        if (left[part].k > 0)
            left[part].data += row * left[part].row;
        if (left[part].words)
            left[part].words += row * left[part].words_row;
    }
    if (block->rounded)
        td_gemm_round_left(left, rows, block->rounded);
}

static td_gemm_tile tile_of(const td_gemm_block *block, const td_gemm_left *left, int64_t row,
                            int64_t col) {
    td_gemm_tile tile = {.left = {left[0], left[1]},
                         .b = block->right + col / TD_LANES * block->strip,
                         .c = block->c + row * block->ldc + col,
                         .strip = block->strip,
                         .step = block->step,
                         .c_row = block->ldc};
    tile.from = block->bias ? block->bias + col : block->accumulate ? tile.c : NULL;
    tile.from_row = block->bias ? 0 : block->ldc;
    return tile;
}

// A tile beyond whose n columns there is no memory of c's: through a copy.
static void at_the_edge(td_gemm_tile tile, int64_t rows, int64_t n, td_gemm_tile_function *run) {
    enum { WIDTH = MOST_LANES * TD_LANES };
    float from[MOST_ROWS * WIDTH] = {0}, sum[MOST_ROWS * WIDTH], *c = tile.c;
    for (int64_t i = 0; tile.from && i < rows; i++)
        memcpy(from + i * WIDTH, tile.from + i * tile.from_row, (size_t)n * sizeof *c);
    tile.from = tile.from ? from : NULL;
    tile.from_row = WIDTH;
    tile.c = sum;
    int64_t c_row = tile.c_row;
    tile.c_row = WIDTH;
    run(&tile);
    for (int64_t i = 0; i < rows; i++)
        memcpy(c + i * c_row, sum + i * WIDTH, (size_t)n * sizeof *c);
}

// Row after row of tiles, so that rows of a stay in the first-level cache while b comes from the
// second. The last four strips are two and two rather than three and one, which is too few sums to
// keep the processor busy. tiles: by rows - 1 and lanes - 1.
static void multiply(const td_gemm_block *block, int64_t most_rows, int64_t most_lanes,
                     td_gemm_tile_function *const *tiles) {
    for (int64_t row = 0, rows; row < block->m; row += rows) {
        rows = block->m - row < most_rows ? block->m - row : most_rows;
        td_gemm_left left[2];
        take_left(block, row, rows, left);
        for (int64_t col = 0, lanes; col < block->n; col += lanes * TD_LANES) {
            int64_t n = block->n - col, strips = (n + TD_LANES - 1) / TD_LANES;
            lanes = strips == most_lanes + 1 ? (strips + 1) / 2 : strips;
            lanes = lanes < most_lanes ? lanes : most_lanes;
            td_gemm_tile_function *run = tiles[(rows - 1) * most_lanes + lanes - 1];
            td_gemm_tile tile = tile_of(block, left, row, col);
            if (n < lanes * TD_LANES)
                at_the_edge(tile, rows, n, run);
            else
                run(&tile);
        }
    }
}

#define EACH_ROWS(tile, lanes)                                                                     \
    tile(1, lanes) tile(2, lanes) tile(3, lanes) tile(4, lanes) tile(5, lanes) tile(6, lanes)      \
        tile(7, lanes) tile(8, lanes)

#define NAME           scalar
#define TD_LANES_LEVEL scalar
#define TARGET
#define MULTIPLY_ADD    td_lanes_fma_scalar
#define TILE_ROWS       2
#define TILE_LANES      1
#define EACH_TILE(tile) tile(1, 1) tile(2, 1)
#include "kernels/cpu/gemm_kernel_template.h"

#define NAME            avx2
#define TD_LANES_LEVEL  avx2
#define TARGET          TD_TARGET_AVX2
#define MULTIPLY_ADD    td_lanes_fma_avx2
#define TILE_ROWS       6
#define TILE_LANES      1
#define EACH_TILE(tile) tile(1, 1) tile(2, 1) tile(3, 1) tile(4, 1) tile(5, 1) tile(6, 1)
#include "kernels/cpu/gemm_kernel_template.h"

#define NAME            avx512
#define TD_LANES_LEVEL  avx512
#define TARGET          TD_TARGET_AVX512
#define MULTIPLY_ADD    td_lanes_fma_avx512
#define TILE_ROWS       8
#define TILE_LANES      3
#define EACH_TILE(tile) EACH_ROWS(tile, 1) EACH_ROWS(tile, 2) EACH_ROWS(tile, 3)
#include "kernels/cpu/gemm_kernel_template.h"

#define PAIRS_MULTIPLY_ADD(level, a, b, sum)                                                       \
    td_pairs_multiply_add_##level(td_pairs_split_##level(a), td_pairs_split_##level(b), sum)

#define NAME           pairs_scalar
#define TD_LANES_LEVEL scalar
#define TARGET
#define MULTIPLY_ADD(a, b, sum) PAIRS_MULTIPLY_ADD(scalar, a, b, sum)
#define TILE_ROWS               2
#define TILE_LANES              1
#define EACH_TILE(tile)         tile(1, 1) tile(2, 1)
#include "kernels/cpu/gemm_kernel_template.h"

#define NAME                    pairs_avx2
#define TD_LANES_LEVEL          avx2
#define TARGET                  TD_TARGET_AVX2
#define MULTIPLY_ADD(a, b, sum) PAIRS_MULTIPLY_ADD(avx2, a, b, sum)
#define TILE_ROWS               4
#define TILE_LANES              1
#define EACH_TILE(tile)         tile(1, 1) tile(2, 1) tile(3, 1) tile(4, 1)
#include "kernels/cpu/gemm_kernel_template.h"

#define NAME                    pairs_avx512
#define TD_LANES_LEVEL          avx512
#define TARGET                  TD_TARGET_AVX512
#define MULTIPLY_ADD(a, b, sum) PAIRS_MULTIPLY_ADD(avx512, a, b, sum)
#define TILE_ROWS               8
#define TILE_LANES              2
#define EACH_TILE(tile)         EACH_ROWS(tile, 1) EACH_ROWS(tile, 2)
#include "kernels/cpu/gemm_kernel_template.h"

#define NAME                    pairs_bf16
#define TD_LANES_LEVEL          avx512
#define TARGET                  TD_TARGET_BF16
#define MULTIPLY_ADD(a, b, sum) PAIRS_MULTIPLY_ADD(native, a, b, sum)
#define TILE_ROWS               8
#define TILE_LANES              3
#define EACH_TILE(tile)         EACH_ROWS(tile, 1) EACH_ROWS(tile, 2) EACH_ROWS(tile, 3)
#include "kernels/cpu/gemm_kernel_template.h"

td_gemm_kernel *td_gemm_kernel_find(void) {
    static td_gemm_kernel *const levels[] = {
        [TD_CPU_SCALAR] = multiply_scalar,
        [TD_CPU_AVX2] = multiply_avx2,
        [TD_CPU_AVX512] = multiply_avx512,
    };
    return levels[td_cpu_simd()];
}

td_gemm_kernel *td_gemm_kernel_find_pairs(void) {
    static td_gemm_kernel *const levels[] = {
        [TD_CPU_SCALAR] = multiply_pairs_scalar,
        [TD_CPU_AVX2] = multiply_pairs_avx2,
        [TD_CPU_AVX512] = multiply_pairs_avx512,
    };
    return td_cpu_has_bf16() ? multiply_pairs_bf16 : levels[td_cpu_simd()];
}
