// The parts of an export: the folder that is written, the folder that is read, its config.json.
#ifndef TANDEM_MODEL_EXPORT_INTERNAL_H
#define TANDEM_MODEL_EXPORT_INTERNAL_H

#include "model/base_internal.h"
#include "model/export.h"
#include "model/nf4_folder.h"

// What changes in config.json.
typedef struct td_export_config {
    const char *dtype;        // "bfloat16"; NULL: as it is
    const char *quantization; // JSON of "quantization_config"; NULL: none
} td_export_config;

typedef struct td_export_folder td_export_folder;

// Names, dtypes and shapes of all tensors, whose data is not looked at. The list must stay.
td_status td_export_folder_create(const char *path, uint64_t max_file_bytes,
                                  const td_named_tensor *tensors, int64_t count,
                                  td_export_folder **out);
// The bytes of the tensors in that order, in any pieces that end where a tensor does.
td_status td_export_folder_append(td_export_folder *folder, const void *data, size_t bytes);
// Adds config.json, tokenizer and the like from `source`, and gives the folder its name.
td_status td_export_folder_commit(td_export_folder *folder, const char *source,
                                  const td_export_config *config, td_export_report *out);
// Removes a folder that was not committed.
void td_export_folder_destroy(td_export_folder *folder);

// config.json with the changes (export_config.c). Values that do not change keep their spelling:
// 500000.0 stays a number with a point. The caller frees.
td_status td_export_config_edit(const char *path, const td_export_config *changes, char **out);

enum { TD_EXPORT_SLICE_ELEMENTS = 1 << 20 };

typedef struct td_export_source {
    const char *folder;
    td_model_config config;
    td_safetensors *files;
    td_base_item *linears; // of the blocks, sorted by name
    int64_t n_linears;
    float *slice; // (slice_elements): TD_EXPORT_SLICE_ELEMENTS, or a longer row
    int64_t slice_elements;
    // One linear layer in NF4.
    uint8_t *codes, *absmax_codes;                  // (ceil(n / 2)), (blocks)
    float *absmax, *nested_absmax, nested_map[256]; // (blocks), (ceil(blocks / 256))
    td_op_context context;                          // with a workspace of its own
} td_export_source;

// Checks that the folder is a whole model. fini also after failure.
td_status td_export_source_open(const char *folder, const td_op_context *context,
                                td_export_source *out);
void td_export_source_fini(td_export_source *source);
// NULL when the tensor is no linear layer of a block.
const td_base_item *td_export_source_linear(const td_export_source *source, const char *name);
// 1 for what has no place in the new folder: the parts of NF4 weights, a copy of a tied head.
int td_export_source_skips(const td_export_source *source, const char *name);
// Elements [begin, begin + count) of a tensor as fp32; at most slice_elements.
void td_export_source_read(const td_export_source *source, const td_tensor *view, int64_t begin,
                           int64_t count, float *out);
// A whole tensor as it is, in slices.
td_status td_export_source_copy(const td_export_source *source, const td_tensor *view,
                                td_export_folder *to);
// The layer in NF4, quantized or as the folder holds it; valid until the next call.
td_status td_export_source_nf4(td_export_source *source, const td_base_item *item,
                               int double_quantize, td_matrix *out);

const char *td_export_torch_dtype(td_dtype dtype); // "bfloat16"

#endif
