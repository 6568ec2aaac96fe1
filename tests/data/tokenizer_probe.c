// Encodes and decodes on request, for tests/reference/check_tokenizers.py.
//
//     tokenizer_probe FOLDER < requests > answers
//
// A request is a letter, a length in bytes as uint32 and as many bytes; an answer is a length as
// uint32 and as many bytes. e, E: text to int32 ids, without and with special tokens (text that is
// refused: the message, with the highest bit of the length set). d, D: int32 ids to text, with and
// without special tokens, decoded at once and as a stream, which must agree. t: int64 nanoseconds
// of encoding the text.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/tokenizer.h"

static void fail(const char *what) {
    fprintf(stderr, "tokenizer_probe: %s\n", what);
    exit(1);
}

static void answer(const void *data, uint32_t bytes, uint32_t flag) {
    uint32_t head = bytes | flag;
    fwrite(&head, sizeof head, 1, stdout);
    fwrite(data, 1, bytes, stdout);
    fflush(stdout);
}

static void encode(const td_tokenizer *tokenizer, const char *text, uint32_t bytes, int special) {
    td_tokens tokens = {0};
    if (td_tokenizer_encode(tokenizer, text, bytes, special, &tokens) != TD_OK) {
        answer(td_error_message(), (uint32_t)strlen(td_error_message()), UINT32_C(1) << 31);
        td_error_clear();
    } else {
        answer(tokens.ids, (uint32_t)(tokens.count * sizeof *tokens.ids), 0);
    }
    for (size_t i = 0; i < tokens.count; i++)
        if (tokens.begins[i] > tokens.ends[i] || tokens.ends[i] > bytes)
            fail("a span outside the text");
    td_tokens_fini(&tokens);
}

// Compares what a stream gives with the text, piece by piece.
static void check_stream(const td_tokenizer *tokenizer, const int32_t *ids, size_t count, int skip,
                         const char *text, size_t bytes) {
    td_token_stream *stream;
    size_t done = 0, part_bytes;
    const char *part;
    if (td_token_stream_create(tokenizer, skip, &stream) != TD_OK)
        fail(td_error_message());
    for (size_t i = 0; i <= count; i++) {
        td_status status = i < count ? td_token_stream_push(stream, ids[i], &part, &part_bytes)
                                     : td_token_stream_finish(stream, &part, &part_bytes);
        if (status != TD_OK)
            fail(td_error_message());
        if (part_bytes > bytes - done || memcmp(part, text + done, part_bytes) != 0)
            fail("the stream gives other text");
        done += part_bytes;
    }
    if (done != bytes)
        fail("the stream gives less text");
    td_token_stream_destroy(stream);
}

static void decode(const td_tokenizer *tokenizer, const char *data, uint32_t bytes, int skip) {
    size_t count = bytes / sizeof(int32_t), text_bytes;
    int32_t *ids = malloc(bytes + 1);
    char *text;
    if (!ids)
        fail("no memory");
    memcpy(ids, data, bytes);
    if (td_tokenizer_decode(tokenizer, ids, count, skip, &text, &text_bytes) != TD_OK)
        fail(td_error_message());
    check_stream(tokenizer, ids, count, skip, text, text_bytes);
    answer(text, (uint32_t)text_bytes, 0);
    free(text);
    free(ids);
}

static void measure(const td_tokenizer *tokenizer, const char *text, uint32_t bytes) {
    struct timespec begin, end;
    td_tokens tokens = {0};
    clock_gettime(CLOCK_MONOTONIC, &begin);
    if (td_tokenizer_encode(tokenizer, text, bytes, 0, &tokens) != TD_OK)
        fail(td_error_message());
    clock_gettime(CLOCK_MONOTONIC, &end);
    td_tokens_fini(&tokens);
    int64_t elapsed =
        (end.tv_sec - begin.tv_sec) * INT64_C(1000000000) + end.tv_nsec - begin.tv_nsec;
    answer(&elapsed, sizeof elapsed, 0);
}

static void handle(const td_tokenizer *tokenizer, int what, const char *data, uint32_t bytes) {
    if (what == 'e' || what == 'E')
        encode(tokenizer, data, bytes, what == 'E');
    else if (what == 'd' || what == 'D')
        decode(tokenizer, data, bytes, what == 'D');
    else if (what == 't')
        measure(tokenizer, data, bytes);
    else
        fail("an unknown request");
}

int main(int argc, char **argv) {
    td_tokenizer *tokenizer = NULL;
    if (argc != 2)
        fail("usage: tokenizer_probe FOLDER");
    if (td_tokenizer_open(argv[1], &tokenizer) != TD_OK)
        fail(td_error_message());
    for (int what; (what = getchar()) != EOF;) {
        uint32_t bytes;
        if (fread(&bytes, sizeof bytes, 1, stdin) != 1)
            fail("a request ends early");
        char *data = malloc((size_t)bytes + 1);
        if (!data || fread(data, 1, bytes, stdin) != bytes)
            fail("a request ends early");
        handle(tokenizer, what, data, bytes);
        free(data);
    }
    td_tokenizer_close(tokenizer);
    return 0;
}
