// From JSONL files to token stores: parse, render, tokenize, mask, drop what cannot be trained on,
// account for it.
//
// Row formats: {"messages": [{"role", "content"}, ...]}, {"conversations": [{"from", "value"},
// ...]}, {"prompt", "completion"} (strings, or lists of messages), {"instruction", "input",
// "output"}, {"text"}, and {"input_ids", "labels"} (labels unshifted; -100 where not trained, else
// equal to input_ids). Every row is told for itself. With keys of two formats it is TD_ERR_DATA,
// unless it has "input_ids", which decide, or a "text" that only repeats what the others say.
//
// Chats are written by the model's chat template (model/chat.h), with "tools" and "tool_calls" when
// it knows them. Instruction rows are chats: the user says instruction, blank line and input, and
// the assistant the output; where the model has neither template nor the tokens of ChatML they are
// prompt and completion in the words of Stanford's Alpaca. "context" and "response" are other names
// for input and output; "system" is the system message, or stands for Alpaca's first paragraph;
// "history" is a list of [question, answer] before the instruction.
//
// Trained tokens: of chats, what the assistant is to produce (assistant_only_loss), else all; of
// prompt/completion, the completion and its end (completion_only_loss), else all; of text, all. The
// end-of-sequence token is appended to text and completion rows only when missing. A token is
// trained when any byte of it is to be produced: one that spans the border of prompt and completion
// is, as in TRL, where training begins at the first token that the completion changes. Of a
// completion that is a list of messages, what follows the opening of the assistant's turn is
// trained; with assistant_only_loss, of that what the assistant says. A row's first token is never
// trained. An empty answer is no error: it trains its end (min_response_words drops it).
#ifndef TANDEM_DATA_PREPARE_H
#define TANDEM_DATA_PREPARE_H

#include "model/tokenizer.h"
#include "runtime/core/config.h"
#include "runtime/core/files.h"

// Where a row can go.
typedef enum td_split {
    TD_SPLIT_TRAIN,
    TD_SPLIT_EVAL,
    TD_SPLIT_TEST,
    TD_SPLITS,
} td_split;

struct td_filter_options;

typedef struct td_prepare_options {
    const td_string_list *files;   // as td_sources_expand() gives them
    const td_tokenizer *tokenizer; // may be NULL when every row is pretokenized
    int64_t vocabulary;            // of the model: ids at or above it are TD_ERR_DATA
    int32_t eos_id;                // appended to text and completion rows
    int64_t max_length;
    int assistant_only_loss, completion_only_loss;
    td_bad_rows bad_rows;
    td_too_long too_long;
    const struct td_filter_options *filters; // NULL: none
    td_deduplicate deduplicate;
    double
        near_duplicate_threshold; // 0.5 to 1; of what is dropped, and of what splits keep together
    double split_ratios[TD_SPLITS]; // of TD_SPLIT_EVAL and TD_SPLIT_TEST; 0: there is none
    uint64_t seed;
    int n_threads;
} td_prepare_options;

typedef struct td_prepare_account td_prepare_account; // runtime/data/account.h

// The ranks that prepare together. All functions are collective and only called when size > 1.
typedef struct td_prepare_team {
    int rank, size;
    // all: size * bytes_each, in rank order.
    td_status (*gather)(void *self, const void *mine, void *all, size_t bytes_each,
                        const char *what);
    // Every rank passes its own status; all return the same one and have its message.
    td_status (*agree)(void *self, td_status mine, const char *what);
    void *self;
} td_prepare_team;

// Of the files' contents, the tokenizer and every option that changes the result. Local.
td_status td_prepare_fingerprint(const td_prepare_options *options, td_hash *out);

// Collective (team NULL: this rank alone); every rank passes the same options. Ranks and their
// threads share the work; rank 0 decides about duplicates and writes the stores. What they hold
// does not depend on either number. Writes stores[TD_SPLIT_TRAIN], those of the splits that have a
// ratio, and the account beside the first, "train.json" beside "train.h5". `fingerprint`: of the
// options, on rank 0. Memory is bounded but for about 40 bytes per row on rank 0.
//
// Splits are by (seed, row), and none is left empty. Rows that are exact or near duplicates of each
// other are all in one store, whether or not duplicates are dropped.
//
// TD_ERR_DATA: "file:line: what" for the first bad row (unless skipped), no rows left, id outside
// the vocabulary; TD_ERR_IO: the folder cannot be written, or another run prepares data in it. On
// failure nothing is left behind, and what a killed run left is removed by the next one:
// "train.h5.parts" and "*.h5.tmp". *out is filled in on rank 0 only; td_account_fini().
td_status td_prepare(const td_prepare_options *options, const td_prepare_team *team,
                     td_hash fingerprint, const char *const stores[TD_SPLITS],
                     td_prepare_account *out);

// "FOLDER/train.h5" -> "FOLDER/train.json".
td_status td_prepare_account_path(const char *store_path, char out[TD_PATH_MAX]);

// One row, for inspection and tests: tokens and mask of one JSON line. The caller frees both with
// free().
td_status td_prepare_row(const td_prepare_options *options, const char *where, const char *line,
                         size_t bytes, int32_t **out_tokens, uint8_t **out_trained,
                         int64_t *out_count);

#endif
