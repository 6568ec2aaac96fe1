// Rotary embedding (Su et al., 2021, "RoFormer"). A thread rotates one chunk of the first half of a
// head with the chunk of the second half that belongs to it; the heads of a token find its angles
// in the cache.
#include "kernels/cuda/elements.cuh"

namespace {

template <typename T> struct rope_job {
    int64_t n_items; // tokens * heads * chunks of half a head
    int64_t n_heads, half, chunks;
    T *x;
    int64_t x_stride, head_stride; // from token to token, from head to head
    const int32_t *positions;
    const float *cos, *sin; // (positions, half)
    float sign;             // -1: rotate back
    bool wide;
};

template <typename T> __global__ void rope_kernel(rope_job<T> job) {
    int64_t item = static_cast<int64_t>(blockIdx.x) * TD_FLAT_THREADS + threadIdx.x;
    if (item >= job.n_items)
        return;
    int64_t row = item / job.chunks, i = (item - row * job.chunks) * TD_CHUNK, half = job.half;
    int64_t token = row / job.n_heads, angles = job.positions[token] * half;
    T *head = job.x + token * job.x_stride + (row - token * job.n_heads) * job.head_stride;
    td_chunk<T> halves[2] = {td_chunk_load(head, i, half, job.wide),
                             td_chunk_load(head + half, i, half, job.wide)};
    td_chunk<float> turn[2] = {td_chunk_load(job.cos + angles, i, half, job.wide),
                               td_chunk_load(job.sin + angles, i, half, job.wide)};
    td_floats first = td_chunk_floats(halves[0]), second = td_chunk_floats(halves[1]);
    td_floats cosine = td_chunk_floats(turn[0]), sine = td_chunk_floats(turn[1]);
#pragma unroll
    for (int k = 0; k < TD_CHUNK; k++) {
        float a = first.at[k], b = second.at[k], c = cosine.at[k], s = job.sign * sine.at[k];
        first.at[k] = fmaf(a, c, -(b * s));
        second.at[k] = fmaf(b, c, a * s);
    }
    td_chunk_store(head, i, half, job.wide, td_chunk_of<T>(first));
    td_chunk_store(head + half, i, half, job.wide, td_chunk_of<T>(second));
}

} // namespace

td_status td_cuda_rope(const td_op_context *context, const td_rope_args *args) {
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        rope_job<T> job = {};
        job.n_heads = args->n_heads;
        job.half = args->head_dim / 2;
        job.chunks = td_cuda_chunks(job.half);
        job.n_items = args->n_tokens * args->n_heads * job.chunks;
        job.x = static_cast<T *>(args->x);
        job.x_stride = args->x_stride;
        job.head_stride = args->head_stride ? args->head_stride : args->head_dim;
        job.positions = args->positions;
        job.cos = args->cos;
        job.sin = args->sin;
        job.sign = args->inverse ? -1.0f : 1.0f;
        job.wide = td_cuda_aligned(args->x, args->cos, args->sin) && job.half % TD_CHUNK == 0 &&
                   (job.x_stride | job.head_stride) % (16 / static_cast<int64_t>(sizeof(T))) == 0;
        return td_cuda_launch(context, "rope", rope_kernel<T>,
                              dim3(td_cuda_blocks(job.n_items, TD_FLAT_THREADS)), TD_FLAT_THREADS,
                              0, job);
    });
}
