// Logits of an adapter by this program, for tests/reference/check_adapter.py to compare with
// PEFT's. usage: adapter_logits BASE ADAPTER TOKENS OUT [--nf4]
//   TOKENS: a safetensors file with input_ids (T) I32 and cu_seqlens (n + 1) I32
//   OUT: a safetensors file with both and logits (T, vocabulary) F32
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/adapter.h"
#include "model/base.h"
#include "model/safetensors.h"
#include "model/transformer.h"

typedef struct answer {
    td_op_context context;
    td_base *base;
    td_adapter_info info;
    td_lora lora;
    float *parameters, *logits;
    td_safetensors *tokens;
    td_tensor ids, cu;
} answer;

static td_status load(answer *self, char **argv, int quantize) {
    const td_device *device = td_device_cpu();
    td_base_options options = {
        .quantize = quantize, .double_quantize = 1, .stored = TD_BF16, .compute = TD_F32};
    td_base_share share = {.is_reader = 1};
    self->context.device = device;
    TD_TRY(td_ops_check(&td_ops_cpu, &self->context.ops));
    TD_TRY(device->table->stream_create(device, &self->context.stream));
    TD_TRY(td_base_load(argv[1], &options, &share, &self->context, &self->base));
    TD_TRY(td_adapter_info_read(argv[2], &self->info));
    td_lora_options lora = td_adapter_lora_options(&self->info);
    TD_TRY(td_lora_init(&self->lora, &self->base->config, &lora));
    self->parameters = calloc((size_t)self->lora.n_parameters, sizeof *self->parameters);
    TD_TRY(td_adapter_read(argv[2], &self->lora, self->parameters));
    TD_TRY(td_safetensors_open(argv[3], &self->tokens));
    if (!td_safetensors_find(self->tokens, "input_ids", &self->ids) ||
        !td_safetensors_find(self->tokens, "cu_seqlens", &self->cu))
        return td_fail(TD_ERR_DATA, "%s: no input_ids or cu_seqlens", argv[3]);
    return TD_OK;
}

static td_status compute(answer *self) {
    int64_t n = self->ids.shape[0], vocabulary = self->base->config.vocabulary;
    td_transformer *transformer;
    td_transformer_options options = {
        .max_tokens = n,
        .max_sequences = self->cu.shape[0],
        .max_positions = n,
        .logits_chunk_tokens = 64,
        .recompute = TD_RECOMPUTE_BLOCK,
    };
    int32_t *rows = calloc((size_t)n, sizeof *rows);
    self->logits = calloc((size_t)(n * vocabulary), sizeof *self->logits);
    for (int32_t i = 0; rows && i < n; i++)
        rows[i] = i;
    td_token_batch batch = {
        .n_tokens = n,
        .ids = self->ids.data,
        .n_sequences = self->cu.shape[0] - 1,
        .cu = self->cu.data,
        .n_targets = n,
        .target_rows = rows,
    };
    TD_TRY(td_transformer_create(self->base, &self->lora, &options, &self->context, &transformer));
    td_status status =
        td_transformer_logits(transformer, self->parameters, &batch, NULL, self->logits);
    td_transformer_destroy(transformer);
    free(rows);
    return status;
}

static td_status run(answer *self, char **argv, int quantize) {
    TD_TRY(load(self, argv, quantize));
    TD_TRY(compute(self));
    td_named_tensor tensors[] = {
        {"input_ids", self->ids},
        {"cu_seqlens", self->cu},
        {"logits",
         {.data = self->logits,
          .dtype = TD_F32,
          .n_dims = 2,
          .shape = {self->ids.shape[0], self->base->config.vocabulary}}},
    };
    return td_safetensors_write(argv[4], tensors, 3);
}

int main(int argc, char **argv) {
    answer self = {0};
    if (argc < 5) {
        fprintf(stderr, "usage: adapter_logits BASE ADAPTER TOKENS OUT [--nf4]\n");
        return TD_ERR_USAGE;
    }
    td_status status = run(&self, argv, argc > 5 && strcmp(argv[5], "--nf4") == 0);
    if (status != TD_OK)
        fprintf(stderr, "%s\n", td_error_message());
    free(self.logits);
    free(self.parameters);
    td_safetensors_close(self.tokens);
    td_base_destroy(self.base);
    return (int)status;
}
