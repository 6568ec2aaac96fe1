// fp32 attention backward (Dao et al., NeurIPS 2022, algorithm 4): probabilities are computed again
// from the scores and lse.
//
// With p = exp(s - lse), delta = sum(dout * out):  dv = p^T dout,  ds = scale p (dout v^T - delta),
// dq = ds k,  dk = ds^T q; a soft cap multiplies ds by its slope. Two kernels: one has the dk and
// dv of a tile of keys and walks over the queries that see it, the other has the dq of a tile of
// queries and walks over its keys. Each sum is one thread's, in a fixed order: no atomics.
#include "kernels/cuda/attention_f32.cuh"
#include "kernels/cuda/workspace.cuh"

namespace {

constexpr int DELTA_ROWS = 8; // per block, a warp each

__global__ void delta_kernel(int64_t n_rows, int64_t n_cols, const float *dout, const float *out,
                             float *delta) {
    int64_t row = static_cast<int64_t>(blockIdx.x) * DELTA_ROWS + threadIdx.x / 32;
    if (row >= n_rows)
        return;
    float sum = 0.0f;
    for (int64_t i = threadIdx.x % 32; i < n_cols; i += 32)
        sum = fmaf(dout[row * n_cols + i], out[row * n_cols + i], sum);
    sum = td_warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        delta[row] = sum;
}

template <int ROWS, int DIM> struct backward_shared {
    float q[ROWS * TD_F32_STRIDE<DIM>], dout[ROWS * TD_F32_STRIDE<DIM>];
    float k[ROWS * TD_F32_STRIDE<DIM>], v[ROWS * TD_F32_STRIDE<DIM>];
    float p[ROWS * TD_F32_SCORES<ROWS>], ds[ROWS * TD_F32_SCORES<ROWS>];
};

// p and ds of a tile of queries and a tile of keys: queries ty R + r, keys tx + 16 c.
template <int R> struct gradient_tile { float p[R][R], ds[R][R]; };

// One head's queries from first_query on with the keys from first_key on.
template <int ROWS, int DIM>
__device__ __forceinline__ gradient_tile<ROWS / 16>
find_gradient(const td_f32_job &job, const td_f32_tile &tile, int64_t head, int first_query,
              int first_key, const backward_shared<ROWS, DIM> *shared) {
    constexpr int R = ROWS / 16;
    gradient_tile<R> g = {};
    const bool capped = job.tanh_scale > 0.0f;
    int n = static_cast<int>(job.shape.head_dim);
    td_f32_scores<R, DIM>(shared->q, shared->k, n, g.p);
    td_f32_scores<R, DIM>(shared->dout, shared->v, n, g.ds);
#pragma unroll
    for (int r = 0; r < R; r++) {
        int query = first_query + threadIdx.x / 16 * R + r;
        int64_t row = (static_cast<int64_t>(tile.q_begin) + query) * job.shape.n_heads + head;
        float lse = query < tile.n_q ? job.lse[row] : 0.0f;
        float delta = query < tile.n_q ? job.delta[row] : 0.0f;
#pragma unroll
        for (int c = 0; c < R; c++) {
            bool seen = td_f32_sees(job, tile, query, first_key + threadIdx.x % 16 + 16 * c);
            float x = td_f32_capped(job, capped, g.p[r][c]);
            g.p[r][c] = seen ? expf(fmaf(x, job.score_scale, -lse)) : 0.0f;
            g.ds[r][c] = g.p[r][c] * (g.ds[r][c] - delta) * job.shape.scale;
            if (capped)
                g.ds[r][c] *= 1.0f - x * x;
        }
    }
    return g;
}

// x[r][c] to shared memory: rows are queries, or across: rows are keys.
template <int R>
__device__ __forceinline__ void put_scores(const float (&x)[R][R], bool across, float *to) {
    int tx = threadIdx.x % 16, first_row = threadIdx.x / 16 * R;
    constexpr int stride = TD_F32_SCORES<16 * R>;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < R; c++)
            to[across ? (tx + 16 * c) * stride + first_row + r
                      : (first_row + r) * stride + tx + 16 * c] = x[r][c];
}

template <int ROWS, int DIM>
__device__ __forceinline__ void load_queries(const td_f32_job &job, const td_f32_tile &tile,
                                             int64_t head, int first,
                                             backward_shared<ROWS, DIM> *shared) {
    int64_t q_stride = job.shape.q_stride, out_stride = job.out_stride;
    const float *q = job.q + td_f32_offset(job, tile.q_begin, q_stride, head);
    const float *dout = job.dout + td_f32_offset(job, tile.q_begin, out_stride, head);
    td_f32_load<ROWS, DIM>(job, q, q_stride, first, tile.n_q, shared->q);
    td_f32_load<ROWS, DIM>(job, dout, out_stride, first, tile.n_q, shared->dout);
}

template <int ROWS, int DIM>
__device__ __forceinline__ void load_keys(const td_f32_job &job, const td_f32_tile &tile,
                                          int64_t kv_head, int first,
                                          backward_shared<ROWS, DIM> *shared) {
    int64_t k_stride = job.shape.k_stride, v_stride = job.shape.v_stride;
    const float *k = job.k + td_f32_offset(job, tile.k_begin, k_stride, kv_head);
    const float *v = job.v + td_f32_offset(job, tile.k_begin, v_stride, kv_head);
    td_f32_load<ROWS, DIM>(job, k, k_stride, first, tile.n_k, shared->k);
    td_f32_load<ROWS, DIM>(job, v, v_stride, first, tile.n_k, shared->v);
}

// Queries that see any key of the tile of keys: from a whole tile of queries on.
template <int ROWS>
__device__ __forceinline__ int2 seeing_queries(const td_f32_job &job, const td_f32_tile &tile) {
    int shift = td_f32_shift(tile), begin = max(tile.first - shift, 0);
    int64_t last_key = min(tile.first + ROWS, tile.n_k) - 1;
    int64_t end = job.shape.window ? last_key - shift + job.shape.window : tile.n_q;
    return {begin / ROWS * ROWS, static_cast<int>(end < tile.n_q ? end : tile.n_q)};
}

template <int R, int DIM> struct key_gradients { float dk[R][DIM / 16], dv[R][DIM / 16]; };

// Adds what the queries of one head give to the tile of keys.
template <int ROWS, int DIM>
__device__ __forceinline__ void add_head(const td_f32_job &job, const td_f32_tile &tile,
                                         int64_t head, backward_shared<ROWS, DIM> *shared,
                                         key_gradients<ROWS / 16, DIM> &sums) {
    constexpr int R = ROWS / 16;
    int2 queries = seeing_queries<ROWS>(job, tile);
    for (int query = queries.x; query < queries.y; query += ROWS) {
        __syncthreads(); // the queries before have been used
        load_queries<ROWS, DIM>(job, tile, head, query, shared);
        __syncthreads();
        gradient_tile<R> g = find_gradient<ROWS, DIM>(job, tile, head, query, tile.first, shared);
        put_scores<R>(g.p, true, shared->p);
        put_scores<R>(g.ds, true, shared->ds);
        __syncthreads();
        td_f32_accumulate<R, DIM>(shared->p, shared->dout, sums.dv);
        td_f32_accumulate<R, DIM>(shared->ds, shared->q, sums.dk);
    }
}

template <int ROWS, int DIM>
__global__ void __launch_bounds__(TD_F32_THREADS) keys_kernel(td_f32_job job) {
    constexpr int R = ROWS / 16;
    int64_t n_kv = job.shape.n_kv_heads, kv_head = blockIdx.x % n_kv;
    int64_t group = job.shape.n_heads / n_kv;
    td_f32_tile tile;
    if (!td_f32_find(job, TD_TILES_OF_KEYS, blockIdx.x / n_kv, ROWS, &tile))
        return;
    auto *shared = td_cuda_shared<backward_shared<ROWS, DIM>>();
    key_gradients<R, DIM> sums = {};
    load_keys<ROWS, DIM>(job, tile, kv_head, tile.first, shared);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        add_head<ROWS, DIM>(job, tile, head, shared, sums);
    int64_t k_stride = job.shape.k_stride, v_stride = job.shape.v_stride;
    float *dk = job.dk + td_f32_offset(job, tile.k_begin, k_stride, kv_head);
    float *dv = job.dv + td_f32_offset(job, tile.k_begin, v_stride, kv_head);
    td_f32_store<R, DIM>(job, dk, k_stride, tile.first, tile.n_k, sums.dk);
    td_f32_store<R, DIM>(job, dv, v_stride, tile.first, tile.n_k, sums.dv);
}

template <int ROWS, int DIM>
__global__ void __launch_bounds__(TD_F32_THREADS) queries_kernel(td_f32_job job) {
    constexpr int R = ROWS / 16;
    int64_t n_heads = job.shape.n_heads, number = gridDim.x - 1 - blockIdx.x;
    int64_t head = number % n_heads, kv_head = head / (n_heads / job.shape.n_kv_heads);
    td_f32_tile tile;
    if (!td_f32_find(job, TD_TILES_OF_QUERIES, number / n_heads, ROWS, &tile))
        return;
    auto *shared = td_cuda_shared<backward_shared<ROWS, DIM>>();
    float dq[R][DIM / 16] = {};
    load_queries<ROWS, DIM>(job, tile, head, tile.first, shared);
    int2 keys = td_f32_seen_keys<ROWS>(job, tile);
    for (int key = keys.x; key < keys.y; key += ROWS) {
        __syncthreads(); // the keys before have been used
        load_keys<ROWS, DIM>(job, tile, kv_head, key, shared);
        __syncthreads();
        gradient_tile<R> g = find_gradient<ROWS, DIM>(job, tile, head, tile.first, key, shared);
        put_scores<R>(g.ds, false, shared->ds);
        __syncthreads();
        td_f32_accumulate<R, DIM>(shared->ds, shared->k, dq);
    }
    int64_t q_stride = job.shape.q_stride;
    td_f32_store<R, DIM>(job, job.dq + td_f32_offset(job, tile.q_begin, q_stride, head), q_stride,
                         tile.first, tile.n_q, dq);
}

template <int DIM> td_status launch(const td_op_context *context, const td_f32_job &job) {
    static const char op[] = "attention_backward";
    constexpr int ROWS = DIM == 256 ? 16 : 32;
    size_t shared_bytes = sizeof(backward_shared<ROWS, DIM>);
    unsigned key_blocks = td_f32_blocks(job.shape, TD_TILES_OF_KEYS, ROWS, job.shape.n_kv_heads);
    unsigned query_blocks = td_f32_blocks(job.shape, TD_TILES_OF_QUERIES, ROWS, job.shape.n_heads);
    TD_TRY(td_cuda_launch(context, op, keys_kernel<ROWS, DIM>, key_blocks, TD_F32_THREADS,
                          shared_bytes, job));
    return td_cuda_launch(context, op, queries_kernel<ROWS, DIM>, query_blocks, TD_F32_THREADS,
                          shared_bytes, job);
}

td_f32_job make_job(const td_op_context *context, const td_attention_backward_args *args,
                    const td_attention_borders &borders) {
    td_f32_job job = {};
    job.shape = args->shape;
    job.borders = borders;
    job.q = static_cast<const float *>(args->q);
    job.k = static_cast<const float *>(args->k);
    job.v = static_cast<const float *>(args->v);
    job.dout = static_cast<const float *>(args->dout);
    job.delta = static_cast<const float *>(context->workspace);
    job.lse = const_cast<float *>(args->lse);
    job.dq = static_cast<float *>(args->dq);
    job.dk = static_cast<float *>(args->dk);
    job.dv = static_cast<float *>(args->dv);
    td_f32_complete(job);
    return job;
}

} // namespace

td_status td_cuda_attention_backward_f32(const td_op_context *context,
                                         const td_attention_backward_args *args) {
    static const char op[] = "attention_backward";
    const td_attention_shape &shape = args->shape;
    int64_t rows = shape.cu_q[shape.n_sequences] * shape.n_heads;
    td_attention_borders borders;
    TD_TRY(td_attention_borders_of(op, &shape, &borders));
    TD_TRY(td_cuda_need_workspace(context, op, rows * sizeof(float)));
    TD_TRY(td_cuda_launch(
        context, op, delta_kernel, dim3(td_cuda_blocks(rows, DELTA_ROWS)), 32 * DELTA_ROWS, 0, rows,
        shape.head_dim, static_cast<const float *>(args->dout),
        static_cast<const float *>(args->out), static_cast<float *>(context->workspace)));
    return td_f32_by_dim(op, shape, [&](auto columns) {
        return launch<decltype(columns)::value>(context, make_job(context, args, borders));
    });
}
