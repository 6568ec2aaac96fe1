#include <stdio.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/data/store_jsonl.h"
#include "runtime/train/run_data.h"

static td_status parse(const td_command *command, int argc, char **argv, td_config *config,
                       const char **jsonl, int *help) {
    const char *positional[1];
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
        {"--jsonl", TD_OPTION_STRING, jsonl, "FOLDER",
         "write the rows of the stores there too, as JSON Lines of input_ids and labels"},
    };
    TD_TRY(td_options_parse(command, options, 2, argc, argv, positional, 1, help));
    if (*help)
        return TD_OK;
    if (!positional[0] && assignments.count == 0)
        return td_fail(TD_ERR_USAGE, "name a run config (tandem prepare --help)");
    TD_TRY(td_cli_config(config, positional[0], &assignments));
    TD_TRY(td_config_check(config));
    return config->train_files.count > 0
               ? TD_OK
               : td_fail(TD_ERR_USAGE, "train_files is empty; give at least one file of rows");
}

static td_status print_store(const char *path) {
    td_store *store;
    if (!path[0])
        return TD_OK;
    TD_TRY(td_store_open(path, &store));
    printf("  %s: %lld rows, %lld tokens\n", path, (long long)td_store_rows(store),
           (long long)td_store_tokens(store));
    td_store_close(store);
    return TD_OK;
}

// "DATA/train.h5" -> "FOLDER/train.jsonl"
static td_status write_jsonl(const char *store_path, const char *folder) {
    char name[TD_PATH_MAX + 8], path[TD_PATH_MAX];
    const char *slash = strrchr(store_path, '/');
    if (!store_path[0])
        return TD_OK;
    snprintf(name, sizeof name, "%s", slash ? slash + 1 : store_path);
    char *dot = strrchr(name, '.');
    snprintf(dot ? dot : name + strlen(name), 8, ".jsonl");
    TD_TRY(td_path_join(path, folder, name));
    TD_TRY(td_store_write_jsonl(store_path, path));
    printf("  %s\n", path);
    return TD_OK;
}

static td_status write_all_jsonl(const td_run_data_report *report, const char *folder) {
    TD_TRY(td_folder_make(folder));
    TD_TRY(write_jsonl(report->train_path, folder));
    TD_TRY(write_jsonl(report->eval_path, folder));
    return write_jsonl(report->test_path, folder);
}

static td_status print_account(const char *store_path, const td_prepare_account *account) {
    char path[TD_PATH_MAX];
    TD_TRY(td_prepare_account_path(store_path, path));
    td_account_print(account, stdout);
    printf("account    %s\n", path);
    return TD_OK;
}

// Rank 0.
static td_status print_report(const td_run_data_report *report) {
    if (!report->made_train && !report->made_eval)
        printf("nothing to do: files, tokenizer and settings are those of the stores that are "
               "there\n");
    if (report->made_train)
        TD_TRY(print_account(report->train_path, &report->train));
    if (report->made_eval) {
        printf("evaluation\n");
        TD_TRY(print_account(report->eval_path, &report->eval));
    }
    printf("stores\n");
    TD_TRY(print_store(report->train_path));
    TD_TRY(print_store(report->eval_path));
    return print_store(report->test_path);
}

static td_status conclude(const td_run_data_report *report, const char *jsonl) {
    TD_TRY(print_report(report));
    return jsonl ? write_all_jsonl(report, jsonl) : TD_OK;
}

static td_status prepare(const td_config *config, const char *jsonl, td_comm *comm) {
    td_session session = {0};
    td_run_data_report report = {0};
    int is_new = td_comm_rank(comm) == 0 && !td_path_exists(config->output_dir);
    td_comm_set_deadline(comm, config->collective_deadline_seconds);
    td_status status = td_comm_require_same(comm, td_config_fingerprint(config), "run config");
    if (status == TD_OK)
        status = td_session_open_model(&session, config, comm);
    if (status == TD_OK)
        status = td_run_data_prepare(&session, config->output_dir, &report);
    if (status == TD_OK)
        status = td_comm_agree(comm, td_comm_rank(comm) == 0 ? conclude(&report, jsonl) : TD_OK,
                               "prepare data");
    if (status != TD_OK && td_comm_rank(comm) == 0)
        td_run_data_remove_empty(config->output_dir, is_new);
    td_run_data_report_fini(&report);
    td_session_close(&session);
    return status;
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    const char *jsonl = NULL;
    int help = 0;
    td_status status = parse(command, argc, argv, &config, &jsonl, &help);
    if (!help) {
        status = td_comm_agree(comm, status, "command line");
        if (status == TD_OK)
            status = prepare(&config, jsonl, comm);
    }
    td_config_fini(&config);
    return status;
}

const td_command td_command_prepare = {
    .name = "prepare",
    .arguments = "CONFIG.json [--set KEY=VALUE]... [--jsonl FOLDER]",
    .summary = "tokenize, filter, deduplicate and split the data of a run, and account for it",
    .details =
        "Writes the token stores where \"tandem train\" looks for them, OUTPUT_DIR/data/train.h5 "
        "and, with splits or\n"
        "eval_files, eval.h5 and test.h5, and beside them train.json: rows read, kept and dropped "
        "by reason with an\n"
        "example each, tokens, lengths, counts per file. All ranks and threads share the work; the "
        "stores do not depend\n"
        "on their numbers. Keys of the section \"data\" say what is kept (tandem config). When "
        "nothing has changed\n"
        "nothing is done.\n\n"
        "example: mpirun -n 4 tandem prepare run.json --set deduplicate=near --set "
        "eval_split_ratio=0.02",
    .run = run,
};
