#include "runtime/data/rows.h"
#include "model/chat.h"
#include "unit/scratch.h"

enum { VOCABULARY = 900, END_OF_TEXT = 800 };

static td_tokenizer *chat_tokenizer, *template_tokenizer;

static td_prepare_options defaults(void) {
    return (td_prepare_options){.tokenizer = chat_tokenizer,
                                .vocabulary = VOCABULARY,
                                .eos_id = END_OF_TEXT,
                                .max_length = 1000,
                                .assistant_only_loss = 1,
                                .completion_only_loss = 1};
}

static td_row read_row(const td_prepare_options *options, const char *line) {
    td_row row = {0};
    if (!CHECK(td_row_read(options, "f:1", line, strlen(line), &row) == TD_OK))
        fprintf(stderr, "    %s\n    %s\n", line, td_error_message());
    return row;
}

// A row built piece by piece: the tokens of each text, trained or not.
typedef struct expectation {
    td_tokens tokens;
    uint8_t trained[512];
} expectation;

static void expect(expectation *e, const char *text, int trained) {
    size_t before = e->tokens.count;
    REQUIRE(td_tokenizer_encode(chat_tokenizer, text, strlen(text), 0, &e->tokens) == TD_OK);
    for (size_t i = before; i < e->tokens.count; i++)
        e->trained[i] = (uint8_t)(trained && i > 0);
}

static void check_row(const td_prepare_options *options, const char *line, expectation *e) {
    td_row row = read_row(options, line);
    CHECK_INT(row.count, e->tokens.count);
    for (int64_t i = 0; i < row.count && i < (int64_t)e->tokens.count; i++) {
        CHECK_INT(row.tokens[i], e->tokens.ids[i]);
        CHECK_INT(row.trained[i], e->trained[i]);
    }
    td_row_fini(&row);
    td_tokens_fini(&e->tokens);
    *e = (expectation){0};
}

static const char chat[] = "{\"messages\":[{\"role\":\"system\",\"content\":\"Be kind.\"},"
                           "{\"role\":\"user\",\"content\":\"Hi, who are you?\"},"
                           "{\"role\":\"assistant\",\"content\":\"A friend.\\nReally!\"},"
                           "{\"role\":\"user\",\"content\":\"Oh\"},"
                           "{\"role\":\"assistant\",\"content\":\"Yes\"}]}";

static void chats_train_what_the_assistant_says(void) {
    td_prepare_options options = defaults();
    expectation e = {0};
    expect(&e, "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi, who are you?", 0);
    expect(&e, "<|im_end|>\n<|im_start|>assistant\n", 0);
    expect(&e, "A friend.\nReally!<|im_end|>", 1);
    expect(&e, "\n<|im_start|>user\nOh<|im_end|>\n<|im_start|>assistant\n", 0);
    expect(&e, "Yes<|im_end|>", 1);
    expect(&e, "\n", 0);
    check_row(&options, chat, &e);
}

static void chats_train_everything_on_request(void) {
    td_prepare_options options = defaults();
    options.assistant_only_loss = 0;
    expectation e = {0};
    expect(&e, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n", 1);
    check_row(&options,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},"
              "{\"role\":\"assistant\",\"content\":\"Ho\"}]}",
              &e);
}

static void a_chat_without_assistant_trains_nothing(void) {
    td_prepare_options options = defaults();
    td_row row = read_row(&options, "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}");
    CHECK(row.count > 3);
    CHECK_INT(td_row_trained_count(&row), 0);
    td_row_fini(&row);
}

static void completions_are_trained_with_their_end(void) {
    td_prepare_options options = defaults();
    expectation e = {0};
    expect(&e, "What is it?", 0);
    expect(&e, " A thing.<|endoftext|>", 1);
    check_row(&options, "{\"prompt\":\"What is it?\",\"completion\":\" A thing.\"}", &e);
}

static void an_end_that_is_there_is_not_doubled(void) {
    td_prepare_options options = defaults();
    expectation e = {0};
    expect(&e, "Why?", 0);
    expect(&e, " So.<|endoftext|>", 1);
    check_row(&options, "{\"prompt\":\"Why?\",\"completion\":\" So.<|endoftext|>\"}", &e);
    options.eos_id = -1;
    expect(&e, "Why?", 0);
    expect(&e, " So.", 1);
    check_row(&options, "{\"prompt\":\"Why?\",\"completion\":\" So.\"}", &e);
}

static void prompts_are_trained_on_request(void) {
    td_prepare_options options = defaults();
    options.completion_only_loss = 0;
    expectation e = {0};
    expect(&e, "What? A thing.<|endoftext|>", 1);
    check_row(&options, "{\"prompt\":\"What?\",\"completion\":\" A thing.\"}", &e);
}

// " the" is one token: "a t" + "he b" is not the tokens of its parts.
static void a_token_across_the_border_is_trained(void) {
    td_prepare_options options = defaults();
    expectation e = {0};
    expect(&e, "a", 0);
    expect(&e, " the b<|endoftext|>", 1);
    check_row(&options, "{\"prompt\":\"a t\",\"completion\":\"he b\"}", &e);
}

static const char chat_completion[] =
    "{\"prompt\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":"
    "\"Ho\"},"
    "{\"role\":\"user\",\"content\":\"So?\"}],"
    "\"completion\":[{\"role\":\"assistant\",\"content\":\"One.\"},"
    "{\"role\":\"tool\",\"content\":\"Two.\"},{\"role\":\"assistant\",\"content\":\"Three.\"}]}";

static void chat_completions_train_what_the_assistant_says_in_them(void) {
    td_prepare_options options = defaults();
    expectation e = {0};
    expect(&e, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n", 0);
    expect(&e, "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n", 0);
    expect(&e, "One.<|im_end|>", 1);
    expect(&e, "\n<|im_start|>tool\nTwo.<|im_end|>\n<|im_start|>assistant\n", 0);
    expect(&e, "Three.<|im_end|>", 1);
    expect(&e, "\n", 0);
    check_row(&options, chat_completion, &e);
}

static void chat_completions_train_all_of_the_completion_on_request(void) {
    td_prepare_options options = defaults();
    options.assistant_only_loss = 0;
    expectation e = {0};
    expect(&e, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n", 0);
    expect(&e, "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n", 0);
    expect(&e, "One.<|im_end|>\n<|im_start|>tool\nTwo.<|im_end|>\n<|im_start|>assistant\n", 1);
    expect(&e, "Three.<|im_end|>", 1);
    expect(&e, "\n", 0);
    check_row(&options, chat_completion, &e);
}

// The same chat in every form that data comes in.
static void forms_of_a_chat_are_the_same_row(void) {
    static const char *const lines[] = {
        "{\"messages\":[{\"role\":\"system\",\"content\":\"Be.\"},{\"role\":\"user\",\"content\":"
        "\"Hi\"},{\"role\":\"assistant\",\"content\":\"Ho\"}]}",
        "{\"conversations\":[{\"from\":\"system\",\"value\":\"Be.\"},{\"from\":\"human\",\"value\":"
        "\"Hi\"},{\"from\":\"gpt\",\"value\":\"Ho\"}]}",
        "{\"system\":\"Be.\",\"conversations\":[{\"from\":\"user\",\"value\":\"Hi\"},{\"from\":"
        "\"assistant\",\"value\":\"Ho\"}],\"tools\":\"\"}",
        "{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"text\",\"text\":\"B\"},{"
        "\"type\":"
        "\"text\",\"text\":\"e.\"}]},{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":"
        "\"assistant\","
        "\"content\":[{\"type\":\"text\",\"text\":\"Ho\"}],\"tool_calls\":null}],\"tools\":null}",
    };
    td_prepare_options options = defaults();
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        expectation e = {0};
        expect(&e, "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n", 0);
        expect(&e, "<|im_start|>assistant\n", 0);
        expect(&e, "Ho<|im_end|>", 1);
        expect(&e, "\n", 0);
        check_row(&options, lines[i], &e);
    }
}

static void texts_are_trained_whole(void) {
    td_prepare_options options = defaults();
    expectation e = {0};
    expect(&e, "To be, or not\nto be<|endoftext|>", 1);
    check_row(&options, "{\"text\":\"To be, or not\\nto be\",\"source\":\"Hamlet\"}", &e);
}

// <s> (600) before and </s> (601) after, from the tokenizer's own post-processor.
static void texts_get_the_tokenizers_own_special_tokens(void) {
    td_prepare_options options = defaults();
    options.tokenizer = template_tokenizer;
    options.eos_id = 601;
    td_row row = read_row(&options, "{\"text\":\"the\"}");
    const int32_t text[] = {600, 83, 257, 601};
    CHECK_INT(row.count, 4);
    for (int i = 0; i < 4 && i < row.count; i++) {
        CHECK_INT(row.tokens[i], text[i]);
        CHECK_INT(row.trained[i], i > 0);
    }
    td_row_fini(&row);
    row = read_row(&options, "{\"prompt\":\"t\",\"completion\":\" the\"}");
    const int32_t completion[] = {600, 83, 266, 601};
    CHECK_INT(row.count, 4);
    for (int i = 0; i < 4 && i < row.count; i++) {
        CHECK_INT(row.tokens[i], completion[i]);
        CHECK_INT(row.trained[i], i > 1);
    }
    td_row_fini(&row);
}

static void ids_and_labels_are_taken_as_they_are(void) {
    td_prepare_options options = defaults();
    options.tokenizer = NULL;
    td_row row = read_row(&options, "{\"input_ids\":[5,6,899,0],\"labels\":[5,-100,899,-100]}");
    const int32_t tokens[] = {5, 6, 899, 0};
    const uint8_t trained[] = {0, 0, 1, 0};
    REQUIRE(row.count == 4);
    CHECK(memcmp(row.tokens, tokens, sizeof tokens) == 0);
    CHECK(memcmp(row.trained, trained, sizeof trained) == 0);
    td_row_fini(&row);
    row = read_row(&options, "{\"input_ids\":[5,6,7]}");
    CHECK_INT(td_row_trained_count(&row), 2);
    td_row_fini(&row);
}

static void bad_rows_are_named(void) {
    static const struct {
        const char *line, *part;
    } cases[] = {
        {"{\"text\":", "malformed JSON"},
        {"{\"text\":\"a\"} x", "unexpected text"},
        {"[1]", "not a JSON object"},
        {"{}", "\"instruction\" and \"output\", \"text\", or \"input_ids\""},
        {"{\"prompt\":\"a\"}", "unknown row format"},
        {"{\"text\":3}", "\"text\" must be a string"},
        {"{\"text\":\"\xff\"}", "invalid UTF-8"},
        {"{\"prompt\":\"a\",\"completion\":[]}", "both be strings"},
        {"{\"prompt\":[],\"completion\":[]}", "no messages"},
        {"{\"messages\":[]}", "must be a list with messages"},
        {"{\"messages\":\"hi\"}", "must be a list with messages"},
        {"{\"messages\":[{\"role\":\"user\"}]}", "messages[0]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"\",\"content\":\"a\"}]}",
         "messages[1]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "messages[0]"},
        {"{\"messages\":[7]}", "messages[0]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]}",
         "content other than text"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":\"x\"}]}",
         "must be a list"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tools\":7}",
         "\"tools\" must be a list"},
        {"{\"conversations\":[]}", "must be a list with messages"},
        {"{\"conversations\":[{\"from\":\"bird\",\"value\":\"a\"}]}", "is from \"bird\""},
        {"{\"conversations\":[{\"from\":\"human\"}]}", "conversations[0]"},
        {"{\"prompt\":[{\"role\":\"user\"}],\"completion\":[{\"role\":\"assistant\",\"content\":"
         "\"b\"}]}",
         "prompt[0]"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]}]}",
         "tool_calls"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tools\":[{}]}", "\"tools\""},
        {"{\"input_ids\":[1,2],\"labels\":[1]}", "2 input_ids but 1 labels"},
        {"{\"input_ids\":[1,2],\"labels\":[1,3]}", "labels[1]"},
        {"{\"input_ids\":[1,900]}", "input_ids[1]"},
        {"{\"input_ids\":[1,-1]}", "input_ids[1]"},
        {"{\"input_ids\":[1.5]}", "input_ids[0]"},
        {"{\"input_ids\":[\"1\"]}", "input_ids[0]"},
        {"{\"input_ids\":7}", "lists of integers"},
    };
    td_prepare_options options = defaults();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        td_row row = {0};
        CHECK(td_row_read(&options, "f:7", cases[i].line, strlen(cases[i].line), &row) ==
              TD_ERR_DATA);
        CHECK(strncmp(td_error_message(), "f:7: ", 5) == 0);
        CHECK(!row.is_setup_error);
        CHECK_MESSAGE(cases[i].part);
    }
}

static void check_setup_error(const td_prepare_options *options, const char *line,
                              const char *part) {
    td_row row = {0};
    CHECK(td_row_read(options, "f:7", line, strlen(line), &row) == TD_ERR_DATA);
    CHECK(row.is_setup_error);
    CHECK_MESSAGE(part);
}

static void causes_that_all_rows_share_are_told_apart(void) {
    td_prepare_options options = defaults();
    options.tokenizer = NULL;
    check_setup_error(&options, "{\"text\":\"a\"}", "no tokenizer.json");
    options = defaults();
    options.tokenizer = template_tokenizer;
    check_setup_error(&options, chat, "<|im_start|>");
    options = defaults();
    options.vocabulary = 100;
    check_setup_error(&options, "{\"text\":\"the the the\"}", "outside the model's vocabulary");
}

int main(void) {
    REQUIRE(td_tokenizer_open(TEST_FIXTURES "/tokenizers/smollm", &chat_tokenizer) == TD_OK);
    REQUIRE(td_tokenizer_open(TEST_FIXTURES "/tokenizers/added", &template_tokenizer) == TD_OK);
    TEST(chats_train_what_the_assistant_says);
    TEST(chats_train_everything_on_request);
    TEST(a_chat_without_assistant_trains_nothing);
    TEST(completions_are_trained_with_their_end);
    TEST(an_end_that_is_there_is_not_doubled);
    TEST(prompts_are_trained_on_request);
    TEST(a_token_across_the_border_is_trained);
    TEST(chat_completions_train_what_the_assistant_says_in_them);
    TEST(chat_completions_train_all_of_the_completion_on_request);
    TEST(forms_of_a_chat_are_the_same_row);
    TEST(texts_are_trained_whole);
    TEST(texts_get_the_tokenizers_own_special_tokens);
    TEST(ids_and_labels_are_taken_as_they_are);
    TEST(bad_rows_are_named);
    TEST(causes_that_all_rows_share_are_told_apart);
    td_tokenizer_close(chat_tokenizer);
    td_tokenizer_close(template_tokenizer);
    return test_report();
}
