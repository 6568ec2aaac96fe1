// The shape and switches of a model, read from config.json through a table of families.
//
// A family (one row of td_families) says which architecture names it answers to and what differs
// from the plain Llama block. Everything else is read from config.json with the defaults that
// transformers uses.
#ifndef TANDEM_MODEL_MODEL_CONFIG_H
#define TANDEM_MODEL_MODEL_CONFIG_H

#include <stdint.h>

#include "kernels/ops.h"
#include "runtime/core/status.h"

enum { TD_MAX_LAYERS = 512, TD_MAX_EOS = 8, TD_MAX_ROPE_PAIRS = 256 };

// Which layers "sliding_window" of config.json applies to.
typedef enum td_window_rule {
    TD_WINDOW_NEVER,
    TD_WINDOW_EVERY_LAYER,   // whenever "sliding_window" is a number
    TD_WINDOW_BY_LAYER,      // with use_sliding_window: layer_types, or the layers from
                             // max_window_layers on
    TD_WINDOW_BY_NOPE_LAYER, // with use_sliding_window: layer_types, or the layers without RoPE
    TD_WINDOW_ALTERNATING,   // layer_types, or every second layer from the first on
    TD_WINDOW_BY_PATTERN,    // layer_types, or all but every sliding_window_pattern-th layer
} td_window_rule;

typedef struct td_family {
    const char *name;         // "qwen3"
    const char *architecture; // "Qwen3ForCausalLM", as in config.json "architectures"
    const char *model_type;   // "qwen3"
    // Of "text_config": of a model with more parts than the text's, only that one is used.
    const char *text_model_type; // or NULL
    int qkv_bias; // fixed by the family; -1: config.json "attention_bias" decides, for q, k, v and
                  // o
    int mlp_bias; // 1: config.json "mlp_bias" is honoured
    int qk_norm;  // RMSNorm per head on q and k before RoPE
    int head_dim_default;       // 0: hidden / n_heads
    int nope_layers;            // honours "no_rope_layers"
    int sliding_window;         // td_window_rule
    int fused_projections;      // qkv_proj and gate_up_proj
    int sandwich_norms;         // norms behind attention and MLP too, before the residual is added
    int norm_adds_one;          // the files hold what norm weights exceed 1 by
    int scaled_embedding;       // embeddings times sqrt(hidden)
    int soft_caps;              // honours "attn_logit_softcapping", "final_logit_softcapping" and
                                // "query_pre_attn_scalar"
    int longrope;               // RoPE may be of type longrope, and partial
    const char *activation_key; // of config.json
    const char *activation_default;
    double rope_theta_default;
    double local_rope_theta_default; // 0: all layers have the same RoPE
    double rms_eps_default;
    double attention_softcap_default, final_softcap_default; // 0: none
    // What transformers' configuration class assumes for keys that config.json leaves out.
    int vocabulary_default, heads_default; // 0: must be given
    int kv_heads_default;                  // 0: n_heads
    int max_positions_default;
    int sliding_window_default; // 0: none
    int tie_word_embeddings_default;
    int bos_default, eos_default; // -1: none
} td_family;

extern const td_family td_families[];
extern const int td_families_count;

typedef enum td_rope_kind {
    TD_ROPE_DEFAULT,
    TD_ROPE_LINEAR, // positions divided by factor
    TD_ROPE_LLAMA3,
    TD_ROPE_LONG, // a factor for each frequency, of two sets; and cos and sin scaled
    TD_ROPE_KINDS,
} td_rope_kind;

const char *td_rope_kind_name(td_rope_kind kind);

typedef struct td_rope_config {
    td_rope_kind kind;
    double theta;
    double factor;
    double low_freq_factor, high_freq_factor;
    int64_t original_max_positions;
    // TD_ROPE_LONG: by pair, for runs within original_max_positions and beyond.
    float short_factor[TD_MAX_ROPE_PAIRS], long_factor[TD_MAX_ROPE_PAIRS];
    double attention_factor;
} td_rope_config;

// What a layer does to q and k.
typedef enum td_layer_rope {
    TD_LAYER_NO_ROPE,
    TD_LAYER_ROPE,
    TD_LAYER_LOCAL_ROPE, // with rope_local instead of rope
} td_layer_rope;

// How the folder holds the linear layers of the blocks.
typedef enum td_stored_format {
    TD_STORED_WHOLE,      // F32, F16 or BF16
    TD_STORED_NF4,        // bitsandbytes NF4
    TD_STORED_NF4_NESTED, // with double quantization
} td_stored_format;

// What the names of the text model's tensors begin with.
typedef enum td_tensor_names {
    TD_NAMES_PLAIN, // "model.layers", "lm_head"
    TD_NAMES_OUTER, // "language_model.model.layers", "language_model.lm_head"
    TD_NAMES_INNER, // "model.language_model.layers", "lm_head"
    TD_NAMES_COUNT,
} td_tensor_names;

typedef struct td_model_config {
    const td_family *family;
    td_tensor_names names; // of a folder's tensors, which the files tell and not config.json
    td_stored_format stored;
    // Per layer: bit p is set when the folder holds td_projection p whole though `stored` is NF4.
    uint16_t whole_projections[TD_MAX_LAYERS];
    int64_t vocabulary;
    int64_t hidden;
    int64_t intermediate;
    int64_t n_layers;
    int64_t n_heads;
    int64_t n_kv_heads;
    int64_t head_dim;
    int64_t max_positions;
    double rms_eps;
    int tie_word_embeddings;
    int qkv_bias, o_bias, mlp_bias;
    int qk_norm;
    int fused_projections;
    td_gate activation;
    double attention_scalar;  // scores are divided by its square root
    double attention_softcap; // 0: none
    double final_softcap;     // of the logits; 0: none
    int64_t rotary_dim;       // leading elements of a head that RoPE rotates
    td_rope_config rope, rope_local;
    unsigned char uses_rope[TD_MAX_LAYERS]; // per layer, td_layer_rope
    int64_t window[TD_MAX_LAYERS]; // per layer; keys a query sees including its own, 0: all
    int32_t bos_id;                // -1: none
    int32_t eos_ids[TD_MAX_EOS];
    int n_eos;
} td_model_config;

// Reads FOLDER/config.json (and generation_config.json for further end-of-sequence ids).
// TD_ERR_DATA names the key and what is accepted: unknown architecture (lists the known ones),
// extents that do not divide, quantization_config other than bitsandbytes NF4, activations other
// than silu and tanh GELU, rope types other than those above.
td_status td_model_config_read(const char *folder, td_model_config *out);

static inline int td_model_is_multimodal(const td_model_config *config) {
    return config->family->text_model_type != NULL;
}

static inline int td_model_has_local_rope(const td_model_config *config) {
    return config->family->local_rope_theta_default > 0;
}

// fp32 (n_positions, rotary_dim / 2), row-major. inv_freq in fp32 as transformers computes it.
// TD_ROPE_LONG: n_positions, the most that a run may reach, decides on the set of factors, where
// transformers looks at each batch: what a sequence gives does not depend on its neighbours, and
// keys in a cache stay right when it grows beyond original_max_positions.
void td_rope_fill_tables(const td_rope_config *rope, int64_t rotary_dim, int64_t n_positions,
                         float *cos, float *sin);

#endif
