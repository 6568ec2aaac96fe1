// Generation: greedy answers equal those of transformers in every family, sampling has the
// distribution it promises.
#include "test.h"

#include "model/base.h"
#include "model/generate.h"
#include "model/safetensors.h"

typedef struct asked_model {
    td_op_context context;
    td_base *base;
    td_safetensors *expected;
    td_transformer *transformer;
    td_kv_cache *cache;
} asked_model;

static td_tensor get(const asked_model *model, const char *name) {
    td_tensor tensor = {0};
    REQUIRE(td_safetensors_find(model->expected, name, &tensor));
    return tensor;
}

// Pieces of max_tokens: the prompt goes through the cache in several calls when it is longer.
static void open_model(asked_model *model, const char *family, int64_t max_tokens,
                       int64_t capacity) {
    char path[600];
    const td_device *device = td_device_cpu();
    td_base_options options = {.stored = TD_F32, .compute = TD_F32};
    td_base_share share = {.is_reader = 1};
    memset(model, 0, sizeof *model);
    model->context.device = device;
    REQUIRE(td_ops_check(&td_ops_cpu, &model->context.ops) == TD_OK);
    REQUIRE(device->table->stream_create(device, &model->context.stream) == TD_OK);
    snprintf(path, sizeof path, "%s/families/%s", TEST_FIXTURES, family);
    REQUIRE(td_base_load(path, &options, &share, &model->context, &model->base) == TD_OK);
    snprintf(path, sizeof path, "%s/families/%s/expected.safetensors", TEST_FIXTURES, family);
    REQUIRE(td_safetensors_open(path, &model->expected) == TD_OK);
    td_transformer_options sizes = {.max_tokens = max_tokens,
                                    .max_sequences = 1,
                                    .max_positions = capacity,
                                    .logits_chunk_tokens = 1,
                                    .recompute = TD_RECOMPUTE_BLOCK};
    REQUIRE(td_transformer_create(model->base, NULL, &sizes, &model->context,
                                  &model->transformer) == TD_OK);
    REQUIRE(td_kv_cache_create(&model->base->config, capacity, &model->context, &model->cache) ==
            TD_OK);
}

static void close_model(asked_model *model) {
    td_kv_cache_destroy(model->cache);
    td_transformer_destroy(model->transformer);
    td_safetensors_close(model->expected);
    td_base_destroy(model->base);
    model->context.device->table->stream_destroy(model->context.stream);
}

static void count_token(void *self, int32_t id) {
    int64_t *count = self;
    (*count)++;
    CHECK(id >= 0);
}

static void check_family(const char *family, int64_t max_tokens) {
    asked_model model;
    int32_t answer[64];
    int64_t count = 0, told = 0;
    open_model(&model, family, max_tokens, 64);
    td_tensor prompt = get(&model, "greedy_prompt"), right = get(&model, "greedy_ids");
    td_generate_options options = {
        .max_new_tokens = right.shape[0], .top_p = 1, .on_token = count_token, .self = &told};
    for (int round = 0; round < 2; round++) { // the second finds the cache of the first
        CHECK_INT(td_generate(model.transformer, NULL, model.cache, prompt.data, prompt.shape[0],
                              &options, answer, &count),
                  TD_OK);
        CHECK_INT(count, right.shape[0]);
        if (!CHECK(memcmp(answer, right.data, (size_t)count * sizeof *answer) == 0))
            fprintf(stderr, "    %s, calls of %lld tokens\n", family, (long long)max_tokens);
    }
    CHECK_INT(told, 2 * count);
    // The fourth token stops it and is not part of the answer, unless it came before.
    const int32_t *ids = right.data;
    int64_t first = 0;
    while (ids[first] != ids[3])
        first++;
    options.stop_ids = &ids[3];
    options.n_stop_ids = 1;
    CHECK_INT(td_generate(model.transformer, NULL, model.cache, prompt.data, prompt.shape[0],
                          &options, answer, &count),
              TD_OK);
    CHECK_INT(count, first);
    close_model(&model);
}

static void greedy_answers_equal_transformers(void) {
    static const char *const families[] = {
        "llama",  "llama2",  "tinyllama",        "mistral", "qwen2",
        "qwen3",  "smollm2", "smollm3",          "phi3",    "phi3_long",
        "gemma2", "gemma3",  "gemma3_multimodal"};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        check_family(families[i], 64);
}

static void long_prompts_go_in_pieces(void) {
    check_family("llama", 2);
    check_family("mistral", 3);
    check_family("phi3", 3);
    check_family("gemma2", 3);
}

static void calls_that_do_not_fit_are_refused(void) {
    asked_model model;
    int32_t answer[64], ids[4] = {1, 2, 3, 1 << 20};
    int64_t count = -1;
    td_generate_options options = {.max_new_tokens = 60, .top_p = 1};
    open_model(&model, "llama", 8, 16);
    CHECK_INT(td_generate(model.transformer, NULL, model.cache, ids, 3, &options, answer, &count),
              TD_ERR_DATA);
    td_error_clear();
    CHECK_INT(td_generate(model.transformer, NULL, model.cache, ids, 0, &options, answer, &count),
              TD_ERR_DATA);
    td_error_clear();
    options.max_new_tokens = 2;
    CHECK_INT(td_generate(model.transformer, NULL, model.cache, ids, 4, &options, answer, &count),
              TD_ERR_DATA);
    CHECK(strstr(td_error_message(), "1048576 is outside the model's vocabulary") != NULL);
    td_error_clear();
    CHECK_INT(count, -1);
    close_model(&model);
}

// Batches that lie about themselves must not be believed.
static void malformed_batches_are_refused(void) {
    asked_model model;
    float *logits = malloc(4096 * sizeof *logits);
    int32_t ids[4] = {1, 2, 3, 4}, row = 3, far = 4, bad_id = -1;
    const int32_t whole[2] = {0, 4}, late[2] = {1, 4}, brief[2] = {0, 3}, beyond[3] = {0, 9, 4};
    open_model(&model, "llama", 8, 16);
    td_token_batch good = {.n_tokens = 4,
                           .ids = ids,
                           .n_sequences = 1,
                           .cu = whole,
                           .n_targets = 1,
                           .target_rows = &row};
    CHECK_INT(td_transformer_logits(model.transformer, NULL, &good, NULL, logits), TD_OK);
    td_token_batch bad[6] = {good, good, good, good, good, good};
    bad[0].cu = late;
    bad[1].cu = brief;
    bad[2].cu = beyond;
    bad[2].n_sequences = 2;
    bad[3].target_rows = &far;
    bad[4].targets = &bad_id;
    bad[5].n_tokens = 9;
    for (int i = 0; i < 6; i++) {
        CHECK(td_transformer_logits(model.transformer, NULL, &bad[i], NULL, logits) != TD_OK);
        td_error_clear();
    }
    close_model(&model);
    free(logits);
}

enum { N = 5, DRAWS = 20000 };

// Draws with evenly spread uniform numbers: shares are exact to 1 / DRAWS, up to rounding.
static void draw(const double *shares, double temperature, double top_p, double *out) {
    int32_t scratch[N];
    for (int i = 0; i < N; i++)
        out[i] = 0;
    for (int k = 0; k < DRAWS; k++) {
        float logits[N], uniform = ((float)k + 0.5f) / DRAWS;
        for (int i = 0; i < N; i++)
            logits[i] = (float)log(shares[i]) + 3.0f;
        out[td_sample(logits, N, temperature, top_p, uniform, scratch)] += 1.0 / DRAWS;
    }
}

static void samples_follow_the_probabilities(void) {
    const double shares[N] = {0.1, 0.3, 0.05, 0.35, 0.2};
    double got[N], cold[N], sum = 0;
    draw(shares, 1, 1, got);
    for (int i = 0; i < N; i++)
        CHECK_NEAR(got[i], shares[i], 2e-4);
    // p^(1/T), normalized.
    draw(shares, 0.5, 1, cold);
    for (int i = 0; i < N; i++)
        sum += shares[i] * shares[i];
    for (int i = 0; i < N; i++)
        CHECK_NEAR(cold[i], shares[i] * shares[i] / sum, 2e-4);
}

static void nucleus_is_the_smallest_that_reaches_top_p(void) {
    const double shares[N] = {0.1, 0.3, 0.05, 0.35, 0.2};
    double got[N];
    draw(shares, 1, 0.6, got); // 0.35 + 0.3 reach it
    CHECK_NEAR(got[3], 0.35 / 0.65, 2e-4);
    CHECK_NEAR(got[1], 0.3 / 0.65, 2e-4);
    CHECK(got[0] == 0 && got[2] == 0 && got[4] == 0);
    draw(shares, 1, 0.7, got); // these two do not
    CHECK_NEAR(got[4], 0.2 / 0.85, 2e-4);
    draw(shares, 1, 1e-9, got); // at least one
    CHECK_NEAR(got[3], 1, 1e-9);
}

static void ties_go_to_the_lowest_id(void) {
    const double even[N] = {0.1, 0.3, 0.3, 0.2, 0.1};
    double got[N];
    draw(even, 0, 1, got);
    CHECK_NEAR(got[1], 1, 1e-9);
    draw(even, 1, 0.2, got);
    CHECK_NEAR(got[1], 1, 1e-9);
}

static void seed_and_sequence_choose_the_sample(void) {
    asked_model model;
    int32_t answers[4][16];
    int64_t count;
    open_model(&model, "llama", 64, 64);
    td_tensor prompt = get(&model, "greedy_prompt");
    for (int i = 0; i < 4; i++) {
        td_generate_options options = {.max_new_tokens = 16,
                                       .temperature = 2,
                                       .top_p = 1,
                                       .seed = i == 1 ? 8 : 7,
                                       .sequence = i == 2};
        CHECK_INT(td_generate(model.transformer, NULL, model.cache, prompt.data, prompt.shape[0],
                              &options, answers[i], &count),
                  TD_OK);
        CHECK_INT(count, 16);
    }
    CHECK(memcmp(answers[0], answers[3], sizeof answers[0]) == 0);
    CHECK(memcmp(answers[0], answers[1], sizeof answers[0]) != 0);
    CHECK(memcmp(answers[0], answers[2], sizeof answers[0]) != 0);
    close_model(&model);
}

int main(void) {
    TEST(greedy_answers_equal_transformers);
    TEST(long_prompts_go_in_pieces);
    TEST(calls_that_do_not_fit_are_refused);
    TEST(malformed_batches_are_refused);
    TEST(samples_follow_the_probabilities);
    TEST(nucleus_is_the_smallest_that_reaches_top_p);
    TEST(ties_go_to_the_lowest_id);
    TEST(seed_and_sequence_choose_the_sample);
    return test_report();
}
