// The attention entries of the CUDA backend.
#include "kernels/cuda/attention_internal.cuh"

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
