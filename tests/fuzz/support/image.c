#define _GNU_SOURCE // memmem
#include "tests/fuzz/support/image.h"

#include <fcntl.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/fuzz/support/fuzz.h"

enum {
    MAX_PLACES = 1 << 16,
    MAX_BLOCKS = 64,
    MAX_VALUES = 32,
    MAX_VALUE_BYTES = 256,
    MAX_BLOCK_BYTES = 8192,
    MAX_CHANGES = 64,
    MAX_CHANGE_BYTES = 31,
    CUT = 32,
    ZERO_RUN = 48, // zeros beyond this many in a row are no places
    SIGNATURE_BYTES = 4,
};

// Exported by the library: the checksum of its structures.
uint32_t H5_checksum_metadata(const void *data, size_t bytes, uint32_t initial);

// The library loses small pieces of memory when it refuses a damaged file.
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libhdf5\n";
}

typedef struct span {
    size_t begin, bytes;
} span;

// A structure of the file and where its checksum is: behind it, or within and taken as zero.
typedef struct block {
    span all;
    size_t checksum;
} block;

static struct {
    int file;
    size_t bytes;
    unsigned char *original, *current;
    size_t *places;
    size_t n_places;
    block blocks[MAX_BLOCKS];
    int n_blocks;
    span values[MAX_VALUES]; // of attributes
    int n_values;
    int is_crafted;
    span changed[MAX_CHANGES + MAX_BLOCKS];
    int n_changed;
    int is_cut;
} image;

static void read_image(const char *path) {
    struct stat info;
    image.file = open(path, O_RDWR | O_CLOEXEC);
    fuzz_require(image.file >= 0 && fstat(image.file, &info) == 0, "the image can be opened");
    image.bytes = (size_t)info.st_size;
    image.original = malloc(image.bytes);
    image.current = malloc(image.bytes);
    image.places = calloc(MAX_PLACES, sizeof *image.places);
    fuzz_require(image.original && image.current && image.places, "there is memory");
    fuzz_require(pread(image.file, image.original, image.bytes, 0) == (ssize_t)image.bytes,
                 "the image can be read");
    memcpy(image.current, image.original, image.bytes);
}

// The value of an attribute follows its name.
static void find_value(hid_t attribute) {
    char name[64] = "";
    unsigned char bytes[MAX_VALUE_BYTES];
    hid_t type = H5Aget_type(attribute);
    size_t size = H5Tget_size(type);
    fuzz_require(H5Aget_name(attribute, sizeof name, name) > 0 && size <= sizeof bytes &&
                     H5Aread(attribute, type, bytes) >= 0 && image.n_values < MAX_VALUES,
                 "an attribute is read");
    H5Tclose(type);
    const unsigned char *end = image.original + image.bytes, *found = image.original;
    found = memmem(found, image.bytes, name, strlen(name) + 1);
    fuzz_require(found != NULL, "an attribute's name is in the file");
    found = memmem(found, (size_t)(end - found), bytes, size);
    fuzz_require(found != NULL, "an attribute's value is in the file");
    image.values[image.n_values++] = (span){(size_t)(found - image.original), size};
}

static void find_values(const char *path) {
    H5O_info_t info;
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    fuzz_require(file >= 0 && H5Oget_info2(file, &info, H5O_INFO_NUM_ATTRS) >= 0,
                 "the image is an HDF5 file");
    for (hsize_t i = 0; i < info.num_attrs; i++) {
        hid_t attribute =
            H5Aopen_by_idx(file, ".", H5_INDEX_NAME, H5_ITER_INC, i, H5P_DEFAULT, H5P_DEFAULT);
        find_value(attribute);
        H5Aclose(attribute);
    }
    fuzz_require(H5Fclose(file) >= 0, "the image is closed");
}

static void find_places(void) {
    size_t zeros = 0;
    for (int i = 0; i < image.n_values; i++)
        for (size_t n = 0; n < image.values[i].bytes; n++)
            image.places[image.n_places++] = image.values[i].begin + n;
    for (size_t i = 0; i < image.bytes && image.n_places < MAX_PLACES; i++) {
        zeros = image.original[i] ? 0 : zeros + 1;
        if (zeros <= ZERO_RUN)
            image.places[image.n_places++] = i;
    }
}

static uint32_t stored_checksum(size_t at) {
    uint32_t value;
    memcpy(&value, image.original + at, sizeof value);
    return value;
}

static int is_signature(size_t at) {
    static const char *const names[] = {"OHDR", "OCHK", "FRHP", "FHIB", "BTHD", "BTIN", "BTLF",
                                        "FAHD", "FADB", "EAHD", "EAIB", "EASB", "EADB"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (memcmp(image.original + at, names[i], SIGNATURE_BYTES) == 0)
            return 1;
    return memcmp(image.original + at, "\x89HDF", SIGNATURE_BYTES) == 0;
}

static void add_block(size_t begin, size_t bytes, size_t checksum) {
    fuzz_require(image.n_blocks < MAX_BLOCKS, "the image has few structures");
    image.blocks[image.n_blocks++] = (block){{begin, bytes}, checksum};
}

// The structure is as long as makes its checksum right.
static void find_end(size_t begin) {
    for (size_t n = SIGNATURE_BYTES; n < MAX_BLOCK_BYTES && begin + n + 4 <= image.bytes; n++)
        if (H5_checksum_metadata(image.original + begin, n, 0) == stored_checksum(begin + n)) {
            add_block(begin, n, begin + n);
            return;
        }
}

// A block of a heap has a power of two bytes, and its checksum behind its own short header.
static void find_heap_block(size_t begin) {
    static unsigned char copy[MAX_BLOCK_BYTES];
    for (size_t n = 512; n <= MAX_BLOCK_BYTES && begin + n <= image.bytes; n *= 2)
        for (size_t at = 13; at <= 13 + 8; at++) {
            memcpy(copy, image.original + begin, n);
            memset(copy + at, 0, sizeof(uint32_t));
            if (H5_checksum_metadata(copy, n, 0) == stored_checksum(begin + at)) {
                add_block(begin, n, begin + at);
                return;
            }
        }
}

static void find_blocks(void) {
    for (size_t at = 0; at + 2 * SIGNATURE_BYTES <= image.bytes; at++)
        if (memcmp(image.original + at, "FHDB", SIGNATURE_BYTES) == 0)
            find_heap_block(at);
        else if (is_signature(at))
            find_end(at);
}

static const block *block_of(size_t place) {
    for (int i = 0; i < image.n_blocks; i++)
        if (place - image.blocks[i].all.begin < image.blocks[i].all.bytes)
            return &image.blocks[i];
    return NULL;
}

void fuzz_image_open(const char *path) {
    read_image(path);
    find_values(path);
    find_places();
    find_blocks();
    image.is_crafted = getenv("FUZZ_CRAFTED") != NULL;
    for (int i = 0; i < image.n_values; i++)
        fuzz_require(block_of(image.values[i].begin) != NULL, "attributes have checksums");
}

static void write_span(const unsigned char *from, span part) {
    fuzz_require(pwrite(image.file, from + part.begin, part.bytes, (off_t)part.begin) ==
                     (ssize_t)part.bytes,
                 "the image can be written");
}

static void add_changed(size_t begin, size_t bytes) {
    span part = {begin, bytes < image.bytes - begin ? bytes : image.bytes - begin};
    image.changed[image.n_changed++] = part;
}

static void cut(size_t bytes) {
    fuzz_require(ftruncate(image.file, (off_t)bytes) == 0, "the image can be cut");
    image.is_cut = 1;
}

static int is_within_value(span part) {
    for (int i = 0; i < image.n_values; i++)
        if (part.begin >= image.values[i].begin &&
            part.begin + part.bytes <= image.values[i].begin + image.values[i].bytes)
            return 1;
    return 0;
}

static int overlap(span a, span b) {
    return a.begin < b.begin + b.bytes && b.begin < a.begin + a.bytes;
}

// Whether the block was changed, and in no way that has to be refused.
static int is_to_repair(const block *candidate, int n_changes) {
    int is_changed = 0;
    for (int i = 0; i < n_changes; i++) {
        if (!overlap(image.changed[i], candidate->all))
            continue;
        if (!image.is_crafted && !is_within_value(image.changed[i]))
            return 0;
        is_changed = 1;
    }
    return is_changed;
}

static void repair_checksums(void) {
    int n_changes = image.n_changed;
    for (int i = 0; i < image.n_blocks; i++) {
        const block *structure = &image.blocks[i];
        uint32_t checksum = 0;
        if (!is_to_repair(structure, n_changes))
            continue;
        if (overlap((span){structure->checksum, sizeof checksum}, structure->all))
            memset(image.current + structure->checksum, 0, sizeof checksum);
        checksum =
            H5_checksum_metadata(image.current + structure->all.begin, structure->all.bytes, 0);
        memcpy(image.current + structure->checksum, &checksum, sizeof checksum);
        add_changed(structure->checksum, sizeof checksum);
    }
}

void fuzz_image_change(const uint8_t *data, size_t size) {
    size_t end = image.bytes;
    for (size_t at = 1; at + 3 <= size && image.n_changed < MAX_CHANGES;) {
        size_t place = image.places[((size_t)data[at] << 8 | data[at + 1]) % image.n_places];
        size_t bytes = data[at + 2] & MAX_CHANGE_BYTES;
        at += 3;
        if (data[at - 1] == CUT)
            end = place;
        bytes = bytes < size - at ? bytes : size - at;
        add_changed(place, bytes);
        memcpy(image.current + place, data + at, image.changed[image.n_changed - 1].bytes);
        at += bytes;
    }
    repair_checksums();
    for (int i = 0; i < image.n_changed; i++)
        write_span(image.current, image.changed[i]);
    if (end < image.bytes)
        cut(end);
}

void fuzz_image_restore(void) {
    if (image.is_cut) {
        add_changed(0, image.bytes);
        fuzz_require(ftruncate(image.file, (off_t)image.bytes) == 0, "the image can be restored");
    }
    for (int i = 0; i < image.n_changed; i++) {
        span part = image.changed[i];
        memcpy(image.current + part.begin, image.original + part.begin, part.bytes);
        write_span(image.original, part);
    }
    image.n_changed = 0;
    image.is_cut = 0;
}
