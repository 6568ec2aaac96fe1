// Which rows are worth training on, by what they say. Read-only after creation: any number of
// threads may judge at once.
//
// Words are what stands between white space, as Unicode defines it (White_Space). A script that
// does not separate words, such as Chinese, counts as few long words. What does not apply is not
// asked: limits on prompts and overlap only where the row's format has a prompt, limits on text
// only where there is one (td_row_texts).
#ifndef TANDEM_DATA_FILTERS_H
#define TANDEM_DATA_FILTERS_H

#include "runtime/data/rows.h"

typedef struct td_filter_options {
    int64_t min_prompt_words, max_prompt_words;     // inclusive; a maximum of 0: none
    int64_t min_response_words, max_response_words; // inclusive; a maximum of 0: none
    int64_t min_tokens;                             // inclusive, of the whole row
    // Rows whose prompt and response have more than this share of their different words in common
    // (Jaccard index of the two sets, bytes compared) are dropped: answers that only repeat what
    // they were asked. 1: off.
    double max_jaccard;
    // PCRE2 patterns, searched in prompt and response each. A row is dropped when any of the first
    // matches, and, if there are any of the second, when none of those does. NULL: none.
    const td_string_list *drop_matching, *keep_matching;
} td_filter_options;

// Lets everything through.
extern const td_filter_options td_filters_off;

// In the order in which the tests are made: the first that a row fails is the reason.
typedef enum td_filter_verdict {
    TD_FILTER_KEEP,
    TD_FILTER_FEW_TOKENS,
    TD_FILTER_SHORT_PROMPT,
    TD_FILTER_LONG_PROMPT,
    TD_FILTER_SHORT_RESPONSE,
    TD_FILTER_LONG_RESPONSE,
    TD_FILTER_REPEATS_PROMPT,
    TD_FILTER_DROP_MATCHING,
    TD_FILTER_KEEP_MATCHING,
    TD_FILTER_VERDICTS,
} td_filter_verdict;

// For an account: a name as a key ("prompt_too_short") and in words for people.
typedef struct td_filter_reason {
    const char *name, *text;
} td_filter_reason;
extern const td_filter_reason td_filter_reasons[TD_FILTER_VERDICTS];

typedef struct td_filters td_filters;

// TD_ERR_USAGE: a pattern that is none, by its list, place and the character where it fails;
// limits that no row can meet. The options are not needed afterwards. Destroying NULL is allowed.
td_status td_filters_create(const td_filter_options *options, td_filters **out);
void td_filters_destroy(td_filters *filters);
// Whether any filter is on, and whether any of them looks at texts.
int td_filters_are_on(const td_filters *filters);
int td_filters_need_texts(const td_filters *filters);

// `where` begins every message. `texts` may be NULL when none are needed. TD_ERR_USAGE: a pattern
// gave up on this text (bounded in steps, memory and seconds); that is the pattern's fault, not the
// row's, so it is no verdict.
td_status td_filters_judge(const td_filters *filters, const char *where, const td_row_texts *texts,
                           int64_t n_tokens, td_filter_verdict *out);

#endif
