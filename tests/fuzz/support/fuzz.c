#include "tests/fuzz/support/fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/hash.h"

int fuzz_accept_checksums;

static char folder[64];

// The linker puts these in the place of td_hash_equal().
int __real_td_hash_equal(td_hash a, td_hash b);
int __wrap_td_hash_equal(td_hash a, td_hash b);

int __wrap_td_hash_equal(td_hash a, td_hash b) {
    return fuzz_accept_checksums || __real_td_hash_equal(a, b);
}

void fuzz_require(int holds, const char *what) {
    if (holds)
        return;
    fprintf(stderr, "does not hold: %s\n", what);
    abort();
}

static void remove_folder(void) {
    (void)td_folder_remove_tree(folder);
}

const char *fuzz_folder(void) {
    if (folder[0])
        return folder;
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder, sizeof folder, "%s/tandem-fuzz-XXXXXX", base);
    fuzz_require(mkdtemp(folder) != NULL, "a folder can be made");
    atexit(remove_folder);
    return folder;
}

const char *fuzz_path(const char *name) {
    static char paths[4][128];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", fuzz_folder(), name);
    return path;
}

void fuzz_write(const char *name, const void *data, size_t bytes) {
    int file = open(fuzz_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    fuzz_require(file >= 0, "the file can be opened");
    fuzz_require(bytes == 0 || write(file, data, bytes) == (ssize_t)bytes,
                 "the file can be written");
    fuzz_require(close(file) == 0, "the file can be closed");
}

void fuzz_parts_init(fuzz_parts *parts, int count, const uint8_t *data, size_t size) {
    *parts = (fuzz_parts){0};
    for (int i = 0; i < count; i++) {
        const uint8_t *zero = i + 1 < count && size > 0 ? memchr(data, 0, size) : NULL;
        size_t bytes = zero ? (size_t)(zero - data) : size;
        parts->text[i] = malloc(bytes + 1);
        fuzz_require(parts->text[i] != NULL, "there is memory");
        if (bytes > 0)
            memcpy(parts->text[i], data, bytes);
        parts->text[i][bytes] = '\0';
        parts->bytes[i] = bytes;
        if (!zero)
            return;
        data = zero + 1;
        size -= bytes + 1;
    }
}

void fuzz_parts_fini(fuzz_parts *parts) {
    for (int i = 0; i < FUZZ_MAX_PARTS; i++)
        free(parts->text[i]);
}
