// Messages of a row: reading them from the formats that data comes in, checking them, and putting
// them into the form that the template takes.
#include <string.h>

#include "model/chat_internal.h"

static const td_value *get(const td_dict *dict, const char *key) {
    const td_value *found = td_dict_get(dict, key);
    return found && found->kind != TD_NONE ? found : NULL;
}

static void put(td_render *self, td_dict *dict, const char *key, td_value value) {
    td_dict_set(self, dict, td_text(td_string_literal(self, key)), value);
}

// The role for what a conversation calls its speakers.
static const char *role_of(td_render *self, const td_string *from, size_t index) {
    static const struct {
        const char *from, *role;
    } names[] = {
        {"human", "user"},
        {"user", "user"},
        {"gpt", "assistant"},
        {"assistant", "assistant"},
        {"model", "assistant"},
        {"chatgpt", "assistant"},
        {"system", "system"},
        {"tool", "tool"},
        {"observation", "tool"},
        {"function", "tool"},
        {"function_response", "tool"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (td_string_is(from, names[i].from))
            return names[i].role;
    td_raise(self, "conversations[%zu] is from \"%.*s\": human, gpt, system and tool are known",
             index, (int)from->bytes, from->text);
}

static td_value turn_message(td_render *self, const td_dict *turn, size_t index) {
    td_value message = td_dict_make(self, TD_DICT);
    const td_value *from = get(turn, "from"), *value = get(turn, "value");
    if (!from || from->kind != TD_STRING || !value || value->kind != TD_STRING)
        td_raise(self, "conversations[%zu] must have \"from\" and \"value\" strings", index);
    put(self, message.dict, "role",
        td_text(td_string_literal(self, role_of(self, from->string, index))));
    put(self, message.dict, "content", *value);
    return message;
}

// {"conversations": [{"from", "value"}]}, with "system" beside it or not.
static td_value read_conversations(td_render *self, const td_dict *row, const td_value *turns) {
    td_value messages = td_list_make(self, TD_LIST, 0);
    const td_value *system = get(row, "system");
    if (turns->kind != TD_LIST || turns->list->count == 0)
        td_raise(self, "\"conversations\" must be a list with messages");
    if (system && system->kind == TD_STRING && system->string->bytes > 0) {
        td_value message = td_dict_make(self, TD_DICT);
        put(self, message.dict, "role", td_text(td_string_literal(self, "system")));
        put(self, message.dict, "content", *system);
        td_list_add(self, messages.list, message);
    }
    for (size_t i = 0; i < turns->list->count; i++) {
        const td_value *turn = &turns->list->items[i];
        if (turn->kind != TD_DICT)
            td_raise(self, "conversations[%zu] must be an object", i);
        bool has_role = get(turn->dict, "role") && get(turn->dict, "content");
        td_list_add(self, messages.list, has_role ? *turn : turn_message(self, turn->dict, i));
    }
    return messages;
}

static void check_part(td_render *self, const char *key, size_t index, td_value part) {
    const td_value *type = part.kind == TD_DICT ? get(part.dict, "type") : NULL;
    const td_value *text = part.kind == TD_DICT ? get(part.dict, "text") : NULL;
    if (!type || type->kind != TD_STRING || !td_string_is(type->string, "text") || !text ||
        text->kind != TD_STRING)
        td_raise(self,
                 "%s[%zu] has content other than text: parts must be {\"type\": \"text\", "
                 "\"text\"}",
                 key, index);
}

static bool has_calls(const td_dict *message) {
    const td_value *calls = get(message, "tool_calls");
    return calls && td_truth(*calls);
}

static void check_message(td_render *self, const char *key, size_t index, td_value message) {
    const td_value *role = message.kind == TD_DICT ? get(message.dict, "role") : NULL;
    const td_value *content = message.kind == TD_DICT ? get(message.dict, "content") : NULL;
    const td_value *calls = message.kind == TD_DICT ? get(message.dict, "tool_calls") : NULL;
    bool is_content = content ? content->kind == TD_STRING || content->kind == TD_LIST
                              : message.kind == TD_DICT && has_calls(message.dict);
    // What a tool gives back may be data.
    if (content && role && role->kind == TD_STRING && td_string_is(role->string, "tool"))
        is_content = true;
    if (!role || role->kind != TD_STRING || role->string->bytes == 0 || !is_content)
        td_raise(self, "%s[%zu] must have \"role\" and \"content\" strings", key, index);
    if (calls && calls->kind != TD_LIST)
        td_raise(self, "%s[%zu]: \"tool_calls\" must be a list", key, index);
    for (size_t i = 0; calls && i < calls->list->count; i++)
        if (calls->list->items[i].kind != TD_DICT)
            td_raise(self, "%s[%zu]: \"tool_calls\" must be a list of objects", key, index);
    bool is_tool = td_string_is(role->string, "tool");
    for (size_t i = 0; content && content->kind == TD_LIST && !is_tool && i < content->list->count;
         i++)
        check_part(self, key, index, content->list->items[i]);
}

// Reasoning under any of its names is there under the two that templates read, as in transformers.
static td_value with_reasoning(td_render *self, td_value message) {
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    const td_value *reasoning = NULL;
    for (size_t i = 0; i < 3 && !reasoning; i++)
        reasoning = get(message.dict, names[i]);
    if (!reasoning)
        return message;
    td_value out = td_dict_make(self, TD_DICT);
    put(self, out.dict, "thinking", *reasoning);
    for (size_t i = 0; i < message.dict->count; i++)
        td_dict_set(self, out.dict, message.dict->entries[i].key, message.dict->entries[i].value);
    put(self, out.dict, "reasoning_content", *reasoning);
    return out;
}

static void take_messages(td_render *self, const char *key, td_value list, td_value out) {
    for (size_t i = 0; i < list.list->count; i++) {
        check_message(self, key, i, list.list->items[i]);
        td_list_add(self, out.list, with_reasoning(self, list.list->items[i]));
    }
}

// A list, or the same as JSON in a string.
static td_value read_tools(td_render *self, const td_dict *row) {
    const td_value *found = get(row, "tools");
    td_value tools = found ? *found : td_none();
    if (tools.kind == TD_STRING && tools.string->bytes > 0)
        tools = td_parse_json(self, tools.string->text, tools.string->bytes);
    if (tools.kind != TD_NONE && !(tools.kind == TD_STRING && tools.string->bytes == 0) &&
        tools.kind != TD_LIST)
        td_raise(self, "\"tools\" must be a list of objects");
    return td_truth(tools) ? tools : td_none();
}

static td_value read_list(td_render *self, const td_dict *row, const char *key) {
    const td_value *found = get(row, key);
    if (!found || found->kind != TD_LIST || found->list->count == 0)
        td_raise(self, "\"%s\" must be a list with messages", key);
    return *found;
}

td_chat_row td_chat_read_row(td_render *self, const char *text, size_t bytes) {
    td_value row = td_parse_json(self, text, bytes);
    td_chat_row out = {.messages = td_list_make(self, TD_LIST, 0), .more = td_none()};
    if (row.kind != TD_DICT)
        td_raise(self, "the line is not a JSON object");
    const td_value *conversations = get(row.dict, "conversations");
    if (get(row.dict, "prompt") && get(row.dict, "completion")) {
        const td_value *prompt = get(row.dict, "prompt");
        if (prompt->kind != TD_LIST)
            td_raise(self, "\"prompt\" must be a list of messages");
        take_messages(self, "prompt", *prompt, out.messages);
        out.n_prompt = out.messages.list->count;
        take_messages(self, "completion", read_list(self, row.dict, "completion"), out.messages);
    } else if (get(row.dict, "prompt") && !get(row.dict, "messages") && !conversations) {
        take_messages(self, "prompt", read_list(self, row.dict, "prompt"), out.messages);
        out.n_prompt = out.messages.list->count;
    } else if (get(row.dict, "messages") || !conversations) {
        take_messages(self, "messages", read_list(self, row.dict, "messages"), out.messages);
    } else {
        take_messages(self, "conversations", read_conversations(self, row.dict, conversations),
                      out.messages);
    }
    out.tools = read_tools(self, row.dict);
    const td_value *more = get(row.dict, "chat_template_kwargs");
    if (more && more->kind == TD_DICT)
        out.more = *more;
    return out;
}

static td_value joined_parts(td_render *self, const td_list *parts) {
    td_builder text = {0};
    for (size_t i = 0; i < parts->count; i++)
        td_build_string(self, &text, td_dict_get(parts->items[i].dict, "text")->string);
    return td_text(td_built(self, &text));
}

static td_value one_part(td_render *self, td_value text) {
    td_value part = td_dict_make(self, TD_DICT), parts = td_list_make(self, TD_LIST, 1);
    put(self, part.dict, "type", td_text(td_string_literal(self, "text")));
    put(self, part.dict, "text", text);
    td_list_add(self, parts.list, part);
    return parts;
}

static bool is_text_parts(td_value content) {
    for (size_t i = 0; content.kind == TD_LIST && i < content.list->count; i++) {
        td_value part = content.list->items[i];
        const td_value *text = part.kind == TD_DICT ? td_dict_get(part.dict, "text") : NULL;
        if (!text || text->kind != TD_STRING)
            return false;
    }
    return content.kind == TD_LIST;
}

void td_chat_fit_messages(td_render *self, const td_chat_variant *variant, td_value messages) {
    for (size_t i = 0; i < messages.list->count; i++) {
        td_dict *message = messages.list->items[i].dict;
        const td_value *content = get(message, "content");
        if (content && is_text_parts(*content) && !variant->takes_parts)
            put(self, message, "content", joined_parts(self, content->list));
        else if (content && content->kind == TD_STRING && !variant->takes_strings)
            put(self, message, "content", one_part(self, *content));
    }
    td_tag_messages(self, messages);
}
