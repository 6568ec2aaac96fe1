// NF4 weights as bitsandbytes keeps them in model folders: what stands beside `<layer>.weight`.
//
//   <layer>.weight                               U8 (ceil(n / 2), 1), first code in the high half
//   <layer>.weight.absmax                        F32 (blocks), or U8 when nested
//   <layer>.weight.quant_map                     F32 (16)
//   <layer>.weight.nested_absmax                 F32 (nested blocks), nested only
//   <layer>.weight.nested_quant_map              F32 (256), nested only
//   <layer>.weight.quant_state.bitsandbytes__nf4 U8, the bytes of a JSON object
#ifndef TANDEM_MODEL_NF4_FOLDER_H
#define TANDEM_MODEL_NF4_FOLDER_H

#include "kernels/matrix.h"
#include "model/safetensors.h"

// Views into the files; unaligned.
typedef struct td_nf4_stored {
    td_tensor codes;         // U8 (ceil(n / 2), 1)
    td_tensor absmax;        // F32 (blocks), or U8 (blocks)
    td_tensor nested_absmax; // F32 (nested blocks)
    int is_nested;
    float nested_map[256];
    float nested_offset;
    td_dtype dtype; // what it was quantized from: F32, F16 or BF16
} td_nf4_stored;

// The weight `name` (rows, cols). TD_ERR_DATA when a part is missing, has another shape or dtype,
// or when the quantization is another one (FP4, a block size other than 64 and 256, another table).
// `is_nested` is what config.json says of the whole folder.
td_status td_nf4_stored_find(const td_safetensors *files, const char *name, int64_t rows,
                             int64_t cols, int is_nested, td_nf4_stored *out);

// 1 when `name` stands beside the weight of a layer: "<layer>.weight.absmax" and so on.
int td_nf4_is_part(const char *name);

// What a quantized weight is written as; the data of the tensors belongs to the caller.
enum { TD_NF4_PARTS_MAX = 6, TD_NF4_PART_NAME_CHARS = 160, TD_NF4_STATE_BYTES = 320 };
typedef struct td_nf4_parts {
    int count;
    char names[TD_NF4_PARTS_MAX][TD_NF4_PART_NAME_CHARS];
    td_tensor tensors[TD_NF4_PARTS_MAX];
    float quant_map[16];
    float nested_map[256];
    char state[TD_NF4_STATE_BYTES]; // JSON
} td_nf4_parts;

// Names, dtypes and shapes for a weight (rows, cols) of `dtype`. The state is padded with spaces to
// a length that does not depend on the offset, which is not known when a file is begun.
void td_nf4_parts_plan(const char *name, int64_t rows, int64_t cols, td_dtype dtype, int is_nested,
                       td_nf4_parts *out);
// Sets all data pointers, of `matrix` (host memory) and of `parts` itself, which stays in place.
void td_nf4_parts_fill(td_nf4_parts *parts, const td_matrix *matrix, td_dtype dtype);

#endif
