#include <math.h>
#include <stdio.h>

#include "runtime/cli/cli.h"
#include "runtime/core/log.h"
#include "runtime/train/trainer.h"

static void print_summary(const td_train_summary *summary) {
    printf("steps:       %lld\n", (long long)summary->steps);
    if (!isnan(summary->last_loss))
        printf("loss:        %.4f (last step)\n", summary->last_loss);
    if (!isnan(summary->eval_loss))
        printf("eval loss:   %.4f (best %.4f)\n", summary->eval_loss, summary->best_eval_loss);
    printf("adapter:     %s\n", summary->adapter_folder);
    printf("checkpoints: %s\n", summary->checkpoint_folder);
}

static td_status parse(const td_command *command, int argc, char **argv, td_config *config,
                       int *help) {
    const char *positional[1], *resume = NULL;
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
        {"--resume", TD_OPTION_STRING, &resume, "auto|FOLDER",
         "go on from the newest whole checkpoint, or from the one named"},
    };
    TD_TRY(td_options_parse(command, options, 2, argc, argv, positional, 1, help));
    if (*help)
        return TD_OK;
    if (!positional[0] && assignments.count == 0)
        return td_fail(TD_ERR_USAGE, "name a run config (tandem train --help)");
    TD_TRY(td_cli_config(config, positional[0], &assignments));
    TD_TRY(td_cli_set(config, "resume_from_checkpoint", resume));
    TD_TRY(td_config_check(config));
    return config->train_files.count > 0
               ? TD_OK
               : td_fail(TD_ERR_USAGE, "train_files is empty; give at least one JSON Lines file");
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    td_train_summary summary;
    int help = 0;
    td_status status = parse(command, argc, argv, &config, &help);
    if (!help) {
        status = td_comm_agree(comm, status, "command line");
        if (status == TD_OK)
            status = td_train(&config, comm, &summary);
        if (status == TD_OK && td_comm_rank(comm) == 0)
            print_summary(&summary);
    }
    td_config_fini(&config);
    return status;
}

const td_command td_command_train = {
    .name = "train",
    .arguments = "CONFIG.json [--set KEY=VALUE]... [--resume auto|FOLDER]",
    .summary = "fine-tune a model folder with QLoRA and write a PEFT adapter",
    .details = "CONFIG.json is one JSON object; \"tandem config\" lists its keys. Data is prepared "
               "when that has not been\n"
               "done yet. The adapter, checkpoints and metrics.jsonl are written to output_dir. "
               "The result is the\n"
               "same, bit for bit, on any number of ranks. SIGUSR1 or SIGTERM makes the run write "
               "a checkpoint and leave with\n"
               "code 75; start it again with --resume auto.\n\n"
               "example: mpirun -n 2 tandem train configs/quickstart.json --set learning_rate=1e-4",
    .run = run,
};
