// Token for token what the tokenizers library gives, on the cases it was asked about.
#include <pthread.h>

#include "runtime/core/json.h"
#include "tokenizer_files.h"

static td_tokenizer *open_fixture(const char *folder) {
    char path[TD_PATH_MAX];
    td_tokenizer *tokenizer = NULL;
    snprintf(path, sizeof path, "%s/%s", TEST_SOURCE, folder);
    if (!CHECK(td_tokenizer_open(path, &tokenizer) == TD_OK))
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(tokenizer != NULL);
    return tokenizer;
}

static int is_same(const td_tokens *tokens, const cJSON *ids) {
    const cJSON *id = ids->child;
    size_t i = 0;
    for (; id && i < tokens->count; id = id->next)
        if (tokens->ids[i++] != (int32_t)id->valuedouble)
            return 0;
    return !id && i == tokens->count;
}

static void check_ids(const td_tokenizer *tokenizer, const char *text, int add_special,
                      const cJSON *ids) {
    td_tokens tokens = {0};
    CHECK(td_tokenizer_encode(tokenizer, text, strlen(text), add_special, &tokens) == TD_OK);
    if (!CHECK(is_same(&tokens, ids)))
        fprintf(stderr, "    text \"%s\"\n", text);
    td_tokens_fini(&tokens);
}

// Without normalization and special tokens, the spans follow each other and cover the text.
static void check_spans(const td_tokenizer *tokenizer, const char *text, int is_covering) {
    td_tokens tokens = {0};
    uint32_t bytes = (uint32_t)strlen(text), end = 0;
    REQUIRE(td_tokenizer_encode(tokenizer, text, bytes, 0, &tokens) == TD_OK);
    for (size_t i = 0; i < tokens.count; i++) {
        CHECK(tokens.begins[i] <= tokens.ends[i] && tokens.ends[i] <= bytes);
        CHECK(is_covering ? tokens.begins[i] == end : tokens.ends[i] >= end);
        end = tokens.ends[i];
    }
    CHECK_INT(end, bytes);
    td_tokens_fini(&tokens);
}

static void check_decodes_back(const td_tokenizer *tokenizer, const char *text) {
    td_tokens tokens = {0};
    char *decoded = NULL;
    size_t bytes;
    REQUIRE(td_tokenizer_encode(tokenizer, text, strlen(text), 0, &tokens) == TD_OK);
    REQUIRE(td_tokenizer_decode(tokenizer, tokens.ids, tokens.count, 0, &decoded, &bytes) == TD_OK);
    CHECK_STRING(decoded, text);
    CHECK_INT(bytes, strlen(text));
    free(decoded);
    td_tokens_fini(&tokens);
}

// `is_plain`: nothing changes the text, so that spans cover it and decoding gives it back.
static void check_cases(const char *folder, const char *cases, int least, int is_plain) {
    char path[TD_PATH_MAX], *text;
    size_t bytes;
    int count = 0;
    td_tokenizer *tokenizer = open_fixture(folder);
    snprintf(path, sizeof path, "%s/%s", TEST_FIXTURES, cases);
    REQUIRE(td_file_read(path, 1 << 26, &text, &bytes) == TD_OK);
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        cJSON *one;
        *end = '\0';
        if (strstr(line,
                   "\\u0000")) // refused by our JSON reader; see a_nul_byte_is_a_byte_like_others
            continue;
        REQUIRE(td_json_parse(cases, line, (size_t)(end - line), &one) == TD_OK);
        const char *input = cJSON_GetObjectItem(one, "text")->valuestring;
        const cJSON *special = cJSON_GetObjectItem(one, "ids_special");
        check_ids(tokenizer, input, 0, cJSON_GetObjectItem(one, "ids"));
        if (special)
            check_ids(tokenizer, input, 1, special);
        check_spans(tokenizer, input, is_plain);
        if (is_plain)
            check_decodes_back(tokenizer, input);
        cJSON_Delete(one);
        count++;
    }
    CHECK(count >= least);
    free(text);
    td_tokenizer_close(tokenizer);
}

static void gpt2_style(void) {
    check_cases("tests/fixtures/tokenizers/gpt2", "tokenizers/gpt2/cases.jsonl", 300, 1);
}

static void llama3_style(void) {
    check_cases("tests/fixtures/tokenizers/llama3", "tokenizers/llama3/cases.jsonl", 300, 1);
}

static void qwen2_style(void) {
    check_cases("tests/fixtures/tokenizers/qwen2", "tokenizers/qwen2/cases.jsonl", 300, 0);
}

static void smollm_style(void) {
    check_cases("tests/fixtures/tokenizers/smollm", "tokenizers/smollm/cases.jsonl", 300, 1);
}

static void added_tokens_of_all_kinds(void) {
    check_cases("tests/fixtures/tokenizers/added", "tokenizers/added/cases.jsonl", 300, 0);
}

static void quickstart_base(void) {
    check_cases("launch/quickstart/base", "quickstart/tokenizer.jsonl", 10, 1);
}

static void a_nul_byte_is_a_byte_like_others(void) {
    td_tokenizer *tokenizer = open_fixture("launch/quickstart/base");
    td_tokens tokens = {0};
    CHECK(td_tokenizer_encode(tokenizer, "\0\1", 2, 0, &tokens) == TD_OK);
    REQUIRE(tokens.count == 2);
    char *text = NULL;
    size_t bytes;
    CHECK_INT(tokens.ids[0] + 1, tokens.ids[1]);
    REQUIRE(td_tokenizer_decode(tokenizer, tokens.ids, 2, 0, &text, &bytes) == TD_OK);
    CHECK(bytes == 2 && memcmp(text, "\0\1", 3) == 0);
    free(text);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

// e + acute becomes one character of two bytes, both of which came from the three that were there.
static void spans_point_into_the_text_before_normalization(void) {
    td_tokenizer *tokenizer = open_fixture("tests/fixtures/tokenizers/qwen2");
    td_tokens plain = encode(tokenizer, "\xc3\xa9", 0);
    td_tokens tokens = encode(tokenizer,
                              "1e\xcc\x81"
                              "1<|im_end|>",
                              0);
    REQUIRE(plain.count >= 1 && tokens.count == plain.count + 3);
    for (size_t i = 0; i < plain.count; i++)
        check_token(&tokens, 1 + i, plain.ids[i], 1, 4);
    check_token(&tokens, plain.count + 1, tokens.ids[0], 4, 5);
    check_token(&tokens, plain.count + 2, 1002, 5, 15);
    td_tokens_fini(&plain);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

static void a_match_that_does_not_stand_alone_uses_up_its_text(void) {
    tokenizer_sections sections = plain_sections;
    sections.added_tokens =
        "[{\"id\":7,\"content\":\"aba\",\"single_word\":true,\"normalized\":false},"
        "{\"id\":8,\"content\":\"ba\",\"normalized\":false}]";
    td_tokenizer *tokenizer = open_sections(sections);
    td_tokens tokens = encode(tokenizer, "abab", 0);
    check_token(&tokens, 0, 2, 0, 2); // neither "aba" nor the "ba" in it
    check_token(&tokens, 1, 2, 2, 4);
    td_tokens_fini(&tokens);
    tokens = encode(tokenizer, "bba aba", 0);
    check_token(&tokens, 1, 8, 1, 3);
    check_token(&tokens, 3, 7, 4, 7);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

static void templates_go_around_each_other(void) {
    tokenizer_sections sections = plain_sections;
    sections.post_processor =
        "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"TemplateProcessing\",\"single\":["
        "{\"SpecialToken\":{\"id\":\"x\"}},{\"SpecialToken\":{\"id\":\"y\"}},"
        "{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"y\"}}],"
        "\"special_tokens\":{\"x\":{\"ids\":[5,6]},\"y\":{\"ids\":[3]}}},"
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"z\"}},"
        "{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"z\"}}],"
        "\"special_tokens\":{\"z\":{\"ids\":[4]}}}]}";
    td_tokenizer *tokenizer = open_sections(sections);
    const int32_t expected[] = {4, 5, 6, 3, 2, 3, 4};
    td_tokens tokens = encode(tokenizer, "ab", 1);
    REQUIRE(tokens.count == 7);
    for (int i = 0; i < 7; i++)
        CHECK_INT(tokens.ids[i], expected[i]);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

static void special_tokens_have_empty_spans(void) {
    td_tokenizer *tokenizer = open_fixture("tests/fixtures/tokenizers/added");
    td_tokens tokens = encode(tokenizer, "the", 1);
    check_token(&tokens, 0, 600, 0, 0);
    check_token(&tokens, 1, 83, 0, 1);
    check_token(&tokens, 2, 257, 1, 3);
    check_token(&tokens, 3, 601, 3, 3);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

static void a_prefixed_space_belongs_to_the_first_character(void) {
    tokenizer_sections sections = plain_sections;
    sections.pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}";
    td_tokenizer *tokenizer = open_sections(sections);
    td_tokens tokens = encode(tokenizer, "ab", 0);
    check_token(&tokens, 0, 3, 0, 1); // the space: "ab" merges before " a"
    check_token(&tokens, 1, 2, 0, 2);
    td_tokens_fini(&tokens);
    tokens = encode(tokenizer, " ab", 0);
    CHECK_INT(tokens.count, 2);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

static void encoding_appends(void) {
    td_tokenizer *tokenizer = open_sections(plain_sections);
    td_tokens tokens = {0};
    CHECK(td_tokenizer_encode(tokenizer, "ab", 2, 0, &tokens) == TD_OK);
    CHECK(td_tokenizer_encode(tokenizer, "1", 1, 0, &tokens) == TD_OK);
    CHECK_INT(tokens.count, 2);
    check_token(&tokens, 1, 5, 0, 1);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

static void invalid_utf8_is_refused_where_it_begins(void) {
    static const char *const texts[] = {"ab\xff",         "ab\xc3",     "ab\xc0\x80",
                                        "ab\xed\xa0\x80", "ab\xf5\x80", "ab\xe2\x82g"};
    td_tokenizer *tokenizer = open_sections(plain_sections);
    td_tokens tokens = {0};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        CHECK(td_tokenizer_encode(tokenizer, texts[i], strlen(texts[i]), 0, &tokens) ==
              TD_ERR_DATA);
        CHECK_MESSAGE("byte 2");
    }
    CHECK_INT(tokens.count, 0);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

// Tokens left of the text when the pre-tokenizer removes what the pattern matches; bytes without a
// token are unknown ones.
static size_t left_of(const char *pattern, const char *text) {
    char pre_tokenizer[512];
    tokenizer_sections sections = plain_sections;
    snprintf(pre_tokenizer, sizeof pre_tokenizer,
             "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
             "{\"Regex\":\"%s\"},\"behavior\":\"Removed\"}," PLAIN_BYTE_LEVEL "]}",
             pattern);
    sections.pre_tokenizer = pre_tokenizer;
    sections.model =
        "{\"type\":\"BPE\",\"unk_token\":\"<u>\"," SMALL_VOCABULARY "," SMALL_MERGES "}";
    td_tokenizer *tokenizer = open_sections(sections);
    td_tokens tokens = encode(tokenizer, text, 0);
    size_t count = tokens.count;
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
    return count;
}

// Unicode 16 for patterns, whatever the installed PCRE2 knows: U+1C89 is a letter, U+10D40 a digit,
// U+0897 a mark; U+180E is no space.
static void patterns_know_recent_characters(void) {
    CHECK_INT(left_of("\\\\p{L}", "1\xe1\xb2\x89"
                                  "1"),
              2);
    CHECK_INT(left_of("[\\\\p{Lu}]", "1\xe1\xb2\x89"
                                     "1"),
              2);
    CHECK_INT(left_of("\\\\p{Ll}", "1\xe1\xb2\x89"
                                   "1"),
              5);
    CHECK_INT(left_of("[^1\\\\p{L}]", "1\xe1\xb2\x89"
                                      "1"),
              5);
    CHECK_INT(left_of("\\\\P{L}", "1\xe1\xb2\x89"
                                  "1"),
              3);
    CHECK_INT(left_of("\\\\d", "a\xf0\x90\xb5\x80"
                               "a"),
              2);
    CHECK_INT(left_of("\\\\p{M}", "1\xe0\xa2\x97"
                                  "1"),
              2);
    CHECK_INT(left_of("\\\\s", "1\xe1\xa0\x8e"
                               "1\xc2\x85"
                               "1"),
              6);
    CHECK_INT(left_of("\\\\S", "1\xe1\xa0\x8e"
                               "1\xc2\x85"
                               "1"),
              2);
    CHECK_INT(left_of("[^\\\\S\\\\n]", "1\xe1\xa0\x8e"
                                       "1 \n"),
              6);
}

// Unicode 9 for NFC: U+0898 is passed over as unassigned, though it is a mark.
static void normalization_knows_no_recent_marks(void) {
    td_tokenizer *tokenizer = open_fixture("tests/fixtures/tokenizers/qwen2");
    td_tokens tokens = encode(tokenizer, "\xe0\xa2\x98\xcc\xa3", 0);
    CHECK_INT(tokens.count, 5); // bytes, where they were
    for (uint32_t i = 0; i < tokens.count; i++)
        check_token(&tokens, i, tokens.ids[i], i, i + 1);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

static void digits_know_recent_digits(void) {
    tokenizer_sections sections = plain_sections;
    sections.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\","
                             "\"individual_digits\":true}," PLAIN_BYTE_LEVEL "]}";
    td_tokenizer *tokenizer = open_sections(sections);
    // The bytes of the digit have no token; it only keeps apart what would merge.
    td_tokens tokens = encode(tokenizer,
                              "a\xf0\x91\xb7\xa0"
                              "b",
                              0);
    CHECK_INT(tokens.count, 2);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

// Would take hours if any part were quadratic.
static void megabytes_of_one_character_are_encoded(void) {
    static const char *const units[] = {" ", "a", "e\xcc\x81\xcc\xa3", "<|", "\n", "\xcc\x81"};
    td_tokenizer *tokenizer = open_fixture("tests/fixtures/tokenizers/qwen2");
    size_t bytes = 1 << 20;
    char *text = malloc(bytes);
    REQUIRE(text != NULL);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t unit = strlen(units[u]), length = bytes / unit * unit;
        td_tokens tokens = {0};
        for (size_t i = 0; i < length; i++)
            text[i] = units[u][i % unit];
        CHECK(td_tokenizer_encode(tokenizer, text, length, 0, &tokens) == TD_OK);
        CHECK(tokens.count > 0 && tokens.ends[tokens.count - 1] == length);
        td_tokens_fini(&tokens);
    }
    free(text);
    td_tokenizer_close(tokenizer);
}

static void *encode_often(void *argument) {
    const td_tokenizer *tokenizer = argument;
    td_tokens tokens = {0};
    char text[64];
    uintptr_t sum = 0;
    for (int i = 0; i < 2000; i++) {
        tokens.count = 0;
        int bytes = snprintf(text, sizeof text, "the king %d and o\xcc\x88thers", i % 300);
        if (td_tokenizer_encode(tokenizer, text, (size_t)bytes, 0, &tokens) != TD_OK)
            return NULL;
        for (size_t t = 0; t < tokens.count; t++)
            sum = sum * 31 + (uintptr_t)tokens.ids[t] + tokens.begins[t];
    }
    td_tokens_fini(&tokens);
    return (void *)(sum | 1);
}

static void threads_share_a_tokenizer(void) {
    td_tokenizer *tokenizer = open_fixture("tests/fixtures/tokenizers/qwen2");
    pthread_t threads[4];
    void *alone = encode_often(tokenizer), *results[4];
    for (int i = 0; i < 4; i++)
        REQUIRE(pthread_create(&threads[i], NULL, encode_often, tokenizer) == 0);
    for (int i = 0; i < 4; i++) {
        REQUIRE(pthread_join(threads[i], &results[i]) == 0);
        CHECK(results[i] != NULL && results[i] == alone);
    }
    td_tokenizer_close(tokenizer);
}

static void check_decoded(const td_tokenizer *tokenizer, const int32_t *ids, size_t count,
                          int skip_special, const char *expected) {
    char *text = NULL;
    REQUIRE(td_tokenizer_decode(tokenizer, ids, count, skip_special, &text, NULL) == TD_OK);
    CHECK_STRING(text, expected);
    free(text);
}

static void decoding_repairs_and_skips(void) {
    td_tokenizer *tokenizer = open_fixture("tests/fixtures/tokenizers/smollm");
    td_tokens euro = encode(tokenizer, "\xe2\x82\xac", 0); // one token per byte
    REQUIRE(euro.count == 3);
    const int32_t broken[] = {euro.ids[0], euro.ids[1], 64, euro.ids[2], 801};
    check_decoded(tokenizer, euro.ids, 3, 0, "\xe2\x82\xac");
    check_decoded(tokenizer, broken, 5, 0,
                  "\xef\xbf\xbd"
                  "a"
                  "\xef\xbf\xbd<|im_start|>");
    check_decoded(tokenizer, broken, 5, 1,
                  "\xef\xbf\xbd"
                  "a"
                  "\xef\xbf\xbd");
    const int32_t beyond[] = {-1, 64, 1 << 30};
    check_decoded(tokenizer, beyond, 3, 0, "a");
    check_decoded(tokenizer, NULL, 0, 0, "");
    td_tokens_fini(&euro);
    td_tokenizer_close(tokenizer);
}

static void tokens_are_found_by_content(void) {
    td_tokenizer *tokenizer = open_fixture("tests/fixtures/tokenizers/smollm");
    CHECK_INT(td_tokenizer_token_id(tokenizer, "<|im_start|>"), 801);
    CHECK_INT(td_tokenizer_token_id(tokenizer, "a"), 64);
    CHECK_INT(td_tokenizer_token_id(tokenizer, "<|nothing|>"), -1);
    CHECK(td_tokenizer_size(tokenizer) >= 803);
    td_tokenizer_close(tokenizer);
}

static void the_config_names_tokens_and_template(void) {
    td_tokenizer *tokenizer = NULL;
    const char *folder = write_tokenizer(plain_sections);
    scratch_file("tokenizer/tokenizer_config.json",
                 "{\"eos_token\":{\"content\":\"ab\"},\"bos_token\":\"a\","
                 "\"chat_template\":[{\"name\":\"x\",\"template\":\"1\"},"
                 "{\"name\":\"default\",\"template\":\"2\"}]}");
    REQUIRE(td_tokenizer_open(folder, &tokenizer) == TD_OK);
    CHECK_INT(td_tokenizer_eos_id(tokenizer), 2);
    CHECK_INT(td_tokenizer_bos_id(tokenizer), 0);
    CHECK_STRING(td_tokenizer_chat_template(tokenizer), "2");
    td_hash before = td_tokenizer_fingerprint(tokenizer);
    td_tokenizer_close(tokenizer);
    scratch_file("tokenizer/tokenizer_config.json", "{\"eos_token\":null}");
    scratch_file("tokenizer/chat_template.jinja", "3");
    REQUIRE(td_tokenizer_open(folder, &tokenizer) == TD_OK);
    CHECK_INT(td_tokenizer_eos_id(tokenizer), -1);
    CHECK_STRING(td_tokenizer_chat_template(tokenizer), "3");
    CHECK(!td_hash_equal(td_tokenizer_fingerprint(tokenizer), before));
    td_tokenizer_close(tokenizer);
    td_folder_remove_tree(scratch("tokenizer"));
}

int main(void) {
    TEST(gpt2_style);
    TEST(llama3_style);
    TEST(qwen2_style);
    TEST(smollm_style);
    TEST(added_tokens_of_all_kinds);
    TEST(quickstart_base);
    TEST(a_nul_byte_is_a_byte_like_others);
    TEST(spans_point_into_the_text_before_normalization);
    TEST(a_match_that_does_not_stand_alone_uses_up_its_text);
    TEST(templates_go_around_each_other);
    TEST(special_tokens_have_empty_spans);
    TEST(a_prefixed_space_belongs_to_the_first_character);
    TEST(encoding_appends);
    TEST(invalid_utf8_is_refused_where_it_begins);
    TEST(patterns_know_recent_characters);
    TEST(normalization_knows_no_recent_marks);
    TEST(digits_know_recent_digits);
    TEST(megabytes_of_one_character_are_encoded);
    TEST(threads_share_a_tokenizer);
    TEST(decoding_repairs_and_skips);
    TEST(tokens_are_found_by_content);
    TEST(the_config_names_tokens_and_template);
    return test_report();
}
