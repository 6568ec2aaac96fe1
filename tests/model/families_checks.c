// Logits, loss and LoRA gradients of tiny random models against transformers and PEFT, on any
// backend: the model comes from the fixtures, what is compared from expected.safetensors beside it.
#include "model/families_checks.h"

#include "test.h"

#include "model/adapter.h"
#include "model/base.h"
#include "model/safetensors.h"
#include "model/transformer.h"

enum { MAX_TOKENS = 256, CHUNK = 13 };

// Nothing but the library's public functions, on one folder.
typedef struct bench_model {
    const families_backend *backend;
    char folder[512], adapter_folder[600];
    td_op_context context;
    td_base *base;
    td_adapter_info info;
    td_lora lora;
    float *parameters;  // device memory
    float *gradient;    // page-locked
    int64_t n_received; // elements of it
    td_safetensors *expected;
    td_token_batch batch;
    int32_t target_rows[MAX_TOKENS], targets[MAX_TOKENS];
} bench_model;

static td_tensor get(const bench_model *model, const char *name) {
    td_tensor tensor = {0};
    if (!td_safetensors_find(model->expected, name, &tensor)) {
        fprintf(stderr, "no tensor %s\n", name);
        exit(1);
    }
    return tensor;
}

static void fill_batch(bench_model *model) {
    td_tensor ids = get(model, "input_ids"), cu = get(model, "cu_seqlens"),
              labels = get(model, "labels");
    const int32_t *borders = cu.data, *label = labels.data;
    model->batch = (td_token_batch){
        .n_tokens = ids.shape[0],
        .ids = ids.data,
        .n_sequences = cu.shape[0] - 1,
        .cu = cu.data,
        .target_rows = model->target_rows,
        .targets = model->targets,
    };
    for (int64_t s = 0; s < model->batch.n_sequences; s++)
        for (int32_t t = borders[s] + 1; t < borders[s + 1]; t++)
            if (label[t] >= 0) {
                model->target_rows[model->batch.n_targets] = t - 1;
                model->targets[model->batch.n_targets++] = label[t];
            }
}

static void open_context(bench_model *model) {
    const td_device *device = model->backend->device;
    model->context.device = device;
    REQUIRE(td_ops_check(model->backend->ops, &model->context.ops) == TD_OK);
    REQUIRE(device->table->stream_create(device, &model->context.stream) == TD_OK);
}

// The adapter's parameters on the device, room for their gradient.
static void open_parameters(bench_model *model) {
    const td_device *device = model->context.device;
    size_t bytes = (size_t)model->lora.n_parameters * sizeof(float);
    float *read = calloc(1, bytes);
    void *parameters, *gradient;
    REQUIRE(td_adapter_read(model->adapter_folder, &model->lora, read) == TD_OK);
    REQUIRE(device->table->alloc(device, bytes, "parameters", &parameters) == TD_OK);
    REQUIRE(device->table->alloc_pinned(device, bytes, "gradient", &gradient) == TD_OK);
    REQUIRE(device->table->copy(model->context.stream, parameters, read, bytes) == TD_OK);
    REQUIRE(device->table->stream_synchronize(model->context.stream) == TD_OK);
    model->parameters = parameters;
    model->gradient = gradient;
    free(read);
}

static void open_model(bench_model *model, const families_backend *backend, const char *family,
                       int quantize) {
    char path[700];
    td_base_options options = {.quantize = quantize,
                               .double_quantize = 1,
                               .stored = TD_BF16,
                               .compute = backend->ops->activation};
    memset(model, 0, sizeof *model);
    model->backend = backend;
    snprintf(model->folder, sizeof model->folder, "%s/families/%s", test_fixtures(), family);
    snprintf(model->adapter_folder, sizeof model->adapter_folder, "%s/adapter", model->folder);
    open_context(model);
    td_base_share share = {.is_reader = 1};
    if (td_base_load(model->folder, &options, &share, &model->context, &model->base) != TD_OK ||
        td_adapter_info_read(model->adapter_folder, &model->info) != TD_OK) {
        fprintf(stderr, "%s: %s\n", family, td_error_message());
        exit(1);
    }
    td_lora_options lora_options = td_adapter_lora_options(&model->info);
    REQUIRE(td_lora_init(&model->lora, &model->base->config, &lora_options) == TD_OK);
    open_parameters(model);
    snprintf(path, sizeof path, "%s/expected.safetensors", model->folder);
    REQUIRE(td_safetensors_open(path, &model->expected) == TD_OK);
    fill_batch(model);
}

static void close_model(bench_model *model) {
    const td_device *device = model->context.device;
    td_safetensors_close(model->expected);
    device->table->free_pinned(device, model->gradient);
    device->table->free(device, model->parameters);
    td_lora_fini(&model->lora);
    td_adapter_info_fini(&model->info);
    td_base_destroy(model->base);
    device->table->stream_destroy(model->context.stream);
}

static td_transformer *make_transformer(bench_model *model, int training, td_recompute recompute) {
    td_transformer *transformer;
    td_transformer_options options = {
        .max_tokens = MAX_TOKENS,
        .max_sequences = 8,
        .max_positions = 128,
        .logits_chunk_tokens = CHUNK,
        .recompute = recompute,
        .training = training,
        // Where something is computed again; without a bit's difference.
        .dequantize_ahead = training && recompute != TD_RECOMPUTE_NONE,
    };
    REQUIRE(td_transformer_create(model->base, &model->lora, &options, &model->context,
                                  &transformer) == TD_OK);
    return transformer;
}

// Between values and what they should be.
typedef struct difference {
    double worst, squares;     // of the difference
    double largest, magnitude; // of what is expected; the sum of its squares
} difference;

static void difference_add(difference *sum, const float *actual, const float *expected, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double error = fabs((double)actual[i] - expected[i]);
        sum->worst = error > sum->worst || isnan(error) ? error : sum->worst;
        sum->squares += error * error;
        sum->largest = fmax(sum->largest, fabs((double)expected[i]));
        sum->magnitude += (double)expected[i] * expected[i];
    }
}

static double difference_relative(const difference *sum) {
    return sqrt(sum->squares / sum->magnitude);
}

static void check_near(const bench_model *model, const char *name, const difference *found,
                       double worst_limit, double relative_limit) {
    double relative = difference_relative(found);
    if (!CHECK(found->worst <= worst_limit || relative <= relative_limit))
        fprintf(stderr, "    %s %s: off by %.3g of at most %.3g, root mean square %.3g of it\n",
                model->folder, name, found->worst, found->largest, relative);
}

static void check_near_logits(const bench_model *model, const char *name, const difference *found) {
    check_near(model, name, found, model->backend->logits, model->backend->logits_relative);
}

static void check_logits(bench_model *model, const float *parameters, const char *name) {
    td_transformer *transformer = make_transformer(model, 0, TD_RECOMPUTE_BLOCK);
    td_tensor expected = get(model, name);
    int64_t vocabulary = expected.shape[1], n = model->batch.n_tokens * vocabulary;
    float *logits = calloc((size_t)n, sizeof *logits);
    int32_t rows[MAX_TOKENS];
    for (int32_t i = 0; i < MAX_TOKENS; i++)
        rows[i] = i;
    td_token_batch batch = model->batch;
    batch.n_targets = batch.n_tokens;
    batch.target_rows = rows;
    batch.targets = NULL;
    CHECK_INT(td_transformer_logits(transformer, parameters, &batch, NULL, logits), TD_OK);
    difference found = {0};
    difference_add(&found, logits, expected.data, n);
    check_near_logits(model, name, &found);
    free(logits);
    td_transformer_destroy(transformer);
}

// Each sequence in two pieces and then token by token must give what it gives at once.
static void check_cache(bench_model *model) {
    td_transformer *transformer = make_transformer(model, 0, TD_RECOMPUTE_BLOCK);
    td_kv_cache *cache;
    td_tensor expected = get(model, "lora_logits");
    int64_t vocabulary = expected.shape[1];
    float *logits = calloc((size_t)vocabulary, sizeof *logits);
    difference found = {0};
    REQUIRE(td_kv_cache_create(&model->base->config, 64, &model->context, &cache) == TD_OK);
    for (int64_t s = 0; s < model->batch.n_sequences; s++) {
        int32_t begin = model->batch.cu[s], end = model->batch.cu[s + 1], piece;
        td_kv_cache_clear(cache);
        for (int32_t t = begin; t < end; t += piece) {
            piece = t == begin ? (end - begin + 1) / 2 : 1;
            int32_t cu[2] = {0, piece}, row = piece - 1;
            td_token_batch batch = {.n_tokens = piece,
                                    .ids = model->batch.ids + t,
                                    .n_sequences = 1,
                                    .cu = cu,
                                    .n_targets = 1,
                                    .target_rows = &row};
            CHECK_INT(td_transformer_logits(transformer, model->parameters, &batch, cache, logits),
                      TD_OK);
            const float *right = (const float *)expected.data + (t + piece - 1) * vocabulary;
            difference_add(&found, logits, right, vocabulary);
        }
    }
    check_near_logits(model, "through the cache", &found);
    td_kv_cache_destroy(cache);
    free(logits);
    td_transformer_destroy(transformer);
}

static td_status keep_gradient(void *self, int64_t offset, int64_t count, const float *values) {
    bench_model *model = self;
    model->n_received += count;
    return model->context.device->table->copy(model->context.stream, model->gradient + offset,
                                              values, (size_t)count * sizeof *values);
}

// The one model whose gradients PyTorch's own fp32 misses by half the limit (5.1e-6, against
// float64) may be off by half as much again.
static double gradient_limit(const bench_model *model) {
    return model->backend->gradient * (strstr(model->folder, "phi3_long") ? 1.5 : 1.0);
}

// Relative to the largest element of each tensor's gradient.
static void check_gradients(bench_model *model, const char *prefix) {
    for (int64_t layer = 0; layer < model->lora.n_layers; layer++)
        for (int p = 0; p < TD_PROJ_COUNT; p++) {
            const td_lora_module *module = td_lora_at(&model->lora, layer, (td_projection)p);
            for (int b = 0; b < 2 && module->present; b++) {
                char name[256];
                snprintf(name, sizeof name, "%sbase_model.model.%slayers.%lld.%s.lora_%c.weight",
                         prefix, model->lora.module_prefix, (long long)layer,
                         td_projection_name((td_projection)p), b ? 'B' : 'A');
                td_tensor expected = get(model, name);
                int64_t n = module->rank * (b ? module->out : module->in);
                const float *right = expected.data,
                            *ours = model->gradient + (b ? module->b_offset : module->a_offset);
                difference found = {0};
                difference_add(&found, ours, right, n);
                check_near(model, name, &found, gradient_limit(model) * found.largest,
                           model->backend->gradient_relative);
            }
        }
}

static void check_training(bench_model *model, td_recompute recompute, const char *loss_name,
                           const char *gradient_prefix, float **reference) {
    td_transformer *transformer = make_transformer(model, 1, recompute);
    td_gradient_sink sink = {.module_done = keep_gradient, .self = model};
    td_dropout_key dropout = {0};
    size_t bytes = (size_t)model->lora.n_parameters * sizeof(float);
    double loss = 0, only_loss = 0, count = (double)model->batch.n_targets;
    memset(model->gradient, 0xff, bytes); // NaN
    model->n_received = 0;
    CHECK_INT(td_transformer_train(transformer, model->parameters, &model->batch, &dropout,
                                   (float)(1.0 / count), &sink, &loss),
              TD_OK);
    CHECK_INT(model->context.device->table->stream_synchronize(model->context.stream), TD_OK);
    CHECK_INT(model->n_received, model->lora.n_parameters);
    td_tensor expected = get(model, loss_name);
    CHECK_NEAR(loss / count, *(const float *)expected.data, model->backend->loss);
    CHECK_INT(td_transformer_loss(transformer, model->parameters, &model->batch, &only_loss),
              TD_OK);
    CHECK(only_loss == loss);
    check_gradients(model, gradient_prefix);
    // What is computed again has the same bits as what is kept.
    if (!*reference) {
        *reference = malloc(bytes);
        memcpy(*reference, model->gradient, bytes);
    }
    CHECK(memcmp(*reference, model->gradient, bytes) == 0);
    td_transformer_destroy(transformer);
}

static const families_backend *tested;

static void check_family(const char *family, int quantize) {
    bench_model model;
    float *reference = NULL;
    open_model(&model, tested, family, quantize);
    check_logits(&model, NULL, quantize ? "nf4_logits" : "logits");
    check_logits(&model, model.parameters, quantize ? "nf4_lora_logits" : "lora_logits");
    if (!quantize)
        check_cache(&model);
    for (td_recompute policy = TD_RECOMPUTE_NONE; policy <= TD_RECOMPUTE_BLOCK; policy++)
        check_training(&model, policy, quantize ? "nf4_loss" : "loss",
                       quantize ? "nf4_grad." : "grad.", &reference);
    free(reference);
    close_model(&model);
}

static void llama_3_equals_transformers(void) {
    check_family("llama", 0);
}
static void llama_2_equals_transformers(void) {
    check_family("llama2", 0);
}
static void tinyllama_equals_transformers(void) {
    check_family("tinyllama", 0);
}
static void mistral_equals_transformers(void) {
    check_family("mistral", 0);
}
static void qwen_2_equals_transformers(void) {
    check_family("qwen2", 0);
}
static void qwen_3_equals_transformers(void) {
    check_family("qwen3", 0);
}
static void smollm_2_equals_transformers(void) {
    check_family("smollm2", 0);
}
static void smollm_3_equals_transformers(void) {
    check_family("smollm3", 0);
}
static void phi_3_equals_transformers(void) {
    check_family("phi3", 0);
}
static void phi_3_beyond_its_first_length_equals_transformers(void) {
    check_family("phi3_long", 0);
}
static void gemma_2_equals_transformers(void) {
    check_family("gemma2", 0);
}
static void gemma_3_equals_transformers(void) {
    check_family("gemma3", 0);
}
static void the_text_part_of_gemma_3_equals_transformers(void) {
    check_family("gemma3_multimodal", 0);
}
static void phi_3_in_nf4_equals_bitsandbytes(void) {
    check_family("phi3", 1);
}
static void llama_3_in_nf4_equals_bitsandbytes(void) {
    check_family("llama", 1);
}
static void qwen_3_in_nf4_equals_bitsandbytes(void) {
    check_family("qwen3", 1);
}

int families_main(const families_backend *backend) {
    tested = backend;
    TEST(llama_3_equals_transformers);
    TEST(llama_2_equals_transformers);
    TEST(tinyllama_equals_transformers);
    TEST(mistral_equals_transformers);
    TEST(qwen_2_equals_transformers);
    TEST(qwen_3_equals_transformers);
    TEST(smollm_2_equals_transformers);
    TEST(smollm_3_equals_transformers);
    TEST(llama_3_in_nf4_equals_bitsandbytes);
    TEST(qwen_3_in_nf4_equals_bitsandbytes);
    TEST(phi_3_equals_transformers);
    TEST(phi_3_beyond_its_first_length_equals_transformers);
    TEST(gemma_2_equals_transformers);
    TEST(gemma_3_equals_transformers);
    TEST(the_text_part_of_gemma_3_equals_transformers);
    TEST(phi_3_in_nf4_equals_bitsandbytes);
    return test_report();
}
