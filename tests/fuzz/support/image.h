// A small valid file of ours that inputs change in places. Inputs are lists of changes rather than
// files: they stay short, and a change keeps its meaning when another goes before it.
#ifndef TANDEM_TESTS_FUZZ_IMAGE_H
#define TANDEM_TESTS_FUZZ_IMAGE_H

#include <stddef.h>
#include <stdint.h>

// Takes over a file that was written just now; it stays where it is.
void fuzz_image_open(const char *path);
// An input is one byte of switches for the target and then changes: a place (2 bytes, counted from
// the end of the file, where our indexes lie; long runs of zeros are left out), a number of bytes,
// the bytes. The number 32 ends the file there.
void fuzz_image_change(const uint8_t *data, size_t size);
// As it was before.
void fuzz_image_restore(void);

#endif
