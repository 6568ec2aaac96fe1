// Safetensors files put together byte by byte, so that every part can be wrong.
#ifndef TANDEM_TESTS_MODEL_SAFETENSORS_BUILD_H
#define TANDEM_TESTS_MODEL_SAFETENSORS_BUILD_H

#include <stdint.h>

#include "unit/scratch.h"

// The 8 bytes of `length`, then the header text, then `data_bytes` bytes 0, 1, 2, ...
__attribute__((unused)) static const char *write_raw(const char *name, uint64_t length,
                                                     const char *header, size_t data_bytes) {
    const char *path = scratch(name);
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL);
    for (int i = 0; i < 8; i++)
        fputc((int)(length >> (8 * i) & 255), file);
    fwrite(header, 1, strlen(header), file);
    for (size_t i = 0; i < data_bytes; i++)
        fputc((int)(i & 255), file);
    REQUIRE(fclose(file) == 0);
    return path;
}

// With the length that the header has.
__attribute__((unused)) static const char *write_file(const char *name, const char *header,
                                                      size_t data_bytes) {
    return write_raw(name, strlen(header), header, data_bytes);
}

__attribute__((unused)) static void copy_file(const char *from, const char *to) {
    char *bytes;
    size_t count;
    REQUIRE(td_file_read(from, (size_t)64 << 20, &bytes, &count) == TD_OK);
    REQUIRE(td_file_write_atomic(to, bytes, count) == TD_OK);
    free(bytes);
}

#endif
