#include "model/chat.h"

#include <stdlib.h>
#include <string.h>

static const char turn_begin[] = "<|im_start|>", turn_end[] = "<|im_end|>";

void td_rendered_fini(td_rendered *rendered) {
    free(rendered->text);
    free(rendered->trained);
    *rendered = (td_rendered){0};
}

// Bytes of all messages, without the terminator; SIZE_MAX on overflow.
static size_t measure(const td_message *messages, size_t count, int generation_prompt) {
    size_t total = generation_prompt ? sizeof turn_begin + sizeof "assistant\n" : 0;
    for (size_t i = 0; i < count; i++) {
        size_t fixed = sizeof turn_begin + sizeof turn_end + 2;
        if (__builtin_add_overflow(total, fixed, &total) ||
            __builtin_add_overflow(total, strlen(messages[i].role), &total) ||
            __builtin_add_overflow(total, strlen(messages[i].content), &total))
            return SIZE_MAX;
    }
    return total;
}

static void append(td_rendered *rendered, const char *text) {
    size_t bytes = strlen(text);
    memcpy(rendered->text + rendered->bytes, text, bytes + 1);
    rendered->bytes += bytes;
}

static void append_message(td_rendered *rendered, const td_message *message) {
    append(rendered, turn_begin);
    append(rendered, message->role);
    append(rendered, "\n");
    size_t begin = rendered->bytes;
    append(rendered, message->content);
    append(rendered, turn_end);
    if (strcmp(message->role, "assistant") == 0) {
        rendered->trained[rendered->n_trained].begin = begin;
        rendered->trained[rendered->n_trained].end = rendered->bytes;
        rendered->n_trained++;
    }
    append(rendered, "\n");
}

td_status td_chat_render(const td_message *messages, size_t count, int generation_prompt,
                         td_rendered *out) {
    td_rendered rendered = {0};
    for (size_t i = 0; i < count; i++)
        if (messages[i].role[0] == '\0')
            return td_fail(TD_ERR_DATA, "message %zu has an empty role", i);
    size_t bytes = measure(messages, count, generation_prompt);
    if (bytes < SIZE_MAX)
        rendered.text = malloc(bytes + 1);
    rendered.trained = calloc(count + 1, sizeof *rendered.trained);
    if (!rendered.text || !rendered.trained) {
        td_rendered_fini(&rendered);
        return td_fail(TD_ERR_MEMORY, "no memory for a chat of %zu messages", count);
    }
    rendered.text[0] = '\0';
    for (size_t i = 0; i < count; i++)
        append_message(&rendered, &messages[i]);
    if (generation_prompt) {
        append(&rendered, turn_begin);
        append(&rendered, "assistant\n");
    }
    *out = rendered;
    return TD_OK;
}

td_status td_chat_require_tokens(const td_tokenizer *tokenizer) {
    if (td_tokenizer_token_id(tokenizer, turn_begin) >= 0 &&
        td_tokenizer_token_id(tokenizer, turn_end) >= 0)
        return TD_OK;
    return td_fail(TD_ERR_DATA,
                   "the tokenizer has no %s and %s tokens, which chat messages are written with: "
                   "use a model with ChatML tokens, or rows of prompt/completion or text",
                   turn_begin, turn_end);
}
