#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/cli/cli.h"
#include "runtime/core/files.h"
#include "runtime/core/log.h"
#include "runtime/train/inference.h"

typedef struct evaluate_options {
    const char *model, *adapter, *data;
    int64_t limit, max_new_tokens;
    int base, exact_match, show, json;
} evaluate_options;

static td_status parse(const td_command *command, int argc, char **argv, td_config *config,
                       evaluate_options *wanted, int *help) {
    const char *positional[1];
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--model", TD_OPTION_STRING, &wanted->model, "FOLDER", "base model (else the config's)"},
        {"--adapter", TD_OPTION_STRING, &wanted->adapter, "FOLDER",
         "PEFT adapter; without: the base model"},
        {"--data", TD_OPTION_STRING, &wanted->data, "FILE",
         "JSONL rows (else the config's eval_files)"},
        {"--exact-match", TD_OPTION_FLAG, &wanted->exact_match, NULL,
         "answer every chat greedily and count answers equal to its last message"},
        {"--limit", TD_OPTION_INT, &wanted->limit, "N", "exact match: the first N rows only"},
        {"--max-new-tokens", TD_OPTION_INT, &wanted->max_new_tokens, "N",
         "exact match: longest answer (128)"},
        {"--show", TD_OPTION_FLAG, &wanted->show, NULL, "exact match: print some wrong answers"},
        {"--json", TD_OPTION_FLAG, &wanted->json, NULL, "print one JSON object"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
    };
    TD_TRY(td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            positional, 1, help));
    if (*help)
        return TD_OK;
    TD_TRY(td_cli_config(config, positional[0], &assignments));
    if (wanted->model)
        TD_TRY(td_cli_set(config, "model_name_or_path", wanted->model));
    if (wanted->adapter)
        TD_TRY(td_cli_set(config, "adapter_name_or_path", wanted->adapter));
    if (wanted->data)
        TD_TRY(td_cli_set(config, "eval_files", wanted->data));
    if (config->eval_files.count == 0)
        return td_fail(TD_ERR_USAGE, "nothing to evaluate on: give --data FILE or eval_files");
    if (wanted->limit < 0 || wanted->max_new_tokens < 1)
        return td_fail(TD_ERR_USAGE, "--limit and --max-new-tokens must be positive");
    return TD_OK;
}

// A folder for the token store, made by rank 0; the other ranks read it through the same file
// system.
static td_status make_scratch(td_comm *comm, char out[TD_PATH_MAX]) {
    const char *parent = getenv("TMPDIR");
    td_status status = TD_OK;
    memset(out, 0, TD_PATH_MAX);
    if (td_comm_rank(comm) == 0) {
        status = td_path_join(out, parent ? parent : "/tmp", "tandem-evaluate-XXXXXX");
        if (status == TD_OK && !mkdtemp(out))
            status = td_fail(TD_ERR_IO, "%s: cannot be made: %s", out, strerror(errno));
    }
    TD_TRY(td_comm_agree(comm, status, "scratch folder"));
    return td_comm_broadcast(comm, out, TD_PATH_MAX, 0, "scratch folder");
}

static td_status store_loss(td_inference *inference, const td_config *config, const char *folder,
                            double *out_loss, int64_t *out_tokens) {
    td_store *store = NULL;
    td_evaluation evaluation = {0};
    TD_TRY(td_run_data_open_files(&inference->session, &config->eval_files, folder, "evaluate.h5",
                                  &store));
    int64_t capacity =
        config->micro_batch_tokens > 0 ? config->micro_batch_tokens : config->max_length;
    td_status status = td_evaluation_init(&evaluation, inference->session.comm, store, capacity);
    if (status == TD_OK)
        status = td_inference_prepare(inference, capacity, td_evaluation_max_rows(&evaluation),
                                      config->max_length);
    if (status == TD_OK)
        status = td_evaluation_loss(&evaluation, inference->transformer, inference->parameters,
                                    out_loss);
    *out_tokens = status == TD_OK ? evaluation.batch.n_trained : 0;
    td_evaluation_fini(&evaluation);
    td_store_close(store);
    return status;
}

static td_status evaluate_loss(td_inference *inference, const td_config *config, double *out_loss,
                               int64_t *out_tokens) {
    char folder[TD_PATH_MAX];
    td_comm *comm = inference->session.comm;
    TD_TRY(make_scratch(comm, folder));
    td_status status = store_loss(inference, config, folder, out_loss, out_tokens);
    if (td_comm_rank(comm) == 0 && td_folder_remove_tree(folder) != TD_OK && status == TD_OK)
        td_warn("%s is left behind: %s", folder, td_error_message());
    return status;
}

static td_status match_all(td_inference *inference, const td_config *config,
                           const evaluate_options *wanted, td_exact_match *out) {
    td_exact_match_options options = {
        .limit = wanted->limit,
        .max_new_tokens = wanted->max_new_tokens,
        .max_length = config->max_length,
        .show = wanted->show ? 5 : 0,
    };
    TD_TRY(td_inference_prepare(inference, config->max_length, 1,
                                config->max_length + wanted->max_new_tokens));
    *out = (td_exact_match){0};
    for (int i = 0; i < config->eval_files.count; i++) {
        td_exact_match part;
        TD_TRY(td_evaluation_exact_match(&inference->session, inference->transformer,
                                         inference->parameters, config->eval_files.items[i],
                                         &options, &part));
        out->n_rows += part.n_rows;
        out->n_matches += part.n_matches;
    }
    if (out->n_rows == 0)
        return td_fail(TD_ERR_DATA, "%s: no rows to answer", config->eval_files.items[0]);
    return TD_OK;
}

static void print_result(const evaluate_options *wanted, double loss, int64_t tokens,
                         const td_exact_match *match) {
    double share = match->n_rows > 0 ? (double)match->n_matches / (double)match->n_rows : 0;
    if (wanted->json) {
        printf("{\"loss\": %.9g, \"perplexity\": %.9g, \"tokens\": %lld", loss, exp(loss),
               (long long)tokens);
        if (wanted->exact_match)
            printf(", \"exact_match\": %.6g, \"matches\": %lld, \"rows\": %lld", share,
                   (long long)match->n_matches, (long long)match->n_rows);
        printf("}\n");
        return;
    }
    printf("loss:        %.4f over %lld tokens\nperplexity:  %.3f\n", loss, (long long)tokens,
           exp(loss));
    if (wanted->exact_match)
        printf("exact match: %.1f %% (%lld of %lld)\n", 100 * share, (long long)match->n_matches,
               (long long)match->n_rows);
}

static td_status evaluate(const td_config *config, td_comm *comm, const evaluate_options *wanted) {
    td_inference inference = {0};
    td_exact_match match = {0};
    double loss = 0;
    int64_t tokens = 0;
    td_status status = td_inference_open(&inference, config, comm);
    if (status == TD_OK)
        status = evaluate_loss(&inference, config, &loss, &tokens);
    if (status == TD_OK && wanted->exact_match)
        status = match_all(&inference, config, wanted, &match);
    if (status == TD_OK && td_comm_rank(comm) == 0)
        print_result(wanted, loss, tokens, &match);
    td_inference_close(&inference);
    return status;
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    evaluate_options wanted = {.max_new_tokens = 128};
    int help = 0;
    td_status status = parse(command, argc, argv, &config, &wanted, &help);
    if (!help) {
        status = td_comm_agree(comm, status, "command line");
        if (status == TD_OK)
            status = evaluate(&config, comm, &wanted);
    }
    td_config_fini(&config);
    return status;
}

const td_command td_command_evaluate = {
    .name = "evaluate",
    .arguments = "[CONFIG.json] [--model FOLDER] [--adapter FOLDER] [--data FILE] [--exact-match]",
    .summary = "loss, perplexity and exact match of a base model or an adapter on held-out rows",
    .details = "The loss is the mean over the tokens that training would train on. The ranks share "
               "the rows.\n\n"
               "example: mpirun -n 2 tandem evaluate --model base --adapter runs/a/adapter --data "
               "held.jsonl --exact-match",
    .run = run,
};
