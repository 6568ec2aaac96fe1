// What the benchmarks share: statistics over many timings, this machine's ceilings measured in the
// same run, and the record that a run leaves.
#ifndef TANDEM_TRAIN_BENCH_RECORD_H
#define TANDEM_TRAIN_BENCH_RECORD_H

#include <cjson/cJSON.h>

#include "comm/comm.h"
#include "runtime/train/device_choice.h"

typedef struct td_bench_spread {
    double median, p10, p90;
} td_bench_spread;

// Local. Of n >= 1 samples, which stay in their order; nearest rank. Infinite without memory.
td_bench_spread td_bench_spread_of(const double *samples, int64_t n);

// Collective. A step that all ranks do takes as long as on the slowest.
td_status td_bench_slowest(td_comm *comm, double *seconds);

// Seconds of one parallel memcpy of `bytes` (each byte counted once) by all threads of the
// operations, on all ranks at the same time: the slowest rank's. `to` and `from` were touched.
td_status td_bench_copy(td_comm *comm, void *to, const void *from, size_t bytes, double *out);

// Local. Reads the file by as many threads as operations have, into memory that is reused, and
// gives the best of `rounds`: bytes per second.
td_status td_bench_read_file(const char *path, int rounds, double *out);

// A record: {"benchmark", "command", "commit", "date", "device", "cpu", "cores", "load_average",
// ...}, of the CPU float32_matmul_precision, of a GPU driver, runtime, compute capability and
// memory. NULL without memory; numbers and samples are then left out, and writing fails.
cJSON *td_bench_record_create(const char *benchmark, const char *command,
                              const td_device_choice *choice, int n_ranks, int n_threads);
void td_bench_record_number(cJSON *record, const char *name, double value);
void td_bench_record_text(cJSON *record, const char *name, const char *value);
// {"median", "p10", "p90", "samples": [...]}
void td_bench_record_samples(cJSON *record, const char *name, const double *samples, int64_t n);
// Local. One object and a newline: to the file, atomically, and to standard output with `print`.
// Adds the load average at the end. path may be NULL.
td_status td_bench_record_finish(cJSON *record, const char *path, int print);

#endif
