// What the assistant says, in the text of a chat.
//
// The template's strings carry the message they came from, and what it writes of its own belongs
// to the message it goes through at that time. So the turn of a message is where its runs are, also
// when the template leaves out, moves or rewrites what the message says. Of a turn the opening is
// taken off: what the template writes when it is asked for a generation prompt.
#include <stdlib.h>
#include <string.h>

#include "model/chat_internal.h"

bool td_chat_is_assistant(const td_chat_row *row, size_t message) {
    if (message >= row->messages.list->count)
        return false;
    const td_value *role = td_dict_get(row->messages.list->items[message].dict, "role");
    return role && role->kind == TD_STRING && td_string_is(role->string, "assistant");
}

static size_t common_prefix(const td_string *a, const td_string *b) {
    size_t length = 0, most = a->bytes < b->bytes ? a->bytes : b->bytes;
    while (length < most && a->text[length] == b->text[length])
        length++;
    return length;
}

// The first line of a prompt, with all line ends that follow it.
static size_t first_line(const td_string *text, size_t begin) {
    const char *found = memchr(text->text + begin, '\n', text->bytes - begin);
    size_t end = found ? (size_t)(found - text->text) : text->bytes;
    while (end < text->bytes && text->text[end] == '\n')
        end++;
    return end;
}

// What a generation prompt adds to what the chat has up to `begin`.
static const td_string *opening_of(td_render *self, const td_string *plain, const td_string *prompt,
                                   size_t begin) {
    size_t common = common_prefix(plain, prompt);
    if (common < begin || common == prompt->bytes)
        return td_string_literal(self, "");
    return td_string_cut(self, prompt, begin, first_line(prompt, begin));
}

static bool begins_with(const td_string *text, size_t at, const char *part, size_t bytes) {
    return bytes <= text->bytes - at && memcmp(text->text + at, part, bytes) == 0;
}

// A turn or a part of one: what is written without a break for one message.
typedef struct segment {
    size_t begin, end;
    bool has_template_text;
} segment;

typedef struct finder {
    td_render *render;
    const td_chat_request *request;
    const td_string *text;
    td_rendered *out;
} finder;

static void add_range(finder *self, size_t begin, size_t end) {
    td_rendered *out = self->out;
    if (begin >= end)
        return;
    if (out->n_trained > 0 && out->trained[out->n_trained - 1].end == begin)
        out->trained[out->n_trained - 1].end = end;
    else
        out->trained[out->n_trained++] = (struct td_trained_range){begin, end};
}

static int message_of(uint32_t tag) {
    return (int)((tag & ~TD_TAG_GENERATED) >> 3) - 1;
}

static bool next_segment(const td_string *text, size_t *at, int *out_message, segment *out) {
    size_t run_end;
    if (*at >= text->bytes)
        return false;
    *out = (segment){.begin = *at};
    *out_message = message_of(td_tag_at(text, *at, &run_end));
    for (; *at < text->bytes; *at = run_end) {
        uint32_t tag = td_tag_at(text, *at, &run_end);
        if (message_of(tag) != *out_message)
            break;
        out->has_template_text = out->has_template_text || (tag & 7) == TD_SOURCE_TURN;
    }
    out->end = *at;
    return true;
}

// The opening of the turn that begins at `begin`: what the template adds to the messages before it.
static const td_string *own_opening(finder *self, size_t begin, size_t message) {
    const td_string *plain = td_chat_text(self->render, self->request, message, false);
    const td_string *prompt = td_chat_text(self->render, self->request, message, true);
    if (common_prefix(prompt, self->text) < begin)
        return td_string_literal(self->render, "");
    return opening_of(self->render, plain, prompt, begin);
}

static bool try_opening(finder *self, size_t begin, size_t message, const td_string **out) {
    jmp_buf exit;
    self->render->trap.exit = &exit;
    if (setjmp(exit) != 0)
        return false;
    *out = own_opening(self, begin, message);
    return true;
}

// Templates refuse beginnings of chats that they do not refuse as a whole.
static const td_string *own_opening_or_none(finder *self, size_t begin, size_t message) {
    jmp_buf *outer = self->render->trap.exit;
    const td_string *opening = td_string_literal(self->render, "");
    if (!try_opening(self, begin, message, &opening))
        td_error_clear();
    self->render->trap.exit = outer;
    return opening;
}

static size_t opening_bytes(finder *self, const segment *turn, size_t message) {
    const char *usual = self->request->variant->opening;
    size_t bytes = strlen(usual);
    if (bytes > 0 && begins_with(self->text, turn->begin, usual, bytes))
        return bytes;
    const td_string *own = own_opening_or_none(self, turn->begin, message);
    return begins_with(self->text, turn->begin, own->text, own->bytes) ? own->bytes : 0;
}

const td_string *td_chat_probe_opening(td_render *self, const td_chat_request *request) {
    const td_string *text = td_chat_text(self, request, 2, false);
    finder finder_ = {.render = self, .request = request, .text = text};
    int message;
    segment turn;
    for (size_t at = 0; next_segment(text, &at, &message, &turn);)
        if (message == 1)
            return own_opening_or_none(&finder_, turn.begin, 1);
    return td_string_literal(self, "");
}

// Spaces behind the end of a turn belong to what comes next.
static size_t without_spaces(const td_string *text, size_t begin, size_t end) {
    while (end > begin && text->text[end - 1] == ' ')
        end--;
    return end;
}

static void take_turns(finder *self) {
    int message, last = -1;
    segment turn;
    for (size_t at = 0; next_segment(self->text, &at, &message, &turn);) {
        if (message < 0 || !td_chat_is_assistant(self->request->row, (size_t)message))
            continue;
        size_t begin = turn.begin, end = turn.end;
        if (message != last)
            begin += opening_bytes(self, &turn, (size_t)message);
        last = message;
        if (end < self->text->bytes)
            end = without_spaces(self->text, begin, end);
        add_range(self, begin, end);
    }
}

static void take_generated(finder *self) {
    size_t run_end;
    for (size_t at = 0; at < self->text->bytes; at = run_end)
        if (td_tag_at(self->text, at, &run_end) & TD_TAG_GENERATED)
            add_range(self, at, run_end);
}

// An end-of-sequence token that the template writes once, after the last turn.
static void take_final_end(finder *self) {
    const td_chat_request *request = self->request;
    size_t n_messages = request->row->messages.list->count;
    td_rendered *out = self->out;
    if (!request->chat->special_tokens || out->n_trained == 0 || n_messages == 0 ||
        !td_chat_is_assistant(request->row, n_messages - 1))
        return;
    td_value tokens = td_parse_json(self->render, request->chat->special_tokens,
                                    strlen(request->chat->special_tokens));
    const td_value *eos = td_dict_get(tokens.dict, "eos_token");
    size_t end = out->trained[out->n_trained - 1].end;
    if (eos && eos->kind == TD_STRING && eos->string->bytes == self->text->bytes - end &&
        begins_with(self->text, end, eos->string->text, eos->string->bytes))
        add_range(self, end, self->text->bytes);
}

static size_t count_runs(const td_string *text) {
    return text->n_runs ? text->n_runs : 1;
}

td_status td_chat_find_trained(td_render *self, const td_chat_request *request,
                               const td_string *text, td_rendered *out) {
    finder finder_ = {.render = self, .request = request, .text = text, .out = out};
    out->trained = calloc(count_runs(text) + 2, sizeof *out->trained);
    if (!out->trained)
        return td_fail(TD_ERR_MEMORY, "no memory for the mask of a chat");
    if (request->variant->program->has_generation) {
        take_generated(&finder_);
        return TD_OK;
    }
    take_turns(&finder_);
    take_final_end(&finder_);
    return TD_OK;
}
