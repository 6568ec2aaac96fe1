// Growing buffers and the pool of scratch memory.
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

enum {
    WORD_CACHE_SLOTS = 1 << 14, // 64 bytes each: 1 MiB
    KEPT_BYTES = 4 << 20,       // larger buffers are given back after the call
    JIT_STACK_START_BYTES = 32 << 10,
    JIT_STACK_MAX_BYTES = 16 << 20,
    FIRST_CAPACITY = 64,
};

td_status td_grow(void *items, size_t *capacity, size_t needed, size_t item_bytes) {
    if (needed <= *capacity)
        return TD_OK;
    size_t room = *capacity < FIRST_CAPACITY ? FIRST_CAPACITY : *capacity;
    while (room < needed && room <= SIZE_MAX / 2)
        room *= 2;
    size_t bytes;
    void *old, *grown = NULL;
    memcpy(&old, items, sizeof old);
    if (room >= needed && !__builtin_mul_overflow(room, item_bytes, &bytes))
        grown = realloc(old, bytes);
    if (!grown)
        return td_fail(TD_ERR_MEMORY, "the tokenizer cannot allocate %zu items of %zu bytes",
                       needed, item_bytes);
    memcpy(items, &grown, sizeof grown);
    *capacity = room;
    return TD_OK;
}

td_status td_bytes_reserve(td_bytes *bytes, size_t more) {
    return td_grow(&bytes->data, &bytes->capacity, bytes->size + more, 1);
}

td_status td_bytes_append(td_bytes *bytes, const char *data, size_t size) {
    TD_TRY(td_bytes_reserve(bytes, size));
    if (size > 0)
        memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
    return TD_OK;
}

td_status td_bytes_append_string(td_bytes *bytes, const char *text) {
    return td_bytes_append(bytes, text, strlen(text));
}

void td_bytes_fini(td_bytes *bytes) {
    free(bytes->data);
    *bytes = (td_bytes){0};
}

static td_status reserve_mapped(td_mapped *mapped, size_t more) {
    size_t needed = mapped->text.size + more;
    TD_TRY(td_bytes_reserve(&mapped->text, more));
    TD_TRY(td_grow(&mapped->begins, &mapped->begins_capacity, needed, sizeof *mapped->begins));
    return td_grow(&mapped->ends, &mapped->ends_capacity, needed, sizeof *mapped->ends);
}

td_status td_mapped_copy(td_mapped *mapped, td_text from, size_t begin, size_t end) {
    size_t at = mapped->text.size, size = end - begin;
    if (size == 0)
        return TD_OK;
    TD_TRY(reserve_mapped(mapped, size));
    memcpy(mapped->text.data + at, from.bytes + begin, size);
    if (from.begins) {
        memcpy(mapped->begins + at, from.begins + begin, size * sizeof *mapped->begins);
        memcpy(mapped->ends + at, from.ends + begin, size * sizeof *mapped->ends);
    } else {
        uint32_t origin = from.origin + (uint32_t)begin;
        for (size_t i = 0; i < size; i++) {
            mapped->begins[at + i] = origin + (uint32_t)i;
            mapped->ends[at + i] = origin + (uint32_t)i + 1;
        }
    }
    mapped->text.size += size;
    return TD_OK;
}

td_status td_mapped_append(td_mapped *mapped, const char *data, size_t size, uint32_t span_begin,
                           uint32_t span_end) {
    TD_TRY(reserve_mapped(mapped, size));
    for (size_t i = 0, at = mapped->text.size; i < size; i++, at++) {
        mapped->text.data[at] = data[i];
        mapped->begins[at] = span_begin;
        mapped->ends[at] = span_end;
    }
    mapped->text.size += size;
    return TD_OK;
}

td_text td_mapped_text(const td_mapped *mapped) {
    return (td_text){.bytes = mapped->text.data ? mapped->text.data : "",
                     .length = mapped->text.size,
                     .begins = mapped->begins,
                     .ends = mapped->ends};
}

void td_mapped_fini(td_mapped *mapped) {
    td_bytes_fini(&mapped->text);
    free(mapped->begins);
    free(mapped->ends);
    *mapped = (td_mapped){0};
}

void td_tokens_fini(td_tokens *tokens) {
    free(tokens->ids);
    free(tokens->begins);
    free(tokens->ends);
    *tokens = (td_tokens){0};
}

static td_status grow_tokens(td_tokens *tokens) {
    size_t needed = tokens->count + 1, room = tokens->capacity;
    TD_TRY(td_grow(&tokens->ids, &room, needed, sizeof *tokens->ids));
    room = tokens->capacity;
    TD_TRY(td_grow(&tokens->begins, &room, needed, sizeof *tokens->begins));
    room = tokens->capacity;
    TD_TRY(td_grow(&tokens->ends, &room, needed, sizeof *tokens->ends));
    tokens->capacity = room;
    return TD_OK;
}

td_status td_tokens_push(td_tokens *tokens, int32_t id, uint32_t begin, uint32_t end) {
    if (tokens->count == tokens->capacity)
        TD_TRY(grow_tokens(tokens));
    tokens->ids[tokens->count] = id;
    tokens->begins[tokens->count] = begin;
    tokens->ends[tokens->count] = end;
    tokens->count++;
    return TD_OK;
}

static td_status create_matches(const td_tokenizer *tokenizer, td_scratch *scratch) {
    scratch->match_context = pcre2_match_context_create(NULL);
    scratch->jit_stack = pcre2_jit_stack_create(JIT_STACK_START_BYTES, JIT_STACK_MAX_BYTES, NULL);
    scratch->replace_match = pcre2_match_data_create(1, NULL);
    int complete = scratch->match_context && scratch->replace_match;
    // Without the just-in-time compiler there is no stack for it, and none is needed.
    if (scratch->match_context && scratch->jit_stack)
        pcre2_jit_stack_assign(scratch->match_context, NULL, scratch->jit_stack);
    for (int i = 0; i < tokenizer->pretokenizer.n_stages; i++) {
        if (tokenizer->pretokenizer.stages[i].split != TD_STAGE_PATTERN)
            continue;
        scratch->matches[i] = pcre2_match_data_create(1, NULL);
        complete = complete && scratch->matches[i];
    }
    return complete ? TD_OK : td_fail(TD_ERR_MEMORY, "the tokenizer cannot allocate match data");
}

static td_status create_scratch(const td_tokenizer *tokenizer, td_scratch **out) {
    td_scratch *scratch = calloc(1, sizeof *scratch);
    if (scratch)
        scratch->words = calloc(WORD_CACHE_SLOTS, sizeof *scratch->words);
    td_status status = scratch && scratch->words
                           ? create_matches(tokenizer, scratch)
                           : td_fail(TD_ERR_MEMORY, "the tokenizer cannot allocate its word cache");
    if (status != TD_OK) {
        td_scratch_destroy(scratch);
        return status;
    }
    *out = scratch;
    return TD_OK;
}

static void destroy_buffers(td_scratch *scratch) {
    free(scratch->symbols);
    free(scratch->heap);
    free(scratch->marks);
    free(scratch->codes);
    td_bytes_fini(&scratch->symbol_text);
    for (int i = 0; i < 2; i++)
        td_mapped_fini(&scratch->normalized[i]);
    for (int i = 0; i < TD_PRETOKENIZER_MAX_STAGES; i++)
        td_mapped_fini(&scratch->staged[i]);
}

void td_scratch_destroy(td_scratch *scratch) {
    if (!scratch)
        return;
    destroy_buffers(scratch);
    for (int i = 0; i < TD_PRETOKENIZER_MAX_STAGES; i++)
        pcre2_match_data_free(scratch->matches[i]);
    pcre2_match_data_free(scratch->replace_match);
    pcre2_jit_stack_free(scratch->jit_stack);
    pcre2_match_context_free(scratch->match_context);
    free(scratch->words);
    free(scratch);
}

td_cached_word *td_scratch_word_slot(td_scratch *scratch, uint64_t hash) {
    return &scratch->words[hash & (WORD_CACHE_SLOTS - 1)];
}

td_status td_scratch_acquire(const td_tokenizer *tokenizer, td_scratch **out) {
    td_tokenizer_pool *pool = tokenizer->pool;
    pthread_mutex_lock(&pool->lock);
    td_scratch *scratch = pool->free;
    if (scratch)
        pool->free = scratch->next;
    pthread_mutex_unlock(&pool->lock);
    if (!scratch)
        return create_scratch(tokenizer, out);
    *out = scratch;
    return TD_OK;
}

// One huge text must not keep its buffers for the rest of the run.
static int is_oversized(const td_scratch *scratch) {
    for (int i = 0; i < TD_PRETOKENIZER_MAX_STAGES; i++)
        if (scratch->staged[i].text.capacity > KEPT_BYTES)
            return 1;
    return scratch->symbols_capacity * sizeof *scratch->symbols > KEPT_BYTES ||
           scratch->normalized[0].text.capacity > KEPT_BYTES ||
           scratch->normalized[1].text.capacity > KEPT_BYTES ||
           scratch->marks_capacity * sizeof *scratch->marks > KEPT_BYTES;
}

void td_scratch_release(const td_tokenizer *tokenizer, td_scratch *scratch) {
    td_tokenizer_pool *pool = tokenizer->pool;
    if (is_oversized(scratch)) {
        td_scratch_destroy(scratch);
        return;
    }
    pthread_mutex_lock(&pool->lock);
    scratch->next = pool->free;
    pool->free = scratch;
    pthread_mutex_unlock(&pool->lock);
}
