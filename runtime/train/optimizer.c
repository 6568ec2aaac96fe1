#include "runtime/train/optimizer.h"

#include <math.h>
#include <stdlib.h>

#include "runtime/core/progress.h"
#include "runtime/train/exact_sum.h"

size_t td_optimizer_state_bytes(td_optimizer_kind kind, int64_t page_elements) {
    return kind == TD_OPTIM_ADAMW_8BIT ? td_adamw_8bit_state_bytes(page_elements)
                                       : td_adamw_state_bytes(page_elements);
}

td_status td_optimizer_init(td_optimizer *optimizer, const td_config *config,
                            const td_op_context *context, td_comm *comm, td_pager *pager,
                            td_parameters *parameters, td_arena *arena) {
    const td_page_map *map = &parameters->map;
    int64_t longest = map->page_elements < map->n_elements ? map->page_elements : map->n_elements;
    *optimizer = (td_optimizer){
        .config = config,
        .context = *context,
        .comm = comm,
        .pager = pager,
        .parameters = parameters,
        .page_gradient = td_arena_take(arena, (size_t)longest, sizeof(float)),
        .page_slots = calloc((size_t)map->n_pages, sizeof(int64_t)),
        .requests = calloc((size_t)map->n_pages, sizeof(td_request)),
    };
    if (optimizer->page_slots && optimizer->requests)
        return TD_OK;
    td_optimizer_fini(optimizer);
    return td_fail(TD_ERR_MEMORY, "no memory for the page tables");
}

void td_optimizer_fini(td_optimizer *optimizer) {
    free(optimizer->requests);
    free(optimizer->page_slots);
    *optimizer = (td_optimizer){0};
}

static int is_mine(const td_optimizer *optimizer, int64_t page) {
    return td_page_map_owner(&optimizer->parameters->map, page) == td_comm_rank(optimizer->comm);
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

td_status td_optimizer_norm(td_optimizer *optimizer, double *out_norm) {
    const td_page_map *map = &optimizer->parameters->map;
    for (int64_t page = 0; page < map->n_pages; page++) {
        double sum_squares = 0;
        float *gradient;
        if (is_mine(optimizer, page)) {
            TD_TRY(page_gradient(optimizer, page, &gradient, &sum_squares));
            TD_TRY(optimizer->context.device->table->stream_synchronize(optimizer->context.stream));
        }
        optimizer->page_slots[page] = td_bits_of_double(sum_squares);
    }
    TD_TRY(td_comm_allreduce_i64(optimizer->comm, optimizer->page_slots, (size_t)map->n_pages,
                                 "gradient norm"));
    *out_norm = sqrt(td_sum_slots(optimizer->page_slots, map->n_pages));
    return TD_OK;
}

// torch.nn.utils.clip_grad_norm_: max_norm / (norm + 1e-6), never above 1.
static float clip_scale(const td_config *config, double norm) {
    if (config->max_grad_norm <= 0)
        return 1.0f;
    return (float)fmin(1.0, config->max_grad_norm / (norm + 1e-6));
}

static td_status update_page(td_optimizer *optimizer, int64_t page, double norm,
                             double learning_rate, int64_t update) {
    const td_config *config = optimizer->config;
    const td_op_context *context = &optimizer->context;
    td_page_span span = td_page_map_span(&optimizer->parameters->map, page);
    void *state;
    float *gradient;
    TD_TRY(td_pager_acquire(optimizer->pager, page, context->stream, &state));
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
    int rank = td_comm_rank(optimizer->comm), size = td_comm_size(optimizer->comm);
    td_progress_phase(TD_PHASE_UPDATE);
    for (int64_t page = rank; page < map->n_pages; page += size) {
        if (page + size < map->n_pages)
            TD_TRY(td_pager_prefetch(optimizer->pager, page + size));
        TD_TRY(update_page(optimizer, page, norm, learning_rate, update));
        td_progress_tick();
    }
    return optimizer->context.device->table->stream_synchronize(optimizer->context.stream);
}

td_status td_optimizer_gather(td_optimizer *optimizer) {
    const td_page_map *map = &optimizer->parameters->map;
    td_progress_phase(TD_PHASE_GATHER);
    for (int64_t page = 0; page < map->n_pages; page++) {
        td_page_span span = td_page_map_span(map, page);
        TD_TRY(td_comm_broadcast_start(optimizer->comm, optimizer->parameters->values + span.begin,
                                       (size_t)span.count * sizeof(float),
                                       td_page_map_owner(map, page), "parameter gather",
                                       &optimizer->requests[page]));
    }
    for (int64_t page = 0; page < map->n_pages; page++)
        TD_TRY(td_comm_wait(optimizer->comm, optimizer->requests[page]));
    return TD_OK;
}
