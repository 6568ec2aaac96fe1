// Byte-pair encoding against the plainest way to do it.
#include "runtime/core/rng.h"
#include "tokenizer_files.h"

// A random vocabulary over a few letters.
enum { LETTERS = 4, MERGES = 80, TOKENS = LETTERS + MERGES, MAX_TOKEN = 8, MAX_WORD = 400 };

typedef struct merge_rule {
    int left, right;
} merge_rule;

static char token_texts[TOKENS][MAX_TOKEN + 1];
static merge_rule rules[MERGES];

static uint32_t draw(uint32_t stream, uint64_t index) {
    return td_rng_word(td_rng_key(17, TD_RNG_TEST), stream, 0, index);
}

static int is_new_token(const char *text, int count) {
    for (int i = 0; i < count; i++)
        if (strcmp(token_texts[i], text) == 0)
            return 0;
    return strlen(text) <= MAX_TOKEN;
}

static void draw_rules(void) {
    int count = LETTERS;
    for (int i = 0; i < LETTERS; i++)
        token_texts[i][0] = (char)('a' + i);
    for (uint64_t n = 0; count < TOKENS; n += 2) {
        char text[2 * MAX_TOKEN + 1];
        merge_rule rule = {(int)(draw(0, n) % (uint32_t)count),
                           (int)(draw(0, n + 1) % (uint32_t)count)};
        snprintf(text, sizeof text, "%s%s", token_texts[rule.left], token_texts[rule.right]);
        if (!is_new_token(text, count))
            continue;
        rules[count - LETTERS] = rule;
        memcpy(token_texts[count++], text, strlen(text) + 1);
    }
}

static td_tokenizer *open_rules(void) {
    static char model[6144];
    tokenizer_sections sections = plain_sections;
    char *at = model + sprintf(model, "{\"type\":\"BPE\",\"vocab\":{");
    for (int i = 0; i < TOKENS; i++)
        at += sprintf(at, "%s\"%s\":%d", i ? "," : "", token_texts[i], i);
    at += sprintf(at, "},\"merges\":[");
    for (int i = 0; i < MERGES; i++)
        at += sprintf(at, "%s[\"%s\",\"%s\"]", i ? "," : "", token_texts[rules[i].left],
                      token_texts[rules[i].right]);
    sprintf(at, "]}");
    sections.model = model;
    return open_sections(sections);
}

// Where the rule fits first, -1: nowhere.
static int find_rule(const int *ids, int length, int rule) {
    for (int i = 0; i + 1 < length; i++)
        if (ids[i] == rules[rule].left && ids[i + 1] == rules[rule].right)
            return i;
    return -1;
}

// Applies the first rule that fits, leftmost, until none does.
static int merge_plainly(const char *word, int length, int *ids) {
    for (int i = 0; i < length; i++)
        ids[i] = word[i] - 'a';
    for (int rule = 0; rule < MERGES;) {
        int at = find_rule(ids, length, rule);
        if (at < 0) {
            rule++;
            continue;
        }
        ids[at] = LETTERS + rule;
        memmove(ids + at + 1, ids + at + 2, (size_t)(length - at - 2) * sizeof *ids);
        length--;
        rule = 0;
    }
    return length;
}

static void words_of_any_length_merge_by_rank(void) {
    draw_rules();
    td_tokenizer *tokenizer = open_rules();
    for (uint32_t round = 0; round < 300; round++) {
        char word[MAX_WORD];
        int ids[MAX_WORD], length = 1 + (int)(draw(1, round) % (round % 2 ? 60 : MAX_WORD));
        for (int i = 0; i < length; i++)
            word[i] = (char)('a' + draw(2 + round, (uint64_t)i) % LETTERS);
        int expected = merge_plainly(word, length, ids);
        td_tokens tokens = {0};
        REQUIRE(td_tokenizer_encode(tokenizer, word, (size_t)length, 0, &tokens) == TD_OK);
        CHECK_INT(tokens.count, expected);
        for (int i = 0; i < expected && (size_t)i < tokens.count; i++)
            CHECK_INT(tokens.ids[i], ids[i]);
        td_tokens_fini(&tokens);
    }
    td_tokenizer_close(tokenizer);
}

static void ignore_merges_takes_whole_words(void) {
    tokenizer_sections sections = plain_sections;
    sections.model = "{\"type\":\"BPE\",\"ignore_merges\":true,"
                     "\"vocab\":{\"a\":0,\"b\":1,\"aba\":2},\"merges\":[]}";
    td_tokenizer *tokenizer = open_sections(sections);
    td_tokens tokens = encode(tokenizer, "aba", 0);
    check_token(&tokens, 0, 2, 0, 3);
    td_tokens_fini(&tokens);
    tokens = encode(tokenizer, "abab", 0);
    CHECK_INT(tokens.count, 4);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

static void the_last_of_equal_merges_counts(void) {
    tokenizer_sections sections = plain_sections;
    // "a b" is listed again after "b a", so "aba" becomes a + ba.
    sections.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"ba\":3},"
                     "\"merges\":[[\"a\",\"b\"],[\"b\",\"a\"],[\"a\",\"b\"]]}";
    td_tokenizer *tokenizer = open_sections(sections);
    td_tokens tokens = encode(tokenizer, "aba", 0);
    check_token(&tokens, 0, 0, 0, 1);
    check_token(&tokens, 1, 3, 1, 3);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
}

static void bytes_without_a_token_are_left_out_or_unknown(void) {
    tokenizer_sections sections = plain_sections;
    td_tokenizer *tokenizer = open_sections(sections);
    td_tokens tokens = encode(tokenizer, "aXb", 0);
    check_token(&tokens, 0, 2, 0, 3); // a and b become neighbours
    CHECK_INT(tokens.count, 1);
    td_tokens_fini(&tokens);
    td_tokenizer_close(tokenizer);
    sections.model =
        "{\"type\":\"BPE\",\"unk_token\":\"<u>\"," SMALL_VOCABULARY "," SMALL_MERGES "}";
    tokenizer = open_sections(sections);
    for (int round = 0; round < 2; round++) { // the second from the cache, were it used
        tokens = encode(tokenizer, "aXb", 0);
        check_token(&tokens, 0, 0, 0, 1);
        check_token(&tokens, 1, 6, 1, 2);
        check_token(&tokens, 2, 1, 2, 3);
        td_tokens_fini(&tokens);
    }
    td_tokenizer_close(tokenizer);
}

int main(void) {
    TEST(words_of_any_length_merge_by_rank);
    TEST(ignore_merges_takes_whole_words);
    TEST(the_last_of_equal_merges_counts);
    TEST(bytes_without_a_token_are_left_out_or_unknown);
    return test_report();
}
