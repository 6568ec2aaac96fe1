// Which modules carry LoRA, with which rank and scaling, against what PEFT selected for the same
// settings (fixtures/families/selection.json); the layout of the flat vector; initialization.
#include "model/lora.h"
#include "runtime/core/json.h"
#include "unit/scratch.h"

static td_model_config read_config(const char *family) {
    char folder[512];
    td_model_config config;
    snprintf(folder, sizeof folder, "%s/families/%s", TEST_FIXTURES, family);
    REQUIRE(td_model_config_read(folder, &config) == TD_OK);
    return config;
}

enum { MAX_TARGETS = 8 };

typedef struct lora_choice {
    td_string_list targets;
    char *items[MAX_TARGETS];
    td_lora_options options;
} lora_choice;

static td_lora_options choose(lora_choice *choice, const char *first, int is_pattern) {
    choice->items[0] = (char *)(uintptr_t)first;
    choice->targets = (td_string_list){choice->items, 1};
    return (td_lora_options){.rank = 4,
                             .alpha = 8,
                             .target_modules = &choice->targets,
                             .target_modules_is_pattern = is_pattern};
}

static double number_of(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    REQUIRE(cJSON_IsNumber(item));
    return item->valuedouble;
}

static void options_of(const cJSON *entry, lora_choice *choice) {
    const cJSON *targets = cJSON_GetObjectItemCaseSensitive(entry, "target_modules");
    choice->targets = (td_string_list){choice->items, 0};
    if (cJSON_IsString(targets))
        choice->items[choice->targets.count++] = targets->valuestring;
    for (const cJSON *item = targets->child; item; item = item->next)
        choice->items[choice->targets.count++] = item->valuestring;
    choice->options = (td_lora_options){
        .rank = (int64_t)number_of(entry, "r"),
        .alpha = number_of(entry, "lora_alpha"),
        .use_rslora = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(entry, "use_rslora")),
        .target_modules = &choice->targets,
        .target_modules_is_pattern = cJSON_IsString(targets),
        .rank_pattern = cJSON_GetObjectItemCaseSensitive(entry, "rank_pattern"),
        .alpha_pattern = cJSON_GetObjectItemCaseSensitive(entry, "alpha_pattern"),
    };
}

static void check_module(const td_lora *lora, int64_t layer, td_projection projection,
                         const cJSON *modules) {
    char name[128];
    const td_lora_module *module = td_lora_at(lora, layer, projection);
    snprintf(name, sizeof name, "model.layers.%d.%s", (int)layer, td_projection_name(projection));
    const cJSON *expected = cJSON_GetObjectItemCaseSensitive(modules, name);
    if (!CHECK(module->present == (expected != NULL)) || !expected)
        return;
    CHECK_INT(module->rank, number_of(expected, "r"));
    CHECK(module->alpha == number_of(expected, "alpha"));
    CHECK(module->scaling == (float)number_of(expected, "scaling"));
}

static void check_selection(const td_model_config *config, const cJSON *entry) {
    lora_choice choice;
    td_lora lora;
    const cJSON *modules = cJSON_GetObjectItemCaseSensitive(entry, "modules");
    options_of(entry, &choice);
    td_status status = td_lora_init(&lora, config, &choice.options);
    // PEFT can adapt the head; here that is refused.
    int is_refused =
        modules->child == NULL || cJSON_GetObjectItemCaseSensitive(modules, "lm_head") != NULL;
    if (!CHECK(status == (is_refused ? TD_ERR_USAGE : TD_OK)))
        fprintf(stderr, "    %s: %s\n", choice.items[0], td_error_message());
    td_error_clear();
    if (status != TD_OK)
        return;
    CHECK_INT(lora.n_modules, cJSON_GetArraySize(modules));
    for (int64_t i = 0; i < lora.n_layers * TD_PROJ_COUNT; i++)
        check_module(&lora, i / TD_PROJ_COUNT, (td_projection)(i % TD_PROJ_COUNT), modules);
    td_lora_fini(&lora);
}

static void selection_is_that_of_peft(void) {
    char path[512];
    cJSON *root;
    snprintf(path, sizeof path, "%s/families/selection.json", TEST_FIXTURES);
    REQUIRE(td_json_read(path, 1 << 20, &root) == TD_OK);
    const cJSON *base = cJSON_GetObjectItemCaseSensitive(root, "base");
    td_model_config config = read_config(base->valuestring);
    const cJSON *entries = cJSON_GetObjectItemCaseSensitive(root, "cases");
    CHECK(cJSON_GetArraySize(entries) >= 20);
    for (const cJSON *entry = entries->child; entry; entry = entry->next)
        check_selection(&config, entry);
    cJSON_Delete(root);
}

// A pattern must match the whole name, by another alternative if need be.
static void patterns_match_as_a_whole(void) {
    td_model_config config = read_config("llama");
    lora_choice choice;
    td_lora lora;
    td_lora_options options = choose(&choice, "model\\.layers\\.0\\.self_attn\\.(q|q_proj)", 1);
    REQUIRE(td_lora_init(&lora, &config, &options) == TD_OK);
    CHECK_INT(lora.n_modules, 1);
    td_lora_fini(&lora);
    options = choose(&choice, "model\\.layers\\.0", 1);
    CHECK_INT(td_lora_init(&lora, &config, &options), TD_ERR_USAGE);
    td_error_clear();
}

static void the_flat_vector_is_in_canonical_order(void) {
    td_model_config config = read_config("qwen3");
    lora_choice choice;
    td_lora lora;
    td_lora_options options = choose(&choice, "model\\.layers\\.1\\..*(q|k|down)_proj", 1);
    REQUIRE(td_lora_init(&lora, &config, &options) == TD_OK);
    const td_lora_module *q = td_lora_at(&lora, 1, TD_PROJ_Q), *k = td_lora_at(&lora, 1, TD_PROJ_K);
    const td_lora_module *down = td_lora_at(&lora, 1, TD_PROJ_DOWN);
    CHECK_INT(q->in, 48); // heads times their own dimension differ from the hidden size
    CHECK_INT(q->out, 128);
    CHECK_INT(k->out, 64);
    CHECK_INT(down->in, 80);
    CHECK_INT(down->out, 48);
    CHECK_INT(td_lora_at(&lora, 0, TD_PROJ_O)->in, 128);
    CHECK_INT(q->a_offset, 0);
    CHECK_INT(q->b_offset, 4 * 48);
    CHECK_INT(k->a_offset, 4 * (48 + 128));
    CHECK_INT(down->a_offset, k->b_offset + 4 * 64);
    CHECK_INT(lora.n_parameters, down->b_offset + 4 * 48);
    CHECK_INT(lora.n_modules, 3);
    CHECK_INT(lora.max_rank, 4);
    CHECK_INT(lora.max_module_parameters, 4 * (48 + 128));
    CHECK_INT(td_lora_layer_begin(&lora, 0), 0);
    CHECK_INT(td_lora_layer_begin(&lora, 1), 0);
    CHECK_INT(td_lora_layer_begin(&lora, 2), lora.n_parameters);
    td_lora_fini(&lora);
}

// CONTRACT.md: Llama-3.1-8B, r = 64 on all seven projections.
static void llama_8b_has_the_published_number_of_parameters(void) {
    td_model_config config = {.hidden = 4096,
                              .intermediate = 14336,
                              .n_layers = 32,
                              .n_heads = 32,
                              .n_kv_heads = 8,
                              .head_dim = 128};
    lora_choice choice;
    td_lora lora;
    td_lora_options options = choose(&choice, "all-linear", 1);
    options.rank = 64;
    REQUIRE(td_lora_init(&lora, &config, &options) == TD_OK);
    CHECK_INT(lora.n_parameters, 167772160);
    td_lora_fini(&lora);
}

static void a_is_uniform_and_b_is_zero(void) {
    td_model_config config = read_config("llama");
    lora_choice choice;
    td_lora lora;
    td_lora_options options = choose(&choice, "all-linear", 1);
    options.rank = 33;
    REQUIRE(td_lora_init(&lora, &config, &options) == TD_OK);
    float *values = malloc((size_t)lora.n_parameters * sizeof *values);
    memset(values, 0xff, (size_t)lora.n_parameters * sizeof *values);
    td_lora_initialize(&lora, 7, values);
    for (int64_t i = 0; i < lora.n_layers * TD_PROJ_COUNT; i++) {
        const td_lora_module *module = &lora.modules[i];
        if (!module->present)
            continue;
        double bound = 1 / sqrt((double)module->in), sum = 0, squares = 0, largest = 0;
        int64_t n = module->rank * module->in;
        for (int64_t j = 0; j < n; j++) {
            double value = values[module->a_offset + j];
            sum += value;
            squares += value * value;
            largest = fmax(largest, fabs(value));
        }
        CHECK(largest <= bound * (1 + 1e-6));
        CHECK(largest > 0.99 * bound);
        CHECK_NEAR(sum / (double)n, 0, 0.06 * bound);
        CHECK_NEAR(squares / (double)n, bound * bound / 3, 0.05 * bound * bound);
        for (int64_t j = 0; j < module->rank * module->out; j++)
            CHECK(values[module->b_offset + j] == 0);
    }
    free(values);
    td_lora_fini(&lora);
}

// A module's numbers depend on the seed and on nothing that other modules do.
static void initialization_is_keyed_by_seed_and_module(void) {
    td_model_config config = read_config("llama");
    lora_choice all_choice, one_choice;
    td_lora all, one;
    td_lora_options all_options = choose(&all_choice, "all-linear", 1);
    td_lora_options one_options = choose(&one_choice, "model.layers.1.mlp.up_proj", 0);
    REQUIRE(td_lora_init(&all, &config, &all_options) == TD_OK);
    REQUIRE(td_lora_init(&one, &config, &one_options) == TD_OK);
    float *a = malloc((size_t)all.n_parameters * sizeof *a);
    float *b = malloc((size_t)one.n_parameters * sizeof *b);
    const float *up = a + td_lora_at(&all, 1, TD_PROJ_UP)->a_offset;
    const float *gate = a + td_lora_at(&all, 1, TD_PROJ_GATE)->a_offset;
    size_t bytes = (size_t)(4 * td_lora_at(&all, 1, TD_PROJ_UP)->in) * sizeof *a;
    td_lora_initialize(&all, 5, a);
    td_lora_initialize(&one, 5, b);
    CHECK(memcmp(up, b, bytes) == 0);
    CHECK(memcmp(up, gate, bytes) != 0);
    td_lora_initialize(&one, 6, b);
    CHECK(memcmp(up, b, bytes) != 0);
    free(a);
    free(b);
    td_lora_fini(&all);
    td_lora_fini(&one);
}

static td_hash fingerprint_of(const td_model_config *config, const td_lora_options *options) {
    td_lora lora;
    REQUIRE(td_lora_init(&lora, config, options) == TD_OK);
    td_hash hash = td_lora_fingerprint(&lora);
    td_lora_fini(&lora);
    return hash;
}

static void fingerprint_tells_layouts_apart(void) {
    td_model_config config = read_config("llama");
    lora_choice choice;
    td_lora_options options = choose(&choice, "q_proj", 0), other = options;
    td_hash hash = fingerprint_of(&config, &options);
    CHECK(td_hash_equal(hash, fingerprint_of(&config, &options)));
    other.rank = 5;
    CHECK(!td_hash_equal(hash, fingerprint_of(&config, &other)));
    other = options;
    other.alpha = 9;
    CHECK(!td_hash_equal(hash, fingerprint_of(&config, &other)));
    choice.items[0] = (char *)(uintptr_t) "o_proj"; // same extents in this model
    CHECK(!td_hash_equal(hash, fingerprint_of(&config, &options)));
}

static void check_refused(td_lora_options options, const char *message) {
    td_model_config config = read_config("llama");
    td_lora lora;
    CHECK_INT(td_lora_init(&lora, &config, &options), TD_ERR_USAGE);
    CHECK_MESSAGE(message);
}

static void targets_that_match_nothing_are_named(void) {
    lora_choice choice;
    td_lora_options options = choose(&choice, "query", 0);
    check_refused(options, "\"query\"");
    check_refused(options, "gate_proj");
    options = choose(&choice, "q_proj", 0);
    choice.items[1] = (char *)(uintptr_t) "w_proj";
    choice.targets.count = 2;
    check_refused(options, "\"w_proj\"");
    choice.targets.count = 0;
    check_refused(options, "empty");
    check_refused(choose(&choice, "lm_head", 0), "blocks");
    check_refused(choose(&choice, "model.layers.2.self_attn.q_proj", 0), "layers.2");
    check_refused(choose(&choice, "q_proj", 1), "list");
}

// Fused projections have names of their own, which the message gives.
static void phi_3_has_four_modules_in_a_block(void) {
    td_model_config config = read_config("phi3");
    lora_choice choice;
    td_lora lora;
    td_lora_options options = choose(&choice, "q_proj", 0);
    CHECK_INT(td_lora_init(&lora, &config, &options), TD_ERR_USAGE);
    CHECK(strstr(td_error_message(), "qkv_proj, o_proj, gate_up_proj, down_proj (model.layers.0."
                                     "self_attn.qkv_proj, ...)"));
    td_error_clear();
    options = choose(&choice, "all-linear", 1);
    REQUIRE(td_lora_init(&lora, &config, &options) == TD_OK);
    CHECK_INT(lora.n_modules, 2 * 4);
    CHECK_INT(td_lora_at(&lora, 1, TD_PROJ_QKV)->out, (4 + 2 + 2) * 16);
    CHECK_INT(td_lora_at(&lora, 1, TD_PROJ_GATE_UP)->out, 2 * 80);
    CHECK(!td_lora_at(&lora, 1, TD_PROJ_Q)->present);
    td_lora_fini(&lora);
}

static void bad_patterns_are_named(void) {
    lora_choice choice;
    check_refused(choose(&choice, "(q_proj", 1), "(q_proj");
    check_refused(choose(&choice, ".*{,3}", 1), "{0,");
    // Exponential without a limit on the steps.
    check_refused(choose(&choice, "(([a-z._0-9]+)+)+[!?]", 1), "too long");
    // And one that ends just within the library's own limit, for seconds per module.
    check_refused(choose(&choice, "(.*)*(.*)*(.*')*xe", 1), "too long");
    td_lora_options options = choose(&choice, "q_proj", 0);
    static const char *const patterns[] = {"{\"[\":4}",  "{\"q\":0}",     "{\"q\":1.5}",
                                           "{\"q\":-1}", "{\"q\":\"4\"}", "{\"q\":1e9}",
                                           "[1]"};
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        cJSON *pattern = cJSON_Parse(patterns[i]);
        options.rank_pattern = pattern;
        check_refused(options, "rank_pattern");
        cJSON_Delete(pattern);
    }
    cJSON *pattern = cJSON_Parse("{\"q\":\"x\"}");
    options.rank_pattern = NULL;
    options.alpha_pattern = pattern;
    check_refused(options, "alpha_pattern");
    cJSON_Delete(pattern);
}

static void bad_numbers_are_named(void) {
    lora_choice choice;
    td_lora_options options = choose(&choice, "q_proj", 0), bad = options;
    bad.rank = 0;
    check_refused(bad, "rank");
    bad.rank = 1 << 20;
    check_refused(bad, "rank");
    bad = options;
    bad.alpha = NAN;
    check_refused(bad, "lora_alpha");
    bad = options;
    bad.dropout = 1.0;
    check_refused(bad, "lora_dropout");
}

int main(void) {
    TEST(selection_is_that_of_peft);
    TEST(patterns_match_as_a_whole);
    TEST(the_flat_vector_is_in_canonical_order);
    TEST(llama_8b_has_the_published_number_of_parameters);
    TEST(a_is_uniform_and_b_is_zero);
    TEST(initialization_is_keyed_by_seed_and_module);
    TEST(fingerprint_tells_layouts_apart);
    TEST(targets_that_match_nothing_are_named);
    TEST(phi_3_has_four_modules_in_a_block);
    TEST(bad_patterns_are_named);
    TEST(bad_numbers_are_named);
    return test_report();
}
