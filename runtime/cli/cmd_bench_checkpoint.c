#include <stdio.h>

#include "runtime/cli/cmd_bench.h"
#include "runtime/train/bench_checkpoint.h"
#include "runtime/train/bench_record.h"

// The goal: what blocks takes no longer than this many plain copies of the state.
static const double goal = 1.5;

typedef struct bench_options {
    td_bench_checkpoint_options bench;
    const char *shape, *record;
    int json;
    char command[1024];
} bench_options;

static td_status use_shape(td_config *config, bench_options *wanted, int size) {
    td_bench_step_options *step = &wanted->bench.step;
    step->sequences = 1;
    step->micro_batches = size;
    config->packing = 0;
    config->per_device_train_batch_size = 1;
    config->gradient_accumulation_steps = size;
    config->max_length = step->seq_tokens;
    config->max_steps = step->steps + 1000;
    return td_cli_set(config, "model_name_or_path", wanted->shape);
}

static td_status parse(const td_command *command, int size, int argc, char **argv,
                       td_config *config, bench_options *wanted, int *help) {
    const char *positional[1];
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--shape", TD_OPTION_STRING, &wanted->shape, "FOLDER",
         "folder with the config.json of a model"},
        {"--parameters", TD_OPTION_INT, &wanted->bench.n_elements, "N",
         "trained parameters, instead of a shape"},
        {"--saves", TD_OPTION_INT, &wanted->bench.saves, "N", "timed saves (15)"},
        {"--steps", TD_OPTION_INT, &wanted->bench.step.steps, "N",
         "also N timed steps of the shape, and saves between steps (0)"},
        {"--seq", TD_OPTION_INT, &wanted->bench.step.seq_tokens, "N",
         "tokens of a micro-batch of them, one for each rank (512)"},
        {"--record", TD_OPTION_STRING, &wanted->record, "FILE", "write the record there"},
        {"--json", TD_OPTION_FLAG, &wanted->json, NULL, "print the record"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key (lora_r, optim, page_elements); may be repeated"},
    };
    TD_TRY(td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            positional, 0, help));
    if (*help)
        return TD_OK;
    int64_t n = wanted->bench.n_elements;
    if (!wanted->shape == !n)
        return td_fail(TD_ERR_USAGE, "give either --shape FOLDER or --parameters N");
    if (!td_bench_in_range(wanted->shape ? 0 : 1, n, (int64_t)1 << 40) ||
        !td_bench_in_range(1, wanted->bench.saves, 1 << 20))
        return td_fail(TD_ERR_USAGE, "--parameters is in [1, 2^40], --saves in [1, 2^20]");
    if (!td_bench_in_range(0, wanted->bench.step.steps, wanted->shape ? 1 << 20 : 0) ||
        !td_bench_in_range(2, wanted->bench.step.seq_tokens, 1 << 24))
        return td_fail(TD_ERR_USAGE,
                       "--steps is in [0, 2^20] and needs --shape, --seq in [2, 2^24]");
    td_bench_command_line(command, argc, argv, wanted->command, sizeof wanted->command);
    TD_TRY(td_cli_config(config, NULL, &assignments));
    return wanted->shape ? use_shape(config, wanted, size) : TD_OK;
}

static void print_result(const td_bench_checkpoint_result *result) {
    int64_t n = result->saves;
    double bytes = (double)result->snapshot_bytes, mib = 1048576.0;
    double copy = td_bench_spread_of(result->copy, n).median;
    td_bench_spread ratio = td_bench_spread_of(result->ratio, n);
    printf("verified:       a save reads back as it was, overwritten right after\n");
    printf("state:          %.1f MiB to copy on the rank with the most, %lld parameters in %lld "
           "pages\n",
           bytes / mib, (long long)result->n_elements, (long long)result->n_pages);
    printf("save:           %s, median of %lld (p10 to p90)\n", td_bench_time(result->save, n).text,
           (long long)n);
    printf("commit:         %s, the two polls that take the save further\n",
           td_bench_time(result->commit, n).text);
    printf("other polls:    %s\n", td_bench_time(result->poll, n).text);
    printf("copy:           %s, one parallel memcpy of the state, this run: %s\n",
           td_bench_time(result->copy, n).text, td_bench_rate(bytes / copy).text);
    printf(
        "blocked:        %.2f copies (%.2f to %.2f) = (save + commit) / copy; the goal is %.1f\n",
        ratio.median, ratio.p10, ratio.p90, goal);
    printf(
        "writing:        %s = %.1f MiB in pages / %s, behind training\n",
        td_bench_rate((double)result->written_bytes / td_bench_spread_of(result->write, n).median)
            .text,
        (double)result->written_bytes / mib, td_bench_time(result->write, n).text);
    if (result->step_alone > 0)
        printf("of a step:      blocked %.2f ms in all = %.2f %% of a step's %.3f s; %.3f s while "
               "files are written\n",
               result->step_blocked * 1e3, 100 * result->step_blocked / result->step_alone,
               result->step_alone, result->step_writing);
}

static td_status bench(const td_config *config, td_comm *comm, void *options) {
    bench_options *wanted = options;
    char folder[TD_PATH_MAX];
    td_bench_checkpoint_result result;
    TD_TRY(td_cli_scratch_make(comm, "bench", folder));
    wanted->bench.scratch = folder;
    wanted->bench.command = wanted->command;
    td_status status = td_bench_checkpoint(config, comm, &wanted->bench, &result);
    td_cli_scratch_remove(comm, folder);
    if (status == TD_OK && td_comm_rank(comm) == 0) {
        if (!wanted->json)
            print_result(&result);
        status = td_bench_record_finish(result.record, wanted->record, wanted->json);
    }
    td_bench_checkpoint_fini(&result);
    return td_comm_agree(comm, status, "benchmark record");
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    bench_options wanted = {.bench = {.saves = 15, .step = {.seq_tokens = 512}}};
    int help = 0;
    td_status status =
        parse(command, comm ? td_comm_size(comm) : 1, argc, argv, &config, &wanted, &help);
    return td_bench_run(comm, status, help, &config, bench, &wanted);
}

const td_command td_bench_command_checkpoint = {
    .name = "bench checkpoint",
    .arguments = "--shape FOLDER | --parameters N [--saves N]",
    .summary = "time how long a checkpoint blocks training, and the writing behind it",
    .details =
        "Verifies that a save holds what was there when it was called, then times it, the commit "
        "that follows, and\none parallel copy of as many bytes. Files go to a folder below "
        "TMPDIR.\n\n"
        "example: mpirun -n 2 tandem bench checkpoint --shape configs/shapes/llama-3.1-8b --set "
        "lora_r=16",
    .run = run,
};
