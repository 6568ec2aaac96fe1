#include "runtime/core/json.h"

#include <float.h>

#include "scratch.h"

static td_status parse(const char *text, size_t bytes) {
    cJSON *tree = NULL;
    td_status status = td_json_parse("text", text, bytes, &tree);
    if (status == TD_OK)
        cJSON_Delete(tree);
    else
        CHECK(tree == NULL);
    return status;
}

#define CHECK_ACCEPTED(text) CHECK_INT(parse(text, sizeof(text) - 1), TD_OK)
#define CHECK_REFUSED(text, part)                                                                  \
    do {                                                                                           \
        CHECK_INT(parse(text, sizeof(text) - 1), TD_ERR_DATA);                                     \
        CHECK_MESSAGE(part);                                                                       \
    } while (0)

static void good_json_is_read(void) {
    CHECK_ACCEPTED("{\"a\": [1, 2.5e3, true, null, \"x\"]}");
    CHECK_ACCEPTED(" \n\t 7 \r\n ");
    CHECK_ACCEPTED("\"\\\"[[[\\\\\"");
    CHECK_ACCEPTED("\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xf4\x8f\xbf\xbf\"");
    CHECK_ACCEPTED("\"\\ud83d\\ude00 \\\\u0000\"");
}

static void trailing_text_is_refused(void) {
    CHECK_REFUSED("{} x", "after the end");
    CHECK_REFUSED("{\"a\":1}{", "after the end");
    CHECK_REFUSED("1 2", "after the end");
}

static void malformed_text_is_refused_with_its_place(void) {
    CHECK_REFUSED("", "malformed");
    CHECK_REFUSED("{", "malformed");
    CHECK_REFUSED("[1,]", "malformed");
    CHECK_REFUSED("\"abc", "malformed");
    CHECK_REFUSED("{\n\"a\": 1,\n\"b\": nope\n}", "line 3");
    CHECK_REFUSED("{\"a\": nope}", "column 7");
}

static void nul_bytes_are_refused(void) {
    CHECK_REFUSED("{\"a\0\": 1}", "NUL");
    CHECK_REFUSED("{}\0", "NUL");
    CHECK_REFUSED("\"\\u0000\"", "u0000");
    CHECK_REFUSED("\"\\\\\\u0000\"", "u0000");
}

static void bad_utf8_is_refused(void) {
    CHECK_REFUSED("\"\x80\"", "UTF-8");
    CHECK_REFUSED("\"\xc0\xaf\"", "UTF-8");     // overlong '/'
    CHECK_REFUSED("\"\xe0\x80\xaf\"", "UTF-8"); // overlong '/'
    CHECK_REFUSED("\"\xf0\x80\x80\xaf\"", "UTF-8");
    CHECK_REFUSED("\"\xed\xa0\x80\"", "UTF-8"); // surrogate
    CHECK_REFUSED("\"\xf4\x90\x80\x80\"", "UTF-8");
    CHECK_REFUSED("\"\xf5\x80\x80\x80\"", "UTF-8");
    CHECK_REFUSED("\"\xc3\"", "UTF-8");
    CHECK_REFUSED("\"\xe2\x82\"", "UTF-8");
    CHECK_REFUSED("\"\xf0\x9f\x98", "UTF-8");
}

static void depth_is_bounded(void) {
    static char text[2000001];
    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    CHECK_INT(parse(text, 128), TD_OK);
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    CHECK_INT(parse(text, 130), TD_ERR_DATA);
    CHECK_MESSAGE("nested");
    memset(text, '[', 2000000);
    CHECK_INT(parse(text, 2000000), TD_ERR_DATA);
    CHECK_MESSAGE("nested");
    for (int i = 0; i < 1000000; i++)
        memcpy(text + 5 * (i % 400000), "{\"a\":", 5);
    CHECK_INT(parse(text, 2000000), TD_ERR_DATA);
    CHECK_MESSAGE("nested");
}

static cJSON *tree_of(const char *text) {
    cJSON *tree = NULL;
    REQUIRE(td_json_parse("text", text, strlen(text), &tree) == TD_OK);
    return tree;
}

static void look_ups_check_types(void) {
    cJSON *tree = tree_of("{\"i\": 7, \"d\": 1.5, \"t\": true, \"s\": \"x\", \"n\": null}");
    int64_t i = -1;
    double d = -1;
    int t = -1;
    const char *s = NULL;
    CHECK_INT(td_json_int("w", tree, "i", 0, 10, &i), TD_OK);
    CHECK_INT(td_json_double("w", tree, "d", &d), TD_OK);
    CHECK_INT(td_json_bool("w", tree, "t", &t), TD_OK);
    CHECK_INT(td_json_string("w", tree, "s", &s), TD_OK);
    CHECK(i == 7 && d == 1.5 && t == 1 && strcmp(s, "x") == 0);
    CHECK_INT(td_json_int("w", tree, "s", 0, 10, &i), TD_ERR_DATA);
    CHECK_MESSAGE("\"s\" must be an integer, found a string");
    CHECK_INT(td_json_double("w", tree, "t", &d), TD_ERR_DATA);
    CHECK_MESSAGE("found a boolean");
    CHECK_INT(td_json_bool("w", tree, "i", &t), TD_ERR_DATA);
    CHECK_MESSAGE("found a number");
    CHECK_INT(td_json_string("w", tree, "i", &s), TD_ERR_DATA);
    CHECK_MESSAGE("w: \"i\" must be a string");
    cJSON_Delete(tree);
}

static void missing_and_null_keep_the_default(void) {
    cJSON *tree = tree_of("{\"n\": null, \"I\": 3}");
    int64_t i = 42;
    double d = 42;
    int t = 42;
    const char *s = "42";
    CHECK_INT(td_json_int("w", tree, "n", 0, 1, &i), TD_OK);
    CHECK_INT(td_json_int("w", tree, "i", 0, 1, &i), TD_OK);
    CHECK_INT(td_json_double("w", tree, "n", &d), TD_OK);
    CHECK_INT(td_json_bool("w", tree, "b", &t), TD_OK);
    CHECK_INT(td_json_string("w", tree, "n", &s), TD_OK);
    CHECK(i == 42 && d == 42 && t == 42 && strcmp(s, "42") == 0);
    cJSON_Delete(tree);
    tree = tree_of("[]");
    CHECK_INT(td_json_int("w", tree, "i", 0, 1, &i), TD_ERR_DATA);
    CHECK_MESSAGE("expected an object");
    cJSON_Delete(tree);
}

static void integers_are_integers_in_range(void) {
    cJSON *tree = tree_of("{\"half\": 2.5, \"big\": 9007199254740994, \"huge\": 1e300, \"i\": 11, "
                          "\"inf\": 1e999}");
    int64_t i = 42;
    CHECK_INT(td_json_int("w", tree, "half", 0, 10, &i), TD_ERR_DATA);
    CHECK_MESSAGE("2.5");
    CHECK_INT(td_json_int("w", tree, "big", 0, INT64_MAX, &i), TD_ERR_DATA);
    CHECK_MESSAGE("big");
    CHECK_INT(td_json_int("w", tree, "huge", 0, INT64_MAX, &i), TD_ERR_DATA);
    CHECK_MESSAGE("huge");
    CHECK_INT(td_json_int("w", tree, "i", 0, 10, &i), TD_ERR_DATA);
    CHECK_MESSAGE("from 0 to 10, found 11");
    double d = 42;
    CHECK_INT(td_json_double("w", tree, "inf", &d), TD_ERR_DATA);
    CHECK_MESSAGE("finite");
    CHECK(i == 42 && d == 42);
    cJSON_Delete(tree);
}

static void check_number_round_trip(double value) {
    cJSON *tree = cJSON_CreateNumber(value), *back = NULL;
    char *text = td_json_print(tree, 0);
    REQUIRE(text && td_json_parse("text", text, strlen(text), &back) == TD_OK);
    CHECK(memcmp(&back->valuedouble, &value, sizeof value) == 0);
    cJSON_Delete(back);
    free(text);
    cJSON_Delete(tree);
}

static void printed_numbers_read_back_exactly(void) {
    check_number_round_trip(0.1 + 0.2);
    check_number_round_trip(1.0 / 3);
    check_number_round_trip(nextafter(1e-8, 1));
    check_number_round_trip(DBL_MAX);
    check_number_round_trip(DBL_TRUE_MIN);
    check_number_round_trip(9007199254740991.0);
    check_number_round_trip(-5);
}

static void printing_keeps_the_tree(void) {
    cJSON *tree = tree_of("{\"a\":[1,2.5,{\"b\":\"\\u00e9\\n\"}],\"c\":null}");
    char *flat = td_json_print(tree, 0), *pretty = td_json_print(tree, 1);
    CHECK_STRING(flat, "{\"a\":[1,2.5,{\"b\":\"\xc3\xa9\\n\"}],\"c\":null}");
    CHECK(strchr(pretty, '\n') != NULL);
    CHECK(cJSON_IsNumber(tree->child->child));
    free(flat);
    free(pretty);
    cJSON_Delete(tree);
}

static void files_are_named_in_messages(void) {
    cJSON *tree = NULL;
    REQUIRE(td_json_read(scratch_file("good.json", "{\"a\": 1}"), 100, &tree) == TD_OK);
    CHECK(cJSON_IsObject(tree));
    cJSON_Delete(tree);
    CHECK_INT(td_json_read(scratch_file("bad.json", "{"), 100, &tree), TD_ERR_DATA);
    CHECK_MESSAGE("bad.json");
    CHECK_INT(td_json_read(scratch("good.json"), 3, &tree), TD_ERR_DATA);
    CHECK_MESSAGE("good.json");
}

int main(void) {
    TEST(good_json_is_read);
    TEST(trailing_text_is_refused);
    TEST(malformed_text_is_refused_with_its_place);
    TEST(nul_bytes_are_refused);
    TEST(bad_utf8_is_refused);
    TEST(depth_is_bounded);
    TEST(look_ups_check_types);
    TEST(missing_and_null_keep_the_default);
    TEST(integers_are_integers_in_range);
    TEST(printed_numbers_read_back_exactly);
    TEST(printing_keeps_the_tree);
    TEST(files_are_named_in_messages);
    return test_report();
}
