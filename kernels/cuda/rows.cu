// Gather and scatter of rows: which tokens go to the loss, and their gradients back. A warp copies
// a row, whatever the type of its elements: the copies have the bits of what they copy.
#include "kernels/cuda/elements.cuh"

namespace {

constexpr int WARPS = 4; // rows per block

template <typename T> struct rows_job {
    int64_t n_rows, n_cols; // of the list
    const int32_t *rows;    // (n_rows), ascending
    const T *x;
    T *y;
    int64_t y_rows;
    bool wide;
};

__device__ __forceinline__ int64_t row_of_warp() {
    return static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / 32;
}

// to = from; zeros where from is NULL. By all lanes of a warp.
template <typename T>
__device__ __forceinline__ void copy_row(const rows_job<T> &job, const T *__restrict__ from,
                                         T *__restrict__ to) {
    constexpr int width = 16 / sizeof(T);
    int lane = threadIdx.x % 32;
    if (job.wide) {
#pragma unroll 4
        for (int64_t i = lane * width; i < job.n_cols; i += 32 * width) {
            td_access part = {};
            if (from)
                part = *reinterpret_cast<const td_access *>(from + i);
            *reinterpret_cast<td_access *>(to + i) = part;
        }
    } else {
        for (int64_t i = lane; i < job.n_cols; i += 32)
            to[i] = from ? from[i] : td_from_float<T>(0.0f);
    }
}

template <typename T> __global__ void gather_kernel(rows_job<T> job) {
    int64_t row = row_of_warp();
    if (row < job.n_rows)
        copy_row(job, job.x + job.rows[row] * job.n_cols, job.y + row * job.n_cols);
}

// Where the list has `row`, or n_rows where it has not.
__device__ __forceinline__ int64_t find_row(const int32_t *rows, int64_t n_rows, int64_t row) {
    int64_t low = 0, high = n_rows;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (rows[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n_rows && rows[low] == row ? low : n_rows;
}

// Every row of y is written once: looking its number up costs less than clearing it first.
template <typename T> __global__ void scatter_kernel(rows_job<T> job) {
    int64_t row = row_of_warp();
    if (row >= job.y_rows)
        return;
    int64_t found = find_row(job.rows, job.n_rows, row);
    copy_row(job, found < job.n_rows ? job.x + found * job.n_cols : nullptr,
             job.y + row * job.n_cols);
}

template <typename T> rows_job<T> make_job(const td_rows_args *args) {
    rows_job<T> job = {};
    job.n_rows = args->n_rows;
    job.n_cols = args->n_cols;
    job.rows = args->rows;
    job.x = static_cast<const T *>(args->x);
    job.y = static_cast<T *>(args->y);
    job.y_rows = args->y_rows;
    job.wide = td_cuda_aligned(args->x, args->y) && args->n_cols * sizeof(T) % 16 == 0;
    return job;
}

} // namespace

td_status td_cuda_gather_rows(const td_op_context *context, const td_rows_args *args) {
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        return td_cuda_launch(context, "gather_rows", gather_kernel<T>,
                              dim3(td_cuda_blocks(args->n_rows, WARPS)), 32 * WARPS, 0,
                              make_job<T>(args));
    });
}

td_status td_cuda_scatter_rows(const td_op_context *context, const td_rows_args *args) {
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        return td_cuda_launch(context, "scatter_rows", scatter_kernel<T>,
                              dim3(td_cuda_blocks(args->y_rows, WARPS)), 32 * WARPS, 0,
                              make_job<T>(args));
    });
}
