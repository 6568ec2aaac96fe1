// libFuzzer target: changes to one rank's pages of a checkpoint (support/image.h); of the first
// byte, 2 takes every checksum of ours for right. Whatever the file holds, it is refused, or its
// pages are read.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/checkpoint_internal.h"
#include "tests/fuzz/support/fuzz.h"
#include "tests/fuzz/support/image.h"

enum { PAGE_FLOATS = 8, PAGES = 3, STATE_BYTES = 24, ACCEPT_CHECKSUMS = 2 };

static const float params[PAGE_FLOATS] = {1, 2, 3, 4, 5, 6, 7, 8};
static const unsigned char state[STATE_BYTES + 1] = "state of the optimizer..";

static const float *page_params(const void *context, int64_t index) {
    (void)context, (void)index;
    return params;
}

static const unsigned char *page_state(const void *context, int64_t index) {
    (void)context, (void)index;
    return state;
}

// Every second page of a run of two ranks.
static td_shard describe(void) {
    td_shard shard = {.rank = 0, .step = 5, .state_bytes = STATE_BYTES};
    fuzz_require(td_page_map_init(&shard.map, PAGE_FLOATS * 2 * PAGES, PAGE_FLOATS, 2) == TD_OK,
                 "pages are described");
    return shard;
}

static const char *make_image(void) {
    static char path[128];
    float scratch_params[PAGE_FLOATS];
    unsigned char scratch_state[STATE_BYTES];
    const td_shard shard = describe();
    atomic_int cancel = 0;
    const td_shard_memory memory = {.params = page_params,
                                    .state = page_state,
                                    .cancel = &cancel,
                                    .scratch_params = scratch_params,
                                    .scratch_state = scratch_state};
    if (path[0])
        return path;
    snprintf(path, sizeof path, "%s", fuzz_path("pages.h5"));
    fuzz_require(td_shard_write(path, &shard, &memory) == TD_OK, "the image is written");
    fuzz_image_open(path);
    return path;
}

static void read_pages(td_shard_reader *reader) {
    // Memory of the exact size, so that a sanitizer sees a write beyond it.
    float *page = malloc(PAGE_FLOATS * sizeof *page);
    unsigned char *bytes = malloc(STATE_BYTES);
    fuzz_require(page && bytes, "there is memory");
    for (int64_t i = 0; i < PAGES; i++) {
        td_status status = td_shard_read_page(reader, i, page, bytes);
        int same = status == TD_OK && memcmp(page, params, sizeof params) == 0 &&
                   memcmp(bytes, state, STATE_BYTES) == 0;
        fuzz_require(status != TD_OK || same || fuzz_accept_checksums, "damage is seen");
        fuzz_require(status == TD_OK || td_error_message()[0], "a refusal says why");
        td_error_clear();
    }
    free(page);
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = make_image();
    const td_shard shard = describe();
    td_shard_reader *reader = NULL;
    fuzz_image_change(data, size);
    fuzz_accept_checksums = size > 0 && (data[0] & ACCEPT_CHECKSUMS);
    if (td_shard_open(path, &shard, &reader) == TD_OK)
        read_pages(reader);
    else
        fuzz_require(td_error_message()[0] && !reader, "a refusal says why");
    td_error_clear();
    td_shard_close(reader);
    fuzz_image_restore();
    return 0;
}
