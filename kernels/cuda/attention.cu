// The attention entries of the CUDA backend, and what both types share.
#include "kernels/cuda/attention_internal.cuh"

td_status td_attention_borders_of(const char *op, const td_attention_shape *shape,
                                  td_attention_borders *out) {
    if (!shape->device_cu_q)
        return td_fail(TD_ERR_INTERNAL, "%s: the borders of sequences are not in device memory",
                       op);
    *out = {shape->device_cu_q, shape->device_cu_k, static_cast<int32_t>(shape->n_borders - 1)};
    return TD_OK;
}

unsigned td_attention_tiles(const td_attention_shape *shape, td_attention_tiling tiling, int rows) {
    int64_t total = (tiling == TD_TILES_OF_QUERIES ? shape->cu_q : shape->cu_k)[shape->n_sequences];
    return total > 0 ? static_cast<unsigned>(total / rows + shape->n_borders - 1) : 0;
}

td_status td_cuda_attention_forward(const td_op_context *context,
                                    const td_attention_forward_args *args) {
    if (context->ops->activation == TD_BF16)
        return td_cuda_attention_forward_bf16(context, args);
    return td_cuda_attention_forward_f32(context, args);
}

td_status td_cuda_attention_backward(const td_op_context *context,
                                     const td_attention_backward_args *args) {
    if (context->ops->activation == TD_BF16)
        return td_cuda_attention_backward_bf16(context, args);
    return td_cuda_attention_backward_f32(context, args);
}
