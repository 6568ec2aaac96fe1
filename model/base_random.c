#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/base_internal.h"
#include "model/safetensors.h"
#include "runtime/core/progress.h"
#include "runtime/core/rng.h"

// A normal number is the quantile at 16 random bits: a table of all of them is an order of
// magnitude faster than a formula per number, and large models are drawn in seconds.
enum { QUANTILES = 1 << 16, PER_BLOCK = 8 };
static const double deviation = 0.02;

typedef struct random_source {
    uint64_t key;
    uint32_t item;    // number of the tensor in the walk
    float *quantiles; // (QUANTILES)
} random_source;

// Values of BF16, so that a file of them holds the same. Newton's method for the upper half, each
// from the quantile below; the lower half mirrors it.
static void fill_quantiles(float *out) {
    double x = 0;
    for (int i = QUANTILES / 2; i < QUANTILES; i++) {
        double p = (i + 0.5) / QUANTILES;
        for (int step = 0; step < 4; step++) {
            double above = 0.5 * erfc(x * M_SQRT1_2);
            double density = exp(-0.5 * x * x) * M_SQRT1_2 * M_2_SQRTPI * 0.5;
            x += (above - (1 - p)) / density;
        }
        out[i] = td_bf16_to_f32(td_f32_to_bf16((float)(deviation * x)));
        out[QUANTILES - 1 - i] = -out[i];
    }
}

static void draw(const random_source *source, int64_t block, float out[PER_BLOCK]) {
    td_philox_words counter = {
        {(uint32_t)block, (uint32_t)((uint64_t)block >> 32), source->item, 0}};
    td_philox_words words = td_philox(source->key, counter);
    for (int i = 0; i < PER_BLOCK / 2; i++) {
        out[2 * i] = source->quantiles[words.word[i] & (QUANTILES - 1)];
        out[2 * i + 1] = source->quantiles[words.word[i] >> 16];
    }
}

// Slices begin at multiples of a block.
static td_status read_random(void *self, const td_base_item *item, int64_t begin, int64_t count,
                             float *out) {
    random_source *source = self;
    if (begin == 0)
        source->item++;
    if (td_base_item_is_norm(item)) {
        for (int64_t i = 0; i < count; i++)
            out[i] = 1.0f;
        return TD_OK;
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += PER_BLOCK) {
        float values[PER_BLOCK];
        draw(source, (begin + i) / PER_BLOCK, values);
        for (int64_t j = i; j < count && j < i + PER_BLOCK; j++)
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

static td_status open_quantiles(random_source *random) {
    random->quantiles = malloc(QUANTILES * sizeof *random->quantiles);
    if (!random->quantiles)
        return td_fail(TD_ERR_MEMORY, "no memory to draw random weights");
    fill_quantiles(random->quantiles);
    return TD_OK;
}

static td_status create(const td_model_config *config, const td_base_options *options,
                        random_source *random, const td_op_context *context, td_base **out) {
    td_base_source source = {.read = read_random, .self = random};
    TD_TRY(open_quantiles(random));
    td_base_options effective = td_base_options_for(config, options);
    TD_TRY(td_base_create(config, &effective, options->stored, context, out));
    return td_base_fill(*out, &effective, &source, NULL, context);
}

td_status td_base_create_random(const td_model_config *config, const td_base_options *options,
                                uint64_t seed, const td_op_context *context, td_base **out) {
    random_source random = {.key = td_rng_key(seed, TD_RNG_WEIGHTS)};
    td_base *base = NULL;
    td_status status = create(config, options, &random, context, &base);
    free(random.quantiles);
    if (status != TD_OK) {
        td_base_destroy(base);
        return status;
    }
    base->fingerprint = fingerprint_of(config, seed);
    *out = base;
    return TD_OK;
}

enum { SLICE_ELEMENTS = 4 << 20 };

typedef struct random_writer {
    random_source random;
    td_base_item *items;
    td_named_tensor *tensors;
    int64_t count;
    float *values;     // (SLICE_ELEMENTS)
    uint16_t *rounded; // (SLICE_ELEMENTS)
    td_safetensors_writer *file;
} random_writer;

static td_status count_item(void *self, const td_base_item *item) {
    (void)item;
    ((random_writer *)self)->count++;
    return TD_OK;
}

static td_status list_item(void *self, const td_base_item *item) {
    random_writer *writer = self;
    td_base_item *kept = &writer->items[writer->count];
    *kept = *item;
    td_named_tensor *tensor = &writer->tensors[writer->count++];
    *tensor =
        (td_named_tensor){.name = kept->name, .tensor = {.dtype = TD_BF16, .n_dims = item->n_dims}};
    for (int i = 0; i < item->n_dims; i++)
        tensor->tensor.shape[i] = item->shape[i];
    return TD_OK;
}

static td_status write_item(void *self, const td_base_item *item) {
    random_writer *writer = self;
    for (int64_t begin = 0; begin < item->n_elements; begin += SLICE_ELEMENTS) {
        int64_t left = item->n_elements - begin;
        int64_t count = left < SLICE_ELEMENTS ? left : SLICE_ELEMENTS;
        td_progress_tick();
        TD_TRY(read_random(&writer->random, item, begin, count, writer->values));
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < count; i++)
            writer->rounded[i] = td_f32_to_bf16(writer->values[i]);
        TD_TRY(td_safetensors_writer_append(writer->file, writer->rounded,
                                            (size_t)count * sizeof *writer->rounded));
    }
    return TD_OK;
}

static td_status write_random(const td_model_config *config, random_writer *writer,
                              const char *path) {
    TD_TRY(open_quantiles(&writer->random));
    TD_TRY(td_base_visit(config, count_item, writer));
    writer->items = calloc((size_t)writer->count, sizeof *writer->items);
    writer->tensors = calloc((size_t)writer->count, sizeof *writer->tensors);
    writer->values = malloc(SLICE_ELEMENTS * sizeof *writer->values);
    writer->rounded = malloc(SLICE_ELEMENTS * sizeof *writer->rounded);
    if (!writer->items || !writer->tensors || !writer->values || !writer->rounded)
        return td_fail(TD_ERR_MEMORY, "no memory to write random weights");
    writer->count = 0;
    TD_TRY(td_base_visit(config, list_item, writer));
    TD_TRY(td_safetensors_writer_create(path, writer->tensors, writer->count, &writer->file));
    TD_TRY(td_base_visit(config, write_item, writer));
    return td_safetensors_writer_commit(writer->file);
}

td_status td_base_write_random(const td_model_config *config, uint64_t seed, const char *path) {
    random_writer writer = {.random = {.key = td_rng_key(seed, TD_RNG_WEIGHTS)}};
    td_status status = write_random(config, &writer, path);
    if (writer.file)
        td_safetensors_writer_destroy(writer.file);
    free(writer.random.quantiles);
    free(writer.items);
    free(writer.tensors);
    free(writer.values);
    free(writer.rounded);
    return status;
}
