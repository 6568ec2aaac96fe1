// libFuzzer target: changes to an image of a base (support/image.h); of the first byte, 1 has it
// copied to a device rather than mapped, 2 takes every checksum for right. An image is refused, or
// its base lies within it; with checksums it has the bits that were written.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/base_image.h"
#include "tests/fuzz/support/fuzz.h"
#include "tests/fuzz/support/image.h"

enum { COPY = 1, ACCEPT_CHECKSUMS = 2 };

static const td_base_options options = {
    .quantize = 1, .double_quantize = 1, .stored = TD_BF16, .compute = TD_F32};
static td_base_image image;
static td_base *expected;
static td_op_context contexts[2]; // host memory, memory of a device

static void make_contexts(void) {
    static td_device device;
    static td_stream *stream;
    device = *td_device_cpu();
    device.unified = 0;
    fuzz_require(device.table->stream_create(&device, &stream) == TD_OK, "there is a stream");
    for (int i = 0; i < 2; i++)
        contexts[i] = (td_op_context){
            .ops = &td_ops_cpu, .device = i ? &device : td_device_cpu(), .stream = stream};
}

static void make_image(void) {
    // Small enough that every byte is a place.
    static const td_model_config config = {.family = &td_families[0],
                                           .vocabulary = 16,
                                           .hidden = 64,
                                           .intermediate = 64,
                                           .n_layers = 1,
                                           .n_heads = 1,
                                           .n_kv_heads = 1,
                                           .head_dim = 64};
    if (expected)
        return;
    make_contexts();
    fuzz_require(td_base_create_random(&config, &options, 1, &contexts[0], &expected) == TD_OK,
                 "there is a base");
    snprintf(image.path, sizeof image.path, "%s", fuzz_path("image.base"));
    image.key = (td_hash){.low = 1, .high = 2};
    fuzz_require(td_base_image_write(&image, expected, &contexts[0]) == TD_OK,
                 "the image is written");
    fuzz_image_open(image.path);
}

static td_base *open_image(int copied) {
    td_base *base = NULL;
    fuzz_require(td_base_image_open(&image, &expected->config, &options, TD_BF16, &contexts[copied],
                                    1, 0, &base) == TD_OK,
                 "a bad image is no failure");
    return base;
}

static void check_base(td_base *base, int has_checksums) {
    size_t bytes = expected->arena.used_bytes;
    fuzz_require(base->arena.used_bytes == bytes && base->arena.capacity_bytes == bytes,
                 "the base is as large as it was");
    int is_same = memcmp(base->arena.base, expected->arena.base, bytes) == 0;
    fuzz_require(is_same || !has_checksums, "the base has the bits that were written");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int copied = size > 0 && (data[0] & COPY) != 0;
    make_image();
    fuzz_image_change(data, size);
    fuzz_accept_checksums = size > 0 && (data[0] & ACCEPT_CHECKSUMS);
    td_base *base = open_image(copied);
    if (base)
        check_base(base, !fuzz_accept_checksums);
    fuzz_require(base || size > 3, "an image that was not changed is used");
    td_base_destroy(base);
    td_error_clear();
    fuzz_image_restore();
    return 0;
}
