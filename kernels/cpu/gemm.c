// Matrix products in blocks: as many packed rows and columns of the right operand as fit a
// second-level cache, past which all rows of the left one are led tile by tile.
#include "kernels/cpu/bf16_pairs.h"
#include "kernels/cpu/gemm_internal.h"

enum {
    DEPTH_STEP = TD_NF4_BLOCK,
    TILE_ROWS = TD_GEMM_TILE_ROWS,
    IN_PLACE_ROWS = 24,
    PACKING_ROWS = 8,  // packing takes about as long as so many rows of the product
    STRIP_PADDING = 16 // floats, so that equal rows of strips do not share a cache set
};

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t parts_of(int64_t n, int64_t step) {
    return (n + step - 1) / step;
}

static int64_t round_up(int64_t n, int64_t step) {
    return parts_of(n, step) * step;
}

// How much of the right operand is packed at once. What is half as wide may be twice as much.
typedef struct block_extent {
    int64_t depth, columns;
} block_extent;

// Rows per block of a sum over k elements.
static int64_t depth_of(int64_t k, int64_t most) {
    return k > 0 ? round_up(parts_of(k, parts_of(k, most)), DEPTH_STEP) : DEPTH_STEP;
}

static block_extent extent_of(const td_gemm_product *product) {
    int64_t k = product->left[0].k;
    if (!product->bf16)
        return (block_extent){depth_of(k, TD_GEMM_DEPTH), TD_GEMM_COLUMNS};
    int64_t depth = depth_of(k, 2 * TD_GEMM_DEPTH);
    return (block_extent){depth, depth <= TD_GEMM_DEPTH ? 2 * TD_GEMM_COLUMNS : TD_GEMM_COLUMNS};
}

// Words of 32 bits of a strip of so many rows, each of an element or a pair.
static int64_t strip_words(int64_t rows, int64_t thin) {
    return (round_up(rows, TD_GEMM_STRIP) + round_up(thin, TD_GEMM_STRIP)) * TD_GEMM_STRIP +
           STRIP_PADDING;
}

// In bf16 there may be twice as many strips of half the depth, and beside them a tile's rows of the
// left operands.
int64_t td_gemm_scratch(int64_t thin) {
    int64_t strips = 2 * TD_GEMM_COLUMNS / TD_GEMM_STRIP;
    int64_t fp32 = strips / 2 * strip_words(TD_GEMM_DEPTH, thin);
    int64_t pairs =
        strips * strip_words(TD_GEMM_DEPTH / 2, td_bf16_words(thin)) +
        TILE_ROWS * (td_gemm_rounded_row(TD_GEMM_DEPTH) + td_gemm_rounded_row(td_bf16_words(thin)));
    return fp32 > pairs ? fp32 : pairs;
}

// Where a few rows of a meet a matrix that is in fp32 as it is, packing would take longer than what
// it saves.
static int reads_in_place(const td_gemm_product *product, td_cpu_range rows, td_cpu_range columns) {
    const td_gemm_right *right = &product->right[0];
    return !product->bf16 && right->matrix->format == TD_MATRIX_F32 && !right->transposed &&
           right->scale == 1.0f && product->left[1].k == 0 &&
           rows.end - rows.begin <= IN_PLACE_ROWS &&
           (columns.end - columns.begin) % TD_GEMM_STRIP == 0;
}

static void take_in_place(const td_gemm_product *product, td_cpu_range columns, td_cpu_range k,
                          td_gemm_block *block) {
    const td_matrix *matrix = product->right[0].matrix;
    block->right = (const float *)matrix->data + k.begin * matrix->cols + columns.begin;
    block->strip = TD_GEMM_STRIP;
    block->step = matrix->cols;
}

static void pack(const td_gemm_product *product, td_cpu_range columns, td_cpu_range k,
                 float *scratch, td_gemm_block *block) {
    int64_t thin = block->left[1].k, depth = k.end - k.begin;
    block->right = scratch;
    block->strip = strip_words(depth, thin);
    block->step = TD_GEMM_STRIP;
    td_gemm_pack(&product->right[0], k, columns, scratch, block->strip);
    if (thin > 0)
        td_gemm_pack(&product->right[1], (td_cpu_range){0, thin}, columns,
                     scratch + depth * TD_GEMM_STRIP, block->strip);
}

static void multiply_pairs(const td_gemm_product *product, td_cpu_range columns, td_cpu_range k,
                           float *scratch, td_gemm_block *block) {
    int64_t thin = block->left[1].k, words = td_bf16_words(k.end - k.begin);
    block->right = scratch;
    block->strip = strip_words(words, td_bf16_words(thin));
    block->step = TD_GEMM_STRIP;
    block->rounded = scratch + parts_of(columns.end - columns.begin, TD_GEMM_STRIP) * block->strip;
    td_gemm_pack_pairs(&product->right[0], k, columns, scratch, block->strip);
    if (thin > 0)
        td_gemm_pack_pairs(&product->right[1], (td_cpu_range){0, thin}, columns,
                           scratch + words * TD_GEMM_STRIP, block->strip);
    unsigned before = td_bf16_enter();
    td_gemm_kernel_find_pairs()(block);
    td_bf16_leave(before);
}

static void multiply_fp32(const td_gemm_product *product, td_cpu_range rows, td_cpu_range columns,
                          td_cpu_range k, float *scratch, td_gemm_block *block) {
    if (reads_in_place(product, rows, columns))
        take_in_place(product, columns, k, block);
    else
        pack(product, columns, k, scratch, block);
    td_gemm_kernel_find()(block);
}

// The block of b in rows k (and those of the second operand after the last) and `columns`, times
// all `rows` of a.
static void multiply_block(const td_gemm_product *product, td_cpu_range rows, td_cpu_range columns,
                           td_cpu_range k, float *scratch) {
    td_gemm_block block = {.m = rows.end - rows.begin,
                           .n = columns.end - columns.begin,
                           .left = {product->left[0]},
                           .c = product->c + rows.begin * product->ldc + columns.begin,
                           .ldc = product->ldc,
                           .accumulate = product->accumulate || k.begin > 0};
    td_gemm_left *left = block.left;
    left[0].data += rows.begin * left[0].row + k.begin * left[0].step;
    if (left[0].words)
        left[0].words += rows.begin * left[0].words_row + k.begin / 2;
    left[0].k = k.end - k.begin;
    if (k.end == product->left[0].k && product->left[1].k > 0) {
        left[1] = product->left[1];
        left[1].data += rows.begin * left[1].row;
    }
    if (product->bias && k.begin == 0)
        block.bias = product->bias + columns.begin;
    if (product->bf16)
        multiply_pairs(product, columns, k, scratch, &block);
    else
        multiply_fp32(product, rows, columns, k, scratch, &block);
}

static td_cpu_range block_columns(td_cpu_range columns, int64_t blocks, int64_t index) {
    td_cpu_range part =
        td_cpu_split(columns.end - columns.begin, TD_GEMM_STRIP, (int)blocks, (int)index);
    return (td_cpu_range){columns.begin + part.begin, columns.begin + part.end};
}

static td_cpu_range block_depth(int64_t k, int64_t depth, int64_t index) {
    return (td_cpu_range){index * depth, smaller((index + 1) * depth, k)};
}

// What is larger, rows of a or of c, goes through the caches once.
void td_gemm_multiply(const td_gemm_product *product, td_cpu_range rows, td_cpu_range columns,
                      float *scratch) {
    if (rows.begin == rows.end)
        return;
    block_extent extent = extent_of(product);
    int64_t n = columns.end - columns.begin, k = product->left[0].k;
    int64_t across = parts_of(n, extent.columns), deep = k > 0 ? parts_of(k, extent.depth) : 1;
    int64_t inner = k > n ? across : deep;
    for (int64_t i = 0; i < across * deep; i++) {
        int64_t column = k > n ? i % inner : i / inner, layer = k > n ? i / inner : i % inner;
        multiply_block(product, rows, block_columns(columns, across, column),
                       block_depth(k, extent.depth, layer), scratch);
    }
}

// What the slowest of down x across parts takes, in rows of one strip.
static int64_t cost_of(int64_t m, int64_t n, int down, int across) {
    int64_t tiles = parts_of(parts_of(m, TILE_ROWS), down);
    int64_t strips = parts_of(parts_of(n, TD_GEMM_STRIP), across);
    return strips * (tiles * TILE_ROWS + PACKING_ROWS);
}

td_gemm_part td_gemm_split(int64_t m, int64_t n, int parts, int index) {
    int down = 1, across = parts;
    for (int i = 2; i <= parts; i++)
        if (cost_of(m, n, i, parts / i) < cost_of(m, n, down, across)) {
            down = i;
            across = parts / i;
        }
    if (index >= down * across)
        return (td_gemm_part){0};
    return (td_gemm_part){.rows = td_cpu_split(m, TILE_ROWS, down, index / across),
                          .columns = td_cpu_split(n, TD_GEMM_STRIP, across, index % across)};
}
