// Small tokenizer.json files for the tests: sections are given as JSON text.
#ifndef TANDEM_TESTS_DATA_TOKENIZER_FILES_H
#define TANDEM_TESTS_DATA_TOKENIZER_FILES_H

#include "model/tokenizer.h"
#include "unit/scratch.h"

typedef struct tokenizer_sections {
    const char *normalizer, *pre_tokenizer, *post_processor, *decoder, *added_tokens;
    const char *model; // whole object
} tokenizer_sections;

#define SMALL_VOCABULARY                                                                           \
    "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\\u0120\":3,\"\\u0120a\":4,\"1\":5,\"<u>\":6}"
#define SMALL_MERGES     "\"merges\":[\"a b\",\"\\u0120 a\"]"
#define BYTE_LEVEL       "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define PLAIN_BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"

static const tokenizer_sections plain_sections = {
    .normalizer = "null",
    .pre_tokenizer = BYTE_LEVEL,
    .post_processor = "null",
    .decoder = "{\"type\":\"ByteLevel\"}",
    .added_tokens = "[]",
    .model = "{\"type\":\"BPE\"," SMALL_VOCABULARY "," SMALL_MERGES "}",
};

// A folder with the file.
static inline const char *write_tokenizer(tokenizer_sections s) {
    static char text[8192];
    const char *folder = scratch("tokenizer");
    int bytes = snprintf(text, sizeof text,
                         "{\"version\":\"1.0\",\"added_tokens\":%s,\"normalizer\":%s,"
                         "\"pre_tokenizer\":%s,\"post_processor\":%s,\"decoder\":%s,\"model\":%s}",
                         s.added_tokens, s.normalizer, s.pre_tokenizer, s.post_processor, s.decoder,
                         s.model);
    REQUIRE(bytes > 0 && bytes < (int)sizeof text);
    REQUIRE(td_folder_make(folder) == TD_OK);
    scratch_file("tokenizer/tokenizer.json", text);
    return folder;
}

static inline td_tokenizer *open_sections(tokenizer_sections sections) {
    td_tokenizer *tokenizer = NULL;
    if (!CHECK(td_tokenizer_open(write_tokenizer(sections), &tokenizer) == TD_OK))
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(tokenizer != NULL);
    return tokenizer;
}

static inline void check_token(const td_tokens *tokens, size_t i, int32_t id, uint32_t begin,
                               uint32_t end) {
    if (!CHECK(i < tokens->count))
        return;
    CHECK_INT(tokens->ids[i], id);
    CHECK_INT(tokens->begins[i], begin);
    CHECK_INT(tokens->ends[i], end);
}

static inline td_tokens encode(const td_tokenizer *tokenizer, const char *text, int add_special) {
    td_tokens tokens = {0};
    if (!CHECK(td_tokenizer_encode(tokenizer, text, strlen(text), add_special, &tokens) == TD_OK))
        fprintf(stderr, "    %s\n", td_error_message());
    return tokens;
}

#endif
