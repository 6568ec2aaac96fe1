#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/core/log.h"
#include "runtime/train/exact_match.h"
#include "runtime/train/inference.h"
#include "runtime/train/metrics.h"
#include "runtime/train/report.h"

typedef struct evaluate_options {
    const char *model, *adapter, *data, *report, *examples;
    int64_t limit, max_new_tokens, few_shot, samples;
    int exact_match, compare, show, json;
} evaluate_options;

static td_status check_numbers(const evaluate_options *wanted) {
    if (wanted->limit < 0 || wanted->max_new_tokens < 1 || wanted->max_new_tokens > 1 << 24)
        return td_fail(TD_ERR_USAGE, "--limit is at least 0, --max-new-tokens in [1, 2^24]");
    if (wanted->few_shot < -1 || wanted->few_shot > TD_MAX_EXAMPLES)
        return td_fail(TD_ERR_USAGE, "--few-shot is in [0, %d]", TD_MAX_EXAMPLES);
    if (wanted->samples < 0 || wanted->samples > TD_MAX_SAMPLES)
        return td_fail(TD_ERR_USAGE, "--samples is in [0, %d]", TD_MAX_SAMPLES);
    return TD_OK;
}

// The adapter of the config's run, when no other is named: the one it kept as the best, else the
// last.
static td_status find_adapter(td_config *config) {
    static const char *const names[] = {"best_adapter", "adapter"};
    char path[TD_PATH_MAX];
    for (int i = 0; i < 2 && !config->adapter_name_or_path && config->output_dir; i++) {
        TD_TRY(td_path_join(path, config->output_dir, names[i]));
        if (td_path_is_folder(path)) {
            TD_TRY(td_cli_set(config, "adapter_name_or_path", path));
            td_info("adapter: %s", path);
        }
    }
    if (config->adapter_name_or_path)
        return TD_OK;
    return td_fail(TD_ERR_USAGE, "nothing to compare the base model with: give --adapter FOLDER, "
                                 "or the config of a finished run");
}

// Three examples where there are training rows to take them from, unless the user says how many.
static td_status check_comparison(evaluate_options *wanted, td_config *config) {
    if (!wanted->compare && (wanted->few_shot >= 0 || wanted->report || wanted->examples))
        return td_fail(TD_ERR_USAGE, "--few-shot, --examples and --report go with --compare");
    if (!wanted->compare)
        return TD_OK;
    TD_TRY(find_adapter(config));
    TD_TRY(td_cli_set(config, "train_files", wanted->examples));
    if (wanted->few_shot > 0 && config->train_files.count == 0)
        return td_fail(TD_ERR_USAGE,
                       "--few-shot needs training rows: give --examples FILE or a config with "
                       "train_files");
    if (wanted->few_shot < 0)
        wanted->few_shot = config->train_files.count > 0 ? 3 : 0;
    return TD_OK;
}

static td_status take_words(const evaluate_options *wanted, td_config *config) {
    TD_TRY(td_cli_set(config, "model_name_or_path", wanted->model));
    TD_TRY(td_cli_set(config, "adapter_name_or_path", wanted->adapter));
    TD_TRY(td_cli_set(config, "eval_files", wanted->data));
    if (config->eval_files.count == 0)
        return td_fail(TD_ERR_USAGE, "nothing to evaluate on: give --data FILE or eval_files");
    return TD_OK;
}

static td_status parse(const td_command *command, int argc, char **argv, td_config *config,
                       evaluate_options *wanted, int *help) {
    const char *positional[1];
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--model", TD_OPTION_STRING, &wanted->model, "FOLDER", "base model (else the config's)"},
        {"--adapter", TD_OPTION_STRING, &wanted->adapter, "FOLDER",
         "PEFT adapter; without: the base model, to compare: the adapter of the config's run"},
        {"--data", TD_OPTION_STRING, &wanted->data, "FILE",
         "JSONL rows (else the config's eval_files)"},
        {"--exact-match", TD_OPTION_FLAG, &wanted->exact_match, NULL,
         "answer every question greedily and count answers equal to the row's"},
        {"--compare", TD_OPTION_FLAG, &wanted->compare, NULL,
         "base, adapter, and base with examples, side by side"},
        {"--few-shot", TD_OPTION_INT, &wanted->few_shot, "K",
         "compare: this many training rows before every question (3)"},
        {"--examples", TD_OPTION_STRING, &wanted->examples, "FILE",
         "compare: where they are from (else the config's train_files)"},
        {"--report", TD_OPTION_STRING, &wanted->report, "FILE.md",
         "compare: write a report in Markdown"},
        {"--samples", TD_OPTION_INT, &wanted->samples, "N", "compare: rows in the report (8)"},
        {"--limit", TD_OPTION_INT, &wanted->limit, "N",
         "answer the first N rows of each file only"},
        {"--max-new-tokens", TD_OPTION_INT, &wanted->max_new_tokens, "N", "longest answer (128)"},
        {"--show", TD_OPTION_FLAG, &wanted->show, NULL, "print some wrong answers"},
        {"--json", TD_OPTION_FLAG, &wanted->json, NULL, "print one JSON object"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
    };
    TD_TRY(td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            positional, 1, help));
    if (*help)
        return TD_OK;
    TD_TRY(td_cli_config(config, positional[0], &assignments));
    TD_TRY(take_words(wanted, config));
    TD_TRY(check_numbers(wanted));
    return check_comparison(wanted, config);
}

static td_exact_match_options answer_options(const td_config *config,
                                             const evaluate_options *wanted) {
    return (td_exact_match_options){
        .limit = wanted->limit,
        .max_new_tokens = wanted->max_new_tokens,
        .max_length = config->max_length,
        .show = wanted->show ? 5 : 0,
        .n_samples = wanted->compare ? (int)wanted->samples : 0,
    };
}

static td_status require_rows(const td_config *config, const td_exact_match *match) {
    if (match->n_rows == 0)
        return td_fail(TD_ERR_DATA, "%s: no rows to answer (%lld were skipped)",
                       config->eval_files.items[0], (long long)match->n_skipped);
    if (match->n_skipped > 0)
        td_info("exact match: %lld rows were skipped: no answer to compare with, too long or "
                "malformed",
                (long long)match->n_skipped);
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

static td_status match_all(td_inference *inference, const td_config *config,
                           const evaluate_options *wanted, td_exact_match *out) {
    td_exact_match_options options = answer_options(config, wanted);
    td_contender contender = {.parameters = inference->parameters};
    TD_TRY(td_inference_prepare(inference, config->max_length, 1,
                                config->max_length + wanted->max_new_tokens));
    TD_TRY(td_exact_match_run(&inference->session, inference->transformer, &contender, 1,
                              &config->eval_files, &options, out));
    return require_rows(config, out);
}

static void print_result(const evaluate_options *wanted, double loss, int64_t tokens,
                         const td_exact_match *match) {
    int64_t matches = match->scores[0].n_matches;
    double share = match->n_rows > 0 ? (double)matches / (double)match->n_rows : 0;
    if (wanted->json) {
        printf("{\"loss\": %.9g, \"perplexity\": %.9g, \"tokens\": %lld", loss, td_perplexity(loss),
               (long long)tokens);
        if (wanted->exact_match)
            printf(", \"exact_match\": %.6g, \"matches\": %lld, \"rows\": %lld", share,
                   (long long)matches, (long long)match->n_rows);
        printf("}\n");
        return;
    }
    printf("loss:        %.4f over %lld tokens\nperplexity:  %.3f\n", loss, (long long)tokens,
           td_perplexity(loss));
    if (!wanted->exact_match)
        return;
    double low, high;
    td_wilson_interval(matches, match->n_rows, &low, &high);
    printf("exact match: %.1f %% (%lld of %lld; 95 %% interval %.1f to %.1f %%)\n", 100 * share,
           (long long)matches, (long long)match->n_rows, 100 * low, 100 * high);
}

static td_status evaluate_one(td_inference *inference, const evaluate_options *wanted,
                              const char *folder) {
    const td_config *config = inference->session.config;
    td_exact_match *match = calloc(1, sizeof *match);
    double loss = 0;
    int64_t tokens = 0;
    td_status status = match ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for the results");
    status = td_comm_agree(inference->session.comm, status, "results");
    if (status == TD_OK)
        status = store_loss(inference, config, folder, &loss, &tokens);
    if (status == TD_OK && wanted->exact_match)
        status = match_all(inference, config, wanted, match);
    if (status == TD_OK && td_comm_rank(inference->session.comm) == 0)
        print_result(wanted, loss, tokens, match);
    free(match);
    return status;
}

static td_status write_report(const td_report_subject *subject, const char *path) {
    char *text;
    TD_TRY(td_report_markdown(subject, 1, &text));
    td_status status = td_file_write_atomic(path, text, strlen(text));
    free(text);
    if (status == TD_OK)
        td_info("report: %s", path);
    return status;
}

static td_status print_comparison(const td_report_subject *subject,
                                  const evaluate_options *wanted) {
    char *text;
    if (wanted->report)
        TD_TRY(write_report(subject, wanted->report));
    TD_TRY(wanted->json ? td_report_json(subject, &text) : td_report_markdown(subject, 0, &text));
    fputs(text, stdout);
    free(text);
    return TD_OK;
}

static td_status compare(td_inference *inference, const evaluate_options *wanted,
                         const char *folder, td_comparison *comparison) {
    const td_config *config = inference->session.config;
    const td_comparison_options options = {
        .example_files = &config->train_files,
        .n_examples = wanted->few_shot,
        .answers = answer_options(config, wanted),
        .scratch = folder,
    };
    const td_report_subject subject = {&inference->session, comparison, &options};
    td_status status = TD_OK;
    TD_TRY(td_comparison_run(inference, &options, comparison));
    if (comparison->answers.n_rows > 0)
        TD_TRY(require_rows(config, &comparison->answers));
    else
        td_info("%s: no row asks a question that fits: only losses are compared",
                config->eval_files.items[0]);
    if (td_comm_rank(inference->session.comm) == 0)
        status = print_comparison(&subject, wanted);
    return td_comm_agree(inference->session.comm, status, "report");
}

static td_status evaluate_both(td_inference *inference, const evaluate_options *wanted,
                               const char *folder) {
    td_comparison *comparison = calloc(1, sizeof *comparison);
    td_status status = comparison ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for the results");
    status = td_comm_agree(inference->session.comm, status, "results");
    if (status == TD_OK)
        status = compare(inference, wanted, folder, comparison);
    free(comparison);
    return status;
}

static td_status evaluate(const td_config *config, td_comm *comm, const evaluate_options *wanted) {
    td_inference inference = {0};
    char folder[TD_PATH_MAX];
    td_status status = td_inference_open(&inference, config, comm);
    if (status == TD_OK)
        status = td_cli_scratch_make(comm, "evaluate", folder);
    if (status == TD_OK) {
        status = wanted->compare ? evaluate_both(&inference, wanted, folder)
                                 : evaluate_one(&inference, wanted, folder);
        td_cli_scratch_remove(comm, folder);
    }
    td_inference_close(&inference);
    return status;
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    evaluate_options wanted = {.max_new_tokens = 128, .few_shot = -1, .samples = 8};
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
    .arguments = "[CONFIG.json] [--model FOLDER] [--adapter FOLDER] [--data FILE] [--exact-match | "
                 "--compare]",
    .summary = "loss, perplexity and exact match of a base model or an adapter on held-out rows",
    .details =
        "The loss is the mean over the tokens that training would train on. The ranks share the "
        "rows; the figures do\n"
        "not depend on how many there are. --compare asks the base model, the adapter, and the "
        "base model with\n"
        "examples before every question; examples that do not fit are left out, and the report "
        "says where.\n\n"
        "example: mpirun -n 2 tandem evaluate --model base --adapter runs/a/adapter --data "
        "held.jsonl --exact-match\n"
        "         tandem evaluate runs/a.json --compare --few-shot 5 --report a.md",
    .run = run,
};
