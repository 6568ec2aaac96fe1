#include "runtime/train/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/fault.h"
#include "runtime/core/progress.h"
#include "runtime/train/exact_sum.h"

td_status td_step_init(td_step *step) {
    int64_t per_epoch = td_sampler_micro_batches_per_epoch(step->sampler);
    int64_t wanted = step->config->gradient_accumulation_steps;
    step->max_micro_batches = wanted < per_epoch ? wanted : per_epoch;
    step->slot_count = step->max_micro_batches + td_comm_size(step->comm) + 1;
    step->owners = calloc((size_t)step->max_micro_batches, sizeof *step->owners);
    step->slots = calloc((size_t)step->slot_count, sizeof *step->slots);
    if (step->owners && step->slots)
        return TD_OK;
    td_step_fini(step);
    return td_fail(TD_ERR_MEMORY, "no memory for the tables of a step");
}

void td_step_fini(td_step *step) {
    free(step->slots);
    free(step->owners);
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
    return td_buckets_advance(step->buckets, td_lora_layer_begin(step->lora, layer),
                              step->optimizer->context.stream);
}

static td_status zero_gradients(td_step *step) {
    td_parameters *parameters = step->parameters;
    const td_op_context *context = &step->optimizer->context;
    size_t count = (size_t)parameters->map.n_elements;
    const td_device_table *device = context->device->table;
    TD_TRY(device->set(context->stream, parameters->faults, 0, sizeof *parameters->faults));
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
    return td_buckets_advance(step->buckets, 0, step->optimizer->context.stream);
}

// Every rank learns every micro-batch's loss, every rank's gradient faults, and whether one was
// asked to stop.
static td_status exchange(td_step *step, const td_batch *batch, td_step_result *out) {
    int64_t most = step->max_micro_batches;
    int rank = td_comm_rank(step->comm), size = td_comm_size(step->comm);
    const td_op_context *context = &step->optimizer->context;
    TD_TRY(context->device->table->copy(context->stream, &step->slots[most + rank],
                                        step->parameters->faults, sizeof(int64_t)));
    TD_TRY(context->device->table->stream_synchronize(context->stream));
    step->slots[most + size] = step->stop_requested && *step->stop_requested;
    TD_TRY(td_comm_allreduce_i64(step->comm, step->slots, (size_t)step->slot_count, "losses"));
    out->loss = td_sum_slots(step->slots, batch->n_micro_batches) / (double)batch->n_trained;
    out->stop = step->slots[most + size] != 0;
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
    int64_t most = step->max_micro_batches;
    for (int rank = 0; rank < td_comm_size(step->comm); rank++)
        if (step->slots[most + rank] != 0)
            return td_fail(
                TD_ERR_NUMERIC,
                "step %lld: %lld gradient values of rank %d are not finite or beyond the "
                "fixed-point range; the step was not applied (lower learning_rate)",
                (long long)index + 1, (long long)step->slots[most + rank], rank);
    return TD_OK;
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
    return td_optimizer_gather(step->optimizer);
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
