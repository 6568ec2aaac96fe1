// What a tokenizer's folder says about chats: its templates and the tokens that they may name.
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "model/tokenizer_internal.h"
#include "runtime/core/files.h"
#include "runtime/core/json.h"

static const size_t max_template_bytes = (size_t)16 << 20;

// One template, which is the default, or a list of named ones.
static const char *find_template(const cJSON *config, const char *wanted) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, "chat_template");
    if (cJSON_IsString(item))
        return strcmp(wanted, "default") == 0 ? item->valuestring : NULL;
    for (const cJSON *entry = cJSON_IsArray(item) ? item->child : NULL; entry;
         entry = entry->next) {
        const cJSON *name = cJSON_GetObjectItemCaseSensitive(entry, "name");
        const cJSON *text = cJSON_GetObjectItemCaseSensitive(entry, "template");
        if (cJSON_IsString(name) && strcmp(name->valuestring, wanted) == 0 && cJSON_IsString(text))
            return text->valuestring;
    }
    return NULL;
}

// A file of its own goes before what the config holds.
static td_status load_template(const char *folder, const char *file, const cJSON *config,
                               const char *name, char **out, char out_path[TD_PATH_MAX]) {
    size_t bytes;
    TD_TRY(td_path_join(out_path, folder, file));
    if (td_path_exists(out_path)) {
        TD_TRY(td_file_read(out_path, max_template_bytes, out, &bytes));
        size_t before = strlen(*out);
        return before == bytes ? TD_OK
                               : td_fail(TD_ERR_DATA, "%s: NUL at byte %zu", out_path, before);
    }
    const char *text = find_template(config, name);
    TD_TRY(td_path_join(out_path, folder, "tokenizer_config.json"));
    *out = text ? strdup(text) : NULL;
    if (text && !*out)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for the chat template", folder);
    return TD_OK;
}

// A special token is named by its content or by an object that holds it.
static td_status load_special_tokens(td_tokenizer *tokenizer, const cJSON *config) {
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};
    cJSON *tokens = cJSON_CreateObject();
    for (size_t i = 0; tokens && i < sizeof keys / sizeof *keys; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, keys[i]);
        if (cJSON_IsObject(item))
            item = cJSON_GetObjectItemCaseSensitive(item, "content");
        if (cJSON_IsString(item))
            cJSON_AddStringToObject(tokens, keys[i], item->valuestring);
    }
    tokenizer->special_tokens = tokens ? td_json_print(tokens, 0) : NULL;
    cJSON_Delete(tokens);
    return tokenizer->special_tokens ? TD_OK
                                     : td_fail(TD_ERR_MEMORY, "no memory for special tokens");
}

// Else a folder with a template that nobody finds would be trained with another one.
static td_status check_list(const char *folder, const cJSON *list) {
    int has_default = 0;
    for (const cJSON *entry = list->child; entry; entry = entry->next) {
        const cJSON *name = cJSON_GetObjectItemCaseSensitive(entry, "name");
        if (!cJSON_IsString(name) ||
            !cJSON_IsString(cJSON_GetObjectItemCaseSensitive(entry, "template")))
            return td_fail(TD_ERR_DATA,
                           "%s/tokenizer_config.json: what is in the list \"chat_template\" must "
                           "be objects with \"name\" and \"template\"",
                           folder);
        has_default |= strcmp(name->valuestring, "default") == 0;
    }
    if (has_default || !list->child)
        return TD_OK;
    return td_fail(TD_ERR_DATA,
                   "%s/tokenizer_config.json: none of the templates in \"chat_template\" has the "
                   "name \"default\": put the one to use into a chat_template.jinja beside it",
                   folder);
}

static td_status check_kind(const char *folder, const cJSON *config) {
    char path[TD_PATH_MAX];
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, "chat_template");
    TD_TRY(td_path_join(path, folder, "chat_template.jinja"));
    if (!item || cJSON_IsNull(item) || cJSON_IsString(item) || td_path_exists(path))
        return TD_OK;
    if (cJSON_IsArray(item))
        return check_list(folder, item);
    return td_fail(TD_ERR_DATA,
                   "%s/tokenizer_config.json: \"chat_template\" must be a string or a list of "
                   "objects with \"name\" and \"template\"",
                   folder);
}

td_status td_load_templates(td_tokenizer *tokenizer, const char *folder, const cJSON *config) {
    char path[TD_PATH_MAX], tool_path[TD_PATH_MAX];
    TD_TRY(check_kind(folder, config));
    TD_TRY(load_template(folder, "chat_template.jinja", config, "default",
                         &tokenizer->chat_template, path));
    TD_TRY(load_template(folder, "additional_chat_templates/tool_use.jinja", config, "tool_use",
                         &tokenizer->tool_template, tool_path));
    tokenizer->template_path = strdup(path);
    if (!tokenizer->template_path)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for the chat template", folder);
    return load_special_tokens(tokenizer, config);
}

void td_free_templates(td_tokenizer *tokenizer) {
    td_chat_destroy(tokenizer->pool->chat);
    free(tokenizer->chat_template);
    free(tokenizer->template_path);
    free(tokenizer->tool_template);
    free(tokenizer->special_tokens);
}

const char *td_tokenizer_chat_template(const td_tokenizer *tokenizer) {
    return tokenizer->chat_template;
}

const char *td_tokenizer_named_template(const td_tokenizer *tokenizer, const char *name) {
    return strcmp(name, "default") == 0    ? tokenizer->chat_template
           : strcmp(name, "tool_use") == 0 ? tokenizer->tool_template
                                           : NULL;
}

td_status td_chat_require_tokens(const td_tokenizer *tokenizer) {
    static const char turn_begin[] = "<|im_start|>", turn_end[] = "<|im_end|>";
    if (td_tokenizer_token_id(tokenizer, turn_begin) >= 0 &&
        td_tokenizer_token_id(tokenizer, turn_end) >= 0)
        return TD_OK;
    return td_fail(TD_ERR_DATA,
                   "the model has no chat template, and its tokenizer no %s and %s tokens to write "
                   "chats with: put a chat_template.jinja into the model folder, or use rows of "
                   "prompt/completion or text",
                   turn_begin, turn_end);
}

static td_status create_chat(const td_tokenizer *tokenizer, td_chat **out) {
    if (tokenizer->chat_template)
        return td_chat_create(tokenizer->template_path, tokenizer->chat_template,
                              tokenizer->tool_template, tokenizer->special_tokens, out);
    TD_TRY(td_chat_require_tokens(tokenizer));
    return td_chat_create_chatml(tokenizer->special_tokens, out);
}

td_status td_tokenizer_chat(const td_tokenizer *tokenizer, const td_chat **out) {
    td_tokenizer_pool *pool = tokenizer->pool;
    td_status status = TD_OK;
    pthread_mutex_lock(&pool->lock);
    if (!pool->chat)
        status = create_chat(tokenizer, &pool->chat);
    *out = pool->chat;
    pthread_mutex_unlock(&pool->lock);
    return status;
}
