#include <string.h>

#include "model/model_config_internal.h"
#include "runtime/core/json.h"

enum { MAX_WINDOW = 1 << 30 };

static td_status read_nope_list(const char *where, const cJSON *list, td_model_config *config) {
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) < config->n_layers)
        return td_fail(TD_ERR_DATA,
                       "%s: \"no_rope_layers\" must be a list with one number for each of the "
                       "%lld layers",
                       where, (long long)config->n_layers);
    const cJSON *item = list->child;
    for (int64_t i = 0; i < config->n_layers; i++, item = item->next) {
        if (!cJSON_IsNumber(item) || (item->valuedouble != 0 && item->valuedouble != 1))
            return td_fail(TD_ERR_DATA, "%s: \"no_rope_layers\" must hold 0 and 1 only", where);
        config->uses_rope[i] = item->valuedouble == 1;
    }
    return TD_OK;
}

// Despite its name, a 1 in "no_rope_layers" says that the layer has RoPE.
static td_status read_rope_layers(const char *where, const cJSON *root, td_model_config *config) {
    memset(config->uses_rope, TD_LAYER_ROPE, (size_t)config->n_layers);
    if (!config->family->nope_layers)
        return TD_OK;
    const cJSON *list = td_model_config_item(root, "no_rope_layers");
    if (list)
        return read_nope_list(where, list, config);
    int64_t interval = 4;
    TD_TRY(td_json_int(where, root, "no_rope_layer_interval", 1, INT32_MAX, &interval));
    for (int64_t i = 0; i < config->n_layers; i++)
        config->uses_rope[i] = (i + 1) % interval != 0;
    return TD_OK;
}

// 0 for none. Null means none; only a missing key means the family's default.
static td_status read_window(const char *where, const cJSON *root, const td_family *family,
                             int64_t *out) {
    int64_t window = 0;
    if (!td_model_config_has(root, "sliding_window"))
        window = family->sliding_window_default;
    TD_TRY(td_json_int(where, root, "sliding_window", 1, MAX_WINDOW, &window));
    *out = window;
    return TD_OK;
}

static td_status read_layer_types(const char *where, const cJSON *list, int64_t window,
                                  td_model_config *config) {
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != config->n_layers)
        return td_fail(TD_ERR_DATA,
                       "%s: \"layer_types\" must be a list with one name for each of the %lld "
                       "layers",
                       where, (long long)config->n_layers);
    const cJSON *item = list->child;
    for (int64_t i = 0; i < config->n_layers; i++, item = item->next) {
        const char *type = cJSON_IsString(item) ? item->valuestring : "";
        int slides = strcmp(type, "sliding_attention") == 0;
        if (!slides && strcmp(type, "full_attention") != 0)
            return td_fail(TD_ERR_DATA,
                           "%s: \"layer_types\" must hold \"full_attention\" and "
                           "\"sliding_attention\" only, found \"%s\"",
                           where, type);
        if (slides && window == 0)
            return td_fail(TD_ERR_DATA,
                           "%s: \"layer_types\" has \"sliding_attention\", but there is no "
                           "\"sliding_window\" or \"use_sliding_window\" is false",
                           where);
        config->window[i] = slides ? window : 0;
    }
    return TD_OK;
}

static td_status read_windows_by_layer(const char *where, const cJSON *root, int64_t window,
                                       td_model_config *config) {
    int64_t first = 28;
    int is_used = 0;
    TD_TRY(td_json_bool(where, root, "use_sliding_window", &is_used));
    TD_TRY(td_json_int(where, root, "max_window_layers", 0, INT32_MAX, &first));
    if (!is_used)
        window = 0;
    const cJSON *types = td_model_config_item(root, "layer_types");
    if (types)
        return read_layer_types(where, types, window, config);
    int by_nope = config->family->sliding_window == TD_WINDOW_BY_NOPE_LAYER;
    for (int64_t i = 0; i < config->n_layers; i++) {
        int slides = by_nope ? !config->uses_rope[i] : i >= first;
        config->window[i] = slides ? window : 0;
    }
    return TD_OK;
}

// All layers slide but every n-th.
static td_status read_window_pattern(const char *where, const cJSON *root, int64_t window,
                                     td_model_config *config) {
    int64_t n = 2;
    const cJSON *types = td_model_config_item(root, "layer_types");
    if (config->family->sliding_window == TD_WINDOW_BY_PATTERN) {
        n = 6;
        TD_TRY(td_json_int(where, root, "sliding_window_pattern", 1, INT32_MAX, &n));
    }
    if (window == 0)
        return td_fail(TD_ERR_DATA, "%s: \"sliding_window\" must be a number of tokens", where);
    if (types)
        return read_layer_types(where, types, window, config);
    for (int64_t i = 0; i < config->n_layers; i++)
        config->window[i] = (i + 1) % n != 0 ? window : 0;
    return TD_OK;
}

// Layers with a window have a rotary embedding of their own.
static void choose_ropes(td_model_config *config) {
    for (int64_t i = 0; i < config->n_layers; i++)
        if (config->window[i] > 0 && config->uses_rope[i] != TD_LAYER_NO_ROPE)
            config->uses_rope[i] = TD_LAYER_LOCAL_ROPE;
}

static td_status read_windows(const char *where, const cJSON *root, td_model_config *config) {
    int64_t window;
    TD_TRY(read_window(where, root, config->family, &window));
    switch (config->family->sliding_window) {
    case TD_WINDOW_EVERY_LAYER:
        for (int64_t i = 0; i < config->n_layers; i++)
            config->window[i] = window;
        return TD_OK;
    case TD_WINDOW_ALTERNATING:
    case TD_WINDOW_BY_PATTERN:
        return read_window_pattern(where, root, window, config);
    default:
        return read_windows_by_layer(where, root, window, config);
    }
}

td_status td_model_config_parse_layers(const char *where, const cJSON *root,
                                       td_model_config *config) {
    TD_TRY(read_rope_layers(where, root, config));
    if (config->family->sliding_window == TD_WINDOW_NEVER)
        return TD_OK;
    TD_TRY(read_windows(where, root, config));
    if (td_model_has_local_rope(config))
        choose_ropes(config);
    return TD_OK;
}
