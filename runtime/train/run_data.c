#include "runtime/train/run_data.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/data/overlap.h"
#include "runtime/data/sources.h"

enum { MAX_ACCOUNT_BYTES = 256 << 20 };

// One preparation: which files become which stores.
typedef struct data_job {
    td_filter_options filters;
    td_prepare_options options;
    td_string_list files;               // owned
    char paths[TD_SPLITS][TD_PATH_MAX]; // "" where there is no such store
    const char *stores[TD_SPLITS];      // into paths, NULL where there is none
    int made;
    td_prepare_account account; // on rank 0, when made
} data_job;

static void close_job(data_job *job) {
    td_account_fini(&job->account);
    td_sources_fini(&job->files);
}

static td_status team_gather(void *self, const void *mine, void *all, size_t bytes_each,
                             const char *what) {
    return td_comm_allgather(self, mine, all, bytes_each, what);
}

static td_status team_agree(void *self, td_status mine, const char *what) {
    return td_comm_agree(self, mine, what);
}

static void fill_options(data_job *job, const td_session *session) {
    const td_config *config = session->config;
    job->options = (td_prepare_options){
        .files = &job->files,
        .tokenizer = session->tokenizer,
        .vocabulary = session->model.vocabulary,
        .eos_id = td_session_eos_id(session),
        .max_length = config->max_length,
        .assistant_only_loss = config->assistant_only_loss,
        .completion_only_loss = config->completion_only_loss,
        .bad_rows = config->bad_rows,
        .too_long = config->too_long,
        .near_duplicate_threshold = config->near_duplicate_threshold,
        .seed = (uint64_t)config->seed,
        .n_threads = session->n_threads,
    };
}

static void fill_choices(data_job *job, const td_config *config) {
    job->filters = (td_filter_options){
        .min_prompt_words = config->min_prompt_words,
        .max_prompt_words = config->max_prompt_words,
        .min_response_words = config->min_response_words,
        .max_response_words = config->max_response_words,
        .min_tokens = config->min_tokens,
        .max_jaccard = config->max_prompt_response_jaccard,
        .drop_matching = &config->drop_matching,
        .keep_matching = &config->keep_matching,
    };
    job->options.filters = &job->filters;
    job->options.deduplicate = config->deduplicate;
    if (config->eval_files.count == 0)
        job->options.split_ratios[TD_SPLIT_EVAL] = config->eval_split_ratio;
    job->options.split_ratios[TD_SPLIT_TEST] = config->test_split_ratio;
}

static td_status name_store(data_job *job, td_split split, const char *folder, const char *name) {
    char data[TD_PATH_MAX];
    TD_TRY(td_path_join(data, folder, "data"));
    TD_TRY(td_path_join(job->paths[split], data, name));
    job->stores[split] = job->paths[split];
    return TD_OK;
}

static td_status make_folder(const char *folder) {
    char data[TD_PATH_MAX];
    TD_TRY(td_path_join(data, folder, "data"));
    if (td_path_is_link(data))
        return td_fail(TD_ERR_IO,
                       "%s: is a link; nothing is written outside the run's folder (that folder "
                       "itself may be a link)",
                       data);
    return td_folder_make(data);
}

void td_run_data_remove_empty(const char *folder, int with_folder) {
    char data[TD_PATH_MAX];
    if (snprintf(data, sizeof data, "%s/data", folder) < (int)sizeof data)
        (void)rmdir(data); // refuses what is not empty, as below
    if (with_folder)
        (void)rmdir(folder);
}

// Local. A store of files taken as they are.
static td_status plan_files(data_job *job, const td_session *session, const td_string_list *files,
                            const char *folder, const char *name) {
    TD_TRY(td_sources_expand(files, &job->files));
    fill_options(job, session);
    return name_store(job, TD_SPLIT_TRAIN, folder, name);
}

// Local. The training store, with what is split off it.
static td_status plan_training(data_job *job, const td_session *session, const char *folder) {
    static const char *const names[TD_SPLITS] = {"train.h5", "eval.h5", "test.h5"};
    const td_config *config = session->config;
    TD_TRY(plan_files(job, session, &config->train_files, folder, names[TD_SPLIT_TRAIN]));
    fill_choices(job, config);
    for (int split = TD_SPLIT_EVAL; split < TD_SPLITS; split++)
        if (job->options.split_ratios[split] > 0)
            TD_TRY(name_store(job, (td_split)split, folder, names[split]));
    return TD_OK;
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

// What rank 0 finds before the others are asked to work.
typedef struct job_state {
    int32_t status, is_current;
    td_hash fingerprint;
} job_state;

static job_state look(const data_job *job, const char *folder) {
    job_state state = {0};
    td_status status = make_folder(folder);
    if (status == TD_OK)
        status = td_prepare_fingerprint(&job->options, &state.fingerprint);
    state.status = (int32_t)status;
    state.is_current = status == TD_OK;
    for (int split = 0; split < TD_SPLITS && state.is_current; split++)
        if (job->stores[split])
            state.is_current = is_current(job->stores[split], state.fingerprint);
    return state;
}

// Collective. `status`: of planning the job.
static td_status make_current(data_job *job, const td_session *session, const char *folder,
                              td_status status) {
    td_comm *comm = session->comm;
    td_prepare_team team = {
        .rank = td_comm_rank(comm),
        .size = td_comm_size(comm),
        .gather = team_gather,
        .agree = team_agree,
        .self = comm,
    };
    job_state state = {0};
    td_progress_phase(TD_PHASE_PREPARE_DATA);
    if (status == TD_OK && team.rank == 0) {
        state = look(job, folder);
        status = (td_status)state.status;
    }
    TD_TRY(td_comm_agree(comm, status, "prepare data"));
    TD_TRY(td_comm_broadcast(comm, &state, sizeof state, 0, "prepare data"));
    if (state.is_current)
        return TD_OK;
    TD_TRY(td_prepare(&job->options, &team, state.fingerprint, job->stores, &job->account));
    job->made = 1;
    return TD_OK;
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

// Into the account beside the store, where users look for it.
static td_status write_overlap(const char *store_path, int64_t rows) {
    char path[TD_PATH_MAX], *text = NULL;
    cJSON *tree = NULL;
    TD_TRY(td_prepare_account_path(store_path, path));
    if (!td_path_exists(path))
        return TD_OK;
    TD_TRY(td_json_read(path, MAX_ACCOUNT_BYTES, &tree));
    cJSON_DeleteItemFromObjectCaseSensitive(tree, "rows_in_training");
    if (cJSON_AddNumberToObject(tree, "rows_in_training", (double)rows))
        text = td_json_print(tree, 1);
    cJSON_Delete(tree);
    td_status status = text ? td_file_write_atomic(path, text, strlen(text))
                            : td_fail(TD_ERR_MEMORY, "%s: no memory for it", path);
    free(text);
    return status;
}

// Rank 0. A number to warn by; that it cannot be had is no reason to fail.
static void count_overlap(td_run_data_report *out) {
    td_status status =
        td_store_overlap(out->train_path, out->eval_path, &out->eval_rows_in_training);
    if (status == TD_OK)
        status = write_overlap(out->eval_path, out->eval_rows_in_training);
    if (status != TD_OK) {
        td_warn("evaluation rows were not compared with training rows: %s", td_error_message());
        td_error_clear();
    } else if (out->eval_rows_in_training > 0) {
        td_warn("%lld evaluation rows are duplicates of training rows",
                (long long)out->eval_rows_in_training);
    }
}

// Collective. The training store with its splits.
static td_status make_training(const td_session *session, const char *folder,
                               td_run_data_report *out) {
    data_job job = {0};
    td_status status = plan_training(&job, session, folder);
    status = make_current(&job, session, folder, status);
    memcpy(out->train_path, job.paths[TD_SPLIT_TRAIN], TD_PATH_MAX);
    memcpy(out->eval_path, job.paths[TD_SPLIT_EVAL], TD_PATH_MAX);
    memcpy(out->test_path, job.paths[TD_SPLIT_TEST], TD_PATH_MAX);
    out->made_train = job.made;
    out->train = job.account; // handed over
    job.account = (td_prepare_account){0};
    close_job(&job);
    return status;
}

// Collective. A store of eval_files or of others.
static td_status make_files(const td_session *session, const td_string_list *files,
                            const char *folder, const char *name, td_run_data_report *out) {
    data_job job = {0};
    td_status status = plan_files(&job, session, files, folder, name);
    status = make_current(&job, session, folder, status);
    memcpy(out->eval_path, job.paths[TD_SPLIT_TRAIN], TD_PATH_MAX);
    out->made_eval = job.made;
    out->eval = job.account; // handed over
    job.account = (td_prepare_account){0};
    close_job(&job);
    return status;
}

td_status td_run_data_prepare(const td_session *session, const char *folder,
                              td_run_data_report *out) {
    const td_string_list *eval_files = &session->config->eval_files;
    TD_TRY(make_training(session, folder, out));
    if (eval_files->count == 0)
        return TD_OK;
    TD_TRY(make_files(session, eval_files, folder, "eval.h5", out));
    if ((out->made_train || out->made_eval) && td_comm_rank(session->comm) == 0)
        count_overlap(out);
    return TD_OK;
}

void td_run_data_report_fini(td_run_data_report *report) {
    td_account_fini(&report->train);
    td_account_fini(&report->eval);
}

// What a run says of data that it had to prepare; tandem prepare prints the account.
static void say_what_was_made(const td_session *session, const td_prepare_account *account,
                              const char *path) {
    char where[TD_PATH_MAX + 32];
    if (td_comm_rank(session->comm) != 0)
        return;
    td_info("prepared %s: %lld of %lld rows, %lld tokens, %lld trained", path,
            (long long)account->rows_kept, (long long)account->rows_read,
            (long long)account->tokens, (long long)account->trained_tokens);
    for (int outcome = 1; outcome < TD_OUTCOMES; outcome++) {
        if (account->dropped[outcome].rows == 0)
            continue;
        td_account_where(account, (td_outcome)outcome, where, sizeof where);
        td_warn("%lld rows dropped: %s (the first: %s)", (long long)account->dropped[outcome].rows,
                td_outcome_text((td_outcome)outcome), where);
    }
    if (account->rows_truncated > 0)
        td_warn("%lld rows longer than max_length were truncated",
                (long long)account->rows_truncated);
}

td_status td_run_data_open_files(const td_session *session, const td_string_list *files,
                                 const char *folder, const char *name, td_store **out) {
    td_run_data_report report = {0};
    td_status status = make_files(session, files, folder, name, &report);
    if (status == TD_OK && report.made_eval)
        say_what_was_made(session, &report.eval, report.eval_path);
    if (status == TD_OK)
        status = open_store(session, report.eval_path, out);
    td_run_data_report_fini(&report);
    return status;
}

td_status td_run_data_open(td_run_data *data, const td_session *session, const char *folder) {
    td_run_data_report report = {0};
    td_status status = td_run_data_prepare(session, folder, &report);
    if (status == TD_OK && report.made_train)
        say_what_was_made(session, &report.train, report.train_path);
    if (status == TD_OK && report.made_eval)
        say_what_was_made(session, &report.eval, report.eval_path);
    if (status == TD_OK)
        status = open_store(session, report.train_path, &data->train);
    if (status == TD_OK && report.eval_path[0])
        status = open_store(session, report.eval_path, &data->eval);
    td_run_data_report_fini(&report);
    return status;
}

void td_run_data_close(td_run_data *data) {
    td_store_close(data->eval);
    td_store_close(data->train);
    *data = (td_run_data){0};
}
