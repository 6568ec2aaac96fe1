// NF4 against what bitsandbytes itself wrote (tests/reference/make_nf4.py): every byte, in both
// directions, at every vector width.
#include "kernels/cpu/cpu_internal.h"
#include "kernels/dynamic_map.h"
#include "model/safetensors.h"
#include "test.h"

static td_op_context context;

// One weight quantized by us.
typedef struct quantized {
    int64_t rows, cols, n_elements, n_blocks, n_nested;
    float *weight;         // (n)
    uint8_t *codes;        // (ceil(n / 2))
    float *absmax;         // (n_blocks)
    uint8_t *absmax_codes; // (n_blocks)
    float *nested_absmax;  // (n_nested)
    float nested_map[256];
    float offset;
} quantized;

static void *need(size_t bytes) {
    void *memory = calloc(1, bytes);
    REQUIRE(memory != NULL);
    return memory;
}

static td_tensor tensor_of(const td_safetensors *files, const char *name) {
    td_tensor tensor = {0};
    if (!td_safetensors_find(files, name, &tensor)) {
        fprintf(stderr, "the fixture has no tensor %s\n", name);
        exit(1);
    }
    return tensor;
}

static void expect_bytes(const td_safetensors *files, const char *file, const char *name,
                         const void *actual, size_t bytes) {
    td_tensor expected = tensor_of(files, name);
    int64_t n = 0;
    REQUIRE(td_tensor_elements(&expected, &n) == TD_OK);
    CHECK_INT((size_t)n * td_dtype_bytes(expected.dtype), bytes);
    if (!CHECK(memcmp(actual, expected.data, bytes) == 0))
        fprintf(stderr, "    %s of %s differs\n", name, file);
}

static void quantize(const td_safetensors *files, const char *name, quantized *out) {
    td_tensor weight = tensor_of(files, name);
    int64_t n = weight.shape[0] * weight.shape[1];
    *out = (quantized){.rows = weight.shape[0],
                       .cols = weight.shape[1],
                       .n_elements = n,
                       .n_blocks = td_nf4_block_count(n),
                       .n_nested = td_nf4_nested_count(n)};
    out->weight = need((size_t)n * sizeof(float));
    out->codes = need((size_t)(n + 1) / 2);
    out->absmax = need((size_t)out->n_blocks * sizeof(float));
    out->absmax_codes = need((size_t)out->n_blocks);
    out->nested_absmax = need((size_t)out->n_nested * sizeof(float));
    td_dynamic_map_signed(out->nested_map);
    td_convert_to_f32(weight.data, weight.dtype, n, out->weight);
    td_nf4_quantize_args first = {n, out->weight, out->codes, out->absmax, TD_F32};
    CHECK_INT(context.ops->nf4_quantize(&context, &first), TD_OK);
    td_absmax_quantize_args second = {out->n_blocks, out->absmax, out->absmax_codes,
                                      out->nested_absmax, &out->offset};
    CHECK_INT(context.ops->absmax_quantize(&context, &second), TD_OK);
}

static void release(quantized *weight) {
    free(weight->weight);
    free(weight->codes);
    free(weight->absmax);
    free(weight->absmax_codes);
    free(weight->nested_absmax);
}

static td_matrix matrix_of(const quantized *weight, int nested, td_dtype compute) {
    return (td_matrix){.format = TD_MATRIX_NF4,
                       .rows = weight->rows,
                       .cols = weight->cols,
                       .data = weight->codes,
                       .absmax = nested ? NULL : weight->absmax,
                       .absmax_codes = weight->absmax_codes,
                       .nested_absmax = weight->nested_absmax,
                       .nested_map = weight->nested_map,
                       .nested_offset = weight->offset,
                       .compute = compute};
}

static void check_dequantized(const td_safetensors *files, const char *file,
                              const quantized *weight, int nested) {
    float *out = need((size_t)weight->n_elements * sizeof(float));
    td_matrix matrix = matrix_of(weight, nested, TD_F32);
    td_dequantize_args args = {&matrix, 0, weight->rows, out, 0};
    CHECK_INT(context.ops->dequantize(&context, &args), TD_OK);
    expect_bytes(files, file, "dequantized", out, (size_t)weight->n_elements * sizeof(float));
    free(out);
}

static void check_dequantized_bf16(const td_safetensors *files, const char *file,
                                   const quantized *weight, int nested) {
    float *out = need((size_t)weight->n_elements * sizeof(float));
    td_matrix matrix = matrix_of(weight, nested, TD_BF16);
    td_dequantize_args args = {&matrix, 0, weight->rows, out, 0};
    CHECK_INT(context.ops->dequantize(&context, &args), TD_OK);
    uint16_t *halves = need((size_t)weight->n_elements * sizeof(uint16_t));
    for (int64_t i = 0; i < weight->n_elements; i++) {
        halves[i] = td_f32_to_bf16(out[i]);
        CHECK_NEAR(td_bf16_to_f32(halves[i]), out[i], 0.0);
    }
    expect_bytes(files, file, "dequantized_bf16", halves,
                 (size_t)weight->n_elements * sizeof(uint16_t));
    free(halves);
    free(out);
}

static void check_nested(const td_safetensors *files, const char *file, const quantized *weight) {
    expect_bytes(files, file, "absmax", weight->absmax_codes, (size_t)weight->n_blocks);
    expect_bytes(files, file, "nested_absmax", weight->nested_absmax,
                 (size_t)weight->n_nested * sizeof(float));
    expect_bytes(files, file, "nested_offset", &weight->offset, sizeof(float));
    expect_bytes(files, file, "nested_quant_map", weight->nested_map, sizeof weight->nested_map);
}

static void check_file(const char *name, int nested) {
    char path[1024];
    snprintf(path, sizeof path, "%s/nf4/%s.%s.safetensors", TEST_FIXTURES, name,
             nested ? "nested" : "plain");
    td_safetensors *files = NULL;
    if (td_safetensors_open(path, &files) != TD_OK) {
        fprintf(stderr, "%s\n", td_error_message());
        exit(1);
    }
    quantized weight;
    quantize(files, "weight", &weight);
    expect_bytes(files, name, "packed", weight.codes, (size_t)(weight.n_elements + 1) / 2);
    if (nested)
        check_nested(files, name, &weight);
    else
        expect_bytes(files, name, "absmax", weight.absmax, (size_t)weight.n_blocks * sizeof(float));
    check_dequantized(files, name, &weight, nested);
    if (tensor_of(files, "weight").dtype == TD_BF16)
        check_dequantized_bf16(files, name, &weight, nested);
    release(&weight);
    td_safetensors_close(files);
}

static void every_file(void) {
    static const char *const names[] = {"gaussian", "bf16", "tail",   "odd",
                                        "outliers", "tiny", "uneven", "below_one_block"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        check_file(names[i], 0);
        check_file(names[i], 1);
    }
    check_file("many_blocks", 1);
}

static void same_bytes_with_avx512(void) {
    td_cpu_simd_limit(TD_CPU_AVX512);
    every_file();
}

static void same_bytes_with_avx2(void) {
    td_cpu_simd_limit(TD_CPU_AVX2);
    every_file();
}

static void same_bytes_without_vectors(void) {
    td_cpu_simd_limit(TD_CPU_SCALAR);
    every_file();
}

// The state dict of a Linear4bit layer, as pre-quantized model folders hold it.
static void same_bytes_as_linear4bit(void) {
    td_safetensors *files = NULL;
    REQUIRE(td_safetensors_open(TEST_FIXTURES "/nf4/prequantized.safetensors", &files) == TD_OK);
#define LAYER "model.layers.0.self_attn.q_proj.weight"
    quantized weight;
    quantize(files, "original", &weight);
    expect_bytes(files, "prequantized", LAYER, weight.codes, (size_t)weight.n_elements / 2);
    expect_bytes(files, "prequantized", LAYER ".absmax", weight.absmax_codes,
                 (size_t)weight.n_blocks);
    expect_bytes(files, "prequantized", LAYER ".nested_absmax", weight.nested_absmax,
                 (size_t)weight.n_nested * sizeof(float));
    expect_bytes(files, "prequantized", LAYER ".nested_quant_map", weight.nested_map,
                 sizeof weight.nested_map);
    check_dequantized_bf16(files, "prequantized", &weight, 1);
    release(&weight);
    td_safetensors_close(files);
}

int main(void) {
    context.device = td_device_cpu();
    REQUIRE(td_ops_check(&td_ops_cpu, &context.ops) == TD_OK);
    TEST(same_bytes_with_avx512);
    TEST(same_bytes_with_avx2);
    TEST(same_bytes_without_vectors);
    TEST(same_bytes_as_linear4bit);
    return test_report();
}
