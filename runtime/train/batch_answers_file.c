#include "runtime/train/batch_answers_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/json.h"

static const size_t max_output_bytes = (size_t)1 << 36;
static const char *const added_keys[] = {"completion", "completion_tokens", "finish_reason"};
static const char error_key[] = "{\"error\": ";

static td_status add(td_answer_lines *lines, const char *text, size_t bytes) {
    if (lines->capacity - lines->bytes < bytes) {
        size_t capacity = 2 * lines->capacity + bytes + 4096;
        char *grown = realloc(lines->text, capacity);
        if (!grown)
            return td_fail(TD_ERR_MEMORY, "no memory for answers");
        lines->text = grown;
        lines->capacity = capacity;
    }
    memcpy(lines->text + lines->bytes, text, bytes);
    lines->bytes += bytes;
    return TD_OK;
}

// A JSON string. What is not ASCII stays as it is.
static td_status add_string(td_answer_lines *lines, const char *text, size_t bytes) {
    char escaped[8];
    TD_TRY(add(lines, "\"", 1));
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        const char *piece = c == '"'    ? "\\\""
                            : c == '\\' ? "\\\\"
                            : c == '\n' ? "\\n"
                            : c == '\t' ? "\\t"
                            : c == '\r' ? "\\r"
                                        : NULL;
        if (!piece && c >= 0x20 && c != 0x7F) {
            TD_TRY(add(lines, text + i, 1));
            continue;
        }
        snprintf(escaped, sizeof escaped, "\\u%04x", c);
        piece = piece ? piece : escaped;
        TD_TRY(add(lines, piece, strlen(piece)));
    }
    return add(lines, "\"", 1);
}

static size_t without_blanks(const char *text, size_t bytes) {
    while (bytes > 0 && strchr(" \t\r\n", text[bytes - 1]))
        bytes--;
    return bytes;
}

// The row up to its closing brace, on one line: a line end in JSON is only a space.
static size_t row_bytes(const td_line *line) {
    size_t bytes = without_blanks(line->text, line->bytes);
    return bytes > 0 ? without_blanks(line->text, bytes - 1) : 0;
}

static char row_byte(const td_line *line, size_t i) {
    return line->text[i] == '\n' || line->text[i] == '\r' ? ' ' : line->text[i];
}

static td_status add_row(td_answer_lines *lines, const td_line *line) {
    size_t bytes = row_bytes(line), begin = lines->bytes;
    TD_TRY(add(lines, line->text, bytes));
    for (size_t i = 0; i < bytes; i++)
        lines->text[begin + i] = row_byte(line, i);
    return TD_OK;
}

static td_status add_error(td_answer_lines *lines, const char *error) {
    TD_TRY(add(lines, error_key, sizeof error_key - 1));
    TD_TRY(add_string(lines, error, strlen(error)));
    return add(lines, "}\n", 2);
}

td_status td_answer_lines_add(td_answer_lines *lines, const td_row_visit *visit,
                              const td_answer *answer, const char *error) {
    static const char key[] = ", \"completion\": ";
    char end[96];
    if (!answer)
        return add_error(lines, error);
    int chars =
        snprintf(end, sizeof end, ", \"completion_tokens\": %lld, \"finish_reason\": \"%s\"}\n",
                 (long long)answer->n_tokens, answer->is_finished ? "stop" : "length");
    TD_TRY(add_row(lines, &visit->line));
    TD_TRY(add(lines, key, sizeof key - 1));
    TD_TRY(add_string(lines, answer->text, answer->bytes));
    return add(lines, end, (size_t)chars);
}

td_status td_answer_keys_check(const td_row_visit *visit) {
    cJSON *row;
    td_status status = TD_OK;
    TD_TRY(td_json_parse(visit->where, visit->line.text, visit->line.bytes, &row));
    for (int i = 0; i < 3 && status == TD_OK; i++)
        if (cJSON_GetObjectItemCaseSensitive(row, added_keys[i]))
            status = td_fail(TD_ERR_DATA,
                             "%s: the row has \"%s\" already, which the answer is to be called; "
                             "rename or remove it",
                             visit->where, added_keys[i]);
    cJSON_Delete(row);
    return status;
}

typedef struct found_output {
    const td_batch_answers_options *options;
    const char *text;
    size_t bytes, at; // lines before `at` answer the rows so far
    int64_t n_rows;
} found_output;

static int answers_row(const char *text, size_t bytes, const td_line *line) {
    static const char key[] = ", \"completion\": ";
    size_t row = row_bytes(line);
    if (bytes >= sizeof error_key - 1 && memcmp(text, error_key, sizeof error_key - 1) == 0)
        return 1;
    if (bytes < row + sizeof key - 1 || memcmp(text + row, key, sizeof key - 1) != 0)
        return 0;
    for (size_t i = 0; i < row; i++)
        if (text[i] != row_byte(line, i))
            return 0;
    return 1;
}

static td_status compare_row(void *context, const td_row_visit *visit) {
    found_output *self = context;
    const char *begin = self->text + self->at;
    const char *end = memchr(begin, '\n', self->bytes - self->at);
    if (!end)
        return TD_STOPPED;
    if (!answers_row(begin, (size_t)(end - begin), &visit->line))
        return td_fail(TD_ERR_USAGE, "%s: line %lld does not answer %s; choose another output",
                       self->options->output, (long long)self->n_rows + 1, visit->where);
    self->at += (size_t)(end - begin) + 1;
    self->n_rows++;
    return TD_OK;
}

static td_status compare_rows(found_output *self) {
    char *rows = (char *)(uintptr_t)self->options->rows;
    const td_string_list files = {&rows, 1};
    TD_TRY(td_rows_visit(&files, compare_row, self));
    if (memchr(self->text + self->at, '\n', self->bytes - self->at))
        return td_fail(TD_ERR_USAGE,
                       "%s holds more answers than %s has rows; choose another output",
                       self->options->output, self->options->rows);
    if (self->at < self->bytes && truncate(self->options->output, (off_t)self->at) != 0)
        return td_fail(TD_ERR_IO, "%s: cannot be cut: %s", self->options->output, strerror(errno));
    return TD_OK;
}

td_status td_answer_file_begin(const td_batch_answers_options *options, int64_t *out_kept) {
    char *text;
    found_output found = {.options = options};
    *out_kept = 0;
    if (!td_path_exists(options->output))
        return TD_OK;
    if (!options->resume)
        return td_fail(TD_ERR_USAGE,
                       "%s exists already and is not written over; go on with --resume, choose "
                       "another output, or remove it",
                       options->output);
    TD_TRY(td_file_read_no_link(options->output, max_output_bytes, &text, &found.bytes));
    found.text = text;
    td_status status = compare_rows(&found);
    free(text);
    if (status == TD_OK)
        *out_kept = found.n_rows;
    return status;
}
