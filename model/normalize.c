// NFC (Unicode Standard Annex 15) with a map back to the original bytes.
//
// The text is cut into segments that normalize independently: a character that is no mark and no
// trailing jamo, and what follows up to the next such character. Every byte of a segment that
// changed is mapped to the whole segment.
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
    MAX_DECOMPOSITION = 8,
};

static int joins_previous(uint32_t code) {
    if (code < FIRST_COMBINING || td_unicode_is_unknown_to_nfc(code))
        return 0;
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

static size_t segment_end(td_text text, size_t begin) {
    size_t length, end;
    uint32_t first = td_utf8_decode(text.bytes + begin, &length);
    end = begin + length;
    if (td_unicode_is_unknown_to_nfc(first))
        return end;
    while (end < text.length && joins_previous(td_utf8_decode(text.bytes + end, &length)))
        end += length;
    return end;
}

// Appends the canonical decomposition of one character.
static td_status decompose(td_scratch *scratch, uint32_t code, size_t *count) {
    utf8proc_int32_t parts[MAX_DECOMPOSITION] = {(utf8proc_int32_t)code};
    utf8proc_ssize_t n = 1;
    if (!td_unicode_is_unknown_to_nfc(code))
        n = utf8proc_decompose_char((utf8proc_int32_t)code, parts, MAX_DECOMPOSITION,
                                    UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, NULL);
    if (n < 1 || n > MAX_DECOMPOSITION)
        return td_fail(TD_ERR_INTERNAL, "utf8proc cannot decompose U+%04X", (unsigned)code);
    TD_TRY(td_grow(&scratch->marks, &scratch->marks_capacity, *count + (size_t)n,
                   sizeof *scratch->marks));
    for (utf8proc_ssize_t i = 0; i < n; i++, (*count)++)
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

static td_status normalize_segment(td_scratch *scratch, td_text segment, size_t *out_count) {
    size_t count = 0;
    for (size_t i = 0, length; i < segment.length; i += length)
        TD_TRY(decompose(scratch, td_utf8_decode(segment.bytes + i, &length), &count));
    order_marks(scratch->marks, count);
    TD_TRY(td_grow(&scratch->codes, &scratch->codes_capacity, count, sizeof *scratch->codes));
    for (size_t i = 0; i < count; i++)
        scratch->codes[i] = (int32_t)scratch->marks[i];
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

// Room for `bytes` more of normalized text and its map.
static td_status reserve_output(td_scratch *scratch, size_t bytes) {
    size_t needed = scratch->normalized.size + bytes;
    TD_TRY(td_bytes_reserve(&scratch->normalized, bytes));
    TD_TRY(td_grow(&scratch->normalized_begins, &scratch->normalized_begins_capacity, needed,
                   sizeof *scratch->normalized_begins));
    return td_grow(&scratch->normalized_ends, &scratch->normalized_ends_capacity, needed,
                   sizeof *scratch->normalized_ends);
}

static td_status copy_unchanged(td_scratch *scratch, td_text text, size_t begin, size_t end) {
    TD_TRY(reserve_output(scratch, end - begin));
    for (size_t i = begin; i < end; i++) {
        scratch->normalized.data[scratch->normalized.size] = text.bytes[i];
        scratch->normalized_begins[scratch->normalized.size] = text.origin + (uint32_t)i;
        scratch->normalized_ends[scratch->normalized.size] = text.origin + (uint32_t)i + 1;
        scratch->normalized.size++;
    }
    return TD_OK;
}

static td_status write_codes(td_scratch *scratch, size_t count, td_text segment) {
    TD_TRY(reserve_output(scratch, count * 4));
    for (size_t i = 0; i < count; i++) {
        size_t at = scratch->normalized.size;
        size_t bytes = td_utf8_encode((uint32_t)scratch->codes[i], scratch->normalized.data + at);
        for (size_t j = at; j < at + bytes; j++) {
            scratch->normalized_begins[j] = segment.origin;
            scratch->normalized_ends[j] = segment.origin + (uint32_t)segment.length;
        }
        scratch->normalized.size = at + bytes;
    }
    return TD_OK;
}

// Bytes from `begin` on that cannot change: characters below U+0300 that no mark follows.
static size_t skip_plain(td_text text, size_t begin) {
    size_t i = begin;
    while (i < text.length && (unsigned char)text.bytes[i] < 0xcc)
        i++;
    if (i == text.length || i == begin)
        return i;
    // The last plain character may be the base of what follows.
    i--;
    while (i > begin && ((unsigned char)text.bytes[i] & 0xc0) == 0x80)
        i--;
    return i;
}

td_status td_normalize_nfc(td_scratch *scratch, td_text text, td_text *out) {
    size_t copied = 0, count = 0;
    scratch->normalized.size = 0;
    for (size_t begin = skip_plain(text, 0), end; begin < text.length;
         begin = skip_plain(text, end)) {
        end = segment_end(text, begin);
        td_text segment = td_text_slice(text, begin, end);
        TD_TRY(normalize_segment(scratch, segment, &count));
        if (is_unchanged(scratch, count, segment))
            continue;
        TD_TRY(copy_unchanged(scratch, text, copied, begin));
        TD_TRY(write_codes(scratch, count, segment));
        copied = end;
    }
    *out = text;
    if (copied == 0)
        return TD_OK;
    TD_TRY(copy_unchanged(scratch, text, copied, text.length));
    *out = (td_text){.bytes = scratch->normalized.data,
                     .length = scratch->normalized.size,
                     .begins = scratch->normalized_begins,
                     .ends = scratch->normalized_ends};
    return TD_OK;
}
