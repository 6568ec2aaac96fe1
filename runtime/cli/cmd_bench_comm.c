#include <stdio.h>

#include "runtime/cli/cmd_bench.h"
#include "runtime/train/bench_comm.h"

typedef struct bench_options {
    td_bench_comm_options bench;
    int64_t max_bytes;
    const char *shape, *record;
    int json;
    char command[1024];
} bench_options;

static td_status check_ranges(const bench_options *wanted) {
    const td_bench_step_options *step = &wanted->bench.step;
    if (!td_bench_in_range(1024, wanted->max_bytes, (int64_t)1 << 36) ||
        !td_bench_in_range(1, wanted->bench.rounds, 1 << 20))
        return td_fail(TD_ERR_USAGE, "--max-bytes is in [1024, 2^36], --rounds in [1, 2^20]");
    if (!td_bench_in_range(2, step->seq_tokens, 1 << 24) ||
        !td_bench_in_range(0, step->micro_batches, 1 << 20) ||
        !td_bench_in_range(1, step->steps, 1 << 20))
        return td_fail(TD_ERR_USAGE, "--seq is in [2, 2^24], --steps and --accumulation in [1, "
                                     "2^20]");
    return TD_OK;
}

static td_status use_shape(td_config *config, bench_options *wanted, int size) {
    td_bench_step_options *step = &wanted->bench.step;
    step->sequences = 1;
    if (step->micro_batches == 0)
        step->micro_batches = size;
    TD_TRY(td_cli_set(config, "model_name_or_path", wanted->shape));
    config->packing = 0;
    config->per_device_train_batch_size = 1;
    config->gradient_accumulation_steps = step->micro_batches;
    config->max_length = step->seq_tokens;
    config->max_steps = step->steps + 1;
    return TD_OK;
}

static td_status parse(const td_command *command, td_comm *comm, int argc, char **argv,
                       td_config *config, bench_options *wanted, int *help) {
    const char *positional[1];
    td_option_list assignments = {0};
    td_bench_step_options *step = &wanted->bench.step;
    const td_option options[] = {
        {"--max-bytes", TD_OPTION_INT, &wanted->max_bytes, "N", "largest gradient sum (67108864)"},
        {"--rounds", TD_OPTION_INT, &wanted->bench.rounds, "N", "timed, of every size (20)"},
        {"--shape", TD_OPTION_STRING, &wanted->shape, "FOLDER",
         "also the shares of this model's step"},
        {"--seq", TD_OPTION_INT, &step->seq_tokens, "N", "tokens per micro-batch of it (512)"},
        {"--accumulation", TD_OPTION_INT, &step->micro_batches, "N",
         "micro-batches per step, all ranks together (one each)"},
        {"--steps", TD_OPTION_INT, &step->steps, "N", "timed steps of it (5)"},
        {"--record", TD_OPTION_STRING, &wanted->record, "FILE", "write the record there"},
        {"--json", TD_OPTION_FLAG, &wanted->json, NULL, "print the record"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
    };
    TD_TRY(td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            positional, 0, help));
    if (*help)
        return TD_OK;
    TD_TRY(check_ranges(wanted));
    wanted->bench.max_bytes = (size_t)wanted->max_bytes;
    td_bench_command_line(command, argc, argv, wanted->command, sizeof wanted->command);
    wanted->bench.command = wanted->command;
    TD_TRY(td_cli_config(config, NULL, &assignments));
    if (wanted->shape)
        return use_shape(config, wanted, comm ? td_comm_size(comm) : 1);
    step->steps = 0;
    return TD_OK;
}

static void print_points(const td_bench_comm_result *result) {
    printf("verified:       every size of every collective\n");
    printf("copy:           %s, one parallel memcpy on all ranks at once, this run\n",
           td_bench_rate(result->copy_rate).text);
    printf("rate = bytes that every rank has to send / median: S (n-1)/n, all-reduce twice that\n");
    printf("%-14s %12s %12s %12s %12s %10s %8s\n", "", "bytes", "median us", "p10", "p90",
           "rate MB/s", "of copy");
    for (int i = 0; i < result->n_points; i++) {
        const td_bench_comm_point *point = &result->points[i];
        double rate = point->traffic / point->seconds.median;
        printf("%-14s %12zu %12.1f %12.1f %12.1f %10.1f %6.1f %%\n", point->op, point->bytes,
               point->seconds.median * 1e6, point->seconds.p10 * 1e6, point->seconds.p90 * 1e6,
               rate * 1e-6, 100 * rate / result->copy_rate);
    }
}

static void print_part(const char *name, double seconds, double step) {
    printf("  %-26s %10.3f ms  %6.2f %%\n", name, seconds * 1e3, 100 * seconds / step);
}

static void print_step(const td_bench_comm_step *step) {
    printf("step:           %.3f s, median; parts are medians of their own, on the slowest rank\n",
           step->step);
    print_part("waiting for other ranks", step->exposed, step->step);
    print_part("add, exact", step->add_exact, step->step);
    print_part("add, fp32", step->add_fp32, step->step);
    print_part("reduce alone, exact", step->reduce_exact, step->step);
    print_part("reduce alone, fp32", step->reduce_fp32, step->step);
    print_part("checks of words", step->checks, step->step);
    printf("exact sums:     %.2f %% of the step = (add + reduce, exact - fp32, + checks) / step\n",
           100 * step->exact_share);
}

static void print_balance(const td_bench_comm_result *result) {
    printf("imbalance:      slowest rank / mean, by the sampler's costs, 4 micro-batches a rank\n");
    for (int i = 0; i < TD_BENCH_BALANCE_POINTS; i++)
        printf("  %5d ranks     %.3f packed, %.3f a row each\n", result->balance[i].ranks,
               result->balance[i].packed, result->balance[i].not_packed);
}

static td_status bench(const td_config *config, td_comm *comm, void *options) {
    bench_options *wanted = options;
    char folder[TD_PATH_MAX];
    td_bench_comm_result result;
    TD_TRY(td_cli_scratch_make(comm, "bench", folder));
    wanted->bench.step.scratch = folder;
    td_status status = td_bench_comm(config, comm, &wanted->bench, &result);
    td_cli_scratch_remove(comm, folder);
    if (status == TD_OK && td_comm_rank(comm) == 0) {
        if (!wanted->json) {
            print_points(&result);
            if (wanted->bench.step.steps > 0)
                print_step(&result.step);
            print_balance(&result);
        }
        status = td_bench_record_finish(result.record, wanted->record, wanted->json);
    }
    cJSON_Delete(result.record);
    return td_comm_agree(comm, status, "benchmark record");
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    bench_options wanted = {.max_bytes = 64 << 20,
                            .bench = {.rounds = 20, .step = {.seq_tokens = 512, .steps = 5}}};
    int help = 0;
    td_status status = parse(command, comm, argc, argv, &config, &wanted, &help);
    return td_bench_run(comm, status, help, &config, bench, &wanted);
}

const td_command td_bench_command_comm = {
    .name = "bench comm",
    .arguments = "[--max-bytes N] [--rounds N] [--shape FOLDER [--seq N] [--steps N]]",
    .summary = "time the collectives of a step, and what exact sums cost it",
    .details =
        "Reduction of int64 and of fp32 sums to the owners of their pages, the gather of "
        "parameters, and the small\nall-reduce, by size; with --shape the parts of a real step.\n\n"
        "example: mpirun -n 2 tandem bench comm --shape configs/shapes/smollm2-135m --seq 128",
    .run = run,
};
