// Answers to all rows of a file, in a file of their own: the row with "completion",
// "completion_tokens" and "finish_reason" ("stop" or "length") added, one line each, in order.
#ifndef TANDEM_TRAIN_BATCH_ANSWERS_H
#define TANDEM_TRAIN_BATCH_ANSWERS_H

#include "runtime/train/answer.h"
#include "runtime/train/inference.h"
#include "runtime/train/question.h"

typedef struct td_batch_answers_options {
    const char *rows, *output;
    int resume; // go on after the answers that `output` holds; else it must not exist
    int64_t max_new_tokens;
    double temperature, top_p; // as td_generate_options
    uint64_t seed;
} td_batch_answers_options;

typedef struct td_batch_answers_account {
    int64_t n_rows;   // of the file
    int64_t n_kept;   // answered before, by the run that is resumed
    int64_t n_bad;    // malformed: bad_rows is "skip"
    int64_t n_tokens; // generated now
    double seconds;
} td_batch_answers_account;

// Collective. The file's bytes are the same on any number of ranks, interrupted or not: what is
// drawn depends on seed and row. Every row is looked at before the first is answered: TD_ERR_DATA
// for one that is malformed, too long for the model, or has one of the three keys already; with
// bad_rows "skip" a line {"error"} stands in its place. TD_ERR_USAGE: the output exists, or, to
// resume, holds answers to other rows. The file grows as the answers come; a line at its end that
// is not whole is answered anew.
td_status td_batch_answers_run(td_inference *inference, const td_batch_answers_options *options,
                               td_batch_answers_account *out);

#endif
