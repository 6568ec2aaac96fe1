// Byte-pair encoding of one word: the adjacent pair with the lowest rank is merged until none is
// left, leftmost first among equals (Sennrich, Haddow, Birch, ACL 2016, "Neural machine translation
// of rare words with subword units").
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"
#include "runtime/core/json.h"

enum {
    // Up to here scanning all pairs after each merge beats keeping a heap.
    SHORT_WORD_SYMBOLS = 48,
};

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static size_t first_slot(const td_bpe *bpe, uint64_t pair) {
    return (size_t)((pair * 0x9E3779B97F4A7C15u) >> bpe->shift);
}

// The merge of a pair, or NULL.
static const td_merge *find_merge(const td_bpe *bpe, int32_t left, int32_t right) {
    uint64_t pair = pair_of(left, right);
    for (size_t slot = first_slot(bpe, pair);; slot = (slot + 1) & (bpe->n_slots - 1)) {
        if (bpe->merges[slot].pair == pair)
            return &bpe->merges[slot];
        if (bpe->merges[slot].pair == UINT64_MAX)
            return NULL;
    }
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

static void find_byte_tokens(td_bpe *bpe) {
    for (int byte = 0; byte < 256; byte++) {
        char symbol[4];
        size_t bytes = td_utf8_encode(td_byte_symbol((unsigned char)byte), symbol);
        bpe->byte_ids[byte] = td_vocabulary_find(bpe->vocabulary, symbol, bytes);
    }
}

// Characters of a token of the model are bytes of the text.
static td_status measure_tokens(td_bpe *bpe, const char *where) {
    size_t size = (size_t)bpe->vocabulary->size;
    bpe->token_bytes = calloc(size ? size : 1, sizeof *bpe->token_bytes);
    if (!bpe->token_bytes)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for %zu tokens", where, size);
    for (int32_t id = 0; id < bpe->vocabulary->size; id++) {
        size_t bytes;
        const char *text = td_vocabulary_text(bpe->vocabulary, id, &bytes);
        for (size_t i = 0; text && i < bytes; i++)
            bpe->token_bytes[id] += ((unsigned char)text[i] & 0xc0) != 0x80;
    }
    return TD_OK;
}

static td_status require_absent(const char *where, const cJSON *model, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(model, key);
    int absent = !item || cJSON_IsNull(item) || cJSON_IsFalse(item) ||
                 (cJSON_IsString(item) && item->valuestring[0] == '\0') ||
                 (cJSON_IsNumber(item) && item->valuedouble == 0);
    if (absent)
        return TD_OK;
    return td_fail(TD_ERR_DATA, "%s: model.%s is not supported for byte-level BPE", where, key);
}

static td_status load_options(td_bpe *bpe, const char *where, const cJSON *model) {
    static const char *const unsupported[] = {"dropout", "continuing_subword_prefix",
                                              "end_of_word_suffix", "fuse_unk", "byte_fallback"};
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        TD_TRY(require_absent(where, model, unsupported[i]));
    TD_TRY(td_json_bool(where, model, "ignore_merges", &bpe->ignore_merges));
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

td_status td_bpe_init(td_bpe *bpe, const char *where, const cJSON *model,
                      const td_vocabulary *vocabulary) {
    bpe->vocabulary = vocabulary;
    TD_TRY(load_options(bpe, where, model));
    find_byte_tokens(bpe);
    TD_TRY(measure_tokens(bpe, where));
    return load_merges(bpe, where, cJSON_GetObjectItemCaseSensitive(model, "merges"));
}

void td_bpe_fini(td_bpe *bpe) {
    free(bpe->merges);
    free(bpe->token_bytes);
}

// One symbol per byte that has a token. *out_complete: every byte has one.
static size_t split_bytes(const td_bpe *bpe, const char *word, size_t bytes, td_symbol *symbols,
                          int *out_complete) {
    size_t count = 0;
    *out_complete = 1;
    for (size_t i = 0; i < bytes; i++) {
        int32_t id = bpe->byte_ids[(unsigned char)word[i]];
        if (id < 0) {
            *out_complete = 0;
            id = bpe->unknown_id;
        }
        if (id < 0)
            continue;
        symbols[count] = (td_symbol){.id = id, .begin = (uint32_t)i, .end = (uint32_t)i + 1};
        count++;
    }
    return count;
}

// Rank in the high half and merged id in the low one; INT64_MAX when the pair does not merge.
static int64_t rank_of(const td_bpe *bpe, const td_symbol *symbols, size_t i) {
    const td_merge *merge = find_merge(bpe, symbols[i].id, symbols[i + 1].id);
    return merge ? (int64_t)((uint64_t)merge->rank << 32 | (uint32_t)merge->id) : INT64_MAX;
}

static size_t merge_short(const td_bpe *bpe, td_symbol *symbols, size_t count) {
    int64_t ranks[SHORT_WORD_SYMBOLS];
    for (size_t i = 0; i + 1 < count; i++)
        ranks[i] = rank_of(bpe, symbols, i);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == INT64_MAX)
            break;
        symbols[best].id = (int32_t)(uint32_t)ranks[best];
        symbols[best].end = symbols[best + 1].end;
        size_t moved = count - best - 2;
        memmove(symbols + best + 1, symbols + best + 2, moved * sizeof *symbols);
        if (moved > 0)
            memmove(ranks + best + 1, ranks + best + 2, (moved - 1) * sizeof *ranks);
        count--;
        if (best > 0)
            ranks[best - 1] = rank_of(bpe, symbols, best - 1);
        if (best + 1 < count)
            ranks[best] = rank_of(bpe, symbols, best);
    }
    return count;
}

static void heap_push(td_candidate *heap, size_t *count, td_candidate candidate) {
    size_t i = (*count)++;
    for (; i > 0 && heap[(i - 1) / 2].order > candidate.order; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = candidate;
}

static td_candidate heap_pop(td_candidate *heap, size_t *count) {
    td_candidate top = heap[0], last = heap[--*count];
    size_t i = 0;
    for (size_t child = 1; child < *count; child = 2 * i + 1) {
        if (child + 1 < *count && heap[child + 1].order < heap[child].order)
            child++;
        if (heap[child].order >= last.order)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

static void push_pair(const td_bpe *bpe, const td_symbol *symbols, int32_t position,
                      td_candidate *heap, size_t *n_heap) {
    int32_t next = position < 0 ? -1 : symbols[position].next;
    if (next < 0)
        return;
    const td_merge *merge = find_merge(bpe, symbols[position].id, symbols[next].id);
    if (merge)
        heap_push(heap, n_heap,
                  (td_candidate){.order = (uint64_t)merge->rank << 32 | (uint32_t)position,
                                 .id = merge->id});
}

// Merges the pair at `position` if it still is the one that the candidate was made for.
static int apply_candidate(const td_bpe *bpe, td_symbol *symbols, td_candidate candidate) {
    td_symbol *left = &symbols[(uint32_t)candidate.order];
    if (left->id < 0 || left->next < 0)
        return 0;
    td_symbol *right = &symbols[left->next];
    const td_merge *merge = find_merge(bpe, left->id, right->id);
    if (!merge || merge->id != candidate.id)
        return 0;
    left->id = merge->id;
    left->end = right->end;
    left->next = right->next;
    if (right->next >= 0)
        symbols[right->next].previous = right->previous;
    right->id = -1;
    return 1;
}

// The symbols form a linked list; candidates that a later merge made stale are recognized when they
// come up. Every merge adds at most two candidates, so the heap never holds more than three per
// symbol.
static size_t merge_long(const td_bpe *bpe, td_symbol *symbols, size_t count, td_candidate *heap) {
    size_t n_heap = 0;
    for (size_t i = 0; i < count; i++) {
        symbols[i].previous = (int32_t)i - 1;
        symbols[i].next = i + 1 < count ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i + 1 < count; i++)
        push_pair(bpe, symbols, (int32_t)i, heap, &n_heap);
    while (n_heap > 0) {
        td_candidate candidate = heap_pop(heap, &n_heap);
        if (!apply_candidate(bpe, symbols, candidate))
            continue;
        int32_t position = (int32_t)(uint32_t)candidate.order;
        push_pair(bpe, symbols, symbols[position].previous, heap, &n_heap);
        push_pair(bpe, symbols, position, heap, &n_heap);
    }
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (symbols[i].id >= 0)
            symbols[kept++] = symbols[i];
    return kept;
}

static td_status merge_symbols(const td_bpe *bpe, td_scratch *scratch, size_t *count) {
    if (*count <= SHORT_WORD_SYMBOLS) {
        *count = merge_short(bpe, scratch->symbols, *count);
        return TD_OK;
    }
    TD_TRY(td_grow(&scratch->heap, &scratch->heap_capacity, *count * 3, sizeof *scratch->heap));
    *count = merge_long(bpe, scratch->symbols, *count, scratch->heap);
    return TD_OK;
}

// The id of a word that is itself a token, -1 otherwise.
static td_status find_whole_word(const td_bpe *bpe, td_scratch *scratch, td_text word,
                                 int32_t *out) {
    scratch->symbol_text.size = 0;
    TD_TRY(td_bytes_reserve(&scratch->symbol_text, word.length * 2));
    size_t bytes = td_symbols_from_bytes(word.bytes, word.length, scratch->symbol_text.data);
    *out = td_vocabulary_find(bpe->vocabulary, scratch->symbol_text.data, bytes);
    return TD_OK;
}

static td_status push_symbols(const td_scratch *scratch, size_t count, td_text word,
                              td_tokens *out) {
    for (size_t i = 0; i < count; i++) {
        const td_symbol *symbol = &scratch->symbols[i];
        TD_TRY(td_tokens_push(out, symbol->id, td_text_begin(word, symbol->begin),
                              td_text_end(word, symbol->end)));
    }
    return TD_OK;
}

static td_status encode_uncached(const td_bpe *bpe, td_scratch *scratch, td_text word,
                                 td_tokens *out, int *out_complete) {
    *out_complete = 1;
    if (bpe->ignore_merges) {
        int32_t id;
        TD_TRY(find_whole_word(bpe, scratch, word, &id));
        if (id >= 0)
            return td_tokens_push(out, id, td_text_begin(word, 0), td_text_end(word, word.length));
    }
    TD_TRY(td_grow(&scratch->symbols, &scratch->symbols_capacity, word.length,
                   sizeof *scratch->symbols));
    size_t count = split_bytes(bpe, word.bytes, word.length, scratch->symbols, out_complete);
    TD_TRY(merge_symbols(bpe, scratch, &count));
    return push_symbols(scratch, count, word, out);
}

static td_status push_cached(const td_bpe *bpe, const td_cached_word *cached, td_text word,
                             td_tokens *out) {
    size_t begin = 0;
    for (int i = 0; i < cached->n_ids; i++) {
        size_t end = begin + bpe->token_bytes[cached->ids[i]];
        TD_TRY(td_tokens_push(out, cached->ids[i], td_text_begin(word, begin),
                              td_text_end(word, end)));
        begin = end;
    }
    return TD_OK;
}

static int is_cached(const td_cached_word *cached, td_text word) {
    return cached->key_bytes == word.length && memcmp(cached->key, word.bytes, word.length) == 0;
}

static void remember(td_cached_word *cached, td_text word, const int32_t *ids, size_t n_ids) {
    if (n_ids > TD_WORD_CACHE_IDS)
        return;
    cached->key_bytes = (uint8_t)word.length;
    cached->n_ids = (uint8_t)n_ids;
    memcpy(cached->key, word.bytes, word.length);
    if (n_ids > 0)
        memcpy(cached->ids, ids, n_ids * sizeof *ids);
}

td_status td_bpe_encode_word(const td_bpe *bpe, td_scratch *scratch, td_text word, td_tokens *out) {
    int complete;
    if (word.length == 0)
        return TD_OK;
    if (word.length > TD_WORD_CACHE_KEY_BYTES)
        return encode_uncached(bpe, scratch, word, out, &complete);
    td_cached_word *cached = td_scratch_word_slot(scratch, XXH3_64bits(word.bytes, word.length));
    if (is_cached(cached, word))
        return push_cached(bpe, cached, word, out);
    size_t before = out->count;
    TD_TRY(encode_uncached(bpe, scratch, word, out, &complete));
    // Without a token for some byte, the lengths of the tokens do not add up to the word.
    if (complete)
        remember(cached, word, out->ids + before, out->count - before);
    return TD_OK;
}
