// Training calls on the smallest model, for tests that compare the bits of runs that go about them
// differently; on the GPU module, emulated or real.
#ifndef TANDEM_TESTS_CUDA_HOST_TRAINING_CALLS_H
#define TANDEM_TESTS_CUDA_HOST_TRAINING_CALLS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/gpu_module.h"
#include "test.h"

#include "model/transformer.h"
#include "model/weight_copies.h"

enum { MAX_TOKENS = 40, MAX_SEQUENCES = 8, MAX_CALLS = 96 };

// One training call.
typedef struct call {
    int64_t n_tokens;
    int n_sequences;
    int64_t n_targets;
    td_dropout_key dropout;
    float gradient_scale;
} call;

typedef struct model {
    td_op_context context;
    td_base *base;
    td_lora lora;
    float *parameters; // device
    int64_t *sums;     // device, (n_parameters): gradients of the calls so far
    int64_t *faults;   // device, (1)
    td_transformer *transformer;
    td_weight_copies copies;
    int64_t quantum_log2; // of the running call
    int synchronizes;     // module_done() does what no recording allows
    int layers_done;
    int evaluates;
    double evaluated; // sum of losses
} model;

// How the calls of one run go.
typedef struct way {
    td_graphs_use graphs;
    int synchronizes;
    int quantum_changes; // against what module_done() promises
    int host_embedding;
    td_recompute recompute; // or the default
    int dequantize_ahead;
    int64_t copied_layers;
    int evaluates;                                     // the loss alone, between calls
    const td_device *(*device)(const td_device *real); // or NULL: one in front of the real one
} way;

static const td_gpu_module *module;

static void *device_bytes(const model *self, size_t bytes) {
    void *memory = NULL;
    REQUIRE(self->context.device->table->alloc(self->context.device, bytes, "test", &memory) ==
            TD_OK);
    return memory;
}

static void send(const model *self, void *to, const void *from, size_t bytes) {
    const td_device_table *device = self->context.device->table;
    REQUIRE(device->copy(self->context.stream, to, from, bytes) == TD_OK);
    REQUIRE(device->stream_synchronize(self->context.stream) == TD_OK);
}

static void make_parameters(model *self) {
    size_t n = (size_t)self->lora.n_parameters;
    float *values = calloc(n, sizeof *values);
    td_lora_initialize(&self->lora, 3, values);
    for (size_t i = 0; i < n; i++) // B is zero at the start
        if (values[i] == 0)
            values[i] = 0.01f * (float)((int)(i % 13) - 6) + 0.003f;
    self->parameters = device_bytes(self, n * sizeof *values);
    self->sums = device_bytes(self, n * sizeof *self->sums);
    self->faults = device_bytes(self, sizeof *self->faults);
    send(self, self->parameters, values, n * sizeof *values);
    free(values);
}

static void open_model(model *self, const td_ops *ops, const way *how) {
    char target[] = "all-linear", *items[] = {target};
    const td_string_list targets = {.items = items, .count = 1};
    td_base_options options = {
        .quantize = 1, .double_quantize = 1, .stored = ops->activation, .compute = ops->activation};
    options.host_embedding = how->host_embedding;
    td_base_share share = {.is_reader = 1};
    td_lora_options lora = {
        .rank = 4, .alpha = 8, .target_modules = &targets, .target_modules_is_pattern = 1};
    memset(self, 0, sizeof *self);
    REQUIRE(module->device_open(0, &self->context.device) == TD_OK);
    const td_device *device = self->context.device;
    if (how->device)
        self->context.device = device = how->device(device);
    REQUIRE(td_ops_check(ops, &self->context.ops) == TD_OK);
    REQUIRE(device->table->stream_create(device, &self->context.stream) == TD_OK);
    self->context.workspace_bytes = td_base_workspace_bytes(ops);
    self->context.workspace = device_bytes(self, self->context.workspace_bytes);
    REQUIRE(td_base_load(TEST_FIXTURES "/families/qwen3", &options, &share, &self->context,
                         &self->base) == TD_OK);
    REQUIRE(td_lora_init(&self->lora, &self->base->config, &lora) == TD_OK);
    make_parameters(self);
    td_transformer_options sizes = {.max_tokens = MAX_TOKENS,
                                    .max_sequences = MAX_SEQUENCES,
                                    .max_positions = MAX_TOKENS,
                                    .logits_chunk_tokens = 16,
                                    .recompute =
                                        how->recompute ? how->recompute : TD_RECOMPUTE_NORMS_MLP,
                                    .training = 1,
                                    .graphs = how->graphs,
                                    .dequantize_ahead = how->dequantize_ahead};
    REQUIRE(td_transformer_create(self->base, &self->lora, &sizes, &self->context,
                                  &self->transformer) == TD_OK);
    REQUIRE(td_weight_copies_make(&self->copies, self->base, &self->context, how->copied_layers) ==
            TD_OK);
}

static void close_model(model *self) {
    const td_device *device = self->context.device;
    td_transformer_destroy(self->transformer);
    td_weight_copies_fini(&self->copies);
    device->table->free(device, self->parameters);
    device->table->free(device, self->sums);
    device->table->free(device, self->faults);
    td_lora_fini(&self->lora);
    td_base_destroy(self->base);
    device->table->free(device, self->context.workspace);
    device->table->stream_destroy(self->context.stream);
}

static td_status add_module(void *context, int64_t offset, int64_t count, const float *values) {
    model *self = context;
    const td_op_context *ops = td_transformer_context(self->transformer);
    if (self->synchronizes)
        TD_TRY(ops->device->table->stream_synchronize(ops->stream));
    return ops->ops->fixed_add(ops, &(td_fixed_add_args){.n_elements = count,
                                                         .values = values,
                                                         .accumulator = self->sums + offset,
                                                         .quantum_log2 = (int)self->quantum_log2,
                                                         .limit = INT64_MAX,
                                                         .faults = self->faults});
}

static td_status layer_done(void *context, int64_t layer) {
    model *self = context;
    (void)layer;
    self->layers_done++;
    return TD_OK;
}

// Tokens, borders and targets of a call's own.
static double train(model *self, const call *what, uint32_t number) {
    int32_t ids[MAX_TOKENS], rows[MAX_TOKENS], targets[MAX_TOKENS], cu[MAX_SEQUENCES + 1] = {0};
    td_gradient_sink sink = {.module_done = add_module, .layer_done = layer_done, .self = self};
    int32_t tokens = (int32_t)what->n_tokens;
    double loss = 0;
    for (int32_t i = 0; i < tokens; i++) {
        ids[i] = (int32_t)((5 + 7 * (uint32_t)i + 11 * number) % 100);
        rows[i] = i;
        targets[i] = (int32_t)((9 + 5 * (uint32_t)i + 3 * number) % 100);
    }
    for (int s = 1; s < what->n_sequences; s++) // one of them takes what the number says
        cu[s] = cu[s - 1] + 1 + (s == 1 ? (int32_t)number % (tokens - what->n_sequences) : 0);
    cu[what->n_sequences] = tokens;
    td_token_batch batch = {.n_tokens = tokens,
                            .ids = ids,
                            .n_sequences = what->n_sequences,
                            .cu = cu,
                            .n_targets = what->n_targets,
                            .target_rows = rows,
                            .targets = targets};
    if (self->evaluates) {
        REQUIRE(td_transformer_loss(self->transformer, self->parameters, &batch, &loss) == TD_OK);
        self->evaluated += loss;
    }
    CHECK_INT(td_transformer_train(self->transformer, self->parameters, &batch, &what->dropout,
                                   what->gradient_scale, &sink, &loss),
              TD_OK);
    return loss;
}

typedef struct outcome {
    double losses[MAX_CALLS];
    int64_t *sums; // behind each call, (n_parameters)
    int64_t n_parameters, n_layers;
    int layers_done;
    double evaluated;
    td_graph_counts counts;
    int64_t dequantized_ahead;
    size_t base_bytes; // on the device
} outcome;

static outcome run_calls(const td_ops *ops, const call *calls, int n, way how) {
    model self;
    open_model(&self, ops, &how);
    const td_device_table *device = self.context.device->table;
    size_t count = (size_t)self.lora.n_parameters, bytes = count * sizeof(int64_t);
    outcome out = {.n_parameters = (int64_t)count, .n_layers = self.base->config.n_layers};
    out.sums = calloc((size_t)n, bytes);
    self.synchronizes = how.synchronizes;
    self.evaluates = how.evaluates;
    for (int i = 0; i < n; i++) {
        self.quantum_log2 = -40 - (how.quantum_changes ? i % 3 : 0);
        out.losses[i] = train(&self, &calls[i], (uint32_t)i);
        REQUIRE(device->copy(self.context.stream, out.sums + (size_t)i * count, self.sums, bytes) ==
                TD_OK);
        REQUIRE(device->stream_synchronize(self.context.stream) == TD_OK);
    }
    out.layers_done = self.layers_done;
    out.evaluated = self.evaluated;
    out.base_bytes = self.base->arena.used_bytes;
    out.counts = td_transformer_graph_counts(self.transformer);
    out.dequantized_ahead = td_transformer_ahead_count(self.transformer);
    close_model(&self);
    return out;
}

static int same(const outcome *a, const outcome *b, int n) {
    size_t bytes = (size_t)n * (size_t)a->n_parameters * sizeof(int64_t);
    return memcmp(a->losses, b->losses, (size_t)n * sizeof(double)) == 0 &&
           a->evaluated == b->evaluated && memcmp(a->sums, b->sums, bytes) == 0;
}

// Calls of two numbers of tokens and two numbers of borders; all else differs from call to call.
static int few_shapes(call *calls) {
    enum { CALLS = 14 };
    for (int i = 0; i < CALLS; i++)
        calls[i] = (call){.n_tokens = i % 3 == 2 ? 31 : 24,
                          .n_sequences = i < 10 ? 3 + i % 2 : 1,
                          .n_targets = 9 + i,
                          .dropout = {.seed = 5,
                                      .step = (uint32_t)i / 4,
                                      .micro_batch = (uint32_t)i % 4,
                                      .probability = 0.2},
                          .gradient_scale = 1.0f / (float)(9 + i)};
    return CALLS;
}

static const td_ops *tested;

// 1 where there is no module.
static int load_module(void) {
    char reason[256] = "";
    td_gpu_module_load(&module, reason, sizeof reason);
    if (!module)
        fprintf(stderr, "no GPU: %s\n", reason);
    return !module;
}

#endif
