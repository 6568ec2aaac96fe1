// Rows with examples before them, as a token store in which only what the rows themselves have
// trained is trained: the loss over it is that of the same targets, with the examples as context.
#ifndef TANDEM_TRAIN_FEW_SHOT_H
#define TANDEM_TRAIN_FEW_SHOT_H

#include "runtime/data/store.h"
#include "runtime/train/question.h"

// The longest prompt or row with all examples before it: max_length and the examples' own tokens,
// within the model's positions less max_new_tokens; at least max_length.
int64_t td_few_shot_max_tokens(const td_session *session, const td_examples *examples,
                               int64_t max_new_tokens);

// Local (rank 0). Writes `path`: for every row of `plain`, which was prepared from the files, the
// row with examples. A row whose targets are written otherwise after examples stands without any.
// *out_shortened: rows with fewer examples than there are. TD_ERR_DATA: the files do not hold the
// rows of `plain`.
td_status td_few_shot_store(const td_session *session, td_store *plain, const td_string_list *files,
                            const td_examples *examples, int64_t max_tokens, const char *path,
                            int64_t *out_shortened);

#endif
