#include <stdio.h>
#include <string.h>

#include "runtime/cli/cmd_bench.h"
#include "runtime/train/bench_step.h"

typedef struct bench_options {
    td_bench_step_options step;
    const char *shape;
    int json;
} bench_options;

static td_status parse(const td_command *command, int argc, char **argv, td_config *config,
                       bench_options *wanted, int *help) {
    const char *positional[1];
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--shape", TD_OPTION_STRING, &wanted->shape, "FOLDER",
         "folder with the config.json of a model"},
        {"--seq", TD_OPTION_INT, &wanted->step.seq_tokens, "N", "tokens per sequence (512)"},
        {"--batch", TD_OPTION_INT, &wanted->step.sequences, "N", "sequences per micro-batch (1)"},
        {"--accumulation", TD_OPTION_INT, &wanted->step.micro_batches, "N",
         "micro-batches per step, all ranks together (1)"},
        {"--steps", TD_OPTION_INT, &wanted->step.steps, "N", "timed steps (5)"},
        {"--json", TD_OPTION_FLAG, &wanted->json, NULL, "print one JSON object"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
    };
    TD_TRY(td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            positional, 0, help));
    if (*help)
        return TD_OK;
    if (!wanted->shape)
        return td_fail(TD_ERR_USAGE, "--shape FOLDER is missing");
    if (!td_bench_in_range(2, wanted->step.seq_tokens, 1 << 24) ||
        !td_bench_in_range(1, wanted->step.sequences, 1 << 16) ||
        !td_bench_in_range(1, wanted->step.micro_batches, 1 << 20) ||
        !td_bench_in_range(1, wanted->step.steps, 1 << 20))
        return td_fail(TD_ERR_USAGE, "--seq is in [2, 2^24], --batch in [1, 2^16], --accumulation "
                                     "and --steps in [1, 2^20]");
    TD_TRY(td_cli_config(config, NULL, &assignments));
    TD_TRY(td_cli_set(config, "model_name_or_path", wanted->shape));
    config->packing = 0;
    config->per_device_train_batch_size = wanted->step.sequences;
    config->gradient_accumulation_steps = wanted->step.micro_batches;
    config->max_length = wanted->step.seq_tokens;
    config->max_steps = wanted->step.steps + 1;
    return TD_OK;
}

static void print_result(const bench_options *wanted, const td_bench_step_result *result,
                         int size) {
    double mib = 1048576.0;
    const char *type = result->is_bf16 ? "bf16" : "fp32";
    double rate = result->gemm_flops / size / result->seconds;
    if (wanted->json) {
        printf("{\"shape\": \"%s\", \"seq\": %lld, \"batch\": %lld, \"accumulation\": %lld, "
               "\"ranks\": %d, "
               "\"device\": \"%s\", \"activations\": \"%s\", \"threads\": %d, \"recompute\": "
               "\"%s\", \"seconds\": %.6f, \"seconds_min\": %.6f, "
               "\"seconds_max\": %.6f, \"seconds_p10\": %.6f, \"seconds_p90\": %.6f, "
               "\"wait_seconds\": %.6f, \"tokens_per_second\": %.2f, \"gemm_flops\": %.6g, "
               "\"gemm_peak_flops\": %.6g, \"gemm_share\": %.4f, \"plan_bytes\": %zu, "
               "\"peak_bytes\": %zu, "
               "\"trainable\": %lld, \"loss\": %.6g, \"grad_norm\": %.6g}\n",
               wanted->shape, (long long)wanted->step.seq_tokens, (long long)wanted->step.sequences,
               (long long)wanted->step.micro_batches, size, result->device, type, result->n_threads,
               result->recompute, result->seconds, result->fastest, result->slowest, result->p10,
               result->p90, result->wait_seconds, result->tokens_per_second, result->gemm_flops,
               result->gemm_peak, rate / result->gemm_peak, result->plan_bytes, result->peak_bytes,
               (long long)result->trainable, result->loss, result->grad_norm);
        return;
    }
    printf("device:         %s, %s\n", result->device, type);
    printf("parameters:     %lld trainable of %lld\n", (long long)result->trainable,
           (long long)(result->total_parameters + result->trainable));
    printf("verified:       loss %.4f, gradient norm %.4f\n", result->loss, result->grad_norm);
    printf("step:           %.3f s median of %lld (%.3f to %.3f), recompute %s\n", result->seconds,
           (long long)wanted->step.steps, result->fastest, result->slowest, result->recompute);
    printf("throughput:     %.1f tokens/s = tokens of a step / median step\n",
           result->tokens_per_second);
    printf("GEMM:           %.1f GFLOP per step and rank = 2 T (2 W + 3 A) + 4 T' V H, without "
           "attention and recompute\n",
           result->gemm_flops / size * 1e-9);
    printf("GEMM peak:      %.1f GFLOP/s, %s %lld^3 product, %s, %d threads, this run\n",
           result->gemm_peak * 1e-9, type, (long long)result->gemm_peak_extent, result->device,
           result->n_threads);
    printf("share of peak:  %.1f %% = GEMM / step / peak\n", 100 * rate / result->gemm_peak);
    printf("memory:         %.1f MiB planned, %.1f MiB %s, per rank (%+.1f %%)\n",
           (double)result->plan_bytes / mib, (double)result->peak_bytes / mib,
           result->is_gpu ? "of the GPU taken" : "peak resident",
           100 * ((double)result->peak_bytes / (double)result->plan_bytes - 1));
}

static td_status bench(const td_config *config, td_comm *comm, void *options) {
    bench_options *wanted = options;
    char folder[TD_PATH_MAX];
    td_bench_step_result result;
    TD_TRY(td_cli_scratch_make(comm, "bench", folder));
    wanted->step.scratch = folder;
    td_status status = td_bench_step(config, comm, &wanted->step, &result);
    td_cli_scratch_remove(comm, folder);
    if (status == TD_OK && td_comm_rank(comm) == 0)
        print_result(wanted, &result, td_comm_size(comm));
    return status;
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    bench_options wanted = {
        .step = {.seq_tokens = 512, .sequences = 1, .micro_batches = 1, .steps = 5}};
    int help = 0;
    td_status status = parse(command, argc, argv, &config, &wanted, &help);
    return td_bench_run(comm, status, help, &config, bench, &wanted);
}

const td_command td_bench_command_step = {
    .name = "bench step",
    .arguments = "--shape FOLDER [--seq N] [--batch N] [--accumulation N] [--steps N]",
    .summary = "time the training step of a model shape on random weights",
    .details =
        "Verifies that the first step learns something, then reports the median step, tokens/s, "
        "the share of the\n"
        "GEMM peak measured in the same run, and peak memory beside the plan.\n\n"
        "example: tandem bench step --shape configs/shapes/smollm2-135m --seq 512 --set lora_r=16",
    .run = run,
};
