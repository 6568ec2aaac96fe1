// The inner loop of matrix products in bf16: VDPBF16PS where the processor has it, elsewhere two
// fused multiply-adds per pair, the second element first, which give the same bits. A product of
// two bf16 numbers is exact in fp32, so rounding it first (the scalar level) changes nothing.
#include <string.h>

#include "kernels/cpu/bf16_pairs.h"
#include "kernels/cpu/gemm_internal.h"
#include "kernels/cpu/lanes.h"

enum { MOST_ROWS = TD_GEMM_TILE_ROWS, MOST_LANES = 3 };

// Rounded rows of a left operand: pair p of row i at words[i * row + p * step].
typedef struct pair_left {
    const uint32_t *words;
    int64_t row, step;
    int64_t count; // of pairs
} pair_left;

typedef struct pair_tile {
    pair_left left[2];
    const uint32_t *b;
    int64_t strip; // words from strip to strip of b
    const float *from;
    float *c;
    int64_t from_row, c_row; // from row to row
} pair_tile;

typedef void pair_tile_function(const pair_tile *tile);

typedef struct pair_kernels {
    int64_t most_rows, most_lanes;
    pair_tile_function *const *tiles; // by rows - 1 and lanes - 1
} pair_kernels;

typedef struct scalar_pairs {
    td_lanes_scalar even, odd;
} scalar_pairs;

static inline scalar_pairs load_pairs_scalar(const uint32_t *words) {
    uint32_t even[TD_LANES], odd[TD_LANES];
    for (int i = 0; i < TD_LANES; i++) {
        even[i] = words[i] << 16;
        odd[i] = words[i] & 0xffff0000;
    }
    scalar_pairs pairs;
    memcpy(&pairs.even, even, sizeof even);
    memcpy(&pairs.odd, odd, sizeof odd);
    return pairs;
}

static inline scalar_pairs set_pair_scalar(uint32_t word) {
    uint32_t words[TD_LANES];
    for (int i = 0; i < TD_LANES; i++)
        words[i] = word;
    return load_pairs_scalar(words);
}

static inline td_lanes_scalar dot_scalar(td_lanes_scalar sum, scalar_pairs a, scalar_pairs b) {
    return td_lanes_fma_scalar(a.even, b.even, td_lanes_fma_scalar(a.odd, b.odd, sum));
}

typedef struct avx2_pairs {
    td_lanes_avx2 even, odd;
} avx2_pairs;

TD_LANES_INLINE_avx2 avx2_pairs split_pairs_avx2(__m256i low, __m256i high) {
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000u);
    return (avx2_pairs){.even = {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
                                 _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))},
                        .odd = {_mm256_castsi256_ps(_mm256_and_si256(low, upper)),
                                _mm256_castsi256_ps(_mm256_and_si256(high, upper))}};
}

TD_LANES_INLINE_avx2 avx2_pairs load_pairs_avx2(const uint32_t *words) {
    return split_pairs_avx2(_mm256_loadu_si256((const __m256i *)words),
                            _mm256_loadu_si256((const __m256i *)(words + 8)));
}

TD_LANES_INLINE_avx2 avx2_pairs set_pair_avx2(uint32_t word) {
    __m256i all = _mm256_set1_epi32((int)word);
    return split_pairs_avx2(all, all);
}

TD_LANES_INLINE_avx2 td_lanes_avx2 dot_avx2(td_lanes_avx2 sum, avx2_pairs a, avx2_pairs b) {
    return td_lanes_fma_avx2(a.even, b.even, td_lanes_fma_avx2(a.odd, b.odd, sum));
}

typedef struct avx512_pairs {
    td_lanes_avx512 even, odd;
} avx512_pairs;

TD_LANES_INLINE_avx512 avx512_pairs split_pairs_avx512(__m512i words) {
    __m512i odd = _mm512_and_si512(words, _mm512_set1_epi32((int)0xffff0000u));
    return (avx512_pairs){.even = {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))},
                          .odd = {_mm512_castsi512_ps(odd)}};
}

TD_LANES_INLINE_avx512 avx512_pairs load_pairs_avx512(const uint32_t *words) {
    return split_pairs_avx512(_mm512_loadu_si512(words));
}

TD_LANES_INLINE_avx512 avx512_pairs set_pair_avx512(uint32_t word) {
    return split_pairs_avx512(_mm512_set1_epi32((int)word));
}

TD_LANES_INLINE_avx512 td_lanes_avx512 dot_avx512(td_lanes_avx512 sum, avx512_pairs a,
                                                  avx512_pairs b) {
    return td_lanes_fma_avx512(a.even, b.even, td_lanes_fma_avx512(a.odd, b.odd, sum));
}

TD_TARGET_BF16 static inline __attribute__((always_inline)) __m512i
load_pairs_bf16(const uint32_t *words) {
    return _mm512_loadu_si512(words);
}

TD_TARGET_BF16 static inline __attribute__((always_inline)) __m512i set_pair_bf16(uint32_t word) {
    return _mm512_set1_epi32((int)word);
}

TD_TARGET_BF16 static inline __attribute__((always_inline)) td_lanes_avx512
dot_bf16(td_lanes_avx512 sum, __m512i a, __m512i b) {
    return (td_lanes_avx512){_mm512_dpbf16_ps(sum.all, (__m512bh)a, (__m512bh)b)};
}

#define TD_LANES_LEVEL scalar
#define NAME           scalar
#define TARGET
#define PAIRS           scalar_pairs
#define LOAD_PAIRS      load_pairs_scalar
#define SET_PAIR        set_pair_scalar
#define DOT             dot_scalar
#define TILE_ROWS       2
#define TILE_LANES      1
#define EACH_TILE(tile) tile(1, 1) tile(2, 1)
#include "kernels/cpu/gemm_bf16_template.h"

#define TD_LANES_LEVEL  avx2
#define NAME            avx2
#define TARGET          TD_TARGET_AVX2
#define PAIRS           avx2_pairs
#define LOAD_PAIRS      load_pairs_avx2
#define SET_PAIR        set_pair_avx2
#define DOT             dot_avx2
#define TILE_ROWS       4
#define TILE_LANES      1
#define EACH_TILE(tile) tile(1, 1) tile(2, 1) tile(3, 1) tile(4, 1)
#include "kernels/cpu/gemm_bf16_template.h"

#define EACH_ROWS(tile, lanes)                                                                     \
    tile(1, lanes) tile(2, lanes) tile(3, lanes) tile(4, lanes) tile(5, lanes) tile(6, lanes)      \
        tile(7, lanes) tile(8, lanes)

#define TD_LANES_LEVEL  avx512
#define NAME            avx512
#define TARGET          TD_TARGET_AVX512
#define PAIRS           avx512_pairs
#define LOAD_PAIRS      load_pairs_avx512
#define SET_PAIR        set_pair_avx512
#define DOT             dot_avx512
#define TILE_ROWS       8
#define TILE_LANES      2
#define EACH_TILE(tile) EACH_ROWS(tile, 1) EACH_ROWS(tile, 2)
#include "kernels/cpu/gemm_bf16_template.h"

#define TD_LANES_LEVEL  avx512
#define NAME            bf16
#define TARGET          TD_TARGET_BF16
#define PAIRS           __m512i
#define LOAD_PAIRS      load_pairs_bf16
#define SET_PAIR        set_pair_bf16
#define DOT             dot_bf16
#define TILE_ROWS       8
#define TILE_LANES      3
#define EACH_TILE(tile) EACH_ROWS(tile, 1) EACH_ROWS(tile, 2) EACH_ROWS(tile, 3)
#include "kernels/cpu/gemm_bf16_template.h"

static const pair_kernels *find_kernels(void) {
    static const pair_kernels *const levels[] = {[TD_CPU_SCALAR] = &kernels_scalar,
                                                 [TD_CPU_AVX2] = &kernels_avx2,
                                                 [TD_CPU_AVX512] = &kernels_avx512};
    return td_cpu_has_bf16() ? &kernels_bf16 : levels[td_cpu_simd()];
}

// Rows of a whose elements lie side by side: one after the other.
static pair_left round_rows(const td_gemm_left *left, int64_t row, int64_t rows, uint32_t *out) {
    int64_t words = td_bf16_words(left->k), out_row = td_gemm_rounded_row(words);
    for (int64_t i = 0; i < rows; i++)
        td_bf16_pair_up(left->data + (row + i) * left->row, left->k, out + i * out_row);
    return (pair_left){.words = out, .row = out_row, .step = 1, .count = words};
}

// Rows of a that are columns in memory: the words of all of them for one pair after the other.
static pair_left round_columns(const td_gemm_left *left, int64_t row, int64_t rows, uint32_t *out) {
    static const float zero[MOST_ROWS];
    int64_t words = td_bf16_words(left->k);
    for (int64_t i = 0; i < words; i++) {
        const float *even = left->data + row + 2 * i * left->step;
        const float *odd = 2 * i + 1 < left->k ? even + left->step : zero;
        td_bf16_interleave(even, odd, rows, out + i * MOST_ROWS);
    }
    return (pair_left){.words = out, .row = 1, .step = MOST_ROWS, .count = words};
}

static pair_left round_left(const td_gemm_left *left, int64_t row, int64_t rows, uint32_t *out) {
    return left->step == 1 ? round_rows(left, row, rows, out) : round_columns(left, row, rows, out);
}

// A tile beyond whose n columns there is no memory of c's: through a copy.
static void at_the_edge(pair_tile tile, int64_t rows, int64_t n, pair_tile_function *run) {
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

// All columns of some rows, whose left operands are rounded. As in gemm_kernel.c the last strips
// are two and two rather than three and one.
static void multiply_rows(const td_gemm_block *block, const pair_kernels *kernels, pair_tile tile,
                          int64_t row, int64_t rows) {
    for (int64_t col = 0, lanes; col < block->n; col += lanes * TD_LANES) {
        int64_t n = block->n - col, left = (n + TD_LANES - 1) / TD_LANES;
        lanes = left == kernels->most_lanes + 1 ? (left + 1) / 2 : left;
        lanes = lanes < kernels->most_lanes ? lanes : kernels->most_lanes;
        pair_tile_function *run = kernels->tiles[(rows - 1) * kernels->most_lanes + lanes - 1];
        tile.b = (const uint32_t *)(const void *)block->right + col / TD_LANES * block->strip;
        tile.c = block->c + row * block->ldc + col;
        tile.from = block->bias ? block->bias + col : block->accumulate ? tile.c : NULL;
        if (n < lanes * TD_LANES)
            at_the_edge(tile, rows, n, run);
        else
            run(&tile);
    }
}

void td_gemm_multiply_bf16(const td_gemm_block *block, uint32_t *rounded) {
    const pair_kernels *kernels = find_kernels();
    uint32_t *second = rounded + MOST_ROWS * td_gemm_rounded_row(td_bf16_words(block->left[0].k));
    pair_tile tile = {
        .strip = block->strip, .from_row = block->bias ? 0 : block->ldc, .c_row = block->ldc};
    unsigned before = td_bf16_enter();
    for (int64_t row = 0, rows; row < block->m; row += rows) {
        rows = block->m - row < kernels->most_rows ? block->m - row : kernels->most_rows;
        tile.left[0] = round_left(&block->left[0], row, rows, rounded);
        if (block->left[1].k > 0)
            tile.left[1] = round_left(&block->left[1], row, rows, second);
        multiply_rows(block, kernels, tile, row, rows);
    }
    td_bf16_leave(before);
}
