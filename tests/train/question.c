// Rows as questions: what is asked and expected in every format, examples before them, and the
// store in which rows stand behind examples.
#include "runtime/train/few_shot.h"
#include "runtime/train/run_data.h"
#include "small_run.h"

#include "model/chat.h"

static td_session session;
static td_config config;
static char folder[64];

#define USER(text)      "{\"role\":\"user\",\"content\":\"" text "\"}"
#define SYSTEM(text)    "{\"role\":\"system\",\"content\":\"" text "\"}"
#define ASSISTANT(text) "{\"role\":\"assistant\",\"content\":\"" text "\"}"

static td_line line_of(const char *text) {
    return (td_line){.text = text, .bytes = strlen(text)};
}

static char *text_of(const td_tokens *tokens) {
    char *text;
    size_t bytes;
    REQUIRE(td_tokenizer_decode(session.tokenizer, tokens->ids, tokens->count, 0, &text, &bytes) ==
            TD_OK);
    return text;
}

static void check_text(const td_tokens *tokens, const char *expected) {
    char *text = text_of(tokens);
    CHECK_STRING(text, expected);
    free(text);
}

// What is asked and expected; the whole row has the tokens that preparation gives it.
static void check_row(const char *row, const char *prompt, const char *answer) {
    td_line line = line_of(row);
    td_question question = {0};
    const td_prepare_options options = {
        .tokenizer = session.tokenizer,
        .vocabulary = session.model.vocabulary,
        .eos_id = td_session_eos_id(&session),
        .max_length = 512,
        .assistant_only_loss = 1,
        .completion_only_loss = 1,
    };
    int32_t *tokens;
    uint8_t *trained;
    int64_t count;
    if (!CHECK(td_question_read(&session, "row", &line, NULL, 0, &question) == TD_OK)) {
        fprintf(stderr, "    %s: %s\n", row, td_error_message());
        td_error_clear();
        return;
    }
    check_text(&question.prompt, prompt);
    if (answer)
        CHECK_STRING(question.answer, answer);
    else
        CHECK(question.answer == NULL);
    REQUIRE(td_prepare_row(&options, "row", row, strlen(row), &tokens, &trained, &count) == TD_OK);
    CHECK_INT(question.whole.count, count);
    CHECK((int64_t)question.whole.count == count &&
          memcmp(question.whole.ids, tokens, (size_t)count * sizeof *tokens) == 0);
    free(tokens);
    free(trained);
    td_question_fini(&question);
}

static void every_format_asks(void) {
    static const char prompt[] = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    check_row("{\"messages\":[" USER("Hello") "," ASSISTANT("Hi there") "]}", prompt, "Hi there");
    check_row("{\"conversations\":[{\"from\":\"human\",\"value\":\"Hello\"},{\"from\":\"gpt\","
              "\"value\":\"Hi there\"}]}",
              prompt, "Hi there");
    check_row("{\"prompt\":[" USER("Hello") "],\"completion\":[" ASSISTANT("Hi") "]}", prompt,
              "Hi");
    check_row("{\"prompt\":\"Two and two is\",\"completion\":\" four.\"}", "Two and two is",
              " four.");
    check_row("{\"instruction\":\"Hello\",\"output\":\"Hi\"}", prompt, "Hi");
    check_row("{\"text\":\"Once upon\"}", "Once upon", NULL);
    // Other keys beside those that preparation goes by.
    check_row("{\"prompt\":\"Hello\",\"messages\":[" USER("Hello") "," ASSISTANT("Hi") "]}", prompt,
              "Hi");
    check_row("{\"prompt\":\"Hey\",\"instruction\":\"Hello\",\"output\":\"Hi\"}", prompt, "Hi");
    check_row("{\"prompt\":\"Once\",\"text\":\"Once upon\"}", "Once upon", NULL);
    check_row("{\"instruction\":\"Once\",\"text\":\"Once upon\"}", "Once upon", NULL);
    check_row("{\"messages\":null,\"prompt\":\"Two is\",\"completion\":\" two.\"}", "Two is",
              " two.");
    check_row("{\"messages\":[" USER("Hello") "," ASSISTANT("Hi") "," USER("Bye") "]}",
              "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
              "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
              NULL);
    check_row("{\"messages\":[" ASSISTANT("I begin") "," USER("Hello") "," ASSISTANT("Hi") "]}",
              "<|im_start|>assistant\nI begin<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
              "<|im_start|>assistant\n",
              "Hi");
    check_row("{\"messages\":[" ASSISTANT("Nothing is asked") "]}", "", NULL);
}

static void prompts_stand_alone(void) {
    static const char *const rows[] = {"{\"prompt\":[" USER("Hello") "]}",
                                       "{\"messages\":[" USER("Hello") "]}",
                                       "{\"instruction\":\"Hello\"}"};
    for (int i = 0; i < 3; i++) {
        td_line line = line_of(rows[i]);
        td_question question = {0};
        REQUIRE(td_question_read(&session, "row", &line, NULL, 0, &question) == TD_OK);
        check_text(&question.prompt, "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
        CHECK(question.answer == NULL);
        td_question_fini(&question);
    }
}

// The last run of trained ids is the answer, up to the token that ends it.
static void token_ids_ask(void) {
    td_tokens tokens = {0};
    char row[1200], ids[200] = "", labels[200] = "";
    static const char text[] = "Hello<|im_end|>";
    REQUIRE(td_tokenizer_encode(session.tokenizer, text, strlen(text), 0, &tokens) == TD_OK);
    for (size_t i = 0; i < tokens.count; i++)
        snprintf(ids + strlen(ids), sizeof ids - strlen(ids), ",%d", tokens.ids[i]);
    for (size_t i = 0; i < tokens.count; i++)
        snprintf(labels + strlen(labels), sizeof labels - strlen(labels), ",%d", tokens.ids[i]);
    snprintf(row, sizeof row, "{\"input_ids\":[40,41%s,42%s],\"labels\":[-100,-100%s,-100%s]}", ids,
             ids, labels, labels);
    td_line line = line_of(row);
    td_question question = {0};
    REQUIRE(td_question_read(&session, "row", &line, NULL, 0, &question) == TD_OK);
    CHECK_INT(question.prompt.count, 3 + tokens.count);
    CHECK_INT(question.whole.count, 3 + 2 * tokens.count);
    CHECK_STRING(question.answer, "Hello");
    td_question_fini(&question);
    td_tokens_fini(&tokens);
}

static void what_is_no_row_is_refused(void) {
    static const char *const rows[] = {"[1]",
                                       "{\"input_ids\":[1,99999]}",
                                       "{\"question\":1}",
                                       "{\"messages\":[]}",
                                       "{\"prompt\":[]}",
                                       "{\"a\":"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        td_line line = line_of(rows[i]);
        td_question question = {0};
        CHECK_INT(td_question_read(&session, "file:7", &line, NULL, 0, &question), TD_ERR_DATA);
        CHECK(strncmp(td_error_message(), "file:7", 6) == 0);
        td_error_clear();
    }
}

// A template of tools: the answer with a call is what the template writes.
static void calls_are_expected_as_written(void) {
    static const char template[] =
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
        "<end>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    static const char row[] =
        "{\"messages\":[" USER("Rain?") ",{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":["
                                        "{\"type\":\"function\",\"function\":{\"name\":\"rain\","
                                        "\"arguments\":{\"mm\":1.0}}}]}]}";
    td_chat *chat;
    td_chat_question question = {0};
    const td_chat_source source = {.row = row, .bytes = strlen(row)};
    REQUIRE(td_chat_create("template", template, NULL, NULL, &chat) == TD_OK);
    REQUIRE(td_chat_ask(chat, "row", &source, &question) == TD_OK);
    CHECK_STRING(question.prompt, "[user]Rain?<end>[assistant]");
    CHECK(question.answer_is_rendered);
    CHECK_STRING(question.answer,
                 "<call>{\"name\": \"rain\", \"arguments\": {\"mm\": 1.0}}</call><end>");
    td_chat_question_fini(&question);
    td_chat_destroy(chat);
}

static td_examples two_examples(void) {
    static char first[] = "{\"messages\":[" SYSTEM("Other") "," USER("One") "," ASSISTANT("1") "]}";
    static char second[] = "{\"messages\":[" USER("Two") "," ASSISTANT("2") "]}";
    static char text[] = "{\"prompt\":\"Three\",\"completion\":\" 3\"}";
    static struct td_example items[3];
    items[0] = (struct td_example){first, sizeof first - 1, 1, 20};
    items[1] = (struct td_example){text, sizeof text - 1, 0, 20};
    items[2] = (struct td_example){second, sizeof second - 1, 1, 20};
    return (td_examples){3, items};
}

#define TURN(asked, said)                                                                          \
    "<|im_start|>user\n" asked "<|im_end|>\n<|im_start|>assistant\n" said "<|im_end|>\n"
#define ASKED "<|im_start|>user\nFour<|im_end|>\n<|im_start|>assistant\n"

static void check_fit(const char *row, int64_t max_tokens, int64_t n, int64_t n_left_out,
                      const char *prompt) {
    td_examples examples = two_examples();
    td_line line = line_of(row);
    td_question question = {0};
    REQUIRE(td_question_fit(&session, "row", &line, &examples, max_tokens, &question) == TD_OK);
    CHECK_INT(question.n_examples, n);
    CHECK_INT(question.n_left_out, n_left_out);
    check_text(&question.prompt, prompt);
    td_question_fini(&question);
}

static void examples_are_earlier_turns(void) {
    static const char row[] =
        "{\"messages\":[" SYSTEM("Count.") "," USER("Four") "," ASSISTANT("4") "]}";
    static const char system[] = "<|im_start|>system\nCount.<|im_end|>\n";
    char both[512], one[512], none[512];
    snprintf(both, sizeof both, "%s" TURN("One", "1") TURN("Two", "2") ASKED, system);
    snprintf(one, sizeof one, "%s" TURN("One", "1") ASKED, system);
    snprintf(none, sizeof none, "%s" ASKED, system);
    check_fit(row, 1000, 2, 0, both);
    td_line line = line_of(row);
    td_examples examples = two_examples();
    td_question question = {0};
    REQUIRE(td_question_read(&session, "row", &line, &examples, 3, &question) == TD_OK);
    int64_t length = (int64_t)question.whole.count;
    td_question_fini(&question);
    check_fit(row, length, 2, 0, both);
    check_fit(row, length - 1, 1, 1, one);
    check_fit(row, 1, 0, 2, none);
    // The row itself is no example.
    check_fit(examples.items[2].row, 1000, 1, 0,
              TURN("One", "1") "<|im_start|>user\nTwo<|im_end|>\n<|im_start|>assistant\n");
    check_fit("{\"prompt\":\"Four\",\"completion\":\" 4\"}", 1000, 1, 0, "Three 3\n\nFour");
    check_fit("{\"text\":\"Four\"}", 1000, 0, 0, "Four");
}

static void write_rows(char path[TD_PATH_MAX], const char *name, int n) {
    REQUIRE(td_path_join(path, folder, name) == TD_OK);
    if (td_comm_rank(small_comm) == 0) {
        FILE *file = fopen(path, "w");
        REQUIRE(file);
        for (int i = 0; i < n; i++)
            fprintf(file, "{\"messages\":[" USER("What is %d") "," ASSISTANT("It is %d") "]}\n\n",
                    i, i);
        fprintf(file, "{\"messages\":3}\n{\"text\":\"no answer\"}\n");
        fclose(file);
    }
    CHECK_INT(td_comm_barrier(small_comm, "rows"), TD_OK);
}

// As many as fit, not fewer: with one more it would be too long.
static void as_many_examples_as_fit(void) {
    static char rows[12][120];
    struct td_example items[12];
    for (int i = 0; i < 12; i++) {
        snprintf(rows[i], sizeof rows[i], "{\"messages\":[" USER("%d") "," ASSISTANT("%d") "]}",
                 i * i * i * 1000, i);
        items[i] = (struct td_example){rows[i], strlen(rows[i]), 1, 20};
    }
    td_examples examples = {12, items};
    td_line line = line_of("{\"messages\":[" USER("Four") "," ASSISTANT("4") "]}");
    for (int64_t n = 0; n <= 12; n++) {
        td_question question = {0}, fit = {0};
        REQUIRE(td_question_read(&session, "row", &line, &examples, n, &question) == TD_OK);
        int64_t length = (int64_t)question.whole.count;
        REQUIRE(td_question_fit(&session, "row", &line, &examples, length, &fit) == TD_OK);
        CHECK_INT(fit.n_examples, n);
        CHECK_INT(fit.n_left_out, 12 - n);
        CHECK_INT(fit.whole.count, length);
        td_question_fini(&fit);
        REQUIRE(td_question_fit(&session, "row", &line, &examples, length - 1, &fit) == TD_OK);
        CHECK_INT(fit.n_examples, n > 0 ? n - 1 : 0);
        td_question_fini(&fit);
        td_question_fini(&question);
    }
}

static void examples_are_chosen_by_seed(void) {
    char path[TD_PATH_MAX], *paths[1] = {path};
    const td_string_list files = {paths, 1};
    td_examples a, b, all;
    write_rows(path, "train.jsonl", 40);
    REQUIRE(td_examples_choose(&session, &files, 4, &a) == TD_OK);
    CHECK_INT(a.count, 4);
    config.seed++;
    REQUIRE(td_examples_choose(&session, &files, 4, &b) == TD_OK);
    config.seed--;
    REQUIRE(td_examples_choose(&session, &files, 100, &all) == TD_OK);
    CHECK_INT(all.count, 40); // neither the malformed row nor the one without an answer
    int n_same = 0;
    for (int i = 0; i < 4; i++) {
        n_same += strncmp(a.items[i].row, b.items[i].row, a.items[i].bytes) == 0;
        CHECK(a.items[i].bytes == all.items[i].bytes &&
              memcmp(a.items[i].row, all.items[i].row, a.items[i].bytes) == 0);
        td_hash hash = td_hash_bytes(a.items[i].row, a.items[i].bytes);
        CHECK_INT(td_comm_require_same(small_comm, hash, "example"), TD_OK);
    }
    CHECK(n_same < 4);
    td_examples_fini(&a);
    td_examples_fini(&b);
    td_examples_fini(&all);
}

static int64_t read_row(td_store *store, int64_t row, int32_t tokens[600], uint8_t trained[600]) {
    const int64_t *offsets = td_store_offsets(store);
    REQUIRE(offsets[row + 1] - offsets[row] <= 600);
    REQUIRE(td_store_read_row(store, row, tokens, trained) == TD_OK);
    return offsets[row + 1] - offsets[row];
}

// Same targets in the same order; what stands before them is trained nowhere.
static void check_behind_examples(td_store *plain, td_store *with, int64_t row) {
    int32_t a[600], b[600];
    uint8_t x[600], y[600];
    int64_t n = read_row(plain, row, a, x), m = read_row(with, row, b, y), trained = 0;
    CHECK(m > n);
    for (int64_t i = 0; i < m; i++) {
        int64_t at = i - (m - n);
        trained += y[i];
        CHECK(y[i] == (at >= 0 ? x[at] : 0));
        CHECK(!y[i] || b[i] == a[at]);
    }
    CHECK(trained > 0);
}

static void rows_stand_behind_examples(void) {
    char path[TD_PATH_MAX], *paths[1] = {path}, few_path[TD_PATH_MAX];
    const td_string_list files = {paths, 1};
    td_store *plain = NULL, *with = NULL;
    td_examples examples = two_examples();
    int64_t n_shortened = -1;
    write_rows(path, "eval.jsonl", 6);
    REQUIRE(td_run_data_open_files(&session, &files, folder, "plain.h5", &plain) == TD_OK);
    REQUIRE(td_path_join(few_path, folder, "few.h5") == TD_OK);
    if (td_comm_rank(small_comm) == 0) {
        REQUIRE(td_few_shot_store(&session, plain, &files, &examples, 400, few_path,
                                  &n_shortened) == TD_OK);
        REQUIRE(td_store_open(few_path, &with) == TD_OK);
        CHECK_INT(n_shortened, 0);
        CHECK_INT(td_store_rows(plain), 7);
        CHECK_INT(td_store_rows(with), 7);
        for (int64_t row = 0; row < 6; row++)
            check_behind_examples(plain, with, row);
        for (int64_t row = 0; row < 7; row++)
            CHECK_INT(td_store_row_trained(with)[row], td_store_row_trained(plain)[row]);
        td_store_close(with);
        // No room for an example: the rows stand as they are.
        REQUIRE(td_few_shot_store(&session, plain, &files, &examples, 30, few_path, &n_shortened) ==
                TD_OK);
        REQUIRE(td_store_open(few_path, &with) == TD_OK);
        CHECK_INT(n_shortened, 6);
        td_store_close(with);
    }
    td_store_close(plain);
}

static void open_session(void) {
    snprintf(folder, sizeof folder, "/tmp/tandem-question-XXXXXX");
    REQUIRE(td_comm_rank(small_comm) != 0 || mkdtemp(folder));
    REQUIRE(td_comm_broadcast(small_comm, folder, sizeof folder, 0, "folder") == TD_OK);
    REQUIRE(td_config_init(&config) == TD_OK);
    small_set(&config, "model_name_or_path=\"" TEST_SOURCE "/launch/quickstart/base\"");
    small_set(&config, "max_length=512");
    small_set(&config, "bad_rows=skip");
    small_set(&config, "device=cpu");
    small_require(td_session_open(&session, &config, small_comm, 0), "session");
}

int main(void) {
    small_begin();
    open_session();
    TEST(every_format_asks);
    TEST(prompts_stand_alone);
    TEST(token_ids_ask);
    TEST(what_is_no_row_is_refused);
    TEST(calls_are_expected_as_written);
    TEST(examples_are_earlier_turns);
    TEST(as_many_examples_as_fit);
    TEST(examples_are_chosen_by_seed);
    TEST(rows_stand_behind_examples);
    td_session_close(&session);
    td_config_fini(&config);
    CHECK_INT(td_comm_barrier(small_comm, "close"), TD_OK);
    if (td_comm_rank(small_comm) == 0)
        CHECK_INT(td_folder_remove_tree(folder), TD_OK);
    return small_finish();
}
