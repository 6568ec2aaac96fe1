// The command line: one table of commands, one file per command, one parser for options.
#ifndef TANDEM_CLI_CLI_H
#define TANDEM_CLI_CLI_H

#include <stdio.h>

#include "comm/comm.h"
#include "runtime/core/config.h"
#include "runtime/core/files.h"

typedef enum td_option_type {
    TD_OPTION_FLAG,   // int, set to 1
    TD_OPTION_STRING, // const char *
    TD_OPTION_INT,    // int64_t
    TD_OPTION_FLOAT,  // double
    TD_OPTION_LIST,   // td_option_list: may be given several times
} td_option_type;

typedef struct td_option_list {
    const char *items[64];
    int count;
} td_option_list;

typedef struct td_option {
    const char *name; // "--set"
    td_option_type type;
    void *target;
    const char *argument; // shown in the help, NULL for a flag
    const char *help;
} td_option;

typedef struct td_command {
    const char *name;
    const char *arguments; // shown after the name in the help
    const char *summary;   // one line
    const char *details;   // paragraphs and an example
    // Runs on every rank. Options are parsed with td_options_parse(); a status other than TD_OK is
    // the exit code.
    td_status (*run)(const struct td_command *command, td_comm *comm, int argc, char **argv);
} td_command;

extern const td_command td_command_train, td_command_evaluate, td_command_generate,
    td_command_inspect, td_command_config, td_command_bench, td_command_plan;

extern const td_command td_command_prepare, td_command_merge, td_command_quantize,
    td_command_export;

// 1 when --help or -h is among the words: then nothing else counts.
int td_options_want_help(int argc, char **argv);
// Fills in the targets; up to max_positional other words go to `positional` (NULL when absent).
// "--help", anywhere, prints the command's help and sets *out_help. TD_ERR_USAGE names the word and
// the nearest option.
td_status td_options_parse(const td_command *command, const td_option *options, int n_options,
                           int argc, char **argv, const char **positional, int max_positional,
                           int *out_help);

// Config from an optional file and "--set" assignments; config is initialised here,
// td_config_fini() also after failure.
td_status td_cli_config(td_config *config, const char *path, const td_option_list *assignments);
// The value becomes a JSON string; NULL, of an option that was not given, changes nothing.
td_status td_cli_set(td_config *config, const char *key, const char *value);

// "tandem --version".
void td_print_version(FILE *out);

// Collective. A temporary folder, made by rank 0 below TMPDIR; the other ranks see it through the
// same file system.
td_status td_cli_scratch_make(td_comm *comm, const char *purpose, char out[TD_PATH_MAX]);
// Local. Removes it, on rank 0; a folder that stays behind is a warning.
void td_cli_scratch_remove(const td_comm *comm, const char *folder);

#endif
