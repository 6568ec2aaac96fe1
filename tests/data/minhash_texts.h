// Texts with a known Jaccard similarity, for the tests of MinHash and of duplicates.
#ifndef TANDEM_TESTS_DATA_MINHASH_TEXTS_H
#define TANDEM_TESTS_DATA_MINHASH_TEXTS_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "test.h"

enum { TEXT_WORDS_MAX = 3000 };

// Words as numbers; written as "w17 w4 ...".
typedef struct text_words {
    int count;
    uint32_t words[TEXT_WORDS_MAX];
} text_words;

static uint64_t text_random_state = 1;

static inline uint32_t text_random(void) { // xorshift64*
    uint64_t x = text_random_state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    text_random_state = x;
    return (uint32_t)(x * 0x2545f4914f6cdd1du >> 32);
}

static inline void text_fill(text_words *text, int count, uint32_t vocabulary) {
    text->count = count;
    for (int i = 0; i < count; i++)
        text->words[i] = text_random() % vocabulary;
}

// Bytes without the terminator. out: at least 12 bytes per word.
static inline size_t text_write(const text_words *text, char *out) {
    size_t bytes = 0;
    out[0] = '\0';
    for (int i = 0; i < text->count; i++)
        bytes += (size_t)sprintf(out + bytes, "%sw%x", i ? " " : "", text->words[i]);
    return bytes;
}

typedef struct text_shingle {
    uint32_t words[5];
} text_shingle;

static inline int text_compare_shingles(const void *a, const void *b) {
    return memcmp(a, b, sizeof(text_shingle));
}

// The set of 5-grams, sorted. Texts of five words or more.
static inline int text_shingles(const text_words *text, text_shingle *out) {
    int count = 0;
    for (int i = 0; i + 5 <= text->count; i++)
        memcpy(out[i].words, text->words + i, sizeof out[i].words);
    qsort(out, (size_t)text->count - 4, sizeof *out, text_compare_shingles);
    for (int i = 0; i + 5 <= text->count; i++)
        if (count == 0 || text_compare_shingles(&out[count - 1], &out[i]) != 0)
            out[count++] = out[i];
    return count;
}

static inline double text_jaccard(const text_words *a, const text_words *b) {
    static text_shingle left[TEXT_WORDS_MAX], right[TEXT_WORDS_MAX];
    int n_left = text_shingles(a, left), n_right = text_shingles(b, right), common = 0;
    for (int i = 0, j = 0; i < n_left && j < n_right;) {
        int order = text_compare_shingles(&left[i], &right[j]);
        common += order == 0;
        i += order <= 0;
        j += order >= 0;
    }
    return (double)common / (n_left + n_right - common);
}

// Replaces words, spread evenly, until about `jaccard` is left: each changes five 5-grams.
static inline void text_edit(text_words *text, double jaccard) {
    int shingles = text->count - 4;
    int edits = (int)(shingles * (1 - jaccard) / (1 + jaccard) / 5 + 0.5);
    for (int i = 0; i < edits; i++)
        text->words[4 + (int)((int64_t)(shingles - 4) * i / edits)] = 0x80000000u | text_random();
}

#endif
