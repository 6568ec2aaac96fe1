#include <stdio.h>

#include "runtime/cli/folder_out.h"
#include "runtime/train/checkpoint_export.h"

typedef struct export_options {
    const char *checkpoint, *output, *model;
} export_options;

static td_status parse(const td_command *command, int argc, char **argv, export_options *options,
                       int *help) {
    const td_option table[] = {
        {"--checkpoint", TD_OPTION_STRING, &options->checkpoint, "FOLDER",
         "RUN/checkpoints/step-..., or RUN for its newest whole one"},
        {"--output", TD_OPTION_STRING, &options->output, "FOLDER", "where to; must not exist yet"},
        {"--model", TD_OPTION_STRING, &options->model, "FOLDER",
         "base model, when it has moved since: its shapes are needed to rebuild an adapter"},
    };
    TD_TRY(
        td_options_parse(command, table, sizeof table / sizeof *table, argc, argv, NULL, 0, help));
    if (*help)
        return TD_OK;
    TD_TRY(td_cli_require_option(command, "--checkpoint FOLDER", options->checkpoint));
    return td_cli_require_option(command, "--output FOLDER", options->output);
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    export_options options = {0};
    char checkpoint[TD_PATH_MAX];
    int help = 0;
    td_status status = parse(command, argc, argv, &options, &help);
    if (help)
        return status;
    if (status == TD_OK)
        status = td_cli_require_alone(command, comm);
    TD_TRY(td_comm_agree(comm, status, "command line"));
    TD_TRY(td_checkpoint_export_adapter(options.checkpoint, options.model, options.output,
                                        checkpoint));
    printf("%s: the adapter of %s\n", options.output, checkpoint);
    return TD_OK;
}

const td_command td_command_export = {
    .name = "export",
    .arguments = "--checkpoint FOLDER --output FOLDER",
    .summary = "take the adapter out of any checkpoint, as PEFT loads it",
    .details = "Size and checksum are compared with the checkpoint's manifest. Where the adapter's "
               "files are "
               "missing or damaged\n"
               "it is rebuilt from the checkpoint's pages, bit for bit.\n\n"
               "example: tandem export --checkpoint runs/a/checkpoints/step-000100 --output "
               "adapter-100",
    .run = run,
};
