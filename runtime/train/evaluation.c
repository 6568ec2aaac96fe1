#include "runtime/train/evaluation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/progress.h"
#include "runtime/train/exact_sum.h"

static td_status init(td_evaluation *evaluation, td_store *store, int64_t capacity) {
    td_comm *comm = evaluation->comm;
    td_sampler_options options = {
        .n_rows = td_store_rows(store),
        .offsets = td_store_offsets(store),
        .row_trained = td_store_row_trained(store),
        .packing = 1,
        .micro_batch_tokens = capacity,
        .accumulation = INT64_MAX,
    };
    TD_TRY(td_sampler_create(&options, &evaluation->sampler));
    TD_TRY(td_sampler_batch(evaluation->sampler, 0, &evaluation->batch));
    size_t count = (size_t)evaluation->batch.n_micro_batches;
    evaluation->owners = calloc(count, sizeof *evaluation->owners);
    evaluation->slots = calloc(count, sizeof *evaluation->slots);
    if (!evaluation->owners || !evaluation->slots)
        return td_fail(TD_ERR_MEMORY, "no memory for the evaluation's tables");
    td_assign(&evaluation->batch, td_comm_size(comm), evaluation->owners);
    return td_token_loader_init(&evaluation->loader, store,
                                td_sampler_max_tokens(evaluation->sampler),
                                td_sampler_max_rows(evaluation->sampler));
}

td_status td_evaluation_init(td_evaluation *evaluation, const td_config *config, td_comm *comm,
                             td_store *store) {
    int64_t capacity = config->micro_batch_tokens > config->max_length ? config->micro_batch_tokens
                                                                       : config->max_length;
    int64_t longest = td_store_longest_row(store);
    capacity = capacity > longest ? capacity : longest;
    *evaluation = (td_evaluation){.comm = comm, .store = store};
    return td_comm_agree(comm, init(evaluation, store, capacity), "evaluation data");
}

void td_evaluation_fini(td_evaluation *evaluation) {
    td_token_loader_fini(&evaluation->loader);
    free(evaluation->slots);
    free(evaluation->owners);
    td_sampler_destroy(evaluation->sampler);
    *evaluation = (td_evaluation){0};
}

int64_t td_evaluation_max_tokens(const td_evaluation *evaluation) {
    return td_sampler_max_tokens(evaluation->sampler);
}

int64_t td_evaluation_max_rows(const td_evaluation *evaluation) {
    return td_sampler_max_rows(evaluation->sampler);
}

td_status td_evaluation_loss(td_evaluation *evaluation, td_transformer *transformer,
                             const float *parameters, double *out_loss) {
    const td_batch *batch = &evaluation->batch;
    size_t count = (size_t)batch->n_micro_batches;
    td_progress_phase(TD_PHASE_EVALUATE);
    memset(evaluation->slots, 0, count * sizeof *evaluation->slots);
    for (size_t i = 0; i < count; i++) {
        td_token_batch tokens;
        double loss;
        if (evaluation->owners[i] != td_comm_rank(evaluation->comm))
            continue;
        TD_TRY(td_token_loader_read(&evaluation->loader, &batch->micro_batches[i], &tokens));
        TD_TRY(td_transformer_loss(transformer, parameters, &tokens, &loss));
        evaluation->slots[i] = td_bits_of_double(loss);
    }
    TD_TRY(td_comm_allreduce_i64(evaluation->comm, evaluation->slots, count, "evaluation losses"));
    double mean = td_sum_slots(evaluation->slots, (int64_t)count) / (double)batch->n_trained;
    if (!isfinite(mean)) {
        td_comm_set_agreed(evaluation->comm); // every rank has the same sum
        return td_fail(TD_ERR_NUMERIC, "the evaluation loss is not finite");
    }
    *out_loss = mean;
    return TD_OK;
}
