// Base model, tuned model, and base model with examples, side by side on the same rows: loss over
// the same targets, and exact match of greedy answers.
#ifndef TANDEM_TRAIN_COMPARISON_H
#define TANDEM_TRAIN_COMPARISON_H

#include "runtime/train/exact_match.h"
#include "runtime/train/inference.h"

enum { TD_COLUMN_BASE, TD_COLUMN_TUNED, TD_COLUMN_FEW_SHOT };

typedef struct td_comparison_options {
    const td_string_list *example_files; // training rows
    int64_t n_examples;                  // 0: no third column
    td_exact_match_options answers;
    const char *scratch; // folder for token stores
} td_comparison_options;

typedef struct td_comparison {
    int n_columns;
    double losses[TD_MAX_CONTENDERS], loss_seconds[TD_MAX_CONTENDERS];
    int64_t n_loss_rows, n_loss_tokens; // targets, of every column
    int64_t n_examples;                 // that were found
    int64_t n_loss_shortened;           // rows with fewer examples before them, for the loss
    int64_t max_with_examples;
    td_exact_match answers;
} td_comparison;

extern const char *const td_column_names[TD_MAX_CONTENDERS]; // "base", "tuned", "few_shot_base"

// Collective. The session has an adapter and config->eval_files. The numbers are the same on any
// number of ranks, but for the seconds.
td_status td_comparison_run(td_inference *inference, const td_comparison_options *options,
                            td_comparison *out);

#endif
