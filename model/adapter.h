// PEFT adapter folders: adapter_config.json and adapter_model.safetensors.
//
// Tensors: base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight (rank, in) and
// lora_B.weight (out, rank), fp32.
#ifndef TANDEM_MODEL_ADAPTER_H
#define TANDEM_MODEL_ADAPTER_H

#include "model/lora.h"

typedef struct td_adapter_info {
    td_string_list target_modules;
    int target_modules_is_pattern;
    int64_t rank;
    double alpha;
    double dropout;
    int use_rslora;
    cJSON *rank_pattern, *alpha_pattern;
} td_adapter_info;

// Reads adapter_config.json. TD_ERR_DATA for another peft_type, DoRA, bias other than "none",
// modules_to_save and other features that are not supported, each by name. fini also after failure.
td_status td_adapter_info_read(const char *folder, td_adapter_info *out);
void td_adapter_info_fini(td_adapter_info *info);
td_lora_options td_adapter_lora_options(const td_adapter_info *info); // points into info

// Reads adapter_model.safetensors into the flat vector (n_parameters fp32). Every tensor of the
// layout must be there with its shape, and no other: TD_ERR_DATA names the first that is missing,
// extra, or of another shape (adapter for another base). A folder whose adapter_config.json does
// not select the layout's modules is refused likewise.
td_status td_adapter_read(const char *folder, const td_lora *lora, float *parameters);

// Writes both files. `base_name` becomes base_model_name_or_path. target_modules is written as a
// sorted list of projection names when that is what was chosen, as PEFT would save it.
// Byte-identical for identical parameters.
td_status td_adapter_write(const char *folder, const td_lora *lora, const td_lora_options *options,
                           const char *base_name, const float *parameters);

#endif
