#include <string.h>

#include "model/model_config_internal.h"
#include "runtime/core/json.h"

static td_status refuse_nested(const char *where, const cJSON *settings) {
    for (const cJSON *item = settings ? settings->child : NULL; item; item = item->next)
        if (cJSON_IsObject(item))
            return td_fail(TD_ERR_DATA,
                           "%s: RoPE settings per kind of layer (\"%s\") are not supported", where,
                           item->string);
    return TD_OK;
}

// Where the settings of the rotary embedding stand: "rope_scaling" when it is not empty, as
// transformers 4 wrote it, else "rope_parameters". NULL for neither.
static td_status find_settings(const char *where, const cJSON *root, const cJSON **out) {
    static const char *const keys[] = {"rope_scaling", "rope_parameters"};
    *out = NULL;
    for (int i = 0; i < 2; i++) {
        const cJSON *settings = td_model_config_item(root, keys[i]);
        if (settings && !cJSON_IsObject(settings))
            return td_fail(TD_ERR_DATA, "%s: \"%s\" must be an object", where, keys[i]);
        if (settings && settings->child && !*out)
            *out = settings;
    }
    return refuse_nested(where, *out);
}

static td_status refuse_partial(const char *where, const cJSON *object) {
    double factor = 1.0;
    TD_TRY(td_json_double(where, object, "partial_rotary_factor", &factor));
    if (factor != 1.0)
        return td_fail(TD_ERR_DATA, "%s: \"partial_rotary_factor\" %g is not supported", where,
                       factor);
    return TD_OK;
}

static td_status read_theta(const char *where, const cJSON *root, const cJSON *settings,
                            td_model_config *config) {
    config->rope.theta = config->family->rope_theta_default;
    TD_TRY(td_json_double(where, root, "rope_theta", &config->rope.theta));
    if (settings)
        TD_TRY(td_json_double(where, settings, "rope_theta", &config->rope.theta));
    if (!(config->rope.theta > 1.0 && config->rope.theta < 1e30))
        return td_fail(TD_ERR_DATA, "%s: \"rope_theta\" must be above 1, found %g", where,
                       config->rope.theta);
    return TD_OK;
}

static td_status read_kind(const char *where, const cJSON *settings, td_rope_kind *out) {
    static const struct {
        const char *name;
        td_rope_kind kind;
    } kinds[] = {
        {"default", TD_ROPE_DEFAULT}, {"linear", TD_ROPE_LINEAR}, {"llama3", TD_ROPE_LLAMA3}};
    const char *name = "default";
    TD_TRY(td_json_string(where, settings, "type", &name));
    TD_TRY(td_json_string(where, settings, "rope_type", &name));
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(kinds[i].name, name) == 0) {
            *out = kinds[i].kind;
            return TD_OK;
        }
    return td_fail(TD_ERR_DATA,
                   "%s: RoPE of type \"%s\" is not supported; supported are default, linear and "
                   "llama3",
                   where, name);
}

static td_status require_positive(const char *where, const cJSON *settings, const char *key,
                                  double *out) {
    if (!td_model_config_item(settings, key))
        return td_fail(TD_ERR_DATA, "%s: the RoPE settings lack \"%s\"", where, key);
    double value = 0;
    TD_TRY(td_json_double(where, settings, key, &value));
    if (!(value > 0 && value < 1e9))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be positive, found %g", where, key, value);
    *out = value;
    return TD_OK;
}

// A value beside the settings goes before the one in them, and max_position_embeddings stands in
// for both.
static td_status read_llama3(const char *where, const cJSON *root, const cJSON *settings,
                             td_model_config *config) {
    td_rope_config *rope = &config->rope;
    static const char key[] = "original_max_position_embeddings";
    TD_TRY(require_positive(where, settings, "low_freq_factor", &rope->low_freq_factor));
    TD_TRY(require_positive(where, settings, "high_freq_factor", &rope->high_freq_factor));
    if (rope->high_freq_factor <= rope->low_freq_factor)
        return td_fail(TD_ERR_DATA,
                       "%s: \"high_freq_factor\" (%g) must be greater than \"low_freq_factor\" "
                       "(%g)",
                       where, rope->high_freq_factor, rope->low_freq_factor);
    rope->original_max_positions = config->max_positions;
    TD_TRY(td_json_int(where, settings, key, 1, INT32_MAX, &rope->original_max_positions));
    return td_json_int(where, root, key, 1, INT32_MAX, &rope->original_max_positions);
}

td_status td_model_config_parse_rope(const char *where, const cJSON *root,
                                     td_model_config *config) {
    const cJSON *settings;
    config->rope = (td_rope_config){.kind = TD_ROPE_DEFAULT, .factor = 1.0};
    TD_TRY(find_settings(where, root, &settings));
    TD_TRY(read_theta(where, root, settings, config));
    TD_TRY(refuse_partial(where, root));
    if (!settings)
        return TD_OK;
    TD_TRY(refuse_partial(where, settings));
    TD_TRY(read_kind(where, settings, &config->rope.kind));
    if (config->rope.kind == TD_ROPE_DEFAULT)
        return TD_OK;
    TD_TRY(require_positive(where, settings, "factor", &config->rope.factor));
    if (config->rope.kind == TD_ROPE_LLAMA3)
        TD_TRY(read_llama3(where, root, settings, config));
    return TD_OK;
}
