// MinHash signatures of texts: the share of places in which two signatures agree estimates how much
// the texts have in common, as the Jaccard similarity of their sets of word 5-grams (Broder, 1997).
//
// Words are what text-dedup and datatrove compare: runs of Unicode's word characters (letters,
// marks, digits, connectors) in lower case, so that case, white space and punctuation make no
// difference. Scripts that are written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar) have
// one word per letter. A byte that begins no well-formed UTF-8 character counts as a letter; NUL
// and other controls separate words. Normal forms are not unified: composed and decomposed accents
// differ. A text of fewer than five words has one 5-gram: all its words. A text without words has
// one as well: its bytes without white space, so that rows of punctuation or emoji are told apart;
// an empty text equals a blank one.
//
// The same text has the same signature on every processor, for ever: seeds are constants. All
// functions are for any thread; none allocates.
#ifndef TANDEM_DATA_MINHASH_H
#define TANDEM_DATA_MINHASH_H

#include <stddef.h>
#include <stdint.h>

enum {
    TD_MINHASH_PERMUTATIONS = 128,
    TD_MINHASH_WORDS = 5, // per shingle
};

// Any bytes, of any length; `text` may be NULL when bytes is 0.
void td_minhash_signature(const char *text, size_t bytes, uint32_t out[TD_MINHASH_PERMUTATIONS]);

// Estimated Jaccard similarity, a multiple of 1/128. Its standard deviation about the true value J
// is sqrt(J (1 - J) / 128): 0.035 at 0.8.
double td_minhash_similarity(const uint32_t a[TD_MINHASH_PERMUTATIONS],
                             const uint32_t b[TD_MINHASH_PERMUTATIONS]);

// Locality-sensitive hashing: two rows are compared when one of their bands, of `places` successive
// places of the signature each, agrees. Rows of similarity s are so with probability
// 1 - (1 - s^places)^bands.
typedef struct td_minhash_bands {
    int bands, places; // bands * places <= 128
} td_minhash_bands;

// The bands that minimise the weighted sum of the area of false positives (below `threshold`) and
// that of false negatives (above it), as datasketch's MinHashLSH chooses them. threshold: 0 to 1.
td_minhash_bands td_minhash_choose_bands(double threshold, double false_positive_weight,
                                         double false_negative_weight);

#endif
