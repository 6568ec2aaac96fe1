// What the fuzz targets share. One thread.
#ifndef TANDEM_TESTS_FUZZ_H
#define TANDEM_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Aborts, which is what a fuzzer and CTest both notice.
void fuzz_require(int holds, const char *what);

// A folder of this process, in memory where the system has a place for that; removed at exit.
const char *fuzz_folder(void);
// The path of a file in it, in one of a few buffers that are used in turn.
const char *fuzz_path(const char *name);
void fuzz_write(const char *name, const void *data, size_t bytes);

// An input in parts, with zero bytes between them. Each is a copy of its own with a zero behind it,
// so that a sanitizer sees a read beyond it. A part that is not there has no text.
enum { FUZZ_MAX_PARTS = 4 };
typedef struct fuzz_parts {
    char *text[FUZZ_MAX_PARTS];
    size_t bytes[FUZZ_MAX_PARTS];
} fuzz_parts;
// The last of `count` parts is all that is left and may hold zeros.
void fuzz_parts_init(fuzz_parts *parts, int count, const uint8_t *data, size_t size);
void fuzz_parts_fini(fuzz_parts *parts);

// A fuzzer cannot guess the checksum that belongs to what it changed, but somebody who makes a file
// up can compute it. With this set, every two checksums are equal.
extern int fuzz_accept_checksums;

#endif
