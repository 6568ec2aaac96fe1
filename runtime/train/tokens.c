#include "runtime/train/tokens.h"

#include <stdlib.h>

td_status td_token_loader_init(td_token_loader *loader, td_store *store, int64_t max_tokens,
                               int64_t max_rows) {
    size_t tokens = (size_t)max_tokens;
    *loader = (td_token_loader){.store = store, .max_tokens = max_tokens, .max_rows = max_rows};
    loader->ids = calloc(tokens, sizeof *loader->ids);
    loader->target_rows = calloc(tokens, sizeof *loader->target_rows);
    loader->targets = calloc(tokens, sizeof *loader->targets);
    loader->trained = calloc(tokens, sizeof *loader->trained);
    loader->cu = calloc((size_t)max_rows + 1, sizeof *loader->cu);
    if (loader->ids && loader->target_rows && loader->targets && loader->trained && loader->cu)
        return TD_OK;
    td_token_loader_fini(loader);
    return td_fail(TD_ERR_MEMORY, "no memory for a micro-batch of %zu tokens", tokens);
}

void td_token_loader_fini(td_token_loader *loader) {
    free(loader->cu);
    free(loader->trained);
    free(loader->targets);
    free(loader->target_rows);
    free(loader->ids);
    *loader = (td_token_loader){0};
}

size_t td_token_loader_bytes(int64_t max_tokens, int64_t max_rows) {
    return (size_t)max_tokens * (3 * sizeof(int32_t) + 1) +
           (size_t)(max_rows + 1) * sizeof(int32_t);
}

static void add_targets(td_token_loader *loader, int64_t begin, int64_t end, int64_t *n_targets) {
    for (int64_t t = begin + 1; t < end; t++)
        if (loader->trained[t]) {
            loader->target_rows[*n_targets] = (int32_t)(t - 1);
            loader->targets[(*n_targets)++] = loader->ids[t];
        }
}

td_status td_token_loader_read(td_token_loader *loader, const td_micro_batch *micro_batch,
                               td_token_batch *out) {
    const int64_t *offsets = td_store_offsets(loader->store);
    int64_t n_tokens = 0, n_targets = 0;
    if (micro_batch->n_tokens > loader->max_tokens || micro_batch->n_rows > loader->max_rows)
        return td_fail(TD_ERR_INTERNAL, "a micro-batch of %lld tokens, planned for %lld",
                       (long long)micro_batch->n_tokens, (long long)loader->max_tokens);
    for (int64_t i = 0; i < micro_batch->n_rows; i++) {
        int64_t row = micro_batch->rows[i];
        loader->cu[i] = (int32_t)n_tokens;
        TD_TRY(td_store_read_row(loader->store, row, loader->ids + n_tokens,
                                 loader->trained + n_tokens));
        int64_t end = n_tokens + offsets[row + 1] - offsets[row];
        add_targets(loader, n_tokens, end, &n_targets);
        n_tokens = end;
    }
    loader->cu[micro_batch->n_rows] = (int32_t)n_tokens;
    *out = (td_token_batch){
        .n_tokens = n_tokens,
        .ids = loader->ids,
        .n_sequences = micro_batch->n_rows,
        .cu = loader->cu,
        .n_targets = n_targets,
        .target_rows = loader->target_rows,
        .targets = loader->targets,
    };
    return TD_OK;
}
