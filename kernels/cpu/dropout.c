// Dropout masks by Philox, 16 or 8 counters at once. One counter gives the words of four
// neighbouring elements. The same bits as td_dropout_keep() at every vector width.
#include <immintrin.h>

#include "kernels/cpu/cpu_internal.h"
#include "kernels/cpu/weights_internal.h"

enum { MASK_BITS = 64, PHILOX_ROUNDS = 10 };

static const uint32_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
static const uint32_t weyl0 = 0x9E3779B9u, weyl1 = 0xBB67AE85u;

static uint64_t mask_scalar(const td_dropout *dropout, uint64_t first) {
    uint64_t mask = 0;
    for (int block = 0; block < MASK_BITS / 4; block++) {
        td_philox_words words = td_dropout_words(dropout, first / 4 + (uint64_t)block);
        for (int i = 0; i < 4; i++)
            mask |= (uint64_t)(words.word[i] >= dropout->threshold) << (4 * block + i);
    }
    return mask;
}

// The keys of all rounds, ready to be broadcast from memory.
typedef struct round_keys {
    uint64_t key0[PHILOX_ROUNDS], key1[PHILOX_ROUNDS];
} round_keys;

static round_keys round_keys_of(uint64_t key) {
    round_keys keys;
    uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        keys.key0[round] = key0;
        keys.key1[round] = key1;
        key0 += weyl0;
        key1 += weyl1;
    }
    return keys;
}

// Each 64-bit lane carries one counter's word in its low half: a 32 x 32 product reads just that
// half, and leaves the high word above. What piles up in the high halves is never read.
typedef struct words_avx2 {
    __m256i word[4];
} words_avx2;

TD_TARGET_AVX2 static inline void philox_round_avx2(words_avx2 *c, uint64_t key0, uint64_t key1) {
    __m256i product0 = _mm256_mul_epu32(c->word[0], _mm256_set1_epi64x(multiplier0));
    __m256i product1 = _mm256_mul_epu32(c->word[2], _mm256_set1_epi64x(multiplier1));
    __m256i mixed0 = _mm256_xor_si256(c->word[1], _mm256_set1_epi64x((int64_t)key0));
    __m256i mixed1 = _mm256_xor_si256(c->word[3], _mm256_set1_epi64x((int64_t)key1));
    c->word[0] = _mm256_xor_si256(_mm256_srli_epi64(product1, 32), mixed0);
    c->word[1] = product1;
    c->word[2] = _mm256_xor_si256(_mm256_srli_epi64(product0, 32), mixed1);
    c->word[3] = product0;
}

TD_TARGET_AVX2 static inline words_avx2 counter_avx2(const td_dropout *dropout, __m256i block) {
    return (words_avx2){{block, _mm256_set1_epi64x(dropout->module),
                         _mm256_set1_epi64x(dropout->micro_batch),
                         _mm256_set1_epi64x(dropout->step)}};
}

// Bits of 32 elements: byte i of lane k of the comparison tells of element 4 k + i.
TD_TARGET_AVX2 static inline uint32_t mask32_avx2(const td_dropout *dropout, const round_keys *keys,
                                                  uint32_t block) {
    __m256i even = _mm256_add_epi32(_mm256_set1_epi64x(block), _mm256_setr_epi64x(0, 2, 4, 6));
    words_avx2 a = counter_avx2(dropout, even);
    words_avx2 b = counter_avx2(dropout, _mm256_add_epi32(even, _mm256_set1_epi64x(1)));
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        philox_round_avx2(&a, keys->key0[round], keys->key1[round]);
        philox_round_avx2(&b, keys->key0[round], keys->key1[round]);
    }
    __m256i threshold = _mm256_set1_epi32((int)dropout->threshold);
    __m256i kept = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        __m256i word = _mm256_blend_epi32(a.word[i], _mm256_slli_epi64(b.word[i], 32), 0xAA);
        __m256i keep = _mm256_cmpeq_epi32(_mm256_max_epu32(word, threshold), word);
        __m256i byte = _mm256_set1_epi32((int)(0x80u << (8 * i)));
        kept = _mm256_or_si256(kept, _mm256_and_si256(keep, byte));
    }
    return (uint32_t)_mm256_movemask_epi8(kept);
}

TD_TARGET_AVX2 static void mask_avx2(const td_dropout *dropout, const round_keys *keys,
                                     uint64_t first, int64_t words, uint64_t *mask) {
    for (int64_t i = 0; i < words; i++, first += MASK_BITS) {
        uint32_t block = (uint32_t)(first / 4);
        uint64_t low = mask32_avx2(dropout, keys, block);
        mask[i] = low | (uint64_t)mask32_avx2(dropout, keys, block + 8) << 32;
    }
}

typedef struct words_avx512 {
    __m512i word[4];
} words_avx512;

TD_TARGET_AVX512 static inline void philox_round_avx512(words_avx512 *c, uint64_t key0,
                                                        uint64_t key1) {
    enum { XOR3 = 0x96 };
    __m512i product0 = _mm512_mul_epu32(c->word[0], _mm512_set1_epi64(multiplier0));
    __m512i product1 = _mm512_mul_epu32(c->word[2], _mm512_set1_epi64(multiplier1));
    c->word[0] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product1, 32), c->word[1],
                                           _mm512_set1_epi64((int64_t)key0), XOR3);
    c->word[1] = product1;
    c->word[2] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product0, 32), c->word[3],
                                           _mm512_set1_epi64((int64_t)key1), XOR3);
    c->word[3] = product0;
}

TD_TARGET_AVX512 static inline words_avx512 counter_avx512(const td_dropout *dropout,
                                                           __m512i block) {
    return (words_avx512){{block, _mm512_set1_epi64(dropout->module),
                           _mm512_set1_epi64(dropout->micro_batch),
                           _mm512_set1_epi64(dropout->step)}};
}

TD_TARGET_AVX512 static inline uint64_t compare_avx512(const words_avx512 *a, const words_avx512 *b,
                                                       uint32_t threshold) {
    __m512i kept = _mm512_setzero_si512();
    for (int i = 0; i < 4; i++) {
        __m512i word =
            _mm512_mask_blend_epi32(0xAAAA, a->word[i], _mm512_slli_epi64(b->word[i], 32));
        __mmask16 keep = _mm512_cmpge_epu32_mask(word, _mm512_set1_epi32((int)threshold));
        kept = _mm512_mask_or_epi32(kept, keep, kept, _mm512_set1_epi32((int)(0x80u << (8 * i))));
    }
    return _mm512_movepi8_mask(kept);
}

// Four chains of rounds at once hide the latency of the products.
TD_TARGET_AVX512 static inline void mask128_avx512(const td_dropout *dropout,
                                                   const round_keys *keys, uint32_t block,
                                                   uint64_t mask[2]) {
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    words_avx512 c[4];
    for (int i = 0; i < 4; i++) {
        uint32_t first = block + 16u * (uint32_t)(i / 2) + (uint32_t)(i % 2);
        c[i] = counter_avx512(dropout, _mm512_add_epi32(_mm512_set1_epi64(first), even));
    }
    for (int round = 0; round < PHILOX_ROUNDS; round++)
        for (int i = 0; i < 4; i++)
            philox_round_avx512(&c[i], keys->key0[round], keys->key1[round]);
    mask[0] = compare_avx512(&c[0], &c[1], dropout->threshold);
    mask[1] = compare_avx512(&c[2], &c[3], dropout->threshold);
}

TD_TARGET_AVX512 static void mask_avx512(const td_dropout *dropout, const round_keys *keys,
                                         uint64_t first, int64_t words, uint64_t *mask) {
    int64_t i = 0;
    uint64_t last[2];
    for (; i + 2 <= words; i += 2)
        mask128_avx512(dropout, keys, (uint32_t)(first / 4) + 16u * (uint32_t)i, mask + i);
    if (i == words)
        return;
    mask128_avx512(dropout, keys, (uint32_t)(first / 4) + 16u * (uint32_t)i, last);
    mask[i] = last[0];
}

void td_cpu_dropout_mask(const td_dropout *dropout, uint64_t first, int64_t n, uint64_t *mask) {
    int64_t words = (n + MASK_BITS - 1) / MASK_BITS;
    round_keys keys = round_keys_of(dropout->key);
    switch (td_cpu_simd()) {
    case TD_CPU_AVX512:
        mask_avx512(dropout, &keys, first, words, mask);
        break;
    case TD_CPU_AVX2:
        mask_avx2(dropout, &keys, first, words, mask);
        break;
    case TD_CPU_SCALAR:
        for (int64_t i = 0; i < words; i++)
            mask[i] = mask_scalar(dropout, first + (uint64_t)i * MASK_BITS);
        break;
    }
}

static inline uint32_t bits_at(const uint64_t *mask, int64_t i) {
    return (uint32_t)(mask[i / MASK_BITS] >> (i % MASK_BITS));
}

static inline float select_scalar(const uint64_t *mask, int64_t i, float scale, float x) {
    return bits_at(mask, i) & 1u ? x * scale : 0.0f;
}

TD_TARGET_AVX2 static inline __m256 select_avx2(const uint64_t *mask, int64_t i, __m256 scale,
                                                const float *x) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i kept = _mm256_and_si256(_mm256_set1_epi32((int)bits_at(mask, i)), bit);
    __m256 keep = _mm256_castsi256_ps(_mm256_cmpeq_epi32(kept, bit));
    return _mm256_and_ps(keep, _mm256_mul_ps(_mm256_loadu_ps(x + i), scale));
}

TD_TARGET_AVX2 static int64_t apply_avx2(const uint64_t *mask, int64_t n, float scale,
                                         const float *x, float *out, int accumulate) {
    __m256 factor = _mm256_set1_ps(scale);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 value = select_avx2(mask, i, factor, x);
        if (accumulate)
            value = _mm256_add_ps(_mm256_loadu_ps(out + i), value);
        _mm256_storeu_ps(out + i, value);
    }
    return i;
}

void td_cpu_dropout_apply(const uint64_t *mask, int64_t n, float scale, const float *x,
                          float *out) {
    int64_t i = td_cpu_simd() >= TD_CPU_AVX2 ? apply_avx2(mask, n, scale, x, out, 0) : 0;
    for (; i < n; i++)
        out[i] = select_scalar(mask, i, scale, x[i]);
}

void td_cpu_dropout_accumulate(const uint64_t *mask, int64_t n, float scale, const float *x,
                               float *out) {
    int64_t i = td_cpu_simd() >= TD_CPU_AVX2 ? apply_avx2(mask, n, scale, x, out, 1) : 0;
    for (; i < n; i++)
        out[i] += select_scalar(mask, i, scale, x[i]);
}
