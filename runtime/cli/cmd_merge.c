#include <string.h>

#include "runtime/cli/folder_out.h"
#include "runtime/train/session.h"

typedef struct merge_words {
    const char *into, *max_file_bytes;
    int is_single;
} merge_words;

static td_status read_into(const char *into, td_merge_options *options) {
    static const char *const names[] = {"same", "bf16", "f32", "nf4-dequantized"};
    static const td_merge_dtype dtypes[] = {TD_MERGE_SAME, TD_MERGE_BF16, TD_MERGE_F32,
                                            TD_MERGE_SAME};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(into, names[i]) == 0) {
            options->dtype = dtypes[i];
            options->dequantized = i == 3;
            return TD_OK;
        }
    return td_fail(TD_ERR_USAGE, "--into is bf16, f32, same or nf4-dequantized, found \"%.40s\"",
                   into);
}

static td_status parse(const td_command *command, int argc, char **argv, void *target, int *help) {
    td_merge_options *options = target;
    merge_words words = {.into = "same", .max_file_bytes = "5G"};
    const td_option table[] = {
        {"--model", TD_OPTION_STRING, &options->model, "FOLDER", "base model"},
        {"--adapter", TD_OPTION_STRING, &options->adapter, "FOLDER", "PEFT adapter"},
        {"--output", TD_OPTION_STRING, &options->output, "FOLDER", "where to; must not exist yet"},
        {"--into", TD_OPTION_STRING, &words.into, "TYPE",
         "bf16, f32, same (the base's own, the default), or nf4-dequantized"},
        {"--no-double-quant", TD_OPTION_FLAG, &words.is_single, NULL,
         "nf4-dequantized without double quantization"},
        {"--max-shard-size", TD_OPTION_STRING, &words.max_file_bytes, "SIZE", "largest file (5G)"},
    };
    TD_TRY(
        td_options_parse(command, table, sizeof table / sizeof *table, argc, argv, NULL, 0, help));
    if (*help)
        return TD_OK;
    options->double_quantize = !words.is_single;
    TD_TRY(td_cli_require_option(command, "--model FOLDER", options->model));
    TD_TRY(td_cli_require_option(command, "--adapter FOLDER", options->adapter));
    TD_TRY(td_cli_require_option(command, "--output FOLDER", options->output));
    TD_TRY(read_into(words.into, options));
    if (words.is_single && !options->dequantized)
        return td_fail(TD_ERR_USAGE, "--no-double-quant goes with --into nf4-dequantized");
    return td_cli_parse_size("--max-shard-size", words.max_file_bytes, &options->max_file_bytes);
}

static td_status write_merge(const void *options, const td_op_context *context,
                             td_export_report *report) {
    const td_merge_options *merge = options;
    TD_TRY(td_session_warn_other_base(merge->adapter, merge->model));
    return td_export_merged(merge, context, report);
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    static const td_folder_command body = {parse, write_merge, "merged"};
    td_merge_options options = {0};
    return td_cli_run_folder_command(command, &body, comm, argc, argv, &options, &options.output);
}

const td_command td_command_merge = {
    .name = "merge",
    .arguments = "--model FOLDER --adapter FOLDER --output FOLDER",
    .summary = "put an adapter into the weights of its base: a whole model folder",
    .details =
        "W + s B A in fp32, rounded once; on the CPU, in slices, so that memory does not depend on "
        "the model.\n"
        "nf4-dequantized merges into the weights quantized to NF4 and back, which is what a 4-bit "
        "run trained on;\n"
        "a folder that holds NF4 is always merged so.\n\n"
        "example: tandem merge --model base --adapter runs/a/adapter --output merged --into bf16",
    .run = run,
};
