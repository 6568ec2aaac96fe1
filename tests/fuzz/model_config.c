// libFuzzer target: config.json and generation_config.json, with a zero byte between them. Whatever
// they say, they are refused or describe a model whose sizes fit each other and whose rotary
// embedding is made of numbers.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/lora.h"
#include "model/model_config.h"
#include "runtime/core/log.h"
#include "tests/fuzz/support/fuzz.h"

enum { POSITIONS = 3, MAX_LORA_LAYERS = 8 };

static void check_sizes(const td_model_config *config) {
    fuzz_require(config->family != NULL, "there is a family");
    fuzz_require(config->vocabulary > 0 && config->hidden > 0 && config->intermediate > 0 &&
                     config->n_heads > 0 && config->n_kv_heads > 0 && config->max_positions > 0,
                 "extents are positive");
    fuzz_require(config->n_layers > 0 && config->n_layers <= TD_MAX_LAYERS, "layers are bounded");
    fuzz_require(config->n_heads % config->n_kv_heads == 0, "heads share key heads evenly");
    fuzz_require(
        config->rotary_dim > 0 && config->rotary_dim % 2 == 0 &&
            config->rotary_dim <= config->head_dim &&
            (config->rope.kind != TD_ROPE_LONG || config->rotary_dim <= 2 * TD_MAX_ROPE_PAIRS),
        "heads turn in pairs");
    fuzz_require(config->attention_scalar > 0 && config->attention_softcap >= 0 &&
                     config->final_softcap >= 0,
                 "scores are scaled by numbers");
    fuzz_require(config->rms_eps > 0 && config->rms_eps < 1, "epsilon is small");
    for (int64_t i = 0; i < config->n_layers; i++)
        fuzz_require(config->window[i] >= 0 && config->uses_rope[i] <= TD_LAYER_LOCAL_ROPE,
                     "layers are described");
}

static void check_ids(const td_model_config *config) {
    fuzz_require(config->bos_id >= -1 && config->bos_id < config->vocabulary, "bos exists");
    fuzz_require(config->n_eos >= 0 && config->n_eos <= TD_MAX_EOS, "eos ids are bounded");
    for (int i = 0; i < config->n_eos; i++)
        fuzz_require(config->eos_ids[i] >= 0 && config->eos_ids[i] < config->vocabulary,
                     "an eos id exists");
}

static void check_rope(const td_model_config *config) {
    static float cos[POSITIONS * TD_MAX_ROPE_PAIRS], sin[POSITIONS * TD_MAX_ROPE_PAIRS];
    const td_rope_config *ropes[] = {&config->rope, &config->rope_local};
    for (int kind = 0; kind <= td_model_has_local_rope(config); kind++) {
        if (config->rotary_dim > 2 * TD_MAX_ROPE_PAIRS)
            return;
        td_rope_fill_tables(ropes[kind], config->rotary_dim, POSITIONS, cos, sin);
        for (int64_t i = 0; i < POSITIONS * (config->rotary_dim / 2); i++)
            fuzz_require(isfinite(cos[i]) && isfinite(sin[i]), "the rotary embedding is finite");
    }
}

static void check_lora(const td_model_config *config) {
    td_string_list targets = {.items = (char *[]){(char *)(uintptr_t) "all-linear"}, .count = 1};
    td_lora_options options = {
        .rank = 2, .alpha = 2, .target_modules = &targets, .target_modules_is_pattern = 1};
    td_lora lora = {0};
    if (config->n_layers > MAX_LORA_LAYERS)
        return;
    fuzz_require(td_lora_init(&lora, config, &options) == TD_OK, "LoRA fits the model");
    fuzz_require(lora.n_parameters > 0 && lora.n_modules > 0, "and has parameters");
    td_lora_fini(&lora);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_parts parts;
    td_model_config config = {0};
    td_log_init(TD_LOG_ERROR, 0, 1);
    fuzz_parts_init(&parts, 2, data, size);
    const char *generation = parts.text[1] ? parts.text[1] : "{}";
    fuzz_write("config.json", parts.text[0], parts.bytes[0]);
    fuzz_write("generation_config.json", generation, parts.text[1] ? parts.bytes[1] : 2);
    if (td_model_config_read(fuzz_folder(), &config) == TD_OK) {
        check_sizes(&config);
        check_ids(&config);
        check_rope(&config);
        check_lora(&config);
    } else {
        fuzz_require(td_error_message()[0], "a refusal says why");
    }
    td_error_clear();
    fuzz_parts_fini(&parts);
    return 0;
}
