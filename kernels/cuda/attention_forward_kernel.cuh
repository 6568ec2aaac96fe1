// Attention forward on tensor cores (FlashAttention-2: Dao, ICLR 2024). A block has four warps and
// a tile of queries; it walks over the tiles of keys that they see with an online softmax. A warp
// owns 16 or 32 whole rows: rows meet no other warp, and scores go from one product to the next in
// registers.
//
// Keys and values of the next tile are copied while this one is used (two buffers, one barrier per
// tile). Tiles of keys start at multiples of their size and a row skips or masks what it does not
// see without a trace in its numbers, so its bits depend on its own keys only.
//
// Sizes: 32 rows per warp halve the reads of keys from shared memory per product, which is what
// limits 16 rows; at D = 128 that takes 128 registers for the output, leaving room for 32 keys at a
// time; at 256 only 16 rows fit. Shared memory is 24 to 72 KiB up to D = 128: two blocks and more
// on a processor with 164 KiB (sm_80), and 96 KiB at 256: one there, two on sm_90.
#ifndef TANDEM_KERNELS_CUDA_ATTENTION_FORWARD_KERNEL_CUH
#define TANDEM_KERNELS_CUDA_ATTENTION_FORWARD_KERNEL_CUH

#include "kernels/cuda/attention_bf16.cuh"

template <int D> struct td_forward_sizes {
    static constexpr int M = D <= 128 ? 2 : 1; // row groups of 16 per warp
    static constexpr int WARP_ROWS = 16 * M, ROWS = WARP_ROWS * TD_TILE_WARPS;
    static constexpr int KEYS = D <= 64 ? 64 : 32;
    static constexpr size_t TILE_BYTES = (ROWS + 4 * KEYS) * D * sizeof(bf16);
    static constexpr size_t SHARED_BYTES = TILE_BYTES + sizeof(td_attention_sequence);
    static_assert(SHARED_BYTES <= 99 * 1024, "what a block can have on sm_86 and sm_89");
};

// What a warp keeps of its rows; a lane has rows lane.row and lane.row + 8 of each group.
template <int D> struct td_forward_state {
    static constexpr int M = td_forward_sizes<D>::M;
    float out[M][D / 8][4];
    float largest[M][2]; // score so far, without score_scale
    float sum[M][2];     // of this lane's columns
};

// In shared memory: the queries, two tiles of keys, two of values, and the sequence.
template <int D> __device__ __forceinline__ td_tile<D> td_forward_queries() {
    return {td_cuda_shared<bf16>()};
}
template <int D> __device__ __forceinline__ td_tile<D> td_forward_keys(int buffer) {
    using sizes = td_forward_sizes<D>;
    return {td_cuda_shared<bf16>() + (sizes::ROWS + buffer * sizes::KEYS) * D};
}
template <int D> __device__ __forceinline__ td_tile<D> td_forward_values(int buffer) {
    using sizes = td_forward_sizes<D>;
    return {td_cuda_shared<bf16>() + (sizes::ROWS + (2 + buffer) * sizes::KEYS) * D};
}

// The block's sequence, by way of shared memory: what its threads look up in registers at D = 128
// makes the compiler spill.
template <int D>
__device__ __forceinline__ const td_attention_sequence &
td_forward_sequence(const td_attention_borders &borders) {
    using sizes = td_forward_sizes<D>;
    auto *place = reinterpret_cast<td_attention_sequence *>(td_cuda_shared<unsigned char>() +
                                                            sizes::TILE_BYTES);
    if (threadIdx.x < 32) {
        td_attention_sequence found = td_attention_find(borders, TD_TILES_OF_QUERIES,
                                                        static_cast<int>(blockIdx.x), sizes::ROWS);
        if (threadIdx.x == 0)
            *place = found;
    }
    __syncthreads();
    return *place;
}

// Scores of keys that a row does not see become -infinity.
template <int M, int N>
__device__ __forceinline__ void td_scores_mask(float (&s)[M][N][4], const td_visibility &visibility,
                                               int query, int key, const td_lane &lane) {
#pragma unroll
    for (int i = 0; i < M * N * 4; i++) {
        int m = i / 4 / N, n = i / 4 % N, half = i % 4 / 2;
        if (!visibility.sees(query + m * 16 + lane.row + half * 8, key + n * 8 + lane.pair + i % 2))
            s[m][n][i % 4] = -INFINITY;
    }
}

// Largest score of one row in a fragment row of the four lanes that share it.
template <int N> __device__ __forceinline__ float td_row_max(const float (&s)[N][4], int half) {
    float largest = -INFINITY;
#pragma unroll
    for (int n = 0; n < N; n++)
        largest = fmaxf(largest, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    return fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
}

// Scores to exp(scale * (score - largest)), in place; what was gathered before is scaled to the new
// maximum. scale_log2: of the scores, times log2(e).
template <int D, int N>
__device__ __forceinline__ void td_softmax_step(td_forward_state<D> &state,
                                                float (&s)[td_forward_state<D>::M][N][4],
                                                float scale_log2) {
    constexpr int M = td_forward_state<D>::M;
    float keep[M][2];
    bool changed = false;
#pragma unroll
    for (int i = 0; i < M * 2; i++) {
        int m = i / 2, half = i % 2;
        float before = state.largest[m][half];
        float largest = fmaxf(before, td_row_max(s[m], half));
        // A row that has seen no key yet subtracts 0 instead of -infinity from -infinity.
        float subtract = largest == -INFINITY ? 0.0f : largest * scale_log2;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < N * 2; j++) {
            float &score = s[m][j / 2][half * 2 + j % 2];
            score = td_ptx_exp2(fmaf(score, scale_log2, -subtract));
            sum += score;
        }
        keep[m][half] = largest == before ? 1.0f : td_ptx_exp2(fmaf(before, scale_log2, -subtract));
        changed |= largest != before;
        state.largest[m][half] = largest;
        state.sum[m][half] = state.sum[m][half] * keep[m][half] + sum;
    }
    if (!__any_sync(0xffffffffu, changed)) // most tiles of a long sequence
        return;
#pragma unroll
    for (int i = 0; i < M * D / 2; i++)
        state.out[i / (D / 2)][i / 4 % (D / 8)][i % 4] *= keep[i / (D / 2)][i % 4 / 2];
}

// One tile of keys for one warp, whose rows start at `query`.
template <int D, bool CAPPED>
__device__ __forceinline__ void
td_forward_tile(const td_attention_problem &problem, td_forward_state<D> &state, td_tile<D> q,
                td_tile<D> k, td_tile<D> v, const td_visibility &visibility, int query, int key,
                const td_lane &lane) {
    using sizes = td_forward_sizes<D>;
    float s[sizes::M][sizes::KEYS / 8][4];
    td_product_rows(s, q, lane.warp * sizes::WARP_ROWS, k, lane.lane);
    if constexpr (CAPPED)
        td_scores_cap(s, problem.tanh_scale);
    if (!visibility.all(query, sizes::WARP_ROWS, key, sizes::KEYS))
        td_scores_mask(s, visibility, query, key, lane);
    td_softmax_step<D>(state, s, problem.score_scale * TD_LOG2_E);
    td_product_accumulate<D>(state.out, s, v, lane.lane);
}

template <int D> __device__ __forceinline__ void td_forward_begin(td_forward_state<D> &state) {
    td_zero(state.out);
#pragma unroll
    for (int i = 0; i < td_forward_state<D>::M * 2; i++) {
        state.largest[i / 2][i % 2] = -INFINITY;
        state.sum[i / 2][i % 2] = 0.0f;
    }
}

// Divides by the sums, and writes the warp's rows from query `query` on by way of its own rows of
// the tile that held the queries.
template <int D>
__device__ __forceinline__ void
td_forward_end(const td_attention_forward_params &params, const td_attention_sequence &sequence,
               td_forward_state<D> &state, td_tile<D> tile, int query, const td_lane &lane) {
    using sizes = td_forward_sizes<D>;
    int head = static_cast<int>(blockIdx.y), first_row = lane.warp * sizes::WARP_ROWS;
    const td_attention_problem &problem = params.problem;
    __syncwarp(); // every lane has read the queries
#pragma unroll
    for (int m = 0; m < sizes::M; m++) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = state.sum[m][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            factor[half] = 1.0f / sum;
            int row = query + m * 16 + half * 8 + lane.row;
            if (params.lse && lane.pair == 0 && row < sequence.n_q)
                params.lse[static_cast<int64_t>(sequence.q_begin + row) * problem.n_heads + head] =
                    state.largest[m][half] * problem.score_scale + logf(sum);
        }
        td_tile_put<D>(tile, first_row + m * 16, lane, state.out[m], factor);
    }
    td_tile_store<sizes::WARP_ROWS>(
        tile, first_row, lane,
        td_query_rows(problem, sequence, params.out, problem.out_stride, head), query);
}

// Grid: (tiles of queries, n_heads).
template <int D, bool CAPPED>
__global__ void __launch_bounds__(TD_TILE_THREADS)
    td_attention_forward_kernel(td_attention_forward_params params) {
    using sizes = td_forward_sizes<D>;
    const td_attention_problem &problem = params.problem;
    const td_lane lane = td_lane_here();
    const td_attention_sequence &sequence = td_forward_sequence<D>(problem.borders);
    if (sequence.tile >= sequence.n_tiles)
        return;
    const td_visibility visibility = td_visibility_of(problem, sequence);
    const int head = static_cast<int>(blockIdx.y), key_head = head / problem.heads_per_key;
    // The last tiles see the most keys: started first, they do not end last.
    const int first = (sequence.n_tiles - 1 - sequence.tile) * sizes::ROWS;
    const int query = first + lane.warp * sizes::WARP_ROWS; // the warp's first row
    const td_rows<const bf16> k =
        td_key_rows(problem, sequence, params.k, problem.k_stride, key_head);
    const td_rows<const bf16> v =
        td_key_rows(problem, sequence, params.v, problem.v_stride, key_head);
    const td_range keys = td_keys_seen(visibility, sequence, first, sizes::ROWS, sizes::KEYS);

    td_forward_state<D> state;
    td_forward_begin(state);
    td_tile_load<sizes::ROWS>(td_forward_queries<D>(),
                              td_query_rows(problem, sequence, params.q, problem.q_stride, head),
                              first);
    td_tile_load<sizes::KEYS>(td_forward_keys<D>(0), k, keys.begin);
    td_tile_load<sizes::KEYS>(td_forward_values<D>(0), v, keys.begin);
    td_ptx_cp_async_commit();
    int buffer = 0;
    for (int key = keys.begin; key < keys.end; key += sizes::KEYS, buffer ^= 1) {
        td_ptx_cp_async_wait<0>();
        __syncthreads(); // this tile is there, and nobody reads the other buffer any more
        if (key + sizes::KEYS < keys.end) {
            td_tile_load<sizes::KEYS>(td_forward_keys<D>(buffer ^ 1), k, key + sizes::KEYS);
            td_tile_load<sizes::KEYS>(td_forward_values<D>(buffer ^ 1), v, key + sizes::KEYS);
            td_ptx_cp_async_commit();
        }
        if (query < sequence.n_q && !visibility.none(query, sizes::WARP_ROWS, key, sizes::KEYS))
            td_forward_tile<D, CAPPED>(problem, state, td_forward_queries<D>(),
                                       td_forward_keys<D>(buffer), td_forward_values<D>(buffer),
                                       visibility, query, key, lane);
    }
    td_forward_end(params, sequence, state, td_forward_queries<D>(), query, lane);
}

template <int D>
td_status td_attention_forward_launch(const td_op_context *context, const td_attention_shape *shape,
                                      td_attention_forward_params *params) {
    using sizes = td_forward_sizes<D>;
    auto *kernel = params->problem.tanh_scale > 0.0f ? td_attention_forward_kernel<D, true>
                                                     : td_attention_forward_kernel<D, false>;
    dim3 grid(td_attention_tiles(shape, TD_TILES_OF_QUERIES, sizes::ROWS),
              static_cast<unsigned>(shape->n_heads));
    return td_cuda_launch(context, "attention_forward", kernel, grid, dim3(TD_TILE_THREADS),
                          sizes::SHARED_BYTES, *params);
}

#endif
