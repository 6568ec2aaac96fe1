// What the fp32 attention kernels share: tiles of the sequences, rows in shared memory, products.
//
// A block of 256 threads works on tiles of ROWS queries and ROWS keys, rows padded with zeros to
// DIM columns. Thread (ty, tx) = (t / 16, t % 16) has R = ROWS / 16 rows ty R + r of the left
// operand; of scores the columns tx + 16 c, of outputs the columns 4 tx + 64 j + (0..3). The
// sixteen threads of a row are neighbours in a warp.
#ifndef TANDEM_KERNELS_CUDA_ATTENTION_F32_CUH
#define TANDEM_KERNELS_CUDA_ATTENTION_F32_CUH

#include "kernels/cuda/attention_internal.cuh"

constexpr int TD_F32_THREADS = 256;

struct td_f32_job {
    td_attention_shape shape; // cu_q and cu_k are host memory: not for kernels
    td_attention_borders borders;
    const float *q, *k, *v;
    const float *dout, *delta;
    float *out, *lse;
    float *dq, *dk, *dv;
    int64_t out_stride;            // of out and dout, from token to token
    float score_scale, tanh_scale; // see td_f32_capped()
    bool wide;                     // rows lie on 16-byte addresses
};

// One tile of a sequence: rows [first, first + ROWS) of its queries or keys.
struct td_f32_tile {
    int q_begin, n_q, k_begin, n_k; // of the sequence
    int first;
};

struct alignas(16) td_f32_four {
    float at[4];
};

template <int DIM> constexpr int TD_F32_STRIDE = DIM + 4; // of rows in shared memory
template <int ROWS> constexpr int TD_F32_SCORES = ROWS + 4;

static inline bool td_f32_is_wide(const td_f32_job &job) {
    uintptr_t bits = 0;
    for (const float *x : {job.q, job.k, job.v, job.dout})
        bits |= reinterpret_cast<uintptr_t>(x);
    const td_attention_shape &shape = job.shape;
    int64_t sizes = shape.q_stride | shape.k_stride | shape.v_stride | shape.head_dim;
    return bits % 16 == 0 && sizes % 4 == 0;
}

// What follows from the shape and the inputs.
static inline void td_f32_complete(td_f32_job &job) {
    const td_attention_shape &shape = job.shape;
    job.out_stride = shape.n_heads * shape.head_dim;
    job.tanh_scale = shape.softcap > 0.0f ? shape.scale / shape.softcap : 0.0f;
    job.score_scale = job.tanh_scale > 0.0f ? shape.softcap : shape.scale;
    job.wide = td_f32_is_wide(job);
}

// A score is score_scale times what this makes of the product q.k: the product itself without a
// soft cap.
__device__ __forceinline__ float td_f32_capped(const td_f32_job &job, bool capped, float product) {
    return capped ? tanhf(product * job.tanh_scale) : product;
}

// Tile number `number`: false when there is none.
__device__ __forceinline__ bool td_f32_find(const td_f32_job &job, td_attention_tiling tiling,
                                            int64_t number, int rows, td_f32_tile *out) {
    td_attention_sequence sequence =
        td_attention_find(job.borders, tiling, static_cast<int>(number), rows);
    *out = {sequence.q_begin, sequence.n_q, sequence.k_begin, sequence.n_k, sequence.tile * rows};
    return sequence.tile < sequence.n_tiles;
}

// The blocks of a launch with one per tile and head.
static inline unsigned td_f32_blocks(const td_attention_shape &shape, td_attention_tiling tiling,
                                     int rows, int64_t n_heads) {
    return static_cast<unsigned>(td_attention_tiles(&shape, tiling, rows) * n_heads);
}

// The last key that query i of the tile's sequence sees is i + this.
__device__ __forceinline__ int td_f32_shift(const td_f32_tile &tile) {
    return tile.n_k - tile.n_q;
}

__device__ __forceinline__ bool td_f32_sees(const td_f32_job &job, const td_f32_tile &tile,
                                            int query, int key) {
    int64_t last = static_cast<int64_t>(query) + td_f32_shift(tile);
    return query < tile.n_q && key <= last &&
           (job.shape.window == 0 || key > last - job.shape.window);
}

// Keys that any query of the tile sees: from a whole tile of keys on.
template <int ROWS>
__device__ __forceinline__ int2 td_f32_seen_keys(const td_f32_job &job, const td_f32_tile &tile) {
    int shift = td_f32_shift(tile);
    int end = min(tile.first + ROWS, tile.n_q) + shift;
    int64_t begin = job.shape.window ? tile.first + shift + 1 - job.shape.window : 0;
    return {begin > 0 ? static_cast<int>(begin / ROWS * ROWS) : 0, end};
}

// Where head `head` of token `token` begins.
__device__ __forceinline__ int64_t td_f32_offset(const td_f32_job &job, int64_t token,
                                                 int64_t stride, int64_t head) {
    return token * stride + head * job.shape.head_dim;
}

__device__ __forceinline__ td_f32_four td_f32_read(const float *row, int col, int n, bool wide) {
    if (wide && col + 4 <= n)
        return *reinterpret_cast<const td_f32_four *>(row + col);
    td_f32_four x;
#pragma unroll
    for (int e = 0; e < 4; e++)
        x.at[e] = col + e < n ? row[col + e] : 0.0f;
    return x;
}

// Rows [first, first + ROWS) of a head to shared memory; `x` is row 0, n_rows the end of the
// sequence. What lies beyond it or beyond head_dim is zero.
template <int ROWS, int DIM>
__device__ void td_f32_load(const td_f32_job &job, const float *x, int64_t stride, int first,
                            int n_rows, float *to) {
    int n = static_cast<int>(job.shape.head_dim);
    for (int slot = threadIdx.x; slot < ROWS * DIM / 4; slot += TD_F32_THREADS) {
        int row = slot / (DIM / 4), col = slot % (DIM / 4) * 4;
        td_f32_four four = {};
        if (first + row < n_rows)
            four = td_f32_read(x + (first + row) * stride, col, n, job.wide);
        *reinterpret_cast<td_f32_four *>(to + row * TD_F32_STRIDE<DIM> + col) = four;
    }
}

// sum[r][c] += left row (ty R + r) . right row (tx + 16 c), of n columns
template <int R, int DIM>
__device__ __forceinline__ void td_f32_scores(const float *left, const float *right, int n,
                                              float (&sum)[R][R]) {
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    left += ty * R * TD_F32_STRIDE<DIM>;
    right += tx * TD_F32_STRIDE<DIM>;
    for (int i = 0; i < n; i += 4) {
        td_f32_four x[R], y[R];
#pragma unroll
        for (int r = 0; r < R; r++) {
            x[r] = *reinterpret_cast<const td_f32_four *>(left + r * TD_F32_STRIDE<DIM> + i);
            y[r] = *reinterpret_cast<const td_f32_four *>(right + 16 * r * TD_F32_STRIDE<DIM> + i);
        }
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int c = 0; c < R; c++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    sum[r][c] = fmaf(x[r].at[e], y[c].at[e], sum[r][c]);
    }
}

// sum[r][4 j + e] += weights row (ty R + r) . column (4 tx + 64 j + e) of `rows`
template <int R, int DIM>
__device__ __forceinline__ void td_f32_accumulate(const float *weights, const float *rows,
                                                  float (&sum)[R][DIM / 16]) {
    constexpr int n = 16 * R;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    weights += ty * R * TD_F32_SCORES<n>;
    rows += 4 * tx;
    for (int i = 0; i < n; i += 4) {
        td_f32_four w[R];
#pragma unroll
        for (int r = 0; r < R; r++)
            w[r] = *reinterpret_cast<const td_f32_four *>(weights + r * TD_F32_SCORES<n> + i);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int j = 0; j < DIM / 64; j++) {
                auto x = *reinterpret_cast<const td_f32_four *>(
                    rows + (i + e) * TD_F32_STRIDE<DIM> + 64 * j);
#pragma unroll
                for (int r = 0; r < R; r++)
#pragma unroll
                    for (int f = 0; f < 4; f++)
                        sum[r][4 * j + f] = fmaf(w[r].at[e], x.at[f], sum[r][4 * j + f]);
            }
    }
}

// Writes the thread's part of ROWS rows of a head.
template <int R, int DIM>
__device__ __forceinline__ void td_f32_store(const td_f32_job &job, float *x, int64_t stride,
                                             int first, int n_rows,
                                             const float (&sum)[R][DIM / 16]) {
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int r = 0; r < R; r++) {
        int row = first + ty * R + r;
        float *to = x + row * stride;
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            int col = 4 * tx + i / 4 * 64 + i % 4;
            if (row < n_rows && col < job.shape.head_dim)
                to[col] = sum[r][i];
        }
    }
}

// Calls body with the number of columns that kernels for this head_dim have.
template <typename Body>
td_status td_f32_by_dim(const char *op, const td_attention_shape &shape, Body body) {
    if (shape.head_dim <= 64)
        return body(std::integral_constant<int, 64>());
    if (shape.head_dim <= 128)
        return body(std::integral_constant<int, 128>());
    if (shape.head_dim <= 256)
        return body(std::integral_constant<int, 256>());
    return td_fail(TD_ERR_INTERNAL, "%s: head_dim is %lld, the CUDA backend has at most 256", op,
                   static_cast<long long>(shape.head_dim));
}

#endif
