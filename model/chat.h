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

// ChatML. generation_prompt: append "<|im_start|>assistant\n". TD_ERR_DATA for an empty role.
td_status td_chat_render(const td_message *messages, size_t count, int generation_prompt,
                         td_rendered *out);

// TD_ERR_DATA when the tokenizer has no <|im_start|> and <|im_end|>.
td_status td_chat_require_tokens(const td_tokenizer *tokenizer);

#endif
