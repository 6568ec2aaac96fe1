// The normal forms (Unicode Standard Annex 15) with a map back to the original bytes.
//
// The text is cut into segments that normalize independently: a character whose decomposition
// begins with no mark and no trailing jamo, and what follows up to the next such character. Every
// byte of a segment that changed is mapped to the whole segment.
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

enum {
    FIRST_COMBINING =
        0x300, // below, every character is its own normal form and combines with nothing before
    CODE_BITS = 21,
    INDEX_BITS = 32,
    MAX_DECOMPOSITION = 32,
};

typedef struct normalization {
    td_scratch *scratch;
    td_mapped *out;
    int is_compatible, composes;
} normalization;

static td_status decompose_char(const normalization *n, uint32_t code,
                                int32_t parts[MAX_DECOMPOSITION], size_t *out_count) {
    utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    *out_count = 1;
    parts[0] = (int32_t)code;
    if (td_unicode_is_unknown_to_nfc(code))
        return TD_OK;
    if (n->is_compatible)
        options |= UTF8PROC_COMPAT;
    utf8proc_ssize_t count =
        utf8proc_decompose_char((int32_t)code, parts, MAX_DECOMPOSITION, options, NULL);
    if (count < 1 || count > MAX_DECOMPOSITION)
        return td_fail(TD_ERR_INTERNAL, "utf8proc cannot decompose U+%04X", (unsigned)code);
    *out_count = (size_t)count;
    return TD_OK;
}

static int joins_previous(const normalization *n, uint32_t code) {
    if (code < FIRST_COMBINING || td_unicode_is_unknown_to_nfc(code))
        return 0;
    if (n->is_compatible) {
        int32_t parts[MAX_DECOMPOSITION];
        size_t count;
        if (decompose_char(n, code, parts, &count) == TD_OK)
            code = (uint32_t)parts[0];
    }
    if (code >= 0x1160 && code <= 0x11ff)
        return 1;
    switch (utf8proc_category((utf8proc_int32_t)code)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
        return 1;
    default:
        return 0;
    }
}

static size_t segment_end(const normalization *n, td_text text, size_t begin) {
    size_t length, end;
    uint32_t first = td_utf8_decode(text.bytes + begin, &length);
    end = begin + length;
    if (td_unicode_is_unknown_to_nfc(first))
        return end;
    while (end < text.length && joins_previous(n, td_utf8_decode(text.bytes + end, &length)))
        end += length;
    return end;
}

// Appends the decomposition of one character.
static td_status decompose(const normalization *n, uint32_t code, size_t *count) {
    int32_t parts[MAX_DECOMPOSITION];
    size_t n_parts;
    td_scratch *scratch = n->scratch;
    TD_TRY(decompose_char(n, code, parts, &n_parts));
    TD_TRY(td_grow(&scratch->marks, &scratch->marks_capacity, *count + n_parts,
                   sizeof *scratch->marks));
    for (size_t i = 0; i < n_parts; i++, (*count)++)
        scratch->marks[*count] = (uint64_t)(uint32_t)parts[i];
    return TD_OK;
}

static int compare_marks(const void *a, const void *b) {
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

// Canonical order: runs of marks sorted by combining class, stable. Class and position go in front
// of the code, so that a plain sort is a stable one, and n log n also for a text of nothing but
// marks.
static void order_marks(uint64_t *marks, size_t count) {
    for (size_t begin = 0, end; begin < count; begin = end) {
        end = begin + 1;
        if (td_unicode_combining_class((uint32_t)marks[begin]) == 0)
            continue;
        while (end < count && td_unicode_combining_class((uint32_t)marks[end]) != 0)
            end++;
        for (size_t i = begin; i < end; i++) {
            uint64_t class = (uint64_t)td_unicode_combining_class((uint32_t)marks[i]);
            marks[i] |= class << (INDEX_BITS + CODE_BITS) | (uint64_t)(i - begin) << CODE_BITS;
        }
        qsort(marks + begin, end - begin, sizeof *marks, compare_marks);
        for (size_t i = begin; i < end; i++)
            marks[i] &= ((uint64_t)1 << CODE_BITS) - 1;
    }
}

static td_status normalize_segment(const normalization *n, td_text segment, size_t *out_count) {
    td_scratch *scratch = n->scratch;
    size_t count = 0;
    for (size_t i = 0, length; i < segment.length; i += length)
        TD_TRY(decompose(n, td_utf8_decode(segment.bytes + i, &length), &count));
    order_marks(scratch->marks, count);
    TD_TRY(td_grow(&scratch->codes, &scratch->codes_capacity, count, sizeof *scratch->codes));
    for (size_t i = 0; i < count; i++)
        scratch->codes[i] = (int32_t)scratch->marks[i];
    *out_count = count;
    if (!n->composes)
        return TD_OK;
    utf8proc_ssize_t composed = utf8proc_normalize_utf32(scratch->codes, (utf8proc_ssize_t)count,
                                                         UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (composed < 0)
        return td_fail(TD_ERR_INTERNAL, "utf8proc cannot compose: %s", utf8proc_errmsg(composed));
    *out_count = (size_t)composed;
    return TD_OK;
}

static int is_unchanged(const td_scratch *scratch, size_t count, td_text segment) {
    size_t i = 0, done = 0, length;
    for (; i < count && done < segment.length; i++, done += length)
        if (td_utf8_decode(segment.bytes + done, &length) != (uint32_t)scratch->codes[i])
            return 0;
    return i == count && done == segment.length;
}

static td_status write_codes(const normalization *n, size_t count, td_text segment) {
    uint32_t begin = td_text_begin(segment, 0), end = td_text_end(segment, segment.length);
    for (size_t i = 0; i < count; i++) {
        char character[4];
        size_t bytes = td_utf8_encode((uint32_t)n->scratch->codes[i], character);
        TD_TRY(td_mapped_append(n->out, character, bytes, begin, end));
    }
    return TD_OK;
}

// Below, a character in front of another cannot change. The three other forms take apart what NFC
// leaves alone from U+00A0 on.
static unsigned char first_changing_byte(td_unicode_form form) {
    return form == TD_NFC ? 0xcc : 0xc2;
}

// Bytes from `begin` on that cannot change: plain characters that no mark follows.
static size_t skip_plain(unsigned char limit, td_text text, size_t begin) {
    size_t i = begin;
    while (i < text.length && (unsigned char)text.bytes[i] < limit)
        i++;
    if (i == text.length || i == begin)
        return i;
    // The last plain character may be the base of what follows.
    i--;
    while (i > begin && ((unsigned char)text.bytes[i] & 0xc0) == 0x80)
        i--;
    return i;
}

td_status td_normalize_form(td_unicode_form form, td_scratch *scratch, td_text text,
                            td_mapped *buffer, td_text *out) {
    normalization n = {.scratch = scratch,
                       .out = buffer,
                       .is_compatible = form == TD_NFKC || form == TD_NFKD,
                       .composes = form == TD_NFC || form == TD_NFKC};
    unsigned char limit = first_changing_byte(form);
    size_t copied = 0, count = 0;
    buffer->text.size = 0;
    for (size_t begin = skip_plain(limit, text, 0), end; begin < text.length;
         begin = skip_plain(limit, text, end)) {
        end = segment_end(&n, text, begin);
        td_text segment = td_text_slice(text, begin, end);
        TD_TRY(normalize_segment(&n, segment, &count));
        if (is_unchanged(scratch, count, segment))
            continue;
        TD_TRY(td_mapped_copy(buffer, text, copied, begin));
        TD_TRY(write_codes(&n, count, segment));
        copied = end;
    }
    *out = text;
    if (copied == 0)
        return TD_OK;
    TD_TRY(td_mapped_copy(buffer, text, copied, text.length));
    *out = td_mapped_text(buffer);
    return TD_OK;
}
