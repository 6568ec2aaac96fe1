#include "runtime/train/optimizer.h"

#include <math.h>
#include <stdlib.h>

#include "runtime/core/fault.h"
#include "runtime/core/progress.h"
#include "runtime/train/exact_sum.h"

size_t td_optimizer_state_bytes(td_optimizer_kind kind, int64_t page_elements) {
    return kind == TD_OPTIM_ADAMW_8BIT ? td_adamw_8bit_state_bytes(page_elements)
                                       : td_adamw_state_bytes(page_elements);
}

size_t td_optimizer_host_bytes(int64_t n_pages) {
    return td_mul_bytes((size_t)n_pages, sizeof(double) + sizeof(int64_t) + sizeof(td_request));
}

void td_optimizer_take(td_optimizer *optimizer, const td_page_map *map, td_arena *arena) {
    int64_t longest = map->page_elements < map->n_elements ? map->page_elements : map->n_elements;
    optimizer->page_gradient = td_arena_take(arena, (size_t)longest, sizeof(float));
}

td_status td_optimizer_init(td_optimizer *optimizer, const td_config *config,
                            const td_op_context *context, td_device_comm *device_comm,
                            td_pager *pager, td_parameters *parameters) {
    const td_device *device = context->device;
    size_t n_pages = (size_t)parameters->map.n_pages;
    void *sums = NULL;
    optimizer->config = config;
    optimizer->context = *context;
    optimizer->device_comm = device_comm;
    optimizer->pager = pager;
    optimizer->parameters = parameters;
    TD_TRY(
        device->table->alloc_pinned(device, n_pages * sizeof(double), "sums of the pages", &sums));
    optimizer->page_sums = sums;
    optimizer->page_slots = calloc(n_pages, sizeof *optimizer->page_slots);
    optimizer->requests = calloc(n_pages, sizeof *optimizer->requests);
    if (optimizer->page_slots && optimizer->requests)
        return TD_OK;
    td_optimizer_fini(optimizer);
    return td_fail(TD_ERR_MEMORY, "no memory for the page tables");
}

void td_optimizer_fini(td_optimizer *optimizer) {
    const td_device *device = optimizer->context.device;
    if (optimizer->page_sums)
        device->table->free_pinned(device, optimizer->page_sums);
    free(optimizer->page_slots);
    free(optimizer->requests);
    *optimizer = (td_optimizer){0};
}

static int is_mine(const td_optimizer *optimizer, int64_t page) {
    return td_page_map_owner(&optimizer->parameters->map, page) ==
           td_comm_rank(optimizer->device_comm->comm);
}

// The page's gradient in fp32 and, when wanted, the sum of its squares.
static td_status page_gradient(const td_optimizer *optimizer, int64_t page, float **out_gradient,
                               double *out_sum_squares) {
    td_page_span span = td_page_map_span(&optimizer->parameters->map, page);
    const td_op_context *context = &optimizer->context;
    if (optimizer->config->reduce == TD_REDUCE_FP32) {
        *out_gradient = optimizer->parameters->floats + span.begin;
        if (!out_sum_squares)
            return TD_OK;
        return context->ops->sum_squares(context, &(td_sum_squares_args){
                                                      .n_elements = span.count,
                                                      .values = *out_gradient,
                                                      .sum_squares = out_sum_squares,
                                                  });
    }
    *out_gradient = optimizer->page_gradient;
    return context->ops->fixed_to_f32(
        context, &(td_fixed_to_f32_args){
                     .n_elements = span.count,
                     .accumulator = optimizer->parameters->fixed + span.begin,
                     .quantum_log2 = (int)optimizer->config->gradient_quantum_log2,
                     .values = *out_gradient,
                     .sum_squares = out_sum_squares,
                 });
}

// The norms of all owned pages are queued before the one wait.
static td_status sum_owned_pages(td_optimizer *optimizer) {
    const td_op_context *context = &optimizer->context;
    float *gradient;
    for (int64_t page = 0; page < optimizer->parameters->map.n_pages; page++)
        if (is_mine(optimizer, page))
            TD_TRY(page_gradient(optimizer, page, &gradient, &optimizer->page_sums[page]));
    return context->device->table->stream_synchronize(context->stream);
}

td_status td_optimizer_norm(td_optimizer *optimizer, double *out_norm) {
    int64_t n_pages = optimizer->parameters->map.n_pages;
    int64_t *slots = optimizer->page_slots;
    TD_TRY(sum_owned_pages(optimizer));
    for (int64_t page = 0; page < n_pages; page++)
        slots[page] = is_mine(optimizer, page) ? td_bits_of_double(optimizer->page_sums[page]) : 0;
    TD_TRY(td_comm_allreduce_i64(optimizer->device_comm->comm, slots, (size_t)n_pages,
                                 "gradient norm"));
    *out_norm = sqrt(td_sum_slots(slots, n_pages));
    return TD_OK;
}

// torch.nn.utils.clip_grad_norm_: max_norm / (norm + 1e-6), never above 1.
static float clip_scale(const td_config *config, double norm) {
    if (config->max_grad_norm <= 0)
        return 1.0f;
    return (float)fmin(1.0, config->max_grad_norm / (norm + 1e-6));
}

// `next`, if it is a page, is brought meanwhile: behind `page` on the copy stream, and not in its
// place in the cache.
static td_status update_page(td_optimizer *optimizer, int64_t page, int64_t next, double norm,
                             double learning_rate, int64_t update) {
    const td_config *config = optimizer->config;
    const td_op_context *context = &optimizer->context;
    td_page_span span = td_page_map_span(&optimizer->parameters->map, page);
    void *state;
    float *gradient;
    TD_TRY(td_pager_acquire(optimizer->pager, page, context->stream, &state));
    if (next >= 0 && next < optimizer->parameters->map.n_pages)
        TD_TRY(td_pager_prefetch(optimizer->pager, next));
    TD_TRY(page_gradient(optimizer, page, &gradient, NULL));
    td_adamw_args args = {
        .n_elements = span.count,
        .page_elements = optimizer->parameters->map.page_elements,
        .parameters = optimizer->parameters->values + span.begin,
        .gradient = gradient,
        .state = state,
        .gradient_scale = clip_scale(config, norm),
        .learning_rate = learning_rate,
        .beta1 = config->adam_beta1,
        .beta2 = config->adam_beta2,
        .epsilon = config->adam_epsilon,
        .weight_decay = config->weight_decay,
        .step = update,
    };
    TD_TRY(config->optim == TD_OPTIM_ADAMW_8BIT ? context->ops->adamw_8bit(context, &args)
                                                : context->ops->adamw(context, &args));
    return td_pager_release(optimizer->pager, page, context->stream, 1);
}

td_status td_optimizer_update(td_optimizer *optimizer, double norm, double learning_rate,
                              int64_t update) {
    const td_page_map *map = &optimizer->parameters->map;
    const td_comm *comm = optimizer->device_comm->comm;
    int rank = td_comm_rank(comm), size = td_comm_size(comm);
    td_progress_phase(TD_PHASE_UPDATE);
    TD_TRY(TD_FAULT("update"));
    // Back and forth: the pages that an update ends with are still in the cache when the next
    // begins.
    int64_t owned = td_page_map_owned_count(map, rank), step = update % 2 ? size : -size;
    int64_t page = update % 2 ? rank : rank + (owned - 1) * size;
    for (int64_t i = 0; i < owned; i++, page += step) {
        TD_TRY(update_page(optimizer, page, page + step, norm, learning_rate, update));
        td_progress_tick();
    }
    return TD_OK;
}

td_status td_optimizer_gather(td_optimizer *optimizer) {
    const td_page_map *map = &optimizer->parameters->map;
    td_device_comm *device_comm = optimizer->device_comm;
    td_stream *stream = optimizer->context.stream;
    td_progress_phase(TD_PHASE_GATHER);
    TD_TRY(TD_FAULT("gather"));
    for (int64_t page = 0; page < map->n_pages; page++) {
        td_page_span span = td_page_map_span(map, page);
        float *values = optimizer->parameters->values + span.begin;
        TD_TRY(device_comm->transport->broadcast_start(
            device_comm, values, (size_t)span.count * sizeof(float), td_page_map_owner(map, page),
            stream, "parameter gather", &optimizer->requests[page]));
    }
    for (int64_t page = 0; page < map->n_pages; page++)
        TD_TRY(device_comm->transport->wait(device_comm, optimizer->requests[page], stream));
    return TD_OK;
}
