// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11, "Parallel random numbers: as
// easy as 1, 2, 3"). The same (key, counter) gives the same words on every rank, thread and
// backend.
#ifndef TANDEM_CORE_RNG_H
#define TANDEM_CORE_RNG_H

#include <stdint.h>

#include "runtime/core/portable.h"

// What a stream of numbers is for; part of the key, so that streams never overlap.
typedef enum td_rng_domain {
    TD_RNG_DROPOUT = 1,
    TD_RNG_LORA_INIT = 2,
    TD_RNG_SAMPLER = 3,
    TD_RNG_SPLIT = 4,
    TD_RNG_GENERATE = 5,
    TD_RNG_TEST = 6,
    TD_RNG_WEIGHTS = 7,
    TD_RNG_EXAMPLES = 8,
} td_rng_domain;

typedef struct td_philox_words {
    uint32_t word[4];
} td_philox_words;

TD_INLINE td_philox_words td_philox(uint64_t key, td_philox_words counter) {
    uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * counter.word[0];
        uint64_t product1 = (uint64_t)0xCD9E8D57u * counter.word[2];
        td_philox_words next = {
            {(uint32_t)(product1 >> 32) ^ counter.word[1] ^ key0, (uint32_t)product1,
             (uint32_t)(product0 >> 32) ^ counter.word[3] ^ key1, (uint32_t)product0}};
        counter = next;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// Key of one stream: the run's seed and the domain.
TD_INLINE uint64_t td_rng_key(uint64_t seed, td_rng_domain domain) {
    return seed ^ ((uint64_t)domain * 0x9E3779B97F4A7C15u);
}

// Uniform in [0, 1) with 24 bits.
TD_INLINE float td_rng_uniform(uint32_t word) {
    return (float)(word >> 8) * 0x1p-24f;
}

// Word `index` of the stream (key, a, b): index / 4 and a, b are the counter.
TD_INLINE uint32_t td_rng_word(uint64_t key, uint32_t a, uint32_t b, uint64_t index) {
    td_philox_words counter = {{(uint32_t)(index >> 2), (uint32_t)(index >> 34), a, b}};
    return td_philox(key, counter).word[index & 3];
}

// Dropout of one module in one micro-batch. Element e of the (T, in) input is kept when
// td_dropout_keep(d, e); kept values are multiplied by d->scale = 1 / (1 - p). threshold 0: no
// dropout.
typedef struct td_dropout {
    uint64_t key;
    uint32_t step;
    uint32_t micro_batch;
    uint32_t module;    // its number in the model
    uint32_t threshold; // keep when word >= threshold; p * 2^32
    float scale;
    // NULL, or device memory where kernels find step and micro_batch instead: (2).
    const uint32_t *place;
} td_dropout;

TD_INLINE td_philox_words td_dropout_words(const td_dropout *dropout, uint64_t element_block) {
    td_philox_words counter = {
        {(uint32_t)element_block, dropout->module, dropout->micro_batch, dropout->step}};
    return td_philox(dropout->key, counter);
}

TD_INLINE int td_dropout_keep(const td_dropout *dropout, uint64_t element) {
    return td_dropout_words(dropout, element >> 2).word[element & 3] >= dropout->threshold;
}

#endif
