#include <stdio.h>

#include "runtime/cli/cmd_bench.h"
#include "runtime/train/bench_ops.h"

typedef struct bench_options {
    int64_t tokens, seq_tokens;
    const char *shape, *record, *only;
    int json;
    char command[1024];
} bench_options;

static td_status parse(const td_command *command, int argc, char **argv, td_config *config,
                       bench_options *wanted, int *help) {
    const char *positional[1];
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--shape", TD_OPTION_STRING, &wanted->shape, "FOLDER",
         "folder with the config.json of a model"},
        {"--seq", TD_OPTION_INT, &wanted->seq_tokens, "N", "tokens per sequence (512)"},
        {"--tokens", TD_OPTION_INT, &wanted->tokens, "N",
         "tokens per micro-batch (those of one sequence)"},
        {"--only", TD_OPTION_STRING, &wanted->only, "GROUP",
         "one group of operations: " TD_BENCH_OPS_GROUPS},
        {"--record", TD_OPTION_STRING, &wanted->record, "FILE", "write the record there"},
        {"--json", TD_OPTION_FLAG, &wanted->json, NULL, "print the record"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key (lora_r, page_elements); may be repeated"},
    };
    TD_TRY(td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            positional, 0, help));
    if (*help)
        return TD_OK;
    if (!wanted->shape)
        return td_fail(TD_ERR_USAGE, "--shape FOLDER is missing");
    if (wanted->tokens == 0)
        wanted->tokens = wanted->seq_tokens;
    if (!td_bench_in_range(2, wanted->seq_tokens, 1 << 20) ||
        !td_bench_in_range(wanted->seq_tokens, wanted->tokens, 1 << 20))
        return td_fail(TD_ERR_USAGE, "--seq is in [2, 2^20], --tokens in [--seq, 2^20]");
    td_bench_command_line(command, argc, argv, wanted->command, sizeof wanted->command);
    TD_TRY(td_cli_config(config, NULL, &assignments));
    return td_cli_set(config, "model_name_or_path", wanted->shape);
}

static td_status report(const bench_options *wanted, td_bench_ops_result *result) {
    if (!wanted->json)
        td_bench_ops_print(result);
    td_bench_record_text(result->record, "shape", wanted->shape);
    return td_bench_record_finish(result->record, wanted->record, wanted->json);
}

static td_status bench(const td_config *config, td_comm *comm, void *options) {
    const bench_options *wanted = options;
    td_bench_ops_result result;
    td_status status = td_bench_ops(config, comm, wanted->tokens, wanted->seq_tokens, wanted->only,
                                    wanted->command, &result);
    if (status == TD_OK && td_comm_rank(comm) == 0)
        status = report(wanted, &result);
    td_bench_ops_fini(&result);
    return td_comm_agree(comm, status, "benchmark record");
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    bench_options wanted = {.seq_tokens = 512};
    int help = 0;
    td_status status = parse(command, argc, argv, &config, &wanted, &help);
    return td_bench_run(comm, status, help, &config, bench, &wanted);
}

const td_command td_bench_command_ops = {
    .name = "bench ops",
    .arguments = "--shape FOLDER [--seq N] [--tokens N]",
    .summary = "verify and time every operation at the shapes that a model's training uses",
    .details =
        "Each result is compared with a plain computation in double on the host, by samples; the "
        "first wrong one ends\nthe run. Then medians, and their share of the ceilings measured in "
        "the same run: products against a large GEMM,\nthe rest against a copy.\n\n"
        "example: tandem bench ops --shape configs/shapes/smollm2-135m --seq 512",
    .run = run,
};
