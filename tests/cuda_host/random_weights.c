// Random weights that the GPU draws are those that the host draws; on the GPU module, emulated or
// real.
#include "runtime/core/gpu_module.h"
#include "test.h"

#include <stdlib.h>
#include <string.h>

#include "model/base.h"

static td_op_context context;
static const td_gpu_module *module;

static td_model_config config_of(const char *family) {
    td_model_config config;
    char folder[512];
    snprintf(folder, sizeof folder, TEST_FIXTURES "/families/%s", family);
    REQUIRE(td_model_config_read(folder, &config) == TD_OK);
    return config;
}

typedef struct drawn {
    size_t bytes, host_bytes;
    unsigned char *values, *host_values;
    float offset; // of the first layer's q or qkv
} drawn;

static unsigned char *fetch(const void *memory, size_t bytes) {
    void *out = NULL;
    const td_device_table *table = context.device->table;
    REQUIRE(table->alloc_pinned(context.device, bytes, "a test", &out) == TD_OK);
    REQUIRE(table->copy(context.stream, out, memory, bytes) == TD_OK);
    REQUIRE(table->stream_synchronize(context.stream) == TD_OK);
    return out;
}

static drawn draw(const td_model_config *config, const td_base_options *options, const td_ops *ops,
                  uint64_t seed) {
    td_base *base = NULL;
    td_op_context its = context;
    its.ops = ops;
    REQUIRE(td_base_create_random(config, options, seed, &its, &base) == TD_OK);
    drawn out = {.bytes = base->arena.used_bytes, .host_bytes = base->host_arena.used_bytes};
    out.values = fetch(base->arena.base, out.bytes);
    if (out.host_bytes > 0)
        out.host_values = fetch(base->host_arena.base, out.host_bytes);
    for (int i = 0; i < TD_PROJ_COUNT; i++)
        out.offset += base->layers[0].linear[i].nested_offset;
    td_base_destroy(base);
    return out;
}

static void release(drawn *self) {
    context.device->table->free_pinned(context.device, self->values);
    context.device->table->free_pinned(context.device, self->host_values);
}

static int same(const drawn *a, const drawn *b) {
    return a->bytes == b->bytes && a->host_bytes == b->host_bytes && a->offset == b->offset &&
           memcmp(a->values, b->values, a->bytes) == 0 &&
           (a->host_bytes == 0 || memcmp(a->host_values, b->host_values, a->host_bytes) == 0);
}

static void check(const char *family, const td_ops *ops, td_base_options options) {
    td_ops without = *ops;
    td_model_config config = config_of(family);
    without.draw_weights = NULL;
    REQUIRE(ops->draw_weights != NULL);
    drawn there = draw(&config, &options, ops, 3), here = draw(&config, &options, &without, 3);
    drawn other = draw(&config, &options, ops, 4);
    CHECK(there.bytes > 0 && same(&there, &here));
    CHECK(!same(&there, &other));
    CHECK((there.offset != 0) == (options.quantize && options.double_quantize));
    release(&there);
    release(&here);
    release(&other);
}

static void check_formats(const td_ops *ops) {
    td_base_options options = {.stored = ops->activation, .compute = ops->activation};
    check("qwen2", ops, options); // which has biases
    options.quantize = 1;
    check("qwen2", ops, options);
    options.double_quantize = 1;
    check("qwen2", ops, options);
    options.host_embedding = 1;
    check("phi3", ops, options);
}

static void bf16_weights_are_the_hosts(void) {
    check_formats(module->ops_bf16);
}

static void fp32_weights_are_the_hosts(void) {
    check_formats(module->ops_fp32);
}

// At every address and length, from any place on; nothing beyond the end is written.
static void any_part_is_the_same(void) {
    enum { N = 100, ROOM = 128 };
    const td_device_table *table = context.device->table;
    float quantiles[TD_DRAW_QUANTILES], expected[N], *values;
    void *table_there = NULL, *out = NULL;
    for (int i = 0; i < TD_DRAW_QUANTILES; i++)
        quantiles[i] = (float)(i % 251) - 125;
    for (int i = 0; i < N; i++) {
        td_philox_words words = td_draw_words(7, 2, (5ull << 32) + (uint64_t)i / 8);
        expected[i] = quantiles[words.word[i % 8 / 2] >> (i % 2 * 16) & 0xffff];
    }
    REQUIRE(table->alloc(context.device, sizeof quantiles, "a test", &table_there) == TD_OK);
    REQUIRE(table->alloc(context.device, ROOM * sizeof(float), "a test", &out) == TD_OK);
    REQUIRE(table->copy(context.stream, table_there, quantiles, sizeof quantiles) == TD_OK);
    for (int64_t n = 0; n <= N; n += 1 + n / 4)
        for (int64_t skip = 0; skip < 4; skip++) {
            td_draw_weights_args args = {.key = 7,
                                         .tensor = 2,
                                         .first = 8 * (5ll << 32),
                                         .n_elements = n,
                                         .quantiles = table_there,
                                         .type = TD_F32,
                                         .out = (float *)out + skip};
            REQUIRE(table->set(context.stream, out, 0, ROOM * sizeof(float)) == TD_OK);
            REQUIRE(module->ops_fp32->draw_weights(&context, &args) == TD_OK);
            values = (float *)(void *)fetch(out, ROOM * sizeof(float));
            CHECK(memcmp(values + skip, expected, (size_t)n * sizeof(float)) == 0);
            CHECK(values[skip + n] == 0 && (skip == 0 || values[skip - 1] == 0));
            table->free_pinned(context.device, values);
        }
    table->free(context.device, table_there);
    table->free(context.device, out);
}

int main(void) {
    char reason[256] = "";
    td_gpu_module_load(&module, reason, sizeof reason);
    if (!module) {
        fprintf(stderr, "no GPU: %s\n", reason);
        return 1;
    }
    REQUIRE(module->device_open(0, &context.device) == TD_OK);
    REQUIRE(context.device->table->stream_create(context.device, &context.stream) == TD_OK);
    TEST(any_part_is_the_same);
    TEST(bf16_weights_are_the_hosts);
    TEST(fp32_weights_are_the_hosts);
    context.device->table->stream_destroy(context.stream);
    return test_report();
}
