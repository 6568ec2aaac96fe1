#include "runtime/cli/folder_out.h"

static td_status parse(const td_command *command, int argc, char **argv,
                       td_quantize_options *options, int *help) {
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

static td_status quantize(const td_quantize_options *options) {
    td_op_context context;
    td_export_report report;
    td_status status = td_cli_cpu_open(&context);
    if (status == TD_OK)
        status = td_export_nf4(options, &context, &report);
    td_cli_cpu_close(&context);
    if (status == TD_OK)
        td_cli_print_export(options->output, "quantized", &report);
    return status;
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_quantize_options options = {0};
    int help = 0;
    td_status status = parse(command, argc, argv, &options, &help);
    if (help)
        return status;
    if (status == TD_OK)
        status = td_cli_require_alone(command, comm);
    TD_TRY(td_comm_agree(comm, status, "command line"));
    return quantize(&options);
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
