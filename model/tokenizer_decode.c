// Tokens to text, one token at a time.
//
// Each step of the decoder takes tokens and gives tokens to the next: stretches of whole
// characters, and the end of each token. What a step cannot decide yet it keeps in `held`. After
// the last step the ends are dropped and the text is what was asked for.
#define _GNU_SOURCE // memmem
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

typedef struct step_state {
    td_bytes token;   // of the current token, for steps that need all of it
    td_bytes held;    // bytes or characters not passed on yet
    uint64_t n_ended; // tokens that ended
    size_t n_start;   // characters stripped from the beginning of the current token
    int is_inside;    // past what can be stripped
} step_state;

struct td_token_stream {
    const td_tokenizer *tokenizer;
    int skip_special;
    step_state states[TD_DECODER_MAX_STEPS];
    td_bytes out; // text not taken yet
};

static td_status take_text(td_token_stream *s, int index, const char *text, size_t bytes);
static td_status end_token(td_token_stream *s, int index);

static td_status pass_token(td_token_stream *s, int index, const char *text, size_t bytes) {
    TD_TRY(take_text(s, index + 1, text, bytes));
    return end_token(s, index + 1);
}

// Passes on what is whole and repairs what cannot become whole: U+FFFD for every longest malformed
// stretch that begins like a character. An unfinished character at the end stays, unless is_last.
static td_status pass_valid(td_token_stream *s, int index, int is_last) {
    td_bytes *held = &s->states[index].held;
    size_t i = 0;
    while (i < held->size) {
        size_t valid = td_utf8_check(held->data + i, held->size - i);
        TD_TRY(take_text(s, index + 1, held->data + i, valid));
        i += valid;
        if (i == held->size)
            break;
        int complete;
        size_t begun = td_utf8_prefix(held->data + i, held->size - i, &complete);
        // Only a prefix that reaches the end and could have gone on may still be completed.
        if (!is_last && begun == held->size - i && begun < 4 &&
            (unsigned char)held->data[i] >= 0xc2 && (unsigned char)held->data[i] <= 0xf4)
            break;
        TD_TRY(take_text(s, index + 1, "\xef\xbf\xbd", 3));
        i += begun;
    }
    held->size -= i;
    if (i > 0 && held->size > 0)
        memmove(held->data, held->data + i, held->size);
    return TD_OK;
}

static td_status end_byte_level(td_token_stream *s, int index) {
    step_state *state = &s->states[index];
    size_t bytes = state->token.size;
    TD_TRY(td_bytes_reserve(&state->held, bytes + 1));
    char *out = state->held.data + state->held.size;
    size_t decoded = bytes;
    if (bytes > 0 && !td_bytes_from_symbols(state->token.data, bytes, out, &decoded)) {
        memcpy(out, state->token.data, bytes);
        decoded = bytes;
    }
    state->held.size += decoded;
    return pass_valid(s, index, 0);
}

static td_status end_replace(td_token_stream *s, int index) {
    const td_decoder_step *step = &s->tokenizer->decoder.steps[index];
    td_bytes *token = &s->states[index].token;
    size_t done = 0, pattern_bytes = strlen(step->pattern);
    const char *at;
    while (token->size > done && (at = memmem(token->data + done, token->size - done, step->pattern,
                                              pattern_bytes)) != NULL) {
        size_t begin = (size_t)(at - token->data);
        TD_TRY(take_text(s, index + 1, token->data + done, begin - done));
        TD_TRY(take_text(s, index + 1, step->content, strlen(step->content)));
        done = begin + pattern_bytes;
    }
    if (token->size > done)
        TD_TRY(take_text(s, index + 1, token->data + done, token->size - done));
    return end_token(s, index + 1);
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
        return (c | 0x20) - 'a' + 10;
    return -1;
}

// The byte of "<0x41>", -1: another token. Rust's number parser, which the library uses, also takes
// a sign in front of a single digit.
static int byte_of(const td_bytes *token) {
    const char *t = token->data;
    if (token->size != 6 || memcmp(t, "<0x", 3) != 0 || t[5] != '>')
        return -1;
    int high = t[3] == '+' ? 0 : hex_digit(t[3]), low = hex_digit(t[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

// A run of bytes is text when all of it is; otherwise each byte is lost.
static td_status pass_bytes(td_token_stream *s, int index) {
    td_bytes *held = &s->states[index].held;
    size_t bytes = held->size;
    held->size = 0;
    if (bytes == 0)
        return TD_OK;
    if (td_utf8_check(held->data, bytes) == bytes)
        return pass_token(s, index, held->data, bytes);
    for (size_t i = 0; i < bytes; i++)
        TD_TRY(pass_token(s, index, "\xef\xbf\xbd", 3));
    return TD_OK;
}

static td_status end_byte_fallback(td_token_stream *s, int index) {
    step_state *state = &s->states[index];
    int byte = byte_of(&state->token);
    if (byte >= 0) {
        char c = (char)byte;
        return td_bytes_append(&state->held, &c, 1);
    }
    TD_TRY(pass_bytes(s, index));
    return pass_token(s, index, state->token.data ? state->token.data : "", state->token.size);
}

// Up to `start` characters fall away at once; the last `stop` at the end of a token are held, as
// they will fall away should the token end.
static td_status take_strip(td_token_stream *s, int index, const char *text, size_t bytes) {
    const td_decoder_step *step = &s->tokenizer->decoder.steps[index];
    step_state *state = &s->states[index];
    for (size_t i = 0, length; i < bytes; i += length) {
        int is_content = td_utf8_decode(text + i, &length) == step->code;
        if (is_content && !state->is_inside && state->n_start < step->start) {
            state->n_start++;
            continue;
        }
        state->is_inside = 1;
        if (is_content && step->stop > 0) {
            TD_TRY(td_bytes_append(&state->held, text + i, length));
            if (state->held.size <= step->stop * length)
                continue;
            // One more than can fall away: the first of them stays.
            state->held.size -= length;
        } else if (state->held.size > 0) {
            TD_TRY(take_text(s, index + 1, state->held.data, state->held.size));
            state->held.size = 0;
        }
        TD_TRY(take_text(s, index + 1, text + i, length));
    }
    return TD_OK;
}

static td_status end_strip(td_token_stream *s, int index) {
    step_state *state = &s->states[index];
    state->held.size = 0;
    state->n_start = 0;
    state->is_inside = 0;
    return end_token(s, index + 1);
}

static td_status take_metaspace(td_token_stream *s, int index, const char *text, size_t bytes) {
    const td_decoder_step *step = &s->tokenizer->decoder.steps[index];
    int drops = step->drops_first && s->states[index].n_ended == 0;
    size_t done = 0;
    for (size_t i = 0, length; i < bytes; i += length) {
        if (td_utf8_decode(text + i, &length) != step->code)
            continue;
        TD_TRY(take_text(s, index + 1, text + done, i - done));
        done = i + length;
        if (!drops)
            TD_TRY(take_text(s, index + 1, " ", 1));
    }
    return take_text(s, index + 1, text + done, bytes - done);
}

static td_status take_join(td_token_stream *s, int index, const char *text, size_t bytes) {
    step_state *state = &s->states[index];
    if (!state->is_inside && state->n_ended > 0)
        TD_TRY(take_text(s, index + 1, " ", 1));
    state->is_inside = 1;
    return take_text(s, index + 1, text, bytes);
}

static td_status take_text(td_token_stream *s, int index, const char *text, size_t bytes) {
    const td_decoder *decoder = &s->tokenizer->decoder;
    if (index == decoder->n_steps)
        return td_bytes_append(&s->out, text, bytes);
    switch (decoder->steps[index].kind) {
    case TD_DECODER_FUSE:
        return take_text(s, index + 1, text, bytes);
    case TD_DECODER_STRIP:
        return take_strip(s, index, text, bytes);
    case TD_DECODER_METASPACE:
        return take_metaspace(s, index, text, bytes);
    case TD_DECODER_JOIN:
        return take_join(s, index, text, bytes);
    default:
        return td_bytes_append(&s->states[index].token, text, bytes);
    }
}

static td_status run_end(td_token_stream *s, int index) {
    switch (s->tokenizer->decoder.steps[index].kind) {
    case TD_DECODER_BYTE_LEVEL:
        return end_byte_level(s, index);
    case TD_DECODER_REPLACE:
        return end_replace(s, index);
    case TD_DECODER_BYTE_FALLBACK:
        return end_byte_fallback(s, index);
    case TD_DECODER_FUSE:
        return TD_OK;
    case TD_DECODER_STRIP:
        return end_strip(s, index);
    default:
        return end_token(s, index + 1);
    }
}

static td_status end_token(td_token_stream *s, int index) {
    if (index == s->tokenizer->decoder.n_steps)
        return TD_OK;
    // An empty token still counts, and is joined with a space.
    if (s->tokenizer->decoder.steps[index].kind == TD_DECODER_JOIN)
        TD_TRY(take_join(s, index, "", 0));
    TD_TRY(run_end(s, index));
    s->states[index].token.size = 0;
    s->states[index].is_inside = 0;
    s->states[index].n_ended++;
    return TD_OK;
}

// No token follows.
static td_status end_step(td_token_stream *s, int index) {
    switch (s->tokenizer->decoder.steps[index].kind) {
    case TD_DECODER_BYTE_LEVEL:
        TD_TRY(pass_valid(s, index, 1));
        return end_token(s, index + 1);
    case TD_DECODER_BYTE_FALLBACK:
        return pass_bytes(s, index);
    case TD_DECODER_FUSE:
        return end_token(s, index + 1);
    default:
        return TD_OK;
    }
}

td_status td_token_stream_create(const td_tokenizer *tokenizer, int skip_special,
                                 td_token_stream **out) {
    td_token_stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return td_fail(TD_ERR_MEMORY, "no memory to decode tokens");
    stream->tokenizer = tokenizer;
    stream->skip_special = skip_special;
    *out = stream;
    return TD_OK;
}

void td_token_stream_destroy(td_token_stream *stream) {
    if (!stream)
        return;
    for (int i = 0; i < TD_DECODER_MAX_STEPS; i++) {
        td_bytes_fini(&stream->states[i].token);
        td_bytes_fini(&stream->states[i].held);
    }
    td_bytes_fini(&stream->out);
    free(stream);
}

static td_status push(td_token_stream *stream, int32_t id) {
    const td_tokenizer *tokenizer = stream->tokenizer;
    size_t bytes;
    const char *text = td_vocabulary_text(&tokenizer->vocabulary, id, &bytes);
    // A model may have more rows than its tokenizer has tokens; those decode to nothing.
    if (!text || (stream->skip_special && tokenizer->is_special[id]))
        return TD_OK;
    if (tokenizer->shown[id]) {
        text = tokenizer->shown[id];
        bytes = strlen(text);
    }
    TD_TRY(take_text(stream, 0, text, bytes));
    return end_token(stream, 0);
}

static td_status finish(td_token_stream *stream) {
    for (int i = 0; i < stream->tokenizer->decoder.n_steps; i++)
        TD_TRY(end_step(stream, i));
    return TD_OK;
}

static td_status hand_over(td_token_stream *stream, const char **out_text, size_t *out_bytes) {
    size_t bytes = stream->out.size;
    TD_TRY(td_bytes_append(&stream->out, "", 1));
    stream->out.size = 0;
    *out_text = stream->out.data;
    if (out_bytes)
        *out_bytes = bytes;
    return TD_OK;
}

td_status td_token_stream_push(td_token_stream *stream, int32_t id, const char **out_text,
                               size_t *out_bytes) {
    TD_TRY(push(stream, id));
    return hand_over(stream, out_text, out_bytes);
}

td_status td_token_stream_finish(td_token_stream *stream, const char **out_text,
                                 size_t *out_bytes) {
    TD_TRY(finish(stream));
    TD_TRY(hand_over(stream, out_text, out_bytes));
    for (int i = 0; i < TD_DECODER_MAX_STEPS; i++) {
        step_state *state = &stream->states[i];
        *state = (step_state){.token = state->token, .held = state->held};
        state->token.size = 0;
        state->held.size = 0;
    }
    return TD_OK;
}

static td_status decode_all(td_token_stream *stream, const int32_t *ids, size_t count,
                            char **out_text, size_t *out_bytes) {
    for (size_t i = 0; i < count; i++)
        TD_TRY(push(stream, ids[i]));
    TD_TRY(finish(stream));
    size_t bytes = stream->out.size;
    TD_TRY(td_bytes_append(&stream->out, "", 1));
    *out_text = stream->out.data;
    stream->out = (td_bytes){0};
    if (out_bytes)
        *out_bytes = bytes;
    return TD_OK;
}

td_status td_tokenizer_decode(const td_tokenizer *tokenizer, const int32_t *ids, size_t count,
                              int skip_special, char **out_text, size_t *out_bytes) {
    td_token_stream *stream;
    TD_TRY(td_token_stream_create(tokenizer, skip_special, &stream));
    td_status status = decode_all(stream, ids, count, out_text, out_bytes);
    td_token_stream_destroy(stream);
    return status;
}
