// Opening a tokenizer: tokenizer.json section by section.
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "runtime/core/files.h"
#include "runtime/core/json.h"

enum {
    MAX_FILE_BYTES = 512 << 20,
    MAX_CONFIG_BYTES = 64 << 20,
};

td_status td_component_type(const char *where, const char *section, const cJSON *config,
                            const char **out) {
    *out = NULL;
    if (!config || cJSON_IsNull(config))
        return TD_OK;
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(config, "type");
    if (!cJSON_IsString(type))
        return td_fail(TD_ERR_DATA, "%s: %s has no \"type\"", where, section);
    *out = type->valuestring;
    return TD_OK;
}

td_status td_fail_component(const char *where, const char *section, const char *type,
                            const char *supported) {
    return td_fail(TD_ERR_DATA, "%s: %s of type \"%.60s\" is not supported; supported: %s", where,
                   section, type, supported);
}

td_status td_load_vocabulary(td_tokenizer *tokenizer, const char *where, const cJSON *model) {
    const char *type = "BPE"; // files of old versions do not say
    const cJSON *vocabulary = cJSON_GetObjectItemCaseSensitive(model, "vocab");
    TD_TRY(td_json_string(where, model, "type", &type));
    if (strcmp(type, "BPE") != 0)
        return td_fail(TD_ERR_DATA,
                       "%s: %.60s is out of scope: model of type \"%.60s\"; tandem reads BPE "
                       "tokenizers (byte-level and SentencePiece-style)",
                       where, type, type);
    if (!cJSON_IsObject(vocabulary) || !vocabulary->child)
        return td_fail(TD_ERR_DATA, "%s: model.vocab must be an object with tokens", where);
    for (const cJSON *item = vocabulary->child; item; item = item->next) {
        double id = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (!(id >= 0 && id < TD_TOKENIZER_MAX_ID) || id != (double)(int32_t)id)
            return td_fail(TD_ERR_DATA,
                           "%s: the id of token \"%.60s\" must be an integer from 0 to %d", where,
                           item->string, TD_TOKENIZER_MAX_ID - 1);
        TD_TRY(td_vocabulary_add(&tokenizer->vocabulary, where, item->string, strlen(item->string),
                                 (int32_t)id));
    }
    return TD_OK;
}

static td_status load_sections(td_tokenizer *tokenizer, const char *where, const cJSON *root) {
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(root, "model");
    if (!cJSON_IsObject(model))
        return td_fail(TD_ERR_DATA, "%s: has no \"model\" object", where);
    TD_TRY(td_load_vocabulary(tokenizer, where, model));
    TD_TRY(td_normalizer_init(&tokenizer->normalizer, where,
                              cJSON_GetObjectItemCaseSensitive(root, "normalizer")));
    TD_TRY(td_pretokenizer_init(&tokenizer->pretokenizer, where,
                                cJSON_GetObjectItemCaseSensitive(root, "pre_tokenizer")));
    TD_TRY(td_decoder_init(&tokenizer->decoder, where,
                           cJSON_GetObjectItemCaseSensitive(root, "decoder")));
    TD_TRY(td_bpe_init(&tokenizer->bpe, where, model, &tokenizer->vocabulary,
                       tokenizer->pretokenizer.byte_level));
    TD_TRY(td_load_added_tokens(tokenizer, where,
                                cJSON_GetObjectItemCaseSensitive(root, "added_tokens")));
    return td_load_post_processor(tokenizer, where,
                                  cJSON_GetObjectItemCaseSensitive(root, "post_processor"));
}

static td_status load_json(td_tokenizer *tokenizer, td_hasher *hasher, const char *path) {
    char *text;
    size_t bytes;
    cJSON *root = NULL;
    TD_TRY(td_file_read(path, MAX_FILE_BYTES, &text, &bytes));
    td_hasher_add(hasher, text, bytes);
    td_status status = td_json_parse(path, text, bytes, &root);
    free(text);
    if (status == TD_OK)
        status = load_sections(tokenizer, path, root);
    cJSON_Delete(root);
    return status;
}

// A special token is named by its content or by an object that holds it.
static const char *token_content(const cJSON *config, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, key);
    if (cJSON_IsObject(item))
        item = cJSON_GetObjectItemCaseSensitive(item, "content");
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

static int32_t named_id(const td_tokenizer *tokenizer, td_hasher *hasher, const cJSON *config,
                        const char *key) {
    const char *content = token_content(config, key);
    td_hasher_add_string(hasher, content ? content : "");
    return content ? td_tokenizer_token_id(tokenizer, content) : -1;
}

// tokenizer_config.json is optional: it names tokens and holds the chat template.
static td_status load_config(td_tokenizer *tokenizer, td_hasher *hasher, const char *folder) {
    char path[TD_PATH_MAX];
    cJSON *config = NULL;
    TD_TRY(td_path_join(path, folder, "tokenizer_config.json"));
    if (td_path_exists(path))
        TD_TRY(td_json_read(path, MAX_CONFIG_BYTES, &config));
    tokenizer->eos_id = named_id(tokenizer, hasher, config, "eos_token");
    tokenizer->bos_id = named_id(tokenizer, hasher, config, "bos_token");
    td_status status = td_load_templates(tokenizer, folder, config);
    cJSON_Delete(config);
    td_hasher_add_string(hasher, tokenizer->chat_template ? tokenizer->chat_template : "");
    if (tokenizer->tool_template)
        td_hasher_add_string(hasher, tokenizer->tool_template);
    return status;
}

static td_status create_empty(td_tokenizer **out) {
    td_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    td_tokenizer_pool *pool = calloc(1, sizeof *pool);
    if (!tokenizer || !pool) {
        free(tokenizer);
        free(pool);
        return td_fail(TD_ERR_MEMORY, "no memory for a tokenizer");
    }
    pthread_mutex_init(&pool->lock, NULL);
    tokenizer->pool = pool;
    td_added_set_init(&tokenizer->added);
    td_added_set_init(&tokenizer->added_normalized);
    *out = tokenizer;
    return TD_OK;
}

static td_status load(td_tokenizer *tokenizer, const char *folder) {
    char path[TD_PATH_MAX];
    td_hasher *hasher = NULL;
    TD_TRY(td_path_join(path, folder, "tokenizer.json"));
    TD_TRY(td_hasher_create(&hasher));
    td_status status = load_json(tokenizer, hasher, path);
    if (status == TD_OK)
        status = load_config(tokenizer, hasher, folder);
    tokenizer->fingerprint = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    return status;
}

td_status td_tokenizer_open(const char *folder, td_tokenizer **out) {
    td_tokenizer *tokenizer = NULL;
    TD_TRY(create_empty(&tokenizer));
    td_status status = load(tokenizer, folder);
    if (status != TD_OK) {
        td_tokenizer_close(tokenizer);
        return status;
    }
    *out = tokenizer;
    return TD_OK;
}

void td_tokenizer_close(td_tokenizer *tokenizer) {
    if (!tokenizer)
        return;
    while (tokenizer->pool->free) {
        td_scratch *scratch = tokenizer->pool->free;
        tokenizer->pool->free = scratch->next;
        td_scratch_destroy(scratch);
    }
    td_free_templates(tokenizer);
    pthread_mutex_destroy(&tokenizer->pool->lock);
    free(tokenizer->pool);
    td_normalizer_fini(&tokenizer->normalizer);
    td_pretokenizer_fini(&tokenizer->pretokenizer);
    td_decoder_fini(&tokenizer->decoder);
    td_added_set_fini(&tokenizer->added);
    td_added_set_fini(&tokenizer->added_normalized);
    td_bpe_fini(&tokenizer->bpe);
    td_vocabulary_fini(&tokenizer->vocabulary);
    free(tokenizer->is_special);
    free(tokenizer->shown);
    free(tokenizer);
}

int32_t td_tokenizer_size(const td_tokenizer *tokenizer) {
    return tokenizer->vocabulary.size;
}

static int holds(const td_added_set *set, int32_t id) {
    for (size_t i = 0; i < set->n_tokens; i++)
        if (set->tokens[i].id == id)
            return 1;
    return 0;
}

int32_t td_tokenizer_text_size(const td_tokenizer *tokenizer) {
    int32_t size = tokenizer->vocabulary.size;
    while (size > 0 &&
           (holds(&tokenizer->added, size - 1) || holds(&tokenizer->added_normalized, size - 1)))
        size--;
    return size;
}

int32_t td_tokenizer_token_id(const td_tokenizer *tokenizer, const char *content) {
    return td_vocabulary_find(&tokenizer->vocabulary, content, strlen(content));
}

int32_t td_tokenizer_eos_id(const td_tokenizer *tokenizer) {
    return tokenizer->eos_id;
}

int32_t td_tokenizer_bos_id(const td_tokenizer *tokenizer) {
    return tokenizer->bos_id;
}

td_hash td_tokenizer_fingerprint(const td_tokenizer *tokenizer) {
    return tokenizer->fingerprint;
}
