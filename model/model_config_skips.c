// Which layers of a bitsandbytes folder are not quantized, by the rule of transformers
// (quantizers/quantizers_utils.py: should_convert_module).
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "model/lora_internal.h"
#include "model/model_config_internal.h"

// More entries than any folder has, and few enough that asking each for every layer is quick.
enum { MAX_ENTRIES = 4096, PATTERN_CHARS = 512, MAX_STEPS = 1 << 16 };

static const char key[] = "llm_int8_skip_modules";

// An entry names a module as a regular expression from the start of its name up to a dot or the
// end, or as it stands at its end.
typedef struct skip_entry {
    const char *where, *text;
    pcre2_code *code;
    pcre2_match_data *match;
    pcre2_match_context *limits;
} skip_entry;

static td_status compile(skip_entry *entry) {
    char pattern[PATTERN_CHARS + 32], reason[200] = "";
    int error;
    PCRE2_SIZE offset;
    if (strlen(entry->text) >= PATTERN_CHARS)
        return td_fail(TD_ERR_DATA, "%s: \"%s\" has an entry of more than %d characters",
                       entry->where, key, PATTERN_CHARS - 1);
    snprintf(pattern, sizeof pattern, "(?:%s)(?:(?<=\\.)|(?=\\.|$))", entry->text);
    entry->code =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_ANCHORED | PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &error, &offset, NULL);
    entry->match = pcre2_match_data_create(1, NULL);
    entry->limits = pcre2_match_context_create(NULL);
    if (entry->code && entry->match && entry->limits) {
        pcre2_set_match_limit(entry->limits, MAX_STEPS);
        return TD_OK;
    }
    if (entry->code)
        return td_fail(TD_ERR_MEMORY, "no memory to read \"%s\"", key);
    pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof reason);
    return td_fail(TD_ERR_DATA, "%s: \"%s\": the pattern \"%.200s\" is malformed: %s", entry->where,
                   key, entry->text, reason);
}

static td_status names(const skip_entry *entry, const char *module, int *out) {
    size_t chars = strlen(module), ending = strlen(entry->text);
    *out = ending <= chars && strcmp(module + chars - ending, entry->text) == 0;
    if (*out)
        return TD_OK;
    int found =
        pcre2_match(entry->code, (PCRE2_SPTR)module, chars, 0, 0, entry->match, entry->limits);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH)
        return td_fail(TD_ERR_DATA, "%s: \"%s\": matching \"%.200s\" takes too long", entry->where,
                       key, entry->text);
    *out = found >= 0;
    return TD_OK;
}

// transformers' name of the module, and the one that it had where the file's names are outer ones.
static td_status names_module(const skip_entry *entry, const td_model_config *config, int64_t layer,
                              td_projection projection, int *out) {
    static const char older_prefix[] = "language_model.model.";
    char module[TD_MODULE_NAME_CHARS];
    td_lora_module_name(td_model_module_prefix(config), layer, projection, module);
    TD_TRY(names(entry, module, out));
    if (*out || !td_model_is_multimodal(config))
        return TD_OK;
    td_lora_module_name(older_prefix, layer, projection, module);
    return names(entry, module, out);
}

static td_status ask_each_module(const skip_entry *entry, td_model_config *config) {
    for (int64_t i = 0; i < config->n_layers * TD_PROJ_COUNT; i++) {
        int64_t layer = i / TD_PROJ_COUNT;
        td_projection projection = (td_projection)(i % TD_PROJ_COUNT);
        int is_named = 0;
        if (!td_projection_exists(config, projection))
            continue;
        TD_TRY(names_module(entry, config, layer, projection, &is_named));
        if (is_named)
            config->whole_projections[layer] |= (uint16_t)(1u << projection);
    }
    return TD_OK;
}

static td_status add_entry(const char *where, const char *text, td_model_config *config) {
    skip_entry entry = {.where = where, .text = text};
    td_status status = compile(&entry);
    if (status == TD_OK)
        status = ask_each_module(&entry, config);
    pcre2_code_free(entry.code);
    pcre2_match_data_free(entry.match);
    pcre2_match_context_free(entry.limits);
    return status;
}

td_status td_model_config_parse_skips(const char *where, const cJSON *root,
                                      td_model_config *config) {
    const cJSON *quantization = td_model_config_item(root, "quantization_config");
    const cJSON *list = quantization ? td_model_config_item(quantization, key) : NULL;
    if (!list)
        return TD_OK;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) > MAX_ENTRIES)
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be null or a list of at most %d names", where,
                       key, MAX_ENTRIES);
    for (const cJSON *item = list->child; item; item = item->next) {
        if (!cJSON_IsString(item))
            return td_fail(TD_ERR_DATA, "%s: \"%s\" must hold names of modules", where, key);
        TD_TRY(add_entry(where, item->valuestring, config));
    }
    return TD_OK;
}
