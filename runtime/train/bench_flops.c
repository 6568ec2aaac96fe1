#include "runtime/train/bench_flops.h"

static double weights_of(const td_model_config *config, td_projection projection) {
    if (!td_projection_exists(config, projection))
        return 0;
    return (double)td_projection_out(config, projection) *
           (double)td_projection_in(config, projection);
}

static double adapter_of(const td_lora *lora, int64_t layer, td_projection projection) {
    const td_lora_module *module = td_lora_at(lora, layer, projection);
    return module->present ? (double)module->rank * (double)(module->in + module->out) : 0;
}

// Whether the backward pass multiplies with it going forward once more.
static int is_recomputed(td_recompute policy, td_projection projection) {
    if (policy == TD_RECOMPUTE_BLOCK)
        return projection != TD_PROJ_DOWN;
    return policy == TD_RECOMPUTE_NORMS_MLP &&
           (projection == TD_PROJ_GATE || projection == TD_PROJ_UP ||
            projection == TD_PROJ_GATE_UP);
}

// Keys that the queries of one sequence see in a layer, all together.
static double pairs_of(const td_model_config *config, int64_t layer, int64_t seq_tokens) {
    double n = (double)seq_tokens, window = (double)config->window[layer];
    if (window <= 0 || window >= n)
        return n * (n + 1) / 2;
    return window * (window + 1) / 2 + (n - window) * window;
}

static void add_layer(const td_model_config *config, const td_lora *lora,
                      const td_bench_shape *shape, int64_t layer, td_bench_flops *out) {
    double tokens = (double)(shape->seq_tokens * shape->sequences);
    for (int p = 0; p < TD_PROJ_COUNT; p++) {
        td_projection projection = (td_projection)p;
        double weights = weights_of(config, projection);
        double adapter = adapter_of(lora, layer, projection);
        int again = is_recomputed(shape->recompute, projection);
        out->base += 2 * tokens * 2 * weights;
        out->lora += 2 * tokens * 3 * adapter;
        out->recompute += again * 2 * tokens * (weights + adapter);
        out->dequantize += shape->quantized * (2 + again) * weights * (double)shape->micro_batches;
    }
    double pairs = pairs_of(config, layer, shape->seq_tokens) * (double)shape->sequences;
    double wide = pairs * (double)(config->n_heads * config->head_dim);
    out->attention += 14 * wide;
    out->recompute += shape->recompute == TD_RECOMPUTE_BLOCK ? 4 * wide : 0;
}

td_bench_flops td_bench_flops_of(const td_model_config *config, const td_lora *lora,
                                 const td_bench_shape *shape) {
    td_bench_flops out = {0};
    for (int64_t layer = 0; layer < config->n_layers; layer++)
        add_layer(config, lora, shape, layer, &out);
    double targets = (double)((shape->seq_tokens - 1) * shape->sequences);
    out.head = 2 * targets * 2 * (double)config->vocabulary * (double)config->hidden;
    out.model = out.base + out.lora + out.attention + out.head;
    return out;
}
