#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/cli/cli.h"
#include "runtime/core/fault.h"
#include "runtime/core/log.h"

static const td_command *const commands[] = {
    &td_command_train,   &td_command_prepare,  &td_command_evaluate, &td_command_generate,
    &td_command_inspect, &td_command_config,   &td_command_bench,    &td_command_plan,
    &td_command_merge,   &td_command_quantize, &td_command_export,
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *out) {
    fprintf(out, "tandem: QLoRA fine-tuning of Hugging Face language models, one process per GPU "
                 "or CPU slot\n\n"
                 "usage: tandem COMMAND ...\n"
                 "       mpirun -n N tandem COMMAND ...\n\ncommands:\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(
        out,
        "\n\"tandem COMMAND --help\" explains one; \"tandem --version\" says what this build is "
        "made of.\n\n"
        "exit codes: 0 done, 2 command line or config, 3 model or data, 4 memory plan, 5 "
        "file system,\n"
        "6 another rank failed, 7 loss or gradient not finite, 75 stopped after a "
        "checkpoint on request\n"
        "(start again with --resume auto), 70 internal\n");
}

static const td_command *find_command(const char *name) {
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

static td_status unknown_command(const char *name) {
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++)
        names[i] = commands[i]->name;
    const char *near = td_nearest_name(name, names, N_COMMANDS);
    return near ? td_fail(TD_ERR_USAGE, "%s: unknown command; did you mean %s?", name, near)
                : td_fail(TD_ERR_USAGE, "%s: unknown command (tandem --help lists them)", name);
}

// Help needs no other rank and must work where MPI does not.
static int run_alone(const td_command *command, int argc, char **argv) {
    if (!command || argc < 2) {
        print_usage(stdout);
        return 0;
    }
    td_status status = command->run(command, NULL, argc - 2, argv + 2);
    if (status != TD_OK)
        td_error("%s", td_error_message());
    return (int)status;
}

static int run_together(const td_command *command, int argc, char **argv) {
    td_comm *comm;
    td_status status = TD_FAULT("start");
    if (status == TD_OK)
        status = td_comm_bootstrap(&comm);
    if (status != TD_OK)
        td_comm_abort(NULL, status, NULL);
    td_log_init(TD_LOG_INFO, td_comm_rank(comm), td_comm_size(comm));
    status = command->run(command, comm, argc - 2, argv + 2);
    // A status that all ranks share was agreed on and they leave together; one rank's own failure
    // ends the job.
    if (status != TD_OK && status != TD_STOPPED && !td_comm_is_agreed(comm))
        td_comm_abort(comm, status, NULL);
    if (status != TD_OK && td_comm_rank(comm) == 0)
        td_log(status == TD_STOPPED ? TD_LOG_INFO : TD_LOG_ERROR, "%s", td_error_message());
    int is_silent = status == TD_OK;
    td_status finished = td_comm_finish(comm);
    if (finished != TD_OK && is_silent)
        td_error("%s", td_error_message());
    return (int)(status != TD_OK ? status : finished);
}

// "help COMMAND" is "COMMAND --help", and "help" alone "--help".
static void turn_help_around(int argc, char **argv) {
    static char option[] = "--help";
    if (strcmp(argv[1], "help") != 0)
        return;
    memmove(argv + 1, argv + 2, (size_t)(argc - 2) * sizeof *argv);
    argv[argc - 1] = option;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    umask(umask(077) | 022); // whatever it was: what we make, only its owner may change
    if (argc < 2) {
        print_usage(stderr);
        return TD_ERR_USAGE;
    }
    turn_help_around(argc, argv);
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "version") == 0) {
        td_print_version(stdout);
        return 0;
    }
    const td_command *command = find_command(argv[1]);
    if (td_options_want_help(argc - 1, argv + 1) && (command || argv[1][0] == '-'))
        return run_alone(command, argc, argv);
    if (!command) {
        td_status status = unknown_command(argv[1]);
        td_error("%s", td_error_message());
        return (int)status;
    }
    return run_together(command, argc, argv);
}
