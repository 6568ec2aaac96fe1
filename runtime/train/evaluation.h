// Token-weighted mean loss over a token store, and exact match of generated answers. The same
// numbers on any number of ranks.
#ifndef TANDEM_TRAIN_EVALUATION_H
#define TANDEM_TRAIN_EVALUATION_H

#include "model/generate.h"
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
// whichever is more. Zero-initialise; fini also after failure.
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

typedef struct td_exact_match {
    int64_t n_rows, n_matches;
    int64_t n_skipped; // rows that ask nothing, are too long, or malformed where that is allowed
} td_exact_match;

typedef struct td_exact_match_options {
    int64_t limit; // rows to take from the start of the file; 0: all
    int64_t max_new_tokens;
    int64_t max_length; // prompts are at most this long
    int show;           // rank 0 logs this many mismatches
} td_exact_match_options;

// Collective. For every {"messages"} row of the JSONL file whose last message is the assistant's:
// the rest is the prompt, the model answers greedily, and the answer must equal the last message
// byte for byte. Other chats, prompts longer than max_length (unless too_long is "error") and, with
// bad_rows "skip", malformed rows are skipped and counted. The ranks share the rows.
td_status td_evaluation_exact_match(const td_session *session, td_transformer *transformer,
                                    const float *parameters, const char *path,
                                    const td_exact_match_options *options, td_exact_match *out);

#endif
