#include <stdio.h>
#include <string.h>

#include "runtime/cli/cmd_bench.h"
#include "runtime/train/bench_step.h"

typedef struct bench_options {
    td_bench_step_options step;
    const char *shape, *record;
    int json;
    char command[1024];
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
        {"--breakdown", TD_OPTION_FLAG, &wanted->step.breakdown, NULL,
         "also as many watched steps: the time of each part against its bound"},
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
    if (!td_bench_in_range(2, wanted->step.seq_tokens, 1 << 24) ||
        !td_bench_in_range(1, wanted->step.sequences, 1 << 16) ||
        !td_bench_in_range(1, wanted->step.micro_batches, 1 << 20) ||
        !td_bench_in_range(1, wanted->step.steps, 1 << 20))
        return td_fail(TD_ERR_USAGE, "--seq is in [2, 2^24], --batch in [1, 2^16], --accumulation "
                                     "and --steps in [1, 2^20]");
    td_bench_command_line(command, argc, argv, wanted->command, sizeof wanted->command);
    TD_TRY(td_cli_config(config, NULL, &assignments));
    TD_TRY(td_cli_set(config, "model_name_or_path", wanted->shape));
    config->packing = 0;
    config->per_device_train_batch_size = wanted->step.sequences;
    config->gradient_accumulation_steps = wanted->step.micro_batches;
    config->max_length = wanted->step.seq_tokens;
    config->max_steps = wanted->step.steps + 1;
    return TD_OK;
}

static double mib_of(size_t bytes) {
    return (double)bytes / 1048576.0;
}

static double percent(double part, double whole) {
    return whole > 0 ? 100 * part / whole : 0;
}

// Model flop/s of one rank over the ceiling of its device.
static double share_of_peak(const td_bench_step_result *result, int size, double flops) {
    return flops / size / result->seconds / result->ceilings.flops;
}

static void print_flops(const td_bench_step_result *result, int size) {
    const td_bench_flops *flops = &result->flops;
    double giga = 1e-9 / size;
    printf("model:          %.4g GFLOP per step and rank = 2 T (2 W + 3 A) + 4 T' V H + 14 D heads "
           "pairs:\n"
           "                base %.4g, LoRA %.4g, head %.4g, attention %.4g; the base is frozen, "
           "so there is no dW\n",
           flops->model * giga, flops->base * giga, flops->lora * giga, flops->head * giga,
           flops->attention * giga);
    printf("apart:          recompute %.4g GFLOP (%s), dequantization %.4g GFLOP: not in the "
           "model's\n",
           flops->recompute * giga, td_recompute_name(result->recompute), flops->dequantize * giga);
    if (result->quantized_layers > 0)
        printf("copies:         %lld of %lld layers are not dequantized: their copies take %.1f "
               "MiB%s\n",
               (long long)result->copied_layers, (long long)result->quantized_layers,
               (double)result->copies_bytes / 1048576,
               result->dequantizes_ahead ? "; the others are dequantized ahead" : "");
    printf("MFU:            %.1f %% = model / step / GEMM ceiling; GEMM share %.1f %% without "
           "attention; %.1f %% with recompute\n",
           100 * share_of_peak(result, size, flops->model),
           100 * share_of_peak(result, size, flops->model - flops->attention),
           100 * share_of_peak(result, size, flops->model + flops->recompute));
}

static void print_memory(const td_bench_step_result *result) {
    printf("memory:         %.1f MiB planned, %.1f MiB %s, per rank (%+.1f %%)\n",
           mib_of(result->plan_bytes), mib_of(result->peak_bytes),
           result->is_gpu ? "of the GPU taken" : "peak resident",
           percent((double)result->peak_bytes, (double)result->plan_bytes) - 100);
    if (result->is_gpu)
        printf("host memory:    %.1f MiB planned, %.1f MiB peak resident above the start, per "
               "rank\n",
               mib_of(result->host_plan_bytes), mib_of(result->host_peak_bytes));
}

static void print_result(const bench_options *wanted, const td_bench_step_result *result,
                         int size) {
    const char *numbers = result->is_bf16             ? "bf16"
                          : result->has_bf16_products ? "fp32 with products in bf16"
                                                      : "fp32";
    printf("device:         %s, %s, %d thread%s\n", result->device, numbers, result->n_threads,
           result->n_threads == 1 ? "" : "s");
    printf("parameters:     %lld trainable of %lld, random weights made in %.1f s\n",
           (long long)result->trainable, (long long)(result->total_parameters + result->trainable),
           result->weights_seconds);
    printf("verified:       loss %.4f, gradient norm %.4f\n", result->loss, result->grad_norm);
    printf("step:           %.3f s median of %lld (%.3f to %.3f), recompute %s\n", result->seconds,
           (long long)wanted->step.steps, result->fastest, result->slowest,
           td_recompute_name(result->recompute));
    printf("throughput:     %.1f tokens/s = tokens of a step / median step, gradient norm %.4f\n",
           result->tokens_per_second, result->grad_norm);
    print_flops(result, size);
    td_bench_ceilings_print(&result->ceilings);
    print_memory(result);
    if (result->breakdown.steps > 0)
        td_bench_breakdown_print(&result->breakdown, &result->ceilings);
}

static void record_shape(const bench_options *wanted, const td_bench_step_result *result) {
    cJSON *record = result->record;
    const td_bench_step_options *step = &wanted->step;
    td_bench_record_text(record, "shape", wanted->shape);
    td_bench_record_number(record, "seq", (double)step->seq_tokens);
    td_bench_record_number(record, "batch", (double)step->sequences);
    td_bench_record_number(record, "accumulation", (double)step->micro_batches);
    td_bench_record_text(record, "activations", result->is_bf16 ? "bf16" : "fp32");
    td_bench_record_text(record, "recompute", td_recompute_name(result->recompute));
    if (result->quantized_layers > 0)
        td_bench_record_number(record, "copied_layers", (double)result->copied_layers);
    if (result->quantized_layers > 0)
        td_bench_record_number(record, "dequantizes_ahead", (double)result->dequantizes_ahead);
    td_bench_record_number(record, "trainable", (double)result->trainable);
}

static void record_flops(const td_bench_step_result *result, int size) {
    const td_bench_flops *flops = &result->flops;
    const struct {
        const char *name;
        double value;
    } numbers[] = {
        {"model_flops", flops->model},
        {"base_flops", flops->base},
        {"lora_flops", flops->lora},
        {"head_flops", flops->head},
        {"attention_flops", flops->attention},
        {"recompute_flops", flops->recompute},
        {"dequantize_flops", flops->dequantize},
        {"gemm_flops", flops->model - flops->attention},
        {"mfu", share_of_peak(result, size, flops->model)},
        {"gemm_share", share_of_peak(result, size, flops->model - flops->attention)},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        td_bench_record_number(result->record, numbers[i].name, numbers[i].value);
    td_bench_ceilings_record(&result->ceilings, result->record);
}

static void record_result(const bench_options *wanted, const td_bench_step_result *result,
                          int size) {
    const struct {
        const char *name;
        double value;
    } numbers[] = {
        {"seconds", result->seconds},
        {"seconds_min", result->fastest},
        {"seconds_max", result->slowest},
        {"seconds_p10", result->p10},
        {"seconds_p90", result->p90},
        {"wait_seconds", result->wait_seconds},
        {"weights_seconds", result->weights_seconds},
        {"tokens_per_second", result->tokens_per_second},
        {"loss", result->loss},
        {"grad_norm", result->grad_norm},
        {"plan_bytes", (double)result->plan_bytes},
        {"peak_bytes", (double)result->peak_bytes},
        {"host_plan_bytes", (double)result->host_plan_bytes},
        {"host_peak_bytes", (double)result->host_peak_bytes},
    };
    record_shape(wanted, result);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        td_bench_record_number(result->record, numbers[i].name, numbers[i].value);
    record_flops(result, size);
    if (result->breakdown.steps > 0)
        td_bench_breakdown_record(&result->breakdown, &result->ceilings, result->record);
}

static td_status report(const bench_options *wanted, const td_bench_step_result *result, int size) {
    if (!wanted->json)
        print_result(wanted, result, size);
    record_result(wanted, result, size);
    return td_bench_record_finish(result->record, wanted->record, wanted->json);
}

static td_status bench(const td_config *config, td_comm *comm, void *options) {
    bench_options *wanted = options;
    char folder[TD_PATH_MAX];
    td_bench_step_result result;
    TD_TRY(td_cli_scratch_make(comm, "bench", folder));
    wanted->step.scratch = folder;
    wanted->step.command = wanted->command;
    wanted->step.measure_ceilings = 1;
    td_status status = td_bench_step(config, comm, &wanted->step, &result);
    td_cli_scratch_remove(comm, folder);
    if (status == TD_OK && td_comm_rank(comm) == 0)
        status = report(wanted, &result, td_comm_size(comm));
    cJSON_Delete(result.record);
    return td_comm_agree(comm, status, "benchmark record");
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
    .arguments =
        "--shape FOLDER [--seq N] [--batch N] [--accumulation N] [--steps N] [--breakdown]",
    .summary = "time the training step of a model shape on random weights",
    .details =
        "Verifies that the first step learns something, then reports the median step, tokens/s, "
        "MFU against the\n"
        "GEMM ceiling measured in the same run, and peak memory beside the plan. --breakdown tells "
        "where the time goes,\nin steps of their own: what is watched on a GPU is queued one by "
        "one, "
        "without CUDA graphs.\n\n"
        "example: tandem bench step --shape configs/shapes/smollm2-135m --seq 512 --set lora_r=16",
    .run = run,
};
