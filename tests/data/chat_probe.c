// Renders chats on request, for tests/reference/check_templates.py.
//
//     chat_probe < requests > answers
//
// A request is three texts, each a length as uint32 and as many bytes: the template, the special
// tokens as a JSON object, and the row. An answer is a uint32 that is 1 when the row is refused,
// the text or the message in the same form, and as many uint32 as a first one says: begins and ends
// of what is trained.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"

static void fail(const char *what) {
    fprintf(stderr, "chat_probe: %s\n", what);
    exit(1);
}

// NULL at the end of the requests.
static char *read_text(void) {
    uint32_t bytes;
    if (fread(&bytes, sizeof bytes, 1, stdin) != 1)
        return NULL;
    char *text = malloc((size_t)bytes + 1);
    if (!text || fread(text, 1, bytes, stdin) != bytes)
        fail("a request is cut off");
    text[bytes] = '\0';
    return text;
}

static void write_number(size_t value) {
    uint32_t number = (uint32_t)value;
    fwrite(&number, sizeof number, 1, stdout);
}

static void write_text(const char *text, size_t bytes) {
    write_number(bytes);
    fwrite(text, 1, bytes, stdout);
}

static void answer(td_status status, const td_rendered *rendered) {
    write_number(status != TD_OK);
    if (status != TD_OK)
        write_text(td_error_message(), strlen(td_error_message()));
    else
        write_text(rendered->text, rendered->bytes);
    write_number(2 * rendered->n_trained);
    for (size_t i = 0; i < rendered->n_trained; i++) {
        write_number(rendered->trained[i].begin);
        write_number(rendered->trained[i].end);
    }
    fflush(stdout);
}

int main(void) {
    for (char *source; (source = read_text()) != NULL;) {
        char *tokens = read_text(), *row = read_text();
        td_chat *chat = NULL;
        td_rendered rendered = {0};
        if (!tokens || !row)
            fail("a request is cut off");
        td_error_clear();
        td_status status = td_chat_create("template", source, NULL, tokens, &chat);
        if (status == TD_OK)
            status = td_chat_render_row(chat, "row", row, strlen(row), &rendered);
        answer(status, &rendered);
        td_rendered_fini(&rendered);
        td_chat_destroy(chat);
        free(row);
        free(tokens);
        free(source);
    }
    return 0;
}
