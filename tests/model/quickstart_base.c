// The bundled base model gives the logits of transformers.
#include "test.h"

#include "model/base.h"
#include "model/safetensors.h"
#include "model/transformer.h"

enum { MAX_TOKENS = 64 };

static void logits_equal_transformers(void) {
    const td_device *device = td_device_cpu();
    td_op_context context = {.device = device};
    td_base_options options = {.stored = TD_BF16, .compute = TD_F32};
    td_base_share share = {.is_reader = 1};
    td_base *base;
    td_safetensors *file;
    td_transformer *transformer;
    td_tensor ids, right;
    int32_t tokens[MAX_TOKENS], rows[MAX_TOKENS], cu[2] = {0};
    REQUIRE(td_ops_check(&td_ops_cpu, &context.ops) == TD_OK);
    REQUIRE(device->table->stream_create(device, &context.stream) == TD_OK);
    REQUIRE(td_base_load(TEST_SOURCE "/launch/quickstart/base", &options, &share, &context,
                         &base) == TD_OK);
    REQUIRE(td_safetensors_open(TEST_FIXTURES "/quickstart/logits.safetensors", &file) == TD_OK);
    REQUIRE(td_safetensors_find(file, "input_ids", &ids) && ids.dtype == TD_I64);
    REQUIRE(td_safetensors_find(file, "logits", &right) && right.shape[0] == ids.shape[0]);
    REQUIRE(ids.shape[0] <= MAX_TOKENS && right.shape[1] == base->config.vocabulary);
    for (int64_t i = 0; i < ids.shape[0]; i++) {
        tokens[i] = (int32_t)((const int64_t *)ids.data)[i];
        rows[i] = (int32_t)i;
    }
    cu[1] = (int32_t)ids.shape[0];
    td_transformer_options sizes = {.max_tokens = MAX_TOKENS,
                                    .max_sequences = 1,
                                    .max_positions = MAX_TOKENS,
                                    .logits_chunk_tokens = 20,
                                    .recompute = TD_RECOMPUTE_BLOCK};
    REQUIRE(td_transformer_create(base, NULL, &sizes, &context, &transformer) == TD_OK);
    td_token_batch batch = {.n_tokens = cu[1],
                            .ids = tokens,
                            .n_sequences = 1,
                            .cu = cu,
                            .n_targets = cu[1],
                            .target_rows = rows};
    int64_t n = ids.shape[0] * right.shape[1];
    float *logits = calloc((size_t)n, sizeof *logits);
    CHECK_INT(td_transformer_logits(transformer, NULL, &batch, NULL, logits), TD_OK);
    double worst = 0;
    for (int64_t i = 0; i < n; i++)
        worst = fmax(worst, fabs((double)logits[i] - ((const float *)right.data)[i]));
    printf("largest difference of %lld logits: %.2e\n", (long long)n, worst);
    CHECK(worst <= 1e-4);
    free(logits);
    td_transformer_destroy(transformer);
    td_safetensors_close(file);
    td_base_destroy(base);
    device->table->stream_destroy(context.stream);
}

int main(void) {
    TEST(logits_equal_transformers);
    return test_report();
}
