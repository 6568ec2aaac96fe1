// libFuzzer target: a template and a JSON object of variables, with a zero byte between them.
// Whatever they say, the template renders or is refused; what it renders is UTF-8, and the sources
// and the mask cover it in order.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "model/template.h"
#include "model/unicode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds, const char *what) {
    if (holds)
        return;
    fprintf(stderr, "does not hold: %s\n", what);
    abort();
}

static void check_text(const td_template_text *text) {
    size_t begin = 0;
    require(td_utf8_check(text->text, text->bytes) == text->bytes, "the text is UTF-8");
    for (size_t i = 0; i < text->n_runs; i++) {
        require(text->runs[i].end > begin && text->runs[i].end <= text->bytes, "runs ascend");
        begin = text->runs[i].end;
    }
    require(begin == text->bytes, "runs cover the text");
}

static void check_render(const char *source, const char *variables, size_t bytes) {
    td_template *program;
    td_template_text text = {0};
    if (td_template_compile("t", source, strlen(source), &program) != TD_OK)
        return;
    if (td_template_render(program, variables, bytes, &text) == TD_OK)
        check_text(&text);
    td_template_text_fini(&text);
    td_template_destroy(program);
}

static void check_chat(const char *source, const char *row, size_t bytes) {
    td_chat *chat;
    td_rendered rendered = {0};
    size_t begin = 0;
    if (td_chat_create("t", source, NULL, "{\"eos_token\":\"</s>\"}", &chat) != TD_OK)
        return;
    if (td_chat_render_row(chat, "row", row, bytes, &rendered) == TD_OK) {
        require(td_utf8_check(rendered.text, rendered.bytes) == rendered.bytes, "UTF-8");
        for (size_t i = 0; i < rendered.n_trained; i++) {
            require(rendered.trained[i].begin >= begin &&
                        rendered.trained[i].end > rendered.trained[i].begin &&
                        rendered.trained[i].end <= rendered.bytes,
                    "trained ranges ascend");
            begin = rendered.trained[i].end;
        }
    }
    td_rendered_fini(&rendered);
    td_chat_destroy(chat);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *zero = memchr(data, 0, size);
    size_t source_bytes = zero ? (size_t)(zero - data) : size;
    size_t rest = zero ? size - source_bytes - 1 : 0;
    char *source = malloc(source_bytes + 1), *variables = malloc(rest + 1);
    require(source && variables, "there is memory");
    memcpy(source, data, source_bytes);
    source[source_bytes] = '\0';
    if (rest > 0)
        memcpy(variables, zero + 1, rest);
    td_error_clear();
    check_render(source, rest ? variables : "{}", rest ? rest : 2);
    td_error_clear();
    check_chat(source, rest ? variables : "{}", rest ? rest : 2);
    free(variables);
    free(source);
    return 0;
}
