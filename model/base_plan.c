#include "model/base_internal.h"

// 4 Mi elements: 16 MiB of fp32, enough for the quantizer's threads and for the disk.
static const int64_t max_slice_elements = 4 << 20;

int td_base_item_is_stored_nf4(const td_model_config *config, const td_base_item *item) {
    return item->kind == TD_BASE_LINEAR &&
           td_projection_is_stored_nf4(config, item->layer, item->projection);
}

// What a quantized folder holds whole stays whole.
static int is_nf4(const td_model_config *config, const td_base_options *options,
                  const td_base_item *item) {
    int is_partial = config->stored != TD_STORED_WHOLE;
    return item->kind == TD_BASE_LINEAR && options->quantize &&
           (!is_partial || td_base_item_is_stored_nf4(config, item));
}

td_matrix_format td_base_format(const td_model_config *config, const td_base_options *options,
                                td_dtype matrix_dtype, const td_base_item *item) {
    if (!td_base_item_is_matrix(item))
        return TD_MATRIX_F32;
    if (is_nf4(config, options, item))
        return TD_MATRIX_NF4;
    int is_bf16 =
        options->compute == TD_BF16 || (options->stored == TD_BF16 && matrix_dtype == TD_BF16);
    return is_bf16 ? TD_MATRIX_BF16 : TD_MATRIX_F32;
}

typedef struct base_layout {
    td_base *base;
    const td_base_options *options;
    td_dtype matrix_dtype;
    const float *nested_map;
} base_layout;

static void take_nf4(const base_layout *layout, int64_t n_elements, td_matrix *out) {
    td_arena *arena = &layout->base->arena;
    size_t n_blocks = (size_t)td_nf4_block_count(n_elements);
    out->data = td_arena_take(arena, (size_t)(n_elements + 1) / 2, 1);
    if (!layout->options->double_quantize) {
        out->absmax = td_arena_take(arena, n_blocks, sizeof(float));
        return;
    }
    out->absmax_codes = td_arena_take(arena, n_blocks, 1);
    out->nested_absmax =
        td_arena_take(arena, (size_t)td_nf4_nested_count(n_elements), sizeof(float));
    out->nested_map = layout->nested_map;
}

static td_matrix take_matrix(const base_layout *layout, const td_base_item *item) {
    int on_host = item->kind == TD_BASE_EMBEDDING && layout->options->host_embedding;
    td_arena *arena = on_host ? &layout->base->host_arena : &layout->base->arena;
    td_matrix matrix = {.format = td_base_format(&layout->base->config, layout->options,
                                                 layout->matrix_dtype, item),
                        .rows = item->shape[0],
                        .cols = item->shape[1],
                        .compute = layout->options->compute};
    if (matrix.format == TD_MATRIX_NF4)
        take_nf4(layout, item->n_elements, &matrix);
    else
        matrix.data =
            td_arena_take(arena, (size_t)item->n_elements, matrix.format == TD_MATRIX_BF16 ? 2 : 4);
    return matrix;
}

static td_status place_item(void *self, const td_base_item *item) {
    base_layout *layout = self;
    td_base *base = layout->base;
    if (td_base_item_is_matrix(item)) {
        td_matrix matrix = take_matrix(layout, item);
        if (base->layers)
            *td_base_matrix(base, item) = matrix;
        return TD_OK;
    }
    const float *vector = td_arena_take(&base->arena, (size_t)item->n_elements, sizeof(float));
    if (base->layers)
        *td_base_vector(base, item) = vector;
    return TD_OK;
}

void td_base_lay_out(td_base *base, const td_base_options *options, td_dtype matrix_dtype) {
    base_layout layout = {.base = base, .options = options, .matrix_dtype = matrix_dtype};
    if (options->quantize && options->double_quantize)
        layout.nested_map = td_arena_take(&base->arena, 256, sizeof(float));
    base->nested_map = layout.nested_map;
    td_base_visit(&base->config, place_item, &layout);
    if (base->config.tie_word_embeddings)
        base->head = base->embedding;
}

typedef struct largest_items {
    int64_t elements;
    int64_t linear_blocks, all_blocks; // of the largest linear layer, of all
} largest_items;

static td_status find_largest(void *self, const td_base_item *item) {
    largest_items *largest = self;
    if (item->n_elements > largest->elements)
        largest->elements = item->n_elements;
    if (item->kind != TD_BASE_LINEAR)
        return TD_OK;
    int64_t blocks = td_nf4_block_count(item->n_elements);
    largest->all_blocks += blocks;
    if (blocks > largest->linear_blocks)
        largest->linear_blocks = blocks;
    return TD_OK;
}

// Every matrix of a group may begin a block more.
static int64_t group_blocks(const largest_items *largest) {
    int64_t blocks = td_nf4_block_count(TD_BASE_GROUP_ELEMENTS) + TD_BASE_GROUP_ITEMS;
    blocks = blocks > largest->linear_blocks ? blocks : largest->linear_blocks;
    return blocks < largest->all_blocks ? blocks : largest->all_blocks;
}

td_base_staging td_base_staging_plan(const td_model_config *config,
                                     const td_base_options *options) {
    largest_items largest = {0};
    td_base_visit(config, find_largest, &largest);
    int64_t step = 2 * TD_BASE_CHUNK_ELEMENTS;
    td_base_staging plan = {.slice_elements = (largest.elements + step - 1) / step * step,
                            .group_elements = largest.elements > TD_BASE_GROUP_ELEMENTS
                                                  ? largest.elements
                                                  : TD_BASE_GROUP_ELEMENTS};
    if (plan.slice_elements > max_slice_elements)
        plan.slice_elements = max_slice_elements;
    if (options->quantize && options->double_quantize)
        plan.n_blocks = group_blocks(&largest);
    plan.slice_bytes = (size_t)plan.slice_elements * sizeof(float);
    plan.absmax_bytes = (size_t)plan.n_blocks * sizeof(float);
    return plan;
}

td_base_options td_base_options_for(const td_model_config *config, const td_base_options *options) {
    td_base_options result = *options;
    if (config->stored != TD_STORED_WHOLE) {
        result.quantize = 1;
        result.double_quantize = config->stored == TD_STORED_NF4_NESTED;
    }
    result.host_embedding = options->host_embedding && !config->tie_word_embeddings;
    return result;
}

void td_base_plan(const td_model_config *config, const td_base_options *options,
                  td_dtype embedding_dtype, td_base_sizes *out) {
    td_base base = {.config = *config};
    td_base_options effective = td_base_options_for(config, options);
    td_arena_init_measure(&base.arena, "base model");
    td_arena_init_measure(&base.host_arena, "embeddings");
    td_base_lay_out(&base, &effective, embedding_dtype);
    td_base_staging staging = td_base_staging_plan(config, &effective);
    *out = (td_base_sizes){.arena_bytes = base.arena.used_bytes,
                           .host_bytes = base.host_arena.used_bytes,
                           .slice_bytes = staging.slice_bytes,
                           .absmax_bytes = staging.absmax_bytes};
}
