// Whole model folders out of whole model folders: an adapter merged into the weights, or the
// weights quantized to NF4 in the format of bitsandbytes.
//
// Tensors are read, changed and written one after the other, in slices: memory is the adapter, a
// few slices and the 4-bit form of one matrix, whatever the size of the model. A folder is made
// under a temporary name, flushed and renamed; what exists is never written over.
#ifndef TANDEM_MODEL_EXPORT_H
#define TANDEM_MODEL_EXPORT_H

#include "kernels/ops.h"
#include "model/safetensors.h"

typedef struct td_export_report {
    int n_files;
    int64_t n_tensors; // written
    int64_t n_changed; // weights that were merged or quantized
    uint64_t bytes;    // of all tensors
} td_export_report;

typedef enum td_merge_dtype {
    TD_MERGE_SAME, // every tensor keeps its dtype; NF4 becomes what it was quantized from
    TD_MERGE_BF16,
    TD_MERGE_F32,
} td_merge_dtype;

typedef struct td_merge_options {
    const char *model, *adapter, *output; // folders
    td_merge_dtype dtype;
    // Merges into NF4 quantized and back, the base that a QLoRA adapter was trained on. A folder
    // that holds NF4 is always merged so.
    int dequantized;
    int double_quantize; // for `dequantized`
    uint64_t max_file_bytes;
} td_merge_options;

// W' = W + s B A in fp32, rounded once to the dtype. TD_ERR_DATA when the adapter is for another
// base; TD_ERR_USAGE when `output` exists. The context is the CPU's.
td_status td_export_merged(const td_merge_options *options, const td_op_context *context,
                           td_export_report *out);

typedef struct td_quantize_options {
    const char *model, *output;
    int double_quantize;
    uint64_t max_file_bytes;
} td_quantize_options;

// The linear layers of the blocks as NF4, everything else as it is.
td_status td_export_nf4(const td_quantize_options *options, const td_op_context *context,
                        td_export_report *out);

#endif
