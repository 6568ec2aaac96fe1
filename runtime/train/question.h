// Rows of data files as questions: the tokens to answer, what is expected, and other rows as
// examples before them.
//
// Every format that td_prepare() takes, with or without its answer: chats (the last message is the
// answer when it is the assistant's), {"prompt"} with or without {"completion"}, {"text"} (to be
// continued; nothing is expected) and {"input_ids"} with or without {"labels"} (the last run of
// trained tokens is the answer). Instruction rows are what td_row_as_plain() makes of them. Local.
#ifndef TANDEM_TRAIN_QUESTION_H
#define TANDEM_TRAIN_QUESTION_H

#include "runtime/data/lines.h"
#include "runtime/train/session.h"

enum { TD_MAX_EXAMPLES = 256 };

// Rows that show how to answer; owned.
typedef struct td_examples {
    int64_t count;
    struct td_example {
        char *row;
        size_t bytes;
        int is_chat;
        int64_t n_tokens; // by itself
    } * items;            // (count)
} td_examples;
void td_examples_fini(td_examples *examples);

typedef struct td_question {
    td_tokens prompt; // without tokens when the row asks nothing
    td_tokens whole;  // the row as it is trained on; without tokens when it is only a prompt
    char *answer;     // UTF-8, owned; NULL: nothing to compare with
    char *plain;      // of an instruction row, the row that it stands for; else NULL
    int is_chat, takes_examples;
    int64_t n_examples; // that stand before it
    int64_t n_left_out; // examples for which there was no room (td_question_fit)
} td_question;
void td_question_fini(td_question *question);

// The first n_examples of those that are of the row's kind (chat or text) and are not the row
// itself come before it; examples may be NULL when n_examples is 0. `where` begins every message.
// TD_ERR_DATA: not a row. Zero-initialise; fini not needed after a failure.
td_status td_question_read(const td_session *session, const char *where, const td_line *line,
                           const td_examples *examples, int64_t n_examples, td_question *out);

// The same with as many examples as leave prompt and whole row at most max_tokens long, and none
// when not even one fits.
td_status td_question_fit(const td_session *session, const char *where, const td_line *line,
                          const td_examples *examples, int64_t max_tokens, td_question *out);

// Collective. `count` rows of the files that have a question and an answer and are at most
// max_length tokens long, chosen by (seed, place of the row). Fewer when there are no more.
td_status td_examples_choose(const td_session *session, const td_string_list *files, int64_t count,
                             td_examples *out);

// Goes through the rows of the files that the sources mean (td_sources_expand), blank ones left
// out; `index` counts them over all files. `row` returns TD_STOPPED to end this file. Lines that
// are too long for a row are td_line.is_too_long.
typedef struct td_row_visit {
    const char *where; // "file:line"
    const char *path;
    td_line line;
    int64_t index;      // over all files
    int64_t file_index; // within its file
} td_row_visit;
td_status td_rows_visit(const td_string_list *sources,
                        td_status (*row)(void *self, const td_row_visit *visit), void *self);

#endif
