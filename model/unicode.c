#include "model/unicode.h"

#include <string.h>
#include <utf8proc.h>

#include "model/unicode_tables.h"

enum {
    MONGOLIAN_VOWEL_SEPARATOR = 0x180e, // white space for PCRE2 only
    FIRST_RECENT_LEAD_BYTE = 0xe0,      // no recent character has two bytes
};

size_t td_utf8_prefix(const char *text, size_t bytes, int *out_complete) {
    const unsigned char *t = (const unsigned char *)text;
    *out_complete = 0;
    if (t[0] < 0x80) {
        *out_complete = 1;
        return 1;
    }
    if (t[0] < 0xc2 || t[0] > 0xf4)
        return 1;
    size_t length = t[0] >= 0xf0 ? 4 : t[0] >= 0xe0 ? 3 : 2;
    unsigned char low = t[0] == 0xe0 ? 0xa0 : t[0] == 0xf0 ? 0x90 : 0x80;
    unsigned char high = t[0] == 0xed ? 0x9f : t[0] == 0xf4 ? 0x8f : 0xbf;
    size_t done = 1;
    for (; done < length && done < bytes; done++) {
        if (t[done] < low || t[done] > high)
            return done;
        low = 0x80;
        high = 0xbf;
    }
    *out_complete = done == length;
    return done;
}

// Length of the leading ASCII, eight bytes at a time.
static size_t ascii_run(const char *text, size_t bytes) {
    size_t i = 0;
    for (; bytes - i >= 8; i += 8) {
        uint64_t word;
        memcpy(&word, text + i, 8);
        if (word & 0x8080808080808080u)
            break;
    }
    while (i < bytes && !(text[i] & 0x80))
        i++;
    return i;
}

size_t td_utf8_check(const char *text, size_t bytes) {
    size_t i = ascii_run(text, bytes);
    while (i < bytes) {
        int complete;
        size_t length = td_utf8_prefix(text + i, bytes - i, &complete);
        if (!complete)
            return i;
        i += length;
        if (i < bytes && !(text[i] & 0x80))
            i += ascii_run(text + i, bytes - i);
    }
    return i;
}

uint32_t td_utf8_decode(const char *text, size_t *out_bytes) {
    const unsigned char *t = (const unsigned char *)text;
    if (t[0] < 0x80) {
        *out_bytes = 1;
        return t[0];
    }
    if (t[0] < 0xe0) {
        *out_bytes = 2;
        return (uint32_t)(t[0] & 0x1f) << 6 | (t[1] & 0x3f);
    }
    if (t[0] < 0xf0) {
        *out_bytes = 3;
        return (uint32_t)(t[0] & 0x0f) << 12 | (uint32_t)(t[1] & 0x3f) << 6 | (t[2] & 0x3f);
    }
    *out_bytes = 4;
    return (uint32_t)(t[0] & 0x07) << 18 | (uint32_t)(t[1] & 0x3f) << 12 |
           (uint32_t)(t[2] & 0x3f) << 6 | (t[3] & 0x3f);
}

uint32_t td_utf8_decode_before(const char *text, size_t end, size_t *out_bytes) {
    size_t begin = end - 1;
    while (begin > 0 && ((unsigned char)text[begin] & 0xc0) == 0x80)
        begin--;
    return td_utf8_decode(text + begin, out_bytes);
}

size_t td_utf8_encode(uint32_t code, char out[4]) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3f));
        out[2] = (char)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code >> 6 & 0x3f));
    out[3] = (char)(0x80 | (code & 0x3f));
    return 4;
}

int td_unicode_is_space(uint32_t code) {
    if (code < 0x80)
        return code == ' ' || (code >= '\t' && code <= '\r');
    return code == 0x85 || code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) ||
           code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

static const td_recent_range *find_recent(uint32_t code) {
    size_t low = 0, high = td_n_recent_ranges;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > td_recent_ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == td_n_recent_ranges || code < td_recent_ranges[low].first)
        return NULL;
    return &td_recent_ranges[low];
}

static int is_word_category(utf8proc_category_t category) {
    switch (category) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return 1;
    default:
        return 0;
    }
}

// Joiners, and symbols with the property Other_Alphabetic: circled and squared Latin letters.
static int is_word_exception(uint32_t code) {
    return code == 0x200c || code == 0x200d || (code >= 0x24b6 && code <= 0x24e9) ||
           (code >= 0x1f130 && code <= 0x1f149) || (code >= 0x1f150 && code <= 0x1f169) ||
           (code >= 0x1f170 && code <= 0x1f189);
}

int td_unicode_is_word(uint32_t code) {
    const td_recent_range *recent = find_recent(code);
    if (recent)
        return recent->category[0] == 'L' || recent->category[0] == 'M' ||
               strcmp(recent->category, "Nd") == 0;
    return is_word_category(utf8proc_category((utf8proc_int32_t)code)) || is_word_exception(code);
}

int td_unicode_is_recent(uint32_t code) {
    return code == MONGOLIAN_VOWEL_SEPARATOR || find_recent(code) != NULL;
}

int td_unicode_has_recent(const char *text, size_t bytes) {
    for (size_t i = 0, length; i < bytes; i += length) {
        length = 1;
        if ((unsigned char)text[i] < FIRST_RECENT_LEAD_BYTE)
            continue;
        if (td_unicode_is_recent(td_utf8_decode(text + i, &length)))
            return 1;
    }
    return 0;
}

static int is_in(const td_code_range *ranges, size_t count, uint32_t code) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && code >= ranges[low].first;
}

int td_unicode_is_unknown_to_nfc(uint32_t code) {
    return is_in(td_nfc_unknown_ranges, td_n_nfc_unknown_ranges, code) || find_recent(code) != NULL;
}

int td_unicode_combining_class(uint32_t code) {
    if (code < 0x300 || td_unicode_is_unknown_to_nfc(code))
        return 0;
    return utf8proc_get_property((utf8proc_int32_t)code)->combining_class;
}

int td_unicode_is_punctuation(uint32_t code) {
    if (code < 0x80)
        return code > ' ' && code < 0x7f && !(code >= '0' && code <= '9') &&
               !((code | 0x20) >= 'a' && (code | 0x20) <= 'z');
    if (find_recent(code))
        return 0;
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    int is_known = category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
    return is_known != is_in(td_odd_punctuation_ranges, td_n_odd_punctuation_ranges, code);
}

int td_unicode_is_accent(uint32_t code) {
    if (code < 0x300 || find_recent(code))
        return 0;
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    int is_mark = category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
    return is_mark != is_in(td_odd_mark_ranges, td_n_odd_mark_ranges, code);
}

int td_unicode_lower(uint32_t code, uint32_t out[2]) {
    if (code == 0x130) { // the dot stays, as a mark
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    for (size_t i = 0; code >= td_lower_ranges[0].first && i < td_n_lower_ranges; i++)
        if (code >= td_lower_ranges[i].first && code <= td_lower_ranges[i].last) {
            out[0] = (uint32_t)((int32_t)code + td_lower_ranges[i].offset);
            return 1;
        }
    out[0] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
    return 1;
}
