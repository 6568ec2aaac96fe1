// The inner loop of signatures: 128 permutations of each shingle.
//
// Permutation i of a shingle (low, high: its halves) is t = a_i low + high, t ^= t >> 15, t *= b_i
// in 32 bits, a_i and b_i odd: for a given high half it is a bijection of the low one, and the
// product spreads every bit to the top ones, which decide the minimum.
#include <pthread.h>

#include "runtime/data/minhash_internal.h"

enum { LANES = 32 }; // places whose minima stay in registers over a batch of shingles

typedef struct permutations {
    uint32_t a[TD_MINHASH_PERMUTATIONS], b[TD_MINHASH_PERMUTATIONS];
} permutations;

static permutations seeds;
static pthread_once_t seeds_once = PTHREAD_ONCE_INIT;

// SplitMix64 (Steele, Lea, Flood, 2014).
static uint64_t next_random(uint64_t *state) {
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void fill_seeds(void) {
    uint64_t state = 0x7464206d696e6861u;
    for (int i = 0; i < TD_MINHASH_PERMUTATIONS; i++) {
        uint64_t x = next_random(&state);
        seeds.a[i] = (uint32_t)x | 1;
        seeds.b[i] = (uint32_t)(x >> 32) | 1;
    }
}

// Compiled once per level: the loops over lanes become vector instructions.
static inline __attribute__((always_inline)) void
update_lanes(uint32_t *restrict signature, const uint32_t *restrict a, const uint32_t *restrict b,
             const uint64_t *restrict shingles, size_t count) {
    uint32_t least[LANES];
    for (int l = 0; l < LANES; l++)
        least[l] = signature[l];
    for (size_t i = 0; i < count; i++) {
        uint32_t low = (uint32_t)shingles[i], high = (uint32_t)(shingles[i] >> 32);
        for (int l = 0; l < LANES; l++) {
            uint32_t t = low * a[l] + high;
            t = (t ^ t >> 15) * b[l];
            least[l] = t < least[l] ? t : least[l];
        }
    }
    for (int l = 0; l < LANES; l++)
        signature[l] = least[l];
}

static inline __attribute__((always_inline)) void
update_all(uint32_t *signature, const uint64_t *shingles, size_t count) {
    for (int l = 0; l < TD_MINHASH_PERMUTATIONS; l += LANES)
        update_lanes(signature + l, seeds.a + l, seeds.b + l, shingles, count);
}

static void update_plain(uint32_t *signature, const uint64_t *shingles, size_t count) {
    update_all(signature, shingles, count);
}

__attribute__((target("avx2"))) static void update_avx2(uint32_t *signature,
                                                        const uint64_t *shingles, size_t count) {
    update_all(signature, shingles, count);
}

__attribute__((target("avx2,avx512f,prefer-vector-width=512"))) static void
update_avx512(uint32_t *signature, const uint64_t *shingles, size_t count) {
    update_all(signature, shingles, count);
}

td_minhash_update *td_minhash_update_at(td_minhash_level level) {
    pthread_once(&seeds_once, fill_seeds);
    __builtin_cpu_init();
    if (level == TD_MINHASH_AVX512)
        return __builtin_cpu_supports("avx512f") ? update_avx512 : NULL;
    if (level == TD_MINHASH_AVX2)
        return __builtin_cpu_supports("avx2") ? update_avx2 : NULL;
    return update_plain;
}

td_minhash_update *td_minhash_update_best(void) {
    for (int level = TD_MINHASH_LEVELS - 1; level > TD_MINHASH_PLAIN; level--) {
        td_minhash_update *update = td_minhash_update_at((td_minhash_level)level);
        if (update)
            return update;
    }
    return td_minhash_update_at(TD_MINHASH_PLAIN);
}
