// A folder of its own for a test program, removed at exit.
#ifndef TANDEM_TESTS_UNIT_SCRATCH_H
#define TANDEM_TESTS_UNIT_SCRATCH_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "test.h"

static char scratch_[256];

__attribute__((unused)) static void scratch_remove_(void) {
    td_folder_remove_tree(scratch_);
}

// Full path of `name` in the scratch folder; a few results stay valid at a time.
__attribute__((unused)) static const char *scratch(const char *name) {
    static char paths[8][512];
    static int next;
    if (!scratch_[0]) {
        const char *base = getenv("TMPDIR");
        snprintf(scratch_, sizeof scratch_, "%s/tandem-test-XXXXXX", base ? base : "/tmp");
        REQUIRE(mkdtemp(scratch_) != NULL);
        atexit(scratch_remove_);
    }
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_, name);
    return path;
}

__attribute__((unused)) static const char *scratch_file(const char *name, const char *text) {
    const char *path = scratch(name);
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL);
    REQUIRE(fwrite(text, 1, strlen(text), file) == strlen(text));
    REQUIRE(fclose(file) == 0);
    return path;
}

// The recorded message contains `part`; clears the record.
#define CHECK_MESSAGE(part)                                                                        \
    do {                                                                                           \
        if (!CHECK(strstr(td_error_message(), part) != NULL))                                      \
            fprintf(stderr, "    message is \"%s\"\n", td_error_message());                        \
        td_error_clear();                                                                          \
    } while (0)

#endif
