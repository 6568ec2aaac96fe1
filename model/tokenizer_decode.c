// Tokens to text.
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

static td_status append_token(const td_tokenizer *tokenizer, int32_t id, int skip_special,
                              td_bytes *out) {
    // A model may have more rows than its tokenizer has tokens; those decode to nothing.
    if (id < 0 || id >= tokenizer->vocabulary.size)
        return TD_OK;
    if (skip_special && tokenizer->is_special[id])
        return TD_OK;
    uint64_t begin = tokenizer->decoded_begins[id], end = tokenizer->decoded_begins[id + 1];
    return td_bytes_append(out, tokenizer->decoded.data + begin, (size_t)(end - begin));
}

// Copies, with U+FFFD for every longest malformed stretch that begins like a character.
static td_status append_valid(td_bytes *out, const td_bytes *raw) {
    for (size_t i = 0; i < raw->size;) {
        size_t valid = td_utf8_check(raw->data + i, raw->size - i);
        TD_TRY(td_bytes_append(out, raw->data + i, valid));
        i += valid;
        if (i == raw->size)
            break;
        int complete;
        i += td_utf8_prefix(raw->data + i, raw->size - i, &complete);
        TD_TRY(td_bytes_append(out, "\xef\xbf\xbd", 3));
    }
    return td_bytes_append(out, "", 1);
}

td_status td_tokenizer_decode(const td_tokenizer *tokenizer, const int32_t *ids, size_t count,
                              int skip_special, char **out_text, size_t *out_bytes) {
    td_bytes raw = {0}, text = {0};
    td_status status = TD_OK;
    for (size_t i = 0; i < count && status == TD_OK; i++)
        status = append_token(tokenizer, ids[i], skip_special, &raw);
    if (status == TD_OK)
        status = append_valid(&text, &raw);
    td_bytes_fini(&raw);
    if (status != TD_OK) {
        td_bytes_fini(&text);
        return status;
    }
    *out_text = text.data;
    if (out_bytes)
        *out_bytes = text.size - 1;
    return TD_OK;
}
