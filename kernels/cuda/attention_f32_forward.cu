// fp32 attention forward on ordinary arithmetic: a tile of queries against its keys tile by tile,
// with an online softmax (Dao et al., NeurIPS 2022, "FlashAttention").
#include "kernels/cuda/attention_f32.cuh"

namespace {

// Sum or maximum over the sixteen threads of a row, the same value in each.
__device__ __forceinline__ float row_sum(float x) {
    for (int lane = 8; lane > 0; lane /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}
__device__ __forceinline__ float row_max(float x) {
    for (int lane = 8; lane > 0; lane /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

template <int R, int DIM> struct softmax_rows {
    float largest[R], sum[R];
    float out[R][DIM / 16];
};

template <int ROWS, int DIM> struct forward_shared {
    float q[ROWS * TD_F32_STRIDE<DIM>];
    float keys[ROWS * TD_F32_STRIDE<DIM>]; // then values
    float weights[ROWS * TD_F32_SCORES<ROWS>];
};

// Takes one row of scores into the row's state; what is not seen has -infinity.
template <int R, int DIM>
__device__ __forceinline__ void take_row(softmax_rows<R, DIM> &rows, int r,
                                         const float (&scores)[R], float *weights) {
    float most = rows.largest[r], sum = 0.0f;
#pragma unroll
    for (int c = 0; c < R; c++)
        most = fmaxf(most, scores[c]);
    most = row_max(most);
    float base = most == -INFINITY ? 0.0f : most; // nothing seen so far: all weights are 0
    float factor = expf(rows.largest[r] - base);
#pragma unroll
    for (int c = 0; c < R; c++) {
        float weight = expf(scores[c] - base);
        weights[threadIdx.x % 16 + 16 * c] = weight;
        sum += weight;
    }
    rows.largest[r] = most;
    rows.sum[r] = fmaf(rows.sum[r], factor, row_sum(sum));
#pragma unroll
    for (int i = 0; i < DIM / 16; i++)
        rows.out[r][i] *= factor;
}

// Scores of the queries with the keys from first_key on, to weights.
template <int ROWS, int DIM, bool CAPPED>
__device__ __forceinline__ void take_keys(const td_f32_job &job, const td_f32_tile &tile,
                                          int first_key, forward_shared<ROWS, DIM> *shared,
                                          softmax_rows<ROWS / 16, DIM> &rows) {
    constexpr int R = ROWS / 16;
    int tx = threadIdx.x % 16, first_row = threadIdx.x / 16 * R;
    float scores[R][R] = {};
    td_f32_scores<R, DIM>(shared->q, shared->keys, static_cast<int>(job.shape.head_dim), scores);
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int c = 0; c < R; c++) {
            bool seen = td_f32_sees(job, tile, tile.first + first_row + r, first_key + tx + 16 * c);
            scores[r][c] =
                seen ? td_f32_capped(job, CAPPED, scores[r][c]) * job.score_scale : -INFINITY;
        }
        take_row<R, DIM>(rows, r, scores[r],
                         shared->weights + (first_row + r) * TD_F32_SCORES<ROWS>);
    }
}

template <int R, int DIM>
__device__ __forceinline__ void store_rows(const td_f32_job &job, const td_f32_tile &tile,
                                           int64_t head, softmax_rows<R, DIM> &rows) {
    int64_t n_heads = job.shape.n_heads;
#pragma unroll
    for (int r = 0; r < R; r++) {
        int row = tile.first + threadIdx.x / 16 * R + r;
        float factor = 1.0f / rows.sum[r];
#pragma unroll
        for (int i = 0; i < DIM / 16; i++)
            rows.out[r][i] *= factor;
        if (job.lse && row < tile.n_q && threadIdx.x % 16 == 0)
            job.lse[(static_cast<int64_t>(tile.q_begin) + row) * n_heads + head] =
                rows.largest[r] + logf(rows.sum[r]);
    }
    td_f32_store<R, DIM>(job, job.out + td_f32_offset(job, tile.q_begin, job.out_stride, head),
                         job.out_stride, tile.first, tile.n_q, rows.out);
}

// Shared memory leaves room for three blocks of 64 columns; 0: registers are left to the compiler.
template <int ROWS, int DIM, bool CAPPED>
__global__ void __launch_bounds__(TD_F32_THREADS, DIM == 64 ? 3 : 0)
    forward_kernel(td_f32_job job) {
    // The last tiles see the most keys: they start first.
    int64_t n_heads = job.shape.n_heads, n_kv = job.shape.n_kv_heads;
    int64_t number = gridDim.x - 1 - blockIdx.x, head = number % n_heads;
    td_f32_tile tile;
    if (!td_f32_find(job, TD_TILES_OF_QUERIES, number / n_heads, ROWS, &tile))
        return;
    int64_t q_stride = job.shape.q_stride, kv_head = head / (n_heads / n_kv);
    int64_t k_stride = job.shape.k_stride, v_stride = job.shape.v_stride;
    const float *k = job.k + td_f32_offset(job, tile.k_begin, k_stride, kv_head);
    const float *v = job.v + td_f32_offset(job, tile.k_begin, v_stride, kv_head);
    auto *shared = td_cuda_shared<forward_shared<ROWS, DIM>>();
    softmax_rows<ROWS / 16, DIM> rows = {};
#pragma unroll
    for (int r = 0; r < ROWS / 16; r++)
        rows.largest[r] = -INFINITY;
    td_f32_load<ROWS, DIM>(job, job.q + td_f32_offset(job, tile.q_begin, q_stride, head), q_stride,
                           tile.first, tile.n_q, shared->q);
    int2 keys = td_f32_seen_keys<ROWS>(job, tile);
    for (int key = keys.x; key < keys.y; key += ROWS) {
        __syncthreads(); // the values before have been used
        td_f32_load<ROWS, DIM>(job, k, k_stride, key, tile.n_k, shared->keys);
        __syncthreads();
        take_keys<ROWS, DIM, CAPPED>(job, tile, key, shared, rows);
        __syncthreads();
        td_f32_load<ROWS, DIM>(job, v, v_stride, key, tile.n_k, shared->keys);
        __syncthreads();
        td_f32_accumulate<ROWS / 16, DIM>(shared->weights, shared->keys, rows.out);
    }
    store_rows<ROWS / 16, DIM>(job, tile, head, rows);
}

} // namespace

td_status td_cuda_attention_forward_f32(const td_op_context *context,
                                        const td_attention_forward_args *args) {
    static const char op[] = "attention_forward";
    td_f32_job job = {};
    job.shape = args->shape;
    job.q = static_cast<const float *>(args->q);
    job.k = static_cast<const float *>(args->k);
    job.v = static_cast<const float *>(args->v);
    job.out = static_cast<float *>(args->out);
    job.lse = args->lse;
    td_f32_complete(job);
    TD_TRY(td_attention_borders_of(op, &args->shape, &job.borders));
    return td_f32_by_dim(op, args->shape, [&](auto columns) {
        constexpr int DIM = decltype(columns)::value, ROWS = DIM == 256 ? 32 : 64;
        auto *kernel = job.tanh_scale > 0.0f ? forward_kernel<ROWS, DIM, true>
                                             : forward_kernel<ROWS, DIM, false>;
        unsigned blocks =
            td_f32_blocks(args->shape, TD_TILES_OF_QUERIES, ROWS, args->shape.n_heads);
        return td_cuda_launch(context, op, kernel, blocks, TD_F32_THREADS,
                              sizeof(forward_shared<ROWS, DIM>), job);
    });
}
