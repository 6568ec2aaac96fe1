#include "runtime/core/hash.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "runtime/core/files.h"
#include "runtime/core/progress.h"

enum { READ_BYTES = 1 << 20 };

struct td_hasher {
    XXH3_state_t *state;
};

static td_hash from_xxh(XXH128_hash_t value) {
    return (td_hash){.low = value.low64, .high = value.high64};
}

td_status td_hasher_create(td_hasher **out) {
    td_hasher *hasher = malloc(sizeof *hasher);
    XXH3_state_t *state = XXH3_createState();
    if (!hasher || !state) {
        free(hasher);
        XXH3_freeState(state);
        return td_fail(TD_ERR_MEMORY, "cannot allocate a checksum state");
    }
    XXH3_128bits_reset(state);
    hasher->state = state;
    *out = hasher;
    return TD_OK;
}

void td_hasher_destroy(td_hasher *hasher) {
    if (!hasher)
        return;
    XXH3_freeState(hasher->state);
    free(hasher);
}

void td_hasher_add(td_hasher *hasher, const void *data, size_t bytes) {
    if (bytes > 0)
        XXH3_128bits_update(hasher->state, data, bytes);
}

void td_hasher_add_string(td_hasher *hasher, const char *text) {
    td_hasher_add(hasher, text, strlen(text) + 1);
}

td_hash td_hasher_value(const td_hasher *hasher) {
    return from_xxh(XXH3_128bits_digest(hasher->state));
}

td_hash td_hash_bytes(const void *data, size_t bytes) {
    return from_xxh(XXH3_128bits(data, bytes));
}

static td_status add_file(td_hasher *hasher, int file, const char *path, uint64_t bytes,
                          unsigned char *buffer) {
    for (uint64_t done = 0; done < bytes;) {
        size_t wanted = bytes - done < READ_BYTES ? (size_t)(bytes - done) : READ_BYTES;
        ssize_t got = pread(file, buffer, wanted, (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return td_fail(TD_ERR_IO, "%s: cannot read: %s", path, strerror(errno));
        if (got == 0)
            return td_fail(TD_ERR_DATA, "%s: became shorter while it was read", path);
        td_hasher_add(hasher, buffer, (size_t)got);
        done += (uint64_t)got;
        td_progress_tick(); // gigabytes may be read here
    }
    return TD_OK;
}

td_status td_hash_descriptor(int file, const char *path, uint64_t bytes, td_hash *out) {
    td_status status = TD_OK;
    td_hasher *hasher = NULL;
    unsigned char *buffer = malloc(READ_BYTES);
    if (!buffer)
        status = td_fail(TD_ERR_MEMORY, "%s: no memory to read it", path);
    if (status == TD_OK)
        status = td_hasher_create(&hasher);
    if (status == TD_OK)
        status = add_file(hasher, file, path, bytes, buffer);
    if (status == TD_OK)
        *out = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    free(buffer);
    return status;
}

td_status td_hash_file(const char *path, td_hash *out) {
    int file;
    uint64_t bytes;
    TD_TRY(td_file_open(path, 1, &file, &bytes));
    td_status status = td_hash_descriptor(file, path, bytes, out);
    close(file);
    return status;
}

int td_hash_equal(td_hash a, td_hash b) {
    return a.low == b.low && a.high == b.high;
}

void td_hash_to_hex(td_hash hash, char out[TD_HASH_HEX_CHARS]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 32; i++) {
        uint64_t half = i < 16 ? hash.high : hash.low;
        out[i] = digits[(half >> (60 - 4 * (i % 16))) & 15];
    }
    out[32] = '\0';
}

static int digit_value(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

td_status td_hash_from_hex(const char *hex, td_hash *out) {
    uint64_t halves[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        int value = digit_value(hex[i]);
        if (value < 0)
            return td_fail(TD_ERR_DATA, "checksum \"%.40s\" is not 32 hexadecimal digits", hex);
        halves[i / 16] = halves[i / 16] << 4 | (uint64_t)value;
    }
    if (hex[32] != '\0')
        return td_fail(TD_ERR_DATA, "checksum \"%.40s\" is not 32 hexadecimal digits", hex);
    *out = (td_hash){.high = halves[0], .low = halves[1]};
    return TD_OK;
}
