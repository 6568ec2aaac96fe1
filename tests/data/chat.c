#include "model/chat.h"
#include "unit/scratch.h"

static void messages_are_written_as_chatml(void) {
    const td_message messages[] = {{"system", "Be brief."}, {"user", "Hi\nthere"}};
    td_rendered rendered = {0};
    REQUIRE(td_chat_render(messages, 2, 0, &rendered) == TD_OK);
    CHECK_STRING(rendered.text, "<|im_start|>system\nBe brief.<|im_end|>\n"
                                "<|im_start|>user\nHi\nthere<|im_end|>\n");
    CHECK_INT(rendered.bytes, strlen(rendered.text));
    CHECK_INT(rendered.n_trained, 0);
    td_rendered_fini(&rendered);
}

static void the_prompt_opens_the_assistants_turn(void) {
    const td_message message = {"user", "Hi"};
    td_rendered rendered = {0};
    REQUIRE(td_chat_render(&message, 1, 1, &rendered) == TD_OK);
    CHECK_STRING(rendered.text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    td_rendered_fini(&rendered);
    REQUIRE(td_chat_render(NULL, 0, 1, &rendered) == TD_OK);
    CHECK_STRING(rendered.text, "<|im_start|>assistant\n");
    td_rendered_fini(&rendered);
    REQUIRE(td_chat_render(NULL, 0, 0, &rendered) == TD_OK);
    CHECK_STRING(rendered.text, "");
    td_rendered_fini(&rendered);
}

static void what_the_assistant_says_is_trained_with_its_end(void) {
    const td_message messages[] = {
        {"assistant", "One"}, {"user", "Two"}, {"assistant", ""}, {"Assistant", "x"}};
    const char *const trained[] = {"One<|im_end|>", "<|im_end|>"};
    td_rendered rendered = {0};
    REQUIRE(td_chat_render(messages, 4, 0, &rendered) == TD_OK);
    REQUIRE(rendered.n_trained == 2);
    for (int i = 0; i < 2; i++) {
        size_t begin = rendered.trained[i].begin, bytes = rendered.trained[i].end - begin;
        CHECK(bytes == strlen(trained[i]) && memcmp(rendered.text + begin, trained[i], bytes) == 0);
    }
    td_rendered_fini(&rendered);
}

static void a_message_needs_a_role(void) {
    const td_message messages[] = {{"user", "a"}, {"", "b"}};
    td_rendered rendered = {0};
    CHECK(td_chat_render(messages, 2, 0, &rendered) == TD_ERR_DATA);
    CHECK_MESSAGE("message 1 has an empty role");
    CHECK(rendered.text == NULL);
}

static void a_tokenizer_without_chat_tokens_is_refused(void) {
    td_tokenizer *with = NULL, *without = NULL;
    REQUIRE(td_tokenizer_open(TEST_FIXTURES "/tokenizers/qwen2", &with) == TD_OK);
    REQUIRE(td_tokenizer_open(TEST_FIXTURES "/tokenizers/gpt2", &without) == TD_OK);
    CHECK(td_chat_require_tokens(with) == TD_OK);
    CHECK(td_chat_require_tokens(without) == TD_ERR_DATA);
    CHECK_MESSAGE("<|im_start|>");
    td_tokenizer_close(with);
    td_tokenizer_close(without);
}

// A model folder with a tokenizer of the fixtures and what a test says of templates.
static td_tokenizer *open_with(const char *config, const char *template_text) {
    td_tokenizer *tokenizer = NULL;
    char *json;
    REQUIRE(td_file_read(TEST_FIXTURES "/tokenizers/smollm/tokenizer.json", (size_t)64 << 20, &json,
                         NULL) == TD_OK);
    REQUIRE(td_folder_make(scratch("chat")) == TD_OK);
    scratch_file("chat/tokenizer.json", json);
    scratch_file("chat/tokenizer_config.json", config);
    if (template_text)
        scratch_file("chat/chat_template.jinja", template_text);
    free(json);
    REQUIRE(td_tokenizer_open(scratch("chat"), &tokenizer) == TD_OK);
    td_folder_remove_tree(scratch("chat"));
    return tokenizer;
}

static void check_row_text(td_tokenizer *tokenizer, const char *row, const char *text) {
    const td_chat *chat = NULL;
    td_rendered rendered = {0};
    td_error_clear();
    REQUIRE(td_tokenizer_chat(tokenizer, &chat) == TD_OK);
    CHECK_INT(td_chat_render_row(chat, "f:7", row, strlen(row), &rendered), TD_OK);
    CHECK_STRING(rendered.text, text);
    td_rendered_fini(&rendered);
}

static void a_folders_template_and_tokens_are_used(void) {
    td_tokenizer *tokenizer =
        open_with("{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\"},\"chat_template\":"
                  "\"{{ bos_token }}{% for m in messages %}{{ m.content ~ eos_token }}"
                  "{% endfor %}{{ unk_token }}\"}",
                  NULL);
    check_row_text(tokenizer, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "<s>a</s>");
    td_tokenizer_close(tokenizer);
    tokenizer = open_with("{\"chat_template\":\"no\"}", "file {{ messages | length }}");
    check_row_text(tokenizer, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "file 1");
    td_tokenizer_close(tokenizer);
}

static void rows_with_tools_have_their_own_template(void) {
    td_tokenizer *tokenizer = open_with(
        "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"tools {{ tools | tojson }}\"},"
        "{\"name\":\"default\",\"template\":\"plain\"}]}",
        NULL);
    check_row_text(tokenizer, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "plain");
    check_row_text(tokenizer,
                   "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tools\":[{\"x\":1.0}]}",
                   "tools [{\"x\": 1.0}]");
    check_row_text(tokenizer,
                   "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tools\":\"[1]\"}",
                   "tools [1]");
    td_tokenizer_close(tokenizer);
}

static void a_row_may_set_variables(void) {
    td_tokenizer *tokenizer = open_with("{}", "{{ style | default('none') }}");
    check_row_text(tokenizer,
                   "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                   "\"chat_template_kwargs\":{\"style\":\"short\"}}",
                   "short");
    td_tokenizer_close(tokenizer);
}

static void a_malformed_template_is_named_with_its_place(void) {
    td_tokenizer *tokenizer = open_with("{}", "line\n{% if %}");
    const td_chat *chat = NULL;
    td_error_clear();
    CHECK_INT(td_tokenizer_chat(tokenizer, &chat), TD_ERR_DATA);
    CHECK_MESSAGE("chat_template.jinja:2:7: ");
    CHECK(chat == NULL);
    td_tokenizer_close(tokenizer);
}

static void a_template_refuses_in_its_own_words(void) {
    td_tokenizer *tokenizer =
        open_with("{}", "{% if messages[0].role != 'user' %}"
                        "{{ raise_exception('begin with the user') }}{% endif %}ok");
    const td_chat *chat = NULL;
    td_rendered rendered = {0};
    static const char row[] = "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\"}]}";
    td_error_clear();
    REQUIRE(td_tokenizer_chat(tokenizer, &chat) == TD_OK);
    CHECK_INT(td_chat_render_row(chat, "f:7", row, sizeof row - 1, &rendered), TD_ERR_DATA);
    CHECK(strncmp(td_error_message(), "f:7: ", 5) == 0);
    CHECK_MESSAGE("begin with the user");
    td_tokenizer_close(tokenizer);
}

static void prompts_use_the_template(void) {
    td_tokenizer *tokenizer =
        open_with("{}", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                        "{% if add_generation_prompt %}assistant:{% endif %}");
    const td_message messages[] = {{"user", "Hi"}};
    const td_chat *chat = NULL;
    td_rendered rendered = {0};
    td_error_clear();
    REQUIRE(td_tokenizer_chat(tokenizer, &chat) == TD_OK);
    REQUIRE(td_chat_render_prompt(chat, messages, 1, &rendered) == TD_OK);
    CHECK_STRING(rendered.text, "user: Hi\nassistant:");
    CHECK_INT(rendered.n_trained, 0);
    td_rendered_fini(&rendered);
    td_tokenizer_close(tokenizer);
}

int main(void) {
    TEST(messages_are_written_as_chatml);
    TEST(the_prompt_opens_the_assistants_turn);
    TEST(what_the_assistant_says_is_trained_with_its_end);
    TEST(a_message_needs_a_role);
    TEST(a_tokenizer_without_chat_tokens_is_refused);
    TEST(a_folders_template_and_tokens_are_used);
    TEST(rows_with_tools_have_their_own_template);
    TEST(a_row_may_set_variables);
    TEST(a_malformed_template_is_named_with_its_place);
    TEST(a_template_refuses_in_its_own_words);
    TEST(prompts_use_the_template);
    return test_report();
}
