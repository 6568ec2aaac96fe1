// The frozen base model: embeddings, norms, linear layers in NF4 (or as they are), head.
//
// Loading goes by groups of tensors, or a large one alone: they are read, quantized, shared with
// the other ranks of the node, and let go, so that the peak is the 4-bit base plus one tensor.
// Weights live in one arena whose size is known from the config alone.
#ifndef TANDEM_MODEL_BASE_H
#define TANDEM_MODEL_BASE_H

#include "kernels/ops.h"
#include "model/lora.h"
#include "model/model_config.h"
#include "runtime/core/arena.h"
#include "runtime/core/hash.h"

typedef struct td_base_layer {
    td_matrix linear[TD_PROJ_COUNT];
    const float *bias[TD_PROJ_COUNT]; // (out) fp32 or NULL
    const float *input_norm;          // (hidden) fp32, before attention
    const float *mlp_norm;            // (hidden) before the MLP
    // (hidden) behind attention and MLP, before the residual is added; or NULL
    const float *attention_out_norm, *mlp_out_norm;
    const float *q_norm, *k_norm; // (head_dim) or NULL
} td_base_layer;

// Seconds of what loading does. The first three are those of all threads together.
typedef struct td_base_times {
    double fetch;       // getting pages of the files mapped
    double fingerprint; // reading what they hold
    double store;       // converting, quantizing, storing
    double nest;        // double quantization
    double share;       // with the other ranks of the node, waiting for them included
    double image;       // mapping, reading, verifying or writing an image
} td_base_times;

typedef struct td_base {
    td_model_config config;
    td_base_layer *layers;   // (n_layers)
    td_matrix embedding;     // (vocabulary, hidden) BF16 or F32
    td_matrix head;          // (vocabulary, hidden); the embedding's memory when tied
    const float *final_norm; // (hidden)
    const float *nested_map; // (256) of nested NF4 codes, or NULL
    td_hash
        fingerprint; // over config.json's values that matter and the tensors read from the files
    td_arena host_arena; // a table of embeddings in pinned host memory
    td_arena arena;      // owns the rest of the above
    // The arena's memory where it is mapped rather than the device's: pages of their own, or those
    // of an image, which are read-only and shared by all who map it. NULL otherwise.
    void *mapped;
    size_t mapped_bytes;
    td_base_times times;
} td_base;

// How the ranks of a node share one reader. With `broadcast` NULL the caller reads everything
// itself. Otherwise it is a collective among the ranks of the node: the reader's bytes arrive in
// everybody's `buffer` (host memory). `agree` is collective too and returns TD_OK on all ranks or
// on none: it comes before every group, so that nobody waits for one that failed.
typedef struct td_base_share {
    int is_reader;
    td_status (*broadcast)(void *self, void *buffer, size_t bytes, const char *what);
    td_status (*agree)(void *self, td_status mine, const char *what);
    // 1 when `mine` is not 0 on any rank; a 0 is no failure.
    int (*all)(void *self, int mine, const char *what);
    void *self;
} td_base_share;

typedef struct td_base_options {
    // NF4 for the linear layers of the blocks. A folder that holds them as NF4 is used as it is,
    // whatever these two say.
    int quantize;
    int double_quantize;
    td_dtype stored;  // TD_BF16: 16-bit tensors that are not quantized stay BF16 (F16 is widened to
                      // F32); TD_F32: all F32
    td_dtype compute; // what dequantized weights are rounded to, the type of the activations. With
                      // TD_BF16 matrices that are not quantized are rounded too when they are
                      // stored: products take them as they are.
    // Folder for images of quantized bases (base_image.h), from which a later start loads; made
    // when missing. NULL: none. What cannot be written there is a warning.
    const char *image_folder;
    // The table of embeddings in pinned host memory, of which kernels read a row per token. Ignored
    // where the LM head is the same table, and on a device that shares the host's memory.
    int host_embedding;
} td_base_options;

typedef struct td_base_sizes {
    size_t arena_bytes; // device
    size_t host_bytes;  // pinned, beside it
    // Buffers that live during loading only.
    size_t slice_bytes;  // of a tensor in fp32: on the host, and once more on a device with memory
                         // of its own
    size_t absmax_bytes; // of a group of matrices, device
} td_base_sizes;

// What quantizing takes of workspace, device, during loading only.
size_t td_base_workspace_bytes(const td_ops *ops);

// Parameters of the base by kind, all layers together. A tied head has none of its own.
typedef struct td_base_counts {
    int64_t embedding, head;
    int64_t projections[TD_PROJ_COUNT];
    int64_t biases, norms;
    int64_t total;
} td_base_counts;

// From the config alone.
void td_base_count(const td_model_config *config, td_base_counts *out);

// From the config alone. `embedding_dtype` is td_base_peek_dtype().
void td_base_plan(const td_model_config *config, const td_base_options *options,
                  td_dtype embedding_dtype, td_base_sizes *out);
// dtype that the matrices in the folder share, F32 when they differ: with `stored` TD_BF16 and
// fp32 activations, what is not quantized stays BF16 only when all of it is BF16, so that nothing
// is ever rounded.
td_status td_base_peek_dtype(const char *folder, td_dtype *out);

// 1 when loading will map an image, by its header: found damaged later, it is not. Local.
int td_base_will_map(const char *folder, const td_base_options *options,
                     const td_op_context *context);

// Collective among the ranks of a node when share->broadcast is set. On failure nothing is owed.
td_status td_base_load(const char *folder, const td_base_options *options,
                       const td_base_share *share, const td_op_context *context, td_base **out);
// Random weights of the right shapes (N(0, 0.02)), for benchmarks and tests; no files.
td_status td_base_create_random(const td_model_config *config, const td_base_options *options,
                                uint64_t seed, const td_op_context *context, td_base **out);
// Local. The same weights as a safetensors file in BF16: what is loaded from it is that base.
td_status td_base_write_random(const td_model_config *config, uint64_t seed, const char *path);
void td_base_destroy(td_base *base);

#endif
