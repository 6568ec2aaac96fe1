// Loading of the parts around the model: added tokens, post-processors.
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "runtime/core/json.h"

// The id that the tokenizers library gives: that of the vocabulary, or the next one free. Where the
// file says otherwise, the model was trained with one and the library would use the other.
static td_status check_id(const td_vocabulary *vocabulary, const char *where, const char *content,
                          int64_t id, int32_t next) {
    int32_t known = td_vocabulary_find(vocabulary, content, strlen(content));
    int32_t expected = known >= 0 ? known : next;
    if (id == expected)
        return TD_OK;
    return td_fail(TD_ERR_DATA,
                   "%s: added token \"%.60s\" has id %lld, but by its place it would get %d", where,
                   content, (long long)id, (int)expected);
}

// Matching happens on normalized text for these, so their content is normalized too.
static td_status normalize_content(const td_tokenizer *tokenizer, const char *where,
                                   td_added_token *token) {
    td_scratch *scratch;
    td_text text = {.bytes = token->content, .length = token->bytes}, normalized;
    if (tokenizer->normalizer.n_steps == 0)
        return TD_OK;
    TD_TRY(td_scratch_acquire(tokenizer, &scratch));
    td_status status = td_normalize(&tokenizer->normalizer, scratch, text, &normalized);
    if (status == TD_OK && normalized.length == 0)
        status =
            td_fail(TD_ERR_DATA, "%s: nothing is left of added token \"%.60s\" by the normalizer",
                    where, token->content);
    if (status == TD_OK && normalized.bytes != text.bytes) {
        char *copy = strndup(normalized.bytes, normalized.length);
        free(token->content);
        token->content = copy;
        token->bytes = (uint32_t)normalized.length;
        if (!copy)
            status = td_fail(TD_ERR_MEMORY, "no memory for an added token");
    }
    td_scratch_release(tokenizer, scratch);
    return status;
}

static td_status read_added_token(const char *where, const cJSON *item, td_added_token *out,
                                  const char **out_content, int64_t *out_id, int *out_normalized) {
    TD_TRY(td_json_string(where, item, "content", out_content));
    TD_TRY(td_json_int(where, item, "id", 0, TD_TOKENIZER_MAX_ID - 1, out_id));
    TD_TRY(td_json_bool(where, item, "single_word", &out->single_word));
    TD_TRY(td_json_bool(where, item, "lstrip", &out->lstrip));
    TD_TRY(td_json_bool(where, item, "rstrip", &out->rstrip));
    TD_TRY(td_json_bool(where, item, "special", &out->special));
    *out_normalized = !out->special;
    TD_TRY(td_json_bool(where, item, "normalized", out_normalized));
    if (!*out_content || *out_id < 0)
        return td_fail(TD_ERR_DATA, "%s: an added token has no content or no id", where);
    return TD_OK;
}

static td_status add_to_set(td_tokenizer *tokenizer, const char *where, td_added_token token,
                            const char *content, int normalized) {
    token.content = strdup(content);
    token.bytes = (uint32_t)strlen(content);
    if (!token.content)
        return td_fail(TD_ERR_MEMORY, "no memory for an added token");
    if (normalized) {
        td_status status = normalize_content(tokenizer, where, &token);
        if (status != TD_OK) {
            free(token.content);
            return status;
        }
    }
    return td_added_set_add(normalized ? &tokenizer->added_normalized : &tokenizer->added, token);
}

// `next` is the id that a token outside the vocabulary gets.
static td_status add_added_token(td_tokenizer *tokenizer, const char *where, const cJSON *item,
                                 int32_t *next) {
    td_added_token token = {0};
    const char *content = NULL;
    int64_t id = -1;
    int normalized;
    TD_TRY(read_added_token(where, item, &token, &content, &id, &normalized));
    if (content[0] == '\0')
        return TD_OK;
    TD_TRY(check_id(&tokenizer->vocabulary, where, content, id, *next));
    token.id = (int32_t)id;
    if (token.id >= *next)
        *next = token.id + 1;
    if (td_tokenizer_token_id(tokenizer, content) < 0)
        TD_TRY(
            td_vocabulary_add(&tokenizer->vocabulary, where, content, strlen(content), token.id));
    return add_to_set(tokenizer, where, token, content, normalized);
}

// The library decodes a normalized token as its normalized content, and leaves out as special what
// decodes as the content of a special token.
static void show_token(td_tokenizer *tokenizer, const uint8_t *declared,
                       const td_added_token *token) {
    int32_t written = td_tokenizer_token_id(tokenizer, token->content);
    if (written != token->id)
        tokenizer->shown[token->id] = token->content;
    tokenizer->is_special[token->id] = written >= 0 && declared[written];
}

static td_status mark_special(td_tokenizer *tokenizer) {
    size_t size = (size_t)tokenizer->vocabulary.size;
    uint8_t *declared = calloc(size + 1, 1);
    tokenizer->is_special = calloc(size + 1, 1);
    tokenizer->shown = calloc(size + 1, sizeof *tokenizer->shown);
    if (!declared || !tokenizer->is_special || !tokenizer->shown) {
        free(declared);
        return td_fail(TD_ERR_MEMORY, "no memory for %zu tokens", size);
    }
    const td_added_set *sets[] = {&tokenizer->added, &tokenizer->added_normalized};
    for (int s = 0; s < 2; s++)
        for (size_t i = 0; i < sets[s]->n_tokens; i++)
            declared[sets[s]->tokens[i].id] |= (uint8_t)sets[s]->tokens[i].special;
    for (int s = 0; s < 2; s++)
        for (size_t i = 0; i < sets[s]->n_tokens; i++)
            show_token(tokenizer, declared, &sets[s]->tokens[i]);
    free(declared);
    return TD_OK;
}

td_status td_load_added_tokens(td_tokenizer *tokenizer, const char *where, const cJSON *list) {
    if (list && !cJSON_IsNull(list) && !cJSON_IsArray(list))
        return td_fail(TD_ERR_DATA, "%s: added_tokens must be a list", where);
    int32_t next = tokenizer->vocabulary.count;
    for (const cJSON *item = list ? list->child : NULL; item; item = item->next)
        TD_TRY(add_added_token(tokenizer, where, item, &next));
    return mark_special(tokenizer);
}

static td_status push_special(td_tokenizer *tokenizer, const char *where, int32_t id, int before) {
    int32_t *ids = before ? tokenizer->prefix : tokenizer->suffix;
    int *count = before ? &tokenizer->n_prefix : &tokenizer->n_suffix;
    if (id < 0 || id >= tokenizer->vocabulary.size)
        return td_fail(TD_ERR_DATA, "%s: post_processor uses token %d, which does not exist", where,
                       (int)id);
    if (*count == TD_POST_MAX_SPECIALS)
        return td_fail(TD_ERR_DATA, "%s: post_processor adds more than %d tokens", where,
                       TD_POST_MAX_SPECIALS);
    // A template of a sequence goes around what the one before it made.
    if (before) {
        memmove(ids + 1, ids, (size_t)*count * sizeof *ids);
        ids[0] = id;
    } else {
        ids[*count] = id;
    }
    (*count)++;
    return TD_OK;
}

static td_status push_named_special(td_tokenizer *tokenizer, const char *where,
                                    const cJSON *specials, const cJSON *piece, int before) {
    const char *name = NULL;
    TD_TRY(td_json_string(where, piece, "id", &name));
    const cJSON *special = name ? cJSON_GetObjectItemCaseSensitive(specials, name) : NULL;
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(special, "ids");
    if (!cJSON_IsArray(ids))
        return td_fail(TD_ERR_DATA, "%s: post_processor has no ids for special token \"%.60s\"",
                       where, name ? name : "");
    int n = cJSON_GetArraySize(ids);
    for (int i = 0; i < n; i++) {
        // Ids in front are pushed from the last to the first.
        const cJSON *item = cJSON_GetArrayItem(ids, before ? n - 1 - i : i);
        double id = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (!(id >= 0 && id < TD_TOKENIZER_MAX_ID) || id != (double)(int32_t)id)
            return td_fail(TD_ERR_DATA, "%s: post_processor has a malformed id", where);
        TD_TRY(push_special(tokenizer, where, (int32_t)id, before));
    }
    return TD_OK;
}

// Index of the one piece of the template that stands for the text, -1 when there is not exactly
// one.
static int text_piece(const cJSON *single) {
    int index = 0, found = -1;
    for (const cJSON *piece = single->child; piece; piece = piece->next, index++) {
        const cJSON *sequence = cJSON_GetObjectItemCaseSensitive(piece, "Sequence");
        if (!sequence)
            continue;
        const cJSON *id = cJSON_GetObjectItemCaseSensitive(sequence, "id");
        if (found >= 0 || !cJSON_IsString(id) || strcmp(id->valuestring, "A") != 0)
            return -1;
        found = index;
    }
    return found;
}

static td_status add_template(td_tokenizer *tokenizer, const char *where, const cJSON *config) {
    const cJSON *single = cJSON_GetObjectItemCaseSensitive(config, "single");
    const cJSON *specials = cJSON_GetObjectItemCaseSensitive(config, "special_tokens");
    int text = cJSON_IsArray(single) ? text_piece(single) : -1;
    if (text < 0)
        return td_fail(TD_ERR_DATA,
                       "%s: post_processor template \"single\" must hold the sequence A once",
                       where);
    int n = cJSON_GetArraySize(single);
    for (int i = text - 1; i >= 0; i--)
        TD_TRY(push_named_special(
            tokenizer, where, specials,
            cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(single, i), "SpecialToken"), 1));
    for (int i = text + 1; i < n; i++)
        TD_TRY(push_named_special(
            tokenizer, where, specials,
            cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(single, i), "SpecialToken"), 0));
    return TD_OK;
}

td_status td_load_post_processor(td_tokenizer *tokenizer, const char *where, const cJSON *config) {
    const char *type;
    TD_TRY(td_component_type(where, "post_processor", config, &type));
    // ByteLevel only trims the offsets that the library reports.
    if (!type || strcmp(type, "ByteLevel") == 0)
        return TD_OK;
    if (strcmp(type, "TemplateProcessing") == 0)
        return add_template(tokenizer, where, config);
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(config, "processors");
    if (strcmp(type, "Sequence") != 0 || !cJSON_IsArray(list))
        return td_fail_component(where, "post_processor", type,
                                 "TemplateProcessing, ByteLevel, Sequence");
    for (const cJSON *item = list->child; item; item = item->next)
        TD_TRY(td_load_post_processor(tokenizer, where, item));
    return TD_OK;
}
