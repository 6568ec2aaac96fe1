// Lists of PCRE2 patterns, searched in the texts of a row with bounds on what that may cost.
#ifndef TANDEM_DATA_FILTERS_INTERNAL_H
#define TANDEM_DATA_FILTERS_INTERNAL_H

#include "runtime/data/filters.h"

typedef struct td_filter_pattern {
    struct pcre2_real_code_8 *code;
    char *text;
} td_filter_pattern;

// Read-only after init.
typedef struct td_filter_patterns {
    const char *name; // of the list, for messages
    td_filter_pattern *items;
    int count;
} td_filter_patterns;

// `patterns` may be NULL. After a failure fini is allowed.
td_status td_filter_patterns_init(td_filter_patterns *self, const char *name,
                                  const td_string_list *patterns);
void td_filter_patterns_fini(td_filter_patterns *self);
// Does any of them match in the prompt or in the response?
td_status td_filter_patterns_match(const td_filter_patterns *self, const char *where,
                                   const td_row_texts *texts, int *out);

#endif
