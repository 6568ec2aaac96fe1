#define _GNU_SOURCE // memmem
#include "model/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat_internal.h"

// What a folder without a template is taken to mean.
static const char chatml[] =
    "{% if tools %}{{ raise_exception('the row has \"tools\", which ChatML does not define: "
    "write them into a system message') }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.tool_calls %}{{ raise_exception('messages[' ~ loop.index0 ~ '] has "
    "\"tool_calls\", which ChatML does not define: write them into \"content\"') }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

void td_rendered_fini(td_rendered *rendered) {
    free(rendered->text);
    free(rendered->trained);
    *rendered = (td_rendered){0};
}

static void set(td_render *self, td_dict *dict, const char *key, td_value value) {
    td_dict_set(self, dict, td_text(td_string_literal(self, key)), value);
}

static void set_all(td_render *self, td_dict *dict, td_value from) {
    for (size_t i = 0; from.kind == TD_DICT && i < from.dict->count; i++)
        td_dict_set(self, dict, from.dict->entries[i].key, from.dict->entries[i].value);
}

const td_string *td_chat_text(td_render *self, const td_chat_request *request, size_t count,
                              bool generation_prompt) {
    td_dict *variables = td_dict_make(self, TD_DICT).dict;
    td_value messages = td_list_make(self, TD_LIST, 0);
    const char *tokens = request->chat->special_tokens;
    messages.list->items = request->row->messages.list->items;
    messages.list->count = messages.list->capacity = count;
    if (tokens)
        set_all(self, variables, td_parse_json(self, tokens, strlen(tokens)));
    set(self, variables, "documents", td_none());
    set_all(self, variables, request->row->more);
    set(self, variables, "messages", messages);
    set(self, variables, "tools", request->row->tools);
    set(self, variables, "add_generation_prompt", td_bool(generation_prompt));
    return td_run_template(self, request->variant->program, variables);
}

static td_status copy_text(const td_string *text, td_rendered *out) {
    out->text = malloc(text->bytes + 1);
    if (!out->text)
        return td_fail(TD_ERR_MEMORY, "no memory for the text of a chat");
    memcpy(out->text, text->text, text->bytes);
    out->text[text->bytes] = '\0';
    out->bytes = out->completion_end = text->bytes;
    return TD_OK;
}

static const td_chat_variant *choose_variant(const td_chat *chat, const td_chat_row *row) {
    bool has_own = chat->with_tools.program && row->tools.kind != TD_NONE;
    return has_own ? &chat->with_tools : &chat->plain;
}

// What follows the prompt with the opening of the assistant's turn.
static void find_completion(td_render *self, const td_chat_request *request, const td_string *text,
                            td_rendered *out) {
    const td_string *prompt = td_chat_text(self, request, request->row->n_prompt, true);
    out->completion_begin = td_chat_common_prefix(prompt, text);
    // The end of a ChatML turn is <|im_end|>, without the line end.
    out->completion_end = text->bytes - (request->chat->is_builtin && text->bytes > 0);
}

static td_status render_row(td_render *self, const td_chat *chat, const char *row_text,
                            size_t bytes, td_rendered *out) {
    td_chat_row row = td_chat_read_row(self, row_text, bytes);
    td_chat_request request = {.chat = chat, .variant = choose_variant(chat, &row), .row = &row};
    td_chat_fit_messages(self, request.variant, row.messages);
    const td_string *text = td_chat_text(self, &request, row.messages.list->count, false);
    TD_TRY(copy_text(text, out));
    if (row.n_prompt > 0)
        find_completion(self, &request, text, out);
    return td_chat_find_trained(self, &request, text, out);
}

static td_status render_row_or_fail(td_render *self, const td_chat *chat, const char *row,
                                    size_t bytes, td_rendered *out) {
    jmp_buf exit;
    self->trap.exit = &exit;
    if (setjmp(exit) != 0)
        return self->trap.status;
    return render_row(self, chat, row, bytes, out);
}

td_status td_chat_render_row(const td_chat *chat, const char *where, const char *row, size_t bytes,
                             td_rendered *out) {
    td_pile pile;
    td_render render;
    td_rendered rendered = {0};
    td_render_init(&render, &pile, where);
    render.prefix = where;
    td_status status = render_row_or_fail(&render, chat, row, bytes, &rendered);
    td_pile_fini(&pile);
    if (status != TD_OK) {
        td_rendered_fini(&rendered);
        return status;
    }
    *out = rendered;
    return TD_OK;
}

static td_value message_value(td_render *self, const td_message *message, size_t index) {
    td_value value = td_dict_make(self, TD_DICT);
    if (message->role[0] == '\0')
        td_raise(self, "message %zu has an empty role", index);
    set(self, value.dict, "role",
        td_text(td_string_make(self, message->role, strlen(message->role), 0)));
    set(self, value.dict, "content",
        td_text(td_string_make(self, message->content, strlen(message->content), 0)));
    return value;
}

static td_status render_messages(td_render *self, const td_chat *chat, const td_message *messages,
                                 size_t count, bool generation_prompt, td_rendered *out) {
    td_chat_row row = {
        .messages = td_list_make(self, TD_LIST, count), .tools = td_none(), .more = td_none()};
    td_chat_request request = {.chat = chat, .variant = &chat->plain, .row = &row};
    for (size_t i = 0; i < count; i++)
        td_list_add(self, row.messages.list, message_value(self, &messages[i], i));
    td_chat_fit_messages(self, request.variant, row.messages);
    const td_string *text = td_chat_text(self, &request, count, generation_prompt);
    TD_TRY(copy_text(text, out));
    return generation_prompt ? TD_OK : td_chat_find_trained(self, &request, text, out);
}

static td_status render_messages_or_fail(td_render *self, const td_chat *chat,
                                         const td_message *messages, size_t count,
                                         bool generation_prompt, td_rendered *out) {
    jmp_buf exit;
    self->trap.exit = &exit;
    if (setjmp(exit) != 0)
        return self->trap.status;
    return render_messages(self, chat, messages, count, generation_prompt, out);
}

static td_status render_list(const td_chat *chat, const td_message *messages, size_t count,
                             bool generation_prompt, td_rendered *out) {
    td_pile pile;
    td_render render;
    td_rendered rendered = {0};
    td_render_init(&render, &pile, "chat");
    td_status status =
        render_messages_or_fail(&render, chat, messages, count, generation_prompt, &rendered);
    td_pile_fini(&pile);
    if (status != TD_OK) {
        td_rendered_fini(&rendered);
        return status;
    }
    *out = rendered;
    return TD_OK;
}

td_status td_chat_render_prompt(const td_chat *chat, const td_message *messages, size_t count,
                                td_rendered *out) {
    return render_list(chat, messages, count, true, out);
}

td_status td_chat_render(const td_message *messages, size_t count, int generation_prompt,
                         td_rendered *out) {
    td_chat *chat;
    TD_TRY(td_chat_create_chatml(NULL, &chat));
    td_status status = render_list(chat, messages, count, generation_prompt != 0, out);
    td_chat_destroy(chat);
    return status;
}

// The request for a conversation that is written as JSON and becomes `row`, which it refers to.
static td_chat_request request_of(td_render *self, const td_chat_request *like,
                                  const char *messages, td_chat_row *row) {
    td_chat_request out = *like;
    *row = (td_chat_row){.messages = td_parse_json(self, messages, strlen(messages)),
                         .tools = td_none(),
                         .more = td_none()};
    td_tag_messages(self, row->messages);
    out.row = row;
    return out;
}

// Does content of this form come out of the template as the text that it is?
static bool takes(td_render *self, const td_chat_request *like, const char *messages) {
    td_chat_row row;
    td_chat_request request = request_of(self, like, messages, &row);
    const td_string *text = td_chat_text(self, &request, row.messages.list->count, false);
    return memmem(text->text, text->bytes, "tandem-probe", 12) &&
           !memmem(text->text, text->bytes, "'tandem-probe'", 14);
}

static bool takes_or_fails(td_render *self, const td_chat_request *like, const char *messages) {
    jmp_buf exit;
    self->trap.exit = &exit;
    if (setjmp(exit) != 0) {
        td_error_clear();
        return false;
    }
    return takes(self, like, messages);
}

static bool try_probe(td_render *self, const td_chat_request *like, const char *messages,
                      td_chat_probe *out) {
    jmp_buf exit;
    td_chat_row row;
    self->trap.exit = &exit;
    if (setjmp(exit) != 0) {
        td_error_clear();
        return false;
    }
    td_chat_request request = request_of(self, like, messages, &row);
    *out = td_chat_probe_turn(self, &request);
    return true;
}

#define USER_STRING   "{\"role\":\"user\",\"content\":\"tandem-probe\"}"
#define USER_PARTS    "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"tandem-probe\"}]}"
#define ANSWER_STRING "{\"role\":\"assistant\",\"content\":\"tandem-answer\"}"
#define ANSWER_PARTS                                                                               \
    "{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"tandem-answer\"}]}"
#define CALL                                                                                       \
    "{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"call00000\",\"type\":"     \
    "\"function\",\"function\":{\"name\":\"tandem\",\"arguments\":{\"a\":\"b\"}}}]}"

// The opening is what an answer and a call of a tool have in common.
static td_status find_opening(td_render *self, const td_chat_request *request,
                              td_chat_variant *variant) {
    bool is_string = variant->takes_strings;
    td_chat_probe answer = {0}, call = {0};
    try_probe(self, request,
              is_string ? "[" USER_STRING "," ANSWER_STRING "]"
                        : "[" USER_PARTS "," ANSWER_PARTS "]",
              &answer);
    try_probe(self, request, is_string ? "[" USER_STRING "," CALL "]" : "[" USER_PARTS "," CALL "]",
              &call);
    const td_string *opening = answer.opening;
    if (opening && call.opening &&
        td_chat_common_prefix(opening, call.opening) == call.opening->bytes)
        opening = call.opening;
    variant->ends_with_next = answer.ends_with_next;
    variant->is_opening_known = opening != NULL;
    variant->opening = opening ? strndup(opening->text, opening->bytes) : strdup("");
    return variant->opening ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for a chat template");
}

static td_status probe(const td_chat *chat, td_chat_variant *variant) {
    td_pile pile;
    td_render render;
    td_chat_request request = {.chat = chat, .variant = variant};
    td_render_init(&render, &pile, "probe");
    variant->takes_strings = takes_or_fails(&render, &request, "[" USER_STRING "]");
    variant->takes_parts = takes_or_fails(&render, &request, "[" USER_PARTS "]");
    // A template that fails on either says more when it gets what a row has.
    if (!variant->takes_strings && !variant->takes_parts)
        variant->takes_strings = true;
    td_status status = find_opening(&render, &request, variant);
    td_pile_fini(&pile);
    return status;
}

static td_status create_variant(const td_chat *chat, const char *where, const char *source,
                                td_chat_variant *out) {
    TD_TRY(td_template_compile(where, source, strlen(source), &out->program));
    return probe(chat, out);
}

static td_status fill(td_chat *chat, const char *where, const char *source, const char *tool_source,
                      const char *special_tokens) {
    chat->special_tokens = special_tokens ? strdup(special_tokens) : NULL;
    if (special_tokens && !chat->special_tokens)
        return td_fail(TD_ERR_MEMORY, "no memory for a chat template");
    chat->is_builtin = source == chatml;
    TD_TRY(create_variant(chat, where, source, &chat->plain));
    return tool_source ? create_variant(chat, where, tool_source, &chat->with_tools) : TD_OK;
}

td_status td_chat_create(const char *where, const char *source, const char *tool_source,
                         const char *special_tokens, td_chat **out) {
    td_chat *chat = calloc(1, sizeof *chat);
    if (!chat)
        return td_fail(TD_ERR_MEMORY, "no memory for a chat template");
    td_status status = fill(chat, where, source, tool_source, special_tokens);
    if (status != TD_OK) {
        td_chat_destroy(chat);
        return status;
    }
    *out = chat;
    return TD_OK;
}

void td_chat_destroy(td_chat *chat) {
    if (!chat)
        return;
    td_template_destroy(chat->plain.program);
    td_template_destroy(chat->with_tools.program);
    free(chat->plain.opening);
    free(chat->with_tools.opening);
    free(chat->special_tokens);
    free(chat);
}

td_status td_chat_create_chatml(const char *special_tokens, td_chat **out) {
    return td_chat_create("ChatML", chatml, NULL, special_tokens, out);
}
