// Attention backward on bf16 tensor cores: rowsum(dout * out), then dq, then dk and dv. Every
// output has one writer, which adds in a fixed order; the price is that the two kernels both
// compute the scores (7 products instead of 5).
#include "kernels/cuda/attention_bf16.cuh"
#include "kernels/cuda/workspace.cuh"

static const char op[] = "attention_backward";
enum { DELTA_THREADS = 128, DELTA_ROWS = DELTA_THREADS / 32 };

// One warp per row of head_dim elements: a lane takes 8 of at most 256.
static __global__ void delta_kernel(const bf16 *out, const bf16 *dout, float *delta, int64_t n_rows,
                                    int head_dim, bool vector) {
    int lane = static_cast<int>(threadIdx.x) % 32;
    int64_t row = static_cast<int64_t>(blockIdx.x) * DELTA_ROWS + threadIdx.x / 32;
    if (row >= n_rows)
        return;
    td_chunk<bf16> a = td_chunk_load(out + row * head_dim, lane * TD_CHUNK, head_dim, vector);
    td_chunk<bf16> b = td_chunk_load(dout + row * head_dim, lane * TD_CHUNK, head_dim, vector);
    td_floats x = td_chunk_floats(a), y = td_chunk_floats(b);
    float sum = 0.0f;
    for (int i = 0; i < TD_CHUNK; i++)
        sum = fmaf(x.at[i], y.at[i], sum);
    sum = td_warp_sum(sum);
    if (lane == 0)
        delta[row] = sum;
}

size_t td_cuda_attention_workspace_bytes(const td_workspace_query *query) {
    int64_t rows; // of delta
    size_t bytes;
    if (__builtin_mul_overflow(query->max_tokens, query->n_heads, &rows) ||
        __builtin_mul_overflow(rows, sizeof(float), &bytes))
        return SIZE_MAX;
    return bytes;
}

// Puts delta into the workspace.
static td_status delta_launch(const td_op_context *context, const td_attention_backward_args *args,
                              bool vector) {
    const td_attention_shape *shape = &args->shape;
    int64_t n_rows = shape->cu_q[shape->n_sequences] * shape->n_heads;
    TD_TRY(td_cuda_need_workspace(context, op, static_cast<size_t>(n_rows) * sizeof(float)));
    return td_cuda_launch(context, op, delta_kernel, dim3(td_cuda_blocks(n_rows, DELTA_ROWS)),
                          dim3(DELTA_THREADS), 0, static_cast<const bf16 *>(args->out),
                          static_cast<const bf16 *>(args->dout),
                          static_cast<float *>(context->workspace), n_rows,
                          static_cast<int>(shape->head_dim), vector);
}

static void set_operands(const td_op_context *context, const td_attention_backward_args *args,
                         td_attention_backward_params *params) {
    params->q = static_cast<const bf16 *>(args->q);
    params->k = static_cast<const bf16 *>(args->k);
    params->v = static_cast<const bf16 *>(args->v);
    params->dout = static_cast<const bf16 *>(args->dout);
    params->lse = args->lse;
    params->delta = static_cast<const float *>(context->workspace);
    params->dq = static_cast<bf16 *>(args->dq);
    params->dk = static_cast<bf16 *>(args->dk);
    params->dv = static_cast<bf16 *>(args->dv);
}

td_status td_cuda_attention_backward_bf16(const td_op_context *context,
                                          const td_attention_backward_args *args) {
    td_attention_backward_params params = {};
    bool vector = td_cuda_aligned(args->q, args->k, args->v, args->out, args->dout, args->dq,
                                  args->dk, args->dv);
    TD_TRY(td_attention_problem_init(op, &args->shape, vector, &params.problem));
    TD_TRY(delta_launch(context, args, params.problem.vector));
    set_operands(context, args, &params);
    return td_attention_by_width(args->shape.head_dim, [&](auto width) {
        constexpr int D = decltype(width)::value;
        TD_TRY(td_attention_dq_launch<D>(context, &args->shape, &params));
        return td_attention_dkdv_launch<D>(context, &args->shape, &params);
    });
}
