#include "model/weight_copies.h"

#include <stdlib.h>

#include "model/base_internal.h"

// Matrices begin where wide accesses are possible.
enum { COPY_ALIGN = 256 };

static size_t matrix_bytes(int64_t rows, int64_t cols, td_dtype type) {
    size_t bytes = td_mul_bytes(td_mul_bytes((size_t)rows, (size_t)cols), td_dtype_bytes(type));
    return (bytes + COPY_ALIGN - 1) / COPY_ALIGN * COPY_ALIGN;
}

typedef struct planning {
    const td_model_config *config;
    td_base_options options;
    td_dtype activation;
    size_t limit_bytes;
    int64_t layer; // being added up
    size_t layer_bytes;
    int is_full;
    td_weight_copies_plan plan;
} planning;

static void end_layer(planning *self) {
    td_weight_copies_plan *plan = &self->plan;
    if (self->layer_bytes == 0)
        return;
    plan->n_quantized++;
    self->is_full |= self->layer_bytes > self->limit_bytes - plan->bytes;
    if (!self->is_full) {
        plan->n_copied++;
        plan->bytes += self->layer_bytes;
    }
    self->layer_bytes = 0;
}

// Layers come one after the other. Of what type whole matrices are stored makes no difference.
static td_status plan_item(void *self_pointer, const td_base_item *item) {
    planning *self = self_pointer;
    if (item->kind != TD_BASE_LINEAR ||
        td_base_format(self->config, &self->options, TD_F32, item) != TD_MATRIX_NF4)
        return TD_OK;
    if (item->layer != self->layer)
        end_layer(self);
    self->layer = item->layer;
    self->layer_bytes += matrix_bytes(item->shape[0], item->shape[1], self->activation);
    return TD_OK;
}

void td_weight_copies_plan_make(const td_model_config *config, const td_base_options *options,
                                td_dtype activation, size_t limit_bytes,
                                td_weight_copies_plan *out) {
    planning self = {.config = config,
                     .options = td_base_options_for(config, options),
                     .activation = activation,
                     .limit_bytes = limit_bytes};
    (void)td_base_visit(config, plan_item, &self);
    end_layer(&self);
    self.plan.type = activation;
    *out = self.plan;
}

static size_t layer_bytes(const td_base_layer *layer, td_dtype type) {
    size_t bytes = 0;
    for (int i = 0; i < TD_PROJ_COUNT; i++)
        if (layer->linear[i].format == TD_MATRIX_NF4 && layer->linear[i].data)
            bytes += matrix_bytes(layer->linear[i].rows, layer->linear[i].cols, type);
    return bytes;
}

// Others than this process take memory, too, and libraries take theirs when they are first used: a
// part of the device stays free whatever was planned.
static td_status has_room(const td_device *device, size_t bytes, int *out) {
    size_t free_bytes, total_bytes;
    TD_TRY(device->table->memory_info(device, &free_bytes, &total_bytes));
    *out = free_bytes >= bytes && free_bytes - bytes >= total_bytes / 64;
    return TD_OK;
}

td_status td_weight_memory_take(const td_device *device, size_t bytes, const char *purpose,
                                void **out) {
    int fits;
    *out = NULL;
    TD_TRY(has_room(device, bytes, &fits));
    if (!fits)
        return TD_OK;
    td_status status = device->table->alloc(device, bytes, purpose, out);
    if (status != TD_ERR_MEMORY)
        return status;
    td_error_clear();
    *out = NULL;
    return TD_OK;
}

static td_status fill_layer(td_base_layer *layer, const td_op_context *context,
                            unsigned char *memory) {
    for (int i = 0; i < TD_PROJ_COUNT; i++) {
        td_matrix *matrix = &layer->linear[i];
        if (matrix->format != TD_MATRIX_NF4 || !matrix->data)
            continue;
        td_dequantize_args args = {
            .matrix = matrix, .row_count = matrix->rows, .out = memory, .out_is_act = 1};
        TD_TRY(context->ops->dequantize(context, &args));
        matrix->resident = memory;
        memory += matrix_bytes(matrix->rows, matrix->cols, context->ops->activation);
    }
    return TD_OK;
}

td_status td_weight_copies_make(td_weight_copies *copies, td_base *base,
                                const td_op_context *context, int64_t n_copied) {
    int64_t n_layers = base->config.n_layers;
    copies->base = base;
    copies->device = context->device;
    copies->layers = calloc((size_t)n_layers, sizeof *copies->layers);
    if (!copies->layers)
        return td_fail(TD_ERR_MEMORY, "no memory for the table of copied layers");
    for (int64_t i = 0; i < n_layers && copies->n_copied < n_copied; i++) {
        size_t bytes = layer_bytes(&base->layers[i], context->ops->activation);
        if (bytes == 0)
            continue;
        TD_TRY(td_weight_memory_take(context->device, bytes, "copies of dequantized weights",
                                     &copies->layers[i]));
        if (!copies->layers[i])
            return TD_OK;
        TD_TRY(fill_layer(&base->layers[i], context, copies->layers[i]));
        copies->n_copied++;
    }
    return TD_OK;
}

void td_weight_copies_fini(td_weight_copies *copies) {
    for (int64_t i = 0; copies->layers && i < copies->base->config.n_layers; i++) {
        for (int j = 0; j < TD_PROJ_COUNT; j++)
            copies->base->layers[i].linear[j].resident = NULL;
        if (copies->layers[i])
            copies->device->table->free(copies->device, copies->layers[i]);
    }
    free(copies->layers);
    *copies = (td_weight_copies){0};
}
