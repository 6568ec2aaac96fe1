// The few lines every test program shares: check, count, report.
//
// A test is a static void function; main() calls TEST(f) for each and returns test_report(). A
// failed check prints file, line and values, is counted, and the test goes on.
#ifndef TANDEM_TESTS_TEST_H
#define TANDEM_TESTS_TEST_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_checks_, test_failures_, test_cases_;

__attribute__((unused)) static int test_check_(int ok, const char *file, int line,
                                               const char *text) {
    test_checks_++;
    if (!ok) {
        test_failures_++;
        fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
    }
    return ok;
}

#define CHECK(condition) test_check_((condition) != 0, __FILE__, __LINE__, #condition)

#define CHECK_INT(actual, expected)                                                                \
    do {                                                                                           \
        long long a_ = (long long)(actual), e_ = (long long)(expected);                            \
        if (!test_check_(a_ == e_, __FILE__, __LINE__, #actual " == " #expected))                  \
            fprintf(stderr, "    got %lld, expected %lld\n", a_, e_);                              \
    } while (0)

#define CHECK_NEAR(actual, expected, tolerance)                                                    \
    do {                                                                                           \
        double a_ = (double)(actual), e_ = (double)(expected), t_ = (double)(tolerance);           \
        if (!test_check_(fabs(a_ - e_) <= t_, __FILE__, __LINE__, #actual " near " #expected))     \
            fprintf(stderr, "    got %.9g, expected %.9g within %.3g\n", a_, e_, t_);              \
    } while (0)

#define CHECK_STRING(actual, expected)                                                             \
    do {                                                                                           \
        const char *a_ = (actual), *e_ = (expected);                                               \
        if (!test_check_(a_ && e_ && strcmp(a_, e_) == 0, __FILE__, __LINE__,                      \
                         #actual " == " #expected))                                                \
            fprintf(stderr, "    got \"%s\", expected \"%s\"\n", a_ ? a_ : "(null)",               \
                    e_ ? e_ : "(null)");                                                           \
    } while (0)

// Ends the program: nothing after it would make sense.
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!CHECK(condition))                                                                     \
            exit(1);                                                                               \
    } while (0)

#define TEST(function)                                                                             \
    do {                                                                                           \
        int before_ = test_failures_;                                                              \
        function();                                                                                \
        test_cases_++;                                                                             \
        printf("%-6s %s\n", test_failures_ == before_ ? "ok" : "FAILED", #function);               \
    } while (0)

__attribute__((unused)) static int test_report(void) {
    printf("%d tests, %d checks, %d failures\n", test_cases_, test_checks_, test_failures_);
    if (test_checks_ == 0)
        fprintf(stderr, "no check was executed\n");
    return test_failures_ != 0 || test_checks_ == 0;
}

#ifdef TEST_FIXTURES
#include <unistd.h>

// Where the fixtures are: in the sources this was built from or, elsewhere, below the current
// folder.
static inline const char *test_fixtures(void) {
    return access(TEST_FIXTURES, R_OK) == 0 ? TEST_FIXTURES : "tests/fixtures";
}
#endif

#endif
