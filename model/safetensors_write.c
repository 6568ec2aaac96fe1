#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/safetensors.h"
#include "model/safetensors_internal.h"
#include "runtime/core/files.h"

enum { LENGTH_BYTES = 8 };

static td_status fail_io(const char *path, const char *verb) {
    return td_fail(TD_ERR_IO, "%s: cannot %s: %s", path, verb, strerror(errno));
}

static td_status data_bytes(const td_named_tensor *named, size_t *out) {
    int64_t elements;
    TD_TRY(td_tensor_elements(&named->tensor, &elements));
    *out = td_mul_bytes((size_t)elements, td_dtype_bytes(named->tensor.dtype));
    if (*out == SIZE_MAX)
        return td_fail(TD_ERR_INTERNAL, "tensor \"%s\" is too large to be written", named->name);
    return TD_OK;
}

static void print_string(FILE *stream, const char *text) {
    fputc('"', stream);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(stream, "\\%c", *c);
        else if (*c < 0x20)
            fprintf(stream, "\\u%04x", *c);
        else
            fputc(*c, stream);
    }
    fputc('"', stream);
}

static td_status print_tensor(FILE *stream, const td_named_tensor *named, size_t *offset) {
    size_t bytes;
    TD_TRY(data_bytes(named, &bytes));
    fputc(',', stream);
    print_string(stream, named->name);
    fprintf(stream, ":{\"dtype\":\"%s\",\"shape\":[", td_dtype_name(named->tensor.dtype));
    for (int i = 0; i < named->tensor.n_dims; i++)
        fprintf(stream, "%s%lld", i ? "," : "", (long long)named->tensor.shape[i]);
    fprintf(stream, "],\"data_offsets\":[%zu,%zu]}", *offset, *offset + bytes);
    *offset += bytes;
    return TD_OK;
}

// Spaces at the end make the data begin at a multiple of 8.
static td_status print_header(FILE *stream, const td_named_tensor *tensors, int64_t count) {
    size_t offset = 0;
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", stream);
    for (int64_t i = 0; i < count; i++)
        TD_TRY(print_tensor(stream, &tensors[i], &offset));
    fputc('}', stream);
    while (ftell(stream) % LENGTH_BYTES != 0)
        fputc(' ', stream);
    return TD_OK;
}

// The length and the header; the caller frees.
static td_status build_header(const char *path, const td_named_tensor *tensors, int64_t count,
                              char **out, size_t *out_bytes) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    if (!stream)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its header", path);
    td_status status = TD_OK;
    for (int i = 0; i < LENGTH_BYTES; i++)
        fputc(0, stream);
    status = print_header(stream, tensors, count);
    int failed = ferror(stream);
    if ((fclose(stream) != 0 || failed) && status == TD_OK)
        status = td_fail(TD_ERR_MEMORY, "%s: no memory for its header", path);
    if (status == TD_OK && bytes - LENGTH_BYTES > TD_SAFETENSORS_MAX_HEADER_BYTES)
        status = td_fail(TD_ERR_INTERNAL, "%s: the header would be too long", path);
    if (status != TD_OK) {
        free(text);
        return status;
    }
    for (int i = 0; i < LENGTH_BYTES; i++)
        text[i] = (char)((uint64_t)(bytes - LENGTH_BYTES) >> (8 * i));
    *out = text;
    *out_bytes = bytes;
    return TD_OK;
}

struct td_safetensors_writer {
    char path[TD_PATH_MAX];
    char temporary[TD_PATH_MAX];
    int file; // -1 when closed
    uint64_t left_bytes;
};

static td_status count_bytes(const td_named_tensor *tensors, int64_t count, uint64_t *out) {
    *out = 0;
    for (int64_t i = 0; i < count; i++) {
        size_t bytes;
        TD_TRY(data_bytes(&tensors[i], &bytes));
        *out += bytes;
    }
    return TD_OK;
}

static td_status write_header(const td_safetensors_writer *writer, const td_named_tensor *tensors,
                              int64_t count) {
    char *header = NULL;
    size_t bytes = 0;
    TD_TRY(build_header(writer->path, tensors, count, &header, &bytes));
    td_status status = td_file_write_all(writer->file, writer->path, header, bytes);
    free(header);
    return status;
}

static td_status begin(td_safetensors_writer *writer, const char *path,
                       const td_named_tensor *tensors, int64_t count) {
    writer->file = -1;
    if (snprintf(writer->path, sizeof writer->path, "%s", path) >= (int)sizeof writer->path)
        return td_fail(TD_ERR_USAGE, "path is longer than %d characters: %.80s...", TD_PATH_MAX - 1,
                       path);
    TD_TRY(count_bytes(tensors, count, &writer->left_bytes));
    td_status status = td_file_create_beside(path, writer->temporary, &writer->file);
    if (status != TD_OK) {
        writer->temporary[0] = '\0';
        return status;
    }
    return write_header(writer, tensors, count);
}

td_status td_safetensors_writer_create(const char *path, const td_named_tensor *tensors,
                                       int64_t count, td_safetensors_writer **out) {
    td_safetensors_writer *writer = calloc(1, sizeof *writer);
    if (!writer)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to write it", path);
    td_status status = begin(writer, path, tensors, count);
    if (status != TD_OK) {
        td_safetensors_writer_destroy(writer);
        return status;
    }
    *out = writer;
    return TD_OK;
}

td_status td_safetensors_writer_append(td_safetensors_writer *writer, const void *data,
                                       size_t bytes) {
    if (bytes > writer->left_bytes)
        return td_fail(TD_ERR_INTERNAL, "%s: more data than its tensors take", writer->path);
    writer->left_bytes -= bytes;
    return td_file_write_all(writer->file, writer->path, data, bytes);
}

static td_status sync_parent(const char *path) {
    char parent[TD_PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (!slash)
        return td_file_sync(".");
    snprintf(parent, sizeof parent, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    return td_file_sync(parent);
}

td_status td_safetensors_writer_commit(td_safetensors_writer *writer) {
    if (writer->left_bytes != 0)
        return td_fail(TD_ERR_INTERNAL, "%s: %llu bytes of its tensors were not written",
                       writer->path, (unsigned long long)writer->left_bytes);
    if (fsync(writer->file) != 0)
        return fail_io(writer->temporary, "flush to disk");
    int file = writer->file;
    writer->file = -1;
    if (close(file) != 0)
        return fail_io(writer->temporary, "close");
    if (rename(writer->temporary, writer->path) != 0)
        return fail_io(writer->path, "replace");
    writer->temporary[0] = '\0';
    return sync_parent(writer->path);
}

void td_safetensors_writer_destroy(td_safetensors_writer *writer) {
    if (!writer)
        return;
    if (writer->file >= 0)
        close(writer->file);
    if (writer->temporary[0])
        unlink(writer->temporary);
    free(writer);
}

static td_status write_data(td_safetensors_writer *writer, const td_named_tensor *tensors,
                            int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        size_t bytes;
        TD_TRY(data_bytes(&tensors[i], &bytes));
        TD_TRY(td_safetensors_writer_append(writer, tensors[i].tensor.data, bytes));
    }
    return td_safetensors_writer_commit(writer);
}

td_status td_safetensors_write(const char *path, const td_named_tensor *tensors, int64_t count) {
    td_safetensors_writer *writer;
    TD_TRY(td_safetensors_writer_create(path, tensors, count, &writer));
    td_status status = write_data(writer, tensors, count);
    td_safetensors_writer_destroy(writer);
    return status;
}
