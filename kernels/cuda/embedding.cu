// Rows of the table by token id. The caller has checked the ids while they were in host memory;
// for one outside the table nothing is read and the row becomes NaN, so that no such mistake can
// end in a plausible loss.
#include "kernels/cuda/elements.cuh"

namespace {

constexpr int EACH = 2; // chunks per thread

template <typename S, typename T> struct embedding_job {
    int64_t n_items, chunks; // tokens * chunks of a row
    int64_t rows, cols;
    const int32_t *ids; // (T)
    const S *table;     // (rows, cols)
    T *y;               // (T, cols)
    float scale;
    bool wide;
};

template <typename S, typename T>
__device__ __forceinline__ td_chunk<S> table_chunk(const embedding_job<S, T> &job, int64_t token,
                                                   int64_t i) {
    int32_t id = job.ids[token];
    if (id >= 0 && id < job.rows)
        return td_chunk_load(job.table + id * job.cols, i, job.cols, job.wide);
    td_floats nothing;
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++)
        nothing.at[k] = NAN;
    return td_chunk_of<S>(nothing);
}

// One product in fp32, then the rounding to T: a scale of one changes nothing.
__device__ __forceinline__ td_floats scaled(td_floats x, float scale) {
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++)
        x.at[k] *= scale;
    return x;
}

template <typename S, typename T> __global__ void embedding_kernel(embedding_job<S, T> job) {
    int64_t first = static_cast<int64_t>(blockIdx.x) * (TD_FLAT_THREADS * EACH) + threadIdx.x;
    td_chunk<S> chunk[EACH];
    int64_t token[EACH], i[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        int64_t item = first + k * TD_FLAT_THREADS;
        token[k] = item / job.chunks;
        i[k] = (item - token[k] * job.chunks) * TD_CHUNK;
        if (item < job.n_items)
            chunk[k] = table_chunk(job, token[k], i[k]);
    }
#pragma unroll
    for (int k = 0; k < EACH; k++)
        if (first + k * TD_FLAT_THREADS < job.n_items)
            td_chunk_store(job.y + token[k] * job.cols, i[k], job.cols, job.wide,
                           td_chunk_of<T>(scaled(td_chunk_floats(chunk[k]), job.scale)));
}

template <typename S, typename T>
td_status launch(const td_op_context *context, const td_embedding_args *args) {
    embedding_job<S, T> job = {};
    job.rows = args->table->rows;
    job.cols = args->table->cols;
    job.chunks = td_cuda_chunks(job.cols);
    job.n_items = args->n_tokens * job.chunks;
    job.ids = args->ids;
    job.table = static_cast<const S *>(args->table->data);
    job.y = static_cast<T *>(args->y);
    job.scale = args->scale;
    job.wide = td_cuda_aligned(job.table, job.y) && job.cols % TD_CHUNK == 0;
    return td_cuda_launch(context, "embedding", embedding_kernel<S, T>,
                          td_flat_grid<EACH>(job.n_items), TD_FLAT_THREADS, 0, job);
}

} // namespace

td_status td_cuda_embedding(const td_op_context *context, const td_embedding_args *args) {
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        return args->table->format == TD_MATRIX_BF16 ? launch<bf16, T>(context, args)
                                                     : launch<float, T>(context, args);
    });
}
