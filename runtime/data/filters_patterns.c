#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "runtime/data/filters_internal.h"

// PCRE2 bounds the steps of one attempt, and attempts begin at every character. Those of a block
// are made at a time, and the clock is asked in between. It is the thread's own: waiting for a
// processor is not the pattern's fault.
enum {
    MATCH_LIMIT = 1000000,
    HEAP_LIMIT_KIB = 64 << 10,
    BLOCK_BYTES = 16 << 10,
    MAX_SECONDS = 10,
};

static td_status fail_compile(const char *name, int index, const char *text, int error,
                              size_t offset) {
    PCRE2_UCHAR reason[128];
    pcre2_get_error_message(error, reason, sizeof reason);
    return td_fail(TD_ERR_USAGE, "%s[%d] \"%.200s\": %s at character %zu", name, index, text,
                   (const char *)reason, offset + 1);
}

static td_status compile(td_filter_patterns *self, int index, const char *text) {
    int error;
    size_t offset;
    td_filter_pattern *item = &self->items[index];
    item->text = strdup(text);
    if (!item->text)
        return td_fail(TD_ERR_MEMORY, "no memory for the patterns of %s", self->name);
    item->code =
        pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT,
                      &error, &offset, NULL);
    if (!item->code)
        return fail_compile(self->name, index, text, error, offset);
    // Matching is interpreted, only slower, where the just-in-time compiler may not run.
    pcre2_jit_compile(item->code, PCRE2_JIT_COMPLETE);
    return TD_OK;
}

td_status td_filter_patterns_init(td_filter_patterns *self, const char *name,
                                  const td_string_list *patterns) {
    int count = patterns ? patterns->count : 0;
    *self = (td_filter_patterns){.name = name};
    if (count == 0)
        return TD_OK;
    self->items = calloc((size_t)count, sizeof *self->items);
    if (!self->items)
        return td_fail(TD_ERR_MEMORY, "no memory for the patterns of %s", name);
    self->count = count;
    for (int i = 0; i < count; i++)
        TD_TRY(compile(self, i, patterns->items[i]));
    return TD_OK;
}

void td_filter_patterns_fini(td_filter_patterns *self) {
    for (int i = 0; i < self->count; i++) {
        pcre2_code_free(self->items[i].code);
        free(self->items[i].text);
    }
    free(self->items);
    *self = (td_filter_patterns){0};
}

// What one search needs; each has its own, so that threads do not meet.
typedef struct search {
    pcre2_match_data *data;
    pcre2_match_context *bounds;
} search;

static double thread_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void search_fini(search *self) {
    pcre2_match_data_free(self->data);
    pcre2_match_context_free(self->bounds);
}

static td_status search_init(search *self, const char *where) {
    self->data = pcre2_match_data_create(1, NULL);
    self->bounds = pcre2_match_context_create(NULL);
    if (!self->data || !self->bounds) {
        search_fini(self);
        return td_fail(TD_ERR_MEMORY, "%s: no memory to search it", where);
    }
    pcre2_set_match_limit(self->bounds, MATCH_LIMIT);
    pcre2_set_heap_limit(self->bounds, HEAP_LIMIT_KIB);
    return TD_OK;
}

// Matches that begin in [begin, end). The just-in-time compiler's stack is small; what needs more
// goes to the interpreter, whose memory is bounded too.
static int match_block(const search *self, const pcre2_code *code, const char *text, size_t bytes,
                       size_t begin, size_t end) {
    uint32_t flags = begin > 0 ? PCRE2_NO_UTF_CHECK : 0;
    pcre2_set_offset_limit(self->bounds, end - 1);
    int result = pcre2_match(code, (PCRE2_SPTR)text, bytes, begin, flags, self->data, self->bounds);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT)
        result = pcre2_match(code, (PCRE2_SPTR)text, bytes, begin, flags | PCRE2_NO_JIT, self->data,
                             self->bounds);
    return result;
}

static size_t block_end(const char *text, size_t bytes, size_t begin) {
    if (bytes - begin <= BLOCK_BYTES)
        return bytes + 1; // an empty match at the end as well
    size_t end = begin + BLOCK_BYTES;
    while (((unsigned char)text[end] & 0xc0) == 0x80)
        end--;
    return end;
}

// 1: found; 0: not; below: the error of PCRE2.
static int match_text(const search *self, const pcre2_code *code, const char *text, size_t bytes) {
    double deadline = thread_seconds() + MAX_SECONDS;
    for (size_t begin = 0; begin <= bytes;) {
        size_t end = block_end(text, bytes, begin);
        int result = match_block(self, code, text, bytes, begin, end);
        if (result != PCRE2_ERROR_NOMATCH)
            return result >= 0 ? 1 : result;
        if (end <= bytes && thread_seconds() > deadline)
            return PCRE2_ERROR_MATCHLIMIT;
        begin = end;
    }
    return 0;
}

static td_status fail_match(const td_filter_patterns *self, const char *where, int index,
                            int error) {
    PCRE2_UCHAR reason[128];
    pcre2_get_error_message(error, reason, sizeof reason);
    return td_fail(
        TD_ERR_USAGE,
        "%s: %s[%d] \"%.200s\" gives up on this row (%s): rewrite the pattern with fewer "
        "repetitions within repetitions",
        where, self->name, index, self->items[index].text, (const char *)reason);
}

static td_status match_any(const td_filter_patterns *self, const search *own, const char *where,
                           const td_row_texts *texts, int *out) {
    for (int i = 0; i < self->count; i++) {
        const pcre2_code *code = self->items[i].code;
        int found = 0;
        if (texts->has_prompt)
            found = match_text(own, code, texts->prompt, texts->prompt_bytes);
        if (found == 0)
            found = match_text(own, code, texts->response, texts->response_bytes);
        if (found < 0)
            return fail_match(self, where, i, found);
        if (found) {
            *out = 1;
            return TD_OK;
        }
    }
    return TD_OK;
}

td_status td_filter_patterns_match(const td_filter_patterns *self, const char *where,
                                   const td_row_texts *texts, int *out) {
    search own;
    *out = 0;
    if (self->count == 0)
        return TD_OK;
    TD_TRY(search_init(&own, where));
    td_status status = match_any(self, &own, where, texts, out);
    search_fini(&own);
    return status;
}
