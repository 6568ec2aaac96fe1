#include "runtime/cli/folder_out.h"

static td_status parse(const td_command *command, int argc, char **argv, void *target, int *help) {
    td_quantize_options *options = target;
    const char *max_file_bytes = "5G";
    int is_single = 0;
    const td_option table[] = {
        {"--model", TD_OPTION_STRING, &options->model, "FOLDER", "model in F32, F16 or BF16"},
        {"--output", TD_OPTION_STRING, &options->output, "FOLDER", "where to; must not exist yet"},
        {"--no-double-quant", TD_OPTION_FLAG, &is_single, NULL,
         "keep the scales in fp32 (0.5 instead of 0.127 bits per weight)"},
        {"--max-shard-size", TD_OPTION_STRING, &max_file_bytes, "SIZE", "largest file (5G)"},
    };
    TD_TRY(
        td_options_parse(command, table, sizeof table / sizeof *table, argc, argv, NULL, 0, help));
    if (*help)
        return TD_OK;
    options->double_quantize = !is_single;
    TD_TRY(td_cli_require_option(command, "--model FOLDER", options->model));
    TD_TRY(td_cli_require_option(command, "--output FOLDER", options->output));
    return td_cli_parse_size("--max-shard-size", max_file_bytes, &options->max_file_bytes);
}

static td_status write_quantize(const void *options, const td_op_context *context,
                                td_export_report *report) {
    return td_export_nf4(options, context, report);
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    static const td_folder_command body = {parse, write_quantize, "quantized"};
    td_quantize_options options = {0};
    return td_cli_run_folder_command(command, &body, comm, argc, argv, &options, &options.output);
}

const td_command td_command_quantize = {
    .name = "quantize",
    .arguments = "--model FOLDER --output FOLDER",
    .summary = "write a model folder in NF4, as transformers and bitsandbytes load it",
    .details =
        "The linear layers of the blocks become NF4; embeddings, head, norms and biases stay. The "
        "folder trains and\n"
        "generates here as well, with the codes as they are stored.\n\n"
        "example: tandem quantize --model base --output base-nf4",
    .run = run,
};
