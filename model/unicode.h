// Properties of characters as the tokenizers library sees them, and UTF-8. Read-only, any thread.
#ifndef TANDEM_MODEL_UNICODE_H
#define TANDEM_MODEL_UNICODE_H

#include <stddef.h>
#include <stdint.h>

// Offset of the first byte that is not part of well-formed UTF-8; `bytes` when all of it is.
size_t td_utf8_check(const char *text, size_t bytes);

// Bytes of the longest prefix of `text` that begins a well-formed character: 1 to 4. *out_complete
// tells whether it is one.
size_t td_utf8_prefix(const char *text, size_t bytes, int *out_complete);

// The character at `text`, which must be well-formed; *out_bytes is its length.
uint32_t td_utf8_decode(const char *text, size_t *out_bytes);
// The character that ends just before `end`.
uint32_t td_utf8_decode_before(const char *text, size_t end, size_t *out_bytes);
size_t td_utf8_encode(uint32_t code, char out[4]);

int td_unicode_is_space(uint32_t code); // White_Space
int td_unicode_is_word(uint32_t code);  // \w of Unicode's regular expressions, annex C
// Characters on which PCRE2's properties may differ from those of the tokenizers library.
int td_unicode_is_recent(uint32_t code);
// Any recent character in well-formed text?
int td_unicode_has_recent(const char *text, size_t bytes);

int td_unicode_is_punctuation(uint32_t code); // general category P, and all of ASCII's
int td_unicode_is_accent(uint32_t code);      // a mark that the library strips
// The lower case of a character: one or two characters.
int td_unicode_lower(uint32_t code, uint32_t out[2]);

// Canonical combining class, as the library's normal forms know it.
int td_unicode_combining_class(uint32_t code);
// 1 when every normal form leaves the character alone whatever stands beside it.
int td_unicode_is_unknown_to_nfc(uint32_t code);

#endif
