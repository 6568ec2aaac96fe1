// libFuzzer target: a safetensors file, or (when it begins with "{") the index of a folder with two
// files. Whatever it says, it is refused or its tensors can be found by name and all of their
// values be read.
#include <stdlib.h>
#include <string.h>

#include "model/safetensors.h"
#include "model/safetensors_internal.h"
#include "tests/fuzz/support/fuzz.h"

// Tensors "a" and "b", and tensor "c".
static const char shard_1[] = "\x60\0\0\0\0\0\0\0"
                              "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                              "\"b\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[4,6]}}"
                              "\0\0\200?\0<";
static const char shard_2[] = "\x2f\0\0\0\0\0\0\0"
                              "{\"c\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}"
                              "xyz";

static void make_shards(void) {
    static int is_made;
    if (is_made)
        return;
    is_made = 1;
    fuzz_write("1.safetensors", shard_1, sizeof shard_1 - 1);
    fuzz_write("2.safetensors", shard_2, sizeof shard_2 - 1);
}

static void read_values(const td_tensor *view) {
    int64_t elements = 0;
    fuzz_require(td_tensor_elements(view, &elements) == TD_OK, "a tensor has a size");
    size_t bytes = (size_t)elements * td_dtype_bytes(view->dtype);
    float *values = malloc(((size_t)elements + 1) * sizeof *values);
    unsigned char *copy = malloc(bytes + 1);
    fuzz_require(values && copy, "there is memory");
    if (bytes > 0)
        memcpy(copy, view->data, bytes);
    if (view->dtype == TD_F32 || view->dtype == TD_F16 || view->dtype == TD_BF16)
        td_convert_to_f32(view->data, view->dtype, elements, values);
    free(copy);
    free(values);
}

// In memory of the exact size, where a sanitizer sees a read beyond it.
static td_status check_parse(const uint8_t *data, size_t size) {
    td_safetensors_entries entries;
    td_status status = td_safetensors_parse("file", data, size, &entries);
    for (int64_t i = 0; status == TD_OK && i < entries.count; i++) {
        const td_safetensors_entry *entry = &entries.items[i];
        fuzz_require(td_safetensors_entries_find(&entries, entry->name) == entry, "by name");
        fuzz_require(i == 0 || strcmp(entries.items[i - 1].name, entry->name) < 0, "in order");
        fuzz_require(entry->begin <= entry->end && entry->end <= size, "within the file");
        if (entry->is_viewable)
            read_values(&entry->tensor);
    }
    td_safetensors_entries_fini(&entries);
    return status;
}

static void check_files(const td_safetensors *files) {
    for (int64_t i = 0; i < td_safetensors_count(files); i++) {
        td_tensor view = td_safetensors_view(files, i), found, required;
        const char *name = td_safetensors_name(files, i);
        fuzz_require(td_safetensors_find(files, name, &found) && found.data == view.data,
                     "a tensor is found by its name");
        td_status status = td_safetensors_require(files, name, view.n_dims, view.shape, &required);
        int is_float = view.dtype == TD_F32 || view.dtype == TD_F16 || view.dtype == TD_BF16;
        fuzz_require((status == TD_OK) == is_float, "a tensor of floats is given");
        td_error_clear();
        fuzz_require(td_safetensors_require(files, name, 1, (int64_t[]){-1}, &required) != TD_OK,
                     "a tensor of another shape is not");
        td_error_clear();
        read_values(&view);
        td_safetensors_forget(files, &view);
    }
}

// Through the file system, as the program does.
static td_status check_open(const char *name, const uint8_t *data, size_t size) {
    td_safetensors *files = NULL;
    fuzz_write(name, data, size);
    const char *path = strstr(name, "index") ? fuzz_folder() : fuzz_path(name);
    td_status status = td_safetensors_open(path, &files);
    fuzz_require((status == TD_OK) == (files != NULL), "a refused file gives nothing");
    fuzz_require(status == TD_OK || td_error_message()[0], "a refusal says why");
    td_error_clear();
    if (files)
        check_files(files);
    td_safetensors_close(files);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    make_shards();
    if (size > 0 && data[0] == '{') {
        (void)check_open("model.safetensors.index.json", data, size);
        return 0;
    }
    td_status parsed = check_parse(data, size);
    td_error_clear();
    fuzz_require(check_open("file.safetensors", data, size) == parsed || size == 0,
                 "a file is taken or refused as its bytes are");
    return 0;
}
