#include "runtime/data/filters.h"
#include "unit/scratch.h"

static td_row_texts texts_of(const char *prompt, const char *response) {
    return (td_row_texts){.prompt = (char *)(uintptr_t)prompt,
                          .response = (char *)(uintptr_t)response,
                          .prompt_bytes = strlen(prompt),
                          .response_bytes = strlen(response),
                          .has_prompt = 1,
                          .has_response = 1};
}

static td_filters *create(const td_filter_options *options) {
    td_filters *filters;
    if (!CHECK(td_filters_create(options, &filters) == TD_OK))
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(td_error_message()[0] == '\0');
    return filters;
}

static td_filter_verdict judge_texts(const td_filters *filters, const td_row_texts *texts,
                                     int64_t n_tokens) {
    td_filter_verdict verdict = TD_FILTER_VERDICTS;
    if (!CHECK(td_filters_judge(filters, "f:1", texts, n_tokens, &verdict) == TD_OK))
        fprintf(stderr, "    %s\n", td_error_message());
    td_error_clear();
    return verdict;
}

static td_filter_verdict judge(const td_filter_options *options, const char *prompt,
                               const char *response) {
    td_filters *filters = create(options);
    td_row_texts texts = texts_of(prompt, response);
    td_filter_verdict verdict = judge_texts(filters, &texts, 100);
    td_filters_destroy(filters);
    return verdict;
}

static void without_filters_all_rows_are_kept(void) {
    td_filters *filters = create(&td_filters_off);
    td_row_texts texts = texts_of("a", "a");
    CHECK(!td_filters_are_on(filters));
    CHECK(!td_filters_need_texts(filters));
    CHECK_INT(judge_texts(filters, &texts, 0), TD_FILTER_KEEP);
    CHECK_INT(judge_texts(filters, NULL, 0), TD_FILTER_KEEP);
    td_filters_destroy(filters);
    td_filters_destroy(NULL);
}

static void limits_on_words_are_inclusive(void) {
    td_filter_options options = td_filters_off;
    options.min_prompt_words = 2;
    options.max_prompt_words = 3;
    options.min_response_words = 1;
    options.max_response_words = 2;
    CHECK_INT(judge(&options, "one", "x"), TD_FILTER_SHORT_PROMPT);
    CHECK_INT(judge(&options, "one two", "x"), TD_FILTER_KEEP);
    CHECK_INT(judge(&options, "one two three", "x y"), TD_FILTER_KEEP);
    CHECK_INT(judge(&options, "one two three four", "x"), TD_FILTER_LONG_PROMPT);
    CHECK_INT(judge(&options, "one two", " \n"), TD_FILTER_SHORT_RESPONSE);
    CHECK_INT(judge(&options, "one two", "x y z"), TD_FILTER_LONG_RESPONSE);
}

// White space is Unicode's; what only looks like it, a zero-width space, is not.
static void words_stand_between_white_space(void) {
    static const struct {
        const char *text;
        int64_t words;
    } cases[] = {
        {"", 0},
        {" \t\r\n\v\f", 0},
        {"one", 1},
        {"  one  two\t\nthree ", 3},
        {"one\xc2\xa0two\xe3\x80\x80three\xe2\x80\xa8"
         "four\xc2\x85"
         "five",
         5},
        {"one\xe2\x80\x8btwo", 1},
        {"don't stop-now, 3.5 \xf0\x9f\x98\x80", 4},
        {"\xe4\xbd\xa0\xe5\xa5\xbd\xe4\xb8\x96\xe7\x95\x8c", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        td_filter_options exact = td_filters_off;
        exact.min_response_words = cases[i].words;
        CHECK_INT(judge(&exact, "", cases[i].text), TD_FILTER_KEEP);
        exact.min_response_words = cases[i].words + 1;
        CHECK_INT(judge(&exact, "", cases[i].text), TD_FILTER_SHORT_RESPONSE);
    }
}

static void few_tokens_are_counted_in_any_row(void) {
    td_filter_options options = td_filters_off;
    options.min_tokens = 5;
    td_filters *filters = create(&options);
    CHECK(td_filters_are_on(filters));
    CHECK(!td_filters_need_texts(filters));
    CHECK_INT(judge_texts(filters, NULL, 4), TD_FILTER_FEW_TOKENS);
    CHECK_INT(judge_texts(filters, NULL, 5), TD_FILTER_KEEP);
    td_filters_destroy(filters);
}

// Sets {a b c d} and {c d e}: 2 of 5 in common; repeated words count once.
static void overlap_is_of_sets_of_words(void) {
    td_filter_options options = td_filters_off;
    options.max_jaccard = 0.4;
    CHECK_INT(judge(&options, "a b c d", "c d e c d e"), TD_FILTER_KEEP);
    options.max_jaccard = 0.399999;
    CHECK_INT(judge(&options, "a b c d", "c d e c d e"), TD_FILTER_REPEATS_PROMPT);
    options.max_jaccard = 0.999;
    CHECK_INT(judge(&options, "a b", "b a  b"), TD_FILTER_REPEATS_PROMPT);
    CHECK_INT(judge(&options, "a b", "A b"), TD_FILTER_KEEP);
    options.max_jaccard = 1;
    CHECK_INT(judge(&options, "a b", "a b"), TD_FILTER_KEEP);
    options.max_jaccard = 0;
    CHECK_INT(judge(&options, "a b", "c d"), TD_FILTER_KEEP);
    CHECK_INT(judge(&options, "a b", "c a"), TD_FILTER_REPEATS_PROMPT);
    CHECK_INT(judge(&options, "", ""), TD_FILTER_KEEP);
}

static void rows_without_a_prompt_are_not_asked_for_one(void) {
    td_filter_options options = td_filters_off;
    char *patterns[] = {"^only"};
    td_string_list list = {patterns, 1};
    options.min_prompt_words = 3;
    options.max_jaccard = 0;
    options.keep_matching = &list;
    td_filters *filters = create(&options);
    td_row_texts texts = texts_of("", "only an answer");
    texts.has_prompt = 0;
    CHECK_INT(judge_texts(filters, &texts, 1), TD_FILTER_KEEP);
    // Token ids without a tokenizer.
    texts = (td_row_texts){0};
    CHECK_INT(judge_texts(filters, &texts, 1), TD_FILTER_KEEP);
    td_filters_destroy(filters);
}

static void patterns_drop_and_keep(void) {
    td_filter_options options = td_filters_off;
    char *drop[] = {"(?i)as an ai", "\\bhttps?://"};
    char *keep[] = {"^\\p{Lu}", "\\?\\s*\\z"};
    td_string_list drop_list = {drop, 2}, keep_list = {keep, 2};
    options.drop_matching = &drop_list;
    CHECK_INT(judge(&options, "Hi", "As an AI, no"), TD_FILTER_DROP_MATCHING);
    CHECK_INT(judge(&options, "see http://x", "ok"), TD_FILTER_DROP_MATCHING);
    CHECK_INT(judge(&options, "Hi", "As a person"), TD_FILTER_KEEP);
    // Not across the two texts.
    CHECK_INT(judge(&options, "as an", " ai"), TD_FILTER_KEEP);
    options.keep_matching = &keep_list;
    CHECK_INT(judge(&options, "hi", "\xc3\x84h"), TD_FILTER_KEEP);
    CHECK_INT(judge(&options, "why? ", "so"), TD_FILTER_KEEP);
    CHECK_INT(judge(&options, "hi", "ho"), TD_FILTER_KEEP_MATCHING);
    CHECK_INT(judge(&options, "", ""), TD_FILTER_KEEP_MATCHING);
    CHECK_INT(judge(&options, "Hi", "as an ai"), TD_FILTER_DROP_MATCHING);
}

// Texts longer than the blocks they are searched in: at the borders, at the very end, looking back
// over a border, and with characters of several bytes on it.
static void long_texts_are_searched_whole(void) {
    enum { BYTES = 100000 };
    char *text = malloc(BYTES + 1);
    REQUIRE(text != NULL);
    for (int shift = 0; shift < 3; shift++) {
        memset(text, '.', BYTES);
        text[BYTES] = '\0';
        for (int i = shift; i + 2 < BYTES; i += 3)
            memcpy(text + i, "\xe2\x82\xac", 3);
        for (int at = 16380 + shift; at < 16392; at += 3) {
            char saved[3];
            char *patterns[] = {"(?<=\\x{20ac})xyz(?=\\x{20ac})"};
            td_filter_options options = td_filters_off;
            td_string_list list = {patterns, 1};
            options.drop_matching = &list;
            int place = at - (at - shift) % 3;
            memcpy(saved, text + place, 3);
            CHECK_INT(judge(&options, "", text), TD_FILTER_KEEP);
            memcpy(text + place, "xyz", 3);
            CHECK_INT(judge(&options, "", text), TD_FILTER_DROP_MATCHING);
            memcpy(text + place, saved, 3);
        }
    }
    char *end[] = {"\\z"}, *halves[] = {"(*NO_START_OPT)[\\x{80}-\\x{bf}]"};
    td_filter_options options = td_filters_off;
    td_string_list list = {halves, 1};
    options.drop_matching = &list;
    CHECK_INT(judge(&options, "", text), TD_FILTER_KEEP);
    list.items = end;
    CHECK_INT(judge(&options, "", text), TD_FILTER_DROP_MATCHING);
    free(text);
}

static void check_gives_up(const char *pattern, const char *text) {
    char *patterns[] = {"never", (char *)(uintptr_t)pattern};
    td_string_list list = {patterns, 2};
    td_filter_options options = td_filters_off;
    options.keep_matching = &list;
    td_filters *filters = create(&options);
    td_row_texts texts = texts_of(":", text);
    td_filter_verdict verdict;
    char part[128];
    snprintf(part, sizeof part, "f:7: keep_matching[1] \"%s\" gives up on this row", pattern);
    CHECK_INT(td_filters_judge(filters, "f:7", &texts, 9, &verdict), TD_ERR_USAGE);
    CHECK_MESSAGE(part);
    td_filters_destroy(filters);
}

static void patterns_that_never_end_give_up(void) {
    check_gives_up("^(a+)+$", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!");
    check_gives_up("^(\\w+\\s?)*$",
                   "these words and more of them and yet more of them and then some!");
    check_gives_up("(a|aa)+$", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!");
}

static void check_refused(const td_filter_options *options, const char *part) {
    td_filters *filters = NULL;
    CHECK_INT(td_filters_create(options, &filters), TD_ERR_USAGE);
    CHECK(filters == NULL);
    CHECK_MESSAGE(part);
}

static void bad_patterns_are_named(void) {
    static const struct {
        const char *pattern, *part;
    } cases[] = {
        {"a(b", "drop_matching[1] \"a(b\": missing closing parenthesis at character 4"},
        {"[z-a]", "drop_matching[1] \"[z-a]\": range out of order"},
        {"*", "quantifier does not follow"},
        {"\\C", "\\C"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *patterns[] = {"fine", (char *)(uintptr_t)cases[i].pattern};
        td_string_list list = {patterns, 2};
        td_filter_options options = td_filters_off;
        options.drop_matching = &list;
        check_refused(&options, cases[i].part);
    }
}

static void limits_that_contradict_are_refused(void) {
    td_filter_options options = td_filters_off;
    options.min_prompt_words = 4;
    options.max_prompt_words = 3;
    check_refused(&options, "min_prompt_words, 4, is above max_prompt_words, 3");
    options = td_filters_off;
    options.min_response_words = -1;
    check_refused(&options, "min_response_words");
    options = td_filters_off;
    options.min_tokens = -1;
    check_refused(&options, "min_tokens");
    options = td_filters_off;
    options.max_jaccard = 1.5;
    check_refused(&options, "max_prompt_response_jaccard must be");
    options.max_jaccard = NAN;
    check_refused(&options, "max_prompt_response_jaccard must be");
}

static void every_verdict_has_a_name_of_its_own(void) {
    for (int i = 0; i < TD_FILTER_VERDICTS; i++) {
        REQUIRE(td_filter_reasons[i].name && td_filter_reasons[i].text);
        for (int j = 0; j < i; j++)
            CHECK(strcmp(td_filter_reasons[i].name, td_filter_reasons[j].name) != 0);
    }
}

// One pattern, many threads: the verdict of each row is that of the row.
static void threads_do_not_meet(void) {
    char *patterns[] = {"x{3}$"};
    td_string_list list = {patterns, 1};
    td_filter_options options = td_filters_off;
    options.drop_matching = &list;
    options.max_jaccard = 0.5;
    td_filters *filters = create(&options);
    int wrong = 0;
#pragma omp parallel for num_threads(4) reduction(+ : wrong)
    for (int i = 0; i < 4000; i++) {
        td_row_texts texts = texts_of("a b c", i % 3 == 0   ? "go xxx"
                                               : i % 3 == 1 ? "c b a"
                                                            : "go xx");
        td_filter_verdict verdict = TD_FILTER_VERDICTS;
        td_status status = td_filters_judge(filters, "f", &texts, 1, &verdict);
        td_filter_verdict expected = i % 3 == 0   ? TD_FILTER_DROP_MATCHING
                                     : i % 3 == 1 ? TD_FILTER_REPEATS_PROMPT
                                                  : TD_FILTER_KEEP;
        wrong += status != TD_OK || verdict != expected;
    }
    CHECK_INT(wrong, 0);
    td_filters_destroy(filters);
}

int main(void) {
    TEST(without_filters_all_rows_are_kept);
    TEST(limits_on_words_are_inclusive);
    TEST(words_stand_between_white_space);
    TEST(few_tokens_are_counted_in_any_row);
    TEST(overlap_is_of_sets_of_words);
    TEST(rows_without_a_prompt_are_not_asked_for_one);
    TEST(patterns_drop_and_keep);
    TEST(long_texts_are_searched_whole);
    TEST(patterns_that_never_end_give_up);
    TEST(bad_patterns_are_named);
    TEST(limits_that_contradict_are_refused);
    TEST(every_verdict_has_a_name_of_its_own);
    TEST(threads_do_not_meet);
    return test_report();
}
