// Loading of the byte-pair encoding model.
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"
#include "runtime/core/json.h"

enum { BMP_CODES = 0x10000 };

static const char space_symbol[] = "\xe2\x96\x81"; // U+2581, SentencePiece's space

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static size_t first_slot(const td_bpe *bpe, uint64_t pair) {
    return (size_t)((pair * 0x9E3779B97F4A7C15u) >> bpe->shift);
}

const td_merge *td_bpe_find_merge(const td_bpe *bpe, int32_t left, int32_t right) {
    uint64_t pair = pair_of(left, right);
    for (size_t slot = first_slot(bpe, pair);; slot = (slot + 1) & (bpe->n_slots - 1)) {
        if (bpe->merges[slot].pair == pair)
            return &bpe->merges[slot];
        if (bpe->merges[slot].pair == UINT64_MAX)
            return NULL;
    }
}

int32_t td_bpe_find(const td_bpe *bpe, const char *text, size_t bytes) {
    int32_t id = td_vocabulary_find(bpe->vocabulary, text, bytes);
    return id >= 0 && id < bpe->n_model_ids && bpe->token_bytes[id] > 0 ? id : -1;
}

// A pair that is listed twice counts where it is listed last.
static void insert_merge(td_bpe *bpe, td_merge merge) {
    size_t slot = first_slot(bpe, merge.pair);
    while (bpe->merges[slot].pair != UINT64_MAX && bpe->merges[slot].pair != merge.pair)
        slot = (slot + 1) & (bpe->n_slots - 1);
    bpe->merges[slot] = merge;
}

typedef struct pair_text {
    const char *left, *right;
    size_t left_bytes, right_bytes;
} pair_text;

// "a b" or ["a", "b"].
static int read_pair(const cJSON *item, pair_text *out) {
    if (cJSON_IsString(item)) {
        const char *space = strchr(item->valuestring, ' ');
        if (!space || space == item->valuestring || !space[1] || strchr(space + 1, ' '))
            return 0;
        *out = (pair_text){item->valuestring, space + 1, (size_t)(space - item->valuestring),
                           strlen(space + 1)};
        return 1;
    }
    const cJSON *left = cJSON_IsArray(item) ? item->child : NULL;
    const cJSON *right = left ? left->next : NULL;
    if (!cJSON_IsString(left) || !cJSON_IsString(right) || right->next)
        return 0;
    if (!left->valuestring[0] || !right->valuestring[0])
        return 0;
    *out = (pair_text){left->valuestring, right->valuestring, strlen(left->valuestring),
                       strlen(right->valuestring)};
    return 1;
}

static td_status resolve_merge(const td_bpe *bpe, const char *where, const pair_text *pair,
                               uint32_t rank, td_bytes *joined, td_merge *out) {
    joined->size = 0;
    TD_TRY(td_bytes_append(joined, pair->left, pair->left_bytes));
    TD_TRY(td_bytes_append(joined, pair->right, pair->right_bytes));
    int32_t left = td_vocabulary_find(bpe->vocabulary, pair->left, pair->left_bytes);
    int32_t right = td_vocabulary_find(bpe->vocabulary, pair->right, pair->right_bytes);
    int32_t id = td_vocabulary_find(bpe->vocabulary, joined->data, joined->size);
    if (left < 0 || right < 0 || id < 0)
        return td_fail(TD_ERR_DATA,
                       "%s: merge %u (\"%.*s\" \"%.*s\"): \"%.*s\" is not in the vocabulary", where,
                       rank, (int)pair->left_bytes, pair->left, (int)pair->right_bytes, pair->right,
                       (int)(left < 0    ? pair->left_bytes
                             : right < 0 ? pair->right_bytes
                                         : joined->size),
                       left < 0    ? pair->left
                       : right < 0 ? pair->right
                                   : joined->data);
    *out = (td_merge){.pair = pair_of(left, right), .rank = rank, .id = id};
    return TD_OK;
}

static td_status allocate_merges(td_bpe *bpe, const char *where, size_t count) {
    unsigned bits = 4;
    while (((size_t)1 << bits) < count * 2)
        bits++;
    bpe->n_slots = (size_t)1 << bits;
    bpe->shift = 64 - bits;
    bpe->merges = calloc(bpe->n_slots, sizeof *bpe->merges);
    if (!bpe->merges)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for %zu merges", where, count);
    for (size_t slot = 0; slot < bpe->n_slots; slot++)
        bpe->merges[slot].pair = UINT64_MAX;
    return TD_OK;
}

static int is_version_line(const cJSON *item) {
    return cJSON_IsString(item) && strncmp(item->valuestring, "#version", 8) == 0;
}

static td_status load_merges(td_bpe *bpe, const char *where, const cJSON *list) {
    if (!cJSON_IsArray(list))
        return td_fail(TD_ERR_DATA, "%s: model.merges must be a list", where);
    TD_TRY(allocate_merges(bpe, where, (size_t)cJSON_GetArraySize(list)));
    td_bytes joined = {0};
    td_status status = TD_OK;
    uint32_t rank = 0;
    for (const cJSON *item = list->child; item && status == TD_OK; item = item->next) {
        pair_text pair;
        td_merge merge = {0};
        if (is_version_line(item))
            continue;
        if (!read_pair(item, &pair))
            status =
                td_fail(TD_ERR_DATA, "%s: model.merges[%u] is not a pair of tokens", where, rank);
        else
            status = resolve_merge(bpe, where, &pair, rank++, &joined, &merge);
        if (status == TD_OK)
            insert_merge(bpe, merge);
    }
    td_bytes_fini(&joined);
    return status;
}

// In byte-level BPE a byte is a character of the vocabulary; elsewhere "<0x41>" stands for it.
static void find_byte_tokens(td_bpe *bpe) {
    static const char digits[] = "0123456789ABCDEF";
    for (int byte = 0; byte < 256; byte++) {
        char symbol[] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>', '\0'};
        size_t bytes = sizeof symbol - 1;
        if (bpe->byte_level)
            bytes = td_utf8_encode(td_byte_symbol((unsigned char)byte), symbol);
        bpe->byte_ids[byte] = bpe->byte_level || bpe->byte_fallback
                                  ? td_vocabulary_find(bpe->vocabulary, symbol, bytes)
                                  : -1;
    }
}

// Characters of a byte-level token are bytes of the text; a byte token is one byte.
static td_status measure_tokens(td_bpe *bpe, const char *where) {
    size_t size = (size_t)bpe->vocabulary->size;
    bpe->n_model_ids = bpe->vocabulary->size;
    bpe->token_bytes = calloc(size ? size : 1, sizeof *bpe->token_bytes);
    if (!bpe->token_bytes)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for %zu tokens", where, size);
    for (int32_t id = 0; id < bpe->vocabulary->size; id++) {
        size_t bytes;
        const char *text = td_vocabulary_text(bpe->vocabulary, id, &bytes);
        uint32_t count = 0;
        for (size_t i = 0; text && i < bytes; i++)
            count += !bpe->byte_level || ((unsigned char)text[i] & 0xc0) != 0x80;
        bpe->token_bytes[id] = count;
        if (count > bpe->longest_token_bytes)
            bpe->longest_token_bytes = count;
    }
    for (int byte = 0; byte < 256 && !bpe->byte_level; byte++)
        if (bpe->byte_ids[byte] >= 0)
            bpe->token_bytes[bpe->byte_ids[byte]] = 1;
    return TD_OK;
}

static td_status find_char_tokens(td_bpe *bpe, const char *where) {
    bpe->char_ids = malloc(BMP_CODES * sizeof *bpe->char_ids);
    if (!bpe->char_ids)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for the characters of the model", where);
    memset(bpe->char_ids, 0xff, BMP_CODES * sizeof *bpe->char_ids);
    for (int32_t id = 0; id < bpe->vocabulary->size; id++) {
        size_t bytes, length = 0;
        const char *text = td_vocabulary_text(bpe->vocabulary, id, &bytes);
        uint32_t code = text && bytes > 0 ? td_utf8_decode(text, &length) : 0;
        if (length > 0 && length == bytes && code < BMP_CODES)
            bpe->char_ids[code] = id;
    }
    return TD_OK;
}

static int is_unit_of_its_own(const td_bpe *bpe, int32_t id) {
    if (id == bpe->unknown_id)
        return 1;
    for (int byte = 0; byte < 256; byte++)
        if (bpe->byte_ids[byte] == id)
            return 1;
    return 0;
}

// Does a merge join something to a U+2581 that follows it? Tokens of bytes and the unknown token do
// not look like the text that they stand for, so any merge of them counts.
static int joins_space(const td_bpe *bpe, const td_merge *merge) {
    size_t left_bytes, right_bytes, space = sizeof space_symbol - 1;
    int32_t left_id = (int32_t)(merge->pair >> 32), right_id = (int32_t)(uint32_t)merge->pair;
    const char *left = td_vocabulary_text(bpe->vocabulary, left_id, &left_bytes);
    const char *right = td_vocabulary_text(bpe->vocabulary, right_id, &right_bytes);
    if (left[0] == '<' && is_unit_of_its_own(bpe, left_id))
        return 1;
    if (right[0] == '<' && is_unit_of_its_own(bpe, right_id))
        return 1;
    if (right_bytes < space || memcmp(right, space_symbol, space) != 0)
        return 0;
    return left_bytes < space || memcmp(left + left_bytes - space, space_symbol, space) != 0;
}

// Where no merge can reach across, a long word falls into pieces that are encoded alone.
static void find_splits(td_bpe *bpe) {
    const char *unknown = td_vocabulary_text(bpe->vocabulary, bpe->unknown_id, NULL);
    bpe->splits_at_spaces =
        !bpe->byte_level &&
        td_vocabulary_find(bpe->vocabulary, space_symbol, sizeof space_symbol - 1) >= 0 &&
        (!unknown || unknown[0] == '<');
    for (size_t slot = 0; bpe->splits_at_spaces && slot < bpe->n_slots; slot++)
        if (bpe->merges[slot].pair != UINT64_MAX && joins_space(bpe, &bpe->merges[slot]))
            bpe->splits_at_spaces = 0;
}

static td_status require_absent(const char *where, const cJSON *model, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(model, key);
    int absent = !item || cJSON_IsNull(item) || cJSON_IsFalse(item) ||
                 (cJSON_IsString(item) && item->valuestring[0] == '\0') ||
                 (cJSON_IsNumber(item) && item->valuedouble == 0);
    if (absent)
        return TD_OK;
    return td_fail(TD_ERR_DATA, "%s: model.%s is not supported", where, key);
}

static td_status load_options(td_bpe *bpe, const char *where, const cJSON *model) {
    static const char *const unsupported[] = {"dropout", "continuing_subword_prefix",
                                              "end_of_word_suffix"};
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        TD_TRY(require_absent(where, model, unsupported[i]));
    TD_TRY(td_json_bool(where, model, "ignore_merges", &bpe->ignore_merges));
    TD_TRY(td_json_bool(where, model, "fuse_unk", &bpe->fuse_unknown));
    TD_TRY(td_json_bool(where, model, "byte_fallback", &bpe->byte_fallback));
    const char *unknown = NULL;
    TD_TRY(td_json_string(where, model, "unk_token", &unknown));
    bpe->unknown_id = -1;
    if (!unknown || unknown[0] == '\0')
        return TD_OK;
    bpe->unknown_id = td_vocabulary_find(bpe->vocabulary, unknown, strlen(unknown));
    if (bpe->unknown_id < 0)
        return td_fail(TD_ERR_DATA, "%s: model.unk_token \"%.60s\" is not in the vocabulary", where,
                       unknown);
    return TD_OK;
}

// With a token for every byte there is nothing to fall back from.
static td_status check_fallback(const td_bpe *bpe, const char *where) {
    if (!bpe->byte_level || !bpe->byte_fallback)
        return TD_OK;
    for (int byte = 0; byte < 256; byte++)
        if (bpe->byte_ids[byte] < 0)
            return td_fail(TD_ERR_DATA,
                           "%s: model.byte_fallback is not supported for byte-level BPE that lacks "
                           "a token for byte %d",
                           where, byte);
    return TD_OK;
}

td_status td_bpe_init(td_bpe *bpe, const char *where, const cJSON *model,
                      const td_vocabulary *vocabulary, int byte_level) {
    bpe->vocabulary = vocabulary;
    bpe->byte_level = byte_level;
    TD_TRY(load_options(bpe, where, model));
    find_byte_tokens(bpe);
    TD_TRY(check_fallback(bpe, where));
    TD_TRY(measure_tokens(bpe, where));
    if (!byte_level)
        TD_TRY(find_char_tokens(bpe, where));
    TD_TRY(load_merges(bpe, where, cJSON_GetObjectItemCaseSensitive(model, "merges")));
    find_splits(bpe);
    return TD_OK;
}

void td_bpe_fini(td_bpe *bpe) {
    free(bpe->merges);
    free(bpe->token_bytes);
    free(bpe->char_ids);
}
