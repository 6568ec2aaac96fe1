// Between reading the messages of a row (chat_messages.c), rendering them (chat.c) and finding
// what the assistant says in the text (chat_mask.c).
#ifndef TANDEM_MODEL_CHAT_INTERNAL_H
#define TANDEM_MODEL_CHAT_INTERNAL_H

#include "model/chat.h"
#include "model/template_internal.h"

typedef struct td_chat_variant {
    td_template *program; // NULL: there is none
    char *opening;        // of the assistant's turn
    bool is_opening_known;
    bool ends_with_next; // a turn has no end of its own
    // Whether content may be a string, or a list of {"type": "text"} parts.
    bool takes_strings, takes_parts;
} td_chat_variant;

struct td_chat {
    td_chat_variant plain, with_tools;
    char *special_tokens; // JSON object, or NULL
    bool is_builtin;      // ChatML
};

// A row in the memory of a rendering.
typedef struct td_chat_row {
    td_value messages; // list; of a prompt and a completion, both
    size_t n_prompt;   // messages of the prompt; 0: the row is not a prompt and a completion
    td_value tools;    // list or none
    td_value more;     // dict of other variables, or none
} td_chat_row;

// Raises for what is not a chat.
td_chat_row td_chat_read_row(td_render *self, const char *row, size_t bytes);
// Content in the form that the template takes, then sources.
void td_chat_fit_messages(td_render *self, const td_chat_variant *variant, td_value messages);

// One rendering of the first `count` messages of a row.
typedef struct td_chat_request {
    const td_chat *chat;
    const td_chat_variant *variant;
    const td_chat_row *row;
} td_chat_request;
const td_string *td_chat_text(td_render *self, const td_chat_request *request, size_t count,
                              bool generation_prompt);
size_t td_chat_common_prefix(const td_string *a, const td_string *b);

// How the template writes the assistant's turn of a chat of a user and an assistant.
typedef struct td_chat_probe {
    const td_string *opening; // NULL: it cannot be told
    bool ends_with_next;
} td_chat_probe;
td_chat_probe td_chat_probe_turn(td_render *self, const td_chat_request *request);

// Ranges of `text` that the model is to produce.
td_status td_chat_find_trained(td_render *self, const td_chat_request *request,
                               const td_string *text, td_rendered *out);
bool td_chat_is_assistant(const td_chat_row *row, size_t message);

#endif
