// Dropout inside the model: whose masks are whose, how many inputs are dropped, and that the
// expectation is kept.
#include "test.h"

#include "model/base.h"
#include "model/transformer.h"

enum { TOKENS = 12 };

typedef struct trained_model {
    td_op_context context;
    td_base *base;
    td_lora lora;
    td_transformer *transformer;
    float *parameters;
    double *gradient; // of the calls so far, added up
} trained_model;

static void open_model(trained_model *model) {
    char target[] = "all-linear";
    char *items[] = {target};
    const td_string_list targets = {.items = items, .count = 1};
    const td_device *device = td_device_cpu();
    td_base_options options = {.stored = TD_F32, .compute = TD_F32};
    td_base_share share = {.is_reader = 1};
    td_lora_options lora = {
        .rank = 4, .alpha = 8, .target_modules = &targets, .target_modules_is_pattern = 1};
    memset(model, 0, sizeof *model);
    model->context.device = device;
    REQUIRE(td_ops_check(&td_ops_cpu, &model->context.ops) == TD_OK);
    REQUIRE(device->table->stream_create(device, &model->context.stream) == TD_OK);
    REQUIRE(td_base_load(TEST_FIXTURES "/families/llama", &options, &share, &model->context,
                         &model->base) == TD_OK);
    REQUIRE(td_lora_init(&model->lora, &model->base->config, &lora) == TD_OK);
    size_t n = (size_t)model->lora.n_parameters;
    model->parameters = calloc(n, sizeof *model->parameters);
    model->gradient = calloc(n, sizeof *model->gradient);
    td_lora_initialize(&model->lora, 3, model->parameters);
    td_transformer_options sizes = {.max_tokens = TOKENS,
                                    .max_sequences = 1,
                                    .max_positions = TOKENS,
                                    .logits_chunk_tokens = 5,
                                    .recompute = TD_RECOMPUTE_BLOCK,
                                    .training = 1};
    REQUIRE(td_transformer_create(model->base, &model->lora, &sizes, &model->context,
                                  &model->transformer) == TD_OK);
}

static void close_model(trained_model *model) {
    td_transformer_destroy(model->transformer);
    free(model->gradient);
    free(model->parameters);
    td_lora_fini(&model->lora);
    td_base_destroy(model->base);
    model->context.device->table->stream_destroy(model->context.stream);
}

// B is zero at the start, and nothing of A would show.
static void fill_b(trained_model *model) {
    for (int64_t i = 0; i < model->lora.n_parameters; i++)
        if (model->parameters[i] == 0)
            model->parameters[i] = 0.01f * (float)(i % 13 - 6) + 0.003f;
}

static td_status add_module(void *self, int64_t offset, int64_t count, const float *values) {
    trained_model *model = self;
    for (int64_t i = 0; i < count; i++)
        model->gradient[offset + i] += values[i];
    return TD_OK;
}

// The first n_targets rows are to predict their successors.
static double train(trained_model *model, td_dropout_key key, int64_t n_targets) {
    int32_t ids[TOKENS], rows[TOKENS], targets[TOKENS], cu[2] = {0, (int32_t)n_targets + 1};
    td_gradient_sink sink = {.module_done = add_module, .self = model};
    double loss = 0;
    for (int32_t i = 0; i < TOKENS; i++) {
        ids[i] = 5 + 7 * i;
        rows[i] = i;
        targets[i] = 5 + 7 * (i + 1);
    }
    td_token_batch batch = {.n_tokens = n_targets + 1,
                            .ids = ids,
                            .n_sequences = 1,
                            .cu = cu,
                            .n_targets = n_targets,
                            .target_rows = rows,
                            .targets = targets};
    CHECK_INT(td_transformer_train(model->transformer, model->parameters, &batch, &key, 1.0f, &sink,
                                   &loss),
              TD_OK);
    return loss;
}

static void masks_follow_seed_step_and_micro_batch(void) {
    trained_model model;
    open_model(&model);
    fill_b(&model);
    const td_dropout_key key = {.seed = 1, .step = 2, .micro_batch = 3, .probability = 0.3};
    td_dropout_key other[3] = {key, key, key};
    other[0].seed++;
    other[1].step++;
    other[2].micro_batch++;
    double loss = train(&model, key, TOKENS - 1);
    CHECK(train(&model, key, TOKENS - 1) == loss);
    for (int i = 0; i < 3; i++)
        CHECK(train(&model, other[i], TOKENS - 1) != loss);
    td_dropout_key none = key;
    none.probability = 0;
    CHECK(train(&model, none, TOKENS - 1) != loss);
    close_model(&model);
}

// With B zero the forward pass does not see the masks, and B's gradient is linear in the dropped
// input: its mean over many masks is the gradient without dropout.
static void expectation_is_kept(void) {
    enum { MASKS = 400 };
    trained_model model;
    open_model(&model);
    size_t n = (size_t)model.lora.n_parameters;
    double *right = calloc(n, sizeof *right), both = 0, square = 0;
    train(&model, (td_dropout_key){0}, TOKENS - 1);
    memcpy(right, model.gradient, n * sizeof *right);
    memset(model.gradient, 0, n * sizeof *right);
    for (uint32_t i = 0; i < MASKS; i++)
        train(&model, (td_dropout_key){.seed = 9, .step = i, .probability = 0.4}, TOKENS - 1);
    for (size_t i = 0; i < n; i++) {
        both += model.gradient[i] / MASKS * right[i];
        square += right[i] * right[i];
    }
    CHECK(square > 0);
    CHECK_NEAR(both / square, 1, 0.03);
    free(right);
    close_model(&model);
}

// Columns of A's gradient that are exactly zero: with one token that anything depends on, these are
// the inputs that were dropped.
static int64_t dropped(const trained_model *model, int64_t layer, td_projection projection,
                       unsigned char *out) {
    const td_lora_module *module = td_lora_at(&model->lora, layer, projection);
    int64_t count = 0;
    for (int64_t i = 0; i < module->in; i++) {
        out[i] = model->gradient[module->a_offset + i] == 0;
        count += out[i];
    }
    return count;
}

static void every_module_has_its_own_mask(void) {
    static const td_projection projections[] = {TD_PROJ_GATE, TD_PROJ_UP, TD_PROJ_V};
    enum { KINDS = 3, MAX_IN = 1024 };
    trained_model model;
    unsigned char masks[2 * KINDS][MAX_IN];
    open_model(&model);
    fill_b(&model);
    REQUIRE(model.base->config.n_layers >= 2 && model.base->config.hidden <= MAX_IN);
    int64_t n = model.base->config.hidden, n_dropped = 0;
    train(&model, (td_dropout_key){.seed = 4, .probability = 0.25}, 1);
    for (int i = 0; i < 2 * KINDS; i++)
        n_dropped += dropped(&model, i / KINDS, projections[i % KINDS], masks[i]);
    CHECK_NEAR((double)n_dropped / (double)(2 * KINDS * n), 0.25, 0.08);
    for (int i = 0; i < 2 * KINDS; i++)
        for (int j = 0; j < i; j++)
            CHECK(memcmp(masks[i], masks[j], (size_t)n) != 0);
    close_model(&model);
}

// A micro-batch of tokens that nobody is trained on has no loss and no gradient.
static void nothing_to_predict_gives_no_gradient(void) {
    trained_model model;
    open_model(&model);
    fill_b(&model);
    train(&model, (td_dropout_key){0}, TOKENS - 1); // leaves something in the buffers
    memset(model.gradient, 0, (size_t)model.lora.n_parameters * sizeof *model.gradient);
    CHECK(train(&model, (td_dropout_key){0}, 0) == 0);
    int64_t n_nonzero = 0;
    for (int64_t i = 0; i < model.lora.n_parameters; i++)
        n_nonzero += model.gradient[i] != 0;
    CHECK_INT(n_nonzero, 0);
    close_model(&model);
}

int main(void) {
    TEST(masks_follow_seed_step_and_micro_batch);
    TEST(expectation_is_kept);
    TEST(every_module_has_its_own_mask);
    TEST(nothing_to_predict_gives_no_gradient);
    return test_report();
}
