#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/data/duplicates_internal.h"

enum {
    COLUMN_BYTES = TD_DUPLICATES_BLOCK * sizeof(uint64_t),
    SIGNATURE_BYTES = TD_MINHASH_PERMUTATIONS * sizeof(uint32_t),
};

static size_t block_bytes(const td_duplicates_file *file) {
    size_t signatures = file->has_signatures ? (size_t)TD_DUPLICATES_BLOCK * SIGNATURE_BYTES : 0;
    return (size_t)file->n_columns * COLUMN_BYTES + signatures;
}

static td_status open_unlinked(const char *path, int *out) {
    *out = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (*out < 0)
        return td_fail(TD_ERR_IO, "%s: cannot make the temporary file for finding duplicates: %s",
                       path, strerror(errno));
    unlink(path);
    return TD_OK;
}

td_status td_duplicates_file_create(td_duplicates_file *file, const char *path, int n_columns,
                                    int has_signatures) {
    td_status status;
    *file =
        (td_duplicates_file){.file = -1, .n_columns = n_columns, .has_signatures = has_signatures};
    file->path = strdup(path);
    file->block = calloc(1, block_bytes(file));
    if (!file->path || !file->block)
        status = td_fail(TD_ERR_MEMORY, "no memory (%zu bytes) to look for duplicates",
                         block_bytes(file));
    else
        status = open_unlinked(path, &file->file);
    if (status != TD_OK)
        td_duplicates_file_destroy(file);
    return status;
}

void td_duplicates_file_destroy(td_duplicates_file *file) {
    if (file->path && file->file >= 0)
        close(file->file);
    free(file->path);
    free(file->block);
    *file = (td_duplicates_file){.file = -1};
}

static td_status write_block(td_duplicates_file *file) {
    const unsigned char *next = file->block;
    size_t left = block_bytes(file);
    while (left > 0) {
        ssize_t wrote = write(file->file, next, left);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote < 0)
            return td_fail(TD_ERR_IO,
                           "%s: cannot write the temporary file for finding duplicates at row "
                           "%llu (%zu bytes per row): %s",
                           file->path, (unsigned long long)file->n_rows,
                           block_bytes(file) / TD_DUPLICATES_BLOCK, strerror(errno));
        next += wrote;
        left -= (size_t)wrote;
    }
    return TD_OK;
}

td_status td_duplicates_file_add(td_duplicates_file *file, const uint64_t *columns,
                                 const uint32_t *signature) {
    size_t place = file->n_rows % TD_DUPLICATES_BLOCK;
    unsigned char *signatures = file->block + (size_t)file->n_columns * COLUMN_BYTES;
    for (int i = 0; i < file->n_columns; i++)
        memcpy(file->block + (size_t)i * COLUMN_BYTES + place * sizeof *columns, &columns[i],
               sizeof *columns);
    if (signature && file->has_signatures)
        memcpy(signatures + place * SIGNATURE_BYTES, signature, SIGNATURE_BYTES);
    file->n_rows++;
    return place + 1 == TD_DUPLICATES_BLOCK ? write_block(file) : TD_OK;
}

td_status td_duplicates_file_finish(td_duplicates_file *file) {
    if (file->n_rows % TD_DUPLICATES_BLOCK != 0)
        TD_TRY(write_block(file));
    free(file->block);
    file->block = NULL;
    return TD_OK;
}

static td_status read_at(const td_duplicates_file *file, uint64_t offset, void *out, size_t bytes) {
    unsigned char *next = out;
    while (bytes > 0) {
        ssize_t got = pread(file->file, next, bytes, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return td_fail(TD_ERR_IO,
                           "%s: cannot read the temporary file for finding duplicates: %s",
                           file->path, got < 0 ? strerror(errno) : "it ends too early");
        next += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return TD_OK;
}

td_status td_duplicates_file_read(const td_duplicates_file *file, int column, uint64_t first_row,
                                  uint64_t out[TD_DUPLICATES_BLOCK], size_t *out_count) {
    uint64_t offset = first_row / TD_DUPLICATES_BLOCK * block_bytes(file);
    uint64_t left = file->n_rows - first_row;
    size_t count = left < TD_DUPLICATES_BLOCK ? (size_t)left : TD_DUPLICATES_BLOCK;
    TD_TRY(read_at(file, offset + (uint64_t)column * COLUMN_BYTES, out, count * sizeof *out));
    *out_count = count;
    return TD_OK;
}

td_status td_duplicates_file_signature(const td_duplicates_file *file, uint32_t row,
                                       uint32_t out[TD_MINHASH_PERMUTATIONS]) {
    uint64_t offset = row / TD_DUPLICATES_BLOCK * (uint64_t)block_bytes(file) +
                      (uint64_t)file->n_columns * COLUMN_BYTES +
                      (uint64_t)(row % TD_DUPLICATES_BLOCK) * SIGNATURE_BYTES;
    return read_at(file, offset, out, SIGNATURE_BYTES);
}
