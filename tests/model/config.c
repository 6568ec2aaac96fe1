// config.json through the family table: what good files give, and what bad ones say.
#include "model/base_internal.h"
#include "model/model_config_internal.h"
#include "runtime/core/json.h"
#include "safetensors_build.h"

static td_model_config read_fixture(const char *family) {
    char folder[512];
    td_model_config config;
    snprintf(folder, sizeof folder, "%s/families/%s", TEST_FIXTURES, family);
    td_status status = td_model_config_read(folder, &config);
    if (status != TD_OK)
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(status == TD_OK);
    return config;
}

// The same model in the keys of transformers 4.
static td_model_config read_older_fixture(const char *family) {
    char path[512];
    td_model_config config;
    const char *folder = scratch("older");
    REQUIRE(td_folder_make(folder) == TD_OK);
    snprintf(path, sizeof path, "%s/families/%s/config_v4.json", TEST_FIXTURES, family);
    copy_file(path, scratch("older/config.json"));
    REQUIRE(td_model_config_read(folder, &config) == TD_OK);
    return config;
}

enum { SOME_LAYERS = -1 };

typedef struct expectation {
    const char *folder, *family;
    int64_t vocabulary, hidden, intermediate, n_layers, n_heads, n_kv_heads, head_dim;
    int64_t max_positions;
    double eps, theta;
    int tied, qkv_bias, qk_norm;
    int64_t window;
} expectation;

// As in tests/reference/make_families.py.
static const expectation expectations[] = {
    {"llama", "llama", 160, 64, 112, 2, 4, 2, 16, 512, 1e-5, 5e5, 0, 0, 0, 0},
    {"llama2", "llama", 128, 48, 80, 2, 3, 3, 16, 128, 1e-5, 1e4, 0, 0, 0, 0},
    {"tinyllama", "llama", 128, 64, 96, 2, 8, 2, 8, 128, 1e-5, 1e4, 0, 0, 0, 0},
    {"mistral", "mistral", 128, 48, 80, 3, 4, 2, 16, 128, 1e-5, 1e6, 0, 0, 0, 7},
    {"qwen2", "qwen2", 144, 48, 80, 2, 3, 1, 16, 128, 1e-6, 1e6, 1, 1, 0, 0},
    {"qwen3", "qwen3", 144, 48, 80, 2, 4, 2, 32, 128, 1e-5, 1e6, 0, 0, 1, 0},
    {"smollm2", "llama", 144, 48, 96, 3, 3, 1, 16, 128, 1e-5, 1e5, 1, 0, 0, 0},
    {"smollm3", "smollm3", 144, 48, 80, 4, 3, 1, 16, 128, 1e-6, 5e6, 1, 0, 0, 0},
    {"phi3", "phi3", 144, 64, 80, 2, 4, 2, 16, 512, 1e-5, 1e4, 0, 0, 0, 11},
    {"phi3_long", "phi3", 144, 48, 80, 2, 3, 3, 16, 128, 1e-5, 1e4, 0, 0, 0, 0},
    {"gemma2", "gemma2", 144, 48, 80, 3, 4, 2, 32, 128, 1e-6, 1e4, 1, 0, 0, SOME_LAYERS},
    {"gemma3", "gemma3", 144, 48, 80, 3, 4, 1, 16, 128, 1e-6, 1e6, 1, 0, 1, SOME_LAYERS},
    {"gemma3_multimodal", "gemma3_multimodal", 144, 48, 80, 3, 4, 1, 16, 128, 1e-6, 1e6, 1, 0, 1,
     SOME_LAYERS},
};

static void check_config(const td_model_config *config, const expectation *expected) {
    CHECK_STRING(config->family->name, expected->family);
    CHECK_INT(config->vocabulary, expected->vocabulary);
    CHECK_INT(config->hidden, expected->hidden);
    CHECK_INT(config->intermediate, expected->intermediate);
    CHECK_INT(config->n_layers, expected->n_layers);
    CHECK_INT(config->n_heads, expected->n_heads);
    CHECK_INT(config->n_kv_heads, expected->n_kv_heads);
    CHECK_INT(config->head_dim, expected->head_dim);
    CHECK_INT(config->max_positions, expected->max_positions);
    CHECK(config->rms_eps == expected->eps);
    CHECK(config->rope.theta == expected->theta);
    CHECK_INT(config->tie_word_embeddings, expected->tied);
    CHECK_INT(config->qkv_bias, expected->qkv_bias);
    CHECK_INT(config->o_bias, 0);
    CHECK_INT(config->mlp_bias, 0);
    CHECK_INT(config->qk_norm, expected->qk_norm);
    for (int64_t i = 0; i < config->n_layers && expected->window != SOME_LAYERS; i++)
        CHECK_INT(config->window[i], expected->window);
    CHECK_INT(config->bos_id, 1);
    CHECK_INT(config->n_eos, 1);
    CHECK_INT(config->eos_ids[0], 2);
}

static void every_family_is_read_in_both_spellings(void) {
    for (size_t i = 0; i < sizeof expectations / sizeof expectations[0]; i++) {
        td_model_config newer = read_fixture(expectations[i].folder);
        td_model_config older = read_older_fixture(expectations[i].folder);
        char texts[2][4096];
        check_config(&newer, &expectations[i]);
        check_config(&older, &expectations[i]);
        td_base_describe(&newer, texts[0], sizeof texts[0]);
        td_base_describe(&older, texts[1], sizeof texts[1]);
        CHECK_STRING(texts[0], texts[1]);
    }
}

static void check_llama3(const td_rope_config *rope) {
    CHECK_INT(rope->kind, TD_ROPE_LLAMA3);
    CHECK(rope->factor == 8.0);
    CHECK(rope->low_freq_factor == 1.0);
    CHECK(rope->high_freq_factor == 4.0);
    CHECK_INT(rope->original_max_positions, 64);
}

static void llama3_scaling_is_read_in_both_spellings(void) {
    td_model_config newer = read_fixture("llama"), older = read_older_fixture("llama");
    check_llama3(&newer.rope);
    check_llama3(&older.rope);
}

static void smollm3_leaves_out_rope_where_the_list_has_zero(void) {
    td_model_config config = read_fixture("smollm3");
    for (int i = 0; i < 4; i++)
        CHECK_INT(config.uses_rope[i], i % 2 == 0);
    config = read_fixture("llama");
    CHECK_INT(config.uses_rope[1], 1);
}

static void phi3_has_two_sets_of_factors(void) {
    td_model_config config = read_fixture("phi3"), whole = read_fixture("phi3_long");
    CHECK(config.fused_projections);
    CHECK_INT(config.rope.kind, TD_ROPE_LONG);
    CHECK_INT(config.rotary_dim, 12);
    CHECK_INT(config.rope.original_max_positions, 128);
    CHECK(config.rope.short_factor[5] == 1.5f && config.rope.long_factor[5] == 10.1f);
    CHECK_NEAR(config.rope.attention_factor, sqrt(1 + log(4) / log(128)), 1e-12);
    CHECK_INT(whole.rotary_dim, 16);
    CHECK_INT(whole.rope.original_max_positions, 4);
}

static void gemma_has_two_kinds_of_layers(void) {
    td_model_config two = read_fixture("gemma2"), three = read_fixture("gemma3");
    for (int i = 0; i < 3; i++) {
        CHECK_INT(two.window[i], i == 1 ? 0 : 7);
        CHECK_INT(two.uses_rope[i], TD_LAYER_ROPE);
        CHECK_INT(three.window[i], i == 2 ? 0 : 7);
        CHECK_INT(three.uses_rope[i], i == 2 ? TD_LAYER_ROPE : TD_LAYER_LOCAL_ROPE);
    }
    CHECK(two.attention_scalar == 24 && two.attention_softcap == 3 && two.final_softcap == 2.5);
    CHECK(three.attention_scalar == 20 && three.attention_softcap == 0);
    CHECK_INT(three.rope.kind, TD_ROPE_LINEAR);
    CHECK(three.rope.factor == 8);
    CHECK_INT(three.rope_local.kind, TD_ROPE_DEFAULT);
    CHECK(three.rope_local.theta == 10000.0);
    CHECK_INT(two.activation, TD_GATE_GELU_TANH);
    CHECK_INT(read_fixture("phi3").activation, TD_GATE_SILU);
}

static td_status parse(const char *text, td_model_config *out) {
    cJSON *root;
    REQUIRE(td_json_parse("config.json", text, strlen(text), &root) == TD_OK);
    td_status status = td_model_config_parse("config.json", root, out);
    cJSON_Delete(root);
    return status;
}

#define SHAPE                                                                                      \
    "\"vocab_size\":100,\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":6,"      \
    "\"num_attention_heads\":32"
#define MODEL(architecture, more) "{\"architectures\":[\"" architecture "\"]," SHAPE more "}"
#define LLAMA(more)               MODEL("LlamaForCausalLM", more)
#define MISTRAL(more)             MODEL("MistralForCausalLM", more)
#define QWEN2(more)               MODEL("Qwen2ForCausalLM", more)
#define QWEN3(more)               MODEL("Qwen3ForCausalLM", more)
#define SMOLLM3(more)             MODEL("SmolLM3ForCausalLM", more)
#define PHI3(more)                MODEL("Phi3ForCausalLM", more)
#define GEMMA2(more)              MODEL("Gemma2ForCausalLM", more)
#define GEMMA3(more)              MODEL("Gemma3ForCausalLM", more)
// Heads of 8: four pairs.
#define LONG(name, more)                                                                           \
    ",\"head_dim\":8,\"rope_scaling\":{\"type\":\"" name "\",\"short_factor\":[1,1,1,1],"          \
    "\"long_factor\":[1,2,3,4.5]" more "}"

static td_model_config good(const char *text) {
    td_model_config config = {0};
    td_status status = parse(text, &config);
    if (!CHECK(status == TD_OK))
        fprintf(stderr, "    %s\n    %s\n", text, td_error_message());
    td_error_clear();
    return config;
}

static void llama_defaults_are_those_of_transformers(void) {
    td_model_config config = good(LLAMA(""));
    CHECK_INT(config.n_kv_heads, 32);
    CHECK_INT(config.head_dim, 2);
    CHECK_INT(config.max_positions, 2048);
    CHECK(config.rms_eps == 1e-6);
    CHECK(config.rope.theta == 10000.0);
    CHECK_INT(config.rope.kind, TD_ROPE_DEFAULT);
    CHECK_INT(config.tie_word_embeddings, 0);
    CHECK_INT(config.bos_id, 1);
    CHECK_INT(config.n_eos, 1);
    CHECK_INT(config.eos_ids[0], 2);
}

static void other_defaults_are_those_of_transformers(void) {
    td_model_config config = good(MISTRAL(""));
    CHECK_INT(config.n_kv_heads, 8);
    CHECK_INT(config.max_positions, 131072);
    CHECK_INT(config.window[5], 4096);
    config = good(QWEN2(""));
    CHECK_INT(config.n_kv_heads, 32);
    CHECK_INT(config.bos_id, -1);
    CHECK_INT(config.n_eos, 0);
    CHECK_INT(config.qkv_bias, 1);
    config = good(QWEN3(""));
    CHECK_INT(config.head_dim, 128);
    CHECK_INT(config.qk_norm, 1);
    config = good(SMOLLM3(",\"num_key_value_heads\":null"));
    CHECK_INT(config.n_kv_heads, 32);
    config = good(SMOLLM3(""));
    CHECK_INT(config.n_kv_heads, 4);
    CHECK(config.rope.theta == 2000000.0);
    CHECK_INT(config.tie_word_embeddings, 1);
    for (int i = 0; i < 6; i++)
        CHECK_INT(config.uses_rope[i], i != 3);
}

static void defaults_of_phi_and_gemma_are_those_of_transformers(void) {
    td_model_config config = good(PHI3(""));
    CHECK_INT(config.n_kv_heads, 32);
    CHECK_INT(config.max_positions, 4096);
    CHECK(config.rms_eps == 1e-5);
    CHECK_INT(config.window[0], 0);
    CHECK_INT(config.n_eos, 0); // 32000 is outside this vocabulary
    config = good(GEMMA2(""));
    CHECK_INT(config.head_dim, 256);
    CHECK_INT(config.n_kv_heads, 4);
    CHECK_INT(config.tie_word_embeddings, 1);
    CHECK(config.attention_softcap == 50 && config.final_softcap == 30);
    CHECK(config.attention_scalar == 256);
    CHECK_INT(config.bos_id, 2);
    CHECK_INT(config.eos_ids[0], 1);
    for (int i = 0; i < 6; i++)
        CHECK_INT(config.window[i], i % 2 == 0 ? 4096 : 0);
    config = good(GEMMA3(""));
    CHECK(config.attention_softcap == 0 && config.final_softcap == 0);
    CHECK(config.rope.theta == 1e6 && config.rope_local.theta == 1e4);
    for (int i = 0; i < 6; i++)
        CHECK_INT(config.window[i], i == 5 ? 0 : 4096);
}

// As gemma-3-4b-it was published: most of the text model is what the class assumes.
static void the_text_part_is_read_for_itself(void) {
    td_model_config config =
        good("{\"architectures\":[\"Gemma3ForConditionalGeneration\"],\"model_type\":\"gemma3\","
             "\"eos_token_id\":[1,106],\"vision_config\":{\"hidden_size\":1152},\"text_config\":{"
             "\"model_type\":\"gemma3_text\",\"hidden_size\":2560,\"intermediate_size\":10240,"
             "\"num_hidden_layers\":34,\"sliding_window\":1024,"
             "\"rope_scaling\":{\"factor\":8.0,\"rope_type\":\"linear\"}}}");
    CHECK_INT(config.vocabulary, 262208);
    CHECK_INT(config.hidden, 2560);
    CHECK_INT(config.n_heads, 8);
    CHECK_INT(config.n_kv_heads, 4);
    CHECK_INT(config.head_dim, 256);
    CHECK_INT(config.window[0], 1024);
    CHECK_INT(config.window[5], 0);
    CHECK(config.rope.factor == 8.0 && config.rope_local.factor == 1.0);
    CHECK_INT(config.tie_word_embeddings, 1);
    CHECK_INT(config.n_eos, 2);
    CHECK_INT(config.eos_ids[1], 106);
}

static void caps_may_be_null(void) {
    td_model_config config =
        good(GEMMA2(",\"attn_logit_softcapping\":null,\"final_logit_softcapping\":null"));
    CHECK(config.attention_softcap == 0 && config.final_softcap == 0);
}

static void longrope_has_older_names_and_given_factors(void) {
    td_model_config config = good(PHI3(LONG("su", "")));
    CHECK_INT(config.rope.kind, TD_ROPE_LONG);
    CHECK_INT(config.rope.original_max_positions, 4096);
    CHECK(config.rope.attention_factor == 1.0); // 4096 of 4096
    CHECK(config.rope.long_factor[3] == 4.5f);
    config = good(PHI3(LONG("yarn", ",\"attention_factor\":1.25")));
    CHECK_INT(config.rope.kind, TD_ROPE_LONG);
    CHECK(config.rope.attention_factor == 1.25);
    config = good(PHI3(LONG("longrope", ",\"factor\":16")));
    CHECK_NEAR(config.rope.attention_factor, sqrt(1 + log(16) / log(4096)), 1e-12);
    config = good(PHI3(",\"partial_rotary_factor\":0.5,\"head_dim\":8"));
    CHECK_INT(config.rotary_dim, 4);
}

static void model_type_tells_a_config_without_architectures(void) {
    CHECK_STRING(good("{\"model_type\":\"qwen3\"," SHAPE "}").family->name, "qwen3");
}

static void biases_follow_the_family(void) {
    td_model_config config = good(LLAMA(",\"attention_bias\":true,\"mlp_bias\":true"));
    CHECK(config.qkv_bias && config.o_bias && config.mlp_bias);
    config = good(QWEN3(",\"attention_bias\":true,\"mlp_bias\":true"));
    CHECK(config.qkv_bias && config.o_bias && !config.mlp_bias);
    config = good(MISTRAL(",\"attention_bias\":true"));
    CHECK(!config.qkv_bias && !config.o_bias);
    config = good(QWEN2(",\"attention_bias\":false"));
    CHECK(config.qkv_bias && !config.o_bias);
}

static void check_windows(const char *text, const int64_t expected[6]) {
    td_model_config config = good(text);
    for (int i = 0; i < 6; i++)
        if (!CHECK(config.window[i] == expected[i]))
            fprintf(stderr, "    layer %d of %s\n", i, text);
}

static void windows_follow_the_family(void) {
    static const int64_t none[6], all[6] = {9, 9, 9, 9, 9, 9}, late[6] = {0, 0, 9, 9, 9, 9};
    static const int64_t fourth[6] = {0, 0, 0, 9, 0, 0}, some[6] = {9, 0, 9, 0, 0, 0};
    check_windows(LLAMA(",\"sliding_window\":9"), none);
    check_windows(MISTRAL(",\"sliding_window\":9"), all);
    check_windows(MISTRAL(",\"sliding_window\":null"), none);
    check_windows(QWEN2(",\"sliding_window\":9"), none);
    check_windows(QWEN2(",\"sliding_window\":9,\"use_sliding_window\":true"), none);
    check_windows(
        QWEN2(",\"sliding_window\":9,\"use_sliding_window\":true,\"max_window_layers\":2"), late);
    check_windows(
        QWEN3(",\"sliding_window\":9,\"use_sliding_window\":false,\"max_window_layers\":2"), none);
    check_windows(SMOLLM3(",\"sliding_window\":9,\"use_sliding_window\":true"), fourth);
    check_windows(QWEN3(",\"sliding_window\":9,\"use_sliding_window\":true,\"layer_types\":["
                        "\"sliding_attention\",\"full_attention\",\"sliding_attention\","
                        "\"full_attention\",\"full_attention\",\"full_attention\"]"),
                  some);
}

static void rope_settings_may_stand_in_either_place(void) {
    td_model_config config = good(LLAMA(",\"rope_theta\":7,\"rope_scaling\":{\"type\":\"linear\","
                                        "\"factor\":4}"));
    CHECK_INT(config.rope.kind, TD_ROPE_LINEAR);
    CHECK(config.rope.factor == 4.0);
    CHECK(config.rope.theta == 7.0);
    // rope_type goes before type, the inner rope_theta before the outer.
    config = good(LLAMA(",\"rope_theta\":7,\"rope_parameters\":{\"type\":\"yarn\","
                        "\"rope_type\":\"linear\",\"factor\":2,\"rope_theta\":8}"));
    CHECK_INT(config.rope.kind, TD_ROPE_LINEAR);
    CHECK(config.rope.theta == 8.0);
    config = good(LLAMA(",\"rope_scaling\":{},\"rope_parameters\":{\"rope_theta\":9}"));
    CHECK(config.rope.theta == 9.0);
    config = good(LLAMA(",\"max_position_embeddings\":300,\"rope_scaling\":{\"rope_type\":"
                        "\"llama3\",\"factor\":2,\"low_freq_factor\":1,\"high_freq_factor\":4}"));
    CHECK_INT(config.rope.original_max_positions, 300);
}

static void end_ids_come_from_both_files(void) {
    const char *folder = scratch("ends");
    td_model_config config;
    REQUIRE(td_folder_make(folder) == TD_OK);
    scratch_file("ends/config.json", LLAMA(",\"eos_token_id\":[5,6],\"bos_token_id\":null"));
    scratch_file("ends/generation_config.json", "{\"eos_token_id\":[6,7,1000]}");
    REQUIRE(td_model_config_read(folder, &config) == TD_OK);
    CHECK_INT(config.bos_id, -1);
    CHECK_INT(config.n_eos, 3); // the id outside the vocabulary is left out
    CHECK_INT(config.eos_ids[0], 5);
    CHECK_INT(config.eos_ids[1], 6);
    CHECK_INT(config.eos_ids[2], 7);
}

static const struct {
    const char *text, *message;
} refused[] = {
    {"[]", "object"},
    {"{}", "neither"},
    {"{\"architectures\":[]}", "architectures"},
    {"{\"architectures\":\"LlamaForCausalLM\"}", "architectures"},
    {"{\"architectures\":[1]}", "architectures"},
    {"{\"architectures\":[\"GPT2LMHeadModel\"]}", "SmolLM3ForCausalLM"},
    {"{\"model_type\":\"gpt2\"}", "gpt2"},
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"mistral\"}", "mistral"},
    {"{\"architectures\":[\"LlamaForCausalLM\"]}", "vocab_size"},
    {LLAMA(",\"hidden_act\":\"gelu\""), "gelu"},
    {LLAMA(",\"quantization_config\":{\"quant_method\":\"gptq\"}"), "gptq"},
    {LLAMA(",\"num_key_value_heads\":5"), "num_key_value_heads"},
    {LLAMA(",\"num_key_value_heads\":0"), "num_key_value_heads"},
    {LLAMA(",\"num_key_value_heads\":64"), "num_key_value_heads"},
    {LLAMA(",\"head_dim\":3"), "even"},
    {LLAMA(",\"head_dim\":-2"), "head_dim"},
    {LLAMA(",\"head_dim\":\"2\""), "head_dim"},
    {LLAMA(",\"max_position_embeddings\":0"), "max_position_embeddings"},
    {LLAMA(",\"rms_norm_eps\":0"), "rms_norm_eps"},
    {LLAMA(",\"rms_norm_eps\":-1"), "rms_norm_eps"},
    {LLAMA(",\"rms_norm_eps\":\"small\""), "rms_norm_eps"},
    {LLAMA(",\"tie_word_embeddings\":1"), "tie_word_embeddings"},
    {LLAMA(",\"attention_bias\":\"no\""), "attention_bias"},
    {LLAMA(",\"rope_theta\":0"), "rope_theta"},
    {LLAMA(",\"rope_scaling\":[]"), "rope_scaling"},
    {LLAMA(",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}"), "yarn"},
    {LLAMA(",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}"), "dynamic"},
    {LLAMA(",\"rope_scaling\":{\"type\":\"longrope\"}"), "longrope"},
    {LLAMA(",\"rope_scaling\":{\"type\":\"linear\"}"), "factor"},
    {LLAMA(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}"), "factor"},
    {LLAMA(",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2}"), "low_freq_factor"},
    {LLAMA(",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,"
           "\"high_freq_factor\":4}"),
     "greater"},
    {LLAMA(",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}"),
     "full_attention"},
    {LLAMA(",\"partial_rotary_factor\":0.5"), "partial_rotary_factor"},
    {LLAMA(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":1e-300}"), "factor"},
    {PHI3(LONG("longrope", ",\"attention_factor\":-1")), "attention_factor"},
    {PHI3(LONG("longrope", ",\"factor\":\"4\"")), "factor"},
    {PHI3(LONG("longrope", "") ",\"original_max_position_embeddings\":0"), "original_max"},
    {PHI3(LONG("longrope", "") ",\"original_max_position_embeddings\":1"), "original_max"},
    {PHI3(LONG("longrope", "") ",\"partial_rotary_factor\":0.5"), "list of 2 numbers"},
    {PHI3(",\"rope_scaling\":{\"type\":\"longrope\"}"), "short_factor"},
    {PHI3(",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1]}"), "long_factor"},
    {PHI3(",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[0]}"), "positive"},
    {PHI3(",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[\"1\"]}"), "positive"},
    {PHI3(",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,2]}"), "short_factor"},
    {PHI3(",\"head_dim\":4096,\"rope_scaling\":{\"type\":\"longrope\"}"), "at most"},
    {PHI3(",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}"), "longrope"},
    {PHI3(",\"partial_rotary_factor\":0"), "partial_rotary_factor"},
    {PHI3(",\"partial_rotary_factor\":1.5"), "partial_rotary_factor"},
    {PHI3(",\"partial_rotary_factor\":0.5"), "even"},
    {PHI3(",\"partial_rotary_factor\":\"0.5\""), "partial_rotary_factor"},
    {PHI3(",\"hidden_act\":\"relu\""), "relu"},
    {MODEL("Gemma3ForConditionalGeneration", ""), "text_config"},
    {MODEL("Gemma3ForConditionalGeneration", ",\"text_config\":[]"), "text_config"},
    {MODEL("Gemma3ForConditionalGeneration", ",\"text_config\":{\"model_type\":\"llama\"}"),
     "gemma3_text"},
    {MODEL("Gemma3ForConditionalGeneration", ",\"text_config\":{}"), "hidden_size"},
    {GEMMA2(",\"hidden_activation\":\"gelu\""), "hidden_activation"},
    {GEMMA2(",\"query_pre_attn_scalar\":0"), "query_pre_attn_scalar"},
    {GEMMA2(",\"query_pre_attn_scalar\":-256"), "query_pre_attn_scalar"},
    {GEMMA2(",\"attn_logit_softcapping\":0"), "attn_logit_softcapping"},
    {GEMMA2(",\"attn_logit_softcapping\":-50"), "attn_logit_softcapping"},
    {GEMMA2(",\"final_logit_softcapping\":1e300"), "final_logit_softcapping"},
    {GEMMA2(",\"final_logit_softcapping\":\"30\""), "final_logit_softcapping"},
    {GEMMA2(",\"use_bidirectional_attention\":true"), "use_bidirectional_attention"},
    {GEMMA2(",\"sliding_window\":null"), "sliding_window"},
    {GEMMA2(",\"layer_types\":[\"sliding_attention\"]"), "6 layers"},
    {GEMMA3(",\"sliding_window_pattern\":0"), "sliding_window_pattern"},
    {GEMMA3(",\"rope_local_base_freq\":0"), "rope_local_base_freq"},
    {GEMMA3(",\"rope_parameters\":{\"rope_type\":\"default\"}"), "full_attention"},
    {GEMMA3(",\"rope_parameters\":{\"full_attention\":7}"), "full_attention"},
    {GEMMA3(",\"rope_parameters\":{\"sliding_attention\":{\"rope_type\":\"yarn\"}}"), "yarn"},
    {GEMMA3(",\"rope_scaling\":{\"rope_type\":\"linear\"}"), "factor"},
    {LLAMA(",\"eos_token_id\":\"</s>\""), "eos_token_id"},
    {LLAMA(",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]"), "eos_token_id"},
    {MISTRAL(",\"sliding_window\":0"), "sliding_window"},
    {QWEN2(",\"max_window_layers\":-1"), "max_window_layers"},
    {QWEN2(",\"layer_types\":[\"full_attention\"]"), "6 layers"},
    {QWEN2(",\"layer_types\":[1,2,3,4,5,6]"), "layer_types"},
    {QWEN2(",\"layer_types\":[\"sliding_attention\",\"full_attention\",\"full_attention\","
           "\"full_attention\",\"full_attention\",\"full_attention\"]"),
     "use_sliding_window"},
    {SMOLLM3(",\"no_rope_layers\":[1,1]"), "no_rope_layers"},
    {SMOLLM3(",\"no_rope_layers\":[1,1,1,1,1,2]"), "no_rope_layers"},
    {SMOLLM3(",\"no_rope_layer_interval\":0"), "no_rope_layer_interval"},
};

static void every_bad_value_is_named(void) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        td_model_config config;
        td_status status = parse(refused[i].text, &config);
        int good = status == TD_ERR_DATA && strstr(td_error_message(), "config.json") &&
                   strstr(td_error_message(), refused[i].message);
        if (!CHECK(good))
            fprintf(stderr, "    %s: status %d, \"%s\"\n", refused[i].text, (int)status,
                    td_error_message());
        td_error_clear();
    }
}

static void check_extent(const char *key, const char *value) {
    static const char *const keys[] = {"vocab_size", "hidden_size", "intermediate_size",
                                       "num_hidden_layers", "num_attention_heads"};
    char text[512] = "{\"architectures\":[\"LlamaForCausalLM\"]";
    for (int i = 0; i < 5; i++) {
        size_t used = strlen(text);
        const char *chosen = strcmp(keys[i], key) == 0 ? value : "8";
        if (*chosen)
            snprintf(text + used, sizeof text - used, ",\"%s\":%s", keys[i], chosen);
    }
    strcat(text, "}");
    td_model_config config;
    CHECK_INT(parse(text, &config), TD_ERR_DATA);
    CHECK_MESSAGE(key);
}

static void every_extent_is_checked(void) {
    static const char *const keys[] = {"vocab_size", "hidden_size", "intermediate_size",
                                       "num_hidden_layers", "num_attention_heads"};
    static const char *const values[] = {"",    "null",  "0",    "-8",
                                         "8.5", "\"8\"", "1e12", "4611686018427387904"};
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 8; j++)
            check_extent(keys[i], values[j]);
    check_extent("hidden_size", "12"); // 12 / 8 heads
}

static void a_folder_without_config_says_so(void) {
    td_model_config config;
    const char *folder = scratch("no-config");
    REQUIRE(td_folder_make(folder) == TD_OK);
    CHECK_INT(td_model_config_read(folder, &config), TD_ERR_DATA);
    CHECK_MESSAGE("config.json");
    scratch_file("no-config/config.json", "{\"architectures\":");
    CHECK_INT(td_model_config_read(folder, &config), TD_ERR_DATA);
    CHECK_MESSAGE("no-config/config.json");
    scratch_file("no-config/config.json", LLAMA(""));
    scratch_file("no-config/generation_config.json", "{\"eos_token_id\":{}}");
    CHECK_INT(td_model_config_read(folder, &config), TD_ERR_DATA);
    CHECK_MESSAGE("generation_config.json");
}

int main(void) {
    TEST(every_family_is_read_in_both_spellings);
    TEST(llama3_scaling_is_read_in_both_spellings);
    TEST(smollm3_leaves_out_rope_where_the_list_has_zero);
    TEST(llama_defaults_are_those_of_transformers);
    TEST(other_defaults_are_those_of_transformers);
    TEST(phi3_has_two_sets_of_factors);
    TEST(gemma_has_two_kinds_of_layers);
    TEST(defaults_of_phi_and_gemma_are_those_of_transformers);
    TEST(the_text_part_is_read_for_itself);
    TEST(caps_may_be_null);
    TEST(longrope_has_older_names_and_given_factors);
    TEST(model_type_tells_a_config_without_architectures);
    TEST(biases_follow_the_family);
    TEST(windows_follow_the_family);
    TEST(rope_settings_may_stand_in_either_place);
    TEST(end_ids_come_from_both_files);
    TEST(every_bad_value_is_named);
    TEST(every_extent_is_checked);
    TEST(a_folder_without_config_says_so);
    return test_report();
}
