#include <stdlib.h>

#include "model/transformer_internal.h"

// An empty cache without memory.
static td_kv_cache describe(const td_model_config *config, int64_t capacity, td_dtype activation) {
    int64_t stride = (config->fused_projections ? 2 : 1) * td_k_columns(config);
    return (td_kv_cache){.capacity = capacity,
                         .n_layers = config->n_layers,
                         .is_fused = config->fused_projections,
                         .row_stride = stride,
                         .row_bytes = (size_t)stride * td_dtype_bytes(activation)};
}

static void take_rows(td_kv_cache *cache, td_arena *arena) {
    for (int64_t layer = 0; layer < cache->n_layers; layer++) {
        unsigned char *k = td_arena_take(arena, (size_t)cache->capacity, cache->row_bytes);
        unsigned char *v = NULL;
        if (!cache->is_fused)
            v = td_arena_take(arena, (size_t)cache->capacity, cache->row_bytes);
        if (cache->k) {
            cache->k[layer] = k;
            cache->v[layer] = cache->is_fused ? k + cache->row_bytes / 2 : v;
        }
    }
}

size_t td_kv_cache_bytes(const td_model_config *config, int64_t capacity, td_dtype activation) {
    td_kv_cache cache = describe(config, capacity, activation);
    td_arena arena;
    td_arena_init_measure(&arena, "key-value cache");
    take_rows(&cache, &arena);
    return arena.used_bytes;
}

td_status td_kv_cache_create(const td_model_config *config, int64_t capacity,
                             const td_op_context *context, td_kv_cache **out) {
    td_kv_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return td_fail(TD_ERR_MEMORY, "no memory for the key-value cache");
    size_t n_layers = (size_t)config->n_layers;
    *cache = describe(config, capacity, context->ops->activation);
    cache->k = calloc(n_layers, sizeof *cache->k);
    cache->v = calloc(n_layers, sizeof *cache->v);
    size_t bytes = td_kv_cache_bytes(config, capacity, context->ops->activation);
    td_status status = cache->k && cache->v
                           ? td_arena_init(&cache->arena, context->device, bytes, "key-value cache")
                           : td_fail(TD_ERR_MEMORY, "no memory for the key-value cache");
    if (status != TD_OK) {
        td_kv_cache_destroy(cache);
        return status;
    }
    take_rows(cache, &cache->arena);
    *out = cache;
    return TD_OK;
}

void td_kv_cache_destroy(td_kv_cache *cache) {
    if (!cache)
        return;
    td_arena_fini(&cache->arena);
    free(cache->k);
    free(cache->v);
    free(cache);
}

void td_kv_cache_clear(td_kv_cache *cache) {
    cache->length = 0;
}

int64_t td_kv_cache_length(const td_kv_cache *cache) {
    return cache->length;
}
