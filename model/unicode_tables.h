// Where Unicode data differ between the tokenizers library and the C libraries used here.
// Read-only.
#ifndef TANDEM_MODEL_UNICODE_TABLES_H
#define TANDEM_MODEL_UNICODE_TABLES_H

#include <stddef.h>
#include <stdint.h>

typedef struct td_code_range {
    uint32_t first, last; // inclusive
} td_code_range;

typedef struct td_recent_range {
    uint32_t first, last; // inclusive
    char category[3];     // general category, "##": a digit for the Digits pre-tokenizer only
} td_recent_range;

// Assigned after Unicode 14, ascending.
extern const td_recent_range td_recent_ranges[];
extern const size_t td_n_recent_ranges;

// Assigned in Unicode 14 but passed through by the library's normal forms as if unassigned,
// ascending.
extern const td_code_range td_nfc_unknown_ranges[];
extern const size_t td_n_nfc_unknown_ranges;

// Characters that are an accent for the library or a mark in Unicode 14, but not both, ascending.
extern const td_code_range td_odd_mark_ranges[];
extern const size_t td_n_odd_mark_ranges;

// Characters outside ASCII that are punctuation for either the library or Unicode 14, ascending.
extern const td_code_range td_odd_punctuation_ranges[];
extern const size_t td_n_odd_punctuation_ranges;

typedef struct td_lower_range {
    uint32_t first, last; // inclusive
    int32_t offset;       // to the lower-case character
} td_lower_range;

// Upper-case characters whose lower case came after Unicode 14, ascending.
extern const td_lower_range td_lower_ranges[];
extern const size_t td_n_lower_ranges;

#endif
