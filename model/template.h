// Chat templates: a sandboxed interpreter of the Jinja2 language as transformers sets it up
// (trim_blocks, lstrip_blocks, loop controls, tojson without escapes, raise_exception,
// strftime_now, {% generation %}).
//
// A compiled template is read-only: any number of threads may render it at once. A rendering reads
// nothing but its variables (and the clock for strftime_now), and ends with an error past the
// limits below. Messages name file, line and column of the template.
#ifndef TANDEM_MODEL_TEMPLATE_H
#define TANDEM_MODEL_TEMPLATE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/status.h"

enum {
    TD_TEMPLATE_MAX_BYTES = 4 << 20,          // of the source
    TD_TEMPLATE_MAX_STEPS = 20 * 1000 * 1000, // of one rendering
    TD_TEMPLATE_MAX_DEPTH = 600,              // nested expressions, statements, calls and values
    TD_TEMPLATE_MAX_OUTPUT_BYTES = 64 << 20,
    TD_TEMPLATE_MAX_MEMORY_BYTES = 512 << 20,
};

typedef struct td_template td_template;

// `where` names the source in messages. TD_ERR_DATA: malformed, or a statement that reads other
// templates.
td_status td_template_compile(const char *where, const char *source, size_t bytes,
                              td_template **out);
void td_template_destroy(td_template *self);

// Where text of the output came from.
typedef enum td_source_kind {
    TD_SOURCE_TURN, // template text, written while the template goes through this message
    TD_SOURCE_CONTENT,
    TD_SOURCE_REASONING,
    TD_SOURCE_TOOL_CALLS,
    TD_SOURCE_OTHER, // another field of the message
} td_source_kind;

typedef struct td_text_run {
    size_t end;  // byte offset; begins where the run before it ends
    int message; // index in `messages`, -1: text of the template or of another variable
    td_source_kind kind;
    int is_generated; // inside {% generation %}
} td_text_run;

// Owned by the caller; zero-initialise, fini.
typedef struct td_template_text {
    char *text; // NUL-terminated
    size_t bytes;
    td_text_run *runs; // (n_runs), ascending, the last ends at `bytes`
    size_t n_runs;
} td_template_text;
void td_template_text_fini(td_template_text *text);

// `variables` is a JSON object; numbers keep their spelling (1 is an integer, 1.0 is not). A list
// of objects under "messages" is what the runs refer to. TD_ERR_DATA: the template refuses (its
// raise_exception message), fails, or exceeds a limit.
td_status td_template_render(const td_template *self, const char *variables, size_t bytes,
                             td_template_text *out);

#endif
