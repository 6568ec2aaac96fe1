#include "model/model_config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/model_config_internal.h"
#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "runtime/core/log.h"

// Bounds that no model reaches, and under which the product of any two extents and the number of
// layers fits in 64 bits with room to spare.
enum {
    MAX_VOCABULARY = 1 << 24,
    MAX_HIDDEN = 1 << 18,
    MAX_INTERMEDIATE = 1 << 20,
    MAX_HEADS = 4096,
    MAX_HEAD_DIM = 4096,
    MAX_POSITIONS = 1 << 30,
};
static const size_t max_file_bytes = 4u << 20;

const cJSON *td_model_config_item(const cJSON *root, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, key);
    return cJSON_IsNull(item) ? NULL : item;
}

int td_model_config_has(const cJSON *root, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(root, key) != NULL;
}

static void list_architectures(char *out, size_t room) {
    size_t used = 0;
    for (int i = 0; i < td_families_count && used < room; i++)
        used += (size_t)snprintf(out + used, room - used, "%s%s", i ? ", " : "",
                                 td_families[i].architecture);
}

static td_status fail_unknown(const char *where, const char *key, const char *value) {
    char known[512];
    list_architectures(known, sizeof known);
    return td_fail(TD_ERR_DATA, "%s: \"%s\" is \"%s\", which is not supported; supported are %s",
                   where, key, value, known);
}

static const td_family *family_by_architecture(const char *architecture) {
    for (int i = 0; i < td_families_count; i++)
        if (strcmp(td_families[i].architecture, architecture) == 0)
            return &td_families[i];
    return NULL;
}

static const td_family *family_by_model_type(const char *model_type) {
    for (int i = 0; i < td_families_count; i++)
        if (strcmp(td_families[i].model_type, model_type) == 0)
            return &td_families[i];
    return NULL;
}

// The architecture that is listed first decides; a config without any is told by its model_type.
static td_status find_family(const char *where, const cJSON *root, const td_family **out) {
    const char *model_type = NULL;
    TD_TRY(td_json_string(where, root, "model_type", &model_type));
    const cJSON *list = td_model_config_item(root, "architectures");
    const cJSON *first = cJSON_IsArray(list) ? list->child : NULL;
    if (list && !cJSON_IsString(first))
        return td_fail(TD_ERR_DATA, "%s: \"architectures\" must be a list of names", where);
    if (!first && !model_type)
        return td_fail(TD_ERR_DATA, "%s: neither \"architectures\" nor \"model_type\" is given",
                       where);
    const td_family *family =
        first ? family_by_architecture(first->valuestring) : family_by_model_type(model_type);
    if (!family)
        return fail_unknown(where, first ? "architectures" : "model_type",
                            first ? first->valuestring : model_type);
    if (model_type && strcmp(model_type, family->model_type) != 0)
        return td_fail(TD_ERR_DATA, "%s: architecture %s has \"model_type\" \"%s\", found \"%s\"",
                       where, family->architecture, family->model_type, model_type);
    *out = family;
    return TD_OK;
}

// family_default 0: must be given.
static td_status require_extent(const char *where, const cJSON *root, const char *key, int64_t max,
                                int64_t family_default, int64_t *out) {
    if (!td_model_config_item(root, key) && family_default == 0)
        return td_fail(TD_ERR_DATA, "%s: \"%s\" is missing", where, key);
    *out = family_default;
    return td_json_int(where, root, key, 1, max, out);
}

// Null means one key head per query head; only a missing key means the family's default.
static td_status read_kv_heads(const char *where, const cJSON *root, td_model_config *config) {
    config->n_kv_heads = config->n_heads;
    if (!td_model_config_has(root, "num_key_value_heads") && config->family->kv_heads_default > 0)
        config->n_kv_heads = config->family->kv_heads_default;
    TD_TRY(td_json_int(where, root, "num_key_value_heads", 1, MAX_HEADS, &config->n_kv_heads));
    if (config->n_heads % config->n_kv_heads != 0)
        return td_fail(TD_ERR_DATA,
                       "%s: \"num_attention_heads\" (%lld) must be a multiple of "
                       "\"num_key_value_heads\" (%lld)",
                       where, (long long)config->n_heads, (long long)config->n_kv_heads);
    return TD_OK;
}

static td_status read_head_dim(const char *where, const cJSON *root, td_model_config *config) {
    int64_t head_dim = config->family->head_dim_default;
    TD_TRY(td_json_int(where, root, "head_dim", 1, MAX_HEAD_DIM, &head_dim));
    if (head_dim == 0 && config->hidden % config->n_heads != 0)
        return td_fail(TD_ERR_DATA,
                       "%s: \"hidden_size\" (%lld) must be a multiple of \"num_attention_heads\" "
                       "(%lld) when \"head_dim\" is not given",
                       where, (long long)config->hidden, (long long)config->n_heads);
    config->head_dim = head_dim ? head_dim : config->hidden / config->n_heads;
    if (config->head_dim % 2 != 0)
        return td_fail(TD_ERR_DATA, "%s: heads must have an even dimension for RoPE, found %lld",
                       where, (long long)config->head_dim);
    return TD_OK;
}

static td_status read_extents(const char *where, const cJSON *root, td_model_config *config) {
    const struct {
        const char *key;
        int64_t max, family_default;
        int64_t *out;
    } extents[] = {
        {"vocab_size", MAX_VOCABULARY, config->family->vocabulary_default, &config->vocabulary},
        {"hidden_size", MAX_HIDDEN, 0, &config->hidden},
        {"intermediate_size", MAX_INTERMEDIATE, 0, &config->intermediate},
        {"num_hidden_layers", TD_MAX_LAYERS, 0, &config->n_layers},
        {"num_attention_heads", MAX_HEADS, config->family->heads_default, &config->n_heads},
    };
    for (size_t i = 0; i < sizeof extents / sizeof extents[0]; i++)
        TD_TRY(require_extent(where, root, extents[i].key, extents[i].max,
                              extents[i].family_default, extents[i].out));
    TD_TRY(read_kv_heads(where, root, config));
    TD_TRY(read_head_dim(where, root, config));
    config->max_positions = config->family->max_positions_default;
    return td_json_int(where, root, "max_position_embeddings", 1, MAX_POSITIONS,
                       &config->max_positions);
}

static td_status read_biases(const char *where, const cJSON *root, td_model_config *config) {
    config->qkv_bias = config->family->qkv_bias;
    if (config->family->qkv_bias < 0) {
        config->qkv_bias = 0;
        TD_TRY(td_json_bool(where, root, "attention_bias", &config->qkv_bias));
        config->o_bias = config->qkv_bias;
    }
    if (config->family->mlp_bias)
        TD_TRY(td_json_bool(where, root, "mlp_bias", &config->mlp_bias));
    return TD_OK;
}

static td_status refuse_quantized(const char *where, const char *found) {
    return td_fail(TD_ERR_DATA,
                   "%s: \"quantization_config\": %s is not supported, only bitsandbytes NF4 in U8; "
                   "use the folder of the F32, F16 or BF16 model",
                   where, found);
}

// The defaults are those of transformers' BitsAndBytesConfig. Old folders lack quant_method.
static td_status read_bitsandbytes(const char *where, const cJSON *quantization, int *out_nested) {
    const char *method = "bitsandbytes", *type = "fp4", *storage = "uint8";
    int is_8bit = 0, is_4bit = 0;
    char found[128];
    TD_TRY(td_json_string(where, quantization, "quant_method", &method));
    if (strcmp(method, "bitsandbytes") != 0) {
        snprintf(found, sizeof found, "method \"%.60s\"", method);
        return refuse_quantized(where, found);
    }
    TD_TRY(td_json_bool(where, quantization, "load_in_8bit", &is_8bit));
    TD_TRY(td_json_bool(where, quantization, "load_in_4bit", &is_4bit));
    if (is_8bit || !is_4bit)
        return refuse_quantized(where, "bitsandbytes int8");
    TD_TRY(td_json_string(where, quantization, "bnb_4bit_quant_type", &type));
    TD_TRY(td_json_string(where, quantization, "bnb_4bit_quant_storage", &storage));
    if (strcmp(type, "nf4") != 0 || strcmp(storage, "uint8") != 0) {
        snprintf(found, sizeof found, "bitsandbytes %.40s in %.40s", type, storage);
        return refuse_quantized(where, found);
    }
    return td_json_bool(where, quantization, "bnb_4bit_use_double_quant", out_nested);
}

static td_status read_stored(const char *where, const cJSON *root, td_model_config *config) {
    const cJSON *quantization = td_model_config_item(root, "quantization_config");
    int is_nested = 0;
    if (!quantization)
        return TD_OK;
    if (!cJSON_IsObject(quantization))
        return td_fail(TD_ERR_DATA, "%s: \"quantization_config\" must be an object", where);
    TD_TRY(read_bitsandbytes(where, quantization, &is_nested));
    config->stored = is_nested ? TD_STORED_NF4_NESTED : TD_STORED_NF4;
    return TD_OK;
}

static td_status read_activation(const char *where, const cJSON *root, td_model_config *config) {
    static const struct {
        const char *name;
        td_gate gate;
    } activations[] = {{"silu", TD_GATE_SILU},
                       {"swish", TD_GATE_SILU},
                       {"gelu_pytorch_tanh", TD_GATE_GELU_TANH},
                       {"gelu_new", TD_GATE_GELU_TANH}};
    const char *key = config->family->activation_key, *name = config->family->activation_default;
    TD_TRY(td_json_string(where, root, key, &name));
    for (size_t i = 0; i < sizeof activations / sizeof activations[0]; i++)
        if (strcmp(activations[i].name, name) == 0) {
            config->activation = activations[i].gate;
            return TD_OK;
        }
    return td_fail(TD_ERR_DATA,
                   "%s: \"%s\" must be \"silu\" or \"gelu_pytorch_tanh\", found \"%.60s\"", where,
                   key, name);
}

// Null means none; only a missing key means the family's default.
static td_status read_softcap(const char *where, const cJSON *root, const char *key,
                              double family_default, double *out) {
    double cap = td_model_config_has(root, key) ? 0 : family_default;
    TD_TRY(td_json_double(where, root, key, &cap));
    if (td_model_config_item(root, key) && !(cap > 1e-6 && cap < 1e9))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be positive or null, found %g", where, key,
                       cap);
    *out = cap;
    return TD_OK;
}

static td_status read_attention(const char *where, const cJSON *root, td_model_config *config) {
    static const char key[] = "query_pre_attn_scalar";
    const td_family *family = config->family;
    int is_bidirectional = 0;
    config->attention_scalar = (double)config->head_dim;
    if (!family->soft_caps)
        return TD_OK;
    config->attention_scalar = 256;
    TD_TRY(td_json_double(where, root, key, &config->attention_scalar));
    if (!(config->attention_scalar > 1e-6 && config->attention_scalar < 1e9))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be positive, found %g", where, key,
                       config->attention_scalar);
    TD_TRY(td_json_bool(where, root, "use_bidirectional_attention", &is_bidirectional));
    if (is_bidirectional)
        return td_fail(TD_ERR_DATA,
                       "%s: \"use_bidirectional_attention\" must be false; models that look ahead "
                       "are not supported",
                       where);
    TD_TRY(read_softcap(where, root, "attn_logit_softcapping", family->attention_softcap_default,
                        &config->attention_softcap));
    return read_softcap(where, root, "final_logit_softcapping", family->final_softcap_default,
                        &config->final_softcap);
}

static td_status read_switches(const char *where, const cJSON *root, td_model_config *config) {
    TD_TRY(read_activation(where, root, config));
    TD_TRY(read_attention(where, root, config));
    config->rms_eps = config->family->rms_eps_default;
    TD_TRY(td_json_double(where, root, "rms_norm_eps", &config->rms_eps));
    if (!(config->rms_eps > 0 && config->rms_eps < 1))
        return td_fail(TD_ERR_DATA, "%s: \"rms_norm_eps\" must be between 0 and 1, found %g", where,
                       config->rms_eps);
    config->tie_word_embeddings = config->family->tie_word_embeddings_default;
    TD_TRY(td_json_bool(where, root, "tie_word_embeddings", &config->tie_word_embeddings));
    config->qk_norm = config->family->qk_norm;
    config->fused_projections = config->family->fused_projections;
    return read_biases(where, root, config);
}

// An id that the model cannot produce does no harm and is left out.
static int is_in_vocabulary(const char *where, const char *key, const td_model_config *config,
                            int64_t id) {
    if (id < config->vocabulary)
        return 1;
    td_info("%s: \"%s\" %lld is outside the vocabulary of %lld and is ignored", where, key,
            (long long)id, (long long)config->vocabulary);
    return 0;
}

static td_status add_eos(const char *where, const cJSON *item, td_model_config *config) {
    if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble) ||
        item->valuedouble < 0 || item->valuedouble > INT32_MAX)
        return td_fail(TD_ERR_DATA, "%s: \"eos_token_id\" must be a token id or a list of them",
                       where);
    int32_t id = (int32_t)item->valuedouble;
    if (!is_in_vocabulary(where, "eos_token_id", config, id))
        return TD_OK;
    for (int i = 0; i < config->n_eos; i++)
        if (config->eos_ids[i] == id)
            return TD_OK;
    if (config->n_eos == TD_MAX_EOS)
        return td_fail(TD_ERR_DATA, "%s: more than %d different \"eos_token_id\"", where,
                       TD_MAX_EOS);
    config->eos_ids[config->n_eos++] = id;
    return TD_OK;
}

static td_status add_eos_list(const char *where, const cJSON *root, td_model_config *config) {
    const cJSON *item = td_model_config_item(root, "eos_token_id");
    if (!item)
        return TD_OK;
    if (!cJSON_IsArray(item))
        return add_eos(where, item, config);
    for (const cJSON *element = item->child; element; element = element->next)
        TD_TRY(add_eos(where, element, config));
    return TD_OK;
}

static td_status read_bos(const char *where, const cJSON *root, td_model_config *config) {
    static const char key[] = "bos_token_id";
    int64_t bos = -1;
    TD_TRY(td_json_int(where, root, key, 0, INT32_MAX, &bos));
    if (bos >= 0 && !is_in_vocabulary(where, key, config, bos))
        bos = -1;
    if (!td_model_config_has(root, key) && config->family->bos_default < config->vocabulary)
        bos = config->family->bos_default;
    config->bos_id = (int32_t)bos;
    return TD_OK;
}

static td_status read_special_ids(const char *where, const cJSON *root, td_model_config *config) {
    TD_TRY(read_bos(where, root, config));
    int eos = config->family->eos_default;
    if (!td_model_config_has(root, "eos_token_id") && eos >= 0 && eos < config->vocabulary)
        config->eos_ids[config->n_eos++] = eos;
    return add_eos_list(where, root, config);
}

// The part of the tree that describes the text model.
static td_status find_text(const char *where, const cJSON *root, const td_family *family,
                           const cJSON **out) {
    *out = root;
    if (!family->text_model_type)
        return TD_OK;
    const cJSON *text = td_model_config_item(root, "text_config");
    const char *model_type = family->text_model_type;
    if (!cJSON_IsObject(text))
        return td_fail(TD_ERR_DATA, "%s: \"text_config\" must be an object", where);
    TD_TRY(td_json_string(where, text, "model_type", &model_type));
    if (strcmp(model_type, family->text_model_type) != 0)
        return td_fail(TD_ERR_DATA,
                       "%s: \"model_type\" of \"text_config\" must be \"%s\", found \"%.60s\"",
                       where, family->text_model_type, model_type);
    *out = text;
    return TD_OK;
}

// What the whole model says goes before what its text part says.
static td_status read_of_whole(const char *where, const cJSON *root, td_model_config *config) {
    TD_TRY(td_json_bool(where, root, "tie_word_embeddings", &config->tie_word_embeddings));
    return add_eos_list(where, root, config);
}

td_status td_model_config_parse(const char *where, const cJSON *root, td_model_config *out) {
    td_model_config config = {0};
    const cJSON *text;
    if (!cJSON_IsObject(root))
        return td_fail(TD_ERR_DATA, "%s: must be a JSON object", where);
    TD_TRY(find_family(where, root, &config.family));
    TD_TRY(find_text(where, root, config.family, &text));
    config.names = text == root ? TD_NAMES_PLAIN : TD_NAMES_OUTER;
    TD_TRY(read_stored(where, root, &config));
    TD_TRY(read_extents(where, text, &config));
    TD_TRY(read_switches(where, text, &config));
    TD_TRY(td_model_config_parse_skips(where, root, &config));
    TD_TRY(td_model_config_parse_rope(where, text, &config));
    TD_TRY(td_model_config_parse_layers(where, text, &config));
    TD_TRY(read_special_ids(where, text, &config));
    if (text != root)
        TD_TRY(read_of_whole(where, root, &config));
    *out = config;
    return TD_OK;
}

td_status td_model_config_add_generation(const char *where, const cJSON *root,
                                         td_model_config *config) {
    if (!cJSON_IsObject(root))
        return td_fail(TD_ERR_DATA, "%s: must be a JSON object", where);
    return add_eos_list(where, root, config);
}

static td_status read_main(const char *folder, td_model_config *out) {
    char path[TD_PATH_MAX];
    TD_TRY(td_path_join(path, folder, "config.json"));
    if (!td_path_exists(path))
        return td_fail(TD_ERR_DATA, "%s: no config.json there; expected the folder of a model",
                       folder);
    cJSON *root;
    TD_TRY(td_json_read(path, max_file_bytes, &root));
    td_status status = td_model_config_parse(path, root, out);
    cJSON_Delete(root);
    return status;
}

static td_status read_generation(const char *folder, td_model_config *config) {
    char path[TD_PATH_MAX];
    TD_TRY(td_path_join(path, folder, "generation_config.json"));
    if (!td_path_exists(path))
        return TD_OK;
    cJSON *root;
    TD_TRY(td_json_read(path, max_file_bytes, &root));
    td_status status = td_model_config_add_generation(path, root, config);
    cJSON_Delete(root);
    return status;
}

td_status td_model_config_read(const char *folder, td_model_config *out) {
    td_model_config config;
    TD_TRY(read_main(folder, &config));
    TD_TRY(read_generation(folder, &config));
    *out = config;
    return TD_OK;
}
