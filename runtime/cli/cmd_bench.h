// The benchmarks behind `tandem bench NAME`: one file each, and what they share.
#ifndef TANDEM_CLI_CMD_BENCH_H
#define TANDEM_CLI_CMD_BENCH_H

#include <cjson/cJSON.h>

#include "runtime/cli/cli.h"

extern const td_command td_bench_command_step, td_bench_command_ops, td_bench_command_checkpoint,
    td_bench_command_comm, td_bench_command_load;

// Words of the command line as they would be typed again, without the folder of the program.
void td_bench_command_line(const td_command *command, int argc, char **argv, char *out,
                           size_t room);

// Collective unless `help`, which was answered. What follows a benchmark's command line: all ranks
// agree on `parsed`, then run `body` with its `options`. The config is freed.
td_status td_bench_run(td_comm *comm, td_status parsed, int help, td_config *config,
                       td_status (*body)(const td_config *config, td_comm *comm, void *options),
                       void *options);

static inline int td_bench_in_range(int64_t smallest, int64_t value, int64_t largest) {
    return smallest <= value && value <= largest;
}

// "12.3 ms (11.9 to 14.0)", "4.2 GB/s": a median with p10 and p90, in the unit that suits.
typedef struct td_bench_text {
    char text[64];
} td_bench_text;
td_bench_text td_bench_time(const double *seconds, int64_t n);
td_bench_text td_bench_rate(double bytes_per_second);

#endif
