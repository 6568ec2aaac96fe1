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

static td_status fill_tables(const td_transformer *transformer, const td_rope_config *rope,
                             float *cos, float *sin) {
    const td_device_table *device = transformer->context.device->table;
    int64_t rotary_dim = transformer->config->rotary_dim;
    size_t count = (size_t)(transformer->options.max_positions * (rotary_dim / 2));
    float *tables = malloc(2 * count * sizeof *tables);
    if (!tables)
        return td_fail(TD_ERR_MEMORY, "no memory for the RoPE tables");
    td_rope_fill_tables(rope, rotary_dim, transformer->options.max_positions, tables,
                        tables + count);
    td_stream *stream = transformer->context.stream;
    td_status status = device->copy(stream, cos, tables, count * sizeof *tables);
    if (status == TD_OK)
        status = device->copy(stream, sin, tables + count, count * sizeof *tables);
    td_status done = device->stream_synchronize(stream); // whatever failed, a copy may be under way
    free(tables);
    return status != TD_OK ? status : done;
}

static td_status fill_all_tables(const td_transformer *transformer) {
    const td_model_config *config = transformer->config;
    TD_TRY(fill_tables(transformer, &config->rope, transformer->cos, transformer->sin));
    if (!transformer->local_cos)
        return TD_OK;
    return fill_tables(transformer, &config->rope_local, transformer->local_cos,
                       transformer->local_sin);
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
    transformer->layers = calloc((size_t)base->config.n_layers, sizeof *transformer->layers);
    td_status status = TD_OK;
    if (!transformer->layers)
        TD_TRY_GOTO(status, td_fail(TD_ERR_MEMORY, "no memory for the layer table"), failed);
    TD_TRY_GOTO(status, td_transformer_create_inputs(transformer), failed);
    TD_TRY_GOTO(
        status,
        td_arena_init(&transformer->arena, context->device, sizes.total_bytes, "activations"),
        failed);
    TD_TRY_GOTO(status, td_transformer_layout(transformer, NULL), failed);
    TD_TRY_GOTO(status, fill_all_tables(transformer), failed);
    TD_TRY_GOTO(status, td_transformer_create_graphs(transformer), failed);
    TD_TRY_GOTO(status, td_transformer_create_ahead(transformer), failed);
    *out = transformer;
    return TD_OK;
failed:
    td_transformer_destroy(transformer);
    return status;
}

void td_transformer_destroy(td_transformer *transformer) {
    if (!transformer)
        return;
    (void)transformer->context.device->table->stream_synchronize(transformer->context.stream);
    td_transformer_destroy_ahead(transformer);
    td_transformer_destroy_graphs(transformer);
    td_transformer_destroy_inputs(transformer);
    td_arena_fini(&transformer->arena);
    free(transformer->layers);
    free(transformer);
}

const td_op_context *td_transformer_context(const td_transformer *transformer) {
    return &transformer->context;
}

// After a failure some of a call's work may be queued: whoever comes next must not meet it.
static td_status leave_call(td_transformer *transformer, td_status status) {
    if (status != TD_OK)
        (void)transformer->context.device->table->stream_synchronize(transformer->context.stream);
    return status;
}

static td_status train(td_transformer *transformer, const float *parameters,
                       const td_token_batch *batch, const td_dropout_key *dropout,
                       float gradient_scale, const td_gradient_sink *sink, double *out_loss) {
    TD_TRY(td_transformer_begin(transformer, parameters, batch, dropout, NULL));
    transformer->sink = sink;
    td_transformer_begin_graphs(transformer);
    TD_TRY(td_transformer_blocks(transformer));
    TD_TRY(td_transformer_head(transformer, gradient_scale));
    TD_TRY(td_transformer_backward(transformer));
    return td_transformer_read_loss(transformer, out_loss);
}

td_status td_transformer_train(td_transformer *transformer, const float *parameters,
                               const td_token_batch *batch, const td_dropout_key *dropout,
                               float gradient_scale, const td_gradient_sink *sink,
                               double *out_loss) {
    td_status status =
        train(transformer, parameters, batch, dropout, gradient_scale, sink, out_loss);
    td_transformer_end_graphs(transformer);
    return leave_call(transformer, status);
}

static td_status loss(td_transformer *transformer, const float *parameters,
                      const td_token_batch *batch, double *out_loss) {
    TD_TRY(td_transformer_begin(transformer, parameters, batch, NULL, NULL));
    TD_TRY(td_transformer_blocks(transformer));
    TD_TRY(td_transformer_head(transformer, 0.0f));
    return td_transformer_read_loss(transformer, out_loss);
}

td_status td_transformer_loss(td_transformer *transformer, const float *parameters,
                              const td_token_batch *batch, double *out_loss) {
    return leave_call(transformer, loss(transformer, parameters, batch, out_loss));
}

static td_status logits_of(td_transformer *transformer, const float *parameters,
                           const td_token_batch *batch, td_kv_cache *cache, float *logits) {
    TD_TRY(td_transformer_begin(transformer, parameters, batch, NULL, cache));
    TD_TRY(td_transformer_blocks(transformer));
    return td_transformer_head_logits(transformer, logits);
}

td_status td_transformer_logits(td_transformer *transformer, const float *parameters,
                                const td_token_batch *batch, td_kv_cache *cache, float *logits) {
    td_status status = logits_of(transformer, parameters, batch, cache, logits);
    if (status == TD_OK && cache)
        cache->length += batch->n_tokens;
    return leave_call(transformer, status);
}
