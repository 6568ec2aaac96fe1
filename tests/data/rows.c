#include "runtime/data/rows.h"
#include "model/chat.h"
#include "runtime/core/json.h"
#include "runtime/data/rows_internal.h"
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

// The same row under every name that its keys have.
static void instructions_are_chats(void) {
    static const char *const lines[] = {
        "{\"instruction\":\"Add.\",\"input\":\"1 2\",\"output\":\"3\"}",
        "{\"instruction\":\"Add.\",\"context\":\"1 2\",\"response\":\"3\",\"category\":\"math\"}",
        "{\"instruction\":\"Add.\\n\\n1 2\",\"input\":\"\",\"output\":\"3\",\"system\":\"\"}",
        "{\"instruction\":\"Add.\\n\\n1 2\",\"input\":null,\"output\":\"3\",\"history\":[]}",
        "{\"instruction\":\"\",\"input\":\"Add.\\n\\n1 2\",\"output\":\"3\"}",
        "{\"instruction\":\"Add.\",\"input\":\"1 2\",\"output\":\"3\",\"text\":\"Below is an "
        "instruction. ### Instruction:\\nAdd.\\n\\n### Input:\\n1 2\\n\\n### Response:\\n3\"}",
    };
    td_prepare_options options = defaults();
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        expectation e = {0};
        expect(&e, "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n", 0);
        expect(&e, "3<|im_end|>", 1);
        expect(&e, "\n", 0);
        check_row(&options, lines[i], &e);
    }
}

static void instructions_have_a_system_message_and_a_history(void) {
    td_prepare_options options = defaults();
    expectation e = {0};
    expect(&e, "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n", 0);
    expect(&e, "<|im_start|>assistant\n", 0);
    expect(&e, "Ho<|im_end|>", 1);
    expect(&e, "\n<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n", 0);
    expect(&e, "Yes<|im_end|>", 1);
    expect(&e, "\n", 0);
    check_row(&options,
              "{\"system\":\"Be.\",\"history\":[[\"Hi\",\"Ho\"]],\"instruction\":\"So?\","
              "\"output\":\"Yes\"}",
              &e);
}

static void check_wording(const char *line, const char *prompt, const char *completion) {
    td_prepare_options options = defaults();
    options.tokenizer = template_tokenizer;
    options.eos_id = 601;
    td_row row = read_row(&options, line);
    td_tokens before = {0}, all = {0};
    char *text = malloc(strlen(prompt) + strlen(completion) + 1);
    REQUIRE(text != NULL);
    strcat(strcpy(text, prompt), completion);
    REQUIRE(td_tokenizer_encode(template_tokenizer, prompt, strlen(prompt), 0, &before) == TD_OK);
    REQUIRE(td_tokenizer_encode(template_tokenizer, text, strlen(text), 1, &all) == TD_OK);
    CHECK_INT(row.count, all.count);
    for (size_t i = 0; i < all.count && i < (size_t)row.count; i++) {
        CHECK_INT(row.tokens[i], all.ids[i]);
        CHECK_INT(row.trained[i], i > before.count); // <s> comes before the prompt
    }
    free(text);
    td_tokens_fini(&before);
    td_tokens_fini(&all);
    td_row_fini(&row);
}

// A model that knows no chats gets Stanford's wording.
static void instructions_without_chats_are_worded(void) {
    check_wording("{\"instruction\":\"the the\",\"output\":\"the\"}",
                  "Below is an instruction that describes a task. Write a response that "
                  "appropriately completes the request.\n\n### Instruction:\nthe the\n\n### "
                  "Response:\n",
                  "the");
    check_wording(
        "{\"instruction\":\"the\",\"input\":\"tt\",\"output\":\"the\"}",
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nthe\n\n### Input:\ntt\n\n### Response:\n",
        "the");
    check_wording("{\"instruction\":\"the\",\"system\":\"Be.\",\"output\":\"the\"}",
                  "Be.\n\n### Instruction:\nthe\n\n### Response:\n", "the");
}

// What a row says twice is taken from the keys that say more; token ids always decide.
static void a_text_that_repeats_the_row_is_passed_over(void) {
    td_prepare_options options = defaults();
    expectation e = {0};
    expect(&e, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", 0);
    expect(&e, "Ho<|im_end|>", 1);
    expect(&e, "\n", 0);
    check_row(&options,
              "{\"text\":\"User: Hi Bot: Ho\",\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},"
              "{\"role\":\"assistant\",\"content\":\"Ho\"}],\"prompt\":\"Hi\"}",
              &e);
    td_row row = read_row(&options, "{\"text\":\"other\",\"input_ids\":[1,2]}");
    CHECK_INT(row.count, 2);
    td_row_fini(&row);
}

static void check_texts(const char *line, const char *prompt, const char *response,
                        int has_prompt) {
    td_prepare_options options = defaults();
    td_row row = {0}, plain = read_row(&options, line);
    td_row_texts texts = {0};
    if (!CHECK(td_row_read_with_texts(&options, "f:1", line, strlen(line), &row, &texts) == TD_OK))
        fprintf(stderr, "    %s\n    %s\n", line, td_error_message());
    CHECK_STRING(texts.prompt, prompt);
    CHECK_STRING(texts.response, response);
    CHECK_INT(texts.prompt_bytes, strlen(prompt));
    CHECK_INT(texts.response_bytes, strlen(response));
    CHECK_INT(texts.has_prompt, has_prompt);
    CHECK_INT(texts.has_response, 1);
    CHECK(row.count == plain.count &&
          memcmp(row.tokens, plain.tokens, (size_t)row.count * sizeof *row.tokens) == 0 &&
          memcmp(row.trained, plain.trained, (size_t)row.count) == 0);
    td_row_texts_fini(&texts);
    td_row_fini(&row);
    td_row_fini(&plain);
}

static void texts_are_what_is_asked_and_answered(void) {
    check_texts(chat, "Hi, who are you?\nOh", "A friend.\nReally!\nYes", 1);
    check_texts(chat_completion, "Hi\nSo?\nTwo.", "Ho\nOne.\nThree.", 1);
    check_texts(
        "{\"system\":\"Be.\",\"conversations\":[{\"from\":\"human\",\"value\":\"Hi\"},{\"from\":"
        "\"gpt\",\"value\":\"Ho\"}]}",
        "Hi", "Ho", 1);
    check_texts(
        "{\"messages\":[{\"role\":\"developer\",\"content\":\"Be.\"},{\"role\":\"user\","
        "\"content\":[{\"type\":\"text\",\"text\":\"H\"},{\"type\":\"text\",\"text\":\"i\"}]}]}",
        "Hi", "", 1);
    check_texts("{\"prompt\":\"a\",\"completion\":\"\"}", "a", "", 1);
    check_texts("{\"instruction\":\"Add.\",\"input\":\"1 2\",\"output\":\"3\",\"system\":\"S\"}",
                "Add.\n\n1 2", "3", 1);
    check_texts("{\"text\":\"To be\\u00e4\"}", "", "To be\xc3\xa4", 0);
}

static void calls_of_tools_are_part_of_the_answer(void) {
    static const char line[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"Add\"},{\"role\":"
                               "\"assistant\",\"content\":"
                               "null,\"tool_calls\":[{\"function\":{\"name\":\"add\",\"arguments\":"
                               "{\"a\":1}}}]},{\"role\":"
                               "\"tool\",\"content\":{\"sum\":3}},{\"role\":\"assistant\","
                               "\"content\":\"3\",\"tool_calls\":[]}]}";
    cJSON *row;
    td_row_texts texts = {0};
    REQUIRE(td_json_parse("f", line, strlen(line), &row) == TD_OK);
    REQUIRE(td_row_texts_read(NULL, "f", TD_ROW_MESSAGES, row, NULL, &texts) == TD_OK);
    CHECK_STRING(texts.prompt, "Add\n{\"sum\":3}");
    CHECK_STRING(texts.response, "[{\"function\":{\"name\":\"add\",\"arguments\":{\"a\":1}}}]\n3");
    td_row_texts_fini(&texts);
    cJSON_Delete(row);
}

static void texts_of_ids_are_decoded(void) {
    td_tokens prompt = {0}, answer = {0};
    char line[512], *at = line;
    check_texts("{\"input_ids\":[83,257]}", "", "the", 0);
    REQUIRE(td_tokenizer_encode(chat_tokenizer, "the the", 7, 0, &prompt) == TD_OK);
    REQUIRE(td_tokenizer_encode(chat_tokenizer, " answer", 7, 0, &answer) == TD_OK);
    at += sprintf(at, "{\"input_ids\":[%d", END_OF_TEXT);
    for (size_t i = 0; i < prompt.count; i++)
        at += sprintf(at, ",%d", prompt.ids[i]);
    for (size_t i = 0; i < answer.count; i++)
        at += sprintf(at, ",%d", answer.ids[i]);
    char *ids_end = at;
    strcpy(at, "]}");
    check_texts(line, "", "the the answer", 0);
    at = ids_end + sprintf(ids_end, "],\"labels\":[-100");
    for (size_t i = 0; i < prompt.count; i++)
        at += sprintf(at, ",-100");
    for (size_t i = 0; i < answer.count; i++)
        at += sprintf(at, ",%d", answer.ids[i]);
    strcpy(at, "]}");
    check_texts(line, "the the", " answer", 1);
    td_tokens_fini(&prompt);
    td_tokens_fini(&answer);

    td_prepare_options options = defaults();
    td_row row = {0};
    td_row_texts texts = {0};
    options.tokenizer = NULL;
    REQUIRE(td_row_read_with_texts(&options, "f:1", line, strlen(line), &row, &texts) == TD_OK);
    CHECK(!texts.prompt && !texts.response && !texts.has_prompt && !texts.has_response);
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
        {"{\"instruction\":\"a\"}", "unknown row format"},
        {"{\"instruction\":\"a\",\"output\":[]}", "\"output\" must be a string"},
        {"{\"instruction\":{},\"output\":\"b\"}", "\"instruction\" must be a string"},
        {"{\"instruction\":\"\",\"input\":\"\",\"output\":\"b\"}", "the instruction is empty"},
        {"{\"instruction\":\"a\",\"output\":\"b\",\"response\":\"c\"}",
         "both \"output\" and \"response\""},
        {"{\"instruction\":\"a\",\"output\":\"b\",\"history\":\"x\"}",
         "\"history\" must be a list"},
        {"{\"instruction\":\"a\",\"output\":\"b\",\"history\":[[\"x\",\"y\"],[\"z\"]]}",
         "history[1]"},
        {"{\"instruction\":\"a\",\"output\":\"b\",\"text\":\"a c\"}",
         "the row has \"instruction\" and \"output\" and also \"text\""},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"text\":\"b\"}",
         "the row has \"messages\" and also \"text\""},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"conversations\":[]}",
         "the row has \"messages\" and also \"conversations\""},
        {"{\"prompt\":\"a\",\"completion\":\"b\",\"instruction\":\"a\",\"output\":\"b\"}",
         "the row has \"prompt\" and \"completion\" and also \"instruction\" and \"output\""},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":{\"name\":\"f\"}}]"
         "}",
         "\"tool_calls\" must be a list"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[\"f\"]}]}",
         "\"tool_calls\" must be a list of objects"},
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
    TEST(instructions_are_chats);
    TEST(instructions_have_a_system_message_and_a_history);
    TEST(instructions_without_chats_are_worded);
    TEST(a_text_that_repeats_the_row_is_passed_over);
    TEST(texts_are_what_is_asked_and_answered);
    TEST(calls_of_tools_are_part_of_the_answer);
    TEST(texts_of_ids_are_decoded);
    TEST(bad_rows_are_named);
    TEST(causes_that_all_rows_share_are_told_apart);
    td_tokenizer_close(chat_tokenizer);
    td_tokenizer_close(template_tokenizer);
    return test_report();
}
