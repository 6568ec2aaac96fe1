// RMSNorm (Zhang and Sennrich, NeurIPS 2019). A group of threads has one row; up to KEEP chunks per
// thread stay in registers between the statistics and the result, longer rows are read again. Which
// thread adds what depends on the width alone: the same bits for any address and any neighbours.
#include "kernels/cuda/elements.cuh"

namespace {

constexpr int KEEP = 4;

// Sum over the GROUP threads of a row, the same value in each, in a fixed order. Every thread of
// the block takes part.
template <int GROUP> __device__ __forceinline__ float group_sum(float x) {
    constexpr int width = GROUP < 32 ? GROUP : 32;
#pragma unroll
    for (int lane = width / 2; lane > 0; lane /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    if (GROUP <= 32)
        return x;
    float *of_warps = td_cuda_shared<float>();
    if (threadIdx.x % 32 == 0)
        of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int warp = 0; warp < GROUP / 32; warp++)
        x += of_warps[warp];
    return x;
}

template <int GROUP> constexpr int block_threads = GROUP < 128 ? 128 : GROUP;

template <int GROUP> __device__ __forceinline__ int64_t row_of_group() {
    return static_cast<int64_t>(blockIdx.x) * (block_threads<GROUP> / GROUP) + threadIdx.x / GROUP;
}

// Element index of the thread's chunk number `number` of its row.
template <int GROUP> __device__ __forceinline__ int64_t element_of(int64_t number) {
    return (threadIdx.x % GROUP + number * GROUP) * TD_CHUNK;
}

template <typename T>
__device__ __forceinline__ float add_squares(float sum, const td_chunk<T> &chunk) {
    td_floats x = td_chunk_floats(chunk);
#pragma unroll
    for (int i = 0; i < TD_CHUNK; i++)
        sum = fmaf(x.at[i], x.at[i], sum);
    return sum;
}

template <typename T> struct forward_job {
    int64_t n_rows, n_cols;
    const T *x;          // (rows, cols)
    const float *weight; // (cols)
    float eps;
    T *y; // (rows, cols); may be x
    float *rstd;
    bool wide;
};

// The normalized value is rounded to the activation type before the weight, as transformers does.
template <typename T>
__device__ __forceinline__ void store_scaled(const forward_job<T> &job, T *y, int64_t i,
                                             const td_chunk<T> &chunk, float rstd) {
    td_floats weight = td_chunk_floats(td_chunk_load(job.weight, i, job.n_cols, job.wide));
    td_floats x = td_chunk_floats(chunk);
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++)
        x.at[k] = td_to_float(td_from_float<T>(x.at[k] * rstd)) * weight.at[k];
    td_chunk_store(y, i, job.n_cols, job.wide, td_chunk_of<T>(x));
}

template <typename T, int GROUP>
__global__ void __launch_bounds__(block_threads<GROUP>) forward_kernel(forward_job<T> job) {
    int64_t row = row_of_group<GROUP>(), n = row < job.n_rows ? job.n_cols : 0;
    const T *x = job.x + row * job.n_cols;
    T *y = job.y + row * job.n_cols;
    td_chunk<T> kept[KEEP];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < KEEP; k++)
        kept[k] = td_chunk_load(x, element_of<GROUP>(k), n, job.wide);
#pragma unroll
    for (int k = 0; k < KEEP; k++)
        sum = add_squares(sum, kept[k]);
    for (int64_t k = KEEP; element_of<GROUP>(k) < n; k++)
        sum = add_squares(sum, td_chunk_load(x, element_of<GROUP>(k), n, job.wide));
    float mean = group_sum<GROUP>(sum) / static_cast<float>(job.n_cols);
    float rstd = 1.0f / sqrtf(mean + job.eps);
    if (job.rstd && threadIdx.x % GROUP == 0 && n > 0)
        job.rstd[row] = rstd;
#pragma unroll
    for (int k = 0; k < KEEP; k++)
        if (element_of<GROUP>(k) < n)
            store_scaled(job, y, element_of<GROUP>(k), kept[k], rstd);
    for (int64_t k = KEEP; element_of<GROUP>(k) < n; k++) {
        int64_t i = element_of<GROUP>(k);
        store_scaled(job, y, i, td_chunk_load(x, i, n, job.wide), rstd);
    }
}

template <typename T> struct backward_job {
    int64_t n_rows, n_cols;
    const T *dy, *x;     // (rows, cols)
    const float *weight; // (cols)
    const float *rstd;   // (rows)
    T *dx;               // (rows, cols); may be dy when not accumulating
    bool accumulate, wide;
};

// One row of a backward job.
template <typename T> struct backward_row {
    const T *dy, *x;
    T *dx;
    int64_t n;
};

// One chunk of dy and x.
template <typename T> struct gradient_chunk { td_chunk<T> dy, x; };

template <typename T>
__device__ __forceinline__ gradient_chunk<T> load_gradient(const backward_job<T> &job,
                                                           const backward_row<T> &row, int64_t i) {
    return {td_chunk_load(row.dy, i, row.n, job.wide), td_chunk_load(row.x, i, row.n, job.wide)};
}

// sum + sum of dy * weight * x
template <typename T>
__device__ __forceinline__ float add_products(const backward_job<T> &job,
                                              const backward_row<T> &row, int64_t i, float sum,
                                              const gradient_chunk<T> &chunk) {
    td_floats weight = td_chunk_floats(td_chunk_load(job.weight, i, row.n, job.wide));
    td_floats dy = td_chunk_floats(chunk.dy), x = td_chunk_floats(chunk.x);
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++)
        sum = fmaf(dy.at[k] * weight.at[k], x.at[k], sum);
    return sum;
}

// dx = rstd * (dy * weight - x * pull), with pull = rstd^2 * mean(dy * weight * x).
template <typename T>
__device__ __forceinline__ void
store_gradient(const backward_job<T> &job, const backward_row<T> &row, int64_t i,
               const gradient_chunk<T> &chunk, float rstd, float pull) {
    td_floats weight = td_chunk_floats(td_chunk_load(job.weight, i, row.n, job.wide));
    td_floats dy = td_chunk_floats(chunk.dy), x = td_chunk_floats(chunk.x), dx = {};
    if (job.accumulate)
        dx = td_chunk_floats(td_chunk_load(row.dx, i, row.n, job.wide));
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++)
        dx.at[k] = fmaf(rstd, fmaf(-x.at[k], pull, dy.at[k] * weight.at[k]), dx.at[k]);
    td_chunk_store(row.dx, i, row.n, job.wide, td_chunk_of<T>(dx));
}

template <typename T, int GROUP>
__global__ void __launch_bounds__(block_threads<GROUP>) backward_kernel(backward_job<T> job) {
    int64_t number = row_of_group<GROUP>(), at = number * job.n_cols;
    backward_row<T> row = {job.dy + at, job.x + at, job.dx + at,
                           number < job.n_rows ? job.n_cols : 0};
    gradient_chunk<T> kept[KEEP];
    float sum = 0.0f, rstd = row.n > 0 ? job.rstd[number] : 0.0f;
#pragma unroll
    for (int k = 0; k < KEEP; k++)
        kept[k] = load_gradient(job, row, element_of<GROUP>(k));
#pragma unroll
    for (int k = 0; k < KEEP; k++)
        sum = add_products(job, row, element_of<GROUP>(k), sum, kept[k]);
    for (int64_t k = KEEP; element_of<GROUP>(k) < row.n; k++) {
        int64_t i = element_of<GROUP>(k);
        sum = add_products(job, row, i, sum, load_gradient(job, row, i));
    }
    float pull = group_sum<GROUP>(sum) * rstd / static_cast<float>(job.n_cols) * rstd;
#pragma unroll
    for (int k = 0; k < KEEP; k++)
        if (element_of<GROUP>(k) < row.n)
            store_gradient(job, row, element_of<GROUP>(k), kept[k], rstd, pull);
    for (int64_t k = KEEP; element_of<GROUP>(k) < row.n; k++) {
        int64_t i = element_of<GROUP>(k);
        store_gradient(job, row, i, load_gradient(job, row, i), rstd, pull);
    }
}

// Calls body with the group for rows of this width: the least whose registers hold a row.
template <typename Body> td_status by_width(int64_t n_cols, Body body) {
    if (n_cols <= 8 * KEEP * TD_CHUNK)
        return body(std::integral_constant<int, 8>());
    if (n_cols <= 32 * KEEP * TD_CHUNK)
        return body(std::integral_constant<int, 32>());
    if (n_cols <= 128 * KEEP * TD_CHUNK)
        return body(std::integral_constant<int, 128>());
    return body(std::integral_constant<int, 512>());
}

template <int GROUP> dim3 row_grid(int64_t n_rows) {
    return dim3(td_cuda_blocks(n_rows, block_threads<GROUP> / GROUP));
}

constexpr size_t SHARED_BYTES = 512 / 32 * sizeof(float); // a sum per warp

template <typename T> forward_job<T> make_forward(const td_rmsnorm_forward_args *args) {
    forward_job<T> job = {};
    job.n_rows = args->n_rows;
    job.n_cols = args->n_cols;
    job.x = static_cast<const T *>(args->x);
    job.weight = args->weight;
    job.eps = args->eps;
    job.y = static_cast<T *>(args->y);
    job.rstd = args->rstd;
    job.wide = td_cuda_aligned(args->x, args->weight, args->y) && args->n_cols % TD_CHUNK == 0;
    return job;
}

template <typename T> backward_job<T> make_backward(const td_rmsnorm_backward_args *args) {
    backward_job<T> job = {};
    job.n_rows = args->n_rows;
    job.n_cols = args->n_cols;
    job.dy = static_cast<const T *>(args->dy);
    job.x = static_cast<const T *>(args->x);
    job.weight = args->weight;
    job.rstd = args->rstd;
    job.dx = static_cast<T *>(args->dx);
    job.accumulate = args->accumulate != 0;
    job.wide =
        td_cuda_aligned(args->dy, args->x, args->weight, args->dx) && args->n_cols % TD_CHUNK == 0;
    return job;
}

} // namespace

td_status td_cuda_rmsnorm_forward(const td_op_context *context,
                                  const td_rmsnorm_forward_args *args) {
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        return by_width(args->n_cols, [&](auto width) {
            constexpr int GROUP = decltype(width)::value;
            return td_cuda_launch(context, "rmsnorm_forward", forward_kernel<T, GROUP>,
                                  row_grid<GROUP>(args->n_rows), block_threads<GROUP>, SHARED_BYTES,
                                  make_forward<T>(args));
        });
    });
}

td_status td_cuda_rmsnorm_backward(const td_op_context *context,
                                   const td_rmsnorm_backward_args *args) {
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        return by_width(args->n_cols, [&](auto width) {
            constexpr int GROUP = decltype(width)::value;
            return td_cuda_launch(context, "rmsnorm_backward", backward_kernel<T, GROUP>,
                                  row_grid<GROUP>(args->n_rows), block_threads<GROUP>, SHARED_BYTES,
                                  make_backward<T>(args));
        });
    });
}
