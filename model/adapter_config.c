#include <stdlib.h>
#include <string.h>

#include "model/adapter_internal.h"
#include "model/lora_internal.h"
#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "runtime/core/log.h"

static const size_t max_file_bytes = 16u << 20;

// Features that change what an adapter computes. Each must be switched off: null, false, zero or
// empty.
static const char *const unsupported[] = {
    "use_dora",          "use_qalora",      "use_bdlora",        "lora_bias",
    "fan_in_fan_out",    "modules_to_save", "exclude_modules",   "layers_to_transform",
    "layer_replication", "arrow_config",    "target_parameters", "trainable_token_indices",
    "velora_config",     "kasa_config",     "monteclora_config", "alora_invocation_tokens",
};

// Keys that have no effect once the adapter is trained, or that are read below.
static const char *const known[] = {
    "peft_type",
    "peft_version",
    "task_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "inference_mode",
    "auto_mapping",
    "revision",
    "layers_pattern",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
    "runtime_config",
    "init_lora_weights",
};

// Initializations that also change the base, which the adapter alone does not tell.
static const char *const changes_base[] = {"pissa", "olora", "corda", "loftq", "lora_ga"};

static int is_listed(const char *name, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i], name) == 0)
            return 1;
    return 0;
}
#define IS_LISTED(name, list) is_listed(name, list, sizeof(list) / sizeof((list)[0]))

static int is_off(const cJSON *item) {
    if (cJSON_IsNumber(item))
        return item->valuedouble == 0;
    if (cJSON_IsString(item))
        return item->valuestring[0] == '\0';
    return cJSON_IsNull(item) || cJSON_IsFalse(item) || (!cJSON_IsTrue(item) && !item->child);
}

static td_status refuse_features(const char *where, const cJSON *root) {
    for (const cJSON *item = root->child; item; item = item->next) {
        if (is_off(item))
            continue;
        if (IS_LISTED(item->string, unsupported))
            return td_fail(TD_ERR_DATA, "%s: adapters with \"%s\" are not supported", where,
                           item->string);
        if (!IS_LISTED(item->string, known))
            td_info("%s: \"%s\" is not known and is ignored", where, item->string);
    }
    return TD_OK;
}

static td_status require_word(const char *where, const cJSON *root, const char *key,
                              const char *expected) {
    const char *found = expected;
    TD_TRY(td_json_string(where, root, key, &found));
    if (strcmp(found, expected) != 0)
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be \"%s\", found \"%s\"", where, key, expected,
                       found);
    return TD_OK;
}

static td_status check_initialization(const char *where, const cJSON *root) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, "init_lora_weights");
    if (!cJSON_IsString(item))
        return TD_OK;
    for (size_t i = 0; i < sizeof changes_base / sizeof changes_base[0]; i++)
        if (strncmp(item->valuestring, changes_base[i], strlen(changes_base[i])) == 0)
            return td_fail(TD_ERR_DATA,
                           "%s: \"init_lora_weights\" \"%s\" changes the base model as well, so "
                           "the adapter does not fit the plain one; convert it to plain LoRA",
                           where, item->valuestring);
    return TD_OK;
}

static td_status add_target(const char *where, const char *name, td_string_list *list) {
    list->items[list->count] = strdup(name);
    if (!list->items[list->count])
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its target modules", where);
    list->count++;
    return TD_OK;
}

static td_status read_targets(const char *where, const cJSON *root, td_adapter_info *info) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, "target_modules");
    int count = cJSON_IsArray(item) ? cJSON_GetArraySize(item) : 1;
    if (!cJSON_IsString(item) && !(cJSON_IsArray(item) && count > 0))
        return td_fail(TD_ERR_DATA,
                       "%s: \"target_modules\" must be a pattern or a list of module names", where);
    info->target_modules.items = calloc((size_t)count, sizeof *info->target_modules.items);
    if (!info->target_modules.items)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its target modules", where);
    info->target_modules_is_pattern = cJSON_IsString(item);
    if (cJSON_IsString(item))
        return add_target(where, item->valuestring, &info->target_modules);
    for (item = item->child; item; item = item->next) {
        if (!cJSON_IsString(item))
            return td_fail(TD_ERR_DATA, "%s: \"target_modules\" must hold names only", where);
        TD_TRY(add_target(where, item->valuestring, &info->target_modules));
    }
    return TD_OK;
}

static td_status read_pattern(const char *where, const cJSON *root, const char *key, cJSON **out) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, key);
    if (!item || is_off(item))
        return TD_OK;
    if (!cJSON_IsObject(item))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be an object", where, key);
    *out = cJSON_Duplicate(item, 1);
    if (!*out)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for \"%s\"", where, key);
    return TD_OK;
}

// Numbers and their defaults as in PEFT's LoraConfig.
static td_status read_numbers(const char *where, const cJSON *root, td_adapter_info *info) {
    info->rank = 8;
    info->alpha = 8;
    TD_TRY(td_json_int(where, root, "r", 1, TD_LORA_MAX_RANK, &info->rank));
    TD_TRY(td_json_double(where, root, "lora_alpha", &info->alpha));
    TD_TRY(td_json_double(where, root, "lora_dropout", &info->dropout));
    if (!(info->dropout >= 0 && info->dropout < 1))
        return td_fail(TD_ERR_DATA, "%s: \"lora_dropout\" must be at least 0 and below 1, found %g",
                       where, info->dropout);
    return td_json_bool(where, root, "use_rslora", &info->use_rslora);
}

td_status td_adapter_info_parse(const char *where, const cJSON *root, td_adapter_info *out) {
    *out = (td_adapter_info){0};
    if (!cJSON_IsObject(root))
        return td_fail(TD_ERR_DATA, "%s: must be a JSON object", where);
    if (!cJSON_GetObjectItemCaseSensitive(root, "peft_type"))
        return td_fail(TD_ERR_DATA, "%s: \"peft_type\" is missing", where);
    TD_TRY(require_word(where, root, "peft_type", "LORA"));
    TD_TRY(require_word(where, root, "task_type", "CAUSAL_LM"));
    TD_TRY(require_word(where, root, "bias", "none"));
    TD_TRY(refuse_features(where, root));
    TD_TRY(check_initialization(where, root));
    TD_TRY(read_numbers(where, root, out));
    TD_TRY(read_targets(where, root, out));
    TD_TRY(read_pattern(where, root, "rank_pattern", &out->rank_pattern));
    return read_pattern(where, root, "alpha_pattern", &out->alpha_pattern);
}

td_status td_adapter_info_read(const char *folder, td_adapter_info *out) {
    char path[TD_PATH_MAX];
    cJSON *root;
    *out = (td_adapter_info){0};
    TD_TRY(td_path_join(path, folder, "adapter_config.json"));
    if (!td_path_exists(path))
        return td_fail(TD_ERR_DATA,
                       "%s: no adapter_config.json there; expected the folder of a PEFT adapter",
                       folder);
    TD_TRY(td_json_read(path, max_file_bytes, &root));
    td_status status = td_adapter_info_parse(path, root, out);
    cJSON_Delete(root);
    return status;
}

void td_adapter_info_fini(td_adapter_info *info) {
    for (int i = 0; i < info->target_modules.count; i++)
        free(info->target_modules.items[i]);
    free(info->target_modules.items);
    cJSON_Delete(info->rank_pattern);
    cJSON_Delete(info->alpha_pattern);
    *info = (td_adapter_info){0};
}

td_lora_options td_adapter_lora_options(const td_adapter_info *info) {
    return (td_lora_options){
        .rank = info->rank,
        .alpha = info->alpha,
        .dropout = info->dropout,
        .use_rslora = info->use_rslora,
        .target_modules = &info->target_modules,
        .target_modules_is_pattern = info->target_modules_is_pattern,
        .rank_pattern = info->rank_pattern,
        .alpha_pattern = info->alpha_pattern,
    };
}
