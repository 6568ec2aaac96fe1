#include "model/model_config.h"

#define SILU_MLP .activation_key = "hidden_act", .activation_default = "silu"
#define GELU_MLP .activation_key = "hidden_activation", .activation_default = "gelu_pytorch_tanh"
// What Gemma 2 and 3 have in common.
#define GEMMA                                                                                      \
    GELU_MLP, .qkv_bias = -1, .head_dim_default = 256, .sandwich_norms = 1, .norm_adds_one = 1,    \
              .scaled_embedding = 1, .soft_caps = 1, .rms_eps_default = 1e-6,                      \
              .kv_heads_default = 4, .sliding_window_default = 4096,                               \
              .tie_word_embeddings_default = 1, .bos_default = 2, .eos_default = 1
#define GEMMA3                                                                                     \
    GEMMA, .qk_norm = 1, .sliding_window = TD_WINDOW_BY_PATTERN, .rope_theta_default = 1000000.0,  \
           .local_rope_theta_default = 10000.0, .max_positions_default = 131072,                   \
           .vocabulary_default = 262208, .heads_default = 8

// Defaults are those of the configuration classes of transformers (models/*/configuration_*.py).
const td_family td_families[] = {
    // Llama 2 and 3, TinyLlama, SmolLM2
    {.name = "llama",
     .architecture = "LlamaForCausalLM",
     .model_type = "llama",
     SILU_MLP,
     .rms_eps_default = 1e-6,
     .qkv_bias = -1,
     .mlp_bias = 1,
     .rope_theta_default = 10000.0,
     .max_positions_default = 2048,
     .bos_default = 1,
     .eos_default = 2},
    {.name = "mistral",
     .architecture = "MistralForCausalLM",
     .model_type = "mistral",
     SILU_MLP,
     .rms_eps_default = 1e-6,
     .sliding_window = TD_WINDOW_EVERY_LAYER,
     .rope_theta_default = 10000.0,
     .kv_heads_default = 8,
     .max_positions_default = 131072,
     .sliding_window_default = 4096,
     .bos_default = 1,
     .eos_default = 2},
    // Qwen 2 and 2.5
    {.name = "qwen2",
     .architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     SILU_MLP,
     .rms_eps_default = 1e-6,
     .qkv_bias = 1,
     .sliding_window = TD_WINDOW_BY_LAYER,
     .rope_theta_default = 10000.0,
     .kv_heads_default = 32,
     .max_positions_default = 32768,
     .sliding_window_default = 4096,
     .bos_default = -1,
     .eos_default = -1},
    {.name = "qwen3",
     .architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     SILU_MLP,
     .rms_eps_default = 1e-6,
     .qkv_bias = -1,
     .qk_norm = 1,
     .head_dim_default = 128,
     .sliding_window = TD_WINDOW_BY_LAYER,
     .rope_theta_default = 10000.0,
     .kv_heads_default = 32,
     .max_positions_default = 32768,
     .sliding_window_default = 4096,
     .bos_default = -1,
     .eos_default = -1},
    {.name = "smollm3",
     .architecture = "SmolLM3ForCausalLM",
     .model_type = "smollm3",
     SILU_MLP,
     .rms_eps_default = 1e-6,
     .qkv_bias = -1,
     .mlp_bias = 1,
     .nope_layers = 1,
     .sliding_window = TD_WINDOW_BY_NOPE_LAYER,
     .rope_theta_default = 2000000.0,
     .kv_heads_default = 4,
     .max_positions_default = 32768,
     .tie_word_embeddings_default = 1,
     .bos_default = 128000,
     .eos_default = 128001},
    // Phi-3, Phi-3.5, Phi-4 and Phi-4-mini
    {.name = "phi3",
     .architecture = "Phi3ForCausalLM",
     .model_type = "phi3",
     SILU_MLP,
     .rms_eps_default = 1e-5,
     .fused_projections = 1,
     .longrope = 1,
     .sliding_window = TD_WINDOW_EVERY_LAYER,
     .rope_theta_default = 10000.0,
     .max_positions_default = 4096,
     .bos_default = 1,
     .eos_default = 32000},
    {.name = "gemma2",
     .architecture = "Gemma2ForCausalLM",
     .model_type = "gemma2",
     GEMMA,
     .sliding_window = TD_WINDOW_ALTERNATING,
     .rope_theta_default = 10000.0,
     .attention_softcap_default = 50.0,
     .final_softcap_default = 30.0,
     .max_positions_default = 8192},
    {.name = "gemma3", .architecture = "Gemma3ForCausalLM", .model_type = "gemma3_text", GEMMA3},
    {.name = "gemma3_multimodal",
     .architecture = "Gemma3ForConditionalGeneration",
     .model_type = "gemma3",
     .text_model_type = "gemma3_text",
     GEMMA3},
};

const int td_families_count = sizeof td_families / sizeof td_families[0];
