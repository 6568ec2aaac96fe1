// From JSONL files to token stores: parse, render, tokenize, mask, drop what cannot be trained on,
// account for it.
//
// Row formats: {"messages": [{"role", "content"}, ...]}, {"conversations": [{"from", "value"},
// ...]},
// {"prompt", "completion"} (strings, or lists of messages), {"text"}, and {"input_ids", "labels"}
// (labels unshifted; -100 where not trained, else equal to input_ids). Chats are written by the
// model's chat template (model/chat.h), with "tools" and "tool_calls" when it knows them. Trained
// tokens: of chats, what the assistant is to produce (assistant_only_loss), else all; of
// prompt/completion, the completion and its end (completion_only_loss), else all; of text, all. The
// end-of-sequence token is appended to text and completion rows only when missing. A token is
// trained when any byte of it is to be produced: one that spans the border of prompt and completion
// is, as in TRL, where training begins at the first token that the completion changes. Of a
// completion that is a list of messages, what follows the opening of the assistant's turn is
// trained; with assistant_only_loss, of that what the assistant says. A row's first token is never
// trained.
#ifndef TANDEM_DATA_PREPARE_H
#define TANDEM_DATA_PREPARE_H

#include "model/tokenizer.h"
#include "runtime/core/config.h"

typedef struct td_prepare_options {
    const td_string_list *files;
    const td_tokenizer *tokenizer; // may be NULL when every row is pretokenized
    int64_t vocabulary;            // of the model: ids at or above it are TD_ERR_DATA
    int32_t eos_id;                // appended to text and completion rows
    int64_t max_length;
    int assistant_only_loss, completion_only_loss;
    td_bad_rows bad_rows;
    td_too_long too_long;
    double split_ratio; // share of rows that go to the second store, chosen by (seed, row), at
                        // least one; 0: none
    uint64_t seed;
    int n_threads;
} td_prepare_options;

typedef struct td_prepare_account {
    int64_t rows_read, rows_kept, rows_bad, rows_too_long, rows_truncated, rows_untrained;
    int64_t tokens, trained_tokens;
} td_prepare_account;

// Of the files' contents, the tokenizer and every option that changes the result.
td_status td_prepare_fingerprint(const td_prepare_options *options, td_hash *out);

// Local to the caller (rank 0); parallel over rows with n_threads, order of rows kept; calls
// td_progress_tick(). Writes store_path and, when split_ratio > 0, split_path. TD_ERR_DATA:
// "file:line: what" for a bad row (unless skipped), no rows left, id outside the vocabulary.
// Nothing is left behind on failure.
td_status td_prepare(const td_prepare_options *options, const char *store_path,
                     const char *split_path, td_prepare_account *out);

// One row, for inspection and tests: tokens and mask of one JSON line. The caller frees both with
// free().
td_status td_prepare_row(const td_prepare_options *options, const char *where, const char *line,
                         size_t bytes, int32_t **out_tokens, uint8_t **out_trained,
                         int64_t *out_count);

#endif
