// Chats as text, and which bytes of it a model is trained on.
//
// A model folder's chat template (chat_template.jinja, or in tokenizer_config.json) writes the
// text. What the model is to produce of it, per assistant message:
// - a template with {% generation %} says so itself;
// - else all that the template writes while it goes through that message, without the opening
//   that it writes as a generation prompt, and with the end of the turn. The opening is the first
//   line of the generation prompt: what a prompt adds to it (<think>) begins the answer.
// A folder without a template is taken to use ChatML, when its tokens are there:
//   <|im_start|>role\ncontent<|im_end|>\n
// with the content of an assistant message and its <|im_end|> to be produced.
#ifndef TANDEM_MODEL_CHAT_H
#define TANDEM_MODEL_CHAT_H

#include <stddef.h>

#include "model/tokenizer.h"

typedef struct td_message {
    const char *role;
    const char *content; // UTF-8
} td_message;

// Text with the byte ranges to train. Owned by the caller; zero-initialise, fini.
typedef struct td_rendered {
    char *text;
    size_t bytes;
    struct td_trained_range {
        size_t begin, end;
    } * trained; // ascending, disjoint
    size_t n_trained;
    // Of a prompt and its completion: where the completion begins and ends. Else all of the text.
    size_t completion_begin, completion_end;
} td_rendered;
void td_rendered_fini(td_rendered *rendered);

// A compiled template with the special tokens it may name. Read-only, any thread.
typedef struct td_chat td_chat;

// Belongs to the tokenizer, and is compiled at the first call. TD_ERR_DATA: a malformed template,
// or neither a template nor the tokens of ChatML.
td_status td_tokenizer_chat(const td_tokenizer *tokenizer, const td_chat **out);

// A template by itself. `special_tokens`: a JSON object such as {"bos_token": "<s>"}, or NULL. With
// `tool_source`, rows with tools are rendered by that instead.
td_status td_chat_create(const char *where, const char *source, const char *tool_source,
                         const char *special_tokens, td_chat **out);
td_status td_chat_create_chatml(const char *special_tokens, td_chat **out);
void td_chat_destroy(td_chat *chat);

// One row of a data file, a JSON object: {"messages"}, {"conversations": [{"from", "value"}]}, or
// {"prompt", "completion"} as lists of messages; with "tools" and "chat_template_kwargs" if it has
// them. `where` begins every message. TD_ERR_DATA: not such a row, or refused by the template.
td_status td_chat_render_row(const td_chat *chat, const char *where, const char *row, size_t bytes,
                             td_rendered *out);

// What the model is given to answer the last message. Nothing of it is trained.
td_status td_chat_render_prompt(const td_chat *chat, const td_message *messages, size_t count,
                                td_rendered *out);

// Another row of the same kind, as an example of how to answer.
typedef struct td_chat_example {
    const char *row;
    size_t bytes;
} td_chat_example;

// A row as td_chat_render_row() takes it, or {"prompt"} alone as a list of messages. Examples
// become earlier turns, after the row's own system messages and without theirs.
typedef struct td_chat_source {
    const char *row;
    size_t bytes;
    const td_chat_example *examples;
    size_t n_examples;
} td_chat_source;

// Texts are NUL-terminated. Owned by the caller.
typedef struct td_chat_question {
    // What is to be answered, with the opening of the assistant's turn. Empty when no message comes
    // before the answer.
    char *prompt;
    size_t prompt_bytes;
    // The assistant's last message (of prompt and completion, the completion): its content; where
    // it has more, tool calls or reasoning, what the template writes after the prompt, with the
    // end of the turn (answer_is_rendered). NULL: the row has no such message.
    char *answer;
    size_t answer_bytes;
    int answer_is_rendered;
    char *text; // the whole row, as training sees it; NULL of a {"prompt"} alone
    size_t text_bytes;
} td_chat_question;
void td_chat_question_fini(td_chat_question *question);
// TD_ERR_DATA: not such a row, or refused by the template.
td_status td_chat_ask(const td_chat *chat, const char *where, const td_chat_source *source,
                      td_chat_question *out);

// ChatML. generation_prompt: append "<|im_start|>assistant\n". TD_ERR_DATA for an empty role.
td_status td_chat_render(const td_message *messages, size_t count, int generation_prompt,
                         td_rendered *out);

// TD_ERR_DATA when the tokenizer has no <|im_start|> and <|im_end|>.
td_status td_chat_require_tokens(const td_tokenizer *tokenizer);

#endif
