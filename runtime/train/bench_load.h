// Timing the way from safetensors to the first step.
#ifndef TANDEM_TRAIN_BENCH_LOAD_H
#define TANDEM_TRAIN_BENCH_LOAD_H

#include <cjson/cJSON.h>

#include "runtime/train/bench_step.h"

typedef struct td_bench_load_options {
    const char *folder;  // of the model with its weights; written when they are not there
    const char *scratch; // for the token store
    const char *command;
    int64_t rounds;
    int64_t seq_tokens; // of the first step
} td_bench_load_options;

// Every sample is of the slowest rank.
typedef struct td_bench_load_result {
    int64_t rounds;
    double file_bytes;
    int64_t quantized; // parameters of the linear layers
    // (rounds) seconds
    double *load;  // td_session_load_base(): reading, quantizing, sharing
    double *first; // from opening the model to the end of the first step
    // With an image of the base (base_cache); NULL unless the base is quantized.
    double *image_load, *image_first;
    double image_bytes;
    td_base_times times, image_times; // of the fastest load, this rank's
    double image_write;               // seconds
    // Rates of the parts alone, same threads, this run
    double read_rate;     // bytes/s of the file into memory, all threads
    double convert_rate;  // bytes/s of BF16 to fp32
    double hash_rate;     // bytes/s of the fingerprint
    double quantize_rate; // parameters/s, of BF16
    double touch_rate;    // bytes/s of new memory of the size of the base, all threads
    double arena_bytes;   // the base
    cJSON *record;        // rank 0
} td_bench_load_result;

// Collective. Verifies that the base that was loaded has the bits of the one drawn in memory:
// TD_ERR_NUMERIC. fini also after a failure.
td_status td_bench_load(const td_config *config, td_comm *comm,
                        const td_bench_load_options *options, td_bench_load_result *out);
void td_bench_load_fini(td_bench_load_result *result);

#endif
