#include <stdio.h>

#include "model/base_internal.h"

static td_base_item matrix_item(td_base_kind kind, int64_t rows, int64_t cols) {
    return (td_base_item){
        .kind = kind, .n_dims = 2, .shape = {rows, cols}, .n_elements = rows * cols};
}

static td_base_item vector_item(td_base_kind kind, int64_t elements) {
    return (td_base_item){.kind = kind, .n_dims = 1, .shape = {elements}, .n_elements = elements};
}

static td_status visit_global(td_base_item item, const char *name, td_base_visitor visit,
                              void *self) {
    snprintf(item.name, sizeof item.name, "%s", name);
    return visit(self, &item);
}

static td_status visit_in_layer(td_base_item item, int64_t layer, const char *name,
                                const char *ending, td_base_visitor visit, void *self) {
    item.layer = layer;
    snprintf(item.name, sizeof item.name, "model.layers.%d.%s.%s", (int)layer, name, ending);
    return visit(self, &item);
}

static int has_bias(const td_model_config *config, td_projection projection) {
    switch (projection) {
    case TD_PROJ_Q:
    case TD_PROJ_K:
    case TD_PROJ_V:
        return config->qkv_bias;
    case TD_PROJ_O:
        return config->o_bias;
    default:
        return config->mlp_bias;
    }
}

static td_status visit_projection(const td_model_config *config, int64_t layer,
                                  td_projection projection, td_base_visitor visit, void *self) {
    int64_t out = td_projection_out(config, projection);
    const char *name = td_projection_name(projection);
    td_base_item weight = matrix_item(TD_BASE_LINEAR, out, td_projection_in(config, projection));
    td_base_item bias = vector_item(TD_BASE_BIAS, out);
    weight.projection = bias.projection = projection;
    TD_TRY(visit_in_layer(weight, layer, name, "weight", visit, self));
    if (!has_bias(config, projection))
        return TD_OK;
    return visit_in_layer(bias, layer, name, "bias", visit, self);
}

static td_status visit_layer(const td_model_config *config, int64_t layer, td_base_visitor visit,
                             void *self) {
    TD_TRY(visit_in_layer(vector_item(TD_BASE_INPUT_NORM, config->hidden), layer, "input_layernorm",
                          "weight", visit, self));
    for (int projection = 0; projection < TD_PROJ_COUNT; projection++)
        TD_TRY(visit_projection(config, layer, (td_projection)projection, visit, self));
    if (config->qk_norm) {
        TD_TRY(visit_in_layer(vector_item(TD_BASE_Q_NORM, config->head_dim), layer,
                              "self_attn.q_norm", "weight", visit, self));
        TD_TRY(visit_in_layer(vector_item(TD_BASE_K_NORM, config->head_dim), layer,
                              "self_attn.k_norm", "weight", visit, self));
    }
    return visit_in_layer(vector_item(TD_BASE_POST_ATTENTION_NORM, config->hidden), layer,
                          "post_attention_layernorm", "weight", visit, self);
}

td_status td_base_visit(const td_model_config *config, td_base_visitor visit, void *self) {
    TD_TRY(visit_global(matrix_item(TD_BASE_EMBEDDING, config->vocabulary, config->hidden),
                        "model.embed_tokens.weight", visit, self));
    for (int64_t layer = 0; layer < config->n_layers; layer++)
        TD_TRY(visit_layer(config, layer, visit, self));
    TD_TRY(visit_global(vector_item(TD_BASE_FINAL_NORM, config->hidden), "model.norm.weight", visit,
                        self));
    if (config->tie_word_embeddings)
        return TD_OK;
    return visit_global(matrix_item(TD_BASE_HEAD, config->vocabulary, config->hidden),
                        "lm_head.weight", visit, self);
}

td_matrix *td_base_matrix(td_base *base, const td_base_item *item) {
    switch (item->kind) {
    case TD_BASE_EMBEDDING:
        return &base->embedding;
    case TD_BASE_HEAD:
        return &base->head;
    default:
        return &base->layers[item->layer].linear[item->projection];
    }
}

const float **td_base_vector(td_base *base, const td_base_item *item) {
    if (item->kind == TD_BASE_FINAL_NORM)
        return &base->final_norm;
    td_base_layer *layer = &base->layers[item->layer];
    switch (item->kind) {
    case TD_BASE_INPUT_NORM:
        return &layer->input_norm;
    case TD_BASE_POST_ATTENTION_NORM:
        return &layer->post_attention_norm;
    case TD_BASE_Q_NORM:
        return &layer->q_norm;
    case TD_BASE_K_NORM:
        return &layer->k_norm;
    default:
        return &layer->bias[item->projection];
    }
}

// Appends to `out`; what does not fit is cut off.
static size_t append_layers(const td_model_config *config, char *out, size_t room, size_t used) {
    for (int64_t i = 0; i < config->n_layers && used < room; i++)
        used += (size_t)snprintf(out + used, room - used, " %d:%lld", config->uses_rope[i],
                                 (long long)config->window[i]);
    return used;
}

void td_base_describe(const td_model_config *config, char *out, size_t room) {
    const td_rope_config *rope = &config->rope;
    size_t used = (size_t)snprintf(
        out, room,
        "%s vocabulary %lld hidden %lld intermediate %lld layers %lld heads %lld %lld %lld eps %a "
        "tie %d bias %d %d %d norm %d rope %d %a %a %a %a %lld",
        config->family->name, (long long)config->vocabulary, (long long)config->hidden,
        (long long)config->intermediate, (long long)config->n_layers, (long long)config->n_heads,
        (long long)config->n_kv_heads, (long long)config->head_dim, config->rms_eps,
        config->tie_word_embeddings, config->qkv_bias, config->o_bias, config->mlp_bias,
        config->qk_norm, (int)rope->kind, rope->theta, rope->factor, rope->low_freq_factor,
        rope->high_freq_factor, (long long)rope->original_max_positions);
    append_layers(config, out, room, used);
}
