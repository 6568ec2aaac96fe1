// Weights that are dequantized before they are needed: while a product runs, a second stream fills
// a buffer with the weight of the next one. There are two buffers; each is filled again as soon as
// the product that read it is done, so also under attention, norms and the small products of LoRA.
//
// In which order a call's products use weights is known from its shape alone. A call that is
// recorded looks ahead within a segment, whose work has to be complete in itself; other calls look
// ahead to their end. Layers with a copy (weight_copies.h) are passed over.
#include <stdlib.h>

#include "model/transformer_internal.h"
#include "model/weight_copies.h"
#include "runtime/core/log.h"

enum { N_BUFFERS = 2 };

// A buffer and what it holds. `filled` is recorded on the stream of this file, `read` on the
// context's.
typedef struct ahead_buffer {
    td_matrix weight; // with the buffer as its resident numbers
    void *memory;
    td_event *filled, *read;
} ahead_buffer;

typedef struct ahead_span {
    int64_t begin, end; // uses
} ahead_span;

struct td_ahead {
    td_op_context context;  // its own stream, no workspace
    const td_matrix **uses; // (n_uses) NF4 weights in the order of a training call's products
    ahead_span *segments;   // (n_layers + 1)
    int64_t n_uses;
    int64_t next;           // use that comes next
    int64_t fill, fill_end; // use that is dequantized next, and where that ends for now
    int64_t n_filled;       // since the last start; buffers take turns
    int64_t n_acquired;
    int can_go_on; // the call was not recorded so far
    int64_t count; // of weights queued
    ahead_buffer buffers[N_BUFFERS];
};

// Of one buffer: the largest weight in the type of the activations.
static size_t buffer_bytes(const td_transformer *transformer) {
    const td_model_config *config = transformer->config;
    size_t most = 0;
    for (int i = 0; i < TD_PROJ_COUNT; i++) {
        if (!td_projection_exists(config, (td_projection)i))
            continue;
        size_t count = td_mul_bytes((size_t)td_projection_in(config, (td_projection)i),
                                    (size_t)td_projection_out(config, (td_projection)i));
        most = count > most ? count : most;
    }
    return td_mul_bytes(most, td_act_bytes(transformer));
}

size_t td_transformer_ahead_bytes(const td_transformer *transformer) {
    if (!transformer->options.dequantize_ahead)
        return 0;
    return td_mul_bytes(N_BUFFERS, buffer_bytes(transformer));
}

static void add_use(td_transformer *transformer, int64_t layer, int projection) {
    td_ahead *ahead = transformer->ahead;
    const td_matrix *weight = &transformer->base->layers[layer].linear[projection];
    if (weight->format == TD_MATRIX_NF4 && weight->data)
        ahead->uses[ahead->n_uses++] = weight;
}

// As td_transformer_recompute() does.
static int is_used_again(const td_transformer *transformer, int projection) {
    switch (transformer->options.recompute) {
    case TD_RECOMPUTE_BLOCK:
        return projection < TD_PROJ_DOWN;
    case TD_RECOMPUTE_NORMS_MLP:
        return projection > TD_PROJ_O && projection < TD_PROJ_DOWN;
    default:
        return 0;
    }
}

// Projections are numbered in the order of the forward pass.
static void add_forward(td_transformer *transformer, ahead_span *out) {
    out->begin = transformer->ahead->n_uses;
    for (int64_t layer = 0; layer < transformer->config->n_layers; layer++)
        for (int i = 0; i < TD_PROJ_COUNT; i++)
            add_use(transformer, layer, i);
    out->end = transformer->ahead->n_uses;
}

// Nobody needs the gradient of what goes into the lowest layer.
static void add_backward(td_transformer *transformer, int64_t layer, int lowest, ahead_span *out) {
    out->begin = transformer->ahead->n_uses;
    for (int i = 0; i < TD_PROJ_COUNT; i++)
        if (is_used_again(transformer, i))
            add_use(transformer, layer, i);
    for (int i = TD_PROJ_COUNT - 1; i >= (lowest ? TD_PROJ_O : 0); i--)
        add_use(transformer, layer, i);
    out->end = transformer->ahead->n_uses;
}

static td_status list_uses(td_transformer *transformer) {
    td_ahead *ahead = transformer->ahead;
    int64_t n_layers = transformer->config->n_layers;
    ahead->uses = calloc((size_t)n_layers * 3 * TD_PROJ_COUNT, sizeof(td_matrix *));
    ahead->segments = calloc((size_t)n_layers + 1, sizeof *ahead->segments);
    if (!ahead->uses || !ahead->segments)
        return td_fail(TD_ERR_MEMORY, "no memory for the list of weights");
    add_forward(transformer, &ahead->segments[0]);
    if (!transformer->options.training)
        return TD_OK;
    int64_t lowest = td_transformer_lowest_layer(transformer);
    for (int64_t layer = n_layers - 1; layer >= lowest; layer--)
        add_backward(transformer, layer, layer == lowest, &ahead->segments[layer + 1]);
    return TD_OK;
}

static td_status take_buffers(td_ahead *ahead, size_t bytes) {
    const td_device *device = ahead->context.device;
    for (int i = 0; i < N_BUFFERS; i++) {
        TD_TRY(td_weight_memory_take(device, bytes, "weights dequantized ahead",
                                     &ahead->buffers[i].memory));
        if (!ahead->buffers[i].memory)
            return TD_OK;
        TD_TRY(device->table->event_create(device, &ahead->buffers[i].filled));
        TD_TRY(device->table->event_create(device, &ahead->buffers[i].read));
    }
    return TD_OK;
}

td_status td_transformer_create_ahead(td_transformer *transformer) {
    const td_device *device = transformer->context.device;
    if (!transformer->options.dequantize_ahead)
        return TD_OK;
    td_ahead *ahead = transformer->ahead = calloc(1, sizeof *ahead);
    if (!ahead)
        return td_fail(TD_ERR_MEMORY, "no memory for the list of weights");
    ahead->context = (td_op_context){.ops = transformer->context.ops, .device = device};
    TD_TRY(list_uses(transformer));
    TD_TRY(device->table->stream_create(device, &ahead->context.stream));
    TD_TRY(take_buffers(ahead, buffer_bytes(transformer)));
    if (ahead->buffers[N_BUFFERS - 1].memory)
        return TD_OK;
    td_info("there is no memory left to dequantize weights ahead");
    td_transformer_destroy_ahead(transformer);
    return TD_OK;
}

void td_transformer_destroy_ahead(td_transformer *transformer) {
    td_ahead *ahead = transformer->ahead;
    const td_device *device = transformer->context.device;
    if (!ahead)
        return;
    if (ahead->context.stream)
        (void)device->table->stream_synchronize(ahead->context.stream);
    for (int i = 0; i < N_BUFFERS; i++) {
        device->table->event_destroy(ahead->buffers[i].filled);
        device->table->event_destroy(ahead->buffers[i].read);
        device->table->free(device, ahead->buffers[i].memory);
    }
    device->table->stream_destroy(ahead->context.stream);
    free(ahead->uses);
    free(ahead->segments);
    free(ahead);
    transformer->ahead = NULL;
}

int64_t td_transformer_ahead_count(const td_transformer *transformer) {
    return transformer->ahead ? transformer->ahead->count : 0;
}

// Queues the next weight that has no copy into `to`, behind the product that read it last.
static td_status fill(td_ahead *ahead, ahead_buffer *to) {
    const td_device_table *device = ahead->context.device->table;
    while (ahead->fill < ahead->fill_end && ahead->uses[ahead->fill]->resident)
        ahead->fill++;
    if (ahead->fill >= ahead->fill_end)
        return TD_OK;
    to->weight = *ahead->uses[ahead->fill++];
    td_dequantize_args args = {
        .matrix = &to->weight, .row_count = to->weight.rows, .out = to->memory, .out_is_act = 1};
    TD_TRY(device->event_wait(to->read, ahead->context.stream));
    TD_TRY(ahead->context.ops->dequantize(&ahead->context, &args));
    to->weight.resident = to->memory;
    ahead->n_filled++;
    ahead->count++;
    return device->event_record(to->filled, ahead->context.stream);
}

// Whatever the buffers held, what is queued on the context's stream reads it first.
static td_status start(td_transformer *transformer, int64_t use) {
    td_ahead *ahead = transformer->ahead;
    const td_device_table *device = transformer->context.device->table;
    ahead->next = ahead->fill = use;
    ahead->n_filled = ahead->n_acquired = 0;
    for (int i = 0; i < N_BUFFERS; i++)
        TD_TRY(device->event_record(ahead->buffers[i].read, transformer->context.stream));
    for (int i = 0; i < N_BUFFERS; i++)
        TD_TRY(fill(ahead, &ahead->buffers[i]));
    return TD_OK;
}

td_status td_transformer_begin_ahead(td_transformer *transformer, int64_t segment,
                                     int is_recorded) {
    td_ahead *ahead = transformer->ahead;
    if (!ahead)
        return TD_OK;
    const ahead_span *span = &ahead->segments[segment];
    int goes_on = segment > 0 && !is_recorded && ahead->can_go_on && ahead->next == span->begin;
    ahead->can_go_on = !is_recorded;
    if (goes_on)
        return TD_OK;
    int looks_further = transformer->sink && !is_recorded;
    ahead->fill_end = looks_further ? ahead->n_uses : span->end;
    return start(transformer, span->begin);
}

td_status td_transformer_acquire_weight(td_transformer *transformer, int64_t layer,
                                        td_projection projection, const td_matrix **out) {
    td_ahead *ahead = transformer->ahead;
    const td_matrix *weight = &transformer->base->layers[layer].linear[projection];
    *out = weight;
    if (!ahead || weight->format != TD_MATRIX_NF4)
        return TD_OK;
    if (ahead->next >= ahead->n_uses || ahead->uses[ahead->next] != weight)
        return td_fail(TD_ERR_INTERNAL, "the weight of projection %d of layer %lld is not the next",
                       (int)projection, (long long)layer);
    ahead->next++;
    if (weight->resident)
        return TD_OK;
    ahead_buffer *buffer = &ahead->buffers[ahead->n_acquired++ % N_BUFFERS];
    *out = &buffer->weight;
    return transformer->context.device->table->event_wait(buffer->filled,
                                                          transformer->context.stream);
}

td_status td_transformer_release_weight(td_transformer *transformer, const td_matrix *weight) {
    td_ahead *ahead = transformer->ahead;
    for (int i = 0; ahead && i < N_BUFFERS; i++) {
        ahead_buffer *buffer = &ahead->buffers[i];
        if (weight != &buffer->weight)
            continue;
        TD_TRY(transformer->context.device->table->event_record(buffer->read,
                                                                transformer->context.stream));
        return fill(ahead, buffer);
    }
    return TD_OK;
}
