#include <math.h>

#include "model/transformer_internal.h"
#include "runtime/core/progress.h"

static td_dropout module_dropout(const td_transformer *transformer, int64_t layer,
                                 td_projection projection) {
    const td_dropout_key *key = &transformer->dropout;
    if (key->probability <= 0)
        return (td_dropout){.scale = 1.0f};
    return (td_dropout){
        .key = td_rng_key(key->seed, TD_RNG_DROPOUT),
        .step = key->step,
        .micro_batch = key->micro_batch,
        .module = td_lora_module_number(layer, projection),
        .threshold = (uint32_t)fmin(ldexp(key->probability, 32), 4294967295.0),
        .scale = (float)(1.0 / (1.0 - key->probability)),
        .place = transformer->place,
    };
}

int td_transformer_module(const td_transformer *transformer, int64_t layer,
                          td_projection projection, td_lora_weights *out) {
    if (!transformer->parameters)
        return 0;
    const td_lora_module *module = td_lora_at(transformer->lora, layer, projection);
    if (!module->present)
        return 0;
    *out = (td_lora_weights){
        .a = transformer->parameters + module->a_offset,
        .b = transformer->parameters + module->b_offset,
        .a_act = td_transformer_rounded(transformer, layer, module->a_offset),
        .b_act = td_transformer_rounded(transformer, layer, module->b_offset),
        .rank = module->rank,
        .scaling = module->scaling,
        .dropout = module_dropout(transformer, layer, projection),
    };
    return 1;
}

static td_status project(td_transformer *transformer, int64_t layer, td_projection projection,
                         const void *x, void *y) {
    const td_matrix *weight;
    td_lora_weights lora;
    int adapted = td_transformer_module(transformer, layer, projection, &lora);
    TD_TRY(td_transformer_acquire_weight(transformer, layer, projection, &weight));
    OP(transformer, linear_forward,
       (&(td_linear_forward_args){
           .n_tokens = transformer->n_tokens,
           .x = x,
           .weight = weight,
           .bias = transformer->base->layers[layer].bias[projection],
           .lora = adapted ? &lora : NULL,
           .xa = adapted ? transformer->layers[layer].xa[projection] : NULL,
           .y = y,
       }));
    return td_transformer_release_weight(transformer, weight);
}

static td_status norm(td_transformer *transformer, int64_t rows, int64_t columns,
                      const float *weight, const void *x, void *y, float *rstd) {
    OP(transformer, rmsnorm_forward,
       (&(td_rmsnorm_forward_args){
           .n_rows = rows,
           .n_cols = columns,
           .x = x,
           .weight = weight,
           .eps = (float)transformer->config->rms_eps,
           .y = y,
           .rstd = rstd,
       }));
    return TD_OK;
}

// In some families only the leading elements of a head are rotated.
td_status td_transformer_rotate(td_transformer *transformer, int64_t layer, int64_t n_heads,
                                void *x, int64_t x_stride, int inverse) {
    const td_model_config *config = transformer->config;
    int is_local = config->uses_rope[layer] == TD_LAYER_LOCAL_ROPE;
    OP(transformer, rope,
       (&(td_rope_args){
           .n_tokens = transformer->n_tokens,
           .n_heads = n_heads,
           .head_dim = config->rotary_dim,
           .x = x,
           .x_stride = x_stride,
           .head_stride = config->head_dim,
           .positions = transformer->positions,
           .n_positions = transformer->options.max_positions,
           .cos = is_local ? transformer->local_cos : transformer->cos,
           .sin = is_local ? transformer->local_sin : transformer->sin,
           .inverse = inverse,
       }));
    return TD_OK;
}

// q, k, v of a layer, normalized per head and rotated where the family asks for it.
static td_status project_qkv(td_transformer *transformer, int64_t layer) {
    const td_model_config *config = transformer->config;
    const td_base_layer *weights = &transformer->base->layers[layer];
    td_layer_state *state = &transformer->layers[layer];
    if (config->fused_projections) {
        TD_TRY(project(transformer, layer, TD_PROJ_QKV, state->norm1, state->q));
    } else {
        TD_TRY(project(transformer, layer, TD_PROJ_Q, state->norm1, state->q_raw));
        TD_TRY(project(transformer, layer, TD_PROJ_K, state->norm1, state->k_raw));
        TD_TRY(project(transformer, layer, TD_PROJ_V, state->norm1, state->v));
    }
    if (config->qk_norm) {
        int64_t tokens = transformer->n_tokens;
        TD_TRY(norm(transformer, tokens * config->n_heads, config->head_dim, weights->q_norm,
                    state->q_raw, state->q, state->rstd_q));
        TD_TRY(norm(transformer, tokens * config->n_kv_heads, config->head_dim, weights->k_norm,
                    state->k_raw, state->k, state->rstd_k));
    }
    if (config->uses_rope[layer]) {
        TD_TRY(td_transformer_rotate(transformer, layer, config->n_heads, state->q,
                                     td_q_stride(config), 0));
        TD_TRY(td_transformer_rotate(transformer, layer, config->n_kv_heads, state->k,
                                     td_k_stride(config), 0));
    }
    return TD_OK;
}

// k and v of a token stand side by side, but apart from those of the next.
static td_status append_rows_to_cache(td_transformer *transformer, int64_t layer) {
    td_kv_cache *cache = transformer->cache;
    const td_device_table *device = transformer->context.device->table;
    unsigned char *to = cache->k[layer] + (size_t)cache->length * cache->row_bytes;
    int64_t stride = td_k_stride(transformer->config);
    for (int64_t t = 0; t < transformer->n_tokens; t++, to += cache->row_bytes)
        TD_TRY(device->copy(transformer->context.stream, to,
                            td_act_column(transformer, transformer->layers[layer].k, t * stride),
                            cache->row_bytes));
    return TD_OK;
}

static td_status append_to_cache(td_transformer *transformer, int64_t layer) {
    td_kv_cache *cache = transformer->cache;
    const td_layer_state *state = &transformer->layers[layer];
    const td_device_table *device = transformer->context.device->table;
    if (cache->is_fused)
        return append_rows_to_cache(transformer, layer);
    size_t offset = (size_t)cache->length * cache->row_bytes;
    size_t bytes = (size_t)transformer->n_tokens * cache->row_bytes;
    TD_TRY(device->copy(transformer->context.stream, cache->k[layer] + offset, state->k, bytes));
    return device->copy(transformer->context.stream, cache->v[layer] + offset, state->v, bytes);
}

static td_status attend(td_transformer *transformer, int64_t layer) {
    td_layer_state *state = &transformer->layers[layer];
    td_kv_cache *cache = transformer->cache;
    const int32_t *cu_k = cache ? transformer->cu_k : NULL;
    if (cache)
        TD_TRY(append_to_cache(transformer, layer));
    OP(transformer, attention_forward,
       (&(td_attention_forward_args){
           .shape = td_transformer_attention(transformer, layer, cu_k),
           .q = state->q,
           .k = cache ? (const void *)cache->k[layer] : state->k,
           .v = cache ? (const void *)cache->v[layer] : state->v,
           .out = state->attention,
           .lse = transformer->options.training ? state->lse : NULL,
       }));
    return TD_OK;
}

static td_status add_to(td_transformer *transformer, const void *x, void *y) {
    OP(transformer, add,
       (&(td_add_args){
           .n_elements = transformer->n_tokens * transformer->config->hidden, .x = x, .y = y}));
    return TD_OK;
}

static td_status first_norm(td_transformer *transformer, int64_t layer) {
    td_layer_state *state = &transformer->layers[layer];
    return norm(transformer, transformer->n_tokens, transformer->config->hidden,
                transformer->base->layers[layer].input_norm, state->x_in, state->norm1,
                state->rstd1);
}

// x_mid = x_in + o_proj(attention(norm(x_in))), with a norm on what is added in some families.
static td_status attention_half(td_transformer *transformer, int64_t layer) {
    td_layer_state *state = &transformer->layers[layer];
    TD_TRY(first_norm(transformer, layer));
    TD_TRY(project_qkv(transformer, layer));
    TD_TRY(attend(transformer, layer));
    TD_TRY(project(transformer, layer, TD_PROJ_O, state->attention, state->attention_out));
    if (state->attention_out != state->x_mid)
        TD_TRY(norm(transformer, transformer->n_tokens, transformer->config->hidden,
                    transformer->base->layers[layer].attention_out_norm, state->attention_out,
                    state->x_mid, state->rstd_attention_out));
    return add_to(transformer, state->x_in, state->x_mid);
}

// product = activation(gate(norm(x_mid))) * up(norm(x_mid))
static td_status mlp_half(td_transformer *transformer, int64_t layer) {
    const td_model_config *config = transformer->config;
    td_layer_state *state = &transformer->layers[layer];
    TD_TRY(norm(transformer, transformer->n_tokens, config->hidden,
                transformer->base->layers[layer].mlp_norm, state->x_mid, state->norm2,
                state->rstd2));
    if (config->fused_projections) {
        TD_TRY(project(transformer, layer, TD_PROJ_GATE_UP, state->norm2, state->gate));
    } else {
        TD_TRY(project(transformer, layer, TD_PROJ_GATE, state->norm2, state->gate));
        TD_TRY(project(transformer, layer, TD_PROJ_UP, state->norm2, state->up));
    }
    OP(transformer, glu_forward,
       (&(td_glu_forward_args){
           .activation = config->activation,
           .n_rows = transformer->n_tokens,
           .n_cols = config->intermediate,
           .gate_stride = td_gate_stride(config),
           .up_stride = td_gate_stride(config),
           .gate = state->gate,
           .up = state->up,
           .y = state->product,
       }));
    return TD_OK;
}

// x_out = x_mid + down(product), with a norm on what is added in some families.
static td_status mlp_end(td_transformer *transformer, int64_t layer, void *x_out) {
    td_layer_state *state = &transformer->layers[layer];
    void *down = state->mlp_out ? state->mlp_out : x_out;
    TD_TRY(project(transformer, layer, TD_PROJ_DOWN, state->product, down));
    if (state->mlp_out)
        TD_TRY(norm(transformer, transformer->n_tokens, transformer->config->hidden,
                    transformer->base->layers[layer].mlp_out_norm, down, x_out,
                    state->rstd_mlp_out));
    return add_to(transformer, state->x_mid, x_out);
}

td_status td_transformer_recompute(td_transformer *transformer, int64_t layer) {
    switch (transformer->options.recompute) {
    case TD_RECOMPUTE_BLOCK:
        TD_TRY(attention_half(transformer, layer));
        return mlp_half(transformer, layer);
    case TD_RECOMPUTE_NORMS_MLP:
        TD_TRY(first_norm(transformer, layer));
        return mlp_half(transformer, layer);
    default:
        return TD_OK;
    }
}

// transformers rounds it to the type of the embeddings first.
static float embedding_scale(const td_transformer *transformer) {
    const td_model_config *config = transformer->config;
    if (!config->family->scaled_embedding)
        return 1.0f;
    float scale = (float)sqrt((double)config->hidden);
    return transformer->context.ops->activation == TD_BF16 ? td_bf16_to_f32(td_f32_to_bf16(scale))
                                                           : scale;
}

static td_status queue_blocks(td_transformer *transformer, int64_t first_layer) {
    const td_model_config *config = transformer->config;
    OP(transformer, embedding,
       (&(td_embedding_args){
           .n_tokens = transformer->n_tokens,
           .scale = embedding_scale(transformer),
           .ids = transformer->ids,
           .table = &transformer->base->embedding,
           .y = transformer->layers[0].x_in,
       }));
    for (int64_t layer = first_layer; layer < config->n_layers; layer++) {
        void *x_out =
            layer + 1 < config->n_layers ? transformer->layers[layer + 1].x_in : transformer->x_out;
        td_progress_layer((uint32_t)layer);
        TD_TRY(td_transformer_round_layer(transformer, layer));
        TD_TRY(attention_half(transformer, layer));
        TD_TRY(mlp_half(transformer, layer));
        TD_TRY(mlp_end(transformer, layer, x_out));
    }
    return TD_OK;
}

td_status td_transformer_blocks(td_transformer *transformer) {
    return td_transformer_segment(transformer, 0, queue_blocks, 0);
}
