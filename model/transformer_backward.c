#include "model/transformer_internal.h"
#include "runtime/core/progress.h"

// Gradient through one linear layer; A's and B's gradients go to the sink. dx NULL: not needed.
static td_status project_back(td_transformer *transformer, int64_t layer, td_projection projection,
                              const void *dy, const void *x, void *dx, int accumulate) {
    td_lora_weights lora;
    int adapted = td_transformer_module(transformer, layer, projection, &lora);
    const td_lora_module *module = td_lora_at(transformer->lora, layer, projection);
    const td_matrix *weight = &transformer->base->layers[layer].linear[projection];
    if (!dx && !adapted)
        return TD_OK;
    if (dx)
        TD_TRY(td_transformer_acquire_weight(transformer, layer, projection, &weight));
    float *da = transformer->d_module;
    OP(transformer, linear_backward,
       (&(td_linear_backward_args){
           .n_tokens = transformer->n_tokens,
           .dy = dy,
           .x = x,
           .xa = adapted ? transformer->layers[layer].xa[projection] : NULL,
           .weight = weight,
           .lora = adapted ? &lora : NULL,
           .dx = dx,
           .accumulate_dx = accumulate,
           .da = adapted ? da : NULL,
           .db = adapted ? da + module->rank * module->in : NULL,
       }));
    if (dx)
        TD_TRY(td_transformer_release_weight(transformer, weight));
    if (!adapted)
        return TD_OK;
    return transformer->sink->module_done(transformer->sink->self, module->a_offset,
                                          module->rank * (module->in + module->out), da);
}

static td_status norm_back(td_transformer *transformer, int64_t rows, int64_t columns,
                           const float *weight, const float *rstd, const void *x, const void *dy,
                           void *dx, int accumulate) {
    OP(transformer, rmsnorm_backward,
       (&(td_rmsnorm_backward_args){
           .n_rows = rows,
           .n_cols = columns,
           .dy = dy,
           .x = x,
           .weight = weight,
           .rstd = rstd,
           .dx = dx,
           .accumulate = accumulate,
       }));
    return TD_OK;
}

// The gradient at a sub-layer's output, from d_x behind it: d_x itself, or through the norm
// `weight` on its output `y` into d_norm.
static td_status out_norm_back(td_transformer *transformer, const float *weight, const float *rstd,
                               const void *y, const void **out) {
    *out = transformer->d_x;
    if (!weight)
        return TD_OK;
    *out = transformer->d_norm;
    return norm_back(transformer, transformer->n_tokens, transformer->config->hidden, weight, rstd,
                     y, transformer->d_x, transformer->d_norm, 0);
}

// From the gradients of gate and up, which lie where gate and up were, to d_norm.
static td_status gate_up_back(td_transformer *transformer, int64_t layer) {
    td_layer_state *state = &transformer->layers[layer];
    void *d_norm = transformer->d_norm;
    if (transformer->config->fused_projections)
        return project_back(transformer, layer, TD_PROJ_GATE_UP, state->gate, state->norm2, d_norm,
                            0);
    TD_TRY(project_back(transformer, layer, TD_PROJ_UP, state->up, state->norm2, d_norm, 0));
    return project_back(transformer, layer, TD_PROJ_GATE, state->gate, state->norm2, d_norm, 1);
}

// From d_x at the block's output to d_x at x_mid.
static td_status mlp_half_back(td_transformer *transformer, int64_t layer) {
    const td_model_config *config = transformer->config;
    const td_base_layer *weights = &transformer->base->layers[layer];
    td_layer_state *state = &transformer->layers[layer];
    const void *d_out;
    TD_TRY(out_norm_back(transformer, weights->mlp_out_norm, state->rstd_mlp_out, state->mlp_out,
                         &d_out));
    TD_TRY(project_back(transformer, layer, TD_PROJ_DOWN, d_out, state->product,
                        transformer->d_wide, 0));
    OP(transformer, glu_backward,
       (&(td_glu_backward_args){
           .activation = config->activation,
           .n_rows = transformer->n_tokens,
           .n_cols = config->intermediate,
           .gate_stride = td_gate_stride(config),
           .up_stride = td_gate_stride(config),
           .dy = transformer->d_wide,
           .gate = state->gate,
           .up = state->up,
           .dgate = state->gate,
           .dup = state->up,
       }));
    TD_TRY(gate_up_back(transformer, layer));
    return norm_back(transformer, transformer->n_tokens, config->hidden, weights->mlp_norm,
                     state->rstd2, state->x_mid, transformer->d_norm, transformer->d_x, 1);
}

// d_q, d_k, d_v at the projections' outputs, from d_attention.
static td_status attend_back(td_transformer *transformer, int64_t layer) {
    const td_model_config *config = transformer->config;
    const td_base_layer *weights = &transformer->base->layers[layer];
    const td_layer_state *state = &transformer->layers[layer];
    OP(transformer, attention_backward,
       (&(td_attention_backward_args){
           .shape = td_transformer_attention(transformer, layer, NULL),
           .q = state->q,
           .k = state->k,
           .v = state->v,
           .out = state->attention,
           .lse = state->lse,
           .dout = transformer->d_attention,
           .dq = transformer->d_q,
           .dk = transformer->d_k,
           .dv = transformer->d_v,
       }));
    if (config->uses_rope[layer]) {
        TD_TRY(td_transformer_rotate(transformer, layer, config->n_heads, transformer->d_q,
                                     td_q_stride(config), 1));
        TD_TRY(td_transformer_rotate(transformer, layer, config->n_kv_heads, transformer->d_k,
                                     td_k_stride(config), 1));
    }
    if (!config->qk_norm)
        return TD_OK;
    int64_t tokens = transformer->n_tokens;
    TD_TRY(norm_back(transformer, tokens * config->n_heads, config->head_dim, weights->q_norm,
                     state->rstd_q, state->q_raw, transformer->d_q, transformer->d_q, 0));
    return norm_back(transformer, tokens * config->n_kv_heads, config->head_dim, weights->k_norm,
                     state->rstd_k, state->k_raw, transformer->d_k, transformer->d_k, 0);
}

// From d_q, d_k and d_v to d_norm, which is NULL when nobody needs it.
static td_status qkv_back(td_transformer *transformer, int64_t layer, void *d_norm) {
    const void *norm = transformer->layers[layer].norm1;
    if (transformer->config->fused_projections)
        return project_back(transformer, layer, TD_PROJ_QKV, transformer->d_q, norm, d_norm, 0);
    TD_TRY(project_back(transformer, layer, TD_PROJ_V, transformer->d_v, norm, d_norm, 0));
    TD_TRY(project_back(transformer, layer, TD_PROJ_K, transformer->d_k, norm, d_norm, 1));
    return project_back(transformer, layer, TD_PROJ_Q, transformer->d_q, norm, d_norm, 1);
}

// From d_x at x_mid to d_x at x_in. The lowest layer with an adapter has nobody to hand d_x to.
static td_status attention_half_back(td_transformer *transformer, int64_t layer, int lowest) {
    const td_base_layer *weights = &transformer->base->layers[layer];
    td_layer_state *state = &transformer->layers[layer];
    const void *d_out;
    TD_TRY(out_norm_back(transformer, weights->attention_out_norm, state->rstd_attention_out,
                         state->attention_out, &d_out));
    TD_TRY(project_back(transformer, layer, TD_PROJ_O, d_out, state->attention,
                        transformer->d_attention, 0));
    TD_TRY(attend_back(transformer, layer));
    TD_TRY(qkv_back(transformer, layer, lowest ? NULL : transformer->d_norm));
    if (lowest)
        return TD_OK;
    return norm_back(transformer, transformer->n_tokens, transformer->config->hidden,
                     weights->input_norm, state->rstd1, state->x_in, transformer->d_norm,
                     transformer->d_x, 1);
}

int64_t td_transformer_lowest_layer(const td_transformer *transformer) {
    const td_lora *lora = transformer->lora;
    int64_t layer = 0;
    while (layer < lora->n_layers && td_lora_layer_begin(lora, layer + 1) == 0)
        layer++;
    return layer;
}

// The gradients' way through one layer. A segment of its own: what layer_done() starts, such as
// sending gradients, is never part of a recording.
static td_status layer_back(td_transformer *transformer, int64_t layer) {
    int64_t lowest = td_transformer_lowest_layer(transformer);
    TD_TRY(td_transformer_round_layer(transformer, layer));
    TD_TRY(td_transformer_recompute(transformer, layer));
    TD_TRY(mlp_half_back(transformer, layer));
    return attention_half_back(transformer, layer, layer == lowest);
}

td_status td_transformer_backward(td_transformer *transformer) {
    const td_gradient_sink *sink = transformer->sink;
    int64_t lowest = td_transformer_lowest_layer(transformer);
    td_progress_phase(TD_PHASE_BACKWARD);
    for (int64_t layer = transformer->config->n_layers - 1; layer >= lowest; layer--) {
        td_progress_layer((uint32_t)layer);
        TD_TRY(td_transformer_segment(transformer, layer + 1, layer_back, layer));
        if (sink->layer_done)
            TD_TRY(sink->layer_done(sink->self, layer));
    }
    return TD_OK;
}
