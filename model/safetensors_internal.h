// The list of tensors of one safetensors file, from its bytes.
#ifndef TANDEM_MODEL_SAFETENSORS_INTERNAL_H
#define TANDEM_MODEL_SAFETENSORS_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/tensor.h"

// Header length that the reference implementation accepts at most.
#define TD_SAFETENSORS_MAX_HEADER_BYTES ((size_t)100000000)

typedef struct td_safetensors_entry {
    char *name;        // owned
    const char *dtype; // as in the file, static
    size_t item_bytes;
    int is_viewable;   // the dtype is one of td_dtype
    td_tensor tensor;  // data points into the file; may be unaligned
    size_t begin, end; // bytes within the data
} td_safetensors_entry;

typedef struct td_safetensors_entries {
    td_safetensors_entry *items; // sorted by name
    int64_t count;
} td_safetensors_entries;

// Everything in `data` is checked; `where` is what messages call the file. Views point into `data`.
// fini also after failure.
td_status td_safetensors_parse(const char *where, const unsigned char *data, size_t bytes,
                               td_safetensors_entries *out);
void td_safetensors_entries_fini(td_safetensors_entries *entries);
// NULL when there is none.
const td_safetensors_entry *td_safetensors_entries_find(const td_safetensors_entries *entries,
                                                        const char *name);

// Refuses JSON with so many values that its tree would take gigabytes.
td_status td_safetensors_check_plausible(const char *where, const char *text, size_t bytes);

// model.safetensors.index.json: pairs of tensor and file, sorted by tensor.
typedef struct td_safetensors_index {
    struct {
        char *tensor;
        int file; // in files
    } * items;
    int64_t count;
    char **files; // sorted, plain names
    int n_files;
} td_safetensors_index;

td_status td_safetensors_index_parse(const char *where, const char *text, size_t bytes,
                                     td_safetensors_index *out);
void td_safetensors_index_fini(td_safetensors_index *index);

#endif
