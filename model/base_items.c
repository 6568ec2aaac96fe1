#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "model/base_internal.h"

static td_base_item matrix_item(td_base_kind kind, int64_t rows, int64_t cols) {
    return (td_base_item){
        .kind = kind, .n_dims = 2, .shape = {rows, cols}, .n_elements = rows * cols};
}

static td_base_item vector_item(td_base_kind kind, int64_t elements) {
    return (td_base_item){.kind = kind, .n_dims = 1, .shape = {elements}, .n_elements = elements};
}

static const struct {
    const char *model, *head;
} prefixes[TD_NAMES_COUNT] = {
    [TD_NAMES_PLAIN] = {"model.", ""},
    [TD_NAMES_OUTER] = {"language_model.model.", "language_model."},
    [TD_NAMES_INNER] = {"model.language_model.", ""},
};

void td_base_embedding_name(td_tensor_names names, char out[TD_BASE_NAME_CHARS]) {
    snprintf(out, TD_BASE_NAME_CHARS, "%sembed_tokens.weight", prefixes[names].model);
}

int td_base_is_head_name(const char *name) {
    for (int i = 0; i < TD_NAMES_COUNT; i++) {
        size_t chars = strlen(prefixes[i].head);
        if (strncmp(name, prefixes[i].head, chars) == 0 &&
            strcmp(name + chars, "lm_head.weight") == 0)
            return 1;
    }
    return 0;
}

static td_status visit_global(const td_model_config *config, td_base_item item, const char *name,
                              td_base_visitor visit, void *self) {
    int is_head = item.kind == TD_BASE_HEAD;
    snprintf(item.name, sizeof item.name, "%s%s",
             is_head ? prefixes[config->names].head : prefixes[config->names].model, name);
    return visit(self, &item);
}

static td_status visit_in_layer(const td_model_config *config, td_base_item item, int64_t layer,
                                const char *name, const char *ending, td_base_visitor visit,
                                void *self) {
    item.layer = layer;
    snprintf(item.name, sizeof item.name, "%slayers.%d.%s.%s", prefixes[config->names].model,
             (int)layer, name, ending);
    return visit(self, &item);
}

static int has_bias(const td_model_config *config, td_projection projection) {
    switch (projection) {
    case TD_PROJ_Q:
    case TD_PROJ_K:
    case TD_PROJ_V:
    case TD_PROJ_QKV:
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
    TD_TRY(visit_in_layer(config, weight, layer, name, "weight", visit, self));
    if (!has_bias(config, projection))
        return TD_OK;
    return visit_in_layer(config, bias, layer, name, "bias", visit, self);
}

// "post_attention_layernorm" stands before the MLP in most families, and behind attention in those
// that have four norms.
static td_status visit_outer_norms(const td_model_config *config, int64_t layer,
                                   td_base_visitor visit, void *self) {
    static const struct {
        td_base_kind kind;
        const char *name;
    } four[] = {{TD_BASE_ATTENTION_OUT_NORM, "post_attention_layernorm"},
                {TD_BASE_MLP_NORM, "pre_feedforward_layernorm"},
                {TD_BASE_MLP_OUT_NORM, "post_feedforward_layernorm"}};
    if (!config->family->sandwich_norms)
        return visit_in_layer(config, vector_item(TD_BASE_MLP_NORM, config->hidden), layer,
                              "post_attention_layernorm", "weight", visit, self);
    for (int i = 0; i < 3; i++)
        TD_TRY(visit_in_layer(config, vector_item(four[i].kind, config->hidden), layer,
                              four[i].name, "weight", visit, self));
    return TD_OK;
}

static td_status visit_layer(const td_model_config *config, int64_t layer, td_base_visitor visit,
                             void *self) {
    TD_TRY(visit_in_layer(config, vector_item(TD_BASE_INPUT_NORM, config->hidden), layer,
                          "input_layernorm", "weight", visit, self));
    for (int projection = 0; projection < TD_PROJ_COUNT; projection++)
        if (td_projection_exists(config, (td_projection)projection))
            TD_TRY(visit_projection(config, layer, (td_projection)projection, visit, self));
    if (config->qk_norm) {
        TD_TRY(visit_in_layer(config, vector_item(TD_BASE_Q_NORM, config->head_dim), layer,
                              "self_attn.q_norm", "weight", visit, self));
        TD_TRY(visit_in_layer(config, vector_item(TD_BASE_K_NORM, config->head_dim), layer,
                              "self_attn.k_norm", "weight", visit, self));
    }
    return visit_outer_norms(config, layer, visit, self);
}

td_status td_base_visit(const td_model_config *config, td_base_visitor visit, void *self) {
    TD_TRY(visit_global(config, matrix_item(TD_BASE_EMBEDDING, config->vocabulary, config->hidden),
                        "embed_tokens.weight", visit, self));
    for (int64_t layer = 0; layer < config->n_layers; layer++)
        TD_TRY(visit_layer(config, layer, visit, self));
    TD_TRY(visit_global(config, vector_item(TD_BASE_FINAL_NORM, config->hidden), "norm.weight",
                        visit, self));
    if (config->tie_word_embeddings)
        return TD_OK;
    return visit_global(config, matrix_item(TD_BASE_HEAD, config->vocabulary, config->hidden),
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
    case TD_BASE_MLP_NORM:
        return &layer->mlp_norm;
    case TD_BASE_ATTENTION_OUT_NORM:
        return &layer->attention_out_norm;
    case TD_BASE_MLP_OUT_NORM:
        return &layer->mlp_out_norm;
    case TD_BASE_Q_NORM:
        return &layer->q_norm;
    case TD_BASE_K_NORM:
        return &layer->k_norm;
    default:
        return &layer->bias[item->projection];
    }
}

// Appends to `out`; what does not fit is cut off.
__attribute__((format(printf, 4, 5))) static size_t append(char *out, size_t room, size_t used,
                                                           const char *format, ...) {
    if (used >= room)
        return used;
    va_list arguments;
    va_start(arguments, format);
    int chars = vsnprintf(out + used, room - used, format, arguments);
    va_end(arguments);
    return used + (size_t)chars;
}

static size_t append_long_rope(const td_model_config *config, char *out, size_t room, size_t used) {
    const td_rope_config *rope = &config->rope;
    used = append(out, room, used, " attention %a", rope->attention_factor);
    for (int64_t i = 0; i < config->rotary_dim / 2; i++)
        used = append(out, room, used, " %a %a", (double)rope->short_factor[i],
                      (double)rope->long_factor[i]);
    return used;
}

// What most families do not have, so that it adds nothing to their text.
static size_t append_extras(const td_model_config *config, char *out, size_t room, size_t used) {
    const td_rope_config *local = &config->rope_local;
    if (config->activation != TD_GATE_SILU)
        used = append(out, room, used, " activation %d", (int)config->activation);
    if (config->family->soft_caps)
        used = append(out, room, used, " scalar %a caps %a %a", config->attention_scalar,
                      config->attention_softcap, config->final_softcap);
    if (config->rotary_dim != config->head_dim)
        used = append(out, room, used, " rotary %lld", (long long)config->rotary_dim);
    if (config->rope.kind == TD_ROPE_LONG)
        used = append_long_rope(config, out, room, used);
    if (td_model_has_local_rope(config))
        used = append(out, room, used, " local %d %a %a %a %a %lld", (int)local->kind, local->theta,
                      local->factor, local->low_freq_factor, local->high_freq_factor,
                      (long long)local->original_max_positions);
    return used;
}

static size_t append_layers(const td_model_config *config, char *out, size_t room, size_t used) {
    for (int64_t i = 0; i < config->n_layers; i++)
        used =
            append(out, room, used, " %d:%lld", config->uses_rope[i], (long long)config->window[i]);
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
    used = append_layers(config, out, room, used);
    append_extras(config, out, room, used);
}
