#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/json.h"
#include "runtime/train/planner_internal.h"

// A tree under construction; one failure is remembered to the end.
typedef struct builder {
    int failed;
} builder;

static void put(builder *self, cJSON *object, const char *key, double value) {
    cJSON *item = isnan(value) ? cJSON_AddNullToObject(object, key)
                               : cJSON_AddNumberToObject(object, key, value);
    self->failed |= !item;
}

// 0 stands for what is not known.
static void put_known(builder *self, cJSON *object, const char *key, double value) {
    put(self, object, key, value > 0 ? value : NAN);
}

static void put_text(builder *self, cJSON *object, const char *key, const char *text) {
    cJSON *item =
        text ? cJSON_AddStringToObject(object, key, text) : cJSON_AddNullToObject(object, key);
    self->failed |= !item;
}

static void put_bool(builder *self, cJSON *object, const char *key, int value) {
    self->failed |= !cJSON_AddBoolToObject(object, key, value);
}

static cJSON *put_object(builder *self, cJSON *parent, const char *key) {
    cJSON *item = cJSON_AddObjectToObject(parent, key);
    self->failed |= !item;
    return item;
}

static cJSON *put_array(builder *self, cJSON *parent, const char *key) {
    cJSON *item = cJSON_AddArrayToObject(parent, key);
    self->failed |= !item;
    return item;
}

static cJSON *add_object(builder *self, cJSON *array) {
    cJSON *item = cJSON_CreateObject();
    if (!item || !cJSON_AddItemToArray(array, item)) {
        cJSON_Delete(item);
        self->failed = 1;
        return NULL;
    }
    return item;
}

static void add_parameters(builder *self, const td_planner *planner, cJSON *root) {
    const td_base_counts *base = &planner->base;
    cJSON *object = put_object(self, root, "parameters");
    put(self, object, "embed_tokens", (double)base->embedding);
    for (int i = 0; i < TD_PROJ_COUNT; i++)
        if (td_projection_exists(planner->options.model, (td_projection)i))
            put(self, object, strchr(td_projection_name((td_projection)i), '.') + 1,
                (double)base->projections[i]);
    put(self, object, "biases", (double)base->biases);
    put(self, object, "norms", (double)base->norms);
    int is_tied = planner->options.model->tie_word_embeddings;
    put(self, object, "lm_head", (double)(is_tied ? base->embedding : base->head));
    put_bool(self, object, "lm_head_is_tied", is_tied);
    put(self, object, "total", (double)base->total);
    put(self, object, "without_embeddings", (double)planner->without_embeddings);
}

static void add_adapter(builder *self, const td_planner *planner, cJSON *root) {
    cJSON *object = put_object(self, root, "lora");
    double trainable = (double)planner->lora.n_parameters;
    double total = (double)planner->base.total + trainable;
    put(self, object, "rank", (double)planner->options.lora->rank);
    put(self, object, "modules", (double)planner->lora.n_modules);
    put(self, object, "trainable", trainable);
    put(self, object, "total", total);
    put(self, object, "share", trainable / total);
}

static void add_capacities(builder *self, const td_planner *planner, cJSON *root) {
    cJSON *object = put_object(self, root, "capacity");
    put(self, object, "bits_per_token", planner->options.bits_per_token);
    put(self, object, "bits_per_parameter", TD_PLANNER_BITS_PER_PARAMETER);
    int best = planner->recommended;
    put(self, object, "recommended_rank", best < 0 ? NAN : (double)planner->capacities[best].rank);
    cJSON *rows = put_array(self, object, "ranks");
    for (int i = 0; i < TD_PLANNER_N_RANKS; i++) {
        const td_planner_capacity *capacity = &planner->capacities[i];
        cJSON *row = add_object(self, rows);
        put(self, row, "rank", (double)capacity->rank);
        put(self, row, "parameters", (double)capacity->n_parameters);
        put(self, row, "tokens_per_parameter", capacity->tokens_per_parameter);
        put(self, row, "capacity_ratio", capacity->ratio);
        put(self, row, "memorization", capacity->memorization);
        put(self, row, "generalization", capacity->generalization);
        put_text(self, row, "status", capacity->status);
    }
}

static void add_plan(builder *self, const td_memory_plan *plan, int fits, cJSON *plans) {
    cJSON *object = add_object(self, plans);
    put_text(self, object, "recompute", td_recompute_name(plan->recompute));
    put_bool(self, object, "fits", fits);
    put(self, object, "device_bytes", (double)plan->total_bytes[TD_POOL_DEVICE]);
    put(self, object, "host_bytes", (double)plan->total_bytes[TD_POOL_HOST]);
    cJSON *parts = put_array(self, object, "parts");
    for (int i = 0; i < plan->n_lines; i++) {
        cJSON *part = add_object(self, parts);
        put_text(self, part, "name", plan->lines[i].name);
        put_text(self, part, "pool", plan->lines[i].pool == TD_POOL_DEVICE ? "device" : "host");
        put(self, part, "bytes", (double)plan->lines[i].bytes);
    }
}

static void add_memory(builder *self, const td_planner *planner, cJSON *root) {
    const td_planner_memory *memory = &planner->memory;
    cJSON *object = put_object(self, root, "memory");
    put_text(self, object, "device", memory->is_gpu ? "gpu" : "cpu");
    put(self, object, "ranks", planner->options.n_ranks);
    put(self, object, "micro_batch_tokens", (double)planner->steps.micro_batch_tokens);
    put_known(self, object, "limit_bytes", (double)memory->limit_bytes);
    put_text(self, object, "recompute",
             memory->chosen < 0 ? NULL
                                : td_recompute_name(memory->plans[memory->chosen].recompute));
    put_bool(self, object, "counts_workspace", memory->has_workspace);
    put(self, object, "nf4_scale_bits", memory->is_nf4 ? memory->scale_bits : NAN);
    put(self, object, "nf4_fp32_scale_bits", memory->is_nf4 ? memory->plain_scale_bits : NAN);
    cJSON *plans = put_array(self, object, "plans");
    for (int i = 0; i < memory->n_plans; i++)
        add_plan(self, &memory->plans[i], memory->fits[i], plans);
}

static void add_steps(builder *self, const td_planner *planner, cJSON *root) {
    const td_planner_steps *steps = &planner->steps;
    const td_planner_options *options = &planner->options;
    cJSON *object = put_object(self, root, "run");
    put_known(self, object, "dataset_tokens", (double)steps->tokens);
    put_known(self, object, "dataset_rows", (double)steps->rows);
    put(self, object, "epochs", steps->epochs);
    put_known(self, object, "tokens", steps->tokens_seen);
    put_known(self, object, "micro_batches_per_epoch", (double)steps->micro_batches);
    put_bool(self, object, "is_exact", steps->is_exact);
    put_known(self, object, "steps_per_epoch", (double)steps->steps_per_epoch);
    put_known(self, object, "steps", (double)steps->steps);
    put_known(self, object, "tokens_per_second", options->tokens_per_second);
    put(self, object, "seconds", steps->seconds);
    put(self, object, "price_per_hour",
        options->price_per_hour < 0 ? NAN : options->price_per_hour);
    put(self, object, "cost", steps->cost);
}

td_status td_planner_print_json(const td_planner *planner, const char *name, FILE *out) {
    builder self = {0};
    cJSON *root = cJSON_CreateObject();
    self.failed = !root;
    put_text(&self, root, "model", name);
    put_text(&self, root, "family", planner->options.model->family->name);
    add_parameters(&self, planner, root);
    add_adapter(&self, planner, root);
    add_capacities(&self, planner, root);
    add_memory(&self, planner, root);
    add_steps(&self, planner, root);
    char *text = self.failed ? NULL : td_json_print(root, 1);
    cJSON_Delete(root);
    if (!text)
        return td_fail(TD_ERR_MEMORY, "no memory to print the plan");
    fprintf(out, "%s\n", text);
    free(text);
    return TD_OK;
}
