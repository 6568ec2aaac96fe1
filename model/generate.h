// Generating text token by token with a key-value cache: greedy, or temperature with nucleus
// (top-p) sampling.
#ifndef TANDEM_MODEL_GENERATE_H
#define TANDEM_MODEL_GENERATE_H

#include "model/transformer.h"

typedef struct td_generate_options {
    int64_t max_new_tokens;
    double temperature; // 0: greedy
    double top_p;       // in (0, 1]; 1: no cut
    uint64_t seed;
    uint32_t sequence;       // makes the random numbers of one prompt its own
    const int32_t *stop_ids; // (n_stop_ids)
    int n_stop_ids;
    // Called with every new token, the stop token not included; may be NULL.
    void (*on_token)(void *self, int32_t id);
    void *self;
} td_generate_options;

// Continues `prompt` (n_prompt >= 1 ids). The cache is cleared first and must hold n_prompt +
// max_new_tokens. out_ids has room for max_new_tokens; the stop token is not stored. parameters may
// be NULL: the base model.
td_status td_generate(td_transformer *transformer, const float *parameters, td_kv_cache *cache,
                      const int32_t *prompt, int64_t n_prompt, const td_generate_options *options,
                      int32_t *out_ids, int64_t *out_count);

// Next token from one row of logits, which is overwritten. Ties: the lowest id. `scratch`: (n)
// int32.
int32_t td_sample(float *logits, int64_t n, double temperature, double top_p, float uniform,
                  int32_t *scratch);

#endif
