// What the commands that write a model folder share.
#ifndef TANDEM_CLI_FOLDER_OUT_H
#define TANDEM_CLI_FOLDER_OUT_H

#include "model/export.h"
#include "runtime/cli/cli.h"

// "5G", "500MB", "100000": decimal, as Hugging Face counts. TD_ERR_USAGE names the option.
td_status td_cli_parse_size(const char *option, const char *text, uint64_t *out_bytes);
// These commands use one process.
td_status td_cli_require_alone(const td_command *command, const td_comm *comm);
// TD_ERR_USAGE names the option that lacks a value.
td_status td_cli_require_option(const td_command *command, const char *option, const char *value);

// A context of the CPU; close also after failure.
td_status td_cli_cpu_open(td_op_context *out);
void td_cli_cpu_close(td_op_context *context);

// "OUTPUT: 7 weights merged, ..." with the largest memory of the process.
void td_cli_print_export(const char *output, const char *verb, const td_export_report *report);

#endif
