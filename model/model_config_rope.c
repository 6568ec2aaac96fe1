#include <math.h>
#include <string.h>

#include "model/model_config_internal.h"
#include "runtime/core/json.h"

// One rotary embedding and where config.json says what of it.
typedef struct rope_reader {
    const char *where;
    const cJSON *root;
    const cJSON *settings; // "rope_scaling", "rope_parameters" or a part of it; or NULL
    const char *theta_key; // of root
    double theta;          // when neither says
    const td_family *family;
    int64_t max_positions, rotary_dim;
} rope_reader;

static td_status require_object(const char *where, const char *key, const cJSON *settings) {
    if (settings && !cJSON_IsObject(settings))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be an object", where, key);
    return TD_OK;
}

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
        TD_TRY(require_object(where, keys[i], settings));
        if (settings && settings->child && !*out)
            *out = settings;
    }
    return TD_OK;
}

static td_status read_theta(const rope_reader *reader, double *out) {
    const char *where = reader->where;
    double theta = reader->theta;
    TD_TRY(td_json_double(where, reader->root, reader->theta_key, &theta));
    if (reader->settings)
        TD_TRY(td_json_double(where, reader->settings, "rope_theta", &theta));
    if (!(theta > 1.0 && theta < 1e30))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be above 1, found %g", where,
                       reader->theta_key, theta);
    *out = theta;
    return TD_OK;
}

static const char *const kind_names[TD_ROPE_KINDS] = {
    [TD_ROPE_DEFAULT] = "default",
    [TD_ROPE_LINEAR] = "linear",
    [TD_ROPE_LLAMA3] = "llama3",
    [TD_ROPE_LONG] = "longrope",
};

const char *td_rope_kind_name(td_rope_kind kind) {
    return kind_names[kind];
}

// Names that longrope had in earlier files of Phi-3.
static const char *present_name(const td_family *family, const char *name) {
    int is_older = strcmp(name, "su") == 0 || strcmp(name, "yarn") == 0;
    return family->longrope && is_older ? kind_names[TD_ROPE_LONG] : name;
}

static td_status read_kind(const rope_reader *reader, td_rope_kind *out) {
    const char *where = reader->where, *name = "default";
    TD_TRY(td_json_string(where, reader->settings, "type", &name));
    TD_TRY(td_json_string(where, reader->settings, "rope_type", &name));
    for (int i = 0; i < TD_ROPE_KINDS; i++)
        if (strcmp(kind_names[i], present_name(reader->family, name)) == 0 &&
            (i != TD_ROPE_LONG || reader->family->longrope)) {
            *out = (td_rope_kind)i;
            return TD_OK;
        }
    return td_fail(TD_ERR_DATA,
                   "%s: RoPE of type \"%.60s\" is not supported; supported are default, linear%s",
                   where, name, reader->family->longrope ? ", llama3 and longrope" : " and llama3");
}

static td_status require_positive(const rope_reader *reader, const char *key, double *out) {
    const char *where = reader->where;
    if (!td_model_config_item(reader->settings, key))
        return td_fail(TD_ERR_DATA, "%s: the RoPE settings lack \"%s\"", where, key);
    double value = 0;
    TD_TRY(td_json_double(where, reader->settings, key, &value));
    if (!(value > 1e-9 && value < 1e9))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be positive, found %g", where, key, value);
    *out = value;
    return TD_OK;
}

// A value beside the settings goes before the one in them, and max_position_embeddings stands in
// for both.
static td_status read_original_positions(const rope_reader *reader, td_rope_config *rope) {
    static const char key[] = "original_max_position_embeddings";
    const char *where = reader->where;
    rope->original_max_positions = reader->max_positions;
    TD_TRY(td_json_int(where, reader->settings, key, 1, INT32_MAX, &rope->original_max_positions));
    return td_json_int(where, reader->root, key, 1, INT32_MAX, &rope->original_max_positions);
}

static td_status read_llama3(const rope_reader *reader, td_rope_config *rope) {
    TD_TRY(require_positive(reader, "low_freq_factor", &rope->low_freq_factor));
    TD_TRY(require_positive(reader, "high_freq_factor", &rope->high_freq_factor));
    if (rope->high_freq_factor <= rope->low_freq_factor)
        return td_fail(TD_ERR_DATA,
                       "%s: \"high_freq_factor\" (%g) must be greater than \"low_freq_factor\" "
                       "(%g)",
                       reader->where, rope->high_freq_factor, rope->low_freq_factor);
    return read_original_positions(reader, rope);
}

static td_status read_factors(const rope_reader *reader, const char *key,
                              float out[TD_MAX_ROPE_PAIRS]) {
    const cJSON *list = td_model_config_item(reader->settings, key);
    int64_t pairs = reader->rotary_dim / 2;
    if (pairs > TD_MAX_ROPE_PAIRS)
        return td_fail(TD_ERR_DATA, "%s: RoPE of type longrope rotates at most %d, found %lld",
                       reader->where, 2 * TD_MAX_ROPE_PAIRS, (long long)reader->rotary_dim);
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != pairs)
        return td_fail(TD_ERR_DATA,
                       "%s: \"%s\" must be a list of %lld numbers, one for each pair that is "
                       "rotated",
                       reader->where, key, (long long)pairs);
    const cJSON *item = list->child;
    for (int64_t i = 0; i < pairs; i++, item = item->next) {
        double value = cJSON_IsNumber(item) ? item->valuedouble : 0;
        if (!(value > 1e-9 && value < 1e9))
            return td_fail(TD_ERR_DATA, "%s: \"%s\" must hold positive numbers", reader->where,
                           key);
        out[i] = (float)value;
    }
    return TD_OK;
}

// transformers' formula for files that do not give it (Ding et al., 2024, "LongRoPE").
static td_status read_attention_factor(const rope_reader *reader, td_rope_config *rope) {
    const char *where = reader->where;
    double original = (double)rope->original_max_positions;
    double factor = (double)reader->max_positions / original;
    if (td_model_config_item(reader->settings, "factor"))
        TD_TRY(require_positive(reader, "factor", &factor));
    rope->factor = factor;
    rope->attention_factor = 1.0;
    if (td_model_config_item(reader->settings, "attention_factor"))
        return require_positive(reader, "attention_factor", &rope->attention_factor);
    if (factor > 1.0 && rope->original_max_positions < 2)
        return td_fail(TD_ERR_DATA, "%s: \"original_max_position_embeddings\" must be above 1",
                       where);
    if (factor > 1.0)
        rope->attention_factor = sqrt(1 + log(factor) / log(original));
    return TD_OK;
}

// Phi-3's configuration class has a default of its own for the original length, which goes before
// the one in the settings.
static td_status read_long(const rope_reader *reader, td_rope_config *rope) {
    static const char key[] = "original_max_position_embeddings";
    rope->original_max_positions = 4096;
    TD_TRY(
        td_json_int(reader->where, reader->root, key, 1, INT32_MAX, &rope->original_max_positions));
    TD_TRY(read_factors(reader, "short_factor", rope->short_factor));
    TD_TRY(read_factors(reader, "long_factor", rope->long_factor));
    return read_attention_factor(reader, rope);
}

static td_status read_rope(const rope_reader *reader, td_rope_config *out) {
    td_rope_config rope = {.kind = TD_ROPE_DEFAULT, .factor = 1.0, .attention_factor = 1.0};
    TD_TRY(refuse_nested(reader->where, reader->settings));
    TD_TRY(read_theta(reader, &rope.theta));
    if (reader->settings)
        TD_TRY(read_kind(reader, &rope.kind));
    switch (rope.kind) {
    case TD_ROPE_LINEAR:
        TD_TRY(require_positive(reader, "factor", &rope.factor));
        break;
    case TD_ROPE_LLAMA3:
        TD_TRY(require_positive(reader, "factor", &rope.factor));
        TD_TRY(read_llama3(reader, &rope));
        break;
    case TD_ROPE_LONG:
        TD_TRY(read_long(reader, &rope));
        break;
    default:
        break;
    }
    *out = rope;
    return TD_OK;
}

// The value in the settings goes before the one beside them.
static td_status read_rotary_dim(const char *where, const cJSON *root, const cJSON *settings,
                                 td_model_config *config) {
    static const char key[] = "partial_rotary_factor";
    double factor = 1.0;
    TD_TRY(td_json_double(where, root, key, &factor));
    if (settings)
        TD_TRY(td_json_double(where, settings, key, &factor));
    if (factor != 1.0 && !config->family->longrope)
        return td_fail(TD_ERR_DATA, "%s: \"%s\" %g is not supported", where, key, factor);
    if (!(factor > 0.0 && factor <= 1.0))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be above 0 and at most 1, found %g", where,
                       key, factor);
    config->rotary_dim = (int64_t)((double)config->head_dim * factor);
    if (config->rotary_dim < 2 || config->rotary_dim % 2 != 0)
        return td_fail(TD_ERR_DATA, "%s: \"%s\" %g of heads of %lld is not an even number", where,
                       key, factor, (long long)config->head_dim);
    return TD_OK;
}

// The settings of Gemma 3's two kinds of layers. transformers 4 wrote "rope_scaling" for the
// global ones alone.
static td_status find_layer_settings(const char *where, const cJSON *root, const cJSON **out_global,
                                     const cJSON **out_local) {
    static const char *const kinds[] = {"full_attention", "sliding_attention"};
    const cJSON *scaling = td_model_config_item(root, "rope_scaling");
    const cJSON *parameters = td_model_config_item(root, "rope_parameters");
    const cJSON *found[2];
    TD_TRY(require_object(where, "rope_scaling", scaling));
    TD_TRY(require_object(where, "rope_parameters", parameters));
    for (int i = 0; i < 2; i++) {
        found[i] = td_model_config_item(parameters, kinds[i]);
        TD_TRY(require_object(where, kinds[i], found[i]));
    }
    if (parameters && parameters->child && !found[0] && !found[1])
        return td_fail(TD_ERR_DATA,
                       "%s: \"rope_parameters\" must hold \"full_attention\" and "
                       "\"sliding_attention\"",
                       where);
    *out_global = scaling && scaling->child ? scaling : found[0];
    *out_local = found[1];
    return TD_OK;
}

static td_status read_local(rope_reader reader, const cJSON *settings, td_rope_config *out) {
    reader.settings = settings;
    reader.theta_key = "rope_local_base_freq";
    reader.theta = reader.family->local_rope_theta_default;
    return read_rope(&reader, out);
}

td_status td_model_config_parse_rope(const char *where, const cJSON *root,
                                     td_model_config *config) {
    int has_local = td_model_has_local_rope(config);
    const cJSON *settings, *local_settings = NULL;
    TD_TRY(has_local ? find_layer_settings(where, root, &settings, &local_settings)
                     : find_settings(where, root, &settings));
    TD_TRY(read_rotary_dim(where, root, settings, config));
    rope_reader reader = {.where = where,
                          .root = root,
                          .settings = settings,
                          .theta_key = "rope_theta",
                          .theta = config->family->rope_theta_default,
                          .family = config->family,
                          .max_positions = config->max_positions,
                          .rotary_dim = config->rotary_dim};
    TD_TRY(read_rope(&reader, &config->rope));
    return has_local ? read_local(reader, local_settings, &config->rope_local) : TD_OK;
}
