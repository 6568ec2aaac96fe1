// Byte-pair encoding of one word: the adjacent pair with the lowest rank is merged until none is
// left, leftmost first among equals (Sennrich, Haddow, Birch, ACL 2016, "Neural machine translation
// of rare words with subword units").
#define _GNU_SOURCE // memmem
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

static const char space_symbol[] = "\xe2\x96\x81"; // U+2581, SentencePiece's space

enum {
    // Up to here scanning all pairs after each merge beats keeping a heap.
    SHORT_WORD_SYMBOLS = 48,
};

// The symbols that a word begins as. What has no token is held back as unknown until it is known
// whether the next joins it; the tokens of its bytes, where they exist, come at once.
typedef struct splitting {
    const td_bpe *bpe;
    td_symbol *symbols;
    size_t count;
    int has_unknown;
    uint32_t unknown_begin, unknown_end;
} splitting;

static void push_symbol(splitting *s, int32_t id, size_t begin, size_t end) {
    s->symbols[s->count++] = (td_symbol){.id = id, .begin = (uint32_t)begin, .end = (uint32_t)end};
}

static void flush_unknown(splitting *s) {
    if (s->has_unknown)
        push_symbol(s, s->bpe->unknown_id, s->unknown_begin, s->unknown_end);
    s->has_unknown = 0;
}

static int push_bytes(splitting *s, const char *word, size_t begin, size_t end) {
    if (s->bpe->byte_level || !s->bpe->byte_fallback)
        return 0;
    for (size_t i = begin; i < end; i++)
        if (s->bpe->byte_ids[(unsigned char)word[i]] < 0)
            return 0;
    for (size_t i = begin; i < end; i++)
        push_symbol(s, s->bpe->byte_ids[(unsigned char)word[i]], i, i + 1);
    return 1;
}

static void push_unknown(splitting *s, const char *word, size_t begin, size_t end) {
    if (push_bytes(s, word, begin, end) || s->bpe->unknown_id < 0)
        return;
    if (!s->bpe->fuse_unknown)
        flush_unknown(s);
    if (!s->has_unknown)
        s->unknown_begin = (uint32_t)begin;
    s->unknown_end = (uint32_t)end;
    s->has_unknown = 1;
}

static int32_t char_token(const td_bpe *bpe, const char *text, size_t *length) {
    if (bpe->byte_level) {
        *length = 1;
        return bpe->byte_ids[(unsigned char)*text];
    }
    uint32_t code = td_utf8_decode(text, length);
    return code < 0x10000 ? bpe->char_ids[code] : td_bpe_find(bpe, text, *length);
}

static size_t split_word(const td_bpe *bpe, const char *word, size_t bytes, td_symbol *symbols) {
    splitting s = {.bpe = bpe, .symbols = symbols};
    for (size_t i = 0, length; i < bytes; i += length) {
        int32_t id = char_token(bpe, word + i, &length);
        if (id < 0) {
            push_unknown(&s, word, i, i + length);
            continue;
        }
        flush_unknown(&s);
        push_symbol(&s, id, i, i + length);
    }
    flush_unknown(&s);
    return s.count;
}

// Rank in the high half and merged id in the low one; INT64_MAX when the pair does not merge.
static int64_t rank_of(const td_bpe *bpe, const td_symbol *symbols, size_t i) {
    const td_merge *merge = td_bpe_find_merge(bpe, symbols[i].id, symbols[i + 1].id);
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
    const td_merge *merge = td_bpe_find_merge(bpe, symbols[position].id, symbols[next].id);
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
    const td_merge *merge = td_bpe_find_merge(bpe, left->id, right->id);
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
    *out = -1;
    if (word.length > bpe->longest_token_bytes)
        return TD_OK;
    if (!bpe->byte_level) {
        *out = td_bpe_find(bpe, word.bytes, word.length);
        return TD_OK;
    }
    scratch->symbol_text.size = 0;
    TD_TRY(td_bytes_reserve(&scratch->symbol_text, word.length * 2));
    size_t bytes = td_symbols_from_bytes(word.bytes, word.length, scratch->symbol_text.data);
    *out = td_bpe_find(bpe, scratch->symbol_text.data, bytes);
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

// Only what the lengths of the tokens give back can be remembered: not unknown ones.
static void remember(const td_bpe *bpe, td_cached_word *cached, td_text word,
                     const td_symbol *symbols, size_t count) {
    uint32_t end = 0;
    if (count > TD_WORD_CACHE_IDS)
        return;
    for (size_t i = 0; i < count; end = symbols[i].end, i++)
        if (symbols[i].begin != end ||
            symbols[i].end - symbols[i].begin != bpe->token_bytes[symbols[i].id])
            return;
    if (end != word.length)
        return;
    cached->key_bytes = (uint8_t)word.length;
    cached->n_ids = (uint8_t)count;
    memcpy(cached->key, word.bytes, word.length);
    for (size_t i = 0; i < count; i++)
        cached->ids[i] = symbols[i].id;
}

// The whole word as one token where the model takes that, else its characters merged.
static td_status find_tokens(const td_bpe *bpe, td_scratch *scratch, td_text word, int may_be_whole,
                             size_t *count) {
    int32_t id = -1;
    if (may_be_whole && bpe->ignore_merges)
        TD_TRY(find_whole_word(bpe, scratch, word, &id));
    TD_TRY(td_grow(&scratch->symbols, &scratch->symbols_capacity, word.length,
                   sizeof *scratch->symbols));
    if (id >= 0) {
        scratch->symbols[0] = (td_symbol){.id = id, .end = (uint32_t)word.length};
        *count = 1;
        return TD_OK;
    }
    *count = split_word(bpe, word.bytes, word.length, scratch->symbols);
    return merge_symbols(bpe, scratch, count);
}

static td_status encode_piece(const td_bpe *bpe, td_scratch *scratch, td_text word,
                              int may_be_whole, td_tokens *out) {
    size_t count;
    td_cached_word *cached = NULL;
    if (word.length <= TD_WORD_CACHE_KEY_BYTES) {
        cached = td_scratch_word_slot(scratch, XXH3_64bits(word.bytes, word.length));
        if (is_cached(cached, word))
            return push_cached(bpe, cached, word, out);
    }
    TD_TRY(find_tokens(bpe, scratch, word, may_be_whole, &count));
    if (cached)
        remember(bpe, cached, word, scratch->symbols, count);
    return push_symbols(scratch, count, word, out);
}

// End of the piece that begins at `begin`: before the next U+2581 that follows something else.
static size_t piece_end(td_text word, size_t begin) {
    size_t i = begin;
    while (word.length - i >= 3 && memcmp(word.bytes + i, space_symbol, 3) == 0)
        i += 3;
    const char *next = memmem(word.bytes + i, word.length - i, space_symbol, 3);
    return next ? (size_t)(next - word.bytes) : word.length;
}

td_status td_bpe_encode_word(const td_bpe *bpe, td_scratch *scratch, td_text word, td_tokens *out) {
    if (word.length == 0)
        return TD_OK;
    if (!bpe->splits_at_spaces)
        return encode_piece(bpe, scratch, word, 1, out);
    // A word may be a token though its pieces never merge.
    int32_t id = -1;
    if (bpe->ignore_merges)
        TD_TRY(find_whole_word(bpe, scratch, word, &id));
    if (id >= 0)
        return td_tokens_push(out, id, td_text_begin(word, 0), td_text_end(word, word.length));
    for (size_t begin = 0, end; begin < word.length; begin = end) {
        end = piece_end(word, begin);
        TD_TRY(encode_piece(bpe, scratch, td_text_slice(word, begin, end), 0, out));
    }
    return TD_OK;
}
