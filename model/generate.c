#include "model/generate.h"

#include <math.h>
#include <stdlib.h>

#include "model/transformer_internal.h"
#include "runtime/core/progress.h"

static int32_t argmax(const float *logits, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

// Sift-down of a heap of ids whose root has the largest weight; equal weights: the lowest id first.
static int precedes(const float *weights, int32_t a, int32_t b) {
    return weights[a] > weights[b] || (weights[a] == weights[b] && a < b);
}

static void sift_down(const float *weights, int32_t *heap, int64_t n, int64_t i) {
    for (;;) {
        int64_t first = i, left = 2 * i + 1, right = left + 1;
        if (left < n && precedes(weights, heap[left], heap[first]))
            first = left;
        if (right < n && precedes(weights, heap[right], heap[first]))
            first = right;
        if (first == i)
            return;
        int32_t swap = heap[i];
        heap[i] = heap[first];
        heap[first] = swap;
        i = first;
    }
}

// Moves the smallest set of most likely ids whose probability reaches top_p to the end of `ids`,
// most likely last; returns its size and, in *mass, its probability.
static int64_t nucleus(const float *weights, int64_t n, double total, double top_p, int32_t *ids,
                       double *mass) {
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)i;
    for (int64_t i = n / 2 - 1; i >= 0; i--)
        sift_down(weights, ids, n, i);
    int64_t taken = 0;
    double sum = 0;
    while (taken < n && (taken == 0 || sum < top_p * total)) {
        int32_t top = ids[0];
        int64_t last = n - 1 - taken;
        ids[0] = ids[last];
        ids[last] = top;
        sum += weights[top];
        taken++;
        sift_down(weights, ids, last, 0);
    }
    *mass = sum;
    return taken;
}

int32_t td_sample(float *logits, int64_t n, double temperature, double top_p, float uniform,
                  int32_t *scratch) {
    int32_t best = argmax(logits, n);
    if (temperature <= 0)
        return best;
    float top = logits[best];
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        logits[i] = (float)exp((logits[i] - top) / temperature);
        total += logits[i];
    }
    double mass;
    int64_t count = nucleus(logits, n, total, top_p < 1 ? top_p : 1, scratch, &mass);
    double left = uniform * mass;
    for (int64_t i = 0; i < count; i++) {
        int32_t id = scratch[n - 1 - i];
        left -= logits[id];
        if (left < 0)
            return id;
    }
    return scratch[n - count];
}

// Feeds ids to the cache in pieces the transformer has room for; the logits of the last one come
// back.
static td_status feed(td_transformer *transformer, const float *parameters, td_kv_cache *cache,
                      const int32_t *ids, int64_t count, float *logits) {
    int64_t piece = transformer->options.max_tokens;
    for (int64_t begin = 0; begin < count; begin += piece) {
        int64_t n = count - begin < piece ? count - begin : piece;
        int32_t cu[2] = {0, (int32_t)n}, row = (int32_t)(n - 1);
        td_token_batch batch = {
            .n_tokens = n,
            .ids = ids + begin,
            .n_sequences = 1,
            .cu = cu,
            .n_targets = begin + n == count,
            .target_rows = &row,
        };
        TD_TRY(td_transformer_logits(transformer, parameters, &batch, cache, logits));
    }
    return TD_OK;
}

static int is_stop(const td_generate_options *options, int32_t id) {
    for (int i = 0; i < options->n_stop_ids; i++)
        if (options->stop_ids[i] == id)
            return 1;
    return 0;
}

static td_status continue_prompt(td_transformer *transformer, const float *parameters,
                                 td_kv_cache *cache, const td_generate_options *options,
                                 float *logits, int32_t *scratch, int32_t *out_ids,
                                 int64_t *out_count) {
    int64_t n = transformer->config->vocabulary, count = 0;
    uint64_t key = td_rng_key(options->seed, TD_RNG_GENERATE);
    while (count < options->max_new_tokens) {
        float uniform = td_rng_uniform(td_rng_word(key, options->sequence, 0, (uint64_t)count));
        int32_t id = td_sample(logits, n, options->temperature, options->top_p, uniform, scratch);
        if (is_stop(options, id))
            break;
        out_ids[count++] = id;
        if (options->on_token)
            options->on_token(options->self, id);
        td_progress_tick();
        if (count < options->max_new_tokens)
            TD_TRY(feed(transformer, parameters, cache, &id, 1, logits));
    }
    *out_count = count;
    return TD_OK;
}

td_status td_generate(td_transformer *transformer, const float *parameters, td_kv_cache *cache,
                      const int32_t *prompt, int64_t n_prompt, const td_generate_options *options,
                      int32_t *out_ids, int64_t *out_count) {
    if (n_prompt < 1)
        return td_fail(TD_ERR_DATA, "the prompt has no tokens");
    if (n_prompt + options->max_new_tokens > cache->capacity)
        return td_fail(
            TD_ERR_DATA, "a prompt of %lld tokens and %lld new ones exceed the %lld planned",
            (long long)n_prompt, (long long)options->max_new_tokens, (long long)cache->capacity);
    size_t n = (size_t)transformer->config->vocabulary;
    float *logits = malloc(n * sizeof *logits);
    int32_t *scratch = malloc(n * sizeof *scratch);
    td_status status = logits && scratch ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for logits");
    td_kv_cache_clear(cache);
    if (status == TD_OK)
        status = feed(transformer, parameters, cache, prompt, n_prompt, logits);
    if (status == TD_OK)
        status = continue_prompt(transformer, parameters, cache, options, logits, scratch, out_ids,
                                 out_count);
    free(scratch);
    free(logits);
    return status;
}
