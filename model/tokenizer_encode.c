// Text to tokens.
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

typedef struct encoder {
    const td_tokenizer *tokenizer;
    td_scratch *scratch;
    td_tokens *out;
} encoder;

typedef td_status (*text_step)(encoder *e, td_text text);

static td_status encode_word(void *context, td_text word) {
    encoder *e = context;
    return td_bpe_encode_word(&e->tokenizer->bpe, e->scratch, word, e->out);
}

static td_status encode_plain(encoder *e, td_text text) {
    return td_pretokenize(&e->tokenizer->pretokenizer, e->scratch, text, encode_word, e);
}

// Cuts out the added tokens of `set` and hands the text between them to `step`.
static td_status cut_added(encoder *e, const td_added_set *set, td_text text, text_step step) {
    size_t done = 0, position = 0;
    td_added_match match;
    while (td_added_next(set, text.bytes, text.length, &position, done, &match)) {
        if (done < match.begin)
            TD_TRY(step(e, td_text_slice(text, done, match.begin)));
        uint32_t end = match.end > 0 ? td_text_end(text, match.end) : td_text_begin(text, 0);
        uint32_t begin = match.begin < match.end ? td_text_begin(text, match.begin) : end;
        TD_TRY(td_tokens_push(e->out, match.id, begin, end));
        done = match.end;
    }
    return done < text.length ? step(e, td_text_slice(text, done, text.length)) : TD_OK;
}

static td_status encode_piece(encoder *e, td_text text) {
    TD_TRY(td_normalize(&e->tokenizer->normalizer, e->scratch, text, &text));
    return cut_added(e, &e->tokenizer->added_normalized, text, encode_plain);
}

static td_status push_specials(td_tokens *out, const int32_t *ids, int count, uint32_t at) {
    for (int i = 0; i < count; i++)
        TD_TRY(td_tokens_push(out, ids[i], at, at));
    return TD_OK;
}

static td_status encode_text(encoder *e, td_text text, int add_special) {
    const td_tokenizer *tokenizer = e->tokenizer;
    if (add_special)
        TD_TRY(push_specials(e->out, tokenizer->prefix, tokenizer->n_prefix, 0));
    TD_TRY(cut_added(e, &tokenizer->added, text, encode_piece));
    if (add_special)
        TD_TRY(
            push_specials(e->out, tokenizer->suffix, tokenizer->n_suffix, (uint32_t)text.length));
    return TD_OK;
}

td_status td_tokenizer_encode(const td_tokenizer *tokenizer, const char *text, size_t bytes,
                              int add_special, td_tokens *out) {
    if (bytes > INT32_MAX / 2)
        return td_fail(TD_ERR_DATA, "a text of %zu bytes is too long to tokenize", bytes);
    size_t valid = td_utf8_check(text, bytes);
    if (valid < bytes)
        return td_fail(TD_ERR_DATA, "invalid UTF-8 at byte %zu of the text", valid);
    encoder e = {.tokenizer = tokenizer, .out = out};
    TD_TRY(td_scratch_acquire(tokenizer, &e.scratch));
    size_t before = out->count;
    td_status status = encode_text(&e, (td_text){.bytes = text, .length = bytes}, add_special);
    td_scratch_release(tokenizer, e.scratch);
    if (status != TD_OK)
        out->count = before;
    return status;
}
