// The pieces of td_model_config_read(), apart so that each can be fed from memory.
#ifndef TANDEM_MODEL_MODEL_CONFIG_INTERNAL_H
#define TANDEM_MODEL_MODEL_CONFIG_INTERNAL_H

#include <cjson/cJSON.h>

#include "model/model_config.h"

// From the tree of a config.json; `where` is what messages call it.
td_status td_model_config_parse(const char *where, const cJSON *root, td_model_config *out);
// Adds the end-of-sequence ids of a generation_config.json.
td_status td_model_config_add_generation(const char *where, const cJSON *root,
                                         td_model_config *config);

// Rotary embedding. Needs config->family and max_positions.
td_status td_model_config_parse_rope(const char *where, const cJSON *root, td_model_config *config);
// Which projections of a quantized folder are whole. Needs n_layers and fused_projections.
td_status td_model_config_parse_skips(const char *where, const cJSON *root,
                                      td_model_config *config);
// Which layers use RoPE and a window. Needs config->family and n_layers.
td_status td_model_config_parse_layers(const char *where, const cJSON *root,
                                       td_model_config *config);

// The item, or NULL when the key is missing or null.
const cJSON *td_model_config_item(const cJSON *root, const char *key);
// Whether the key is there, be it null.
int td_model_config_has(const cJSON *root, const char *key);

#endif
