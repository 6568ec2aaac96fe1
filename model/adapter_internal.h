// The pieces of reading an adapter folder, apart so that each can be fed from memory.
#ifndef TANDEM_MODEL_ADAPTER_INTERNAL_H
#define TANDEM_MODEL_ADAPTER_INTERNAL_H

#include "model/adapter.h"

// From the tree of an adapter_config.json. fini also after failure.
td_status td_adapter_info_parse(const char *where, const cJSON *root, td_adapter_info *out);

// The text of adapter_config.json; the caller frees.
td_status td_adapter_config_print(const td_lora *lora, const td_lora_options *options,
                                  const char *base_name, char **out);

#endif
