// The transformer over a token stream: forward, loss, backward to the LoRA parameters, inference
// with a key-value cache.
//
// Activations live in one arena laid out at creation; a step allocates nothing. One thread at a
// time. Local.
#ifndef TANDEM_MODEL_TRANSFORMER_H
#define TANDEM_MODEL_TRANSFORMER_H

#include "model/base.h"

typedef struct td_transformer td_transformer;

typedef struct td_transformer_options {
    int64_t max_tokens;          // of one call
    int64_t max_sequences;       // of one call
    int64_t max_positions;       // longest sequence, with what a cache holds
    int64_t logits_chunk_tokens; // rows of logits that exist at a time
    td_recompute recompute;      // what the backward pass computes again: not TD_RECOMPUTE_AUTO
    int training;                // 0: forward only, nothing is kept for a backward pass
    td_graphs_use graphs;        // of training calls, on a device that has them
    int dequantize_ahead;        // NF4 weights without a copy, on a stream of their own: below
} td_transformer_options;

typedef struct td_transformer_sizes {
    size_t activations_bytes; // kept from forward to backward, and shared by the layers
    size_t logits_bytes;      // logits chunk and what belongs to the head
    size_t gradients_bytes;   // of activations and of one module's A and B
    size_t tables_bytes;      // inputs, RoPE tables
    size_t workspace_bytes;   // of the operations
    size_t total_bytes;       // of the above: device memory
    size_t ahead_bytes;       // beside it, weights that are dequantized ahead
    size_t host_bytes;        // beside it, pinned host memory
} td_transformer_sizes;

// lora may be NULL when training is 0.
td_status td_transformer_measure(const td_model_config *config, const td_lora *lora,
                                 const td_transformer_options *options, const td_ops *ops,
                                 td_transformer_sizes *out);
// base and lora are kept by reference. context's workspace is not used: the transformer brings its
// own.
td_status td_transformer_create(const td_base *base, const td_lora *lora,
                                const td_transformer_options *options, const td_op_context *context,
                                td_transformer **out);
void td_transformer_destroy(td_transformer *transformer);
// Its context, with a workspace that other operations on the same stream may use between calls.
const td_op_context *td_transformer_context(const td_transformer *transformer);

// One call's tokens; host memory, owned by the caller.
typedef struct td_token_batch {
    int64_t n_tokens;
    const int32_t *ids; // (T), checked against the vocabulary
    int64_t n_sequences;
    const int32_t *cu; // (n_sequences + 1) first token of each sequence, ascending to T; none empty
    int64_t n_targets;
    const int32_t
        *target_rows;       // (n_targets) ascending: the token after this row is to be predicted
    const int32_t *targets; // (n_targets) its id, checked too
} td_token_batch;

// What makes the micro-batch's dropout masks its own.
typedef struct td_dropout_key {
    uint64_t seed;
    uint32_t step;
    uint32_t micro_batch;
    double probability; // 0: none
} td_dropout_key;

// Who receives gradients: of each module, A and B together as they lie in the flat vector, from the
// last layer to the first. The values are device memory and valid during the call's work on the
// stream.
typedef struct td_gradient_sink {
    td_status (*module_done)(void *self, int64_t offset, int64_t count, const float *values);
    // All modules of `layer` and of those behind it are done.
    td_status (*layer_done)(void *self, int64_t layer);
    void *self;
} td_gradient_sink;

// Sum of cross entropy over the targets (host double, summed in row order), and, through the sink,
// the gradient of gradient_scale * that sum. parameters: flat vector, device memory. Returns when
// the loss is there; the backward pass, queued on the context's stream with the sink's calls, may
// still run. The batch is free again on return, here and below.
td_status td_transformer_train(td_transformer *transformer, const float *parameters,
                               const td_token_batch *batch, const td_dropout_key *dropout,
                               float gradient_scale, const td_gradient_sink *sink,
                               double *out_loss);
// What became of option `graphs`: work that was recorded, and repeated, in pieces. A call's work is
// recorded when one of its shape (tokens, borders rounded up, parameters, dropout, sink) comes for
// the second time; recordings of a few shapes are kept. module_done() is then called at the
// recording only: what it queues must depend on its arguments and the memory behind them alone.
typedef struct td_graph_counts {
    int64_t recorded, repeated;
    int is_off; // the option, or a recording failed
} td_graph_counts;
td_graph_counts td_transformer_graph_counts(const td_transformer *transformer);
// Option `dequantize_ahead`: while a product runs, the NF4 weight of the next one is dequantized on
// a second stream into one of two buffers, each as large as the largest weight. Products read the
// same numbers, so results have the same bits. Where there is no memory for the buffers products
// dequantize for themselves. Here: weights that were queued so, once each in recorded work.
int64_t td_transformer_ahead_count(const td_transformer *transformer);
// The loss alone, without dropout. parameters may be NULL: the base model.
td_status td_transformer_loss(td_transformer *transformer, const float *parameters,
                              const td_token_batch *batch, double *out_loss);

// Keys and values of one sequence.
typedef struct td_kv_cache td_kv_cache;
size_t td_kv_cache_bytes(const td_model_config *config, int64_t capacity, td_dtype activation);
td_status td_kv_cache_create(const td_model_config *config, int64_t capacity,
                             const td_op_context *context, td_kv_cache **out);
void td_kv_cache_destroy(td_kv_cache *cache);
void td_kv_cache_clear(td_kv_cache *cache);
int64_t td_kv_cache_length(const td_kv_cache *cache);

// fp32 logits (host memory) of the batch's target rows: (n_targets, vocabulary); `targets` is not
// read. With a cache the batch is one sequence that continues what the cache holds, and its keys
// and values are appended.
td_status td_transformer_logits(td_transformer *transformer, const float *parameters,
                                const td_token_batch *batch, td_kv_cache *cache, float *logits);

#endif
