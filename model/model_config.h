// The shape and switches of a model, read from config.json through a table of families.
//
// A family (one row of td_families) says which architecture names it answers to and what differs
// from the plain Llama block. Everything else is read from config.json with the defaults that
// transformers uses.
#ifndef TANDEM_MODEL_MODEL_CONFIG_H
#define TANDEM_MODEL_MODEL_CONFIG_H

#include <stdint.h>

#include "runtime/core/status.h"

enum { TD_MAX_LAYERS = 512, TD_MAX_EOS = 8 };

// Which layers "sliding_window" of config.json applies to.
typedef enum td_window_rule {
    TD_WINDOW_NEVER,
    TD_WINDOW_EVERY_LAYER,   // whenever "sliding_window" is a number
    TD_WINDOW_BY_LAYER,      // with use_sliding_window: layer_types, or the layers from
                             // max_window_layers on
    TD_WINDOW_BY_NOPE_LAYER, // with use_sliding_window: layer_types, or the layers without RoPE
} td_window_rule;

typedef struct td_family {
    const char *name;         // "qwen3"
    const char *architecture; // "Qwen3ForCausalLM", as in config.json "architectures"
    const char *model_type;   // "qwen3"
    int qkv_bias; // fixed by the family; -1: config.json "attention_bias" decides, for q, k, v and
                  // o
    int mlp_bias; // 1: config.json "mlp_bias" is honoured
    int qk_norm;  // RMSNorm per head on q and k before RoPE
    int head_dim_default; // 0: hidden / n_heads
    int nope_layers;      // honours "no_rope_layers"
    int sliding_window;   // td_window_rule
    double rope_theta_default;
    // What transformers' configuration class assumes for keys that config.json leaves out.
    int kv_heads_default; // 0: n_heads
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
} td_rope_kind;

typedef struct td_rope_config {
    td_rope_kind kind;
    double theta;
    double factor;
    double low_freq_factor, high_freq_factor;
    int64_t original_max_positions;
} td_rope_config;

// How the folder holds the linear layers of the blocks.
typedef enum td_stored_format {
    TD_STORED_WHOLE,      // F32, F16 or BF16
    TD_STORED_NF4,        // bitsandbytes NF4
    TD_STORED_NF4_NESTED, // with double quantization
} td_stored_format;

typedef struct td_model_config {
    const td_family *family;
    td_stored_format stored;
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
    td_rope_config rope;
    unsigned char uses_rope[TD_MAX_LAYERS]; // per layer
    int64_t window[TD_MAX_LAYERS]; // per layer; keys a query sees including its own, 0: all
    int32_t bos_id;                // -1: none
    int32_t eos_ids[TD_MAX_EOS];
    int n_eos;
} td_model_config;

// Reads FOLDER/config.json (and generation_config.json for further end-of-sequence ids).
// TD_ERR_DATA names the key and what is accepted: unknown architecture (lists the known ones),
// extents that do not divide, quantization_config other than bitsandbytes NF4, hidden_act other
// than silu, rope types other than the three above.
td_status td_model_config_read(const char *folder, td_model_config *out);

// fp32 (n_positions, head_dim / 2), row-major. inv_freq in fp32 as transformers computes it.
void td_rope_fill_tables(const td_model_config *config, int64_t n_positions, float *cos,
                         float *sin);

#endif
