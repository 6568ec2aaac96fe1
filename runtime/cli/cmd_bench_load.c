#include <stdio.h>

#include "runtime/cli/cmd_bench.h"
#include "runtime/train/bench_load.h"
#include "runtime/train/bench_record.h"

typedef struct bench_options {
    td_bench_load_options bench;
    const char *shape, *record;
    int json;
    char command[1024];
} bench_options;

static td_status parse(const td_command *command, td_comm *comm, int argc, char **argv,
                       td_config *config, bench_options *wanted, int *help) {
    const char *positional[1];
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--shape", TD_OPTION_STRING, &wanted->shape, "FOLDER",
         "folder with the config.json of a model"},
        {"--folder", TD_OPTION_STRING, &wanted->bench.folder, "FOLDER",
         "keep the random weights there, and use them again"},
        {"--rounds", TD_OPTION_INT, &wanted->bench.rounds, "N", "timed loads (3)"},
        {"--seq", TD_OPTION_INT, &wanted->bench.seq_tokens, "N", "tokens of the first step (128)"},
        {"--record", TD_OPTION_STRING, &wanted->record, "FILE", "write the record there"},
        {"--json", TD_OPTION_FLAG, &wanted->json, NULL, "print the record"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
    };
    TD_TRY(td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            positional, 0, help));
    if (*help)
        return TD_OK;
    if (!wanted->shape)
        return td_fail(TD_ERR_USAGE, "--shape FOLDER is missing");
    if (!td_bench_in_range(1, wanted->bench.rounds, 1 << 20) ||
        !td_bench_in_range(2, wanted->bench.seq_tokens, 1 << 24))
        return td_fail(TD_ERR_USAGE, "--rounds is in [1, 2^20], --seq in [2, 2^24]");
    td_bench_command_line(command, argc, argv, wanted->command, sizeof wanted->command);
    wanted->bench.command = wanted->command;
    TD_TRY(td_cli_config(config, NULL, &assignments));
    TD_TRY(td_cli_set(config, "model_name_or_path", wanted->shape));
    config->packing = 0;
    config->per_device_train_batch_size = 1;
    config->gradient_accumulation_steps = td_comm_size(comm);
    config->max_length = wanted->bench.seq_tokens;
    config->max_steps = 1;
    return TD_OK;
}

static void print_phases(const td_base_times *times) {
    printf(
        "phases:         of all threads together in the fastest load: mapping %.3f s, fingerprint "
        "%.3f s, quantizing and storing %.3f s; double quantization %.3f s, other ranks %.3f s\n",
        times->fetch, times->fingerprint, times->store, times->nest, times->share);
}

static void print_image(const td_bench_load_result *result) {
    double load = td_bench_spread_of(result->image_load, result->rounds).median;
    double rate = result->image_bytes / load;
    printf("image:          %s to load %.1f MiB = %s, %.1f %% of the read rate; first step %s; "
           "written in %.2f s\n",
           td_bench_time(result->image_load, result->rounds).text, result->image_bytes / 1048576,
           td_bench_rate(rate).text, 100 * rate / result->read_rate,
           td_bench_time(result->image_first, result->rounds).text, result->image_write);
}

static void print_result(const td_bench_load_result *result) {
    double load = td_bench_spread_of(result->load, result->rounds).median;
    double rate = result->file_bytes / load, params = (double)result->quantized;
    printf("verified:       the base that was loaded has the bits of the one drawn in memory\n");
    printf("load:           %s, median of %lld (p10 to p90)\n",
           td_bench_time(result->load, result->rounds).text, (long long)result->rounds);
    printf("first step:     %s, from opening the model to its end\n",
           td_bench_time(result->first, result->rounds).text);
    printf("rate:           %s = %.1f MiB of safetensors / load\n", td_bench_rate(rate).text,
           result->file_bytes / 1048576);
    printf("read alone:     %s, page cache to memory by all threads, this run; loading has %.1f %% "
           "of it\n",
           td_bench_rate(result->read_rate).text, 100 * rate / result->read_rate);
    printf("parts alone:    to fp32 %s, fingerprint %s by one thread; NF4 %.0f M parameters/s, new "
           "memory %s by all threads\n",
           td_bench_rate(result->convert_rate).text, td_bench_rate(result->hash_rate).text,
           result->quantize_rate * 1e-6, td_bench_rate(result->touch_rate).text);
    printf("one by one:     %.2f s = bytes / read + quantized / NF4 + base / new memory\n",
           result->file_bytes / result->read_rate + params / result->quantize_rate +
               result->arena_bytes / result->touch_rate);
    print_phases(&result->times);
    if (result->image_load)
        print_image(result);
}

static td_status bench(const td_config *config, td_comm *comm, void *options) {
    bench_options *wanted = options;
    char folder[TD_PATH_MAX];
    td_bench_load_result result;
    TD_TRY(td_cli_scratch_make(comm, "bench", folder));
    wanted->bench.scratch = folder;
    if (!wanted->bench.folder)
        wanted->bench.folder = folder;
    td_status status = td_bench_load(config, comm, &wanted->bench, &result);
    td_cli_scratch_remove(comm, folder);
    if (status == TD_OK && td_comm_rank(comm) == 0) {
        if (!wanted->json)
            print_result(&result);
        status = td_bench_record_finish(result.record, wanted->record, wanted->json);
    }
    td_bench_load_fini(&result);
    return td_comm_agree(comm, status, "benchmark record");
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    bench_options wanted = {.bench = {.rounds = 3, .seq_tokens = 128}};
    int help = 0;
    td_status status = parse(command, comm, argc, argv, &config, &wanted, &help);
    return td_bench_run(comm, status, help, &config, bench, &wanted);
}

const td_command td_bench_command_load = {
    .name = "bench load",
    .arguments = "--shape FOLDER [--folder FOLDER] [--rounds N] [--seq N]",
    .summary = "time the way from safetensors in the page cache to the first step",
    .details =
        "Random weights are written once, read back to measure the machine, then loaded as a "
        "run does, from the model's files and from an image of the base (base_cache).\n\n"
        "example: tandem bench load --shape configs/shapes/smollm2-135m",
    .run = run,
};
