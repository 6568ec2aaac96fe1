// From rows of the token store to what the transformer takes: one flat stream with sequence borders
// and targets.
#ifndef TANDEM_TRAIN_TOKENS_H
#define TANDEM_TRAIN_TOKENS_H

#include "model/transformer.h"
#include "runtime/data/sampler.h"
#include "runtime/data/store.h"

// Buffers for the largest micro-batch, allocated once.
typedef struct td_token_loader {
    td_store *store; // not owned
    int64_t max_tokens, max_rows;
    int32_t *ids, *target_rows, *targets; // (max_tokens)
    uint8_t *trained;                     // (max_tokens)
    int32_t *cu;                          // (max_rows + 1)
} td_token_loader;

td_status td_token_loader_init(td_token_loader *loader, td_store *store, int64_t max_tokens,
                               int64_t max_rows);
void td_token_loader_fini(td_token_loader *loader);
// Bytes of host memory that init takes.
size_t td_token_loader_bytes(int64_t max_tokens, int64_t max_rows);

// Reads the rows of a micro-batch. *out points into the loader until the next call. Position t of a
// row predicts its token t + 1 when that one is trained.
td_status td_token_loader_read(td_token_loader *loader, const td_micro_batch *micro_batch,
                               td_token_batch *out);

#endif
