// libFuzzer target: a tokenizer.json and a text, with a zero byte between them. Whatever the file
// says, it is loaded or refused; what a loaded one encodes lies within the text, and decoding at
// once and as a stream give the same.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/tokenizer.h"
#include "model/unicode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64], path[96];

static void require(int holds, const char *what) {
    if (holds)
        return;
    fprintf(stderr, "does not hold: %s\n", what);
    abort();
}

static void remove_folder(void) {
    unlink(path);
    rmdir(folder);
}

// In memory where the system has a folder for that.
static void make_folder(void) {
    if (folder[0])
        return;
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder, sizeof folder, "%s/tandem-fuzz-XXXXXX", base);
    require(mkdtemp(folder) != NULL, "a folder can be made");
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    atexit(remove_folder);
}

static void write_file(const uint8_t *data, size_t size) {
    FILE *file = fopen(path, "wb");
    require(file != NULL, "the file can be opened");
    require(fwrite(data, 1, size, file) == size, "the file can be written");
    require(fclose(file) == 0, "the file can be closed");
}

static void check_stream(const td_tokenizer *tokenizer, const td_tokens *tokens, int skip,
                         const char *text, size_t bytes) {
    td_token_stream *stream;
    size_t done = 0;
    require(td_token_stream_create(tokenizer, skip, &stream) == TD_OK, "a stream can be made");
    for (size_t i = 0; i <= tokens->count; i++) {
        const char *part;
        size_t part_bytes;
        td_status status = i < tokens->count
                               ? td_token_stream_push(stream, tokens->ids[i], &part, &part_bytes)
                               : td_token_stream_finish(stream, &part, &part_bytes);
        require(status == TD_OK, "a token can be pushed");
        require(part_bytes <= bytes - done && memcmp(part, text + done, part_bytes) == 0,
                "the stream gives the text");
        require(td_utf8_check(part, part_bytes) == part_bytes, "a part is whole characters");
        done += part_bytes;
    }
    require(done == bytes, "the stream gives all of the text");
    td_token_stream_destroy(stream);
}

static void check_decode(const td_tokenizer *tokenizer, const td_tokens *tokens, int skip) {
    char *text;
    size_t bytes;
    require(td_tokenizer_decode(tokenizer, tokens->ids, tokens->count, skip, &text, &bytes) ==
                TD_OK,
            "ids decode");
    require(td_utf8_check(text, bytes) == bytes, "decoded text is UTF-8");
    check_stream(tokenizer, tokens, skip, text, bytes);
    free(text);
}

// The second time from the cache of words.
static void check_encode(const td_tokenizer *tokenizer, const char *text, size_t bytes) {
    td_tokens first = {0}, second = {0};
    td_status status = td_tokenizer_encode(tokenizer, text, bytes, 1, &first);
    require(td_tokenizer_encode(tokenizer, text, bytes, 1, &second) == status, "the same again");
    require(first.count == second.count, "as many ids again");
    for (size_t i = 0; i < first.count; i++) {
        require(first.ids[i] == second.ids[i] && first.begins[i] == second.begins[i] &&
                    first.ends[i] == second.ends[i],
                "the same ids and spans again");
        require(first.ids[i] >= 0 && first.ids[i] < td_tokenizer_size(tokenizer), "an id exists");
        require(first.begins[i] <= first.ends[i] && first.ends[i] <= bytes,
                "a span is in the text");
    }
    check_decode(tokenizer, &first, 0);
    check_decode(tokenizer, &first, 1);
    td_tokens_fini(&first);
    td_tokens_fini(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *zero = size > 0 ? memchr(data, 0, size) : NULL;
    size_t bytes = zero ? (size_t)(zero - data) : size;
    td_tokenizer *tokenizer = NULL;
    make_folder();
    write_file(data, bytes);
    td_status status = td_tokenizer_open(folder, &tokenizer);
    require((status == TD_OK) == (tokenizer != NULL), "a refused file gives no tokenizer");
    require(status == TD_OK || td_error_message()[0], "a refusal says why");
    if (tokenizer && zero)
        check_encode(tokenizer, (const char *)zero + 1, size - bytes - 1);
    td_tokenizer_close(tokenizer);
    td_error_clear();
    return 0;
}
