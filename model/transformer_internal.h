// Internals of the transformer, shared by its source files only.
#ifndef TANDEM_MODEL_TRANSFORMER_INTERNAL_H
#define TANDEM_MODEL_TRANSFORMER_INTERNAL_H

#include "model/transformer.h"

// The op table's entries read as calls: OP(transformer, add, (&(td_add_args){...})).
#define OP(transformer, operation, arguments)                                                      \
    TD_TRY((transformer)->context.ops->operation(&(transformer)->context, arguments))

// What one layer computes on the way forward. Which of these are a layer's own and which all layers
// share is decided by the recompute policy in transformer_layout.c.
typedef struct td_layer_state {
    void *x_in;           // (T, hidden) act: input of the block
    void *norm1;          // (T, hidden) act
    void *q_raw;          // (T, n_heads, head_dim) act: before q norm; with qk_norm only
    void *k_raw;          // (T, n_kv_heads, head_dim) act
    void *q;              // (T, n_heads, head_dim) act, rotated
    void *k;              // (T, n_kv_heads, head_dim) act, rotated
    void *v;              // (T, n_kv_heads, head_dim) act
                          // fused projections: q, k and v are columns of one matrix that
                          // begins at q, gate and up halves of one that begins at gate
    void *attention;      // (T, n_heads, head_dim) act
    float *lse;           // (T, n_heads)
    void *attention_out;  // (T, hidden) act: o_proj's output; x_mid itself without a norm on it
    void *x_mid;          // (T, hidden) act: after attention
    void *norm2;          // (T, hidden) act
    void *gate, *up;      // (T, intermediate) act
    void *product;        // (T, intermediate) act: activation(gate) * up
    void *mlp_out;        // (T, hidden) act: down_proj's output when there is a norm on it
    float *rstd1, *rstd2; // (T)
    float *rstd_attention_out, *rstd_mlp_out; // (T)
    float *rstd_q, *rstd_k;                   // (T, heads)
    void *xa[TD_PROJ_COUNT];                  // (T, rank) act: dropout(x) A^T
} td_layer_state;

typedef struct td_graphs td_graphs; // transformer_graphs.c
typedef struct td_ahead td_ahead;   // transformer_ahead.c

struct td_kv_cache {
    int64_t capacity, length; // tokens
    int64_t n_layers;
    int is_fused;
    size_t row_bytes;   // from token to token
    int64_t row_stride; // the same in elements
    td_arena arena;
    unsigned char **k, **v; // (n_layers) of (capacity, n_kv_heads, head_dim) act; fused
                            // projections: v beside k, as they come
};

struct td_transformer {
    const td_model_config *config;
    const td_base *base; // NULL while measuring
    const td_lora *lora; // or NULL
    td_transformer_options options;
    td_op_context context;
    td_arena arena;

    // Inputs, device memory.
    int32_t *packed;                // the running call's, without gaps
    int32_t *ids, *positions;       // (T) in packed
    int32_t *cu_device;             // (n_borders) in packed: cu, T again where there are fewer
    int32_t *cu_k_device;           // of the keys
    uint32_t *place;                // (2) in packed: step and micro-batch of dropout
    int32_t *target_rows, *targets; // (n_targets) in packed
    float *cos, *sin;               // (max_positions, rotary_dim / 2)
    float *local_cos, *local_sin;   // the same of rope_local; or NULL

    // Pinned host memory. Free again when the call's loss is there: the inputs came before it on
    // the stream, even if the backward pass still runs.
    void *pinned;           // all of the following
    int32_t *host_packed;   // as packed
    float *host_losses;     // (max_tokens)
    td_event *losses_there; // recorded behind the copy to host_losses

    td_layer_state *layers; // (n_layers)
    void *x_out;            // (T, hidden) act: output of the last block
    float *rstd_final;      // (T)

    // Head. Rows are target rows.
    void *head_in;   // (T, hidden) act: gathered block output
    void *head_norm; // (chunk, hidden) act
    float *logits;   // (chunk, vocabulary) fp32
    float *losses;   // (T)

    // Backward.
    void *d_x;               // (T, hidden) act: gradient of the residual stream
    void *d_norm;            // (T, hidden) act
    void *d_wide;            // (T, intermediate) act
    void *d_attention, *d_q; // (T, n_heads, head_dim) act
    void *d_k, *d_v;         // (T, n_kv_heads, head_dim) act; laid out as q, k and v are
    float *d_module;         // (max_module_parameters) fp32: A then B

    // A and B of the layer at hand, as they lie in the flat vector, in bf16; NULL with fp32
    // activations.
    void *rounded;

    // The running call.
    const float *parameters; // or NULL
    td_dropout_key dropout;
    int64_t n_tokens, n_sequences, n_targets;
    int64_t n_borders;            // n_sequences rounded up to a power of two, and 1: few shapes
    int32_t *cu;                  // (max_sequences + 1) host memory
    int32_t cu_k[2];              // of the keys in a cache
    td_kv_cache *cache;           // or NULL
    const td_gradient_sink *sink; // NULL: not a training call
    td_graphs *graphs;            // recordings; or NULL
    td_ahead *ahead;              // or NULL
};

// Values of the largest call's packed inputs.
size_t td_transformer_packed_items(const td_transformer_options *options);
int64_t td_transformer_border_count(int64_t n_sequences);

// transformer_graphs.c. graphs stays NULL where they are not wanted.
td_status td_transformer_create_graphs(td_transformer *transformer);
// Nothing may be under way.
void td_transformer_destroy_graphs(td_transformer *transformer);
// Between begin and end segments of the running training call are recorded or repeated.
void td_transformer_begin_graphs(td_transformer *transformer);
void td_transformer_end_graphs(td_transformer *transformer);
// Queues queue(transformer, layer), number `segment` of a call's (at most n_layers + 1).
td_status td_transformer_segment(td_transformer *transformer, int64_t segment,
                                 td_status (*queue)(td_transformer *transformer, int64_t layer),
                                 int64_t layer);

// transformer_ahead.c. ahead stays NULL where it is not wanted or has no memory.
size_t td_transformer_ahead_bytes(const td_transformer *transformer);
td_status td_transformer_create_ahead(td_transformer *transformer);
// Nothing may be under way but its own work, which it waits for.
void td_transformer_destroy_ahead(td_transformer *transformer);
// Before anything of a segment is queued. What is recorded looks ahead within the segment only.
td_status td_transformer_begin_ahead(td_transformer *transformer, int64_t segment, int is_recorded);
// The weight for the product that is queued next, which the context's stream then waits for, and
// behind the product its release. Products with the weights of a segment come in the order that
// transformer_ahead.c knows.
td_status td_transformer_acquire_weight(td_transformer *transformer, int64_t layer,
                                        td_projection projection, const td_matrix **out);
td_status td_transformer_release_weight(td_transformer *transformer, const td_matrix *weight);

// The lowest layer that the backward pass reaches: with nothing to train below it.
int64_t td_transformer_lowest_layer(const td_transformer *transformer);

// Takes everything from the arena; `sizes` (may be NULL) receives the parts.
td_status td_transformer_layout(td_transformer *transformer, td_transformer_sizes *sizes);

// transformer_inputs.c: pinned memory for what the host hands over and gets back, and the event.
size_t td_transformer_host_bytes(const td_transformer *transformer);
td_status td_transformer_create_inputs(td_transformer *transformer);
// Nothing may be under way.
void td_transformer_destroy_inputs(td_transformer *transformer);

// Checks a call and queues its inputs; the batch is free again on return.
td_status td_transformer_begin(td_transformer *transformer, const float *parameters,
                               const td_token_batch *batch, const td_dropout_key *dropout,
                               td_kv_cache *cache);

// transformer_forward.c
td_status td_transformer_blocks(td_transformer *transformer);
// Computes what the policy did not keep of a layer.
td_status td_transformer_recompute(td_transformer *transformer, int64_t layer);
// RoPE of a layer on (T, n_heads, head_dim) at the running call's positions, in place.
td_status td_transformer_rotate(td_transformer *transformer, int64_t layer, int64_t n_heads,
                                void *x, int64_t x_stride, int inverse);
// Weights of a module with the running call's dropout; 0 when the projection has no adapter in this
// call.
int td_transformer_module(const td_transformer *transformer, int64_t layer,
                          td_projection projection, td_lora_weights *out);

// transformer_lora.c: A and B of one layer at a time in the type of the activations.
void td_transformer_take_rounded(td_transformer *transformer);
// Queued before the first of the layer's modules, forward and backward.
td_status td_transformer_round_layer(td_transformer *transformer, int64_t layer);
// What lies at `offset` of the flat vector, of the layer at hand; NULL with fp32 activations.
const void *td_transformer_rounded(const td_transformer *transformer, int64_t layer,
                                   int64_t offset);

// transformer_head.c: queues the loss over the targets and, when gradient_scale != 0, d_x.
td_status td_transformer_head(td_transformer *transformer, float gradient_scale);
// Waits for the losses of td_transformer_head(), not for what was queued behind them, and adds them
// up.
td_status td_transformer_read_loss(td_transformer *transformer, double *out_loss);
// Waits for the logits.
td_status td_transformer_head_logits(td_transformer *transformer, float *logits);

// transformer_backward.c
td_status td_transformer_backward(td_transformer *transformer);

static inline size_t td_act_bytes(const td_transformer *transformer) {
    return td_dtype_bytes(transformer->context.ops->activation);
}

static inline int64_t td_q_columns(const td_model_config *config) {
    return config->n_heads * config->head_dim;
}

static inline int64_t td_k_columns(const td_model_config *config) {
    return config->n_kv_heads * config->head_dim;
}

// Elements from token to token of q, of k and v, of gate and up, and of their gradients.
static inline int64_t td_q_stride(const td_model_config *config) {
    return config->fused_projections ? td_q_columns(config) + 2 * td_k_columns(config)
                                     : td_q_columns(config);
}

static inline int64_t td_k_stride(const td_model_config *config) {
    return config->fused_projections ? td_q_stride(config) : td_k_columns(config);
}

static inline int64_t td_gate_stride(const td_model_config *config) {
    return (config->fused_projections ? 2 : 1) * config->intermediate;
}

// Column `column` of a matrix of activations; NULL of NULL.
static inline void *td_act_column(const td_transformer *transformer, void *matrix, int64_t column) {
    return matrix ? (unsigned char *)matrix + (size_t)column * td_act_bytes(transformer) : NULL;
}

// cu_k NULL: the keys are the running call's, else those in the cache.
static inline td_attention_shape td_transformer_attention(const td_transformer *transformer,
                                                          int64_t layer, const int32_t *cu_k) {
    const td_model_config *config = transformer->config;
    int64_t k_stride = cu_k ? transformer->cache->row_stride : td_k_stride(config);
    return (td_attention_shape){
        .n_sequences = transformer->n_sequences,
        .cu_q = transformer->cu,
        .cu_k = cu_k ? cu_k : transformer->cu,
        .device_cu_q = transformer->cu_device,
        .device_cu_k = transformer->cu_k_device,
        .n_borders = transformer->n_borders,
        .n_heads = config->n_heads,
        .n_kv_heads = config->n_kv_heads,
        .head_dim = config->head_dim,
        .scale = 1.0f / __builtin_sqrtf((float)config->attention_scalar),
        .softcap = (float)config->attention_softcap,
        .window = config->window[layer],
        .q_stride = td_q_stride(config),
        .k_stride = k_stride,
        .v_stride = k_stride,
    };
}

#endif
