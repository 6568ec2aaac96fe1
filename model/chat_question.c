// The question that a row asks, for a model to answer: the row's text up to its answer, with other
// rows as earlier turns before it where examples are to be given.
#include <stdlib.h>
#include <string.h>

#include "model/chat_internal.h"

void td_chat_question_fini(td_chat_question *question) {
    free(question->prompt);
    free(question->answer);
    free(question->text);
    *question = (td_chat_question){0};
}

static td_status copy(const td_string *from, char **out, size_t *out_bytes) {
    *out = malloc(from->bytes + 1);
    if (!*out)
        return td_fail(TD_ERR_MEMORY, "no memory for the text of a chat");
    memcpy(*out, from->text, from->bytes);
    (*out)[from->bytes] = '\0';
    *out_bytes = from->bytes;
    return TD_OK;
}

static bool is_system(const td_value *message) {
    const td_value *role = td_dict_get(message->dict, "role");
    return role && role->kind == TD_STRING &&
           (td_string_is(role->string, "system") || td_string_is(role->string, "developer"));
}

static void add_messages(td_render *self, td_list *to, const td_list *from, size_t begin,
                         bool with_system) {
    for (size_t i = begin; i < from->count; i++)
        if (with_system || !is_system(&from->items[i]))
            td_list_add(self, to, from->items[i]);
}

// The row's own system messages, the examples without theirs, the row.
static td_value with_examples(td_render *self, const td_chat_row *row,
                              const td_chat_example *examples, size_t count) {
    td_value all = td_list_make(self, TD_LIST, 0);
    const td_list *own = row->messages.list;
    size_t lead = 0;
    while (lead < own->count && is_system(&own->items[lead]))
        td_list_add(self, all.list, own->items[lead++]);
    for (size_t i = 0; i < count; i++) {
        td_chat_row example = td_chat_read_row(self, examples[i].row, examples[i].bytes);
        add_messages(self, all.list, example.messages.list, 0, false);
    }
    add_messages(self, all.list, own, lead, true);
    return all;
}

// Of the row's own messages, those that are the question.
static size_t question_length(const td_chat_row *row) {
    size_t count = row->messages.list->count;
    if (row->n_prompt > 0)
        return row->n_prompt;
    return count - (count > 0 && td_chat_is_assistant(row, count - 1));
}

static bool has(const td_dict *message, const char *key) {
    const td_value *value = td_dict_get(message, key);
    return value && td_truth(*value);
}

static const td_string *content_text(td_render *self, const td_value *content) {
    if (content && content->kind == TD_STRING)
        return content->string;
    td_builder text = {0};
    for (size_t i = 0; content && content->kind == TD_LIST && i < content->list->count; i++)
        td_build_string(self, &text, td_dict_get(content->list->items[i].dict, "text")->string);
    return td_built(self, &text);
}

// An answer that is more than its content is what the template writes after the prompt.
static td_status take_answer(td_render *self, const td_value *message, const td_string *prompt,
                             const td_string *text, td_chat_question *out) {
    if (!has(message->dict, "tool_calls") && !has(message->dict, "reasoning_content"))
        return copy(content_text(self, td_dict_get(message->dict, "content")), &out->answer,
                    &out->answer_bytes);
    if (td_chat_common_prefix(prompt, text) < prompt->bytes)
        return TD_OK;
    out->answer_is_rendered = 1;
    return copy(td_string_cut(self, text, prompt->bytes, text->bytes), &out->answer,
                &out->answer_bytes);
}

static td_status ask(td_render *self, const td_chat *chat, const td_chat_source *source,
                     td_chat_question *out) {
    td_chat_row row = td_chat_read_row(self, source->row, source->bytes);
    bool has_own = chat->with_tools.program && row.tools.kind != TD_NONE;
    td_chat_request request = {
        .chat = chat, .variant = has_own ? &chat->with_tools : &chat->plain, .row = &row};
    size_t n_question = question_length(&row), n_own = row.messages.list->count;
    bool is_prompt_alone = row.n_prompt == n_own, asks = n_question > 0;
    row.messages = with_examples(self, &row, source->examples, source->n_examples);
    size_t count = row.messages.list->count;
    n_question += count - n_own;
    td_chat_fit_messages(self, request.variant, row.messages);
    const td_string *prompt =
        asks ? td_chat_text(self, &request, n_question, true) : td_string_literal(self, "");
    TD_TRY(copy(prompt, &out->prompt, &out->prompt_bytes));
    if (is_prompt_alone)
        return TD_OK;
    const td_string *text = td_chat_text(self, &request, count, false);
    TD_TRY(copy(text, &out->text, &out->text_bytes));
    if (!asks || n_question + 1 != count || !td_chat_is_assistant(&row, n_question))
        return TD_OK;
    return take_answer(self, &row.messages.list->items[n_question], prompt, text, out);
}

static td_status ask_or_fail(td_render *self, const td_chat *chat, const td_chat_source *source,
                             td_chat_question *out) {
    jmp_buf exit;
    self->trap.exit = &exit;
    if (setjmp(exit) != 0)
        return self->trap.status;
    return ask(self, chat, source, out);
}

td_status td_chat_ask(const td_chat *chat, const char *where, const td_chat_source *source,
                      td_chat_question *out) {
    td_pile pile;
    td_render render;
    td_chat_question question = {0};
    td_render_init(&render, &pile, where);
    render.prefix = where;
    td_status status = ask_or_fail(&render, chat, source, &question);
    td_pile_fini(&pile);
    if (status != TD_OK) {
        td_chat_question_fini(&question);
        return status;
    }
    *out = question;
    return TD_OK;
}
