// Attention on bf16 tensor cores: what its kernels and their launches share.
//
// A launch has one block per tile (rows of queries or keys of one sequence) and head. What a block
// computes depends on its own sequence only.
#ifndef TANDEM_KERNELS_CUDA_ATTENTION_BF16_CUH
#define TANDEM_KERNELS_CUDA_ATTENTION_BF16_CUH

#include "kernels/cuda/attention_internal.cuh"
#include "kernels/cuda/attention_tile.cuh"

// Keys of a sequence, so that the sum of two positions fits.
constexpr int32_t TD_ATTENTION_MAX_KEYS = 1 << 30;

struct td_attention_problem {
    td_attention_borders borders;
    int32_t n_heads, n_kv_heads, heads_per_key, head_dim;
    int32_t window; // keys that a query sees at most
    float scale;    // of q.k, in gradients
    // A score is score_scale * x with x = q.k, or capped x = tanh(tanh_scale * q.k).
    float score_scale, tanh_scale;                    // tanh_scale 0: no soft cap
    int64_t q_stride, k_stride, v_stride, out_stride; // elements from token to token
    bool vector; // every row of every operand is 16-byte aligned
};

struct td_attention_forward_params {
    td_attention_problem problem;
    const bf16 *q, *k, *v;
    bf16 *out;
    float *lse; // or NULL
};

struct td_attention_backward_params {
    td_attention_problem problem;
    const bf16 *q, *k, *v, *dout;
    const float *lse, *delta; // (Tq, n_heads)
    bf16 *dq, *dk, *dv;
};

constexpr float TD_LOG2_E = 1.44269504088896340736f;

// Rows of one head: of a tensor with a row per query, and per key.
template <typename T>
__device__ __forceinline__ td_rows<T> td_query_rows(const td_attention_problem &problem,
                                                    const td_attention_sequence &sequence, T *base,
                                                    int64_t stride, int head) {
    return {base + sequence.q_begin * stride + static_cast<int64_t>(head) * problem.head_dim,
            stride, sequence.n_q, problem.head_dim, problem.vector};
}

template <typename T>
__device__ __forceinline__ td_rows<T> td_key_rows(const td_attention_problem &problem,
                                                  const td_attention_sequence &sequence, T *base,
                                                  int64_t stride, int head) {
    return {base + sequence.k_begin * stride + static_cast<int64_t>(head) * problem.head_dim,
            stride, sequence.n_k, problem.head_dim, problem.vector};
}

// What a soft cap makes of products q.k, before any is masked.
template <int M, int N>
__device__ __forceinline__ void td_scores_cap(float (&s)[M][N][4], float tanh_scale) {
#pragma unroll
    for (int i = 0; i < M * N * 4; i++)
        s[i / 4 / N][i / 4 % N][i % 4] = tanhf(s[i / 4 / N][i / 4 % N][i % 4] * tanh_scale);
}

// Which keys the queries of a sequence see: query i the keys [first(i), last(i)].
struct td_visibility {
    int offset; // keys before the first query
    int window;

    __device__ __forceinline__ int last(int query) const {
        return query + offset;
    }
    __device__ __forceinline__ int first(int query) const {
        return query + offset - window + 1;
    }
    __device__ __forceinline__ bool sees(int query, int key) const {
        return key <= last(query) && key >= first(query);
    }
    // No query of [query, query + n) sees a key of [key, key + m); every one sees all of them.
    __device__ __forceinline__ bool none(int query, int n, int key, int m) const {
        return key > last(query + n - 1) || key + m - 1 < first(query);
    }
    __device__ __forceinline__ bool all(int query, int n, int key, int m) const {
        return key + m - 1 <= last(query) && key >= first(query + n - 1);
    }
};

__device__ __forceinline__ td_visibility td_visibility_of(const td_attention_problem &problem,
                                                          const td_attention_sequence &sequence) {
    return {sequence.n_k - sequence.n_q, problem.window};
}

struct td_range {
    int begin, end;
};

// Keys that queries [query, query + n) see, from a multiple of `step` on.
__device__ __forceinline__ td_range td_keys_seen(const td_visibility &visibility,
                                                 const td_attention_sequence &sequence, int query,
                                                 int n, int step) {
    int first = visibility.first(query), last = visibility.last(query + n - 1);
    return {first > 0 ? first / step * step : 0, last < sequence.n_k ? last + 1 : sequence.n_k};
}

// Queries that see any of the keys [key, key + n), from a multiple of `step` on.
__device__ __forceinline__ td_range td_queries_seeing(const td_visibility &visibility,
                                                      const td_attention_sequence &sequence,
                                                      int key, int n, int step) {
    int first = key - visibility.offset, last = first + n - 1 + visibility.window - 1;
    return {first > 0 ? first / step * step : 0, last < sequence.n_q ? last + 1 : sequence.n_q};
}

// Fails where the kernels cannot work.
td_status td_attention_problem_init(const char *op, const td_attention_shape *shape, bool vector,
                                    td_attention_problem *out);

// Calls body(width) with decltype(width)::value the width of the tiles for
// head_dim: the next one that the kernels are made for, columns beyond head_dim are zeros.
template <int D> struct td_attention_width { static constexpr int value = D; };
template <typename Body> td_status td_attention_by_width(int64_t head_dim, Body body) {
    return head_dim <= 32    ? body(td_attention_width<32>())
           : head_dim <= 64  ? body(td_attention_width<64>())
           : head_dim <= 80  ? body(td_attention_width<80>())
           : head_dim <= 96  ? body(td_attention_width<96>())
           : head_dim <= 128 ? body(td_attention_width<128>())
                             : body(td_attention_width<256>());
}

// One per width. Defined in the attention_*_narrow.cu and attention_*_wide.cu, which compile side
// by side.
template <int D>
td_status td_attention_forward_launch(const td_op_context *context, const td_attention_shape *shape,
                                      td_attention_forward_params *params);
template <int D>
td_status td_attention_dq_launch(const td_op_context *context, const td_attention_shape *shape,
                                 td_attention_backward_params *params);
template <int D>
td_status td_attention_dkdv_launch(const td_op_context *context, const td_attention_shape *shape,
                                   td_attention_backward_params *params);

#endif
