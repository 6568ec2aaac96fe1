// What the commands that write a model folder share.
#ifndef TANDEM_CLI_FOLDER_OUT_H
#define TANDEM_CLI_FOLDER_OUT_H

#include "model/export.h"
#include "runtime/cli/cli.h"

// "5G", "500MB", "100000": decimal, as Hugging Face counts. TD_ERR_USAGE names the option.
td_status td_cli_parse_size(const char *option, const char *text, uint64_t *out_bytes);
// Local. These commands use one process: TD_ERR_USAGE with more ranks.
td_status td_cli_require_alone(const td_command *command, const td_comm *comm);
// TD_ERR_USAGE names the option that lacks a value.
td_status td_cli_require_option(const td_command *command, const char *option, const char *value);

// The body of a command that writes a model folder.
typedef struct td_folder_command {
    // Fills in `options`. td_options_parse() sets *help.
    td_status (*parse)(const td_command *command, int argc, char **argv, void *options, int *help);
    // On the CPU.
    td_status (*write)(const void *options, const td_op_context *context, td_export_report *report);
    const char *verb; // "merged": "OUTPUT: 7 weights merged, ..."
} td_folder_command;

// Local. Parses, refuses more than one rank, writes, and prints what became of it with the largest
// memory of the process. `output` points to where the options have the folder.
td_status td_cli_run_folder_command(const td_command *command, const td_folder_command *body,
                                    td_comm *comm, int argc, char **argv, void *options,
                                    const char *const *output);

#endif
