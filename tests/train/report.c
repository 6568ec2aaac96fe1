// The report of an evaluation: intervals, and that no text of data or models breaks its tables.
#include "runtime/train/report.h"
#include "test.h"

// The interval's ends are the shares from which the one found is 1.96 standard deviations away.
static void wilson_solves_its_equation(void) {
    static const int64_t counts[][2] = {{5, 10}, {1, 7}, {99, 100}, {40, 1319}, {3, 4}};
    const double z = 1.959963984540054;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        double ends[2], n = (double)counts[i][1], share = (double)counts[i][0] / n;
        td_wilson_interval(counts[i][0], counts[i][1], &ends[0], &ends[1]);
        CHECK(ends[0] < share && share < ends[1]);
        for (int k = 0; k < 2; k++)
            CHECK_NEAR(fabs(share - ends[k]), z * sqrt(ends[k] * (1 - ends[k]) / n), 1e-12);
    }
    double low, high;
    td_wilson_interval(0, 20, &low, &high);
    CHECK_NEAR(low, 0, 0);
    CHECK_NEAR(high, z * z / (20 + z * z), 1e-12);
    td_wilson_interval(20, 20, &low, &high);
    CHECK_NEAR(low, 20 / (20 + z * z), 1e-12);
    CHECK_NEAR(high, 1, 0);
    td_wilson_interval(0, 0, &low, &high);
    CHECK(low == 0 && high == 1);
}

static void check_cell(const char *text, const char *expected) {
    char *cell = td_markdown_cell(text);
    CHECK_STRING(cell, expected);
    free(cell);
}

static void cells_are_escaped(void) {
    check_cell("plain text, 1.5 - 2", "plain text, 1.5 - 2");
    check_cell("{\"a\": \"b\"}", "{\"a\": \"b\"}");
    check_cell("", "&nbsp;");
    check_cell("a|b\nc", "a&#124;b<br>c");
    check_cell("<b> & `x` \\ *y* _z_ [l](u)", "&#60;b&#62; &#38; &#96;x&#96; &#92; &#42;y&#42; "
                                              "&#95;z&#95; &#91;l&#93;(u)");
    check_cell("http://www.a.b {{ x }}", "http&#58;//www&#46;a.b &#123;&#123; x &#125;&#125;");
    check_cell("\t\r\x1b", "&#92;u&#123;09&#125;&#92;u&#123;0D&#125;&#92;u&#123;1B&#125;");
    check_cell("a  b ", "a&nbsp; b&nbsp;");
    check_cell("\xC3\xA9\xF0\x9F\x98\x80", "\xC3\xA9\xF0\x9F\x98\x80");
    check_cell("\xE2\x80\xAE\xE2\x80\xA8", "&#92;u&#123;202E&#125;&#92;u&#123;2028&#125;");
    check_cell("\xE2\x80|", "&#xFFFD;&#124;");
}

// Whatever bytes a cell is made of, it holds nothing that ends a cell or a row or opens a tag.
static void no_byte_leaves_its_cell(void) {
    for (int a = 1; a < 256; a++)
        for (int b = 1; b < 256; b++) {
            const char text[] = {(char)a, (char)b, '|', '\n', (char)b, 0};
            char *cell = td_markdown_cell(text), *rest = cell;
            int ok = cell != NULL;
            for (; rest && (rest = strchr(rest, '<')); rest++)
                ok = ok && strncmp(rest, "<br>", 4) == 0;
            for (rest = cell; rest && *rest; rest++)
                ok = ok && !strchr("|\r\n\\`*_[]", *rest);
            CHECK(ok);
            free(cell);
            if (!ok) {
                fprintf(stderr, "    bytes %02x %02x\n", (unsigned)a, (unsigned)b);
                return;
            }
        }
}

int main(void) {
    TEST(wilson_solves_its_equation);
    TEST(cells_are_escaped);
    TEST(no_byte_leaves_its_cell);
    return test_report();
}
