// Safetensors files: reading a folder of them by tensor name, and writing one.
//
// Format: 8 bytes little-endian header length, JSON header {"name": {"dtype", "shape",
// "data_offsets": [begin, end]}}, data. Nothing in a file is trusted: length, offsets, overlaps,
// gaps, dtype, shape and size are checked before use.
#ifndef TANDEM_MODEL_SAFETENSORS_H
#define TANDEM_MODEL_SAFETENSORS_H

#include "runtime/core/hash.h"
#include "runtime/core/tensor.h"

typedef struct td_safetensors td_safetensors;

// A folder with model.safetensors or model.safetensors.index.json (whose files must be plain names
// in the folder), or the path of one .safetensors file. With both, the single file counts; the
// index decides which tensors there are and in which file. Files are mapped; views stay valid until
// close and are read-only. Their data may be unaligned: read it by memcpy or td_convert_to_f32().
// TD_ERR_DATA names file, tensor and what is wrong.
td_status td_safetensors_open(const char *path, td_safetensors **out);
void td_safetensors_close(td_safetensors *files);

// Tensors of a td_dtype. A file may hold others (F64, BOOL, ...): they are checked, and not seen
// here.
int64_t td_safetensors_count(const td_safetensors *files);
const char *td_safetensors_name(const td_safetensors *files, int64_t index); // sorted by name
td_tensor td_safetensors_view(const td_safetensors *files, int64_t index);
// 0 when there is no such tensor.
int td_safetensors_find(const td_safetensors *files, const char *name, td_tensor *out);
// As find, but TD_ERR_DATA when missing, when the shape differs, or when the dtype is not F32, F16
// or BF16.
td_status td_safetensors_require(const td_safetensors *files, const char *name, int n_dims,
                                 const int64_t *shape, td_tensor *out);
// Adds what tells these files from others without reading them: names, sizes, times of change,
// inodes, and their lists of tensors. As the files are now: TD_ERR_DATA when one is gone.
td_status td_safetensors_identify(const td_safetensors *files, td_hasher *hasher);
// Has the system map pages of a view that will be read at once, which reads them where they are not
// in memory. Any thread; only advice.
void td_safetensors_fetch(const void *data, size_t bytes);
// Lets the system drop the mapped pages of a tensor that will not be read again soon.
void td_safetensors_forget(const td_safetensors *files, const td_tensor *view);

typedef struct td_named_tensor {
    const char *name;
    td_tensor tensor; // host memory
} td_named_tensor;

// Writes to a temporary, fsync, rename. Metadata {"format": "pt"}. Tensors in the given order; data
// 8-byte aligned.
td_status td_safetensors_write(const char *path, const td_named_tensor *tensors, int64_t count);

// The same in pieces, for tensors that are not in memory together: names, dtypes and shapes first
// (their data is not looked at), then all bytes in that order. Only a committed file appears under
// its name; destroy removes one that was not.
typedef struct td_safetensors_writer td_safetensors_writer;
td_status td_safetensors_writer_create(const char *path, const td_named_tensor *tensors,
                                       int64_t count, td_safetensors_writer **out);
td_status td_safetensors_writer_append(td_safetensors_writer *writer, const void *data,
                                       size_t bytes);
td_status td_safetensors_writer_commit(td_safetensors_writer *writer);
void td_safetensors_writer_destroy(td_safetensors_writer *writer);

#endif
