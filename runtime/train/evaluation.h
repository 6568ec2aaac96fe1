// Token-weighted mean loss over a token store. The same number on any number of ranks.
#ifndef TANDEM_TRAIN_EVALUATION_H
#define TANDEM_TRAIN_EVALUATION_H

#include "runtime/train/session.h"
#include "runtime/train/tokens.h"

typedef struct td_evaluation {
    td_comm *comm;
    td_store *store; // not owned
    td_sampler *sampler;
    td_token_loader loader;
    td_batch batch; // all of the store's micro-batches
    int *owners;    // (n_micro_batches)
    int64_t *slots; // (n_micro_batches) losses as bits
} td_evaluation;

// Collective. Packs the store's rows into micro-batches of micro_batch_tokens or max_length tokens,
// or of its longest row's, whichever is most. Zero-initialise; fini also after failure.
td_status td_evaluation_init(td_evaluation *evaluation, const td_config *config, td_comm *comm,
                             td_store *store);
void td_evaluation_fini(td_evaluation *evaluation);
// Of its largest micro-batches, for the transformer's plan.
int64_t td_evaluation_max_tokens(const td_evaluation *evaluation);
int64_t td_evaluation_max_rows(const td_evaluation *evaluation);

// Collective. parameters NULL: the base model. TD_ERR_NUMERIC, on every rank, when the loss is not
// finite.
td_status td_evaluation_loss(td_evaluation *evaluation, td_transformer *transformer,
                             const float *parameters, double *out_loss);

#endif
