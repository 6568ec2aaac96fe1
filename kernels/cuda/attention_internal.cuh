// Attention of the CUDA backend: bf16 on tensor cores (FlashAttention-2, Dao, ICLR 2024), fp32 on
// ordinary arithmetic. The entries in attention.cu choose by the activation type.
#ifndef TANDEM_KERNELS_CUDA_ATTENTION_INTERNAL_CUH
#define TANDEM_KERNELS_CUDA_ATTENTION_INTERNAL_CUH

#include "kernels/cuda/cuda_internal.cuh"

td_status td_cuda_attention_forward_bf16(const td_op_context *context,
                                         const td_attention_forward_args *args);
td_status td_cuda_attention_backward_bf16(const td_op_context *context,
                                          const td_attention_backward_args *args);
td_status td_cuda_attention_forward_f32(const td_op_context *context,
                                        const td_attention_forward_args *args);
td_status td_cuda_attention_backward_f32(const td_op_context *context,
                                         const td_attention_backward_args *args);

// Where sequences begin and end, in device memory: one launch serves every call of as many tokens
// and borders, whatever lies between them. Sequences may be empty.
struct td_attention_borders {
    const int32_t *q, *k; // (n_sequences + 1)
    int32_t n_sequences;
};

// The sequence of a tile (rows of queries or keys of one sequence).
struct td_attention_sequence {
    int q_begin, n_q, k_begin, n_k;
    int tile, n_tiles; // this one and all of the sequence
};

enum td_attention_tiling { TD_TILES_OF_QUERIES, TD_TILES_OF_KEYS };

// Sequence s that begins at row b has its tiles from number b / rows + s on, which leaves room for
// them and perhaps a number unused before the next: tiles >= n_tiles, and n_tiles may be 0. A warp
// looks for the sequence together; all lanes call this and get the same.
__device__ __forceinline__ td_attention_sequence td_attention_find(
    const td_attention_borders &borders, td_attention_tiling tiling, int number, int rows) {
    const int32_t *begin = tiling == TD_TILES_OF_QUERIES ? borders.q : borders.k;
    int lane = static_cast<int>(threadIdx.x) % 32, low = 0, n = borders.n_sequences;
    while (n > 1) { // it is one of [low, low + n)
        int step = (n + 31) / 32, s = lane * step;
        bool reached = s < n && begin[low + s] / rows + low + s <= number;
        int passed = (__popc(__ballot_sync(0xffffffffu, reached)) - 1) * step;
        low += passed;
        n = min(step, n - passed);
    }
    int q = borders.q[low], k = borders.k[low], first = begin[low];
    return {q,
            borders.q[low + 1] - q,
            k,
            borders.k[low + 1] - k,
            number - (first / rows + low),
            (begin[low + 1] - first + rows - 1) / rows};
}

// The borders of a call, and the blocks of a launch over its tiles (0 without rows).
td_status td_attention_borders_of(const char *op, const td_attention_shape *shape,
                                  td_attention_borders *out);
unsigned td_attention_tiles(const td_attention_shape *shape, td_attention_tiling tiling, int rows);

// Of the bf16 pair: the backward pass keeps rowsum(dout * out), (Tq, n_heads) fp32.
size_t td_cuda_attention_workspace_bytes(const td_workspace_query *query);

#endif
