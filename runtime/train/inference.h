// A model ready to be asked: session, base, adapter, and a transformer that only goes forward.
#ifndef TANDEM_TRAIN_INFERENCE_H
#define TANDEM_TRAIN_INFERENCE_H

#include "model/transformer.h"
#include "runtime/train/evaluation.h"
#include "runtime/train/run_data.h"
#include "runtime/train/session.h"

typedef struct td_inference {
    td_session session;
    td_arena arena;    // parameters
    float *parameters; // flat vector, or NULL: the base model
    td_transformer *transformer;
} td_inference;

// Collective. Loads the base and, when the config names one, the adapter. Zero-initialise; close
// also after failure.
td_status td_inference_open(td_inference *inference, const td_config *config, td_comm *comm);
// Local. Waits for what is queued.
void td_inference_close(td_inference *inference);

// Collective. Makes the transformer, anew when there is one, for calls of up to max_tokens in
// max_sequences sequences. TD_ERR_MEMORY with the numbers when it does not fit.
td_status td_inference_prepare(td_inference *inference, int64_t max_tokens, int64_t max_sequences,
                               int64_t max_positions);

#endif
