#define _GNU_SOURCE // memmem
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/template_internal.h"
#include "model/unicode.h"

enum { CHUNK_BYTES = 32 << 10, BYTES_PER_STEP = 256 };

void td_pile_fini(td_pile *pile) {
    while (pile->chunks) {
        td_pile_chunk *chunk = pile->chunks;
        pile->chunks = chunk->next;
        free(chunk);
    }
    *pile = (td_pile){0};
}

static void locate(const td_trap *trap, size_t *out_line, size_t *out_column) {
    const char *end = trap->source + trap->position, *line = trap->source;
    *out_line = 1;
    for (const char *at = trap->source; at < end; at++)
        if (*at == '\n') {
            line = at + 1;
            (*out_line)++;
        }
    *out_column = td_count_chars(line, (size_t)(end - line)) + 1;
}

void td_raise_status(td_trap *trap, td_status status, const char *format, ...) {
    char message[600];
    size_t line, column;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (trap->source) {
        locate(trap, &line, &column);
        td_error_record("%s:%zu:%zu: %s", trap->where, line, column, message);
    } else {
        td_error_record("%s: %s", trap->where, message);
    }
    trap->status = status;
    longjmp(*trap->exit, 1);
}

static void add_chunk(td_pile *pile, td_trap *trap, size_t bytes) {
    size_t capacity = pile->chunks ? CHUNK_BYTES * 4 : CHUNK_BYTES;
    capacity = bytes > capacity ? bytes : capacity;
    td_pile_chunk *chunk = malloc(sizeof *chunk + capacity);
    if (!chunk)
        td_raise_status(trap, TD_ERR_MEMORY, "no memory for a template's values");
    *chunk = (td_pile_chunk){.next = pile->chunks, .capacity = capacity};
    pile->chunks = chunk;
}

void *td_pile_take(td_pile *pile, td_trap *trap, size_t bytes) {
    if (bytes > pile->max_bytes || pile->total_bytes > pile->max_bytes - bytes)
        td_raise_status(trap, TD_ERR_DATA, "the template needs more than %zu MiB of memory",
                        pile->max_bytes >> 20);
    bytes = (bytes + 15) & ~(size_t)15;
    pile->total_bytes += bytes;
    td_pile_chunk *chunk = pile->chunks;
    if (!chunk || chunk->capacity - chunk->used < bytes) {
        add_chunk(pile, trap, bytes);
        chunk = pile->chunks;
    }
    void *taken = chunk->bytes + chunk->used;
    chunk->used += bytes;
    return taken;
}

void *td_take(td_render *self, size_t bytes) {
    if (bytes >= BYTES_PER_STEP)
        td_steps(self, bytes / BYTES_PER_STEP);
    return td_pile_take(self->pile, &self->trap, bytes);
}

void td_steps(td_render *self, size_t count) {
    self->steps += count;
    if (self->steps > TD_TEMPLATE_MAX_STEPS)
        td_raise(self, "the template does not end: stopped after %d steps", TD_TEMPLATE_MAX_STEPS);
}

void td_deeper(td_render *self) {
    if (++self->depth > TD_TEMPLATE_MAX_DEPTH)
        td_raise(self, "nested more than %d deep", TD_TEMPLATE_MAX_DEPTH);
}

uint32_t td_count_chars(const char *text, size_t bytes) {
    uint32_t count = 0;
    for (size_t i = 0; i < bytes; i++)
        count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

static td_string *string_of(td_render *self, const char *text, size_t bytes) {
    td_string *string = td_take(self, sizeof *string);
    if (bytes > UINT32_MAX / 2)
        td_raise(self, "a string of %zu bytes", bytes);
    td_steps(self, bytes / BYTES_PER_STEP);
    *string =
        (td_string){.text = text, .bytes = (uint32_t)bytes, .chars = td_count_chars(text, bytes)};
    return string;
}

const td_string *td_string_make(td_render *self, const char *text, size_t bytes, uint32_t tag) {
    char *copy = td_take(self, bytes + 1);
    memcpy(copy, text, bytes);
    td_string *string = string_of(self, copy, bytes);
    string->tag = tag;
    return string;
}

const td_string *td_string_literal(td_render *self, const char *text) {
    return string_of(self, text, strlen(text));
}

uint32_t td_tag_at(const td_string *string, size_t offset, size_t *out_end) {
    if (string->n_runs == 0) {
        *out_end = string->bytes;
        return string->tag;
    }
    size_t low = 0, high = string->n_runs - 1;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (string->runs[middle].end > offset)
            high = middle;
        else
            low = middle + 1;
    }
    *out_end = string->runs[low].end;
    return string->runs[low].tag;
}

static void cut_runs(td_render *self, const td_string *string, size_t begin, size_t end,
                     td_string *out) {
    size_t run_end;
    out->tag = td_tag_at(string, begin, &run_end);
    if (run_end >= end)
        return;
    td_run *runs = td_take(self, string->n_runs * sizeof *runs);
    for (size_t at = begin; at < end; at = run_end) {
        uint32_t tag = td_tag_at(string, at, &run_end);
        size_t stop = run_end < end ? run_end : end;
        runs[out->n_runs++] = (td_run){(uint32_t)(stop - begin), tag};
    }
    out->runs = runs;
}

const td_string *td_string_cut(td_render *self, const td_string *string, size_t begin, size_t end) {
    if (begin == 0 && end == string->bytes)
        return string;
    td_string *cut = string_of(self, string->text + begin, end - begin);
    if (begin < end)
        cut_runs(self, string, begin, end, cut);
    return cut;
}

size_t td_string_offset(const td_string *string, size_t character) {
    if (string->chars == string->bytes)
        return character;
    size_t offset = 0;
    for (; character > 0 && offset < string->bytes; character--)
        do
            offset++;
        while (offset < string->bytes && ((unsigned char)string->text[offset] & 0xC0) == 0x80);
    return offset;
}

bool td_string_equal(const td_string *a, const td_string *b) {
    return a == b || (a->bytes == b->bytes && memcmp(a->text, b->text, a->bytes) == 0);
}

bool td_string_is(const td_string *a, const char *text) {
    return strlen(text) == a->bytes && memcmp(a->text, text, a->bytes) == 0;
}

// UTF-8 sorts as its code points do.
int td_string_compare(const td_string *a, const td_string *b) {
    size_t bytes = a->bytes < b->bytes ? a->bytes : b->bytes;
    int order = memcmp(a->text, b->text, bytes);
    return order ? order : (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

size_t td_string_find(td_render *self, const td_string *text, const td_string *part, size_t from) {
    if (from > text->bytes)
        return SIZE_MAX;
    const char *found = memmem(text->text + from, text->bytes - from, part->text, part->bytes);
    size_t passed = found ? (size_t)(found - text->text) - from : text->bytes - from;
    td_steps(self, passed / BYTES_PER_STEP);
    return found ? (size_t)(found - text->text) : SIZE_MAX;
}

size_t td_string_find_last(td_render *self, const td_string *text, const td_string *part) {
    if (part->bytes > text->bytes)
        return SIZE_MAX;
    // Every place may have to be compared in full.
    size_t places = text->bytes - part->bytes + 1;
    td_steps(self, places * (part->bytes / 16 + 1) / 16);
    for (size_t at = places; at-- > 0;)
        if (memcmp(text->text + at, part->text, part->bytes) == 0)
            return at;
    return SIZE_MAX;
}

static void *grow(td_render *self, const void *old, size_t used_bytes, size_t bytes) {
    void *grown = td_take(self, bytes);
    if (used_bytes > 0)
        memcpy(grown, old, used_bytes);
    return grown;
}

static void add_run(td_render *self, td_builder *out, uint32_t tag) {
    if (out->n_runs > 0 && out->runs[out->n_runs - 1].tag == tag) {
        out->runs[out->n_runs - 1].end = (uint32_t)out->bytes;
        return;
    }
    if (out->n_runs == out->runs_capacity) {
        out->runs_capacity = out->runs_capacity ? 2 * out->runs_capacity : 8;
        out->runs = grow(self, out->runs, out->n_runs * sizeof *out->runs,
                         out->runs_capacity * sizeof *out->runs);
    }
    out->runs[out->n_runs++] = (td_run){(uint32_t)out->bytes, tag};
}

void td_build(td_render *self, td_builder *out, const char *text, size_t bytes, uint32_t tag) {
    if (bytes == 0)
        return;
    if (bytes > TD_TEMPLATE_MAX_OUTPUT_BYTES || out->bytes > TD_TEMPLATE_MAX_OUTPUT_BYTES - bytes)
        td_raise(self, "the template writes more than %d MiB", TD_TEMPLATE_MAX_OUTPUT_BYTES >> 20);
    if (out->capacity - out->bytes < bytes) {
        size_t capacity = out->capacity ? 2 * out->capacity : 64;
        capacity =
            capacity < TD_TEMPLATE_MAX_OUTPUT_BYTES ? capacity : TD_TEMPLATE_MAX_OUTPUT_BYTES;
        capacity = capacity > out->bytes + bytes ? capacity : out->bytes + bytes;
        out->text = grow(self, out->text, out->bytes, capacity);
        out->capacity = capacity;
    }
    memcpy(out->text + out->bytes, text, bytes);
    out->bytes += bytes;
    add_run(self, out, tag);
}

void td_build_literal(td_render *self, td_builder *out, const char *text) {
    td_build(self, out, text, strlen(text), 0);
}

void td_build_cut(td_render *self, td_builder *out, const td_string *string, size_t begin,
                  size_t end) {
    size_t run_end;
    for (size_t at = begin; at < end; at = run_end) {
        uint32_t tag = td_tag_at(string, at, &run_end);
        run_end = run_end < end ? run_end : end;
        td_build(self, out, string->text + at, run_end - at, tag);
    }
}

void td_build_string(td_render *self, td_builder *out, const td_string *string) {
    td_build_cut(self, out, string, 0, string->bytes);
}

void td_build_code(td_render *self, td_builder *out, uint32_t code, uint32_t tag) {
    char text[4];
    td_build(self, out, text, td_utf8_encode(code, text), tag);
}

void td_build_repeated(td_render *self, td_builder *out, const td_string *text, int64_t count) {
    if (count <= 0 || text->bytes == 0)
        return;
    if (count > TD_TEMPLATE_MAX_OUTPUT_BYTES)
        td_raise(self, "the template writes more than %d MiB", TD_TEMPLATE_MAX_OUTPUT_BYTES >> 20);
    td_steps(self, (size_t)count / 4);
    for (; count > 0; count--)
        td_build_string(self, out, text);
}

const td_string *td_built(td_render *self, const td_builder *builder) {
    td_string *string = string_of(self, builder->text ? builder->text : "", builder->bytes);
    if (builder->n_runs > 0)
        string->tag = builder->runs[0].tag;
    if (builder->n_runs > 1) {
        string->runs = builder->runs;
        string->n_runs = (uint32_t)builder->n_runs;
    }
    return string;
}
