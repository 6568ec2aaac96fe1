#include <stdio.h>

#include "runtime/cli/cli.h"
#include "runtime/core/log.h"
#include "runtime/train/inference.h"
#include "runtime/train/metrics.h"

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
        {"--limit", TD_OPTION_INT, &wanted->limit, "N",
         "exact match: the first N rows of each file only"},
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
    if (wanted->limit < 0 || wanted->max_new_tokens < 1 || wanted->max_new_tokens > 1 << 24)
        return td_fail(TD_ERR_USAGE, "--limit is at least 0, --max-new-tokens in [1, 2^24]");
    return TD_OK;
}

static td_status store_loss(td_inference *inference, const td_config *config, const char *folder,
                            double *out_loss, int64_t *out_tokens) {
    td_store *store = NULL;
    td_evaluation evaluation = {0};
    TD_TRY(td_run_data_open_files(&inference->session, &config->eval_files, folder, "evaluate.h5",
                                  &store));
    td_status status = td_evaluation_init(&evaluation, config, inference->session.comm, store);
    if (status == TD_OK)
        status = td_inference_prepare(inference, td_evaluation_max_tokens(&evaluation),
                                      td_evaluation_max_rows(&evaluation), config->max_length);
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
    TD_TRY(td_cli_scratch_make(comm, "evaluate", folder));
    td_status status = store_loss(inference, config, folder, out_loss, out_tokens);
    td_cli_scratch_remove(comm, folder);
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
        out->n_skipped += part.n_skipped;
    }
    if (out->n_rows == 0)
        return td_fail(TD_ERR_DATA, "%s: no rows to answer (%lld were skipped)",
                       config->eval_files.items[0], (long long)out->n_skipped);
    if (out->n_skipped > 0)
        td_info("exact match: %lld rows were skipped: no answer to compare with, too long or "
                "malformed",
                (long long)out->n_skipped);
    return TD_OK;
}

static void print_result(const evaluate_options *wanted, double loss, int64_t tokens,
                         const td_exact_match *match) {
    double share = match->n_rows > 0 ? (double)match->n_matches / (double)match->n_rows : 0;
    if (wanted->json) {
        printf("{\"loss\": %.9g, \"perplexity\": %.9g, \"tokens\": %lld", loss, td_perplexity(loss),
               (long long)tokens);
        if (wanted->exact_match)
            printf(", \"exact_match\": %.6g, \"matches\": %lld, \"rows\": %lld", share,
                   (long long)match->n_matches, (long long)match->n_rows);
        printf("}\n");
        return;
    }
    printf("loss:        %.4f over %lld tokens\nperplexity:  %.3f\n", loss, (long long)tokens,
           td_perplexity(loss));
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
