#include "model/lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/lora_internal.h"
#include "runtime/core/rng.h"

enum { MODULES_OF_A_BLOCK = 7, NUMBERS_OF_A_BLOCK = 8 };

static const struct {
    const char *name;
    int is_separate, is_fused; // in families with separate and with fused projections
    int number;                // in its block
} projections[TD_PROJ_COUNT] = {
    [TD_PROJ_Q] = {"self_attn.q_proj", 1, 0, 0}, [TD_PROJ_K] = {"self_attn.k_proj", 1, 0, 1},
    [TD_PROJ_V] = {"self_attn.v_proj", 1, 0, 2}, [TD_PROJ_QKV] = {"self_attn.qkv_proj", 0, 1, 0},
    [TD_PROJ_O] = {"self_attn.o_proj", 1, 1, 3}, [TD_PROJ_GATE] = {"mlp.gate_proj", 1, 0, 4},
    [TD_PROJ_UP] = {"mlp.up_proj", 1, 0, 5},     [TD_PROJ_GATE_UP] = {"mlp.gate_up_proj", 0, 1, 4},
    [TD_PROJ_DOWN] = {"mlp.down_proj", 1, 1, 6},
};

const char *td_model_module_prefix(const td_model_config *config) {
    return config->names == TD_NAMES_PLAIN ? "model." : "model.language_model.";
}

const char *td_projection_name(td_projection projection) {
    return projections[projection].name;
}

int td_projection_exists(const td_model_config *config, td_projection projection) {
    return config->fused_projections ? projections[projection].is_fused
                                     : projections[projection].is_separate;
}

int td_projection_is_stored_nf4(const td_model_config *config, int64_t layer,
                                td_projection projection) {
    return config->stored != TD_STORED_WHOLE &&
           (config->whole_projections[layer] >> projection & 1) == 0;
}

uint32_t td_lora_module_number(int64_t layer, td_projection projection) {
    return (uint32_t)(layer * NUMBERS_OF_A_BLOCK + projections[projection].number);
}

int64_t td_projection_out(const td_model_config *config, td_projection projection) {
    switch (projection) {
    case TD_PROJ_Q:
        return config->n_heads * config->head_dim;
    case TD_PROJ_K:
    case TD_PROJ_V:
        return config->n_kv_heads * config->head_dim;
    case TD_PROJ_QKV:
        return (config->n_heads + 2 * config->n_kv_heads) * config->head_dim;
    case TD_PROJ_GATE:
    case TD_PROJ_UP:
        return config->intermediate;
    case TD_PROJ_GATE_UP:
        return 2 * config->intermediate;
    default:
        return config->hidden;
    }
}

int64_t td_projection_in(const td_model_config *config, td_projection projection) {
    switch (projection) {
    case TD_PROJ_O:
        return config->n_heads * config->head_dim;
    case TD_PROJ_DOWN:
        return config->intermediate;
    default:
        return config->hidden;
    }
}

void td_lora_module_name(const char *prefix, int64_t layer, td_projection projection,
                         char out[TD_MODULE_NAME_CHARS]) {
    snprintf(out, TD_MODULE_NAME_CHARS, "%slayers.%d.%s", prefix, (int)layer,
             projections[projection].name);
}

static td_status check_options(const td_lora_options *options) {
    if (options->rank < 1 || options->rank > TD_LORA_MAX_RANK)
        return td_fail(TD_ERR_USAGE, "the LoRA rank must be from 1 to %d, found %lld",
                       TD_LORA_MAX_RANK, (long long)options->rank);
    if (!isfinite(options->alpha))
        return td_fail(TD_ERR_USAGE, "lora_alpha is not a finite number");
    if (!(options->dropout >= 0.0 && options->dropout < 1.0))
        return td_fail(TD_ERR_USAGE, "lora_dropout must be at least 0 and below 1, found %g",
                       options->dropout);
    return TD_OK;
}

// "q_proj, k_proj, ...": what a block has, and the first of them in full.
static void list_modules(const td_lora *lora, char *out, size_t room) {
    const char *first = "";
    size_t used = 0;
    for (int i = TD_PROJ_COUNT - 1; i >= 0; i--)
        if (lora->modules[i].out > 0)
            first = projections[i].name;
    for (int i = 0; i < TD_PROJ_COUNT && used < room; i++)
        if (lora->modules[i].out > 0)
            used += (size_t)snprintf(out + used, room - used, "%s%s", used > 0 ? ", " : "",
                                     strchr(projections[i].name, '.') + 1);
    if (used < room)
        snprintf(out + used, room - used, " (%slayers.0.%s, ...)", lora->module_prefix, first);
}

static td_status fail_unmatched(const td_lora *lora, const char *name) {
    char modules[256];
    list_modules(lora, modules, sizeof modules);
    if (strcmp(name, "lm_head") == 0 || strcmp(name, "embed_tokens") == 0)
        return td_fail(TD_ERR_USAGE,
                       "target_modules: \"%s\" cannot carry LoRA; only the linear layers of the "
                       "blocks can",
                       name);
    return td_fail(TD_ERR_USAGE, "target_modules: \"%s\" matches no module; there are %s", name,
                   modules);
}

static td_status fail_nothing(const td_lora *lora, const td_lora_options *options) {
    return td_fail(TD_ERR_USAGE,
                   "target_modules: the pattern \"%s\" matches no module as a whole; names look "
                   "like %slayers.0.self_attn.o_proj (to give names instead of a pattern, "
                   "write a list)",
                   options->target_modules->items[0], lora->module_prefix);
}

static void place(td_lora *lora, td_lora_module *module) {
    module->a_offset = lora->n_parameters;
    module->b_offset = module->a_offset + (module->present ? module->rank * module->in : 0);
    if (!module->present)
        return;
    int64_t parameters = module->rank * (module->in + module->out);
    lora->n_modules++;
    lora->n_parameters += parameters;
    if (module->rank > lora->max_rank)
        lora->max_rank = module->rank;
    if (parameters > lora->max_module_parameters)
        lora->max_module_parameters = parameters;
}

static td_status select_modules(td_lora *lora, const td_lora_options *options,
                                td_lora_selector *selector) {
    for (int64_t i = 0; i < lora->n_layers * TD_PROJ_COUNT; i++) {
        td_lora_module *module = &lora->modules[i];
        char name[TD_MODULE_NAME_CHARS];
        td_lora_module_name(lora->module_prefix, i / TD_PROJ_COUNT,
                            (td_projection)(i % TD_PROJ_COUNT), name);
        if (module->out > 0)
            TD_TRY(td_lora_selector_ask(selector, name, &module->present, &module->rank,
                                        &module->alpha));
        if (module->present)
            module->scaling =
                (float)(module->alpha /
                        (options->use_rslora ? sqrt((double)module->rank) : (double)module->rank));
        place(lora, module);
    }
    const char *unmatched = td_lora_selector_unmatched(selector);
    if (unmatched)
        return fail_unmatched(lora, unmatched);
    return lora->n_modules > 0 ? TD_OK : fail_nothing(lora, options);
}

// lora->modules has the extents; everything else follows from the options.
static td_status apply(td_lora *lora, const td_lora_options *options, int report) {
    td_lora_selector *selector;
    TD_TRY(check_options(options));
    TD_TRY(td_lora_selector_create(options, &selector));
    td_status status = select_modules(lora, options, selector);
    if (status == TD_OK && report)
        td_lora_selector_report_unused(selector);
    td_lora_selector_destroy(selector);
    lora->dropout = options->dropout;
    lora->use_rslora = options->use_rslora;
    return status;
}

static td_status allocate(td_lora *lora, const char *module_prefix, int64_t n_layers) {
    *lora = (td_lora){.module_prefix = module_prefix, .n_layers = n_layers};
    lora->modules = calloc((size_t)(n_layers * TD_PROJ_COUNT), sizeof *lora->modules);
    if (!lora->modules)
        return td_fail(TD_ERR_MEMORY, "no memory for the list of LoRA modules");
    return TD_OK;
}

static td_status finish(td_lora *lora, td_status status) {
    if (status != TD_OK)
        td_lora_fini(lora);
    return status;
}

td_status td_lora_init(td_lora *lora, const td_model_config *config,
                       const td_lora_options *options) {
    TD_TRY(allocate(lora, td_model_module_prefix(config), config->n_layers));
    for (int64_t i = 0; i < config->n_layers * TD_PROJ_COUNT; i++) {
        td_projection projection = (td_projection)(i % TD_PROJ_COUNT);
        if (!td_projection_exists(config, projection))
            continue;
        lora->modules[i].in = td_projection_in(config, projection);
        lora->modules[i].out = td_projection_out(config, projection);
    }
    return finish(lora, apply(lora, options, 1));
}

td_status td_lora_init_like(td_lora *lora, const td_lora *shapes, const td_lora_options *options) {
    TD_TRY(allocate(lora, shapes->module_prefix, shapes->n_layers));
    for (int64_t i = 0; i < shapes->n_layers * TD_PROJ_COUNT; i++) {
        lora->modules[i].in = shapes->modules[i].in;
        lora->modules[i].out = shapes->modules[i].out;
    }
    return finish(lora, apply(lora, options, 0));
}

void td_lora_fini(td_lora *lora) {
    free(lora->modules);
    *lora = (td_lora){0};
}

int64_t td_lora_layer_begin(const td_lora *lora, int64_t layer) {
    if (layer >= lora->n_layers)
        return lora->n_parameters;
    return lora->modules[layer * TD_PROJ_COUNT].a_offset;
}

// Element i is td_rng_word(key, number, 0, i); four come from one call.
static void initialize_a(const td_lora_module *module, uint64_t key, uint32_t number, float *a) {
    int64_t count = module->rank * module->in;
    float bound = (float)(1.0 / sqrt((double)module->in));
    for (int64_t begin = 0; begin < count; begin += 4) {
        td_philox_words counter = {
            {(uint32_t)(begin >> 2), (uint32_t)((uint64_t)begin >> 34), number, 0}};
        td_philox_words words = td_philox(key, counter);
        for (int64_t i = begin; i < count && i < begin + 4; i++)
            a[i] = bound * (2.0f * td_rng_uniform(words.word[i - begin]) - 1.0f);
    }
}

void td_lora_initialize(const td_lora *lora, uint64_t seed, float *parameters) {
    uint64_t key = td_rng_key(seed, TD_RNG_LORA_INIT);
    for (int64_t i = 0; i < lora->n_layers * TD_PROJ_COUNT; i++) {
        const td_lora_module *module = &lora->modules[i];
        if (!module->present)
            continue;
        uint32_t number =
            td_lora_module_number(i / TD_PROJ_COUNT, (td_projection)(i % TD_PROJ_COUNT));
        initialize_a(module, key, number, parameters + module->a_offset);
        memset(parameters + module->b_offset, 0,
               (size_t)(module->rank * module->out) * sizeof *parameters);
    }
}

td_hash td_lora_fingerprint(const td_lora *lora) {
    char text[256];
    td_hash hash = td_hash_bytes(&lora->n_layers, sizeof lora->n_layers);
    for (int64_t i = 0; i < lora->n_layers * TD_PROJ_COUNT; i++) {
        const td_lora_module *module = &lora->modules[i];
        if (!module->present)
            continue;
        int64_t number =
            i / TD_PROJ_COUNT * MODULES_OF_A_BLOCK + projections[i % TD_PROJ_COUNT].number;
        int chars = snprintf(text, sizeof text, "%016llx%016llx %lld %lld %lld %lld %a %lld %lld",
                             (unsigned long long)hash.high, (unsigned long long)hash.low,
                             (long long)number, (long long)module->in, (long long)module->out,
                             (long long)module->rank, (double)module->scaling,
                             (long long)module->a_offset, (long long)module->b_offset);
        hash = td_hash_bytes(text, (size_t)chars);
    }
    return hash;
}
