#include "runtime/train/run_data.h"

#include <stdlib.h>

#include "runtime/core/files.h"
#include "runtime/core/log.h"
#include "runtime/core/progress.h"

static td_prepare_options prepare_options(const td_session *session, const td_string_list *files) {
    const td_config *config = session->config;
    return (td_prepare_options){
        .files = files,
        .tokenizer = session->tokenizer,
        .vocabulary = session->model.vocabulary,
        .eos_id = td_session_eos_id(session),
        .max_length = config->max_length,
        .assistant_only_loss = config->assistant_only_loss,
        .completion_only_loss = config->completion_only_loss,
        .bad_rows = config->bad_rows,
        .too_long = config->too_long,
        .seed = (uint64_t)config->seed,
        .n_threads = session->n_threads,
    };
}

// 1 when the file is a whole store made from the same sources in the same way.
static int is_current(const char *path, td_hash fingerprint) {
    td_store *store = NULL;
    if (!td_path_exists(path))
        return 0;
    td_status status = td_store_open(path, &store);
    if (status == TD_OK)
        status = td_store_verify(store);
    int current = status == TD_OK && td_hash_equal(td_store_fingerprint(store), fingerprint);
    if (status != TD_OK) {
        td_warn("%s; the data is prepared again", td_error_message());
        td_error_clear();
    }
    td_store_close(store);
    return current;
}

static void report(const td_prepare_account *account, const char *path) {
    td_info("prepared %s: %lld of %lld rows, %lld tokens, %lld trained", path,
            (long long)account->rows_kept, (long long)account->rows_read,
            (long long)account->tokens, (long long)account->trained_tokens);
    if (account->rows_bad > 0)
        td_warn("%lld malformed rows were skipped", (long long)account->rows_bad);
    if (account->rows_too_long > 0)
        td_warn("%lld rows longer than max_length were dropped", (long long)account->rows_too_long);
    if (account->rows_truncated > 0)
        td_warn("%lld rows longer than max_length were truncated",
                (long long)account->rows_truncated);
    if (account->rows_untrained > 0)
        td_warn("%lld rows without a trained token were dropped",
                (long long)account->rows_untrained);
}

static td_status make_current(const td_prepare_options *options, const char *path,
                              const char *split_path) {
    td_hash fingerprint;
    td_prepare_account account = {0};
    td_progress_phase(TD_PHASE_PREPARE_DATA);
    TD_TRY(td_prepare_fingerprint(options, &fingerprint));
    if (is_current(path, fingerprint) && (!split_path || is_current(split_path, fingerprint)))
        return TD_OK;
    TD_TRY(td_prepare(options, path, split_path, &account));
    report(&account, path);
    return TD_OK;
}

static td_status data_path(char out[TD_PATH_MAX], const char *folder, const char *name) {
    char data[TD_PATH_MAX];
    TD_TRY(td_path_join(data, folder, "data"));
    TD_TRY(td_folder_make(data));
    return td_path_join(out, data, name);
}

// A small store is kept in memory from its first read on: reading one row now makes the memory plan
// see it.
static td_status touch_store(td_store *store) {
    size_t count = (size_t)td_store_offsets(store)[1];
    int32_t *tokens = malloc(count * sizeof *tokens);
    uint8_t *trained = malloc(count);
    td_status status = tokens && trained ? td_store_read_row(store, 0, tokens, trained)
                                         : td_fail(TD_ERR_MEMORY, "no memory for a row");
    free(trained);
    free(tokens);
    return status;
}

static td_status check_store(const td_session *session, const char *path, td_store *store) {
    if (td_store_max_token(store) >= session->model.vocabulary)
        return td_fail(TD_ERR_DATA, "%s: token id %d is outside the model's vocabulary of %lld",
                       path, td_store_max_token(store), (long long)session->model.vocabulary);
    return touch_store(store);
}

static td_status open_store(const td_session *session, const char *path, td_store **out) {
    td_store *store = NULL;
    td_status status = td_store_open(path, &store);
    if (status == TD_OK)
        status = check_store(session, path, store);
    status = td_comm_agree(session->comm, status, "open data");
    if (status == TD_OK)
        *out = store;
    else
        td_store_close(store);
    return status;
}

td_status td_run_data_open_files(const td_session *session, const td_string_list *files,
                                 const char *folder, const char *name, td_store **out) {
    char path[TD_PATH_MAX];
    td_prepare_options options = prepare_options(session, files);
    td_status status = data_path(path, folder, name);
    if (status == TD_OK && td_comm_rank(session->comm) == 0)
        status = make_current(&options, path, NULL);
    TD_TRY(td_comm_agree(session->comm, status, "prepare data"));
    return open_store(session, path, out);
}

td_status td_run_data_open(td_run_data *data, const td_session *session, const char *folder) {
    const td_config *config = session->config;
    char train_path[TD_PATH_MAX], eval_path[TD_PATH_MAX];
    int split = config->eval_split_ratio > 0 && config->eval_files.count == 0;
    td_prepare_options options = prepare_options(session, &config->train_files);
    options.split_ratio = split ? config->eval_split_ratio : 0;
    td_status status = data_path(train_path, folder, "train.h5");
    if (status == TD_OK)
        status = data_path(eval_path, folder, "eval.h5");
    if (status == TD_OK && td_comm_rank(session->comm) == 0)
        status = make_current(&options, train_path, split ? eval_path : NULL);
    TD_TRY(td_comm_agree(session->comm, status, "prepare data"));
    TD_TRY(open_store(session, train_path, &data->train));
    if (split)
        return open_store(session, eval_path, &data->eval);
    if (config->eval_files.count > 0)
        return td_run_data_open_files(session, &config->eval_files, folder, "eval.h5", &data->eval);
    return TD_OK;
}

void td_run_data_close(td_run_data *data) {
    td_store_close(data->eval);
    td_store_close(data->train);
    *data = (td_run_data){0};
}
