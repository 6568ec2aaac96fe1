// Which linear layers carry LoRA, and where their A and B lie in the flat parameter vector.
//
// Canonical order: layer, then projection in the order of td_projection, A before B. Selection and
// patterns follow PEFT (peft/tuners/tuners_utils.py: check_target_module_exists;
// peft/utils/other.py: get_pattern_key).
#ifndef TANDEM_MODEL_LORA_H
#define TANDEM_MODEL_LORA_H

#include <cjson/cJSON.h>

#include "model/model_config.h"
#include "runtime/core/config.h"
#include "runtime/core/hash.h"

// The linear layers of a block. A family has either the separate or the fused ones.
typedef enum td_projection {
    TD_PROJ_Q,
    TD_PROJ_K,
    TD_PROJ_V,
    TD_PROJ_QKV, // rows of q, then k, then v
    TD_PROJ_O,
    TD_PROJ_GATE,
    TD_PROJ_UP,
    TD_PROJ_GATE_UP, // rows of gate, then up
    TD_PROJ_DOWN,
    TD_PROJ_COUNT,
} td_projection;

// What transformers' names of the blocks' modules begin with: "model.", or "model.language_model."
// where the text model is one part of several.
const char *td_model_module_prefix(const td_model_config *config);
// "self_attn.q_proj", ...
const char *td_projection_name(td_projection projection);
// Whether blocks of this model have it.
int td_projection_exists(const td_model_config *config, td_projection projection);
// Whether the folder holds it as NF4.
int td_projection_is_stored_nf4(const td_model_config *config, int64_t layer,
                                td_projection projection);
// Rows (out) and columns (in) of a projection's weight, of one that exists.
int64_t td_projection_out(const td_model_config *config, td_projection projection);
int64_t td_projection_in(const td_model_config *config, td_projection projection);

typedef struct td_lora_module {
    int present;
    int64_t in, out; // 0 when the model has no such projection
    int64_t rank;
    double alpha;
    float scaling;    // alpha / rank, or alpha / sqrt(rank)
    int64_t a_offset; // of A (rank, in) in the flat vector
    int64_t b_offset; // of B (out, rank)
} td_lora_module;

typedef struct td_lora_options {
    int64_t rank;
    double alpha;
    double dropout;
    int use_rslora;
    const td_string_list *target_modules;
    int target_modules_is_pattern; // one string: "all-linear" or a regular expression that must
                                   // match fully
    const cJSON *rank_pattern;     // or NULL
    const cJSON *alpha_pattern;    // or NULL
} td_lora_options;

typedef struct td_lora {
    const char *module_prefix; // "model.", which names of modules begin with
    int64_t n_layers;
    int64_t n_modules;    // that are present
    int64_t n_parameters; // P
    int64_t max_rank;
    int64_t max_module_parameters; // rank * (in + out) of the largest
    double dropout;
    int use_rslora;
    td_lora_module *modules; // (n_layers * TD_PROJ_COUNT)
} td_lora;

// TD_ERR_USAGE when nothing matches (names the modules that exist), when one listed name matches
// nothing, or on a bad pattern.
td_status td_lora_init(td_lora *lora, const td_model_config *config,
                       const td_lora_options *options);
void td_lora_fini(td_lora *lora);
static inline const td_lora_module *td_lora_at(const td_lora *lora, int64_t layer,
                                               td_projection projection) {
    return &lora->modules[layer * TD_PROJ_COUNT + projection];
}
// What a module's random numbers (initial values, dropout) are keyed by, beside the seed.
uint32_t td_lora_module_number(int64_t layer, td_projection projection);
// First element of a layer's parameters; n_parameters for layer == n_layers. Layers without modules
// have an empty range.
int64_t td_lora_layer_begin(const td_lora *lora, int64_t layer);

// A ~ U(-1/sqrt(in), 1/sqrt(in)) (kaiming_uniform with a = sqrt(5)), keyed by (seed, module,
// element); B = 0.
void td_lora_initialize(const td_lora *lora, uint64_t seed, float *parameters);
// Over modules, ranks, scalings and offsets.
td_hash td_lora_fingerprint(const td_lora *lora);

#endif
