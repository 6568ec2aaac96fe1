#include "runtime/train/bench_record.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/gpu_module.h"
#include "runtime/core/json.h"
#include "runtime/core/tensor.h"
#include "runtime/train/metrics.h"
#include "runtime/train/parallel_copy.h"

#if __has_include("commit.h")
#include "commit.h"
#else
#define TD_COMMIT "unknown"
#endif

enum { READ_BLOCK_BYTES = 4 << 20, PERCENT = 100 };

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double at_percent(const double *sorted, int64_t n, int64_t percent) {
    return sorted[((n - 1) * percent + PERCENT / 2) / PERCENT];
}

td_bench_spread td_bench_spread_of(const double *samples, int64_t n) {
    size_t bytes = td_mul_bytes((size_t)n, sizeof *samples);
    double *sorted = n > 0 ? malloc(bytes) : NULL;
    if (!sorted)
        return (td_bench_spread){INFINITY, INFINITY, INFINITY};
    memcpy(sorted, samples, bytes);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    td_bench_spread spread = {at_percent(sorted, n, 50), at_percent(sorted, n, 10),
                              at_percent(sorted, n, 90)};
    free(sorted);
    return spread;
}

td_status td_bench_slowest(td_comm *comm, double *seconds) {
    int size = td_comm_size(comm);
    double *all = calloc((size_t)size, sizeof *all);
    td_status status = all ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for %d timings", size);
    status = td_comm_agree(comm, status, "timings");
    if (status == TD_OK)
        status = td_comm_allgather(comm, seconds, all, sizeof *all, "timings");
    for (int rank = 0; status == TD_OK && rank < size; rank++)
        *seconds = all[rank] > *seconds ? all[rank] : *seconds;
    free(all);
    return status;
}

td_status td_bench_copy(td_comm *comm, void *to, const void *from, size_t bytes, double *out) {
    TD_TRY(td_comm_barrier(comm, "copy bandwidth"));
    double start = td_seconds_now();
    td_copy_parallel(&(td_copy_span){to, from, bytes}, 1);
    *out = td_seconds_now() - start;
    return td_bench_slowest(comm, out);
}

// Blocks are taken in turn. Returns 0, or the system's error.
static int read_blocks(int file, uint64_t bytes) {
    int error = 0;
#pragma omp parallel reduction(| : error)
    {
        unsigned char *block = malloc(READ_BLOCK_BYTES);
        error = block ? 0 : ENOMEM;
#pragma omp for schedule(dynamic)
        for (uint64_t begin = 0; begin < bytes; begin += READ_BLOCK_BYTES)
            if (!error && pread(file, block, READ_BLOCK_BYTES, (off_t)begin) < 0)
                error = errno;
        free(block);
    }
    return error;
}

td_status td_bench_read_file(const char *path, int rounds, double *out) {
    int file, error = 0;
    uint64_t bytes;
    double best = INFINITY;
    TD_TRY(td_file_open(path, 1, &file, &bytes));
    for (int round = 0; round < rounds && !error; round++) {
        double start = td_seconds_now();
        error = read_blocks(file, bytes);
        double seconds = td_seconds_now() - start;
        best = seconds < best ? seconds : best;
    }
    close(file);
    *out = (double)bytes / best;
    return error ? td_fail(TD_ERR_IO, "%s: cannot be read: %s", path, strerror(error)) : TD_OK;
}

void td_bench_record_number(cJSON *record, const char *name, double value) {
    char text[32];
    snprintf(text, sizeof text, isfinite(value) ? "%.9g" : "null", value);
    cJSON_AddRawToObject(record, name, text);
}

void td_bench_record_text(cJSON *record, const char *name, const char *value) {
    cJSON_AddStringToObject(record, name, value);
}

void td_bench_record_samples(cJSON *record, const char *name, const double *samples, int64_t n) {
    td_bench_spread spread = td_bench_spread_of(samples, n);
    cJSON *object = cJSON_AddObjectToObject(record, name);
    td_bench_record_number(object, "median", spread.median);
    td_bench_record_number(object, "p10", spread.p10);
    td_bench_record_number(object, "p90", spread.p90);
    cJSON *list = cJSON_AddArrayToObject(object, "samples");
    for (int64_t i = 0; i < n; i++) {
        char text[32];
        snprintf(text, sizeof text, "%.6g", samples[i]);
        cJSON_AddItemToArray(list, cJSON_CreateRaw(text));
    }
}

// "model name : AMD EPYC" of /proc/cpuinfo; other architectures name it otherwise or not at all.
static void add_cpu(cJSON *record) {
    char line[256], name[128] = "unknown";
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "model name : %127[^\n]", name) == 1)
            break;
    if (file)
        fclose(file);
    td_bench_record_text(record, "cpu", name);
    td_bench_record_number(record, "cores", (double)sysconf(_SC_NPROCESSORS_ONLN));
    td_bench_record_number(record, "memory_bytes",
                           (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE));
}

static void add_version(cJSON *record, const char *name, int version) {
    char text[32];
    snprintf(text, sizeof text, "CUDA %d.%d", version / 1000, version % 1000 / 10);
    td_bench_record_text(record, name, text);
}

// What a GPU's name does not say. The driver goes by the newest CUDA that it is for.
static void add_gpu(cJSON *record, const td_device *device) {
    const td_gpu_module *module = NULL;
    char reason[512], text[32];
    td_gpu_info info;
    td_gpu_module_load(&module, reason, sizeof reason);
    if (!module || module->device_describe(device->index, &info) != TD_OK)
        return;
    add_version(record, "driver", info.driver);
    add_version(record, "cuda_runtime", info.runtime);
    snprintf(text, sizeof text, "%d.%d", info.major, info.minor);
    td_bench_record_text(record, "compute_capability", text);
    td_bench_record_number(record, "multiprocessors", info.processors);
    td_bench_record_number(record, "gpu_memory_bytes", (double)info.total_bytes);
}

// Over the last minute: what else the machine had to do.
static void add_load(cJSON *record, const char *name) {
    double load;
    if (getloadavg(&load, 1) == 1)
        td_bench_record_number(record, name, load);
}

static void add_date(cJSON *record) {
    char text[32];
    time_t now = time(NULL);
    struct tm parts;
    gmtime_r(&now, &parts);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    td_bench_record_text(record, "date", text);
}

cJSON *td_bench_record_create(const char *benchmark, const char *command,
                              const td_device_choice *choice, int n_ranks, int n_threads) {
    cJSON *record = cJSON_CreateObject();
    td_bench_record_text(record, "benchmark", benchmark);
    td_bench_record_text(record, "command", command);
    td_bench_record_text(record, "commit", TD_COMMIT);
    add_date(record);
    td_bench_record_text(record, "device", choice->name);
    if (!choice->device->unified)
        add_gpu(record, choice->device);
    else
        td_bench_record_text(record, "float32_matmul_precision",
                             choice->ops->product == TD_BF16 ? "medium" : "highest");
    add_cpu(record);
    add_load(record, "load_average_before");
    td_bench_record_number(record, "ranks", n_ranks);
    td_bench_record_number(record, "threads", n_threads);
    td_bench_record_text(record, "transport", choice->transport->name);
    return record;
}

td_status td_bench_record_finish(cJSON *record, const char *path, int print) {
    add_load(record, "load_average");
    char *text = record ? cJSON_PrintUnformatted(record) : NULL;
    char *line = text ? malloc(strlen(text) + 2) : NULL;
    td_status status = line ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for the record");
    if (line) {
        sprintf(line, "%s\n", text);
        if (print)
            fputs(line, stdout);
        if (path)
            status = td_file_write_atomic(path, line, strlen(line));
    }
    free(line);
    cJSON_free(text);
    return status;
}
