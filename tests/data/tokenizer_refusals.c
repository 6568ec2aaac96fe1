// What a tokenizer.json may hold and we do not support is refused by name, never approximated.
#include "tokenizer_files.h"

static void check_refused(tokenizer_sections sections, const char *part) {
    td_tokenizer *tokenizer = NULL;
    CHECK(td_tokenizer_open(write_tokenizer(sections), &tokenizer) == TD_ERR_DATA);
    CHECK(strstr(td_error_message(), "tokenizer.json") != NULL);
    CHECK_MESSAGE(part);
    td_tokenizer_close(tokenizer);
}

static void normalizers(void) {
    tokenizer_sections s = plain_sections;
    s.normalizer = "{\"type\":\"Nmt\"}";
    check_refused(s, "normalizer of type \"Nmt\" is not supported; supported: Lowercase, NFC");
    s.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":"
                   "\"BertNormalizer\"}]}";
    check_refused(s, "BertNormalizer");
    s.normalizer = "{\"type\":\"Sequence\"}";
    check_refused(s, "no list of normalizers");
    s.normalizer = "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AA==\"}";
    check_refused(s, "normalizer Precompiled");
    s.normalizer = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"x\"}";
    check_refused(s, "Replace needs a content");
    s.normalizer = "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"\\\\w\"},\"content\":\"x\"}";
    check_refused(s, "this escape");
    s.normalizer = "{\"type\":\"Prepend\"}";
    check_refused(s, "Prepend has no");
    s.normalizer = "{}";
    check_refused(s, "normalizer has no \"type\"");
}

static void pre_tokenizers(void) {
    tokenizer_sections s = plain_sections;
    s.pre_tokenizer = "{\"type\":\"UnicodeScripts\"}";
    check_refused(s, "pre_tokenizer of type \"UnicodeScripts\"");
    s.pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}";
    check_refused(s, "replacement must be one character");
    s.pre_tokenizer = "{\"type\":\"Metaspace\",\"prepend_scheme\":\"last\"}";
    check_refused(s, "unknown prepend_scheme \"last\"");
    s.pre_tokenizer = "{\"type\":\"Metaspace\",\"prepend_scheme\":\"first\","
                      "\"add_prefix_space\":false}";
    check_refused(s, "add_prefix_space false but prepend_scheme \"first\"");
    s.pre_tokenizer =
        "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL ",{\"type\":\"Digits\"}]}";
    check_refused(s, "Digits after ByteLevel");
    s.pre_tokenizer = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Odd\"}";
    check_refused(s, "unknown behavior \"Odd\"");
    s.pre_tokenizer = "{\"type\":\"Split\",\"pattern\":{},\"behavior\":\"Isolated\"}";
    check_refused(s, "needs a Regex or a String");
}

static void models(void) {
    static const struct {
        const char *model, *part;
    } cases[] = {
        {"null", "no \"model\" object"},
        {"{\"type\":\"Unigram\",\"vocab\":[]}", "Unigram is out of scope: model of type"},
        {"{\"type\":\"WordPiece\",\"vocab\":{}}", "WordPiece is out of scope"},
        {"{\"type\":\"WordLevel\",\"vocab\":{}}", "WordLevel is out of scope"},
        {"{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}", "model.vocab"},
        {"{\"type\":\"BPE\",\"dropout\":0.1," SMALL_VOCABULARY "," SMALL_MERGES "}",
         "model.dropout"},
        {"{\"type\":\"BPE\",\"byte_fallback\":true," SMALL_VOCABULARY "," SMALL_MERGES "}",
         "model.byte_fallback"},
        {"{\"type\":\"BPE\",\"continuing_subword_prefix\":\"##\"," SMALL_VOCABULARY "," SMALL_MERGES
         "}",
         "model.continuing_subword_prefix"},
        {"{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\"," SMALL_VOCABULARY "," SMALL_MERGES "}",
         "model.end_of_word_suffix"},
        {"{\"type\":\"BPE\",\"unk_token\":\"<x>\"," SMALL_VOCABULARY "," SMALL_MERGES "}",
         "model.unk_token"},
        {"{\"type\":\"BPE\"," SMALL_VOCABULARY "}", "model.merges must be a list"},
        {"{\"type\":\"BPE\"," SMALL_VOCABULARY ",\"merges\":[\"a b c\"]}", "model.merges[0]"},
        {"{\"type\":\"BPE\"," SMALL_VOCABULARY ",\"merges\":[\"a \"]}", "model.merges[0]"},
        {"{\"type\":\"BPE\"," SMALL_VOCABULARY ",\"merges\":[[\"a\"]]}", "model.merges[0]"},
        {"{\"type\":\"BPE\"," SMALL_VOCABULARY ",\"merges\":[\"a b\",\"b a\"]}",
         "merge 1 (\"b\" \"a\"): \"ba\" is not in the vocabulary"},
        {"{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}", "both have id 0"},
        {"{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}", "\"a\" is listed twice"},
        {"{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}", "the id of token \"a\""},
        {"{\"type\":\"BPE\",\"vocab\":{\"a\":1e12},\"merges\":[]}", "the id of token \"a\""},
        {"{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"},\"merges\":[]}", "the id of token \"a\""},
    };
    tokenizer_sections s = plain_sections;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        s.model = cases[i].model;
        check_refused(s, cases[i].part);
    }
}

static void decoders(void) {
    tokenizer_sections s = plain_sections;
    s.decoder = "{\"type\":\"WordPiece\"}";
    check_refused(s, "decoder of type \"WordPiece\"");
    s.decoder = "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"b\"}";
    check_refused(s, "decoder Replace needs");
    s.decoder = "{\"type\":\"Strip\",\"content\":\"ab\",\"start\":1,\"stop\":0}";
    check_refused(s, "Strip content must be one character");
    s.decoder = "{\"type\":\"Strip\",\"content\":\"a\",\"start\":-1,\"stop\":0}";
    check_refused(s, "start");
    s.decoder = "{\"type\":\"Sequence\"}";
    check_refused(s, "no list of decoders");
}

static void added_tokens(void) {
    tokenizer_sections s = plain_sections;
    s.added_tokens = "[{\"id\":9,\"content\":\"<x>\"}]";
    check_refused(s, "\"<x>\" has id 9, but by its place it would get 7");
    s.added_tokens = "[{\"id\":1,\"content\":\"a\"}]";
    check_refused(s, "\"a\" has id 1, but by its place it would get 0");
    s.added_tokens = "[{\"id\":7}]";
    check_refused(s, "no content or no id");
    s.normalizer = "{\"type\":\"Strip\"}";
    s.added_tokens = "[{\"id\":7,\"content\":\" \",\"normalized\":true}]";
    check_refused(s, "nothing is left of added token");
    s.added_tokens = "{}";
    check_refused(s, "added_tokens must be a list");
}

static void post_processors(void) {
    static const char template[] = "{\"type\":\"TemplateProcessing\",\"single\":[%s],"
                                   "\"special_tokens\":{\"<u>\":{\"id\":\"<u>\",\"ids\":[%s]}}}";
    static const struct {
        const char *single, *ids, *part;
    } cases[] = {
        {"{\"SpecialToken\":{\"id\":\"<u>\"}}", "6", "must hold the sequence A once"},
        {"{\"Sequence\":{\"id\":\"A\"}},{\"Sequence\":{\"id\":\"A\"}}", "6", "sequence A once"},
        {"{\"Sequence\":{\"id\":\"B\"}}", "6", "must hold the sequence A once"},
        {"{\"SpecialToken\":{\"id\":\"<v>\"}},{\"Sequence\":{\"id\":\"A\"}}", "6", "\"<v>\""},
        {"{\"SpecialToken\":{\"id\":\"<u>\"}},{\"Sequence\":{\"id\":\"A\"}}", "7",
         "does not exist"},
        {"{\"SpecialToken\":{\"id\":\"<u>\"}},{\"Sequence\":{\"id\":\"A\"}}", "\"6\"",
         "malformed id"},
    };
    tokenizer_sections s = plain_sections;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        snprintf(text, sizeof text, template, cases[i].single, cases[i].ids);
        s.post_processor = text;
        check_refused(s, cases[i].part);
    }
    s.post_processor = "{\"type\":\"RobertaProcessing\"}";
    check_refused(s, "post_processor of type \"RobertaProcessing\"");
}

// Constructs whose meaning differs between the two regular expression engines, or is not known to
// be the same.
static void patterns(void) {
    static const struct {
        const char *regex, *part;
    } cases[] = {
        {"\\\\w+", "this escape"},
        {"a\\\\b", "this escape"},
        {"\\\\h", "this escape"},
        {"\\\\p{Han}", "general category"},
        {"\\\\p{C}", "general category"},
        {"\\\\pL", "without braces"},
        {"[^\\\\P{L}]", "a negated property in a class"},
        {"[a[b]]", "a class within a class"},
        {"[a&&b]", "an intersection"},
        {"[]a]", "']' as the first member"},
        {"[ab", "unfinished class"},
        {"(a", "unclosed group"},
        {"a)", "unopened"},
        {"(?<name>a)", "this kind of group"},
        {"a(?i)b", "this kind of group"},
        {"(?i:\\\\p{Lu})", "letter-case property"},
        {"(?i:\\u00df)", "outside ASCII"},
        {"(?i:ss)", "ligature"},
        {"a{2}?", "a suffix of this repetition"},
        {"a{2,3}+", "a suffix of this repetition"},
        {"\\\\x{110000}", "out of range"},
        {"\\\\xff", "a byte above 7F"},
        {"*a", "pattern"},
        {"a{9,2}", "pattern"},
    };
    tokenizer_sections s = plain_sections;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        snprintf(text, sizeof text,
                 "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
                 "{\"Regex\":\"%s\"},\"behavior\":\"Isolated\"}," PLAIN_BYTE_LEVEL "]}",
                 cases[i].regex);
        s.pre_tokenizer = text;
        check_refused(s, cases[i].part);
    }
}

static void files(void) {
    td_tokenizer *tokenizer = NULL;
    CHECK(td_tokenizer_open(scratch("nowhere"), &tokenizer) == TD_ERR_DATA);
    CHECK_MESSAGE("nowhere/tokenizer.json");
    const char *folder = write_tokenizer(plain_sections);
    scratch_file("tokenizer/tokenizer.json", "{\"model\":");
    CHECK(td_tokenizer_open(folder, &tokenizer) == TD_ERR_DATA);
    CHECK_MESSAGE("malformed JSON");
    scratch_file("tokenizer/tokenizer.json", "[]");
    CHECK(td_tokenizer_open(folder, &tokenizer) == TD_ERR_DATA);
    CHECK_MESSAGE("no \"model\" object");
    write_tokenizer(plain_sections);
    scratch_file("tokenizer/tokenizer_config.json", "{");
    CHECK(td_tokenizer_open(folder, &tokenizer) == TD_ERR_DATA);
    CHECK_MESSAGE("tokenizer_config.json");
}

int main(void) {
    TEST(normalizers);
    TEST(pre_tokenizers);
    TEST(models);
    TEST(decoders);
    TEST(added_tokens);
    TEST(post_processors);
    TEST(patterns);
    TEST(files);
    return test_report();
}
