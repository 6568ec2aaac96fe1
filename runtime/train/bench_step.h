// Timing the training step on random weights and tokens.
#ifndef TANDEM_TRAIN_BENCH_STEP_H
#define TANDEM_TRAIN_BENCH_STEP_H

#include "runtime/train/bench_breakdown.h"
#include "runtime/train/bench_ceilings.h"
#include "runtime/train/bench_flops.h"
#include "runtime/train/run.h"

typedef struct td_bench_step_options {
    int64_t seq_tokens;    // every sequence has this many; all are trained on
    int64_t sequences;     // per micro-batch
    int64_t micro_batches; // per step
    int64_t steps;         // timed, after one that is not
    const char *scratch;   // folder for the token store
    int measure_ceilings;  // afterwards
    int breakdown;         // also as many steps of another run, part by part
    const char *command;   // for the record; NULL: none is wanted
    // Called after the timed steps, with all that they used; may be NULL. Collective.
    td_status (*with_run)(void *context, td_run *run);
    void *with_run_context;
} td_bench_step_options;

typedef struct td_bench_step_result {
    double seconds; // median of the timed steps
    double fastest, slowest;
    double p10, p90;
    double wait_seconds;      // median of what the slowest rank waits for others in a step
    double tokens_per_second; // tokens of a step / median
    td_bench_flops flops;     // of a step, all ranks together
    td_bench_ceilings ceilings;
    td_bench_breakdown breakdown; // of this rank; steps is 0 without
    cJSON *record;                // on rank 0 when a command was given; td_bench_record_finish()
    double loss, grad_norm;       // of the last step
    // Per rank. On the CPU what is resident; on a GPU of its memory, and beside it of the host's.
    size_t plan_bytes, peak_bytes;
    size_t host_plan_bytes, host_peak_bytes; // 0 on the CPU
    int64_t trainable, total_parameters;
    double weights_seconds; // making the random base
    int n_threads;
    td_recompute recompute;
    // On a GPU: with NF4 weights, and with a dequantized copy of them.
    int64_t quantized_layers, copied_layers;
    size_t copies_bytes;
    int dequantizes_ahead; // the other layers, under the product before
    char device[64];       // "CPU", "NVIDIA H200"
    int is_gpu, is_bf16;   // activations in bf16
    int has_bf16_products;
} td_bench_step_result;

// Collective. config->model_name_or_path names a folder with a config.json; no weights are read.
// TD_ERR_NUMERIC unless loss and gradient norm of the first step are finite and positive.
td_status td_bench_step(const td_config *config, td_comm *comm,
                        const td_bench_step_options *options, td_bench_step_result *out);

// Local. The token store that a benchmark trains on: random, the same for the same options.
td_status td_bench_write_store(const td_session *session, const td_bench_step_options *options,
                               const char *path);

// Collective. Update `index`, to the last of what it queues.
td_status td_bench_whole_step(td_run *run, int64_t index, td_step_result *out);

#endif
