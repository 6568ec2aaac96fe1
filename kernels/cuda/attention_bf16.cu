// Attention on bf16 tensor cores: the problem, and the forward pass.
#include "kernels/cuda/attention_bf16.cuh"

static td_status check_shape(const char *op, const td_attention_shape *shape) {
    if (shape->head_dim > 256)
        return td_fail(TD_ERR_INTERNAL, "%s: head_dim is %lld, the CUDA backend takes at most 256",
                       op, static_cast<long long>(shape->head_dim));
    if (shape->n_heads > 65535)
        return td_fail(TD_ERR_INTERNAL, "%s: %lld heads, the CUDA backend takes at most 65535", op,
                       static_cast<long long>(shape->n_heads));
    if (!(shape->scale > 0.0f))
        return td_fail(TD_ERR_INTERNAL, "%s: the scale of the scores is %g, expected above 0", op,
                       static_cast<double>(shape->scale));
    for (int64_t s = 0; s < shape->n_sequences; s++)
        if (shape->cu_k[s + 1] - shape->cu_k[s] > TD_ATTENTION_MAX_KEYS)
            return td_fail(TD_ERR_INTERNAL, "%s: sequence %lld has more than %d keys", op,
                           static_cast<long long>(s), TD_ATTENTION_MAX_KEYS);
    return TD_OK;
}

td_status td_attention_problem_init(const char *op, const td_attention_shape *shape, bool vector,
                                    td_attention_problem *out) {
    TD_TRY(check_shape(op, shape));
    TD_TRY(td_attention_borders_of(op, shape, &out->borders));
    bool limited = shape->window > 0 && shape->window < TD_ATTENTION_MAX_KEYS;
    out->n_heads = static_cast<int32_t>(shape->n_heads);
    out->n_kv_heads = static_cast<int32_t>(shape->n_kv_heads);
    out->heads_per_key = static_cast<int32_t>(shape->n_heads / shape->n_kv_heads);
    out->head_dim = static_cast<int32_t>(shape->head_dim);
    out->window = limited ? static_cast<int32_t>(shape->window) : TD_ATTENTION_MAX_KEYS;
    out->scale = shape->scale;
    out->tanh_scale = shape->softcap > 0.0f ? shape->scale / shape->softcap : 0.0f;
    out->score_scale = out->tanh_scale > 0.0f ? shape->softcap : shape->scale;
    out->q_stride = shape->q_stride;
    out->k_stride = shape->k_stride;
    out->v_stride = shape->v_stride;
    out->out_stride = shape->n_heads * shape->head_dim;
    bool even = (shape->q_stride | shape->k_stride | shape->v_stride | shape->head_dim) % 8 == 0;
    out->vector = vector && even;
    return TD_OK;
}

td_status td_cuda_attention_forward_bf16(const td_op_context *context,
                                         const td_attention_forward_args *args) {
    td_attention_forward_params params = {};
    bool vector = td_cuda_aligned(args->q, args->k, args->v, args->out);
    TD_TRY(td_attention_problem_init("attention_forward", &args->shape, vector, &params.problem));
    params.q = static_cast<const bf16 *>(args->q);
    params.k = static_cast<const bf16 *>(args->k);
    params.v = static_cast<const bf16 *>(args->v);
    params.out = static_cast<bf16 *>(args->out);
    params.lse = args->lse;
    return td_attention_by_width(args->shape.head_dim, [&](auto width) {
        return td_attention_forward_launch<decltype(width)::value>(context, &args->shape, &params);
    });
}
