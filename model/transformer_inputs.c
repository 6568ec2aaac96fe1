// What a call brings: checked, packed into pinned memory, and sent in one copy.
#include <string.h>

#include "model/transformer_internal.h"

int64_t td_transformer_border_count(int64_t n_sequences) {
    int64_t count = 1;
    while (count < n_sequences)
        count *= 2;
    return count + 1;
}

// Four values per token, borders of queries and keys, and the place of dropout.
size_t td_transformer_packed_items(const td_transformer_options *options) {
    size_t borders = (size_t)td_transformer_border_count(options->max_sequences);
    return td_mul_bytes(4, (size_t)options->max_tokens) + 2 * borders + 2;
}

size_t td_transformer_host_bytes(const td_transformer *transformer) {
    const td_transformer_options *options = &transformer->options;
    return td_transformer_packed_items(options) * sizeof(int32_t) +
           (size_t)options->max_tokens * sizeof(float) +
           ((size_t)options->max_sequences + 1) * sizeof(int32_t);
}

td_status td_transformer_create_inputs(td_transformer *transformer) {
    const td_device *device = transformer->context.device;
    size_t tokens = (size_t)transformer->options.max_tokens;
    size_t bytes = td_transformer_host_bytes(transformer);
    TD_TRY(device->table->alloc_pinned(device, bytes, "inputs and tables", &transformer->pinned));
    transformer->host_packed = transformer->pinned;
    transformer->host_losses =
        (float *)(transformer->host_packed + td_transformer_packed_items(&transformer->options));
    transformer->cu = (int32_t *)(transformer->host_losses + tokens);
    return device->table->event_create(device, &transformer->losses_there);
}

void td_transformer_destroy_inputs(td_transformer *transformer) {
    const td_device *device = transformer->context.device;
    if (transformer->losses_there)
        device->table->event_destroy(transformer->losses_there);
    if (transformer->pinned)
        device->table->free_pinned(device, transformer->pinned);
}

static td_status check_ids(const td_transformer *transformer, const int32_t *ids, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= transformer->config->vocabulary)
            return td_fail(TD_ERR_DATA, "token id %d is outside the model's vocabulary of %lld",
                           ids[i], (long long)transformer->config->vocabulary);
    return TD_OK;
}

static td_status check_batch(const td_transformer *transformer, const td_token_batch *batch,
                             const td_kv_cache *cache) {
    const td_transformer_options *options = &transformer->options;
    int fits = batch->n_tokens >= 1 && batch->n_tokens <= options->max_tokens &&
               batch->n_sequences >= 1 && batch->n_sequences <= options->max_sequences &&
               batch->n_targets >= 0 && batch->n_targets <= batch->n_tokens;
    if (!fits)
        return td_fail(
            TD_ERR_INTERNAL,
            "a call of %lld tokens, %lld sequences, %lld targets; planned for %lld and %lld",
            (long long)batch->n_tokens, (long long)batch->n_sequences, (long long)batch->n_targets,
            (long long)options->max_tokens, (long long)options->max_sequences);
    if (cache && (batch->n_sequences != 1 || cache->length + batch->n_tokens > cache->capacity))
        return td_fail(
            TD_ERR_INTERNAL, "key-value cache of %lld tokens cannot take %lld after %lld",
            (long long)cache->capacity, (long long)batch->n_tokens, (long long)cache->length);
    for (int64_t i = 0; i < batch->n_targets; i++)
        if (batch->target_rows[i] < 0 || batch->target_rows[i] >= batch->n_tokens)
            return td_fail(TD_ERR_INTERNAL, "target row %d of %lld tokens", batch->target_rows[i],
                           (long long)batch->n_tokens);
    TD_TRY(check_ids(transformer, batch->ids, batch->n_tokens));
    return batch->targets ? check_ids(transformer, batch->targets, batch->n_targets) : TD_OK;
}

// Positions start again with every sequence, after what a cache holds.
static td_status fill_positions(const td_transformer *transformer, const td_token_batch *batch,
                                const td_kv_cache *cache, int32_t *positions) {
    int64_t first = cache ? cache->length : 0;
    if (batch->cu[0] != 0 || batch->cu[batch->n_sequences] != batch->n_tokens)
        return td_fail(TD_ERR_INTERNAL, "sequences do not cover the call's %lld tokens",
                       (long long)batch->n_tokens);
    for (int64_t s = 0; s < batch->n_sequences; s++) {
        int64_t length = batch->cu[s + 1] - batch->cu[s];
        if (length < 1 || batch->cu[s + 1] > batch->n_tokens ||
            first + length > transformer->options.max_positions)
            return td_fail(TD_ERR_INTERNAL, "a sequence of %lld tokens; planned for %lld",
                           (long long)(first + length),
                           (long long)transformer->options.max_positions);
        for (int64_t i = 0; i < length; i++)
            positions[batch->cu[s] + i] = (int32_t)(first + i);
    }
    return TD_OK;
}

// Appends `count` values to the packed inputs (from NULL: they are there, or not needed), on the
// host at *at; returns where the device will have them.
static int32_t *append(const td_transformer *transformer, int32_t **at, const int32_t *from,
                       size_t count) {
    int32_t *there = transformer->packed + (*at - transformer->host_packed);
    if (from && count > 0)
        memcpy(*at, from, count * sizeof *from);
    *at += count;
    return there;
}

// The borders, and the last one again for sequences that there are not.
static int32_t *append_borders(const td_transformer *transformer, int32_t **at, const int32_t *cu) {
    int64_t n = transformer->n_sequences;
    int32_t *borders = *at;
    for (int64_t s = 0; s < transformer->n_borders; s++)
        borders[s] = cu[s < n ? s : n];
    return append(transformer, at, NULL, (size_t)transformer->n_borders);
}

// The arrays one behind the other, on the host and on the device alike; where they lie depends on
// the numbers of tokens and borders only, but for the targets, which come last.
static td_status send(td_transformer *transformer, const td_token_batch *batch) {
    size_t tokens = (size_t)batch->n_tokens, targets = (size_t)batch->n_targets;
    const int32_t place[2] = {(int32_t)transformer->dropout.step,
                              (int32_t)transformer->dropout.micro_batch};
    int32_t *at = transformer->host_packed;
    transformer->ids = append(transformer, &at, batch->ids, tokens);
    transformer->positions = append(transformer, &at, NULL, tokens);
    transformer->cu_device = append_borders(transformer, &at, transformer->cu);
    transformer->cu_k_device = transformer->cu_device;
    if (transformer->cache)
        transformer->cu_k_device = append_borders(transformer, &at, transformer->cu_k);
    transformer->place = (uint32_t *)append(transformer, &at, place, 2);
    transformer->target_rows = append(transformer, &at, batch->target_rows, targets);
    transformer->targets = append(transformer, &at, batch->targets, batch->targets ? targets : 0);
    size_t items = (size_t)(at - transformer->host_packed);
    return transformer->context.device->table->copy(transformer->context.stream,
                                                    transformer->packed, transformer->host_packed,
                                                    items * sizeof(int32_t));
}

td_status td_transformer_begin(td_transformer *transformer, const float *parameters,
                               const td_token_batch *batch, const td_dropout_key *dropout,
                               td_kv_cache *cache) {
    TD_TRY(check_batch(transformer, batch, cache));
    TD_TRY(fill_positions(transformer, batch, cache, transformer->host_packed + batch->n_tokens));
    memcpy(transformer->cu, batch->cu, (size_t)(batch->n_sequences + 1) * sizeof *batch->cu);
    transformer->cu_k[0] = 0;
    transformer->cu_k[1] = (int32_t)((cache ? cache->length : 0) + batch->n_tokens);
    transformer->parameters = transformer->lora ? parameters : NULL;
    transformer->dropout = dropout ? *dropout : (td_dropout_key){0};
    transformer->n_tokens = batch->n_tokens;
    transformer->n_sequences = batch->n_sequences;
    transformer->n_borders = td_transformer_border_count(batch->n_sequences);
    transformer->n_targets = batch->n_targets;
    transformer->cache = cache;
    transformer->sink = NULL;
    return send(transformer, batch);
}
