#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dynamic_map.h"
#include "model/base_fill_internal.h"
#include "model/safetensors.h"
#include "runtime/core/progress.h"
#include "runtime/core/rng.h"

// A normal number is the quantile at 16 random bits: a table of all of them is an order of
// magnitude faster than a formula per number, and large models are drawn in seconds.
enum { QUANTILES = TD_DRAW_QUANTILES, PER_BLOCK = TD_DRAW_BLOCK };
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
    td_philox_words words = td_draw_words(source->key, source->item, (uint64_t)block);
    for (int i = 0; i < PER_BLOCK / 2; i++) {
        out[2 * i] = source->quantiles[words.word[i] & (QUANTILES - 1)];
        out[2 * i + 1] = source->quantiles[words.word[i] >> 16];
    }
}

// Slices begin at multiples of a block.
static void draw_slice(const random_source *source, const td_base_item *item, int64_t begin,
                       int64_t count, float *out) {
    if (td_base_item_is_norm(item)) {
        for (int64_t i = 0; i < count; i++)
            out[i] = 1.0f;
        return;
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += PER_BLOCK) {
        float values[PER_BLOCK];
        draw(source, (begin + i) / PER_BLOCK, values);
        for (int64_t j = i; j < count && j < i + PER_BLOCK; j++)
            out[j] = values[j - i];
    }
}

static td_status read_random(void *self, const td_base_item *item, int64_t begin, int64_t count,
                             float *out) {
    random_source *source = self;
    if (begin == 0)
        source->item++;
    draw_slice(source, item, begin, count, out);
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

// A device draws into its own memory what the host would draw and send.
typedef struct device_filler {
    td_base *base;
    const td_base_options *options;
    random_source *random;
    td_op_context context; // with a workspace of its own
    int64_t slice_elements;
    float *quantiles, *slice, *absmax; // device
    float *offsets;                    // pinned: of nested absmax, in the order of the walk
    int64_t n_offsets;
} device_filler;

static td_status copy_now(const device_filler *self, void *to, const void *from, size_t bytes) {
    const td_device_table *device = self->context.device->table;
    TD_TRY(device->copy(self->context.stream, to, from, bytes));
    return device->stream_synchronize(self->context.stream);
}

static td_status draw_there(const device_filler *self, int64_t begin, int64_t count, td_dtype type,
                            void *out) {
    td_draw_weights_args args = {.key = self->random->key,
                                 .tensor = self->random->item,
                                 .first = begin,
                                 .n_elements = count,
                                 .quantiles = self->quantiles,
                                 .type = type,
                                 .out = out};
    td_progress_tick();
    return self->context.ops->draw_weights(&self->context, &args);
}

// Vectors are small: by way of the host.
static td_status send_vector(device_filler *self, const td_base_item *item, void *to) {
    size_t bytes = (size_t)item->n_elements * sizeof(float);
    float *values = malloc(bytes);
    if (!values)
        return td_fail(TD_ERR_MEMORY, "no memory to draw random weights");
    draw_slice(self->random, item, 0, item->n_elements, values);
    td_status status = copy_now(self, to, values, bytes);
    free(values);
    return status;
}

static td_status draw_nf4(device_filler *self, const td_base_item *item, const td_matrix *matrix) {
    float *absmax = matrix->absmax ? td_base_writable(matrix->absmax) : self->absmax;
    for (int64_t begin = 0; begin < item->n_elements; begin += self->slice_elements) {
        int64_t left = item->n_elements - begin;
        int64_t count = left < self->slice_elements ? left : self->slice_elements;
        TD_TRY(draw_there(self, begin, count, TD_F32, self->slice));
        td_nf4_quantize_args args = {.n_elements = count,
                                     .weight = self->slice,
                                     .codes = (uint8_t *)td_base_writable(matrix->data) + begin / 2,
                                     .absmax = absmax + begin / TD_NF4_BLOCK};
        TD_TRY(self->context.ops->nf4_quantize(&self->context, &args));
    }
    if (matrix->absmax)
        return TD_OK;
    td_absmax_quantize_args args = {.n_blocks = td_nf4_block_count(item->n_elements),
                                    .absmax = self->absmax,
                                    .codes = td_base_writable(matrix->absmax_codes),
                                    .nested_absmax = td_base_writable(matrix->nested_absmax),
                                    .offset = &self->offsets[self->n_offsets++]};
    return self->context.ops->absmax_quantize(&self->context, &args);
}

static td_status draw_item(void *self_pointer, const td_base_item *item) {
    device_filler *self = self_pointer;
    self->random->item++;
    if (!td_base_item_is_matrix(item))
        return send_vector(self, item, td_base_writable(*td_base_vector(self->base, item)));
    const td_matrix *matrix = td_base_matrix(self->base, item);
    if (matrix->format == TD_MATRIX_NF4)
        return draw_nf4(self, item, matrix);
    return draw_there(self, 0, item->n_elements,
                      matrix->format == TD_MATRIX_BF16 ? TD_BF16 : TD_F32,
                      td_base_writable(matrix->data));
}

static td_status settle_offset(void *self_pointer, const td_base_item *item) {
    device_filler *self = self_pointer;
    if (!td_base_item_is_matrix(item))
        return TD_OK;
    td_matrix *matrix = td_base_matrix(self->base, item);
    if (matrix->format == TD_MATRIX_NF4 && !matrix->absmax)
        matrix->nested_offset = self->offsets[self->n_offsets++];
    return TD_OK;
}

static td_status take_floats(const device_filler *self, size_t bytes, float **out) {
    const td_device *device = self->context.device;
    void *memory = NULL;
    TD_TRY(device->table->alloc(device, bytes, "buffers while loading", &memory));
    *out = memory;
    return TD_OK;
}

static td_status allocate_on_device(device_filler *self) {
    static const char purpose[] = "buffers while loading";
    const td_device *device = self->context.device;
    void *memory = NULL;
    td_base_staging plan = td_base_staging_plan(&self->base->config, self->options);
    size_t n_offsets = (size_t)self->base->config.n_layers * TD_PROJ_COUNT;
    self->slice_elements = plan.slice_elements;
    self->context.workspace_bytes = td_base_workspace_bytes(self->context.ops);
    TD_TRY(take_floats(self, QUANTILES * sizeof(float), &self->quantiles));
    TD_TRY(take_floats(self, plan.slice_bytes, &self->slice));
    TD_TRY(take_floats(self, plan.absmax_bytes, &self->absmax));
    TD_TRY(device->table->alloc_pinned(device, n_offsets * sizeof(float), purpose, &memory));
    self->offsets = memory;
    return device->table->alloc(device, self->context.workspace_bytes, purpose,
                                &self->context.workspace);
}

static td_status draw_all(device_filler *self) {
    const td_model_config *config = &self->base->config;
    TD_TRY(copy_now(self, self->quantiles, self->random->quantiles, QUANTILES * sizeof(float)));
    if (self->base->nested_map) {
        float map[256];
        td_dynamic_map_signed(map);
        TD_TRY(copy_now(self, td_base_writable(self->base->nested_map), map, sizeof map));
    }
    TD_TRY(td_base_visit(config, draw_item, self));
    TD_TRY(self->context.device->table->stream_synchronize(self->context.stream));
    self->n_offsets = 0;
    return td_base_visit(config, settle_offset, self);
}

static td_status fill_by_device(td_base *base, const td_base_options *options,
                                random_source *random, const td_op_context *context) {
    device_filler self = {.base = base, .options = options, .random = random, .context = *context};
    const td_device *device = context->device;
    self.context.workspace = NULL;
    td_status status = allocate_on_device(&self);
    if (status == TD_OK)
        status = draw_all(&self);
    (void)device->table->stream_synchronize(context->stream);
    device->table->free(device, self.quantiles);
    device->table->free(device, self.slice);
    device->table->free(device, self.absmax);
    device->table->free(device, self.context.workspace);
    device->table->free_pinned(device, self.offsets);
    return status;
}

static td_status create(const td_model_config *config, const td_base_options *options,
                        random_source *random, const td_op_context *context, td_base **out) {
    td_base_source source = {.read = read_random, .self = random};
    TD_TRY(open_quantiles(random));
    td_base_options effective = td_base_options_for(config, options);
    TD_TRY(td_base_create(config, &effective, options->stored, context, out));
    if (context->ops->draw_weights)
        return fill_by_device(*out, &effective, random, context);
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
