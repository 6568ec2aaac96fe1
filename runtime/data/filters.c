#include "runtime/data/filters.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "model/unicode.h"
#include "runtime/data/filters_internal.h"

const td_filter_options td_filters_off = {.max_jaccard = 1};

const td_filter_reason td_filter_reasons[TD_FILTER_VERDICTS] = {
    [TD_FILTER_KEEP] = {"kept", "kept"},
    [TD_FILTER_FEW_TOKENS] = {"too_few_tokens", "fewer tokens than min_tokens"},
    [TD_FILTER_SHORT_PROMPT] = {"prompt_too_short", "prompt of fewer words than min_prompt_words"},
    [TD_FILTER_LONG_PROMPT] = {"prompt_too_long", "prompt of more words than max_prompt_words"},
    [TD_FILTER_SHORT_RESPONSE] = {"response_too_short",
                                  "response of fewer words than min_response_words"},
    [TD_FILTER_LONG_RESPONSE] = {"response_too_long",
                                 "response of more words than max_response_words"},
    [TD_FILTER_REPEATS_PROMPT] =
        {"repeats_prompt", "response too much like the prompt (max_prompt_response_jaccard)"},
    [TD_FILTER_DROP_MATCHING] = {"drop_matching", "matches a pattern of drop_matching"},
    [TD_FILTER_KEEP_MATCHING] = {"keep_matching", "matches no pattern of keep_matching"},
};

struct td_filters {
    td_filter_options options; // without the patterns
    td_filter_patterns drop, keep;
};

static td_status check_range(const char *what, int64_t minimum, int64_t maximum) {
    if (minimum < 0 || maximum < 0)
        return td_fail(TD_ERR_USAGE, "min_%s_words and max_%s_words must not be negative", what,
                       what);
    if (maximum > 0 && minimum > maximum)
        return td_fail(TD_ERR_USAGE,
                       "min_%s_words, %lld, is above max_%s_words, %lld: no row can meet both",
                       what, (long long)minimum, what, (long long)maximum);
    return TD_OK;
}

static td_status check_options(const td_filter_options *options) {
    TD_TRY(check_range("prompt", options->min_prompt_words, options->max_prompt_words));
    TD_TRY(check_range("response", options->min_response_words, options->max_response_words));
    if (options->min_tokens < 0)
        return td_fail(TD_ERR_USAGE, "min_tokens must not be negative");
    if (!(options->max_jaccard >= 0 && options->max_jaccard <= 1))
        return td_fail(TD_ERR_USAGE, "max_prompt_response_jaccard must be from 0 to 1 (1: off)");
    return TD_OK;
}

static td_status fill(td_filters *self, const td_filter_options *options) {
    self->options = *options;
    self->options.drop_matching = self->options.keep_matching = NULL;
    TD_TRY(td_filter_patterns_init(&self->drop, "drop_matching", options->drop_matching));
    return td_filter_patterns_init(&self->keep, "keep_matching", options->keep_matching);
}

td_status td_filters_create(const td_filter_options *options, td_filters **out) {
    TD_TRY(check_options(options));
    td_filters *self = calloc(1, sizeof *self);
    if (!self)
        return td_fail(TD_ERR_MEMORY, "no memory for the filters");
    td_status status = fill(self, options);
    if (status != TD_OK) {
        td_filters_destroy(self);
        return status;
    }
    *out = self;
    return TD_OK;
}

void td_filters_destroy(td_filters *self) {
    if (!self)
        return;
    td_filter_patterns_fini(&self->drop);
    td_filter_patterns_fini(&self->keep);
    free(self);
}

int td_filters_need_texts(const td_filters *self) {
    const td_filter_options *options = &self->options;
    return options->min_prompt_words > 0 || options->max_prompt_words > 0 ||
           options->min_response_words > 0 || options->max_response_words > 0 ||
           options->max_jaccard < 1 || self->drop.count > 0 || self->keep.count > 0;
}

int td_filters_are_on(const td_filters *self) {
    return self->options.min_tokens > 0 || td_filters_need_texts(self);
}

static int is_space_at(const char *text, size_t *out_bytes) {
    unsigned char first = (unsigned char)*text;
    if (first < 0x80) {
        *out_bytes = 1;
        return first == ' ' || (first >= '\t' && first <= '\r');
    }
    return td_unicode_is_space(td_utf8_decode(text, out_bytes));
}

// The next word from *offset on, which is moved behind it. *out_bytes 0: none left.
static const char *next_word(const char *text, size_t bytes, size_t *offset, size_t *out_bytes) {
    size_t length, at = *offset;
    while (at < bytes && is_space_at(text + at, &length))
        at += length;
    size_t begin = at;
    while (at < bytes && !is_space_at(text + at, &length))
        at += length;
    *offset = at;
    *out_bytes = at - begin;
    return text + begin;
}

static int64_t count_words(const char *text, size_t bytes) {
    int64_t count = 0;
    size_t offset = 0, length;
    for (;; count++) {
        next_word(text, bytes, &offset, &length);
        if (length == 0)
            return count;
    }
}

// The hashes of the words, each once, in order.
typedef struct word_set {
    uint64_t *hashes;
    size_t count;
} word_set;

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static td_status collect_words(const char *where, const char *text, size_t bytes, int64_t n_words,
                               word_set *out) {
    out->hashes = malloc(((size_t)n_words + 1) * sizeof *out->hashes);
    if (!out->hashes)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its words", where);
    size_t offset = 0, length, unique = 0;
    for (int64_t i = 0; i < n_words; i++) {
        const char *word = next_word(text, bytes, &offset, &length);
        out->hashes[i] = XXH3_64bits(word, length);
    }
    qsort(out->hashes, (size_t)n_words, sizeof *out->hashes, by_value);
    for (int64_t i = 0; i < n_words; i++)
        if (i == 0 || out->hashes[i] != out->hashes[i - 1])
            out->hashes[unique++] = out->hashes[i];
    out->count = unique;
    return TD_OK;
}

static size_t count_common(const word_set *a, const word_set *b) {
    size_t common = 0;
    for (size_t i = 0, j = 0; i < a->count && j < b->count;) {
        common += a->hashes[i] == b->hashes[j];
        int next_a = a->hashes[i] <= b->hashes[j], next_b = b->hashes[j] <= a->hashes[i];
        i += (size_t)next_a;
        j += (size_t)next_b;
    }
    return common;
}

typedef struct word_counts {
    int64_t prompt, response;
} word_counts;

static td_status find_repetition(const td_filters *self, const char *where,
                                 const td_row_texts *texts, const word_counts *words, int *out) {
    word_set prompt = {0}, response = {0};
    *out = 0;
    if (self->options.max_jaccard >= 1 || !texts->has_prompt || words->prompt == 0 ||
        words->response == 0)
        return TD_OK;
    td_status status =
        collect_words(where, texts->prompt, texts->prompt_bytes, words->prompt, &prompt);
    if (status == TD_OK)
        status = collect_words(where, texts->response, texts->response_bytes, words->response,
                               &response);
    if (status == TD_OK) {
        size_t common = count_common(&prompt, &response);
        size_t all = prompt.count + response.count - common;
        // As a quotient of integers it meets a limit such as 0.5 exactly.
        *out = (double)common / (double)all > self->options.max_jaccard;
    }
    free(prompt.hashes);
    free(response.hashes);
    return status;
}

static int is_above(int64_t count, int64_t maximum) {
    return maximum > 0 && count > maximum;
}

static td_filter_verdict judge_words(const td_filter_options *options, const td_row_texts *texts,
                                     const word_counts *words) {
    if (texts->has_prompt && words->prompt < options->min_prompt_words)
        return TD_FILTER_SHORT_PROMPT;
    if (texts->has_prompt && is_above(words->prompt, options->max_prompt_words))
        return TD_FILTER_LONG_PROMPT;
    if (words->response < options->min_response_words)
        return TD_FILTER_SHORT_RESPONSE;
    if (is_above(words->response, options->max_response_words))
        return TD_FILTER_LONG_RESPONSE;
    return TD_FILTER_KEEP;
}

static td_status judge_patterns(const td_filters *self, const char *where,
                                const td_row_texts *texts, td_filter_verdict *out) {
    int drops, keeps;
    TD_TRY(td_filter_patterns_match(&self->drop, where, texts, &drops));
    if (drops) {
        *out = TD_FILTER_DROP_MATCHING;
        return TD_OK;
    }
    TD_TRY(td_filter_patterns_match(&self->keep, where, texts, &keeps));
    *out = self->keep.count > 0 && !keeps ? TD_FILTER_KEEP_MATCHING : TD_FILTER_KEEP;
    return TD_OK;
}

static td_status judge_texts(const td_filters *self, const char *where, const td_row_texts *texts,
                             td_filter_verdict *out) {
    word_counts words = {count_words(texts->prompt, texts->prompt_bytes),
                         count_words(texts->response, texts->response_bytes)};
    int repeats;
    *out = judge_words(&self->options, texts, &words);
    if (*out != TD_FILTER_KEEP)
        return TD_OK;
    TD_TRY(find_repetition(self, where, texts, &words, &repeats));
    if (repeats) {
        *out = TD_FILTER_REPEATS_PROMPT;
        return TD_OK;
    }
    return judge_patterns(self, where, texts, out);
}

td_status td_filters_judge(const td_filters *self, const char *where, const td_row_texts *texts,
                           int64_t n_tokens, td_filter_verdict *out) {
    *out = n_tokens < self->options.min_tokens ? TD_FILTER_FEW_TOKENS : TD_FILTER_KEEP;
    if (*out != TD_FILTER_KEEP || !texts || !texts->has_response || !td_filters_need_texts(self))
        return TD_OK;
    return judge_texts(self, where, texts, out);
}
