// SentencePiece-style BPE, and every normalizer, pre-tokenizer and decoder: what the tokenizers
// library gives, on the cases it was asked about.
#include "runtime/core/json.h"
#include "tokenizer_files.h"

#define SPACE "\xe2\x96\x81"

// A line of the fixtures: a file without its vocabulary, and cases.
static cJSON *read_fixture(const char *name, char **out_rest) {
    char path[TD_PATH_MAX], *text;
    cJSON *tree = NULL;
    size_t bytes;
    snprintf(path, sizeof path, "%s/tokenizers/spm/%s", TEST_FIXTURES, name);
    REQUIRE(td_file_read(path, 1 << 24, &text, &bytes) == TD_OK);
    if (out_rest) {
        *out_rest = text;
        return NULL;
    }
    REQUIRE(td_json_parse(path, text, bytes, &tree) == TD_OK);
    free(text);
    return tree;
}

static void add_token(cJSON *vocabulary, const char *token, int *next) {
    if (!cJSON_GetObjectItemCaseSensitive(vocabulary, token))
        cJSON_AddNumberToObject(vocabulary, token, (*next)++);
}

// Tokens have ids in order: those of `first`, one for each byte, the pieces.
static void add_vocabulary(cJSON *model, const cJSON *first, const cJSON *pieces) {
    cJSON *vocabulary = cJSON_AddObjectToObject(model, "vocab");
    int next = 0;
    for (const cJSON *item = first->child; item; item = item->next)
        add_token(vocabulary, item->valuestring, &next);
    int bytes = cJSON_IsTrue(cJSON_GetObjectItem(model, "byte_fallback")) ? 256 : 0;
    for (int byte = 0; byte < bytes; byte++) {
        char name[16];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        add_token(vocabulary, name, &next);
    }
    const cJSON *tokens = cJSON_GetObjectItem(pieces, "tokens");
    for (const cJSON *item = tokens->child; item; item = item->next)
        add_token(vocabulary, item->valuestring, &next);
    cJSON_AddItemReferenceToObject(model, "merges", cJSON_GetObjectItem(pieces, "merges"));
}

static td_tokenizer *open_style(const cJSON *line, const cJSON *pieces) {
    td_tokenizer *tokenizer = NULL;
    cJSON *file = cJSON_GetObjectItem(line, "file");
    add_vocabulary(cJSON_GetObjectItem(file, "model"), cJSON_GetObjectItem(line, "first"), pieces);
    char *text = td_json_print(file, 0);
    const char *folder = scratch("tokenizer");
    REQUIRE(td_folder_make(folder) == TD_OK);
    scratch_file("tokenizer/tokenizer.json", text);
    if (!CHECK(td_tokenizer_open(folder, &tokenizer) == TD_OK))
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(tokenizer != NULL);
    free(text);
    return tokenizer;
}

// The whole text is what the pieces of a stream add up to, and each is whole characters.
static void check_stream(const td_tokenizer *tokenizer, const td_tokens *tokens, const char *text) {
    td_token_stream *stream;
    char joined[4096] = "";
    REQUIRE(td_token_stream_create(tokenizer, 1, &stream) == TD_OK);
    for (size_t i = 0; i <= tokens->count; i++) {
        const char *part = NULL;
        size_t bytes;
        CHECK((i < tokens->count ? td_token_stream_push(stream, tokens->ids[i], &part, &bytes)
                                 : td_token_stream_finish(stream, &part, &bytes)) == TD_OK);
        REQUIRE(part != NULL && strlen(joined) + bytes < sizeof joined);
        CHECK(((unsigned char)part[0] & 0xc0) != 0x80);
        strcat(joined, part);
    }
    CHECK_STRING(joined, text);
    td_token_stream_destroy(stream);
}

static void check_case(const td_tokenizer *tokenizer, const char *name, const cJSON *one) {
    const char *text = cJSON_GetObjectItem(one, "text")->valuestring;
    const char *decoded = cJSON_GetObjectItem(one, "decoded")->valuestring;
    const cJSON *id = cJSON_GetObjectItem(one, "ids_special")->child;
    td_tokens tokens = encode(tokenizer, text, 1);
    size_t i = 0;
    char *ours = NULL;
    for (; id && i < tokens.count && tokens.ids[i] == (int32_t)id->valuedouble; id = id->next)
        i++;
    if (!CHECK(!id && i == tokens.count))
        fprintf(stderr, "    %s: token %zu of \"%s\"\n", name, i, text);
    for (i = 0; i < tokens.count; i++)
        CHECK(tokens.begins[i] <= tokens.ends[i] && tokens.ends[i] <= strlen(text));
    REQUIRE(td_tokenizer_decode(tokenizer, tokens.ids, tokens.count, 1, &ours, NULL) == TD_OK);
    if (!CHECK(strcmp(ours, decoded) == 0))
        fprintf(stderr, "    %s: \"%s\" decodes as \"%s\"\n", name, decoded, ours);
    check_stream(tokenizer, &tokens, decoded);
    free(ours);
    td_tokens_fini(&tokens);
}

static void every_style_is_the_librarys(void) {
    cJSON *pieces = read_fixture("pieces.json", NULL), *line;
    char *text;
    int styles = 0, cases = 0;
    read_fixture("styles.jsonl", &text);
    for (char *at = text, *end; (end = strchr(at, '\n')); at = end + 1, styles++) {
        REQUIRE(td_json_parse("styles.jsonl", at, (size_t)(end - at), &line) == TD_OK);
        const char *name = cJSON_GetObjectItem(line, "name")->valuestring;
        td_tokenizer *tokenizer = open_style(line, pieces);
        const cJSON *list = cJSON_GetObjectItem(line, "cases");
        for (const cJSON *one = list->child; one; one = one->next, cases++)
            check_case(tokenizer, name, one);
        td_tokenizer_close(tokenizer);
        cJSON_Delete(line);
    }
    CHECK(styles >= 40 && cases >= 300);
    free(text);
    cJSON_Delete(pieces);
}

#define VOCABULARY                                                                                 \
    "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"<0xC3>\":2,\"<0xA9>\":3,\"a\":4,\"b\":5,\"" SPACE          \
    "\":6,\"" SPACE "a\":7,\"ab\":8,\"b" SPACE "\":9}"
#define MODEL(options, merges)                                                                     \
    "{\"type\":\"BPE\",\"unk_token\":\"<unk>\"," options VOCABULARY ",\"merges\":[" merges "]}"
#define MERGE_SPACE "[\"" SPACE "\",\"a\"]"

static const tokenizer_sections llama = {
    .normalizer =
        "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"" SPACE
        "\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" SPACE "\"}]}",
    .pre_tokenizer = "null",
    .post_processor = "null",
    .decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
               "\"" SPACE "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
               "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}",
    .added_tokens = "[{\"id\":1,\"content\":\"<s>\",\"special\":true,\"normalized\":false}]",
    .model = MODEL("\"byte_fallback\":true,\"fuse_unk\":true,", MERGE_SPACE),
};

static void check_ids(const td_tokenizer *tokenizer, const char *text, int count,
                      const int32_t *ids) {
    td_tokens tokens = encode(tokenizer, text, 1);
    CHECK_INT(tokens.count, count);
    for (int i = 0; i < count && (size_t)i < tokens.count; i++)
        CHECK_INT(tokens.ids[i], ids[i]);
    td_tokens_fini(&tokens);
}

// The prefix belongs to the first character, a byte token to its byte, fused unknown characters to
// all that they were; after an added token the prefix comes again.
static void spans_point_into_the_text(void) {
    td_tokenizer *tokenizer = open_sections(llama);
    td_tokens tokens = encode(tokenizer, "ab \xc3\xa9zz<s>b", 0);
    check_token(&tokens, 0, 7, 0, 1);
    check_token(&tokens, 1, 5, 1, 2);
    check_token(&tokens, 2, 6, 2, 3);
    check_token(&tokens, 3, 2, 3, 4);
    check_token(&tokens, 4, 3, 4, 5);
    check_token(&tokens, 5, 0, 5, 7);
    check_token(&tokens, 6, 1, 7, 10);
    check_token(&tokens, 7, 6, 10, 11);
    check_token(&tokens, 8, 5, 10, 11);
    CHECK_INT(tokens.count, 9);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

static void unknown_characters_fuse_only_when_asked(void) {
    static const int32_t fused[] = {6, 0, 4}, apart[] = {6, 0, 0, 4};
    tokenizer_sections sections = llama;
    td_tokenizer *tokenizer = open_sections(sections);
    for (int round = 0; round < 2; round++) // the second time from the cache, were it remembered
        check_ids(tokenizer, "zza", 3, fused);
    td_tokenizer_close(tokenizer);
    sections.model = MODEL("\"byte_fallback\":true,", MERGE_SPACE);
    tokenizer = open_sections(sections);
    check_ids(tokenizer, "zza", 4, apart);
    td_tokenizer_close(tokenizer);
}

// A merge across the space keeps the word whole: "b_" first, then nothing is left for "_a".
static void merges_may_reach_across_spaces(void) {
    static const int32_t across[] = {6, 9, 4}, apart[] = {6, 5, 7};
    tokenizer_sections sections = llama;
    td_tokenizer *tokenizer = open_sections(sections);
    check_ids(tokenizer, "b a", 3, apart);
    td_tokenizer_close(tokenizer);
    sections.model =
        MODEL("\"byte_fallback\":true,", "[\"b\",\"" SPACE "\"]," MERGE_SPACE ",[\"a\",\"b\"]");
    tokenizer = open_sections(sections);
    check_ids(tokenizer, "b a", 3, across);
    td_tokenizer_close(tokenizer);
}

static void only_the_file_says_what_is_added(void) {
    static const int32_t expected[] = {4, 7};
    tokenizer_sections sections = llama;
    sections.post_processor =
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"a\"}},"
        "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"a\":{\"ids\":[4]}}}";
    const char *folder = write_tokenizer(sections);
    td_tokenizer *tokenizer = NULL;
    scratch_file("tokenizer/tokenizer_config.json",
                 "{\"bos_token\":\"<s>\",\"eos_token\":\"b\",\"add_bos_token\":true,"
                 "\"add_eos_token\":true,\"add_prefix_space\":false,\"legacy\":false}");
    REQUIRE(td_tokenizer_open(folder, &tokenizer) == TD_OK);
    check_ids(tokenizer, "a", 2, expected);
    td_tokenizer_close(tokenizer);
    td_folder_remove_tree(folder);
}

typedef struct expected_part {
    int32_t id;
    const char *text;
} expected_part;

static void check_parts(tokenizer_sections sections, const expected_part *parts, int count,
                        const char *rest) {
    td_tokenizer *tokenizer = open_sections(sections);
    td_token_stream *stream;
    const char *text;
    size_t bytes;
    REQUIRE(td_token_stream_create(tokenizer, 0, &stream) == TD_OK);
    for (int round = 0; round < 2; round++) { // a finished stream starts again
        for (int i = 0; i < count; i++) {
            REQUIRE(td_token_stream_push(stream, parts[i].id, &text, &bytes) == TD_OK);
            CHECK_STRING(text, parts[i].text);
            CHECK_INT(bytes, strlen(parts[i].text));
        }
        REQUIRE(td_token_stream_finish(stream, &text, &bytes) == TD_OK);
        CHECK_STRING(text, rest);
    }
    td_token_stream_destroy(stream);
    td_tokenizer_close(tokenizer);
}

// Nothing comes out that a later token could change: bytes wait for the end of their run, which is
// text as a whole or lost as a whole.
static void a_stream_waits_for_whole_characters(void) {
    static const expected_part good[] = {{7, "a"}, {2, ""}, {3, ""}, {7, "\xc3\xa9 a"}, {2, ""}};
    static const expected_part bad[] = {{6, ""},
                                        {6, " "},
                                        {2, ""},
                                        {3, ""},
                                        {3, ""},
                                        {4, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                                            "a"}};
    check_parts(llama, good, 5, "\xef\xbf\xbd");
    check_parts(llama, bad, 6, "");
    tokenizer_sections bytes = plain_sections;
    bytes.model =
        "{\"type\":\"BPE\",\"vocab\":{\"\xc3\x83\":0,\"\xc2\xa9\":1,\"a\":2,\"\xc3\xa2\":3},"
        "\"merges\":[]}"; // C3, A9, a, E2
    static const expected_part parts[] = {{2, "a"},
                                          {0, ""},
                                          {1, "\xc3\xa9"},
                                          {3, ""},
                                          {3, "\xef\xbf\xbd"},
                                          {2, "\xef\xbf\xbd"
                                              "a"},
                                          {0, ""}};
    check_parts(bytes, parts, 7, "\xef\xbf\xbd");
}

static void ends_are_stripped_from_what_is_fused(void) {
    tokenizer_sections sections = llama;
    sections.decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},"
                       "{\"type\":\"Strip\",\"content\":\"a\",\"start\":1,\"stop\":2}]}";
    static const expected_part parts[] = {{4, ""}, {4, ""},  {5, "ab"},   {4, ""},
                                          {4, ""}, {4, "a"}, {8, "aaab"}, {4, ""}};
    check_parts(sections, parts, 8, "");
}

static void without_a_decoder_tokens_are_joined_with_spaces(void) {
    tokenizer_sections sections = llama;
    sections.decoder = "null";
    static const expected_part parts[] = {{4, "a"}, {5, " b"}, {1, " <s>"}, {99, ""}, {8, " ab"}};
    check_parts(sections, parts, 5, "");
}

// Unicode as the library has it: U+0130 keeps its dot as a mark, U+1C89 has a lower case since
// Unicode 16, U+0898 is a mark that its StripAccents does not know.
static void parts_have_the_librarys_unicode(void) {
    static const int32_t lower[] = {0, 1, 2}, marks[] = {3, 4};
    tokenizer_sections sections = llama;
    sections.added_tokens = "[]";
    sections.model = "{\"type\":\"BPE\",\"vocab\":{\"i\":0,\"\xcc\x87\":1,\"\xe1\xb2\x8a\":2,"
                     "\"e\":3,\"\xe0\xa2\x98\":4},\"merges\":[]}";
    sections.normalizer = "{\"type\":\"Lowercase\"}";
    td_tokenizer *tokenizer = open_sections(sections);
    check_ids(tokenizer, "\xc4\xb0\xe1\xb2\x89", 3, lower);
    td_tokenizer_close(tokenizer);
    sections.normalizer = "{\"type\":\"StripAccents\"}";
    tokenizer = open_sections(sections);
    check_ids(tokenizer, "e\xcc\x87\xe0\xa2\x98", 2, marks);
    td_tokenizer_close(tokenizer);
}

// Would take many minutes if any part were quadratic.
static void long_words_are_encoded(void) {
    static const char *const units[] = {"a", "b", "ab", " ", "a ", "z", "\xc3\xa9", "aab b  "};
    size_t bytes = 1 << 18;
    char *text = malloc(bytes);
    REQUIRE(text != NULL);
    for (size_t u = 0; u < 2 * (sizeof units / sizeof *units); u++) {
        tokenizer_sections sections = llama;
        if (u % 2)
            sections.model =
                MODEL("\"byte_fallback\":true,", "[\"b\",\"" SPACE "\"],[\"a\",\"b\"]");
        td_tokenizer *tokenizer = open_sections(sections);
        size_t unit = strlen(units[u / 2]), length = bytes / unit * unit;
        td_tokens tokens = {0};
        for (size_t i = 0; i < length; i++)
            text[i] = units[u / 2][i % unit];
        CHECK(td_tokenizer_encode(tokenizer, text, length, 0, &tokens) == TD_OK);
        CHECK(tokens.count > 0 && tokens.ends[tokens.count - 1] == length);
        td_tokens_fini(&tokens);
        td_tokenizer_close(tokenizer);
    }
    free(text);
}

int main(void) {
    TEST(every_style_is_the_librarys);
    TEST(spans_point_into_the_text);
    TEST(unknown_characters_fuse_only_when_asked);
    TEST(merges_may_reach_across_spaces);
    TEST(only_the_file_says_what_is_added);
    TEST(a_stream_waits_for_whole_characters);
    TEST(ends_are_stripped_from_what_is_fused);
    TEST(without_a_decoder_tokens_are_joined_with_spaces);
    TEST(parts_have_the_librarys_unicode);
    TEST(long_words_are_encoded);
    return test_report();
}
