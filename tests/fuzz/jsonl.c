// libFuzzer target: one byte of options and a file of rows. Whatever they say, a row becomes tokens
// of the vocabulary with a mask and with its texts, which filters judge, or is refused with a
// reason.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "model/unicode.h"
#include "runtime/data/filters.h"
#include "runtime/data/lines.h"
#include "runtime/data/rows.h"
#include "tests/fuzz/support/fuzz.h"

enum {
    VOCABULARY = 1024,
    MAX_ROWS = 32,
    MAX_ROW_BYTES = 1 << 16,
    // Options
    ASSISTANT_ONLY = 1,
    COMPLETION_ONLY = 2,
    OWN_TEMPLATE = 4,
    NO_TOKENIZER = 8,
    FROM_FILE = 16, // else lines are taken from the input as they are, which is faster
    NO_TEXTS = 32,
};

// With tools, call arguments and the parts that a model is to produce.
static const char own_template[] =
    "{\"eos_token\": \"<|im_end|>\", \"chat_template\": \""
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% for call in m.tool_calls %}{{ call.function.name }}({{ call.function.arguments | tojson }})"
    "{% endfor %}<|im_end|>{% endgeneration %}"
    "{% elif m.role == 'tool' %}{{ m.content | string | trim }}<|im_end|>"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}\"}";
static const char no_template[] = "{\"eos_token\": \"<|im_end|>\"}";

static td_tokenizer *tokenizers[2]; // with ChatML, with a template of its own

static void copy_tokenizer_json(void) {
    static char text[1 << 18];
    FILE *file = fopen(TEST_FIXTURES "/tokenizers/qwen2/tokenizer.json", "rb");
    fuzz_require(file != NULL, "the tokenizer's file is there");
    size_t bytes = fread(text, 1, sizeof text, file);
    fuzz_require(bytes > 0 && bytes < sizeof text, "the tokenizer's file is small");
    fclose(file);
    fuzz_write("tokenizer.json", text, bytes);
}

static void close_tokenizers(void) {
    td_tokenizer_close(tokenizers[0]);
    td_tokenizer_close(tokenizers[1]);
}

static void open_tokenizers(void) {
    static const char *const configs[] = {no_template, own_template};
    if (tokenizers[0])
        return;
    (void)fuzz_folder();
    atexit(close_tokenizers);
    copy_tokenizer_json();
    for (int i = 0; i < 2; i++) {
        const td_chat *chat;
        fuzz_write("tokenizer_config.json", configs[i], strlen(configs[i]));
        fuzz_require(td_tokenizer_open(fuzz_folder(), &tokenizers[i]) == TD_OK,
                     "the tokenizer is read");
        fuzz_require(td_tokenizer_chat(tokenizers[i], &chat) == TD_OK, "its template compiles");
    }
}

static td_filters *filters;

static void destroy_filters(void) {
    td_filters_destroy(filters);
}

static void make_filters(void) {
    static char *drop[] = {(char *)(uintptr_t) "(?i)as an ai|\\bsorry\\b"};
    static char *keep[] = {(char *)(uintptr_t) "[a-z0-9]", (char *)(uintptr_t) "\\p{L}+"};
    const td_string_list dropped = {drop, 1}, kept = {keep, 2};
    const td_filter_options options = {.min_prompt_words = 1,
                                       .max_prompt_words = 40,
                                       .min_response_words = 1,
                                       .max_response_words = 40,
                                       .min_tokens = 1,
                                       .max_jaccard = 0.9,
                                       .drop_matching = &dropped,
                                       .keep_matching = &kept};
    if (filters)
        return;
    fuzz_require(td_filters_create(&options, &filters) == TD_OK, "there are filters");
    atexit(destroy_filters);
}

static void check_text(const char *text, size_t bytes) {
    if (!text)
        return;
    fuzz_require(strlen(text) == bytes && td_utf8_check(text, bytes) == bytes, "a text is UTF-8");
}

static void check_texts(const td_row *row, const td_row_texts *texts) {
    td_filter_verdict verdict = TD_FILTER_VERDICTS;
    check_text(texts->prompt, texts->prompt_bytes);
    check_text(texts->response, texts->response_bytes);
    td_status status = td_filters_judge(filters, "rows.jsonl:1", texts, row->count, &verdict);
    fuzz_require(status == TD_OK ? verdict < TD_FILTER_VERDICTS : td_error_message()[0] != '\0',
                 "a row is judged");
}

static void check_row(const td_row *row) {
    int64_t n_trained = 0;
    fuzz_require(row->count == 0 || row->trained[0] == 0, "the first token is not trained");
    for (int64_t i = 0; i < row->count; i++) {
        fuzz_require(row->tokens[i] >= 0 && row->tokens[i] < VOCABULARY, "a token exists");
        fuzz_require(row->trained[i] <= 1, "the mask is 0 or 1");
        n_trained += row->trained[i];
    }
    fuzz_require(td_row_trained_count(row) == n_trained, "trained tokens are counted");
}

static void read_row(const td_prepare_options *options, const td_line *line, int has_texts) {
    td_row row = {0};
    td_row_texts texts = {0};
    // A copy of the exact size, so that a sanitizer sees a read beyond it.
    char *text = malloc(line->bytes + !line->bytes);
    fuzz_require(text != NULL, "there is memory");
    if (line->bytes > 0)
        memcpy(text, line->text, line->bytes);
    static const char where[] = "rows.jsonl:1";
    td_status status = has_texts
                           ? td_row_read_with_texts(options, where, text, line->bytes, &row, &texts)
                           : td_row_read(options, where, text, line->bytes, &row);
    fuzz_require(status == TD_OK || (td_error_message()[0] && !row.tokens && !texts.response),
                 "a refusal says why");
    if (status == TD_OK) {
        check_row(&row);
        if (has_texts)
            check_texts(&row, &texts);
    }
    td_row_texts_fini(&texts);
    td_row_fini(&row);
    td_error_clear();
    free(text);
}

static void read_file(const td_prepare_options *options, const uint8_t *data, size_t size,
                      int has_texts) {
    td_line_reader reader;
    td_line line;
    int found = 1;
    fuzz_write("rows.jsonl", data, size);
    td_status status = td_line_reader_open(&reader, fuzz_path("rows.jsonl"), MAX_ROW_BYTES);
    fuzz_require(status == TD_OK || td_error_message()[0], "a refusal says why");
    if (status != TD_OK)
        return;
    for (int i = 0; i < MAX_ROWS && found; i++)
        if (td_line_reader_next(&reader, &line, &found) != TD_OK)
            found = 0;
        else if (found && !line.is_too_long)
            read_row(options, &line, has_texts);
    td_line_reader_close(&reader);
}

static void read_lines(const td_prepare_options *options, const uint8_t *data, size_t size,
                       int has_texts) {
    for (int i = 0; i < MAX_ROWS && size > 0; i++) {
        const uint8_t *end = memchr(data, '\n', size);
        size_t bytes = end ? (size_t)(end - data) : size;
        td_line line = {.text = (const char *)data, .bytes = bytes};
        read_row(options, &line, has_texts);
        data += bytes + (end != NULL);
        size -= bytes + (end != NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0)
        return 0;
    open_tokenizers();
    make_filters();
    td_prepare_options options = {
        .tokenizer = data[0] & NO_TOKENIZER ? NULL : tokenizers[(data[0] & OWN_TEMPLATE) != 0],
        .vocabulary = VOCABULARY,
        .eos_id = 2,
        .max_length = 64,
        .assistant_only_loss = (data[0] & ASSISTANT_ONLY) != 0,
        .completion_only_loss = (data[0] & COMPLETION_ONLY) != 0,
    };
    int has_texts = !(data[0] & NO_TEXTS);
    if (data[0] & FROM_FILE)
        read_file(&options, data + 1, size - 1, has_texts);
    else
        read_lines(&options, data + 1, size - 1, has_texts);
    td_error_clear();
    return 0;
}
