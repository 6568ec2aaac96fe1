#include "runtime/data/row_parts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/progress.h"

enum {
    BUFFER_BYTES = 1 << 18,
    TICK_ROWS = 1 << 10,
    MAX_ROW_TOKENS = 1 << 28, // of a payload: a guard against parts that are not ours
};

typedef enum part_file {
    PART_ROWS,
    PART_PAYLOADS,
    PART_SIGNATURES,
    PART_FILES,
} part_file;

static const char *const suffixes[PART_FILES] = {
    [PART_ROWS] = "rows",
    [PART_PAYLOADS] = "payloads",
    [PART_SIGNATURES] = "signatures",
};

typedef struct block_header {
    int64_t block, n_rows;
} block_header;

struct td_part_writer {
    char name[TD_PATH_MAX]; // without the suffix
    FILE *files[PART_FILES];
};

typedef struct part {
    FILE *files[PART_FILES];
} part;

struct td_part_reader {
    char folder[TD_PATH_MAX];
    int n_ranks, with_payloads, with_signatures;
    part *parts;        // (n_ranks)
    int64_t next_block; // that begins when rows_left is 0
    int64_t rows_left;
    int64_t n_read;
    int rank; // whose block it is
    unsigned char *payload;
    size_t payload_room;
    uint32_t signature[TD_MINHASH_PERMUTATIONS];
};

static td_status fail_write(const td_part_writer *writer) {
    return td_fail(TD_ERR_IO, "%s: cannot write prepared rows: %s", writer->name, strerror(errno));
}

static td_status name_part(char out[TD_PATH_MAX], const char *folder, int rank) {
    char name[32];
    snprintf(name, sizeof name, "rank-%05d", rank);
    return td_path_join(out, folder, name);
}

// NULL: the caller says what could not be done.
static FILE *open_file(const char *name, part_file file, const char *mode) {
    char path[TD_PATH_MAX + 16];
    snprintf(path, sizeof path, "%s.%s", name, suffixes[file]);
    FILE *stream = fopen(path, mode);
    if (stream)
        (void)setvbuf(stream, NULL, _IOFBF, BUFFER_BYTES); // without memory for it: a smaller one
    return stream;
}

td_status td_part_writer_open(const char *folder, int rank, int with_signatures,
                              td_part_writer **out) {
    td_part_writer *writer = calloc(1, sizeof *writer);
    if (!writer)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to write prepared rows", folder);
    td_status status = name_part(writer->name, folder, rank);
    for (int file = 0; file < PART_FILES && status == TD_OK; file++) {
        if (file == PART_SIGNATURES && !with_signatures)
            continue;
        writer->files[file] = open_file(writer->name, (part_file)file, "wbxe");
        if (!writer->files[file])
            status = fail_write(writer);
    }
    if (status != TD_OK) {
        td_part_writer_abandon(writer);
        return status;
    }
    *out = writer;
    return TD_OK;
}

void td_part_writer_abandon(td_part_writer *writer) {
    if (!writer)
        return;
    for (int file = 0; file < PART_FILES; file++)
        if (writer->files[file])
            fclose(writer->files[file]);
    free(writer);
}

static td_status put(td_part_writer *writer, part_file file, const void *data, size_t bytes) {
    if (bytes > 0 && fwrite(data, 1, bytes, writer->files[file]) != bytes)
        return fail_write(writer);
    return TD_OK;
}

td_status td_part_writer_block(td_part_writer *writer, int64_t block, int64_t n_rows) {
    block_header header = {.block = block, .n_rows = n_rows};
    return put(writer, PART_ROWS, &header, sizeof header);
}

td_status td_part_writer_add(td_part_writer *writer, const td_part_row *row, const int32_t *tokens,
                             const uint8_t *trained, const char *message,
                             const uint32_t *signature) {
    size_t count = (size_t)row->count;
    TD_TRY(put(writer, PART_ROWS, row, sizeof *row));
    TD_TRY(put(writer, PART_PAYLOADS, tokens, count * sizeof *tokens));
    TD_TRY(put(writer, PART_PAYLOADS, trained, count));
    TD_TRY(put(writer, PART_PAYLOADS, message, (size_t)row->message_bytes));
    if (!row->has_signature)
        return TD_OK;
    return put(writer, PART_SIGNATURES, signature, TD_MINHASH_PERMUTATIONS * sizeof *signature);
}

// Rank 0 may be on another machine. A network file system hands over what was written when a file
// is closed; parts need not outlive a loss of power.
static td_status finish_file(const td_part_writer *writer, FILE **file) {
    FILE *stream = *file;
    *file = NULL;
    int done = fflush(stream) == 0;
    td_status status = done ? TD_OK : fail_write(writer);
    if (fclose(stream) != 0 && status == TD_OK)
        status = fail_write(writer);
    return status;
}

td_status td_part_writer_close(td_part_writer *writer) {
    td_status status = TD_OK;
    for (int file = 0; file < PART_FILES && status == TD_OK; file++)
        if (writer->files[file])
            status = finish_file(writer, &writer->files[file]);
    td_part_writer_abandon(writer);
    return status;
}

static td_status open_part(td_part_reader *self, int rank) {
    const int wanted[PART_FILES] = {1, self->with_payloads, self->with_signatures};
    char name[TD_PATH_MAX];
    TD_TRY(name_part(name, self->folder, rank));
    for (int file = 0; file < PART_FILES; file++) {
        if (!wanted[file])
            continue;
        self->parts[rank].files[file] = open_file(name, (part_file)file, "rbe");
        if (!self->parts[rank].files[file])
            return td_fail(TD_ERR_IO,
                           "%s.%s: cannot be read: %s; the output folder must be on a file system "
                           "that all ranks share",
                           name, suffixes[file], strerror(errno));
    }
    return TD_OK;
}

td_status td_part_reader_open(const char *folder, int n_ranks, int with_payloads,
                              int with_signatures, td_part_reader **out) {
    td_part_reader *self = calloc(1, sizeof *self);
    if (!self)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to read prepared rows", folder);
    self->n_ranks = n_ranks;
    self->with_payloads = with_payloads;
    self->with_signatures = with_signatures;
    self->parts = calloc((size_t)n_ranks, sizeof *self->parts);
    td_status status = self->parts ? TD_OK : td_fail(TD_ERR_MEMORY, "%s: no memory", folder);
    if (snprintf(self->folder, sizeof self->folder, "%s", folder) >= TD_PATH_MAX && status == TD_OK)
        status = td_fail(TD_ERR_USAGE, "path is too long: %.80s...", folder);
    for (int rank = 0; rank < n_ranks && status == TD_OK; rank++)
        status = open_part(self, rank);
    if (status != TD_OK) {
        td_part_reader_close(self);
        return status;
    }
    *out = self;
    return TD_OK;
}

void td_part_reader_close(td_part_reader *self) {
    if (!self)
        return;
    for (int rank = 0; self->parts && rank < self->n_ranks; rank++)
        for (int file = 0; file < PART_FILES; file++)
            if (self->parts[rank].files[file])
                fclose(self->parts[rank].files[file]);
    free(self->parts);
    free(self->payload);
    free(self);
}

static td_status fail_read(const td_part_reader *self, part_file file) {
    return td_fail(TD_ERR_IO,
                   "%s/rank-%05d.%s: prepared rows are damaged or incomplete: start again; is the "
                   "output folder on a file system that all ranks share?",
                   self->folder, self->rank, suffixes[file]);
}

static td_status get(td_part_reader *self, part_file file, void *out, size_t bytes) {
    if (bytes > 0 && fread(out, 1, bytes, self->parts[self->rank].files[file]) != bytes)
        return fail_read(self, file);
    return TD_OK;
}

// The block after the last one is the first of which no part knows.
static td_status next_block(td_part_reader *self, int *out_found) {
    block_header header;
    self->rank = (int)(self->next_block % self->n_ranks);
    FILE *rows = self->parts[self->rank].files[PART_ROWS];
    size_t got = fread(&header, 1, sizeof header, rows);
    *out_found = got > 0;
    if (got == 0 && !ferror(rows))
        return TD_OK;
    if (got != sizeof header || header.block != self->next_block || header.n_rows < 0)
        return fail_read(self, PART_ROWS);
    self->rows_left = header.n_rows;
    self->next_block++;
    return TD_OK;
}

static td_status reserve_payload(td_part_reader *self, size_t bytes) {
    if (bytes <= self->payload_room)
        return TD_OK;
    unsigned char *grown = realloc(self->payload, bytes * 2);
    if (!grown)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for a row of %zu bytes", self->folder, bytes);
    self->payload = grown;
    self->payload_room = bytes * 2;
    return TD_OK;
}

static td_status get_payload(td_part_reader *self, td_part_item *item) {
    size_t count = (size_t)item->row.count, message = (size_t)item->row.message_bytes;
    size_t bytes = count * (sizeof *item->tokens + 1) + message;
    TD_TRY(reserve_payload(self, bytes + 1));
    TD_TRY(get(self, PART_PAYLOADS, self->payload, bytes));
    self->payload[bytes] = '\0';
    if (count > 0) {
        item->tokens = (const int32_t *)(const void *)self->payload; // malloc's alignment
        item->trained = self->payload + count * sizeof *item->tokens;
    }
    if (message > 0)
        item->message = (const char *)self->payload + bytes - message;
    return TD_OK;
}

static int is_plausible(const td_part_row *row) {
    return row->count >= 0 && row->count <= MAX_ROW_TOKENS && row->message_bytes >= 0 &&
           row->message_bytes <= MAX_ROW_TOKENS && row->outcome < TD_OUTCOMES && row->file >= 0;
}

td_status td_part_reader_next(td_part_reader *self, td_part_item *out, int *out_found) {
    *out_found = 1;
    *out = (td_part_item){0};
    while (self->rows_left == 0) {
        TD_TRY(next_block(self, out_found));
        if (!*out_found)
            return TD_OK;
    }
    self->rows_left--;
    TD_TRY(get(self, PART_ROWS, &out->row, sizeof out->row));
    if (!is_plausible(&out->row))
        return fail_read(self, PART_ROWS);
    if (self->with_payloads)
        TD_TRY(get_payload(self, out));
    if (self->with_signatures && out->row.has_signature) {
        TD_TRY(get(self, PART_SIGNATURES, self->signature, sizeof self->signature));
        out->signature = self->signature;
    }
    if (++self->n_read % TICK_ROWS == 0)
        td_progress_tick();
    return TD_OK;
}
