// How the base is put together: a walk over its tensors, the layout in the arena, and where the
// values come from.
#ifndef TANDEM_MODEL_BASE_INTERNAL_H
#define TANDEM_MODEL_BASE_INTERNAL_H

#include "model/base.h"
#include "model/nf4_folder.h"
#include "model/safetensors.h"

enum {
    TD_BASE_NAME_CHARS = 96,
    // Of a file that one thread takes at a time: small enough that it is in the thread's cache from
    // hashing to quantizing. The fingerprint is made of their hashes.
    TD_BASE_CHUNK_ELEMENTS = 64 << 10,
    // Tensors are read in groups of so many elements, or one tensor, and of so many items.
    TD_BASE_GROUP_ELEMENTS = 64 << 20,
    TD_BASE_GROUP_ITEMS = 64,
};

typedef enum td_base_kind {
    TD_BASE_EMBEDDING,
    TD_BASE_LINEAR,
    TD_BASE_BIAS,
    TD_BASE_INPUT_NORM,
    TD_BASE_MLP_NORM,
    TD_BASE_ATTENTION_OUT_NORM,
    TD_BASE_MLP_OUT_NORM,
    TD_BASE_Q_NORM,
    TD_BASE_K_NORM,
    TD_BASE_FINAL_NORM,
    TD_BASE_HEAD,
} td_base_kind;

// One tensor of the model folder.
typedef struct td_base_item {
    td_base_kind kind;
    int64_t layer;
    td_projection projection;
    char name[TD_BASE_NAME_CHARS];
    int n_dims;
    int64_t shape[2]; // (rows, cols), or (elements)
    int64_t n_elements;
} td_base_item;

static inline int td_base_item_is_matrix(const td_base_item *item) {
    return item->n_dims == 2;
}

static inline int td_base_item_is_norm(const td_base_item *item) {
    return !td_base_item_is_matrix(item) && item->kind != TD_BASE_BIAS;
}

// Calls `visit` for every tensor in the order of the layers; stops at the first failure. A tied
// head is not visited.
typedef td_status (*td_base_visitor)(void *self, const td_base_item *item);
td_status td_base_visit(const td_model_config *config, td_base_visitor visit, void *self);

void td_base_embedding_name(td_tensor_names names, char out[TD_BASE_NAME_CHARS]);
// Whether it is the LM head's, in any folder.
int td_base_is_head_name(const char *name);
// Sets config->names to what the folder's tensors are called, where config.json leaves a choice.
void td_base_find_names(const td_safetensors *files, td_model_config *config);

// Where the view of an item is in the base.
td_matrix *td_base_matrix(td_base *base, const td_base_item *item);
const float **td_base_vector(td_base *base, const td_base_item *item);

// Whether the folder holds the item as NF4.
int td_base_item_is_stored_nf4(const td_model_config *config, const td_base_item *item);

// Format of an item; vectors are TD_MATRIX_F32. `matrix_dtype` is that of td_base_peek_dtype().
td_matrix_format td_base_format(const td_model_config *config, const td_base_options *options,
                                td_dtype matrix_dtype, const td_base_item *item);

// Takes everything from base->arena, which may be measuring, and sets the views. base->layers may
// be NULL when measuring.
void td_base_lay_out(td_base *base, const td_base_options *options, td_dtype matrix_dtype);

// Buffers that live during loading.
typedef struct td_base_staging {
    int64_t slice_elements; // a multiple of two chunks
    int64_t group_elements; // at most
    int64_t n_blocks;       // of a group's quantized matrices; 0 unless double quantization
    size_t slice_bytes, absmax_bytes;
} td_base_staging;
td_base_staging td_base_staging_plan(const td_model_config *config, const td_base_options *options);

// The options with what the folder decides.
td_base_options td_base_options_for(const td_model_config *config, const td_base_options *options);

// Where the values come from.
typedef struct td_base_source {
    // Values that are drawn: elements [begin, begin + count) of an item in fp32, in order and each
    // once.
    td_status (*read)(void *self, const td_base_item *item, int64_t begin, int64_t count,
                      float *out);
    // Or, when set, tensors of files, which are looked up once and in the order of the walk.
    td_status (*find)(void *self, const td_base_item *item, td_tensor *out);
    // For a folder that holds NF4, called for its linear layers instead.
    td_status (*find_nf4)(void *self, const td_base_item *item, td_nf4_stored *out);
    // Bytes of a tensor that will be read at once. Any thread.
    void (*fetch)(void *self, const void *data, size_t bytes);
    // For the fingerprint: hashes of all that an array holds. In the order of the walk.
    void (*pass)(void *self, const td_base_item *item, const td_tensor *view, const td_hash *hashes,
                 int64_t count);
    // Called for pieces that were copied. Any thread.
    void (*forget)(void *self, const td_tensor *piece);
    void *self;
} td_base_source;

// Allocates a base for base->config, laid out and zero. Local. Where the host's memory is the
// device's, pages are cleared when they are first written, by whichever thread that is.
td_status td_base_create(const td_model_config *config, const td_base_options *options,
                         td_dtype matrix_dtype, const td_op_context *context, td_base **out);

// The arena in memory that somebody else owns.
void td_base_use_memory(td_base *base, const td_device *device, void *memory, size_t bytes);

// Fills the base from the source, which is asked on the reader only, and shares every group as soon
// as it is stored. `share` may be NULL. Collective as td_base_load().
td_status td_base_fill(td_base *base, const td_base_options *options, const td_base_source *source,
                       const td_base_share *share, const td_op_context *context);

// What the other ranks of the node think of this one's status so far; `mine` itself without a
// share.
td_status td_base_agree(const td_base_share *share, td_status mine, const char *what);
int td_base_is_reader(const td_base_share *share);
int td_base_is_shared(const td_base_share *share);

// The values of a config that decide what the model computes, as text for the fingerprint.
void td_base_describe(const td_model_config *config, char *out, size_t room);

#endif
