// Shared by the config_*.c files: a key's field, and its value as JSON.
#ifndef TANDEM_CORE_CONFIG_INTERNAL_H
#define TANDEM_CORE_CONFIG_INTERNAL_H

#include "runtime/core/config.h"

static inline void *td_key_field(td_config *config, const td_key *key) {
    return (char *)config + key->offset;
}

static inline const void *td_key_field_const(const td_config *config, const td_key *key) {
    return (const char *)config + key->offset;
}

// NULL when there is none.
const td_key *td_key_find(const char *name);
// The current value; NULL only when memory is out.
cJSON *td_key_to_json(const td_config *config, const td_key *key);

#endif
