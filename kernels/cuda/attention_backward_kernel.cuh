// Attention backward on tensor cores. With P = exp(scale Q K^T - lse) and delta = rowsum(dout *
// out):
//     dV = P^T dout;  dS = P * (dout V^T - delta);  dQ = scale dS K;  dK = scale dS^T Q
// and a soft cap multiplies dS by its slope.
// (FlashAttention, Dao et al., NeurIPS 2022, section B.2.) One kernel has a tile of queries per
// block and walks over keys for dQ; the other a tile of keys and walks over the queries of all
// heads that read them, for dK and dV, with scores transposed: rows are keys. A warp owns whole
// rows of its block's tile, so that P and dS go from one product to the next in registers, and sums
// are taken in the order of the walk.
//
// Sizes: the walk takes 32 rows at a time, double-buffered. A warp has 32 rows of its own where the
// accumulators leave room (dQ: D / 2 registers per 16 rows; dK and dV: D), else 16. Shared memory
// is 64 KiB at D = 128: two blocks on a processor with 164 KiB (sm_80). At 256 dK and dV do not fit
// together: each has its own pass, at 5 products instead of 4; 128 KiB, one block.
#ifndef TANDEM_KERNELS_CUDA_ATTENTION_BACKWARD_KERNEL_CUH
#define TANDEM_KERNELS_CUDA_ATTENTION_BACKWARD_KERNEL_CUH

#include "kernels/cuda/attention_bf16.cuh"

// In shared memory: two tiles that stay, then two buffers of the pair that is walked over, then,
// for dK and dV, two buffers of lse and delta.
template <int D, int GROUPS> struct td_backward_sizes {
    static constexpr int M = GROUPS; // row groups of 16 per warp
    static constexpr int WARP_ROWS = 16 * M, ROWS = WARP_ROWS * TD_TILE_WARPS;
    static constexpr int WALK = D <= 128 ? 32 : 16; // rows of the tiles that a block walks over
    static constexpr int ELEMENTS = (2 * ROWS + 4 * WALK) * D;
    static constexpr size_t SHARED_BYTES = ELEMENTS * sizeof(bf16) + 4 * WALK * sizeof(float);
    static_assert(SHARED_BYTES <= 99 * 1024, "what a block can have on sm_86 and sm_89");

    static __device__ __forceinline__ td_tile<D> fixed(int which) {
        return {td_cuda_shared<bf16>() + which * ROWS * D};
    }
    static __device__ __forceinline__ td_tile<D> walked(int buffer, int which) {
        return {td_cuda_shared<bf16>() + (2 * ROWS + (buffer * 2 + which) * WALK) * D};
    }
    static __device__ __forceinline__ float *numbers(int buffer, int which) {
        bf16 *behind = td_cuda_shared<bf16>() + ELEMENTS;
        return reinterpret_cast<float *>(behind) + (buffer * 2 + which) * WALK;
    }
};

template <int D> struct td_dq_sizes : td_backward_sizes<D, D <= 96 ? 2 : 1> {};
template <int D> struct td_dkdv_sizes : td_backward_sizes<D, D <= 64 ? 2 : 1> {};

// The gradient of a score by its product q.k, but for the scale, where x is what the cap made of
// it.
template <bool CAPPED>
__device__ __forceinline__ float td_capped_gradient(float gradient, float x) {
    return CAPPED ? gradient * (1.0f - x * x) : gradient;
}

// P of one element.
__device__ __forceinline__ float td_probability(float score, float scale_log2, float lse,
                                                bool visible) {
    return visible ? td_ptx_exp2(fmaf(score, scale_log2, -lse * TD_LOG2_E)) : 0.0f;
}

// lse and delta of a lane's rows.
template <int M> struct td_dq_rows { float lse[M][2], delta[M][2]; };

template <int M>
__device__ __forceinline__ td_dq_rows<M> td_dq_rows_load(const td_attention_backward_params &params,
                                                         const td_attention_sequence &sequence,
                                                         int query, const td_lane &lane) {
    td_dq_rows<M> rows;
#pragma unroll
    for (int i = 0; i < M * 2; i++) {
        int row = query + i / 2 * 16 + i % 2 * 8 + lane.row;
        int64_t at = static_cast<int64_t>(sequence.q_begin + row) * params.problem.n_heads +
                     static_cast<int>(blockIdx.y);
        bool there = row < sequence.n_q;
        rows.lse[i / 2][i % 2] = there ? params.lse[at] : 0.0f;
        rows.delta[i / 2][i % 2] = there ? params.delta[at] : 0.0f;
    }
    return rows;
}

// One tile of keys for one warp, whose rows start at `query`. s and dp have queries as rows.
template <int D, bool CAPPED>
__device__ __forceinline__ void
td_dq_tile(const td_attention_problem &problem, float (&dq)[td_dq_sizes<D>::M][D / 8][4],
           const td_dq_rows<td_dq_sizes<D>::M> &rows, td_tile<D> k, td_tile<D> v,
           const td_visibility &visibility, int query, int key, const td_lane &lane) {
    using sizes = td_dq_sizes<D>;
    constexpr int M = sizes::M, N = sizes::WALK / 8;
    const bool all = visibility.all(query, sizes::WARP_ROWS, key, sizes::WALK);
    const int first_row = lane.warp * sizes::WARP_ROWS;
    float s[M][N][4], dp[M][N][4];
    td_product_rows(s, sizes::fixed(0), first_row, k, lane.lane);
    td_product_rows(dp, sizes::fixed(1), first_row, v, lane.lane);
    if constexpr (CAPPED)
        td_scores_cap(s, problem.tanh_scale);
#pragma unroll
    for (int i = 0; i < M * N * 4; i++) {
        int m = i / 4 / N, n = i / 4 % N, half = i % 4 / 2;
        bool visible = all || visibility.sees(query + m * 16 + half * 8 + lane.row,
                                              key + n * 8 + lane.pair + i % 2);
        float x = s[m][n][i % 4], change = dp[m][n][i % 4] - rows.delta[m][half];
        float p = td_probability(x, problem.score_scale * TD_LOG2_E, rows.lse[m][half], visible);
        s[m][n][i % 4] = p * td_capped_gradient<CAPPED>(change, x);
    }
    td_product_accumulate<D>(dq, s, k, lane.lane);
}

// The warp's rows from `first` of the sequence on, by way of its own rows of a tile that stayed.
template <int D, int M>
__device__ __forceinline__ void td_gradient_store(const float (&acc)[M][D / 8][4], float scale,
                                                  td_tile<D> tile, const td_rows<bf16> &rows,
                                                  int first, const td_lane &lane) {
    const int first_row = lane.warp * 16 * M;
    const float factor[2] = {scale, scale};
    __syncwarp(); // every lane has read what the tile held
#pragma unroll
    for (int m = 0; m < M; m++)
        td_tile_put<D>(tile, first_row + m * 16, lane, acc[m], factor);
    td_tile_store<16 * M>(tile, first_row, lane, rows, first);
}

// Grid: (tiles of queries, n_heads).
template <int D, bool CAPPED>
__global__ void __launch_bounds__(TD_TILE_THREADS)
    td_attention_dq_kernel(td_attention_backward_params params) {
    using sizes = td_dq_sizes<D>;
    const td_attention_problem &problem = params.problem;
    const td_lane lane = td_lane_here();
    const td_attention_sequence sequence = td_attention_find(
        problem.borders, TD_TILES_OF_QUERIES, static_cast<int>(blockIdx.x), sizes::ROWS);
    if (sequence.tile >= sequence.n_tiles)
        return;
    const td_visibility visibility = td_visibility_of(problem, sequence);
    const int head = static_cast<int>(blockIdx.y), key_head = head / problem.heads_per_key;
    const int first = (sequence.n_tiles - 1 - sequence.tile) * sizes::ROWS; // longest walk first
    const int query = first + lane.warp * sizes::WARP_ROWS;
    const td_rows<const bf16> k =
        td_key_rows(problem, sequence, params.k, problem.k_stride, key_head);
    const td_rows<const bf16> v =
        td_key_rows(problem, sequence, params.v, problem.v_stride, key_head);
    const td_range keys = td_keys_seen(visibility, sequence, first, sizes::ROWS, sizes::WALK);

    float dq[sizes::M][D / 8][4];
    td_zero(dq);
    const td_dq_rows<sizes::M> rows = td_dq_rows_load<sizes::M>(params, sequence, query, lane);
    td_tile_load<sizes::ROWS>(
        sizes::fixed(0), td_query_rows(problem, sequence, params.q, problem.q_stride, head), first);
    td_tile_load<sizes::ROWS>(
        sizes::fixed(1), td_query_rows(problem, sequence, params.dout, problem.out_stride, head),
        first);
    td_tile_load<sizes::WALK>(sizes::walked(0, 0), k, keys.begin);
    td_tile_load<sizes::WALK>(sizes::walked(0, 1), v, keys.begin);
    td_ptx_cp_async_commit();
    int buffer = 0;
    for (int key = keys.begin; key < keys.end; key += sizes::WALK, buffer ^= 1) {
        td_ptx_cp_async_wait<0>();
        __syncthreads(); // this tile is there, and nobody reads the other buffer any more
        if (key + sizes::WALK < keys.end) {
            td_tile_load<sizes::WALK>(sizes::walked(buffer ^ 1, 0), k, key + sizes::WALK);
            td_tile_load<sizes::WALK>(sizes::walked(buffer ^ 1, 1), v, key + sizes::WALK);
            td_ptx_cp_async_commit();
        }
        if (query < sequence.n_q && !visibility.none(query, sizes::WARP_ROWS, key, sizes::WALK))
            td_dq_tile<D, CAPPED>(problem, dq, rows, sizes::walked(buffer, 0),
                                  sizes::walked(buffer, 1), visibility, query, key, lane);
    }
    td_gradient_store<D>(dq, problem.scale, sizes::fixed(0),
                         td_query_rows(problem, sequence, params.dq, problem.q_stride, head), query,
                         lane);
}

// What a pass of the second kernel is for.
enum { TD_PASS_DK = 1, TD_PASS_DV = 2, TD_PASS_BOTH = 3 };

// A tile of queries of one head.
struct td_walk_place {
    int head, query;
};

// Starts the copies of queries, dout, lse and delta into a buffer.
template <int D>
__device__ __forceinline__ void td_dkdv_load(const td_attention_backward_params &params,
                                             const td_attention_sequence &sequence,
                                             const td_walk_place &place, int buffer) {
    using sizes = td_dkdv_sizes<D>;
    const td_attention_problem &problem = params.problem;
    td_tile_load<sizes::WALK>(
        sizes::walked(buffer, 0),
        td_query_rows(problem, sequence, params.q, problem.q_stride, place.head), place.query);
    td_tile_load<sizes::WALK>(
        sizes::walked(buffer, 1),
        td_query_rows(problem, sequence, params.dout, problem.out_stride, place.head), place.query);
    const int thread = static_cast<int>(threadIdx.x), row = thread % sizes::WALK;
    if (thread >= 2 * sizes::WALK)
        return;
    const bool there = place.query + row < sequence.n_q;
    const int64_t at =
        static_cast<int64_t>(sequence.q_begin + place.query + row) * problem.n_heads + place.head;
    const float *from = thread < sizes::WALK ? params.lse : params.delta;
    td_ptx_cp_async_ca<4>(sizes::numbers(buffer, thread / sizes::WALK) + row,
                          from + (there ? at : 0), there ? 4 : 0);
}

// Accumulators of the passes that have them; a pass without one keeps a token array that goes away.
template <int D, int PASS> struct td_dkdv_sums {
    static constexpr int M = td_dkdv_sizes<D>::M;
    static constexpr bool HAS_DK = (PASS & TD_PASS_DK) != 0, HAS_DV = (PASS & TD_PASS_DV) != 0;
    float dk[HAS_DK ? M : 1][HAS_DK ? D / 8 : 1][4];
    float dv[HAS_DV ? M : 1][HAS_DV ? D / 8 : 1][4];
};

// Scores to P, in place.
template <int D, int M, int N>
__device__ __forceinline__ void
td_transposed_probabilities(const td_attention_problem &problem, float (&s)[M][N][4],
                            const td_visibility &visibility, int query, int key, int buffer,
                            const td_lane &lane) {
    using sizes = td_dkdv_sizes<D>;
    const float *lse = sizes::numbers(buffer, 0);
    const bool all = visibility.all(query, sizes::WALK, key, sizes::WARP_ROWS);
#pragma unroll
    for (int i = 0; i < M * N * 4; i++) {
        int m = i / 4 / N, n = i / 4 % N, half = i % 4 / 2, column = n * 8 + lane.pair + i % 2;
        bool visible = all || visibility.sees(query + column, key + m * 16 + half * 8 + lane.row);
        s[m][n][i % 4] =
            td_probability(s[m][n][i % 4], problem.score_scale * TD_LOG2_E, lse[column], visible);
    }
}

// dp = V dout^T - delta, with a cap times its slope, which is read off the capped products.
template <int D, bool CAPPED, int M, int N>
__device__ __forceinline__ void td_transposed_changes(float (&dp)[M][N][4],
                                                      const float (&capped)[M][N][4], int buffer,
                                                      const td_lane &lane) {
    using sizes = td_dkdv_sizes<D>;
    const float *delta = sizes::numbers(buffer, 1);
    td_product_rows(dp, sizes::fixed(1), lane.warp * sizes::WARP_ROWS, sizes::walked(buffer, 1),
                    lane.lane);
#pragma unroll
    for (int i = 0; i < M * N * 4; i++) {
        int m = i / 4 / N, n = i / 4 % N;
        float change = dp[m][n][i % 4] - delta[n * 8 + lane.pair + i % 2];
        dp[m][n][i % 4] = td_capped_gradient<CAPPED>(change, capped[m][n][i % 4]);
    }
}

// One tile of queries for one warp, whose rows start at `key`. s and dp have keys as rows. With a
// cap dp comes before P, as both need the capped products; otherwise after it, which takes less
// registers.
template <int D, int PASS, bool CAPPED>
__device__ __forceinline__ void
td_dkdv_tile(const td_attention_problem &problem, td_dkdv_sums<D, PASS> &sums,
             const td_visibility &visibility, int query, int key, int buffer, const td_lane &lane) {
    using sizes = td_dkdv_sizes<D>;
    constexpr int M = sizes::M, N = sizes::WALK / 8;
    constexpr bool HAS_DK = td_dkdv_sums<D, PASS>::HAS_DK;
    const td_tile<D> q = sizes::walked(buffer, 0), dout = sizes::walked(buffer, 1);
    float s[M][N][4], dp[M][N][4];
    td_product_rows(s, sizes::fixed(0), lane.warp * sizes::WARP_ROWS, q, lane.lane);
    if constexpr (CAPPED)
        td_scores_cap(s, problem.tanh_scale);
    if constexpr (CAPPED && HAS_DK)
        td_transposed_changes<D, CAPPED>(dp, s, buffer, lane);
    td_transposed_probabilities<D>(problem, s, visibility, query, key, buffer, lane);
    if constexpr (td_dkdv_sums<D, PASS>::HAS_DV)
        td_product_accumulate<D>(sums.dv, s, dout, lane.lane);
    if constexpr (HAS_DK) {
        if constexpr (!CAPPED)
            td_transposed_changes<D, CAPPED>(dp, s, buffer, lane);
#pragma unroll
        for (int i = 0; i < M * N * 4; i++)
            s[i / 4 / N][i / 4 % N][i % 4] *= dp[i / 4 / N][i / 4 % N][i % 4];
        td_product_accumulate<D>(sums.dk, s, q, lane.lane);
    }
}

// Grid: (tiles of keys, n_kv_heads).
template <int D, int PASS, bool CAPPED>
__global__ void __launch_bounds__(TD_TILE_THREADS)
    td_attention_dkdv_kernel(td_attention_backward_params params) {
    using sizes = td_dkdv_sizes<D>;
    using sums_type = td_dkdv_sums<D, PASS>;
    const td_attention_problem &problem = params.problem;
    const td_lane lane = td_lane_here();
    const td_attention_sequence sequence = td_attention_find(
        problem.borders, TD_TILES_OF_KEYS, static_cast<int>(blockIdx.x), sizes::ROWS);
    if (sequence.tile >= sequence.n_tiles)
        return;
    const td_visibility visibility = td_visibility_of(problem, sequence);
    const int key_head = static_cast<int>(blockIdx.y);
    const int first = sequence.tile * sizes::ROWS; // longest walk first
    const int key = first + lane.warp * sizes::WARP_ROWS;
    const td_range queries =
        td_queries_seeing(visibility, sequence, first, sizes::ROWS, sizes::WALK);
    const int end_head = (key_head + 1) * problem.heads_per_key;
    // Keys before every window are seen by nobody: their gradients are zero.
    const bool seen = queries.begin < queries.end;
    td_walk_place here = {seen ? key_head * problem.heads_per_key : end_head, queries.begin};

    sums_type sums;
    td_zero(sums.dk);
    td_zero(sums.dv);
    if (seen) {
        td_tile_load<sizes::ROWS>(
            sizes::fixed(0), td_key_rows(problem, sequence, params.k, problem.k_stride, key_head),
            first);
        if constexpr (sums_type::HAS_DK)
            td_tile_load<sizes::ROWS>(
                sizes::fixed(1),
                td_key_rows(problem, sequence, params.v, problem.v_stride, key_head), first);
        td_dkdv_load<D>(params, sequence, here, 0);
        td_ptx_cp_async_commit();
    }
    int buffer = 0;
    while (here.head < end_head) {
        td_walk_place next = {here.head, here.query + sizes::WALK};
        if (next.query >= queries.end)
            next = {here.head + 1, queries.begin};
        td_ptx_cp_async_wait<0>();
        __syncthreads(); // this tile is there, and nobody reads the other buffer any more
        if (next.head < end_head) {
            td_dkdv_load<D>(params, sequence, next, buffer ^ 1);
            td_ptx_cp_async_commit();
        }
        if (key < sequence.n_k && !visibility.none(here.query, sizes::WALK, key, sizes::WARP_ROWS))
            td_dkdv_tile<D, PASS, CAPPED>(problem, sums, visibility, here.query, key, buffer, lane);
        here = next;
        buffer ^= 1;
    }
    if constexpr (sums_type::HAS_DK)
        td_gradient_store<D>(sums.dk, problem.scale, sizes::fixed(0),
                             td_key_rows(problem, sequence, params.dk, problem.k_stride, key_head),
                             key, lane);
    if constexpr (sums_type::HAS_DV)
        td_gradient_store<D>(sums.dv, 1.0f, sizes::fixed(1),
                             td_key_rows(problem, sequence, params.dv, problem.v_stride, key_head),
                             key, lane);
}

template <int D>
td_status td_attention_dq_launch(const td_op_context *context, const td_attention_shape *shape,
                                 td_attention_backward_params *params) {
    using sizes = td_dq_sizes<D>;
    auto *kernel = params->problem.tanh_scale > 0.0f ? td_attention_dq_kernel<D, true>
                                                     : td_attention_dq_kernel<D, false>;
    dim3 grid(td_attention_tiles(shape, TD_TILES_OF_QUERIES, sizes::ROWS),
              static_cast<unsigned>(shape->n_heads));
    return td_cuda_launch(context, "attention_backward", kernel, grid, dim3(TD_TILE_THREADS),
                          sizes::SHARED_BYTES, *params);
}

template <int D, int PASS>
td_status td_attention_dkdv_pass(const td_op_context *context, const td_attention_shape *shape,
                                 td_attention_backward_params *params) {
    using sizes = td_dkdv_sizes<D>;
    auto *kernel = params->problem.tanh_scale > 0.0f ? td_attention_dkdv_kernel<D, PASS, true>
                                                     : td_attention_dkdv_kernel<D, PASS, false>;
    dim3 grid(td_attention_tiles(shape, TD_TILES_OF_KEYS, sizes::ROWS),
              static_cast<unsigned>(shape->n_kv_heads));
    return td_cuda_launch(context, "attention_backward", kernel, grid, dim3(TD_TILE_THREADS),
                          sizes::SHARED_BYTES, *params);
}

template <int D>
td_status td_attention_dkdv_launch(const td_op_context *context, const td_attention_shape *shape,
                                   td_attention_backward_params *params) {
    if constexpr (D <= 128) {
        return td_attention_dkdv_pass<D, TD_PASS_BOTH>(context, shape, params);
    } else {
        TD_TRY((td_attention_dkdv_pass<D, TD_PASS_DK>(context, shape, params)));
        return td_attention_dkdv_pass<D, TD_PASS_DV>(context, shape, params);
    }
}

#endif
