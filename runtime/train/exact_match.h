// Exact match: what models answer to the rows of files, compared with what the rows expect.
#ifndef TANDEM_TRAIN_EXACT_MATCH_H
#define TANDEM_TRAIN_EXACT_MATCH_H

#include "runtime/train/answer.h"
#include "runtime/train/question.h"

enum { TD_MAX_CONTENDERS = 3, TD_MAX_SAMPLES = 10, TD_SAMPLE_BYTES = 800 };

// One of the models that answer.
typedef struct td_contender {
    const float *parameters;     // NULL: the base model
    const td_examples *examples; // that stand before every question; NULL: none
} td_contender;

typedef struct td_exact_match_options {
    int64_t limit; // rows to take from the start of each file; 0: all
    int64_t max_new_tokens;
    int64_t max_length;        // prompts are at most this long
    int64_t max_with_examples; // likewise, where examples stand before them
    int show;                  // rank 0 logs this many mismatches of the last contender
    int n_samples;             // rows to bring back, chosen by (seed, row)
} td_exact_match_options;

typedef struct td_score {
    int64_t n_matches;
    int64_t n_tokens;     // generated, all rows together
    int64_t n_unfinished; // answers that max_new_tokens cut off
    int64_t n_examples;   // that stood before questions, all rows together
    int64_t n_shortened;  // rows with fewer examples than there are, because they did not fit
    double seconds;       // of the rank that took longest
} td_score;

// Texts are cut to their room, at the border of a character.
typedef struct td_answer_sample {
    uint64_t number; // chooses
    int64_t index;
    char where[256];
    char question[TD_SAMPLE_BYTES]; // its end
    char expected[TD_SAMPLE_BYTES];
    char answers[TD_MAX_CONTENDERS][TD_SAMPLE_BYTES];
    int32_t matches[TD_MAX_CONTENDERS];
} td_answer_sample;

typedef struct td_exact_match {
    int64_t n_rows;
    int64_t n_skipped; // rows that expect nothing, are too long, or malformed where that is allowed
    int64_t n_gained;  // the second contender is right and the first is not
    int64_t n_lost;    // the other way round
    td_score scores[TD_MAX_CONTENDERS];
    td_answer_sample samples[TD_MAX_SAMPLES]; // in the order of the files
    int n_samples;
} td_exact_match;

// Collective; the same on any number of ranks, but for the seconds. The contenders answer every row
// greedily; the answer must equal what the row expects (td_question.answer) byte for byte. Rows
// that expect nothing, prompts longer than max_length (unless too_long is "error") and, with
// bad_rows "skip", malformed rows are skipped and counted. The ranks share the rows.
td_status td_exact_match_run(const td_session *session, td_transformer *transformer,
                             const td_contender *contenders, int n_contenders,
                             const td_string_list *files, const td_exact_match_options *options,
                             td_exact_match *out);

// Wilson's interval of a share of n (E. B. Wilson, 1927), at 95 %. n 0: from 0 to 1.
void td_wilson_interval(int64_t matches, int64_t n, double *out_low, double *out_high);

#endif
