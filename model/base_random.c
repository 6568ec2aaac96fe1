#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/base_internal.h"
#include "runtime/core/rng.h"

static const float deviation = 0.02f;

typedef struct random_source {
    uint64_t key;
    uint32_t item; // number of the tensor in the walk
} random_source;

// Four normal numbers from four words (Box and Muller 1958).
static void draw(uint64_t key, uint32_t item, int64_t block, float out[4]) {
    td_philox_words counter = {{(uint32_t)block, (uint32_t)((uint64_t)block >> 32), item, 0}};
    td_philox_words words = td_philox(key, counter);
    for (int i = 0; i < 4; i += 2) {
        // 1 - u is in (0, 1]: its logarithm is finite.
        float radius = deviation * sqrtf(-2.0f * logf(1.0f - td_rng_uniform(words.word[i])));
        float angle = (float)(2.0 * M_PI) * td_rng_uniform(words.word[i + 1]);
        out[i] = radius * cosf(angle);
        out[i + 1] = radius * sinf(angle);
    }
}

static int is_norm(const td_base_item *item) {
    return !td_base_item_is_matrix(item) && item->kind != TD_BASE_BIAS;
}

// Slices begin at multiples of four.
static td_status read_random(void *self, const td_base_item *item, int64_t begin, int64_t count,
                             float *out) {
    random_source *source = self;
    if (begin == 0)
        source->item++;
    if (is_norm(item)) {
        for (int64_t i = 0; i < count; i++)
            out[i] = 1.0f;
        return TD_OK;
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += 4) {
        float values[4];
        draw(source->key, source->item, (begin + i) / 4, values);
        for (int64_t j = i; j < count && j < i + 4; j++)
            out[j] = values[j - i];
    }
    return TD_OK;
}

static td_hash fingerprint_of(const td_model_config *config, uint64_t seed) {
    char text[32 * 1024];
    int used = snprintf(text, sizeof text, "random %llu ", (unsigned long long)seed);
    td_base_describe(config, text + used, sizeof text - (size_t)used);
    return td_hash_bytes(text, strlen(text));
}

td_status td_base_create_random(const td_model_config *config, const td_base_options *options,
                                uint64_t seed, const td_op_context *context, td_base **out) {
    random_source random = {.key = td_rng_key(seed, TD_RNG_WEIGHTS)};
    td_base_source source = {.read = read_random, .self = &random};
    td_base *base;
    TD_TRY(td_base_create(config, options, options->stored, context, &base));
    td_status status = td_base_fill(base, options, &source, NULL, context);
    if (status != TD_OK) {
        td_base_destroy(base);
        return status;
    }
    base->fingerprint = fingerprint_of(config, seed);
    *out = base;
    return TD_OK;
}
