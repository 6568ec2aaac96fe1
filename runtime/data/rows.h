// One line of JSON to one row of tokens with a mask. Thread-safe: any number of rows at a time.
#ifndef TANDEM_DATA_ROWS_H
#define TANDEM_DATA_ROWS_H

#include "runtime/data/prepare.h"

typedef struct td_row {
    int32_t *tokens;  // (count), owned
    uint8_t *trained; // (count), owned; the first token's is 0, no model is trained to produce it
    int64_t count;
    // Set with a failure that other rows will share, because model, tokenizer and options do not
    // fit together: skipping the row would hide it.
    int is_setup_error;
} td_row;

// What is asked and what is answered in a row, for filters and for finding duplicates. Of a chat:
// what users say and tools give back, and what assistants say, with the tools they call as JSON;
// messages joined by line ends, system messages left out. Of instruction rows: the instruction with
// its input, and the output. Of a text, all is response. Of token ids, what their text is: trained
// tokens are response, the others prompt.
typedef struct td_row_texts {
    char *prompt, *response; // UTF-8, NUL-terminated, owned
    size_t prompt_bytes, response_bytes;
    int has_prompt;   // 0: the row's format has none, or all of the token ids are trained
    int has_response; // 0: token ids without a tokenizer; then there is no text at all
} td_row_texts;

void td_row_texts_fini(td_row_texts *texts);

// `where` is "file:line" and begins every message. Neither max_length nor the number of trained
// tokens is looked at. TD_ERR_DATA for whatever the row format does not allow. Zero-initialise
// `row`; free with td_row_fini(), not needed after a failure.
td_status td_row_read(const td_prepare_options *options, const char *where, const char *line,
                      size_t bytes, td_row *row);
// With its texts as well. Zero-initialise them; they hold nothing after a failure.
td_status td_row_read_with_texts(const td_prepare_options *options, const char *where,
                                 const char *line, size_t bytes, td_row *row, td_row_texts *texts);
void td_row_fini(td_row *row);
// An instruction row, with or without its output, as the row that it stands for, in JSON: of
// messages, or of prompt and completion in Alpaca's words. The caller frees *out, which is NULL for
// rows of other formats.
struct cJSON;
td_status td_row_as_plain(const char *where, const struct cJSON *object, int as_messages,
                          char **out);
// Trained tokens after the shift: the first token never counts.
int64_t td_row_trained_count(const td_row *row);

#endif
