#include "runtime/data/store_jsonl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/progress.h"
#include "runtime/data/store.h"

enum { NOT_TRAINED = -100, TICK_ROWS = 1 << 10 };

typedef struct row_buffer {
    int32_t *tokens;  // (longest row)
    uint8_t *trained; // (longest row)
} row_buffer;

static td_status fail_write(const char *path) {
    return td_fail(TD_ERR_IO, "%s: cannot write: %s", path, strerror(errno));
}

static td_status allocate(const td_store *store, row_buffer *out) {
    const int64_t *offsets = td_store_offsets(store);
    int64_t longest = 1;
    for (int64_t row = 0; row < td_store_rows(store); row++)
        if (offsets[row + 1] - offsets[row] > longest)
            longest = offsets[row + 1] - offsets[row];
    out->tokens = malloc((size_t)longest * sizeof *out->tokens);
    out->trained = malloc((size_t)longest);
    return out->tokens && out->trained
               ? TD_OK
               : td_fail(TD_ERR_MEMORY, "no memory for a row of %lld", (long long)longest);
}

static void print_row(const row_buffer *row, int64_t count, FILE *file) {
    fputs("{\"input_ids\": [", file);
    for (int64_t i = 0; i < count; i++)
        fprintf(file, "%s%d", i ? ", " : "", (int)row->tokens[i]);
    fputs("], \"labels\": [", file);
    for (int64_t i = 0; i < count; i++)
        fprintf(file, "%s%d", i ? ", " : "", row->trained[i] ? (int)row->tokens[i] : NOT_TRAINED);
    fputs("]}\n", file);
}

static td_status print_rows(td_store *store, row_buffer *buffer, const char *path, FILE *file) {
    const int64_t *offsets = td_store_offsets(store);
    for (int64_t row = 0; row < td_store_rows(store); row++) {
        TD_TRY(td_store_read_row(store, row, buffer->tokens, buffer->trained));
        print_row(buffer, offsets[row + 1] - offsets[row], file);
        if (ferror(file))
            return fail_write(path);
        if (row % TICK_ROWS == 0)
            td_progress_tick();
    }
    return fflush(file) == 0 && fsync(fileno(file)) == 0 ? TD_OK : fail_write(path);
}

static td_status write_file(td_store *store, const char *path) {
    row_buffer buffer = {0};
    unlink(path); // what a killed run left; a link is not followed
    FILE *file = fopen(path, "wbxe");
    if (!file)
        return fail_write(path);
    td_status status = allocate(store, &buffer);
    if (status == TD_OK)
        status = print_rows(store, &buffer, path, file);
    if (fclose(file) != 0 && status == TD_OK)
        status = fail_write(path);
    free(buffer.tokens);
    free(buffer.trained);
    return status;
}

td_status td_store_write_jsonl(const char *store_path, const char *path) {
    char temporary[TD_PATH_MAX];
    td_store *store = NULL;
    if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "path is too long: %.80s...", path);
    TD_TRY(td_store_open(store_path, &store));
    td_status status = write_file(store, temporary);
    td_store_close(store);
    if (status == TD_OK && rename(temporary, path) != 0)
        status = td_fail(TD_ERR_IO, "%s: cannot replace: %s", path, strerror(errno));
    if (status != TD_OK)
        unlink(temporary);
    return status;
}
