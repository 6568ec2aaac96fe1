// Which modules a set of options selects, by PEFT's rules.
#ifndef TANDEM_MODEL_LORA_INTERNAL_H
#define TANDEM_MODEL_LORA_INTERNAL_H

#include "model/lora.h"

enum { TD_MODULE_NAME_CHARS = 64, TD_LORA_MAX_RANK = 1 << 16 };

// "model.layers.N.self_attn.q_proj"; `prefix` is td_lora's.
void td_lora_module_name(const char *prefix, int64_t layer, td_projection projection,
                         char out[TD_MODULE_NAME_CHARS]);

// Like td_lora_init(), for the layers and extents of an existing layout.
td_status td_lora_init_like(td_lora *lora, const td_lora *shapes, const td_lora_options *options);

// A compiled selection. Create once, ask for every module.
typedef struct td_lora_selector td_lora_selector;
td_status td_lora_selector_create(const td_lora_options *options, td_lora_selector **out);
void td_lora_selector_destroy(td_lora_selector *selector);
// *out_selected, and for a selected module its rank and alpha.
td_status td_lora_selector_ask(td_lora_selector *selector, const char *module, int *out_selected,
                               int64_t *out_rank, double *out_alpha);
// After all modules were asked for: the first listed name that matched none, or NULL.
const char *td_lora_selector_unmatched(const td_lora_selector *selector);
// Tells a person about keys of the patterns that applied to no module; PEFT ignores them.
void td_lora_selector_report_unused(const td_lora_selector *selector);

#endif
