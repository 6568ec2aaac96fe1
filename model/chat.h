// Turning chat messages into text and saying which bytes the model is trained on. ChatML.
//
//   <|im_start|>role\ncontent<|im_end|>\n
// The model is to produce the content of an assistant message and its <|im_end|>; with
// assistant_only_loss just those bytes are trained.
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
    struct {
        size_t begin, end;
    } * trained;
    size_t n_trained;
} td_rendered;
void td_rendered_fini(td_rendered *rendered);

// generation_prompt: append "<|im_start|>assistant\n". TD_ERR_DATA for an empty role.
td_status td_chat_render(const td_message *messages, size_t count, int generation_prompt,
                         td_rendered *out);

// TD_ERR_DATA when the tokenizer has no <|im_start|> and <|im_end|>.
td_status td_chat_require_tokens(const td_tokenizer *tokenizer);

#endif
