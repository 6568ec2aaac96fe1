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

int main(void) {
    TEST(messages_are_written_as_chatml);
    TEST(the_prompt_opens_the_assistants_turn);
    TEST(what_the_assistant_says_is_trained_with_its_end);
    TEST(a_message_needs_a_role);
    TEST(a_tokenizer_without_chat_tokens_is_refused);
    return test_report();
}
