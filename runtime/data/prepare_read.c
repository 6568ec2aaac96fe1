// Every rank reads all lines, keeps those of its blocks, and turns them into tokens on its threads.
//
// Reading is fast beside tokenizing, and reading everything everywhere needs no index and works for
// compressed files. Blocks depend on the files only. While the threads work on one batch of blocks,
// the first of them reads the next. After a round of blocks the ranks tell each other how they
// fare, so that an error ends the work of all of them soon, and it is the first row's error on any
// number of ranks.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/data/lines.h"
#include "runtime/data/prepare_internal.h"

enum {
    BLOCK_LINES = 128,
    BLOCK_BYTES = 1 << 20, // a block ends with the line that reaches this
    ROUND_BLOCKS = 64,     // of each rank
    BATCH_BYTES = 8 << 20, // a batch ends with the block that reaches this, or
    LINES_PER_THREAD = 64, // as many lines for each thread
    MAX_BATCH_LINES = 4096,
    MAX_LINE_BYTES = 64 << 20,
    MESSAGE_BYTES = 8 << 10,
    KEPT_MESSAGE_BYTES = 500, // of a row that is skipped
};

// One line of a batch and what became of it.
typedef struct batch_line {
    size_t begin, bytes; // in the batch's text
    int is_too_long;
    int64_t index; // among all rows
    td_part_row out;
    td_row row;
    uint32_t *signature; // (TD_MINHASH_PERMUTATIONS) of the batch, NULL without
    td_status status;
    char *message; // of a failure, owned
} batch_line;

typedef struct batch_block {
    int64_t block;
    int n_lines;
} batch_block;

typedef struct batch {
    batch_line *lines; // (room)
    int n_lines, room, wanted;
    batch_block *blocks; // (room)
    int n_blocks;
    uint32_t *signatures; // (room, TD_MINHASH_PERMUTATIONS)
    char *text;
    size_t text_bytes, text_room;
    int64_t rows_before_next; // rows and bytes of all files when the batch was full
    uint64_t bytes_before_next;
    td_status status; // of reading on after its lines
    char message[MESSAGE_BYTES];
} batch;

// What a rank tells the others at the end of a round.
typedef struct report {
    int64_t failed_row; // INT64_MAX: none
    int64_t rows;
    int32_t status, is_at_end;
    char message[MESSAGE_BYTES];
} report;

typedef struct reading {
    td_preparation *preparation;
    td_part_writer *writer;
    td_line_reader lines;
    int is_open;
    int file; // whose lines are read
    int64_t block;
    int block_lines;
    size_t block_bytes;
    int64_t rows;
    int round_ends, is_at_end;
    report failure; // the first of this rank
    batch batches[2];
    uint64_t bytes, total_bytes; // total 0: not known
    double began, shown;
    int64_t rows_shown;
} reading;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// The first failure of this rank ends its work, so there is no second.
static void note_failure(reading *self, int64_t row, td_status status, const char *message) {
    self->failure.failed_row = row;
    self->failure.status = (int32_t)status;
    snprintf(self->failure.message, sizeof self->failure.message, "%s", message);
}

static int has_failed(const reading *self) {
    return self->failure.failed_row != INT64_MAX;
}

static int is_mine(const reading *self) {
    const td_prepare_team *team = self->preparation->team;
    return self->block % team->size == team->rank;
}

static int is_blank(const td_line *line) {
    for (size_t i = 0; i < line->bytes; i++)
        if (line->text[i] != ' ' && line->text[i] != '\t' && line->text[i] != '\r')
            return 0;
    return !line->is_too_long;
}

static td_status copy_text(batch *out, const td_line *line) {
    size_t needed = out->text_bytes + line->bytes + 1;
    if (needed > out->text_room) {
        size_t room = needed + needed / 2;
        char *grown = realloc(out->text, room);
        if (!grown)
            return td_fail(TD_ERR_MEMORY, "no memory for %zu bytes of rows", room);
        out->text = grown;
        out->text_room = room;
    }
    memcpy(out->text + out->text_bytes, line->text, line->bytes);
    out->text[needed - 1] = '\0';
    out->text_bytes = needed;
    return TD_OK;
}

static td_status add_line(reading *self, batch *out, const td_line *line) {
    batch_line *slot = &out->lines[out->n_lines];
    *slot = (batch_line){.begin = out->text_bytes,
                         .bytes = line->bytes,
                         .is_too_long = line->is_too_long,
                         .index = self->rows};
    slot->out.line = self->lines.number;
    slot->out.file = self->file;
    slot->out.is_list = (uint8_t)self->lines.is_list;
    if (out->signatures)
        slot->signature = out->signatures + (size_t)out->n_lines * TD_MINHASH_PERMUTATIONS;
    TD_TRY(copy_text(out, line));
    if (self->block_lines == 0)
        out->blocks[out->n_blocks++] = (batch_block){.block = self->block};
    out->blocks[out->n_blocks - 1].n_lines++;
    out->n_lines++;
    return TD_OK;
}

static void end_block(reading *self) {
    if (self->block_lines == 0)
        return;
    self->block++;
    self->block_lines = 0;
    self->block_bytes = 0;
    self->round_ends = self->block % ((int64_t)ROUND_BLOCKS * self->preparation->team->size) == 0;
    td_progress_tick();
}

static td_status open_next(reading *self) {
    const td_string_list *files = self->preparation->options->files;
    if (self->file == files->count) {
        self->is_at_end = 1;
        return TD_OK;
    }
    TD_TRY(td_line_reader_open(&self->lines, files->items[self->file], MAX_LINE_BYTES));
    self->is_open = 1;
    return TD_OK;
}

static void close_file(reading *self) {
    if (self->is_open)
        td_line_reader_close(&self->lines);
    self->is_open = 0;
}

static td_status read_line(reading *self, batch *out) {
    td_line line;
    int found;
    TD_TRY(td_line_reader_next(&self->lines, &line, &found));
    if (!found) {
        close_file(self);
        end_block(self);
        self->file++;
        return TD_OK;
    }
    self->bytes += line.bytes + 1;
    if (is_blank(&line))
        return TD_OK;
    if (is_mine(self))
        TD_TRY(add_line(self, out, &line));
    self->rows++;
    self->block_lines++;
    self->block_bytes += line.bytes;
    if (self->block_lines == BLOCK_LINES || self->block_bytes >= BLOCK_BYTES)
        end_block(self);
    return TD_OK;
}

static int is_full(const batch *out) {
    return out->n_lines >= out->wanted || out->text_bytes >= BATCH_BYTES;
}

// Up to the end of a block, of the round or of the data.
static void fill(reading *self, batch *out) {
    td_status status = TD_OK;
    while (status == TD_OK && !self->is_at_end && !self->round_ends &&
           (self->block_lines > 0 || !is_full(out)))
        status = self->is_open ? read_line(self, out) : open_next(self);
    out->status = status;
    if (status != TD_OK) {
        snprintf(out->message, sizeof out->message, "%s", td_error_message());
        td_error_clear();
    }
    out->rows_before_next = self->rows;
    out->bytes_before_next = self->bytes;
}

static td_status fit_length(const td_prepare_options *options, const char *where,
                            batch_line *line) {
    int64_t limit = options->max_length;
    if (line->row.count <= limit)
        return TD_OK;
    if (options->too_long == TD_TOO_LONG_ERROR) {
        line->row.is_setup_error = 1; // not the row's fault: it is not skipped
        return td_fail(TD_ERR_DATA,
                       "%s: %lld tokens are more than max_length, %lld: raise it, or set too_long "
                       "to \"drop\" or \"truncate\"",
                       where, (long long)line->row.count, (long long)limit);
    }
    if (options->too_long == TD_TOO_LONG_TRUNCATE) {
        line->row.count = limit;
        line->out.is_truncated = 1;
    } else {
        line->out.outcome = TD_OUTCOME_TOO_LONG;
    }
    return TD_OK;
}

static td_hash hash_content(const td_row *row) {
    td_hash parts[2] = {td_hash_bytes(row->tokens, (size_t)row->count * sizeof *row->tokens),
                        td_hash_bytes(row->trained, (size_t)row->count)};
    return td_hash_bytes(parts, sizeof parts);
}

static td_status sign(const char *where, const td_row_texts *texts, batch_line *line) {
    size_t bytes = texts->prompt_bytes + 1 + texts->response_bytes;
    if (!texts->has_response)
        return TD_OK;
    char *text = malloc(bytes + 1);
    if (!text)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its text", where);
    if (texts->prompt_bytes > 0)
        memcpy(text, texts->prompt, texts->prompt_bytes);
    text[texts->prompt_bytes] = '\n';
    memcpy(text + texts->prompt_bytes + 1, texts->response, texts->response_bytes);
    td_minhash_signature(text, bytes, line->signature);
    free(text);
    line->out.has_signature = 1;
    return TD_OK;
}

// What a row that could be read deserves.
static td_status judge(const td_preparation *self, const char *where, const td_row_texts *texts,
                       batch_line *line) {
    td_filter_verdict verdict = TD_FILTER_KEEP;
    line->out.length = (int32_t)line->row.count;
    if (self->filters)
        TD_TRY(td_filters_judge(self->filters, where, texts, line->row.count, &verdict));
    if (verdict != TD_FILTER_KEEP) {
        line->out.outcome = (uint8_t)(TD_OUTCOME_FILTERED + verdict);
        return TD_OK;
    }
    TD_TRY(fit_length(self->options, where, line));
    if (line->out.outcome != TD_OUTCOME_KEPT)
        return TD_OK;
    line->out.n_trained = (int32_t)td_row_trained_count(&line->row);
    if (line->out.n_trained == 0) {
        line->out.outcome = TD_OUTCOME_UNTRAINED;
        return TD_OK;
    }
    line->out.count = (int32_t)line->row.count;
    line->out.content = hash_content(&line->row);
    return self->wants_signatures ? sign(where, texts, line) : TD_OK;
}

static td_status read_row(const td_preparation *self, const char *where, const char *text,
                          batch_line *line) {
    td_row_texts texts = {0};
    if (line->is_too_long)
        return td_fail(TD_ERR_DATA, "%s: the line is longer than %d MiB", where,
                       MAX_LINE_BYTES >> 20);
    if (!self->wants_texts) {
        TD_TRY(td_row_read(self->options, where, text, line->bytes, &line->row));
        return judge(self, where, NULL, line);
    }
    TD_TRY(td_row_read_with_texts(self->options, where, text, line->bytes, &line->row, &texts));
    td_status status = judge(self, where, &texts, line);
    td_row_texts_fini(&texts);
    return status;
}

// Runs on any thread; what goes wrong is kept with the line until its turn comes.
static void prepare_line(const td_preparation *self, const batch *now, batch_line *line) {
    char where[TD_PATH_MAX + 32];
    td_line_where(self->options->files->items[line->out.file], line->out.is_list, line->out.line,
                  where, sizeof where);
    line->status = read_row(self, where, now->text + line->begin, line);
    td_progress_tick();
    if (line->status == TD_OK)
        return;
    // The tokenizer and the chat format do not know the line.
    const char *reason = td_error_message();
    int is_named = strncmp(reason, where, strlen(where)) == 0;
    line->message = malloc(MESSAGE_BYTES);
    if (line->message)
        snprintf(line->message, MESSAGE_BYTES, "%s%s%s", is_named ? "" : where,
                 is_named ? "" : ": ", reason);
    td_error_clear();
}

// Returns with the lines of `now` prepared and `next` filled.
static void work(reading *self, batch *now, batch *next) {
    const td_preparation *preparation = self->preparation;
    int wanted = preparation->options->n_threads, n_threads = wanted > 0 ? wanted : 1;
#pragma omp parallel num_threads(n_threads)
#pragma omp master
    {
        for (int i = 0; i < now->n_lines; i++)
#pragma omp task firstprivate(i)
            prepare_line(preparation, now, &now->lines[i]);
        if (now->status == TD_OK)
            fill(self, next);
    }
}

static void set_outcome_of_bad_row(const reading *self, batch_line *line) {
    int is_skipped = line->status == TD_ERR_DATA && !line->row.is_setup_error &&
                     self->preparation->options->bad_rows == TD_BAD_ROWS_SKIP;
    if (!is_skipped)
        return;
    line->status = TD_OK;
    line->out.outcome = TD_OUTCOME_MALFORMED;
    line->out.count = 0;
    if (line->message)
        line->out.message_bytes = (int32_t)strnlen(line->message, KEPT_MESSAGE_BYTES);
}

static td_status write_line(reading *self, batch_line *line) {
    if (line->status != TD_OK)
        set_outcome_of_bad_row(self, line);
    if (line->status != TD_OK)
        return td_fail(line->status, "%s", line->message ? line->message : "no memory for a row");
    return td_part_writer_add(self->writer, &line->out, line->row.tokens, line->row.trained,
                              line->message, line->signature);
}

static void write_batch(reading *self, batch *now) {
    batch_line *line = now->lines;
    for (int i = 0; i < now->n_blocks && !has_failed(self); i++) {
        td_status status =
            td_part_writer_block(self->writer, now->blocks[i].block, now->blocks[i].n_lines);
        for (int n = now->blocks[i].n_lines; n > 0 && status == TD_OK; n--, line++)
            if ((status = write_line(self, line)) != TD_OK)
                break;
        if (status != TD_OK) {
            note_failure(self, line->index, status, td_error_message());
            td_error_clear();
        }
    }
    if (!has_failed(self) && now->status != TD_OK)
        note_failure(self, now->rows_before_next, now->status, now->message);
}

static void clear_batch(batch *now) {
    for (int i = 0; i < now->n_lines; i++) {
        td_row_fini(&now->lines[i].row);
        free(now->lines[i].message);
    }
    now->n_lines = now->n_blocks = 0;
    now->text_bytes = 0;
}

static void show_progress(reading *self, const batch *done) {
    double now = seconds(), spent = now - self->began;
    if (self->preparation->team->rank != 0 ||
        now - self->shown < (isatty(STDERR_FILENO) ? 0.25 : 10))
        return;
    self->shown = now;
    self->rows_shown = done->rows_before_next;
    double rate = (double)done->rows_before_next / spent, bytes = (double)done->bytes_before_next;
    if (self->total_bytes > 0 && bytes > 0)
        td_log_progress(0, "preparing data: %lld rows, %.0f %%, %.0f rows/s, %.0f s left",
                        (long long)done->rows_before_next, 100 * bytes / (double)self->total_bytes,
                        rate, spent * ((double)self->total_bytes / bytes - 1));
    else
        td_log_progress(0, "preparing data: %lld rows, %.0f rows/s",
                        (long long)done->rows_before_next, rate);
}

static void read_round(reading *self) {
    batch *now = &self->batches[0], *next = &self->batches[1];
    self->round_ends = 0;
    fill(self, now);
    for (;;) {
        work(self, now, next);
        write_batch(self, now);
        show_progress(self, now);
        clear_batch(now);
        if (has_failed(self) || (next->n_lines == 0 && next->status == TD_OK))
            break;
        batch *other = now;
        now = next;
        next = other;
    }
    clear_batch(next);
}

// The same on all ranks: the failure of the first row that failed on any of them.
static td_status judge_reports(const reading *self, const report *reports) {
    const td_preparation *preparation = self->preparation;
    const report *first = &reports[0];
    char sources[TD_PATH_MAX];
    for (int rank = 1; rank < preparation->team->size; rank++)
        if (reports[rank].failed_row < first->failed_row)
            first = &reports[rank];
    if (first->failed_row != INT64_MAX)
        return td_fail((td_status)first->status, "%s", first->message);
    td_prepare_name_sources(preparation->options->files, sources);
    for (int rank = 1; rank < preparation->team->size; rank++)
        if (reports[rank].rows != first->rows || reports[rank].is_at_end != first->is_at_end)
            return td_fail(TD_ERR_DATA,
                           "%s: ranks 0 and %d read different rows: the file changed while it was "
                           "read, or is not the same one on all hosts",
                           sources, rank);
    return TD_OK;
}

static td_status end_round(reading *self) {
    const td_prepare_team *team = self->preparation->team;
    report *reports = calloc((size_t)team->size, sizeof *reports);
    self->failure.rows = self->rows;
    self->failure.is_at_end = self->is_at_end;
    if (!reports) // the others wait for this rank; it has nothing to tell them with
        return td_fail(TD_ERR_MEMORY, "no memory for the reports of %d ranks", team->size);
    reports[0] = self->failure;
    td_status status = TD_OK;
    if (team->size > 1)
        status = team->gather(team->self, &self->failure, reports, sizeof *reports, "prepare data");
    int is_told = status == TD_OK;
    if (is_told)
        status = judge_reports(self, reports);
    free(reports);
    if (!is_told || status == TD_OK)
        return status;
    // Rank 0 removes the parts when all have agreed to end, so none may be open any more.
    td_part_writer_abandon(self->writer);
    self->writer = NULL;
    return td_preparation_agree(self->preparation, status, "prepare data");
}

static td_status allocate_batch(const reading *self, batch *out) {
    const td_preparation *preparation = self->preparation;
    int threads = preparation->options->n_threads > 0 ? preparation->options->n_threads : 1;
    out->wanted =
        threads < MAX_BATCH_LINES / LINES_PER_THREAD ? threads * LINES_PER_THREAD : MAX_BATCH_LINES;
    out->room = out->wanted + BLOCK_LINES;
    size_t room = (size_t)out->room;
    out->lines = calloc(room, sizeof *out->lines);
    out->blocks = calloc(room, sizeof *out->blocks);
    if (preparation->wants_signatures)
        out->signatures = malloc(room * TD_MINHASH_PERMUTATIONS * sizeof *out->signatures);
    if (!out->lines || !out->blocks || (preparation->wants_signatures && !out->signatures))
        return td_fail(TD_ERR_MEMORY, "no memory to prepare rows");
    return TD_OK;
}

static void free_batch(batch *now) {
    free(now->lines);
    free(now->blocks);
    free(now->signatures);
    free(now->text);
}

// Compressed files do not say how long they are.
static int is_compressed(const char *path) {
    unsigned char magic[4] = {0};
    FILE *file = fopen(path, "rbe");
    size_t got = file ? fread(magic, 1, sizeof magic, file) : 0;
    if (file)
        fclose(file);
    return got >= 2 && ((magic[0] == 0x1f && magic[1] == 0x8b) ||
                        memcmp(magic, "\x28\xb5\x2f\xfd", sizeof magic) == 0);
}

static void measure_sources(reading *self) {
    const td_string_list *files = self->preparation->options->files;
    for (int i = 0; i < files->count; i++) {
        uint64_t bytes;
        if (is_compressed(files->items[i]) || td_file_size(files->items[i], &bytes) != TD_OK) {
            td_error_clear();
            self->total_bytes = 0;
            return;
        }
        self->total_bytes += bytes;
    }
}

static td_status open_local(reading *self) {
    const td_preparation *preparation = self->preparation;
    for (int i = 0; i < 2; i++)
        TD_TRY(allocate_batch(self, &self->batches[i]));
    measure_sources(self);
    return td_part_writer_open(preparation->folder, preparation->team->rank,
                               preparation->wants_signatures, &self->writer);
}

static td_status read_all(reading *self) {
    TD_TRY(td_preparation_agree(self->preparation, open_local(self), "prepare data"));
    while (!self->is_at_end) {
        read_round(self);
        TD_TRY(end_round(self));
    }
    if (self->rows_shown > 0)
        td_log_progress(1, "preparing data: %lld rows read in %.1f s; writing the stores",
                        (long long)self->rows, seconds() - self->began);
    td_part_writer *writer = self->writer;
    self->writer = NULL;
    return td_preparation_agree(self->preparation, td_part_writer_close(writer), "prepare data");
}

td_status td_prepare_read(td_preparation *preparation) {
    reading self = {
        .preparation = preparation, .failure.failed_row = INT64_MAX, .began = seconds()};
    self.shown = self.began;
    td_status status = read_all(&self);
    preparation->rows = self.rows;
    close_file(&self);
    td_part_writer_abandon(self.writer);
    for (int i = 0; i < 2; i++)
        free_batch(&self.batches[i]);
    return status;
}
