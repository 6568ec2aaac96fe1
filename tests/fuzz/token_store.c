// libFuzzer target: changes to a token store (support/image.h); of the first byte, 2 takes every
// checksum of ours for right. Whatever the file holds, it is refused, or its rows lie within its
// tokens and are read.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data/store.h"
#include "tests/fuzz/support/fuzz.h"
#include "tests/fuzz/support/image.h"

enum { ACCEPT_CHECKSUMS = 2, MAX_ROWS_READ = 64 };

static const char *make_image(void) {
    static char path[128];
    static const int32_t tokens[] = {5, 6, 7, 8, 9, 10, 11};
    static const uint8_t trained[] = {0, 1, 1, 0, 1, 0, 1};
    const td_hash fingerprint = {.low = 1, .high = 2};
    td_store_writer *writer = NULL;
    if (path[0])
        return path;
    snprintf(path, sizeof path, "%s", fuzz_path("store.h5"));
    fuzz_require(td_store_writer_open(path, &writer) == TD_OK, "the image is begun");
    for (int64_t count = 2; count <= 7; count++)
        fuzz_require(td_store_writer_add(writer, tokens, trained, count) == TD_OK, "has rows");
    fuzz_require(td_store_writer_commit(writer, fingerprint, "{\"rows_read\": 6}") == TD_OK,
                 "the image is written");
    fuzz_image_open(path);
    return path;
}

static void read_row(td_store *store, int64_t row) {
    const int64_t *offsets = td_store_offsets(store);
    int64_t count = offsets[row + 1] - offsets[row];
    fuzz_require(offsets[row] >= 0 && count > 0 && offsets[row + 1] <= td_store_tokens(store),
                 "a row lies within the tokens");
    fuzz_require(td_store_row_trained(store)[row] >= 0 && td_store_row_trained(store)[row] < count,
                 "a row has no more trained tokens than tokens");
    // Memory of the exact size, so that a sanitizer sees a write beyond it.
    int32_t *tokens = malloc((size_t)count * sizeof *tokens);
    uint8_t *trained = malloc((size_t)count);
    fuzz_require(tokens && trained, "there is memory");
    td_status status = td_store_read_row(store, row, tokens, trained);
    for (int64_t i = 0; status == TD_OK && i < count; i++)
        fuzz_require(tokens[i] >= 0 && tokens[i] <= td_store_max_token(store) && trained[i] <= 1,
                     "a token is within its range");
    fuzz_require(status == TD_OK || td_error_message()[0], "a refusal says why");
    td_error_clear();
    free(tokens);
    free(trained);
}

static void check_store(td_store *store) {
    fuzz_require(td_store_rows(store) > 0 && td_store_tokens(store) >= td_store_rows(store),
                 "rows have tokens");
    fuzz_require(td_store_account(store) != NULL, "there is an account");
    for (int64_t row = 0; row < td_store_rows(store) && row < MAX_ROWS_READ; row++)
        read_row(store, row);
    fuzz_require(td_store_verify(store) == TD_OK || td_error_message()[0], "a refusal says why");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = make_image();
    td_store *store = NULL;
    fuzz_image_change(data, size);
    fuzz_accept_checksums = size > 0 && (data[0] & ACCEPT_CHECKSUMS);
    if (td_store_open(path, &store) == TD_OK)
        check_store(store);
    else
        fuzz_require(td_error_message()[0] && !store, "a refusal says why");
    td_error_clear();
    td_store_close(store);
    fuzz_image_restore();
    return 0;
}
