#include "runtime/train/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/fault.h"
#include "runtime/core/progress.h"
#include "runtime/train/exact_sum.h"

// Where the parts of the table of slots begin.
typedef struct step_slots {
    int64_t faults;   // (ranks)
    int64_t stop;     // (1)
    int64_t replicas; // (ranks) checks of the parameters
    int64_t pages;    // (n_pages) sum over the ranks of the checks before the reduction, less the
                      // owner's check after it: zero
    int64_t end;
} step_slots;

static step_slots slots_of(const td_step *step) {
    int64_t size = td_comm_size(step->comm);
    step_slots slots = {.faults = step->max_micro_batches};
    slots.stop = slots.faults + size;
    slots.replicas = slots.stop + 1;
    slots.pages = slots.replicas + size;
    slots.end = slots.pages + step->parameters->map.n_pages;
    return slots;
}

// One rank sends nothing, and sums of floats have no check.
static int is_sum_checked(const td_step *step) {
    return step->config->reduce == TD_REDUCE_EXACT && td_comm_size(step->comm) > 1;
}

static td_status add_check(const td_step *step, const void *values, int64_t count, int64_t check) {
    const td_op_context *context = &step->optimizer->context;
    return context->ops->word_sum(context, &(td_word_sum_args){
                                               .n_elements = count,
                                               .words = values,
                                               .sum = step->parameters->checks + check,
                                           });
}

static td_status check_page(const td_step *step, int64_t page, int64_t check) {
    td_page_span span = td_page_map_span(&step->parameters->map, page);
    return add_check(step, step->parameters->fixed + span.begin, span.count, check);
}

// Checks of the pages that are final, before they are sent.
static td_status check_before(td_step *step, int64_t first_final_element) {
    const td_page_map *map = &step->parameters->map;
    while (is_sum_checked(step) && step->first_checked > 0 &&
           td_page_map_span(map, step->first_checked - 1).begin >= first_final_element) {
        int64_t page = --step->first_checked;
        td_page_span span = td_page_map_span(map, page);
        TD_TRY(check_page(step, page, page));
        TD_TRY(TD_FAULT_DATA("accumulator", step->parameters->fixed + span.begin,
                             (size_t)span.count * sizeof(int64_t)));
    }
    return TD_OK;
}

static td_status check_after(td_step *step) {
    const td_page_map *map = &step->parameters->map;
    int rank = td_comm_rank(step->comm);
    for (int64_t page = rank; is_sum_checked(step) && page < map->n_pages; page += map->size)
        TD_TRY(check_page(step, page, map->n_pages + page));
    return TD_OK;
}

td_status td_step_init(td_step *step) {
    int64_t per_epoch = td_sampler_micro_batches_per_epoch(step->sampler);
    int64_t wanted = step->config->gradient_accumulation_steps;
    step->max_micro_batches = wanted < per_epoch ? wanted : per_epoch;
    step->slot_count = slots_of(step).end;
    step->owners = calloc((size_t)step->max_micro_batches, sizeof *step->owners);
    step->slots = calloc((size_t)step->slot_count, sizeof *step->slots);
    step->checks =
        calloc((size_t)td_parameter_check_count(&step->parameters->map), sizeof *step->checks);
    if (step->owners && step->slots && step->checks)
        return TD_OK;
    td_step_fini(step);
    return td_fail(TD_ERR_MEMORY, "no memory for the tables of a step");
}

void td_step_fini(td_step *step) {
    free(step->checks);
    free(step->slots);
    free(step->owners);
    step->checks = NULL;
    step->slots = NULL;
    step->owners = NULL;
}

// Gradient sink: a module's gradient is added to the flat accumulators.
static td_status add_module(void *self, int64_t offset, int64_t count, const float *values) {
    td_step *step = self;
    td_parameters *parameters = step->parameters;
    const td_op_context *context = &step->optimizer->context;
    TD_TRY(TD_FAULT_DATA("gradient", (void *)values, (size_t)count * sizeof *values));
    if (step->config->reduce == TD_REDUCE_FP32)
        return context->ops->f32_add(context, &(td_f32_add_args){
                                                  .n_elements = count,
                                                  .values = values,
                                                  .accumulator = parameters->floats + offset,
                                                  .faults = parameters->faults,
                                              });
    return context->ops->fixed_add(context,
                                   &(td_fixed_add_args){
                                       .n_elements = count,
                                       .values = values,
                                       .accumulator = parameters->fixed + offset,
                                       .quantum_log2 = (int)step->config->gradient_quantum_log2,
                                       .limit = INT64_MAX / td_comm_size(step->comm),
                                       .faults = parameters->faults,
                                   });
}

// Gradient sink: while the last micro-batch goes back, finished layers are reduced.
static td_status layer_done(void *self, int64_t layer) {
    td_step *step = self;
    TD_TRY(TD_FAULT("backward"));
    if (!step->last_of_mine)
        return TD_OK;
    int64_t first_final = td_lora_layer_begin(step->lora, layer);
    TD_TRY(check_before(step, first_final));
    return td_buckets_advance(step->buckets, first_final, step->optimizer->context.stream);
}

static td_status zero_gradients(td_step *step) {
    td_parameters *parameters = step->parameters;
    const td_op_context *context = &step->optimizer->context;
    size_t count = (size_t)parameters->map.n_elements;
    const td_device_table *device = context->device->table;
    size_t n_checks = (size_t)td_parameter_check_count(&parameters->map);
    TD_TRY(device->set(context->stream, parameters->faults, 0, sizeof *parameters->faults));
    TD_TRY(
        device->set(context->stream, parameters->checks, 0, n_checks * sizeof *parameters->checks));
    step->first_checked = parameters->map.n_pages;
    if (td_comm_size(step->comm) > 1)
        TD_TRY(add_check(step, parameters->values, (parameters->map.n_elements + 1) / 2,
                         2 * parameters->map.n_pages));
    if (step->config->reduce == TD_REDUCE_FP32)
        return device->set(context->stream, parameters->floats, 0, count * sizeof(float));
    return device->set(context->stream, parameters->fixed, 0, count * sizeof(int64_t));
}

static td_status run_micro_batch(td_step *step, int64_t index, const td_batch *batch, int64_t i) {
    td_gradient_sink sink = {.module_done = add_module, .layer_done = layer_done, .self = step};
    td_dropout_key dropout = {
        .seed = (uint64_t)step->config->seed,
        .step = (uint32_t)index,
        .micro_batch = (uint32_t)i,
        .probability = step->lora->dropout,
    };
    td_token_batch tokens;
    double loss;
    td_progress_micro_batch((uint32_t)i);
    td_progress_phase(TD_PHASE_FORWARD);
    TD_TRY(TD_FAULT("forward"));
    TD_TRY(td_token_loader_read(step->loader, &batch->micro_batches[i], &tokens));
    TD_TRY(td_transformer_train(step->transformer, step->parameters->values, &tokens, &dropout,
                                1.0f / (float)batch->n_trained, &sink, &loss));
    step->slots[i] = td_bits_of_double(loss);
    return TD_OK;
}

// This rank's micro-batches in ascending order.
static td_status run_mine(td_step *step, int64_t index, const td_batch *batch) {
    int rank = td_comm_rank(step->comm);
    int64_t last = -1;
    for (int64_t i = 0; i < batch->n_micro_batches; i++)
        if (step->owners[i] == rank)
            last = i;
    for (int64_t i = 0; i <= last; i++)
        if (step->owners[i] == rank) {
            step->last_of_mine = i == last;
            TD_TRY(run_micro_batch(step, index, batch, i));
        }
    step->last_of_mine = 0;
    td_progress_phase(TD_PHASE_REDUCE);
    TD_TRY(check_before(step, 0));
    return td_buckets_advance(step->buckets, 0, step->optimizer->context.stream);
}

// This rank's faults and checks, from the device to their slots.
static td_status fetch_checks(td_step *step) {
    const td_parameters *parameters = step->parameters;
    int64_t n_pages = parameters->map.n_pages;
    int rank = td_comm_rank(step->comm);
    step_slots slots = slots_of(step);
    const td_op_context *context = &step->optimizer->context;
    const td_device_table *device = context->device->table;
    size_t bytes = (size_t)td_parameter_check_count(&parameters->map) * sizeof *step->checks;
    TD_TRY(device->copy(context->stream, step->slots + slots.faults + rank, parameters->faults,
                        sizeof(int64_t)));
    TD_TRY(device->copy(context->stream, step->checks, parameters->checks, bytes));
    TD_TRY(device->stream_synchronize(context->stream));
    for (int64_t page = 0; page < n_pages; page++)
        step->slots[slots.pages + page] =
            (int64_t)((uint64_t)step->checks[page] - (uint64_t)step->checks[n_pages + page]);
    step->slots[slots.replicas + rank] = step->checks[2 * n_pages];
    return TD_OK;
}

// Every rank learns every micro-batch's loss, every rank's gradient faults, whether one was asked
// to stop, and the checks.
static td_status exchange(td_step *step, const td_batch *batch, td_step_result *out) {
    step_slots slots = slots_of(step);
    TD_TRY(check_after(step));
    TD_TRY(fetch_checks(step));
    step->slots[slots.stop] = step->stop_requested && *step->stop_requested;
    TD_TRY(td_comm_allreduce_i64(step->comm, step->slots, (size_t)step->slot_count, "losses"));
    out->loss = td_sum_slots(step->slots, batch->n_micro_batches) / (double)batch->n_trained;
    out->stop = step->slots[slots.stop] != 0;
    return TD_OK;
}

// A rank whose parameters are not those of the most ranks, -1 when all are the same. *out_most: how
// many those are.
static int odd_replica(const int64_t *checks, int size, int *out_most) {
    int reference = 0, most = 0;
    for (int rank = 0; rank < size; rank++) {
        int alike = 0;
        for (int other = 0; other < size; other++)
            alike += checks[other] == checks[rank];
        reference = alike > most ? rank : reference;
        most = alike > most ? alike : most;
    }
    *out_most = most;
    for (int rank = 0; rank < size; rank++)
        if (checks[rank] != checks[reference])
            return rank;
    return -1;
}

int td_step_replicas_agree(const td_step *step) {
    int most;
    return odd_replica(step->slots + slots_of(step).replicas, td_comm_size(step->comm), &most) < 0;
}

static td_status check_memory(const td_step *step, int64_t index) {
    const td_page_map *map = &step->parameters->map;
    step_slots slots = slots_of(step);
    for (int64_t page = 0; page < map->n_pages; page++)
        if (step->slots[slots.pages + page] != 0)
            return td_fail(TD_ERR_NUMERIC,
                           "step %lld: gradient page %lld reached rank %d as another sum than the "
                           "ranks sent: memory or network changed bits; the step was not applied "
                           "(resume from the last checkpoint)",
                           (long long)index + 1, (long long)page, td_page_map_owner(map, page));
    int size = td_comm_size(step->comm), most;
    int odd = odd_replica(step->slots + slots.replicas, size, &most);
    if (odd >= 0)
        return td_fail(
            TD_ERR_NUMERIC,
            "step %lld: the parameters of rank %d are not those of %s: memory or network "
            "changed bits; the step was not applied (resume from the last checkpoint)",
            (long long)index + 1, odd, 2 * most > size ? "the other ranks" : "another rank");
    return TD_OK;
}

static td_status check_numbers(const td_step *step, int64_t index, const td_batch *batch) {
    for (int64_t i = 0; i < batch->n_micro_batches; i++)
        if (!isfinite(td_double_of_bits(step->slots[i])))
            return td_fail(
                TD_ERR_NUMERIC,
                "step %lld: the loss of micro-batch %lld is not finite; the step was not "
                "applied (lower learning_rate, or check the data)",
                (long long)index + 1, (long long)i);
    const int64_t *faults = step->slots + slots_of(step).faults;
    for (int rank = 0; rank < td_comm_size(step->comm); rank++)
        if (faults[rank] != 0)
            return td_fail(
                TD_ERR_NUMERIC,
                "step %lld: %lld gradient values of rank %d are not finite or beyond the "
                "fixed-point range; the step was not applied (lower learning_rate)",
                (long long)index + 1, (long long)faults[rank], rank);
    return check_memory(step, index);
}

static td_status apply(td_step *step, int64_t index, td_step_result *out) {
    out->learning_rate = td_schedule_rate(&step->schedule, index);
    TD_TRY(td_optimizer_norm(step->optimizer, &out->grad_norm));
    if (!isfinite(out->grad_norm))
        return td_fail(TD_ERR_NUMERIC,
                       "step %lld: the gradient norm is not finite; the step was not "
                       "applied",
                       (long long)index + 1);
    TD_TRY(td_optimizer_update(step->optimizer, out->grad_norm, out->learning_rate, index + 1));
    TD_TRY(td_optimizer_gather(step->optimizer));
    return TD_FAULT_DATA("parameters", step->parameters->values,
                         (size_t)step->parameters->map.n_elements * sizeof(float));
}

td_status td_step_run(td_step *step, int64_t index, td_step_result *out) {
    td_batch batch;
    td_progress_step((uint32_t)index + 1);
    TD_TRY(TD_FAULT("step"));
    TD_TRY(td_sampler_batch(step->sampler, index, &batch));
    td_assign(&batch, td_comm_size(step->comm), step->owners);
    memset(step->slots, 0, (size_t)step->slot_count * sizeof *step->slots);
    td_buckets_reset(step->buckets);
    TD_TRY(zero_gradients(step));
    TD_TRY(run_mine(step, index, &batch));
    TD_TRY(td_buckets_wait(step->buckets, step->optimizer->context.stream));
    *out = (td_step_result){
        .tokens = batch.n_tokens,
        .trained_tokens = batch.n_trained,
        .micro_batches = batch.n_micro_batches,
        .epoch = batch.epoch,
    };
    TD_TRY(exchange(step, &batch, out));
    TD_TRY(check_numbers(step, index, &batch));
    return apply(step, index, out);
}
