#include "model/transformer_internal.h"

#include <stdlib.h>

td_status td_transformer_measure(const td_model_config *config, const td_lora *lora,
                                 const td_transformer_options *options, const td_ops *ops,
                                 td_transformer_sizes *out) {
    td_transformer transformer = {
        .config = config, .lora = lora, .options = *options, .context.ops = ops};
    transformer.layers = calloc((size_t)config->n_layers, sizeof *transformer.layers);
    if (!transformer.layers)
        return td_fail(TD_ERR_MEMORY, "no memory for the layer table");
    td_arena_init_measure(&transformer.arena, "activations");
    td_status status = td_transformer_layout(&transformer, out);
    free(transformer.layers);
    return status;
}

size_t td_transformer_host_bytes(const td_transformer *transformer) {
    const td_transformer_options *options = &transformer->options;
    return (size_t)options->max_tokens *
               (sizeof *transformer->host_positions + sizeof *transformer->host_losses) +
           ((size_t)options->max_sequences + 1) * sizeof *transformer->cu;
}

static td_status create_host_buffers(td_transformer *transformer) {
    size_t tokens = (size_t)transformer->options.max_tokens;
    transformer->layers =
        calloc((size_t)transformer->config->n_layers, sizeof *transformer->layers);
    transformer->cu =
        calloc((size_t)transformer->options.max_sequences + 1, sizeof *transformer->cu);
    transformer->host_positions = calloc(tokens, sizeof *transformer->host_positions);
    transformer->host_losses = calloc(tokens, sizeof *transformer->host_losses);
    if (!transformer->layers || !transformer->cu || !transformer->host_positions ||
        !transformer->host_losses)
        return td_fail(TD_ERR_MEMORY, "no memory for the inputs of %zu tokens", tokens);
    return TD_OK;
}

static td_status fill_tables(td_transformer *transformer) {
    const td_model_config *config = transformer->config;
    const td_device_table *device = transformer->context.device->table;
    size_t count = (size_t)(transformer->options.max_positions * (config->head_dim / 2));
    float *tables = malloc(2 * count * sizeof *tables);
    if (!tables)
        return td_fail(TD_ERR_MEMORY, "no memory for the RoPE tables");
    td_rope_fill_tables(config, transformer->options.max_positions, tables, tables + count);
    td_stream *stream = transformer->context.stream;
    td_status status = device->copy(stream, transformer->cos, tables, count * sizeof *tables);
    if (status == TD_OK)
        status = device->copy(stream, transformer->sin, tables + count, count * sizeof *tables);
    if (status == TD_OK)
        status = device->stream_synchronize(stream);
    free(tables);
    return status;
}

td_status td_transformer_create(const td_base *base, const td_lora *lora,
                                const td_transformer_options *options, const td_op_context *context,
                                td_transformer **out) {
    td_transformer_sizes sizes;
    TD_TRY(td_transformer_measure(&base->config, lora, options, context->ops, &sizes));
    td_transformer *transformer = calloc(1, sizeof *transformer);
    if (!transformer)
        return td_fail(TD_ERR_MEMORY, "no memory for the transformer");
    transformer->config = &base->config;
    transformer->base = base;
    transformer->lora = lora;
    transformer->options = *options;
    transformer->context = *context;
    td_status status;
    TD_TRY_GOTO(status, create_host_buffers(transformer), failed);
    TD_TRY_GOTO(
        status,
        td_arena_init(&transformer->arena, context->device, sizes.total_bytes, "activations"),
        failed);
    TD_TRY_GOTO(status, td_transformer_layout(transformer, NULL), failed);
    TD_TRY_GOTO(status, fill_tables(transformer), failed);
    *out = transformer;
    return TD_OK;
failed:
    td_transformer_destroy(transformer);
    return status;
}

void td_transformer_destroy(td_transformer *transformer) {
    if (!transformer)
        return;
    td_arena_fini(&transformer->arena);
    free(transformer->host_losses);
    free(transformer->host_positions);
    free(transformer->cu);
    free(transformer->layers);
    free(transformer);
}

td_status td_transformer_train(td_transformer *transformer, const float *parameters,
                               const td_token_batch *batch, const td_dropout_key *dropout,
                               float gradient_scale, const td_gradient_sink *sink,
                               double *out_loss) {
    double loss;
    TD_TRY(td_transformer_begin(transformer, parameters, batch, dropout, NULL));
    TD_TRY(td_transformer_blocks(transformer));
    TD_TRY(td_transformer_head(transformer, batch, gradient_scale, &loss));
    transformer->sink = sink;
    TD_TRY(td_transformer_backward(transformer));
    *out_loss = loss;
    return TD_OK;
}

td_status td_transformer_loss(td_transformer *transformer, const float *parameters,
                              const td_token_batch *batch, double *out_loss) {
    TD_TRY(td_transformer_begin(transformer, parameters, batch, NULL, NULL));
    TD_TRY(td_transformer_blocks(transformer));
    return td_transformer_head(transformer, batch, 0.0f, out_loss);
}

td_status td_transformer_logits(td_transformer *transformer, const float *parameters,
                                const td_token_batch *batch, td_kv_cache *cache, float *logits) {
    TD_TRY(td_transformer_begin(transformer, parameters, batch, NULL, cache));
    TD_TRY(td_transformer_blocks(transformer));
    TD_TRY(td_transformer_head_logits(transformer, batch, logits));
    if (cache)
        cache->length += batch->n_tokens;
    return TD_OK;
}
