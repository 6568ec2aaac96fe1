// The template language and the assistant's mask against transformers
// (tests/fixtures/templates, written by tests/reference/make_templates.py).
#include <pthread.h>

#include "model/chat.h"
#include "model/template.h"
#include "runtime/core/json.h"
#include "test.h"

static cJSON *fixtures;

static const char *text_of(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

static td_status render(const char *source, const char *variables, td_template_text *out) {
    td_template *program;
    td_error_clear();
    TD_TRY(td_template_compile("t.jinja", source, strlen(source), &program));
    td_status status = td_template_render(program, variables, strlen(variables), out);
    td_template_destroy(program);
    return status;
}

static int check_text(const char *name, const char *actual, const char *expected) {
    int is_same = actual && strcmp(actual, expected) == 0;
    if (!CHECK(is_same))
        fprintf(stderr, "    %s: expected \"%s\", got \"%s\"\n", name, expected,
                actual ? actual : td_error_message());
    return is_same;
}

static void every_construct_renders_as_in_jinja(void) {
    const char *variables = text_of(fixtures, "variables");
    const cJSON *entry, *list = cJSON_GetObjectItemCaseSensitive(fixtures, "language");
    REQUIRE(cJSON_GetArraySize(list) > 300);
    cJSON_ArrayForEach(entry, list) {
        td_template_text text = {0};
        render(text_of(entry, "template"), variables, &text);
        check_text(text_of(entry, "name"), text.text, text_of(entry, "text"));
        td_template_text_fini(&text);
    }
}

static void what_jinja_refuses_is_refused_with_its_place(void) {
    const char *variables = text_of(fixtures, "variables");
    const cJSON *entry, *list = cJSON_GetObjectItemCaseSensitive(fixtures, "errors");
    REQUIRE(cJSON_GetArraySize(list) > 20);
    cJSON_ArrayForEach(entry, list) {
        td_template_text text = {0};
        int is_refused = render(text_of(entry, "template"), variables, &text) == TD_ERR_DATA;
        if (!CHECK(is_refused && strncmp(td_error_message(), "t.jinja:1:", 10) == 0))
            fprintf(stderr, "    %s: %s\n", text_of(entry, "name"), td_error_message());
        td_template_text_fini(&text);
    }
}

static void check_ranges(const char *name, const td_rendered *actual, const cJSON *expected) {
    size_t i = 0;
    const cJSON *range;
    cJSON_ArrayForEach(range, expected) {
        int is_same = i < actual->n_trained &&
                      (double)actual->trained[i].begin == range->child->valuedouble &&
                      (double)actual->trained[i].end == range->child->next->valuedouble;
        if (!CHECK(is_same))
            fprintf(stderr, "    %s: range %zu should be [%g, %g)\n", name, i,
                    range->child->valuedouble, range->child->next->valuedouble);
        i++;
    }
    CHECK_INT(actual->n_trained, i);
}

static void check_chat(const cJSON *entry, const char *source) {
    const char *row = text_of(entry, "row"), *expected = text_of(entry, "text");
    const cJSON *trained = cJSON_GetObjectItemCaseSensitive(entry, "trained");
    td_chat *chat = NULL;
    td_rendered rendered = {0};
    td_error_clear();
    REQUIRE(td_chat_create("t.jinja", source, NULL, text_of(entry, "tokens"), &chat) == TD_OK);
    td_status status = td_chat_render_row(chat, "rows:7", row, strlen(row), &rendered);
    if (!expected) {
        CHECK_INT(status, TD_ERR_DATA);
        CHECK(strncmp(td_error_message(), "rows:7: t.jinja:", 16) == 0);
        CHECK(strstr(td_error_message(), text_of(entry, "error")) != NULL);
    } else if (check_text(text_of(entry, "name"), rendered.text, expected) && trained) {
        check_ranges(text_of(entry, "name"), &rendered, trained);
    }
    td_rendered_fini(&rendered);
    td_chat_destroy(chat);
}

static void marks_of_a_template_decide(void) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(fixtures, "chats")) {
        const char *marked = text_of(entry, "marked");
        if (marked)
            check_chat(entry, marked);
    }
}

static void the_mask_needs_no_marks(void) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(fixtures, "chats")) {
        check_chat(entry, text_of(entry, "plain"));
    }
}

static void check_bound(const char *source, const char *part) {
    td_template_text text = {0};
    CHECK_INT(render(source, "{\"l\":[1]}", &text), TD_ERR_DATA);
    if (!CHECK(strstr(td_error_message(), part) != NULL))
        fprintf(stderr, "    got: %.300s\n", td_error_message());
    td_template_text_fini(&text);
}

static void endless_and_exploding_templates_end(void) {
    check_bound("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
                "the template ");
    check_bound("{% for a in range(99) %}{% set b = range(99999) | sort %}{% endfor %}",
                "does not end");
    check_bound("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "deep");
    check_bound("{% set s = 'aaaaaaaaaa' * 1000000 %}{% for i in range(99) %}{{ s }}{% endfor %}",
                "writes more than");
    check_bound("{% set ns = namespace(s='ab') %}{% for i in range(99) %}"
                "{% set ns.s = ns.s + ns.s %}{% endfor %}",
                "MiB");
    check_bound("{% set ns = namespace(l=[]) %}{% for i in range(99999) %}"
                "{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
                "deep");
    check_bound("{% set ns = namespace(l=[1]) %}{% for i in range(99) %}"
                "{% set ns.l = ns.l + ns.l %}{% endfor %}",
                "more than");
    check_bound("{{ 'x' | center(99999999999) }}", "more than");
    check_bound("{{ 10 ** 30 }}", "64 bits");
    check_bound("{{ '%999999999d' % 1 }}", "width");
}

static void deep_nesting_is_refused(void) {
    char source[20000];
    memset(source, '(', sizeof source);
    memcpy(source, "{{", 2);
    source[sizeof source - 1] = '\0';
    check_bound(source, "t.jinja:1:");
    for (size_t i = 2; i + 4 < sizeof source; i += 4)
        memcpy(source + i, "not ", 4);
    check_bound(source, "deep");
    for (size_t i = 2; i + 2 < sizeof source; i += 2)
        memcpy(source + i, "-[", 2);
    check_bound(source, "t.jinja:1:");
}

static void places_count_lines_and_characters(void) {
    td_template_text text = {0};
    CHECK_INT(render("a\n{% if true %}\n\xC3\xA9 {{ none.x.y }}{% endif %}", "{}", &text),
              TD_ERR_DATA);
    CHECK(strncmp(td_error_message(), "t.jinja:3:", 10) == 0);
    CHECK_INT(render("\n\n  {% bogus %}", "{}", &text), TD_ERR_DATA);
    CHECK(strncmp(td_error_message(), "t.jinja:3:6: ", 13) == 0);
}

static void invalid_utf8_is_refused(void) {
    td_template *program = NULL;
    td_error_clear();
    CHECK(td_template_compile("t", "a\xFF", 2, &program) == TD_ERR_DATA);
    CHECK(strstr(td_error_message(), "UTF-8 at byte 1") != NULL);
}

static void text_knows_its_message(void) {
    static const char variables[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"abc\"},{"
                                    "\"role\":\"assistant\",\"content\":"
                                    "\" de \",\"tool_calls\":[{\"name\":\"f\"}]}]}";
    static const char source[] =
        "<{% for m in messages %}{{ m.role }}:{{ (m.content | trim | upper)[:2] ~ '.' }}"
        "{% for c in m.tool_calls %}{{ c.name | tojson }}{% endfor %}{% endfor %}>";
    static const struct {
        const char *text;
        int message;
        td_source_kind kind;
    } expected[] = {
        {"<", -1, 0},
        {"user:", 0, TD_SOURCE_TURN},
        {"AB", 0, TD_SOURCE_CONTENT},
        {".", 0, TD_SOURCE_TURN},
        {"assistant:", 1, TD_SOURCE_TURN},
        {"DE", 1, TD_SOURCE_CONTENT},
        {".", 1, TD_SOURCE_TURN},
        {"\"f\"", 1, TD_SOURCE_TOOL_CALLS},
        {">", -1, 0},
    };
    td_template_text text = {0};
    size_t begin = 0;
    REQUIRE(render(source, variables, &text) == TD_OK);
    CHECK_INT(text.n_runs, sizeof expected / sizeof *expected);
    for (size_t i = 0; i < text.n_runs && i < sizeof expected / sizeof *expected; i++) {
        size_t bytes = text.runs[i].end - begin;
        CHECK(bytes == strlen(expected[i].text) &&
              memcmp(text.text + begin, expected[i].text, bytes) == 0);
        CHECK_INT(text.runs[i].message, expected[i].message);
        CHECK_INT(text.runs[i].kind, expected[i].kind);
        begin = text.runs[i].end;
    }
    td_template_text_fini(&text);
}

static void *render_often(void *context) {
    const td_template *program = context;
    static const char variables[] = "{\"l\":[1,2,3]}";
    long failures = 0;
    for (int i = 0; i < 300; i++) {
        td_template_text text = {0};
        failures += td_template_render(program, variables, sizeof variables - 1, &text) != TD_OK ||
                    strcmp(text.text, "1-2-3-x") != 0;
        td_template_text_fini(&text);
    }
    return (void *)failures;
}

static void many_threads_render_one_template(void) {
    static const char source[] = "{% for x in l %}{{ x ~ '-' }}{% endfor %}{{ 'X' | lower }}";
    td_template *program = NULL;
    pthread_t threads[4];
    REQUIRE(td_template_compile("t", source, sizeof source - 1, &program) == TD_OK);
    for (int i = 0; i < 4; i++)
        REQUIRE(pthread_create(&threads[i], NULL, render_often, program) == 0);
    for (int i = 0; i < 4; i++) {
        void *failures;
        pthread_join(threads[i], &failures);
        CHECK(failures == NULL);
    }
    td_template_destroy(program);
}

int main(void) {
    REQUIRE(td_json_read(TEST_FIXTURES "/templates/cases.json", (size_t)64 << 20, &fixtures) ==
            TD_OK);
    TEST(every_construct_renders_as_in_jinja);
    TEST(what_jinja_refuses_is_refused_with_its_place);
    TEST(marks_of_a_template_decide);
    TEST(the_mask_needs_no_marks);
    TEST(endless_and_exploding_templates_end);
    TEST(deep_nesting_is_refused);
    TEST(places_count_lines_and_characters);
    TEST(invalid_utf8_is_refused);
    TEST(text_knows_its_message);
    TEST(many_threads_render_one_template);
    cJSON_Delete(fixtures);
    return test_report();
}
