// Reads the small safetensors files under tests/fixtures. They are our own, so a malformed one ends
// the program.
#ifndef TANDEM_TESTS_OPS_FIXTURE_H
#define TANDEM_TESTS_OPS_FIXTURE_H

#include <cjson/cJSON.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct op_fixture {
    const char *path;
    char *bytes;
    const char *data; // what the offsets count from
    cJSON *header;
} op_fixture;

static inline void op_fixture_require(int ok, const op_fixture *fixture, const char *what) {
    if (ok)
        return;
    fprintf(stderr, "%s: %s\n", fixture->path, what);
    exit(1);
}

static inline op_fixture op_fixture_open(const char *path) {
    op_fixture fixture = {.path = path};
    FILE *file = fopen(path, "rb");
    const char *below = strstr(path, "/tests/fixtures/");
    if (!file && below) // built elsewhere: from the folder above tests/
        file = fopen(below + 1, "rb");
    op_fixture_require(file && fseek(file, 0, SEEK_END) == 0, &fixture, "cannot be opened");
    long size = ftell(file);
    rewind(file);
    fixture.bytes = malloc((size_t)size);
    op_fixture_require(fixture.bytes && fread(fixture.bytes, 1, (size_t)size, file) == (size_t)size,
                       &fixture, "cannot be read");
    fclose(file);
    uint64_t header_bytes;
    memcpy(&header_bytes, fixture.bytes, sizeof header_bytes);
    fixture.data = fixture.bytes + sizeof header_bytes + header_bytes;
    fixture.header = cJSON_ParseWithLength(fixture.bytes + sizeof header_bytes, header_bytes);
    op_fixture_require(fixture.header != NULL, &fixture, "has no header");
    return fixture;
}

static inline void op_fixture_close(op_fixture *fixture) {
    cJSON_Delete(fixture->header);
    free(fixture->bytes);
}

// Address and bytes of a tensor.
static inline const void *op_fixture_bytes(const op_fixture *fixture, const char *name,
                                           size_t *n_bytes) {
    const cJSON *tensor = cJSON_GetObjectItemCaseSensitive(fixture->header, name);
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(tensor, "data_offsets");
    op_fixture_require(cJSON_GetArraySize(offsets) == 2, fixture, name);
    size_t begin = (size_t)cJSON_GetArrayItem(offsets, 0)->valuedouble;
    *n_bytes = (size_t)cJSON_GetArrayItem(offsets, 1)->valuedouble - begin;
    return fixture->data + begin;
}

static inline const float *op_fixture_floats(const op_fixture *fixture, const char *name,
                                             int64_t *n) {
    size_t bytes;
    const void *data = op_fixture_bytes(fixture, name, &bytes);
    op_fixture_require((uintptr_t)data % sizeof(float) == 0, fixture, "is not aligned");
    *n = (int64_t)(bytes / sizeof(float));
    return data;
}

#endif
