// The token stores of a run: made by rank 0 when missing or stale, opened by all.
#ifndef TANDEM_TRAIN_RUN_DATA_H
#define TANDEM_TRAIN_RUN_DATA_H

#include "runtime/data/prepare.h"
#include "runtime/data/store.h"
#include "runtime/train/session.h"

typedef struct td_run_data {
    td_store *train;
    td_store *eval; // NULL without eval_files and eval_split_ratio
} td_run_data;

// Collective. Stores lie in FOLDER/data/. A store whose fingerprint (source files, tokenizer,
// settings) is current is used as it is.
td_status td_run_data_open(td_run_data *data, const td_session *session, const char *folder);
// Collective. Only a store of `files` under FOLDER/data/NAME, for evaluation of a given file.
td_status td_run_data_open_files(const td_session *session, const td_string_list *files,
                                 const char *folder, const char *name, td_store **out);
void td_run_data_close(td_run_data *data);

#endif
