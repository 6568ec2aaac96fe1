// Tiles of bf16 in shared memory and the two products that attention is made of, for one warp.
//
// A tile is rows x D bf16, cut into chunks of 8 elements (16 bytes). ldmatrix reads one chunk of
// eight rows at a time; chunks are permuted within their row so that these eight lie in different
// banks: with C = D / 8 chunks per row and g = gcd(C, 8), row r starts at bank group C r mod 8, a
// multiple of g that repeats after 8 / g rows, and chunk c sits at c ^ (r / (8 / g) mod g).
//
// Loops over registers are unrolled: an array that is indexed at run time would lie in memory.
#ifndef TANDEM_KERNELS_CUDA_ATTENTION_TILE_CUH
#define TANDEM_KERNELS_CUDA_ATTENTION_TILE_CUH

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/ptx.cuh"

enum { TD_TILE_THREADS = 128, TD_TILE_WARPS = TD_TILE_THREADS / 32 };

template <int D> struct td_tile {
    static_assert(D % 16 == 0, "a product takes 16 columns at a time");
    static constexpr int CHUNKS = D / 8;
    static constexpr int GROUP = CHUNKS % 8 == 0   ? 8
                                 : CHUNKS % 4 == 0 ? 4
                                 : CHUNKS % 2 == 0 ? 2
                                                   : 1;

    bf16 *base; // 16-byte aligned

    __device__ __forceinline__ bf16 *at(int row, int chunk) const {
        return base + (row * CHUNKS + (chunk ^ (row / (8 / GROUP) % GROUP))) * 8;
    }
};

// Rows of a tensor of the stream in global memory: the rows of one head.
template <typename T> struct td_rows {
    T *base;        // first element of the first row
    int64_t stride; // elements from row to row
    int n_rows;     // rows beyond are zero to readers and dropped by writers
    int n_cols;     // at most D; columns beyond likewise
    bool vector;    // every row is 16-byte aligned and n_cols a multiple of 8
};

// Two bf16, written at once.
struct __attribute__((may_alias)) td_pair {
    uint32_t word;
};

struct td_lane {
    int warp, lane;
    int row, pair; // in fragments, see ptx.cuh
};

__device__ __forceinline__ td_lane td_lane_here() {
    int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    return {thread / 32, lane, lane / 4, lane % 4 * 2};
}

// Starts the copy of rows [first, first + ROWS) into the tile, by the whole block; it is there
// after a cp.async wait and a barrier. Not unrolled: the addresses would take the registers that
// the products need, and nothing here waits.
template <int ROWS, int D>
__device__ __forceinline__ void td_tile_load(td_tile<D> tile, const td_rows<const bf16> &rows,
                                             int first) {
    constexpr int CHUNKS = td_tile<D>::CHUNKS;
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x); at < ROWS * CHUNKS; at += TD_TILE_THREADS) {
        int row = at / CHUNKS, chunk = at % CHUNKS;
        int n = first + row < rows.n_rows ? rows.n_cols - chunk * 8 : 0;
        const bf16 *from = rows.base + (n > 0 ? (first + row) * rows.stride + chunk * 8 : 0);
        if (rows.vector)
            td_ptx_cp_async_cg_16(tile.at(row, chunk), from, n > 0 ? 16 : 0);
        else
            td_chunk_store(tile.at(row, chunk), 0, TD_CHUNK, true,
                           td_chunk_load(from, 0, n, false));
    }
}

// Sixteen rows of the warp's accumulator, times a factor per row, as bf16 into its own rows of the
// tile.
template <int D>
__device__ __forceinline__ void td_tile_put(td_tile<D> tile, int first_row, const td_lane &lane,
                                            const float (&acc)[D / 8][4],
                                            const float (&factor)[2]) {
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            bf16 *to = tile.at(first_row + lane.row + half * 8, n) + lane.pair;
            *reinterpret_cast<td_pair *>(to) = {td_ptx_pack_bf16(
                acc[n][half * 2] * factor[half], acc[n][half * 2 + 1] * factor[half])};
        }
    }
}

// Rows [tile_row, tile_row + ROWS) of the tile, written by this warp, to rows of global memory from
// `first` on.
template <int ROWS, int D>
__device__ __forceinline__ void td_tile_store(td_tile<D> tile, int tile_row, const td_lane &lane,
                                              const td_rows<bf16> &rows, int first) {
    constexpr int CHUNKS = td_tile<D>::CHUNKS;
    __syncwarp();
    for (int at = lane.lane; at < ROWS * CHUNKS; at += 32) {
        int row = at / CHUNKS, chunk = at % CHUNKS;
        if (first + row >= rows.n_rows)
            continue;
        td_chunk<bf16> elements = td_chunk_load(tile.at(tile_row + row, chunk), 0, TD_CHUNK, true);
        td_chunk_store(rows.base + (first + row) * rows.stride, chunk * 8, rows.n_cols, rows.vector,
                       elements);
    }
}

template <int M, int N> __device__ __forceinline__ void td_zero(float (&acc)[M][N][4]) {
#pragma unroll
    for (int i = 0; i < M * N * 4; i++)
        acc[i / 4 / N][i / 4 % N][i % 4] = 0.0f;
}

// Adds to fragments n and n + 1 of every row group of acc the products of its part of a with the
// two right operands in b.
template <int M, int N>
__device__ __forceinline__ void
td_multiply_pair(float (&acc)[M][N][4], int n, const uint32_t (&a)[M][4], const uint32_t (&b)[4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        td_ptx_mma_m16n8k16(acc[m][n], a[m], b[0], b[1]);
        td_ptx_mma_m16n8k16(acc[m][n + 1], a[m], b[2], b[3]);
    }
}

// acc = A B^T over the D columns of both: 16 M rows of tile a from first_row on, 8 N rows of tile
// b.
template <int D, int M, int N>
__device__ __forceinline__ void td_product_rows(float (&acc)[M][N][4], td_tile<D> a, int first_row,
                                                td_tile<D> b, int lane) {
    td_zero(acc);
#pragma unroll 2
    for (int k = 0; k < D / 16; k++) {
        uint32_t a_part[M][4], b_part[4];
#pragma unroll
        for (int m = 0; m < M; m++)
            td_ptx_ldmatrix_x4(a_part[m], a.at(first_row + m * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            td_ptx_ldmatrix_x4(b_part,
                               b.at(n * 8 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
            td_multiply_pair(acc, n, a_part, b_part);
        }
    }
}

// Columns [8 k, 8 k + 16) of an accumulator as left operand: two of its fragments side by side.
template <int K>
__device__ __forceinline__ void td_left_operand(uint32_t (&a)[4], const float (&p)[K][4], int k) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = td_ptx_pack_bf16(p[k + i / 2][i % 2 * 2], p[k + i / 2][i % 2 * 2 + 1]);
}

// acc += P B: P (16 M, 8 K) is an accumulator, rounded to bf16; B is the 8 K rows of the tile.
template <int D, int M, int K>
__device__ __forceinline__ void td_product_accumulate(float (&acc)[M][D / 8][4],
                                                      const float (&p)[M][K][4], td_tile<D> b,
                                                      int lane) {
#pragma unroll
    for (int k = 0; k < K; k += 2) {
        uint32_t a_part[M][4], b_part[4];
#pragma unroll
        for (int m = 0; m < M; m++)
            td_left_operand(a_part[m], p[m], k);
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            td_ptx_ldmatrix_x4_trans(b_part, b.at(k * 8 + lane % 16, n + lane / 16));
            td_multiply_pair(acc, n, a_part, b_part);
        }
    }
}

#endif
