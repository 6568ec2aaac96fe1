// The token stores of a run: made by all ranks together when missing or stale, opened by all.
#ifndef TANDEM_TRAIN_RUN_DATA_H
#define TANDEM_TRAIN_RUN_DATA_H

#include "runtime/data/account.h"
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
// Collective. Only a store of `files` under FOLDER/data/NAME, for evaluation of a given file. Rows
// are taken as they are: filters and duplicates are for training data.
td_status td_run_data_open_files(const td_session *session, const td_string_list *files,
                                 const char *folder, const char *name, td_store **out);
// Local. After a failure: removes FOLDER/data, and the folder if asked to, when they are empty.
void td_run_data_remove_empty(const char *folder, int with_folder);
void td_run_data_close(td_run_data *data);

// What td_run_data_prepare() found or made; accounts and counts on rank 0.
typedef struct td_run_data_report {
    char train_path[TD_PATH_MAX], eval_path[TD_PATH_MAX],
        test_path[TD_PATH_MAX];     // "": there is none
    int made_train, made_eval;      // 0: was current; made_eval: of eval_files, not of a split
    td_prepare_account train, eval; // of those made
    int64_t eval_rows_in_training;  // rows of eval_files with the tokens of a training row
} td_run_data_report;

// Collective. The same stores, without opening them for a run; needs a session with a model, as
// td_session_open_model() gives. td_run_data_report_fini() also after a failure; zero-initialise.
td_status td_run_data_prepare(const td_session *session, const char *folder,
                              td_run_data_report *out);
void td_run_data_report_fini(td_run_data_report *report);

#endif
