// Matrix products c = a b, of which b is packed first: dequantized straight into the layout that
// the inner loop reads. Not for other folders.
//
// Every element of c is summed in one order: over k in blocks whose borders depend on k alone,
// within a block from zero upwards in fused multiply-adds, and block after block into c. Threads
// split rows and columns only. So the bits depend neither on the number of threads nor on
// addresses, and are the same with AVX2 and with AVX-512 (the scalar level rounds products, too).
// With products in bf16 operands are rounded as they are packed, in pairs of neighbours in k
// (bf16_pairs.h), of which the second is added first; the bits are the same at every level.
#ifndef TANDEM_KERNELS_CPU_GEMM_INTERNAL_H
#define TANDEM_KERNELS_CPU_GEMM_INTERNAL_H

#include "kernels/cpu/cpu_internal.h"

enum {
    TD_GEMM_STRIP = 16,    // columns of b that lie together, one row after the other
    TD_GEMM_COLUMNS = 192, // of b packed at once, at most
    TD_GEMM_DEPTH = 640,   // rows of b packed at once, at most; in bf16 twice as many
    TD_GEMM_TILE_ROWS = 8, // of the largest tile
};

// The left operand, read where it is: element (i, k) at data[i * row + k * step].
typedef struct td_gemm_left {
    const float *data;
    int64_t row, step;
    int64_t k;
    // With products in bf16, where step is 1, its rows as pairs, words_row words apart, for more
    // than one product: the first writes them, those with is_rounded read them. Or NULL.
    float *words;
    int64_t words_row;
    int is_rounded;
} td_gemm_left;

// The right operand: element (k, n) is scale * matrix[k][n], or scale * matrix[n][k].
typedef struct td_gemm_right {
    const td_matrix *matrix;
    int transposed;
    float scale; // 1 unless the matrix is fp32
} td_gemm_right;

// Two operands side by side: c = [left0 left1] [right0; right1]. The second is a thin one (LoRA),
// or has k = 0, and is summed at the end of the last block of the first.
typedef struct td_gemm_product {
    td_gemm_left left[2];
    td_gemm_right right[2];
    float *c;
    int64_t ldc;
    const float *bias; // one per column of c, which starts from it; or NULL
    int accumulate;    // 1: c += instead of c =; without bias
    int bf16;          // 1: products in bf16
} td_gemm_product;

// Scratch of one thread, in floats; thin is the largest k of a second operand.
int64_t td_gemm_scratch(int64_t thin);

// Rows and columns of c on the calling thread.
void td_gemm_multiply(const td_gemm_product *product, td_cpu_range rows, td_cpu_range columns,
                      float *scratch);

// What part `index` of `parts` of an (m, n) product is: even shares that meet at whole tiles.
typedef struct td_gemm_part {
    td_cpu_range rows, columns;
} td_gemm_part;
td_gemm_part td_gemm_split(int64_t m, int64_t n, int parts, int index);

// A block of b that is packed, or whole strips of an fp32 matrix: columns [16 s, 16 s + 16) of row
// k are at right[s * strip + k * step].
typedef struct td_gemm_block {
    int64_t m, n;
    td_gemm_left left[2];
    const float *right; // the rows of both operands, one after the other
    int64_t strip, step;
    float *c;
    int64_t ldc;
    const float *bias;
    int accumulate;
    float *rounded; // where a tile's rows of the left operands are rounded to pairs, or NULL
} td_gemm_block;

typedef void td_gemm_kernel(const td_gemm_block *block);
td_gemm_kernel *td_gemm_kernel_find(void);

// The same of pairs: elements of both operands are words of two bf16 numbers, k counts pairs.
td_gemm_kernel *td_gemm_kernel_find_pairs(void);

// Rounds `rows` rows of the two left operands to pairs, which they then refer to: in `words`, and
// in `rounded` what has none.
void td_gemm_round_left(td_gemm_left left[2], int64_t rows, float *rounded);

// Words from row to row of what `rounded` holds: an odd number of cache lines.
static inline int64_t td_gemm_rounded_row(int64_t words) {
    return (words + 15) / 16 * 16 + ((words + 15) / 16 % 2 == 0 ? 16 : 0);
}

// Rows [k.begin, k.end) and columns [n.begin, n.end) of the right operand, n.begin a multiple of
// 16. Strips have room for the rows rounded up to 16; what is past k.end and n.end is undefined.
void td_gemm_pack(const td_gemm_right *right, td_cpu_range k, td_cpu_range n, float *out,
                  int64_t strip);

// The same in pairs of rows; k.begin is even, and a row past k.end zero.
void td_gemm_pack_pairs(const td_gemm_right *right, td_cpu_range k, td_cpu_range n, float *out,
                        int64_t strip);

// out[k][n] = in[n][k], 16 by 16 words of 32 bits; rows of `in` are stride apart.
void td_gemm_transpose(const float *in, int64_t stride, float *out);

#endif
