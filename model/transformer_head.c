#include <math.h>

#include "model/transformer_internal.h"

static void *rows_at(const td_transformer *transformer, void *base, int64_t row) {
    size_t row_bytes = (size_t)transformer->config->hidden * td_act_bytes(transformer);
    return (unsigned char *)base + (size_t)row * row_bytes;
}

static td_status gather_targets(td_transformer *transformer) {
    OP(transformer, gather_rows,
       (&(td_rows_args){
           .n_rows = transformer->n_targets,
           .n_cols = transformer->config->hidden,
           .rows = transformer->target_rows,
           .x = transformer->x_out,
           .y = transformer->head_in,
       }));
    return TD_OK;
}

// Logits of the gathered rows [begin, begin + count).
static td_status chunk_logits(td_transformer *transformer, int64_t begin, int64_t count) {
    OP(transformer, rmsnorm_forward,
       (&(td_rmsnorm_forward_args){
           .n_rows = count,
           .n_cols = transformer->config->hidden,
           .x = rows_at(transformer, transformer->head_in, begin),
           .weight = transformer->base->final_norm,
           .eps = (float)transformer->config->rms_eps,
           .y = transformer->head_norm,
           .rstd = transformer->rstd_final + begin,
       }));
    OP(transformer, linear_forward,
       (&(td_linear_forward_args){
           .n_tokens = count,
           .x = transformer->head_norm,
           .weight = &transformer->base->head,
           .y = transformer->logits,
           .y_is_f32 = 1,
       }));
    return TD_OK;
}

// Gradient of the chunk's logits back to the gathered rows, in place over head_in.
static td_status chunk_backward(td_transformer *transformer, int64_t begin, int64_t count) {
    OP(transformer, linear_backward,
       (&(td_linear_backward_args){
           .n_tokens = count,
           .dy = transformer->logits,
           .weight = &transformer->base->head,
           .dx = transformer->head_norm,
           .dy_is_f32 = 1,
       }));
    void *rows = rows_at(transformer, transformer->head_in, begin);
    OP(transformer, rmsnorm_backward,
       (&(td_rmsnorm_backward_args){
           .n_rows = count,
           .n_cols = transformer->config->hidden,
           .dy = transformer->head_norm,
           .x = rows,
           .weight = transformer->base->final_norm,
           .rstd = transformer->rstd_final + begin,
           .dx = transformer->head_norm,
       }));
    size_t bytes = (size_t)(count * transformer->config->hidden) * td_act_bytes(transformer);
    return transformer->context.device->table->copy(transformer->context.stream, rows,
                                                    transformer->head_norm, bytes);
}

static td_status chunk_loss(td_transformer *transformer, int64_t begin, int64_t count,
                            float gradient_scale) {
    TD_TRY(chunk_logits(transformer, begin, count));
    OP(transformer, cross_entropy,
       (&(td_cross_entropy_args){
           .n_rows = count,
           .n_vocabulary = transformer->config->vocabulary,
           .logits = transformer->logits,
           .targets = transformer->targets + begin,
           .softcap = (float)transformer->config->final_softcap,
           .gradient_scale = gradient_scale,
           .gradient = gradient_scale != 0,
           .loss = transformer->losses + begin,
       }));
    return gradient_scale != 0 ? chunk_backward(transformer, begin, count) : TD_OK;
}

static td_status queue_losses(td_transformer *transformer) {
    const td_device_table *device = transformer->context.device->table;
    td_stream *stream = transformer->context.stream;
    TD_TRY(device->copy(stream, transformer->host_losses, transformer->losses,
                        (size_t)transformer->n_targets * sizeof(float)));
    return device->event_record(transformer->losses_there, stream);
}

td_status td_transformer_head(td_transformer *transformer, float gradient_scale) {
    int64_t chunk = transformer->options.logits_chunk_tokens;
    TD_TRY(gather_targets(transformer));
    for (int64_t begin = 0; begin < transformer->n_targets; begin += chunk) {
        int64_t left = transformer->n_targets - begin;
        TD_TRY(chunk_loss(transformer, begin, left < chunk ? left : chunk, gradient_scale));
    }
    if (gradient_scale != 0)
        OP(transformer, scatter_rows,
           (&(td_rows_args){
               .n_rows = transformer->n_targets,
               .n_cols = transformer->config->hidden,
               .rows = transformer->target_rows,
               .x = transformer->head_in,
               .y = transformer->d_x,
               .y_rows = transformer->n_tokens,
           }));
    return queue_losses(transformer);
}

// Row order and double precision: the same sum whatever the chunk size.
td_status td_transformer_read_loss(td_transformer *transformer, double *out_loss) {
    const td_device_table *device = transformer->context.device->table;
    TD_TRY(device->event_synchronize(transformer->losses_there));
    double sum = 0;
    for (int64_t i = 0; i < transformer->n_targets; i++)
        sum += transformer->host_losses[i];
    *out_loss = sum;
    return TD_OK;
}

static void cap(float *logits, int64_t count, float softcap) {
    for (int64_t i = 0; i < count; i++)
        logits[i] = softcap * tanhf(logits[i] / softcap);
}

td_status td_transformer_head_logits(td_transformer *transformer, float *logits) {
    const td_device_table *device = transformer->context.device->table;
    int64_t chunk = transformer->options.logits_chunk_tokens;
    int64_t vocabulary = transformer->config->vocabulary;
    TD_TRY(gather_targets(transformer));
    for (int64_t begin = 0; begin < transformer->n_targets; begin += chunk) {
        int64_t left = transformer->n_targets - begin, count = left < chunk ? left : chunk;
        TD_TRY(chunk_logits(transformer, begin, count));
        TD_TRY(device->copy(transformer->context.stream, logits + begin * vocabulary,
                            transformer->logits, (size_t)(count * vocabulary) * sizeof(float)));
    }
    TD_TRY(device->stream_synchronize(transformer->context.stream));
    if (transformer->config->final_softcap > 0)
        cap(logits, transformer->n_targets * vocabulary, (float)transformer->config->final_softcap);
    return TD_OK;
}
