#include <stdio.h>
#include <stdlib.h>

#include "runtime/cli/cli.h"
#include "runtime/core/json.h"

static td_status print_values(const char *path, const td_option_list *assignments) {
    td_config config = {0};
    td_status status = td_cli_config(&config, path, assignments);
    if (status == TD_OK) {
        cJSON *tree = td_config_to_json(&config);
        char *text = tree ? td_json_print(tree, 1) : NULL;
        if (text)
            printf("%s\n", text);
        else
            status = td_fail(TD_ERR_MEMORY, "no memory to print the config");
        free(text);
        cJSON_Delete(tree);
    }
    td_config_fini(&config);
    return status;
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    const char *positional[1];
    td_option_list assignments = {0};
    int help;
    const td_option options[] = {
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
    };
    td_status status = td_options_parse(command, options, 1, argc, argv, positional, 1, &help);
    if (help)
        return status;
    if (status == TD_OK && td_comm_rank(comm) == 0) {
        if (positional[0] || assignments.count > 0)
            status = print_values(positional[0], &assignments);
        else
            td_config_print_table();
    }
    return td_comm_agree(comm, status, "config");
}

const td_command td_command_config = {
    .name = "config",
    .arguments = "[CONFIG.json] [--set KEY=VALUE]...",
    .summary = "list the config keys, or check a config and print every value in force",
    .details = "Without a file: every key with its type, range, default and meaning. With one: all "
               "keys with the values\n"
               "a run would use, as JSON.",
    .run = run,
};
