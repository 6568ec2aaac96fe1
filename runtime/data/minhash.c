#include "runtime/data/minhash_internal.h"

#include <string.h>

#include "model/unicode.h"

enum {
    BATCH = 256,               // shingles that are permuted at once
    NOT_A_CHARACTER = 0x110000 // and above: bytes that begin no character
};

#define HASH_START 0xcbf29ce484222325u // FNV-1a over characters instead of bytes
#define HASH_PRIME 0x100000001b3u
#define ROLL       0x9e3779b97f4a7c15u // of the polynomial over five words; odd

typedef struct word_stream {
    uint32_t *signature;
    td_minhash_update *update;
    uint64_t shingles[BATCH];
    size_t n_shingles;
    uint64_t words[TD_MINHASH_WORDS]; // hashes of the last five, a ring
    uint64_t rolled;                  // sum of words[i] ROLL^(4 - i), oldest first, mod 2^64
    uint64_t n_words;
} word_stream;

// MurmurHash3's finalizer (Appleby): every bit of the result depends on every bit of x.
static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 33) * 0xff51afd7ed558ccdu;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53u;
    return x ^ x >> 33;
}

static void flush(word_stream *stream) {
    stream->update(stream->signature, stream->shingles, stream->n_shingles);
    stream->n_shingles = 0;
}

static inline void add_shingle(word_stream *stream, uint64_t value) {
    stream->shingles[stream->n_shingles++] = mix(value);
    if (stream->n_shingles == BATCH)
        flush(stream);
}

// What leaves the five words is taken from the polynomial again: a word costs the same however many
// a shingle has.
static inline void add_word(word_stream *stream, uint64_t hash) {
    const uint64_t roll5 = ROLL * ROLL * ROLL * ROLL * ROLL;
    uint64_t *oldest = &stream->words[stream->n_words++ % TD_MINHASH_WORDS];
    hash = mix(hash);
    stream->rolled = stream->rolled * ROLL + hash - *oldest * roll5;
    *oldest = hash;
    if (stream->n_words >= TD_MINHASH_WORDS)
        add_shingle(stream, stream->rolled);
}

static inline uint64_t hash_character(uint64_t hash, uint32_t code) {
    return (hash ^ code) * HASH_PRIME;
}

// Scripts without spaces between words.
static int is_word_of_its_own(uint32_t code) {
    if (code < 0x0e00)
        return 0;
    return code <= 0x0eff ||                       // Thai, Lao
           (code >= 0x1000 && code <= 0x109f) ||   // Myanmar
           (code >= 0x1780 && code <= 0x17ff) ||   // Khmer
           (code >= 0x2e80 && code <= 0x30ff) ||   // radicals, kana
           (code >= 0x31f0 && code <= 0x31ff) ||   // kana for Ainu
           (code >= 0x3400 && code <= 0x9fff) ||   // Han
           (code >= 0xf900 && code <= 0xfaff) ||   // Han for compatibility
           (code >= 0xff66 && code <= 0xff9f) ||   // half-width kana
           (code >= 0x1aff0 && code <= 0x1b16f) || // old kana
           (code >= 0x20000 && code <= 0x3ffff);   // more Han
}

// The character at text[0], not ASCII; *out_code is NOT_A_CHARACTER and above for a stray byte.
static size_t read_character(const char *text, size_t bytes, uint32_t *out_code) {
    int is_complete;
    size_t length = td_utf8_prefix(text, bytes, &is_complete);
    if (!is_complete) {
        *out_code = NOT_A_CHARACTER + (unsigned char)text[0];
        return 1;
    }
    *out_code = td_utf8_decode(text, &length);
    return length;
}

// For the common case: the lower case of an ASCII letter, digit or underscore, else 0.
static inline uint32_t ascii_word(unsigned char c) {
    static const unsigned char table[128] = {
        ['0'] = '0', ['1'] = '1', ['2'] = '2', ['3'] = '3', ['4'] = '4', ['5'] = '5', ['6'] = '6',
        ['7'] = '7', ['8'] = '8', ['9'] = '9', ['_'] = '_', ['A'] = 'a', ['B'] = 'b', ['C'] = 'c',
        ['D'] = 'd', ['E'] = 'e', ['F'] = 'f', ['G'] = 'g', ['H'] = 'h', ['I'] = 'i', ['J'] = 'j',
        ['K'] = 'k', ['L'] = 'l', ['M'] = 'm', ['N'] = 'n', ['O'] = 'o', ['P'] = 'p', ['Q'] = 'q',
        ['R'] = 'r', ['S'] = 's', ['T'] = 't', ['U'] = 'u', ['V'] = 'v', ['W'] = 'w', ['X'] = 'x',
        ['Y'] = 'y', ['Z'] = 'z', ['a'] = 'a', ['b'] = 'b', ['c'] = 'c', ['d'] = 'd', ['e'] = 'e',
        ['f'] = 'f', ['g'] = 'g', ['h'] = 'h', ['i'] = 'i', ['j'] = 'j', ['k'] = 'k', ['l'] = 'l',
        ['m'] = 'm', ['n'] = 'n', ['o'] = 'o', ['p'] = 'p', ['q'] = 'q', ['r'] = 'r', ['s'] = 's',
        ['t'] = 't', ['u'] = 'u', ['v'] = 'v', ['w'] = 'w', ['x'] = 'x', ['y'] = 'y', ['z'] = 'z',
    };
    return table[c];
}

// *hash is of the word in the making; HASH_START: no character of it yet.
static inline void end_word(word_stream *stream, uint64_t *hash) {
    if (*hash != HASH_START)
        add_word(stream, *hash);
    *hash = HASH_START;
}

static void add_character(word_stream *stream, uint64_t *hash, uint32_t code) {
    uint32_t lower[2];
    if (code >= NOT_A_CHARACTER) {
        *hash = hash_character(*hash, code);
        return;
    }
    if (!td_unicode_is_word(code)) {
        end_word(stream, hash);
        return;
    }
    if (is_word_of_its_own(code)) {
        end_word(stream, hash);
        add_word(stream, hash_character(HASH_START, code));
        return;
    }
    int count = td_unicode_lower(code, lower);
    for (int i = 0; i < count; i++)
        *hash = hash_character(*hash, lower[i]);
}

static void add_text(word_stream *stream, const char *text, size_t bytes) {
    uint64_t hash = HASH_START;
    for (size_t i = 0; i < bytes;) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x80) {
            uint32_t letter = ascii_word(c);
            if (letter)
                hash = hash_character(hash, letter);
            else
                end_word(stream, &hash);
            i++;
        } else {
            uint32_t code;
            i += read_character(text + i, bytes - i, &code);
            add_character(stream, &hash, code);
        }
    }
    end_word(stream, &hash);
}

// Of a text without words: its characters other than white space.
static uint64_t hash_symbols(const char *text, size_t bytes) {
    uint64_t hash = HASH_START;
    for (size_t i = 0; i < bytes;) {
        uint32_t code;
        i += read_character(text + i, bytes - i, &code);
        if (!td_unicode_is_space(code))
            hash = hash_character(hash, code);
    }
    return hash;
}

void td_minhash_signature(const char *text, size_t bytes, uint32_t out[TD_MINHASH_PERMUTATIONS]) {
    word_stream stream = {.signature = out, .update = td_minhash_update_best()};
    memset(out, 0xff, TD_MINHASH_PERMUTATIONS * sizeof *out);
    add_text(&stream, text, bytes);
    // The number of words tells "a" from "a a", whatever the polynomial.
    if (stream.n_words == 0)
        add_shingle(&stream, hash_symbols(text, bytes));
    else if (stream.n_words < TD_MINHASH_WORDS)
        add_shingle(&stream, mix(stream.rolled) + stream.n_words);
    flush(&stream);
}

double td_minhash_similarity(const uint32_t a[TD_MINHASH_PERMUTATIONS],
                             const uint32_t b[TD_MINHASH_PERMUTATIONS]) {
    int equal = 0;
    for (int i = 0; i < TD_MINHASH_PERMUTATIONS; i++)
        equal += a[i] == b[i];
    return (double)equal / TD_MINHASH_PERMUTATIONS;
}
