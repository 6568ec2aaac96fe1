// Between the files of batch_answers: lines, and the output as it is found.
#ifndef TANDEM_TRAIN_BATCH_ANSWERS_FILE_H
#define TANDEM_TRAIN_BATCH_ANSWERS_FILE_H

#include "runtime/train/batch_answers.h"

// Lines that grow; zero-initialise, free `text`.
typedef struct td_answer_lines {
    char *text;
    size_t bytes, capacity;
} td_answer_lines;

// TD_ERR_MEMORY. `answer` NULL: a malformed row, with what is wrong with it.
td_status td_answer_lines_add(td_answer_lines *lines, const td_row_visit *visit,
                              const td_answer *answer, const char *error);

// TD_ERR_DATA when the row has one of the keys that are to be added.
td_status td_answer_keys_check(const td_row_visit *visit);

// Local (rank 0). How many rows `output` answers already; cuts off a line that is not whole.
td_status td_answer_file_begin(const td_batch_answers_options *options, int64_t *out_kept);

#endif
