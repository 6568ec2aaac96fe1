#include "tests/fuzz/support/image.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/fuzz/support/fuzz.h"

enum {
    MAX_PLACES = 1 << 16,
    MAX_CHANGES = 64,
    MAX_CHANGE_BYTES = 31,
    CUT = 32,
    ZERO_RUN = 48, // zeros beyond this many in a row are no places
};

typedef struct span {
    size_t begin, bytes;
} span;

static struct {
    int file;
    size_t bytes;
    unsigned char *original;
    size_t *places;
    size_t n_places;
    span changed[MAX_CHANGES];
    int n_changed;
    int is_cut;
} image;

static void read_image(const char *path) {
    struct stat info;
    image.file = open(path, O_RDWR | O_CLOEXEC);
    fuzz_require(image.file >= 0 && fstat(image.file, &info) == 0, "the image can be opened");
    image.bytes = (size_t)info.st_size;
    image.original = malloc(image.bytes);
    image.places = calloc(MAX_PLACES, sizeof *image.places);
    fuzz_require(image.original && image.places, "there is memory");
    fuzz_require(pread(image.file, image.original, image.bytes, 0) == (ssize_t)image.bytes,
                 "the image can be read");
}

static void find_places(void) {
    size_t zeros = 0;
    for (size_t i = image.bytes; i-- > 0 && image.n_places < MAX_PLACES;) {
        zeros = image.original[i] ? 0 : zeros + 1;
        if (zeros <= ZERO_RUN)
            image.places[image.n_places++] = i;
    }
}

void fuzz_image_open(const char *path) {
    read_image(path);
    find_places();
}

static void write_span(const unsigned char *from, span part) {
    fuzz_require(pwrite(image.file, from, part.bytes, (off_t)part.begin) == (ssize_t)part.bytes,
                 "the image can be written");
}

static void cut(size_t bytes) {
    fuzz_require(ftruncate(image.file, (off_t)bytes) == 0, "the image can be cut");
    image.is_cut = 1;
}

static size_t shorter(size_t a, size_t b) {
    return a < b ? a : b;
}

void fuzz_image_change(const uint8_t *data, size_t size) {
    size_t end = image.bytes;
    for (size_t at = 1; at + 3 <= size && image.n_changed < MAX_CHANGES;) {
        size_t place = image.places[((size_t)data[at] << 8 | data[at + 1]) % image.n_places];
        uint8_t number = data[at + 2];
        at += 3;
        if (number == CUT)
            end = place;
        size_t bytes = shorter(number & MAX_CHANGE_BYTES, size - at);
        span part = {place, shorter(bytes, image.bytes - place)};
        write_span(data + at, part);
        image.changed[image.n_changed++] = part;
        at += bytes;
    }
    if (end < image.bytes)
        cut(end);
}

void fuzz_image_restore(void) {
    if (image.is_cut)
        write_span(image.original, (span){0, image.bytes});
    for (int i = 0; i < image.n_changed; i++)
        write_span(image.original + image.changed[i].begin, image.changed[i]);
    image.n_changed = 0;
    image.is_cut = 0;
}
