// What the assistant says, in the text of a chat.
//
// The template's strings carry the message they came from, and what it writes of its own belongs
// to the message it goes through at that time. So the turn of a message is where its runs are, also
// when the template leaves out, moves or rewrites what the message says. Of a turn the opening is
// taken off: what the template writes when it is asked for a generation prompt.
#define _GNU_SOURCE // memmem
#include <stdlib.h>
#include <string.h>

#include "model/chat_internal.h"

bool td_chat_is_assistant(const td_chat_row *row, size_t message) {
    if (message >= row->messages.list->count)
        return false;
    const td_value *role = td_dict_get(row->messages.list->items[message].dict, "role");
    return role && role->kind == TD_STRING && td_string_is(role->string, "assistant");
}

size_t td_chat_common_prefix(const td_string *a, const td_string *b) {
    size_t length = 0, most = a->bytes < b->bytes ? a->bytes : b->bytes;
    while (length < most && a->text[length] == b->text[length])
        length++;
    return length;
}

static bool begins_with(const td_string *text, size_t at, const char *part, size_t bytes) {
    return bytes <= text->bytes - at && memcmp(text->text + at, part, bytes) == 0;
}

static bool is_blank(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (!strchr(" \t\r\n", text[i]) || !text[i])
            return false;
    return true;
}

// A turn or a part of one: what is written without a break for one message.
typedef struct segment {
    int message;
    size_t begin, end;
    size_t lead, tail; // where the first text that came from the message begins, the last ends
    bool has_template_text;
} segment;

static int message_of(uint32_t tag) {
    return (int)((tag & ~TD_TAG_GENERATED) >> 3) - 1;
}

static bool next_segment(const td_string *text, size_t *at, segment *out) {
    size_t run_end;
    if (*at >= text->bytes)
        return false;
    *out =
        (segment){.begin = *at, .tail = *at, .message = message_of(td_tag_at(text, *at, &run_end))};
    bool has_data = false;
    for (; *at < text->bytes; *at = run_end) {
        uint32_t tag = td_tag_at(text, *at, &run_end);
        if (message_of(tag) != out->message)
            break;
        if ((tag & 7) == TD_SOURCE_TURN) {
            out->has_template_text = true;
            continue;
        }
        out->lead = has_data ? out->lead : *at;
        out->tail = run_end;
        has_data = true;
    }
    out->end = *at;
    if (!has_data)
        out->lead = out->end;
    return true;
}

typedef struct finder {
    td_render *render;
    const td_chat_request *request;
    const td_string *text;
    td_rendered *out;
} finder;

static void add_range(finder *self, size_t begin, size_t end) {
    td_rendered *out = self->out;
    if (out->n_trained > 0 && begin < out->trained[out->n_trained - 1].end)
        begin = out->trained[out->n_trained - 1].end;
    if (begin >= end)
        return;
    if (out->n_trained > 0 && out->trained[out->n_trained - 1].end == begin)
        out->trained[out->n_trained - 1].end = end;
    else
        out->trained[out->n_trained++] = (struct td_trained_range){begin, end};
}

// What a generation prompt adds to the first `message` messages, from `begin` on, where their text
// ends in the whole chat. "" when it adds nothing, or the beginning is not that of the chat.
static const td_string *own_prompt(finder *self, size_t begin, size_t message) {
    const td_string *plain = td_chat_text(self->render, self->request, message, false);
    const td_string *prompt = td_chat_text(self->render, self->request, message, true);
    size_t common = td_chat_common_prefix(plain, prompt);
    if (td_chat_common_prefix(prompt, self->text) < begin || common < begin ||
        common == prompt->bytes)
        return td_string_literal(self->render, "");
    return td_string_cut(self->render, prompt, begin, prompt->bytes);
}

static bool try_prompt(finder *self, size_t begin, size_t message, const td_string **out) {
    jmp_buf exit;
    self->render->trap.exit = &exit;
    if (setjmp(exit) != 0)
        return false;
    *out = own_prompt(self, begin, message);
    return true;
}

// Templates refuse beginnings of chats that they do not refuse as a whole.
static const td_string *prompt_or_none(finder *self, size_t begin, size_t message) {
    jmp_buf *outer = self->render->trap.exit;
    const td_string *prompt = td_string_literal(self->render, "");
    if (!try_prompt(self, begin, message, &prompt))
        td_error_clear();
    self->render->trap.exit = outer;
    return prompt;
}

// The first line of a prompt, with all line ends that follow it.
static size_t first_line(const td_string *text) {
    const char *found = memchr(text->text, '\n', text->bytes);
    size_t end = found ? (size_t)(found - text->text) : text->bytes;
    while (end < text->bytes && text->text[end] == '\n')
        end++;
    return end;
}

// Does this piece of the template's text lie across `at`, and say something behind it that does
// not open the assistant's reasoning? Then *out_begin is where it begins.
static bool lies_across(const td_string *piece, const td_string *text, size_t at,
                        size_t *out_begin) {
    for (size_t before = 1; before < piece->bytes && before <= at; before++) {
        size_t after = piece->bytes - before;
        if (!begins_with(text, at - before, piece->text, piece->bytes) ||
            is_blank(piece->text + before, after) ||
            (after >= 6 && memcmp(piece->text + before, "<think", 6) == 0))
            continue;
        *out_begin = at - before;
        return true;
    }
    return false;
}

// The bytes of a turn that are its opening. A template that writes more in one piece than its
// generation prompt has (<|start|>assistant<|channel|>final) means the piece to be the answer's.
static size_t opening_within(const td_chat_request *request, const td_string *text, size_t begin,
                             const td_string *prompt) {
    const td_nodes *pieces = &request->variant->program->literals;
    size_t end = first_line(prompt), at = begin + prompt->bytes, piece_begin;
    if (!begins_with(text, begin, prompt->text, prompt->bytes))
        return begins_with(text, begin, prompt->text, end) ? end : 0;
    for (size_t i = 0; i < pieces->count; i++)
        if (lies_across(pieces->items[i]->value.string, text, at, &piece_begin) &&
            piece_begin < begin + end)
            end = piece_begin > begin ? piece_begin - begin : 0;
    return end;
}

// Where the opening ends in a turn that may begin with more than that, such as the text that is at
// the beginning of every chat.
static size_t after_usual_opening(const td_chat_request *request, const td_string *text,
                                  const segment *turn) {
    const char *usual = request->variant->opening;
    size_t bytes = strlen(usual);
    if (begins_with(text, turn->begin, usual, bytes))
        return turn->begin + bytes;
    const char *found =
        turn->lead > turn->begin && bytes > 0
            ? memmem(text->text + turn->begin, turn->lead - turn->begin, usual, bytes)
            : NULL;
    return found ? (size_t)(found - text->text) + bytes : SIZE_MAX;
}

static size_t after_opening(finder *self, const segment *turn) {
    size_t usual = after_usual_opening(self->request, self->text, turn);
    if (self->request->variant->is_opening_known && usual != SIZE_MAX)
        return usual;
    const td_string *prompt = prompt_or_none(self, turn->begin, (size_t)turn->message);
    return turn->begin + opening_within(self->request, self->text, turn->begin, prompt);
}

// What the template writes for a tool's answer is not the assistant's, though it stands at the end
// of a chat that has no answer yet. Where the turn ends when there is one.
static size_t answered_end(finder *self, const segment *turn) {
    const td_list *messages = self->request->row->messages.list;
    td_chat_row row = *self->request->row;
    td_chat_request request = *self->request;
    static const char answer[] = "{\"role\":\"tool\",\"name\":\"tool\",\"content\":\"answer\"}";
    size_t end = turn->end;
    segment other;
    row.messages = td_list_make(self->render, TD_LIST, messages->count + 1);
    for (size_t i = 0; i < messages->count; i++)
        td_list_add(self->render, row.messages.list, messages->items[i]);
    td_value tool = td_parse_json(self->render, answer, sizeof answer - 1);
    tool.dict->message = (int)messages->count;
    td_list_add(self->render, row.messages.list, tool);
    request.row = &row;
    const td_string *text = td_chat_text(self->render, &request, messages->count + 1, false);
    size_t common = td_chat_common_prefix(text, self->text);
    for (size_t at = 0; next_segment(text, &at, &other);)
        if (other.message == turn->message && other.begin == turn->begin && other.end <= common)
            end = other.end;
    return end;
}

static bool try_answered_end(finder *self, const segment *turn, size_t *out) {
    jmp_buf exit;
    self->render->trap.exit = &exit;
    if (setjmp(exit) != 0)
        return false;
    *out = answered_end(self, turn);
    return true;
}

static size_t end_without_answer(finder *self, const segment *turn) {
    const td_list *messages = self->request->row->messages.list;
    const td_value *calls = td_dict_get(messages->items[turn->message].dict, "tool_calls");
    size_t end = turn->end;
    if ((size_t)turn->message + 1 < messages->count || turn->end < self->text->bytes || !calls ||
        !td_truth(*calls))
        return end;
    jmp_buf *outer = self->render->trap.exit;
    if (!try_answered_end(self, turn, &end))
        td_error_clear();
    self->render->trap.exit = outer;
    return end;
}

// A template whose turns have no end of their own ends them with the token of the next one.
static size_t with_next_token(const td_string *text, size_t end) {
    size_t stop = end, run_end;
    if (end >= text->bytes || text->text[end] != '<')
        return end;
    uint32_t tag = td_tag_at(text, end, &run_end);
    while (stop < run_end && text->text[stop] != '>' && text->text[stop] != ' ' &&
           text->text[stop] != '\n')
        stop++;
    bool is_template_text = (tag & 7) == TD_SOURCE_TURN;
    return is_template_text && stop < run_end && text->text[stop] == '>' ? stop + 1 : end;
}

static size_t after_blanks(const td_string *text, size_t at) {
    while (at < text->bytes && is_blank(text->text + at, 1))
        at++;
    return at;
}

// Of a template that writes its text elsewhere than where it goes through the messages, only what
// came from the message is known: its turn ends with the token that follows.
static size_t end_of_bare(const td_string *text, size_t end) {
    size_t run_end;
    if (end < text->bytes && message_of(td_tag_at(text, end, &run_end)) >= 0)
        return end;
    size_t begin = after_blanks(text, end), stop = with_next_token(text, begin);
    return stop > begin ? after_blanks(text, stop) : end;
}

static size_t turn_end(finder *self, const segment *turn) {
    size_t end = end_without_answer(self, turn);
    if (!turn->has_template_text)
        return end_of_bare(self->text, end);
    if (self->request->variant->ends_with_next)
        return with_next_token(self->text, end);
    // Spaces behind the end of a turn belong to what comes next.
    while (end > turn->tail && self->text->text[end - 1] == ' ')
        end--;
    return end;
}

// Text of a message that stands in the turn of another: what was asked for, in a tool's answer.
static bool is_quoted(const segment *turn, int before, int after) {
    return !turn->has_template_text && before >= 0 && before == after && before != turn->message;
}

static void take_turns(finder *self) {
    int last = -1, before = -1;
    size_t last_end = 0;
    segment turn, next;
    size_t at = 0;
    bool has_next = next_segment(self->text, &at, &next);
    for (; has_next; before = turn.message) {
        turn = next;
        has_next = next_segment(self->text, &at, &next);
        if (turn.message < 0 || !td_chat_is_assistant(self->request->row, (size_t)turn.message) ||
            is_quoted(&turn, before, has_next ? next.message : -1))
            continue;
        size_t begin = turn.begin;
        if (turn.message == last && !turn.has_template_text && before < 0)
            begin = last_end;
        else if (turn.message != last)
            begin = after_opening(self, &turn);
        last = turn.message;
        last_end = turn_end(self, &turn);
        add_range(self, begin, last_end);
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

td_status td_chat_find_trained(td_render *self, const td_chat_request *request,
                               const td_string *text, td_rendered *out) {
    finder finder_ = {.render = self, .request = request, .text = text, .out = out};
    out->trained = calloc(text->n_runs + (size_t)3, sizeof *out->trained);
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

static bool find_turn(const td_string *text, int message, segment *out) {
    for (size_t at = 0; next_segment(text, &at, out);)
        if (out->message == message)
            return true;
    return false;
}

td_chat_probe td_chat_probe_turn(td_render *self, const td_chat_request *request) {
    const td_string *text = td_chat_text(self, request, 2, false);
    finder finder_ = {.render = self, .request = request, .text = text};
    td_chat_probe probe = {0};
    segment turn;
    if (!find_turn(text, 1, &turn))
        return probe;
    probe.ends_with_next = turn.lead < turn.end && turn.end == text->bytes &&
                           is_blank(text->text + turn.tail, turn.end - turn.tail);
    const td_string *prompt = prompt_or_none(&finder_, turn.begin, 1);
    if (begins_with(text, turn.begin, prompt->text, first_line(prompt)))
        probe.opening =
            td_string_cut(self, prompt, 0, opening_within(request, text, turn.begin, prompt));
    return probe;
}
