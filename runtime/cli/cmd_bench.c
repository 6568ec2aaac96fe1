#include "runtime/cli/cmd_bench.h"

#include <stdio.h>
#include <string.h>

#include "runtime/train/bench_record.h"

static const td_command *const benches[] = {
    &td_bench_command_step, &td_bench_command_ops,  &td_bench_command_checkpoint,
    &td_bench_command_comm, &td_bench_command_load,
};

enum { N_BENCHES = sizeof benches / sizeof *benches };

td_status td_bench_run(td_comm *comm, td_status parsed, int help, td_config *config,
                       td_status (*body)(const td_config *config, td_comm *comm, void *options),
                       void *options) {
    td_status status = parsed;
    if (!help) {
        status = td_comm_agree(comm, parsed, "command line");
        if (status == TD_OK)
            status = body(config, comm, options);
    }
    td_config_fini(config);
    return status;
}

void td_bench_command_line(const td_command *command, int argc, char **argv, char *out,
                           size_t room) {
    size_t used = (size_t)snprintf(out, room, "tandem %s", command->name);
    for (int i = 0; i < argc && used < room; i++)
        used += (size_t)snprintf(out + used, room - used, " %s", argv[i]);
}

td_bench_text td_bench_time(const double *seconds, int64_t n) {
    td_bench_text out;
    td_bench_spread spread = td_bench_spread_of(seconds, n);
    double unit = spread.median < 1e-3 ? 1e6 : spread.median < 1 ? 1e3 : 1;
    const char *name = spread.median < 1e-3 ? "us" : spread.median < 1 ? "ms" : "s";
    snprintf(out.text, sizeof out.text, "%.2f %s (%.2f to %.2f)", spread.median * unit, name,
             spread.p10 * unit, spread.p90 * unit);
    return out;
}

td_bench_text td_bench_rate(double bytes_per_second) {
    td_bench_text out;
    snprintf(out.text, sizeof out.text, "%.2f GB/s", bytes_per_second * 1e-9);
    return out;
}

// What they have in common, for the help.
static td_status explain(const td_command *command, int argc, char **argv) {
    const char *shape, *record;
    int json, help;
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--shape", TD_OPTION_STRING, &shape, "FOLDER",
         "folder with the config.json of a model (configs/shapes)"},
        {"--record", TD_OPTION_STRING, &record, "FILE",
         "write machine, commit, command, samples and results as JSON"},
        {"--json", TD_OPTION_FLAG, &json, NULL, "print one JSON object"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
    };
    const char *positional[1];
    return td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            positional, 1, &help);
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    for (int i = 0; argc > 0 && i < N_BENCHES; i++)
        if (strcmp(argv[0], strchr(benches[i]->name, ' ') + 1) == 0)
            return benches[i]->run(benches[i], comm, argc - 1, argv + 1);
    if (td_options_want_help(argc, argv))
        return explain(command, argc, argv);
    return td_fail(TD_ERR_USAGE,
                   "name what to time first: tandem bench step, ops, checkpoint, comm "
                   "or load (tandem bench --help)");
}

const td_command td_command_bench = {
    .name = "bench",
    .arguments = "step|ops|checkpoint|comm|load [options]",
    .summary = "time a part of training on random weights",
    .details =
        "step        the training step of a model shape: tokens/s, share of the GEMM peak, "
        "memory,\n"
        "            and with --breakdown the time of each part against its bound\n"
        "ops         every operation of the step at a model's shapes, against the GEMM and copy "
        "ceilings\n"
        "checkpoint  how long a save blocks training, against memory bandwidth; the writing behind "
        "it\n"
        "comm        the step's collectives by size, exact against fp32 sums, what they cost a "
        "step\n"
        "load        from safetensors in the page cache to the first step, against read "
        "bandwidth\n\n"
        "Each verifies its results before it times, and measures the machine's ceilings in the "
        "same "
        "run.\n`tandem bench NAME --help` lists the options of one; these are common to all.\n\n"
        "example: tandem bench step --shape configs/shapes/smollm2-135m --seq 512 --set lora_r=16",
    .run = run,
};
