#include "model/transformer_internal.h"

#include <stdlib.h>

// Takes a buffer for every layer, or hands out the one that all layers share.
typedef struct td_layout {
    td_transformer *transformer;
    td_layer_state shared;
    int keep_mlp;   // norms, gate, up and product stay from forward to backward
    int keep_block; // the rest of the block stays too
} td_layout;

static void *take(td_transformer *transformer, int64_t columns, size_t item_bytes) {
    size_t count = td_mul_bytes((size_t)transformer->options.max_tokens, (size_t)columns);
    return td_arena_take(&transformer->arena, count, item_bytes);
}

static void *choose(const td_layout *layout, int keep, void *shared, int64_t columns,
                    size_t item_bytes) {
    return keep ? take(layout->transformer, columns, item_bytes) : shared;
}

// Of q, k and v, or of their gradients.
static void take_qkv(const td_layout *layout, int keep, void *shared_q, void *shared_k,
                     void *shared_v, void **q, void **k, void **v) {
    const td_transformer *transformer = layout->transformer;
    const td_model_config *config = transformer->config;
    size_t act = td_act_bytes(transformer);
    *q = choose(layout, keep, shared_q, td_q_stride(config), act);
    if (config->fused_projections) {
        *k = td_act_column(transformer, *q, td_q_columns(config));
        *v = td_act_column(transformer, *k, td_k_columns(config));
        return;
    }
    *k = choose(layout, keep, shared_k, td_k_columns(config), act);
    *v = choose(layout, keep, shared_v, td_k_columns(config), act);
}

static void take_attention_half(const td_layout *layout, td_layer_state *state, int keep,
                                int keep_norm, const td_layer_state *shared) {
    const td_model_config *config = layout->transformer->config;
    size_t act = td_act_bytes(layout->transformer);
    state->norm1 = choose(layout, keep_norm, shared->norm1, config->hidden, act);
    state->rstd1 = choose(layout, keep, shared->rstd1, 1, sizeof(float));
    take_qkv(layout, keep, shared->q, shared->k, shared->v, &state->q, &state->k, &state->v);
    state->q_raw = state->q;
    state->k_raw = state->k;
    if (config->qk_norm) {
        state->q_raw = choose(layout, keep, shared->q_raw, td_q_columns(config), act);
        state->k_raw = choose(layout, keep, shared->k_raw, td_k_columns(config), act);
        state->rstd_q = choose(layout, keep, shared->rstd_q, config->n_heads, sizeof(float));
        state->rstd_k = choose(layout, keep, shared->rstd_k, config->n_kv_heads, sizeof(float));
    }
    state->attention = choose(layout, keep, shared->attention, td_q_columns(config), act);
    state->lse = choose(layout, keep, shared->lse, config->n_heads, sizeof(float));
    state->x_mid = choose(layout, keep, shared->x_mid, config->hidden, act);
    state->attention_out = state->x_mid;
    if (config->family->sandwich_norms) {
        state->attention_out = choose(layout, keep, shared->attention_out, config->hidden, act);
        state->rstd_attention_out =
            choose(layout, keep, shared->rstd_attention_out, 1, sizeof(float));
    }
    state->rstd2 = choose(layout, keep, shared->rstd2, 1, sizeof(float));
}

static void take_mlp_half(const td_layout *layout, td_layer_state *state, int keep,
                          const td_layer_state *shared) {
    const td_model_config *config = layout->transformer->config;
    size_t act = td_act_bytes(layout->transformer);
    state->norm2 = choose(layout, keep, shared->norm2, config->hidden, act);
    state->gate = choose(layout, keep, shared->gate, td_gate_stride(config), act);
    state->up = config->fused_projections
                    ? td_act_column(layout->transformer, state->gate, config->intermediate)
                    : choose(layout, keep, shared->up, config->intermediate, act);
    state->product = choose(layout, keep, shared->product, config->intermediate, act);
}

// Without the down projection's output it would have to run again: always kept for training.
static void take_mlp_out(const td_layout *layout, td_layer_state *state, int keep,
                         const td_layer_state *shared) {
    const td_model_config *config = layout->transformer->config;
    if (!config->family->sandwich_norms)
        return;
    state->mlp_out =
        choose(layout, keep, shared->mlp_out, config->hidden, td_act_bytes(layout->transformer));
    state->rstd_mlp_out = choose(layout, keep, shared->rstd_mlp_out, 1, sizeof(float));
}

// dropout(x) A^T is small, and without it the down projection would have to run again: always kept
// for training.
static void take_low_rank(const td_layout *layout, td_layer_state *state, int64_t layer,
                          const td_layer_state *shared) {
    const td_transformer *transformer = layout->transformer;
    size_t act = td_act_bytes(transformer);
    for (int projection = 0; transformer->lora && projection < TD_PROJ_COUNT; projection++) {
        const td_lora_module *module =
            td_lora_at(transformer->lora, layer, (td_projection)projection);
        if (module->present)
            state->xa[projection] = choose(layout, transformer->options.training,
                                           shared->xa[projection], module->rank, act);
    }
}

static void take_shared(td_layout *layout) {
    const td_layer_state nothing = {0};
    td_transformer *transformer = layout->transformer;
    take_attention_half(layout, &layout->shared, !layout->keep_block, !layout->keep_mlp, &nothing);
    take_mlp_half(layout, &layout->shared, !layout->keep_mlp, &nothing);
    take_mlp_out(layout, &layout->shared, !transformer->options.training, &nothing);
    if (transformer->lora && !transformer->options.training)
        for (int projection = 0; projection < TD_PROJ_COUNT; projection++)
            if (td_projection_exists(transformer->config, (td_projection)projection))
                layout->shared.xa[projection] =
                    take(transformer, transformer->lora->max_rank, td_act_bytes(transformer));
}

static void take_layers(td_layout *layout) {
    td_transformer *transformer = layout->transformer;
    const td_model_config *config = transformer->config;
    size_t act = td_act_bytes(transformer);
    int training = transformer->options.training;
    // A block's input is not needed any more when its output is written.
    void *running = training ? NULL : take(transformer, config->hidden, act);
    take_shared(layout);
    for (int64_t layer = 0; layer < config->n_layers; layer++) {
        td_layer_state *state = &transformer->layers[layer];
        state->x_in = choose(layout, training, running, config->hidden, act);
        take_attention_half(layout, state, layout->keep_block, layout->keep_mlp, &layout->shared);
        take_mlp_half(layout, state, layout->keep_mlp, &layout->shared);
        take_mlp_out(layout, state, training, &layout->shared);
        take_low_rank(layout, state, layer, &layout->shared);
    }
    transformer->x_out = choose(layout, training, running, config->hidden, act);
    td_transformer_take_rounded(transformer);
}

static void take_tables(td_transformer *transformer) {
    size_t table = td_mul_bytes((size_t)transformer->options.max_positions,
                                (size_t)transformer->config->rotary_dim / 2);
    td_arena *arena = &transformer->arena;
    transformer->packed =
        td_arena_take(arena, td_transformer_packed_items(&transformer->options), sizeof(int32_t));
    transformer->cos = td_arena_take(arena, table, sizeof(float));
    transformer->sin = td_arena_take(arena, table, sizeof(float));
    if (!td_model_has_local_rope(transformer->config))
        return;
    transformer->local_cos = td_arena_take(arena, table, sizeof(float));
    transformer->local_sin = td_arena_take(arena, table, sizeof(float));
}

static void take_head(td_transformer *transformer) {
    const td_model_config *config = transformer->config;
    size_t act = td_act_bytes(transformer);
    size_t chunk = (size_t)transformer->options.logits_chunk_tokens;
    transformer->head_in = take(transformer, config->hidden, act);
    transformer->rstd_final = take(transformer, 1, sizeof(float));
    transformer->losses = take(transformer, 1, sizeof(float));
    transformer->head_norm =
        td_arena_take(&transformer->arena, td_mul_bytes(chunk, (size_t)config->hidden), act);
    transformer->logits = td_arena_take(
        &transformer->arena, td_mul_bytes(chunk, (size_t)config->vocabulary), sizeof(float));
}

static void take_gradients(const td_layout *layout) {
    td_transformer *transformer = layout->transformer;
    const td_model_config *config = transformer->config;
    size_t act = td_act_bytes(transformer);
    if (!transformer->options.training)
        return;
    transformer->d_x = take(transformer, config->hidden, act);
    transformer->d_norm = take(transformer, config->hidden, act);
    transformer->d_wide = take(transformer, config->intermediate, act);
    transformer->d_attention = take(transformer, td_q_columns(config), act);
    take_qkv(layout, 1, NULL, NULL, NULL, &transformer->d_q, &transformer->d_k, &transformer->d_v);
    transformer->d_module = td_arena_take(
        &transformer->arena, (size_t)transformer->lora->max_module_parameters, sizeof(float));
}

static td_workspace_query workspace_query(const td_transformer *transformer) {
    const td_model_config *config = transformer->config;
    td_workspace_query query = {
        .max_tokens = transformer->options.max_tokens,
        .max_head_rows = config->vocabulary,
        .max_head_tokens = transformer->options.logits_chunk_tokens,
        .max_rank = transformer->lora ? transformer->lora->max_rank : 0,
        .n_heads = config->n_heads,
        .n_kv_heads = config->n_kv_heads,
        .head_dim = config->head_dim,
    };
    for (int projection = 0; projection < TD_PROJ_COUNT; projection++) {
        if (!td_projection_exists(config, (td_projection)projection))
            continue;
        int64_t out = td_projection_out(config, (td_projection)projection);
        int64_t in = td_projection_in(config, (td_projection)projection);
        query.max_out = out > query.max_out ? out : query.max_out;
        query.max_in = in > query.max_in ? in : query.max_in;
        if (out * in > query.max_weight_elements)
            query.max_weight_elements = out * in;
    }
    return query;
}

td_status td_transformer_layout(td_transformer *transformer, td_transformer_sizes *sizes) {
    td_recompute policy = transformer->options.recompute;
    int training = transformer->options.training;
    td_layout layout = {
        .transformer = transformer,
        .keep_mlp = training && policy == TD_RECOMPUTE_NONE,
        .keep_block = training && policy != TD_RECOMPUTE_BLOCK,
    };
    td_transformer_sizes parts = {0};
    const td_arena *arena = &transformer->arena;
    take_tables(transformer);
    parts.tables_bytes = arena->used_bytes;
    take_layers(&layout);
    parts.activations_bytes = arena->used_bytes - parts.tables_bytes;
    take_head(transformer);
    parts.logits_bytes = arena->used_bytes - parts.tables_bytes - parts.activations_bytes;
    size_t before = arena->used_bytes;
    take_gradients(&layout);
    parts.gradients_bytes = arena->used_bytes - before;
    td_workspace_query query = workspace_query(transformer);
    parts.workspace_bytes = transformer->context.ops->workspace_bytes(&query);
    transformer->context.workspace_bytes = parts.workspace_bytes;
    transformer->context.workspace = td_arena_take(&transformer->arena, parts.workspace_bytes, 1);
    parts.total_bytes = arena->used_bytes;
    parts.ahead_bytes = td_transformer_ahead_bytes(transformer);
    parts.host_bytes = td_transformer_host_bytes(transformer);
    if (sizes)
        *sizes = parts;
    return arena->used_bytes > (size_t)INT64_MAX
               ? td_fail(TD_ERR_MEMORY, "activations of %lld tokens exceed the address space",
                         (long long)transformer->options.max_tokens)
               : TD_OK;
}
