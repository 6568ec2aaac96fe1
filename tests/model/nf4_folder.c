// NF4 folders: what transformers and bitsandbytes wrote is used as it is, what we write is read
// back to the same base, and other quantizations are refused by name.
#include "model/nf4_folder.h"
#include "model/base.h"
#include "model/export.h"
#include "model/transformer.h"
#include "runtime/core/files.h"
#include "test.h"

#define FIXTURE TEST_FIXTURES "/prequantized"
// families/llama, where some of the linear layers were left whole: named at the start, by a
// pattern, and at the end; "model.layers.1.mlp.gate" and "up_pro" name none.
#define PARTIAL TEST_FIXTURES "/prequantized_partial"
#define LAYER   "model.layers.0.self_attn.q_proj.weight"

static td_op_context context;
static char scratch[64] = "/tmp/tandem-nf4-XXXXXX";

static void prepare(void) {
    context.device = td_device_cpu();
    REQUIRE(td_ops_check(&td_ops_cpu, &context.ops) == TD_OK);
    REQUIRE(context.device->table->stream_create(context.device, &context.stream) == TD_OK);
    REQUIRE(mkdtemp(scratch) != NULL);
}

static void path_of(const char *name, char out[512]) {
    snprintf(out, 512, "%s/%s", scratch, name);
}

static td_status load(const char *folder, int quantize, td_base **out) {
    td_base_options options = {
        .quantize = quantize, .double_quantize = 1, .stored = TD_BF16, .compute = TD_F32};
    *out = NULL;
    return td_base_load(folder, &options, NULL, &context, out);
}

static td_base *load_whole(const char *folder, int quantize) {
    td_base *base;
    if (!CHECK(load(folder, quantize, &base) == TD_OK)) {
        fprintf(stderr, "    %s\n", td_error_message());
        exit(1);
    }
    return base;
}

static void quantize(const char *model, const char *name, int nested, char out[512]) {
    td_export_report report;
    path_of(name, out);
    td_quantize_options options = {
        .model = model, .output = out, .double_quantize = nested, .max_file_bytes = 50000};
    td_status status = td_export_nf4(&options, &context, &report);
    if (status != TD_OK)
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(status == TD_OK);
    CHECK(report.n_files > 1);
}

static void same_matrix(const td_matrix *a, const td_matrix *b) {
    int64_t n = a->rows * a->cols;
    size_t blocks = (size_t)td_nf4_block_count(n);
    CHECK(a->format == TD_MATRIX_NF4 && b->format == TD_MATRIX_NF4);
    CHECK(memcmp(a->data, b->data, (size_t)(n + 1) / 2) == 0);
    REQUIRE(!a->absmax == !b->absmax);
    if (a->absmax) {
        CHECK(memcmp(a->absmax, b->absmax, blocks * sizeof(float)) == 0);
        return;
    }
    CHECK(memcmp(a->absmax_codes, b->absmax_codes, blocks) == 0);
    CHECK(memcmp(a->nested_absmax, b->nested_absmax,
                 (size_t)td_nf4_nested_count(n) * sizeof(float)) == 0);
    CHECK(memcmp(a->nested_map, b->nested_map, 256 * sizeof(float)) == 0);
    CHECK(a->nested_offset == b->nested_offset);
}

static void same_base(const td_base *a, const td_base *b) {
    for (int64_t i = 0; i < a->config.n_layers; i++)
        for (int j = 0; j < TD_PROJ_COUNT; j++)
            if (td_projection_exists(&a->config, (td_projection)j))
                same_matrix(&a->layers[i].linear[j], &b->layers[i].linear[j]);
    CHECK(a->embedding.format == b->embedding.format);
    CHECK(memcmp(a->embedding.data, b->embedding.data,
                 (size_t)(a->embedding.rows * a->embedding.cols) *
                     (a->embedding.format == TD_MATRIX_BF16 ? 2 : 4)) == 0);
}

static void written_and_read_back(void) {
    static const char *const families[] = {"llama", "qwen2", "tinyllama", "llama2"};
    for (int i = 0; i < 4; i++) {
        char model[512], folder[512];
        snprintf(model, sizeof model, "%s/families/%s", TEST_FIXTURES, families[i]);
        quantize(model, families[i], 1, folder);
        td_base *ours = load_whole(model, 1), *read = load_whole(folder, 1);
        same_base(ours, read);
        // What is asked for does not count: the folder decides.
        td_base *again = load_whole(folder, 0);
        same_base(ours, again);
        CHECK(td_hash_equal(read->fingerprint, again->fingerprint));
        CHECK(!td_hash_equal(read->fingerprint, ours->fingerprint));
        td_base_destroy(ours);
        td_base_destroy(read);
        td_base_destroy(again);
    }
}

static void written_without_double_quantization(void) {
    char folder[512];
    quantize(TEST_FIXTURES "/families/llama", "single", 0, folder);
    td_base_options options = {.quantize = 1, .stored = TD_BF16, .compute = TD_F32};
    td_base *ours = NULL;
    REQUIRE(td_base_load(TEST_FIXTURES "/families/llama", &options, NULL, &context, &ours) ==
            TD_OK);
    td_base *read = load_whole(folder, 1);
    CHECK(read->layers[0].linear[0].absmax != NULL);
    same_base(ours, read);
    td_base_destroy(ours);
    td_base_destroy(read);
}

// Every byte of transformers' folder is in the base.
static void stored_codes_are_used(void) {
    td_safetensors *files;
    td_base *base = load_whole(FIXTURE, 1);
    REQUIRE(td_safetensors_open(FIXTURE, &files) == TD_OK);
    for (int64_t layer = 0; layer < base->config.n_layers; layer++)
        for (int j = 0; j < TD_PROJ_COUNT; j++) {
            const td_matrix *matrix = &base->layers[layer].linear[j];
            char name[128];
            td_nf4_stored stored;
            if (!td_projection_exists(&base->config, (td_projection)j))
                continue;
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", (int)layer,
                     td_projection_name((td_projection)j));
            REQUIRE(td_nf4_stored_find(files, name, matrix->rows, matrix->cols, 1, &stored) ==
                    TD_OK);
            CHECK(memcmp(matrix->data, stored.codes.data, (size_t)stored.codes.shape[0]) == 0);
            CHECK(memcmp(matrix->absmax_codes, stored.absmax.data,
                         (size_t)stored.absmax.shape[0]) == 0);
            CHECK(memcmp(matrix->nested_map, stored.nested_map, sizeof stored.nested_map) == 0);
            CHECK(matrix->nested_offset == stored.nested_offset && stored.nested_offset > 0);
        }
    td_safetensors_close(files);
    td_base_destroy(base);
}

// The folder was quantized from families/qwen2: our own quantization has the same codes.
static void same_codes_as_transformers(void) {
    td_base *theirs = load_whole(FIXTURE, 1),
            *ours = load_whole(TEST_FIXTURES "/families/qwen2", 1);
    for (int64_t layer = 0; layer < ours->config.n_layers; layer++)
        for (int j = 0; j < TD_PROJ_COUNT; j++) {
            const td_matrix *a = &ours->layers[layer].linear[j],
                            *b = &theirs->layers[layer].linear[j];
            if (!td_projection_exists(&ours->config, (td_projection)j))
                continue;
            CHECK(memcmp(a->data, b->data, (size_t)(a->rows * a->cols) / 2) == 0);
            CHECK(a->nested_offset == b->nested_offset);
        }
    td_base_destroy(ours);
    td_base_destroy(theirs);
}

static void whole_layers_stay_whole(void) {
    static const unsigned char whole[2][TD_PROJ_COUNT] = {
        {[TD_PROJ_GATE] = 1, [TD_PROJ_UP] = 1, [TD_PROJ_DOWN] = 1},
        {[TD_PROJ_Q] = 1, [TD_PROJ_K] = 1, [TD_PROJ_V] = 1}};
    td_base *base = load_whole(PARTIAL, 1), *llama = load_whole(TEST_FIXTURES "/families/llama", 0);
    for (int layer = 0; layer < 2; layer++)
        for (int j = 0; j < TD_PROJ_COUNT; j++) {
            const td_matrix *matrix = &base->layers[layer].linear[j];
            if (!td_projection_exists(&base->config, (td_projection)j))
                continue;
            CHECK_INT(matrix->format, whole[layer][j] ? TD_MATRIX_F32 : TD_MATRIX_NF4);
            if (matrix->format == TD_MATRIX_F32)
                CHECK(memcmp(matrix->data, llama->layers[layer].linear[j].data,
                             (size_t)(matrix->rows * matrix->cols) * sizeof(float)) == 0);
        }
    td_base_destroy(base);
    td_base_destroy(llama);
}

static void logits_of_a_partial_folder_equal_transformers(void) {
    td_base *base = load_whole(PARTIAL, 1);
    td_transformer *transformer;
    td_safetensors *files;
    td_tensor ids, right;
    td_transformer_options options = {.max_tokens = 32,
                                      .max_sequences = 1,
                                      .max_positions = 32,
                                      .logits_chunk_tokens = 32,
                                      .recompute = TD_RECOMPUTE_BLOCK};
    int32_t rows[32], cu[2] = {0};
    REQUIRE(td_safetensors_open(PARTIAL "/expected.safetensors", &files) == TD_OK);
    REQUIRE(td_safetensors_find(files, "input_ids", &ids) == 1);
    REQUIRE(td_safetensors_find(files, "logits", &right) == 1);
    int64_t n = ids.shape[0], vocabulary = base->config.vocabulary;
    REQUIRE(n <= 32);
    cu[1] = (int32_t)n;
    for (int32_t i = 0; i < n; i++)
        rows[i] = i;
    td_token_batch batch = {.n_tokens = n,
                            .ids = ids.data,
                            .n_sequences = 1,
                            .cu = cu,
                            .n_targets = n,
                            .target_rows = rows};
    float *logits = calloc((size_t)(n * vocabulary), sizeof *logits);
    REQUIRE(td_transformer_create(base, NULL, &options, &context, &transformer) == TD_OK);
    REQUIRE(td_transformer_logits(transformer, NULL, &batch, NULL, logits) == TD_OK);
    double worst = 0;
    for (int64_t i = 0; i < n * vocabulary; i++)
        worst = fmax(worst, fabs((double)logits[i] - ((const float *)right.data)[i]));
    CHECK_NEAR(worst, 0, 1e-4);
    free(logits);
    td_transformer_destroy(transformer);
    td_safetensors_close(files);
    td_base_destroy(base);
}

static const char *copied = FIXTURE;

static char *read_text(const char *path, size_t *bytes) {
    char *text;
    REQUIRE(td_file_read(path, 1 << 24, &text, bytes) == TD_OK);
    return text;
}

// A copy of FOLDER/FILE with one text for another of the same length, or all of it in config.json.
static void copy_with(const char *folder, const char *file, const char *from, const char *to) {
    char source[512], target[512];
    size_t bytes, found = 0, length = strlen(from);
    snprintf(source, sizeof source, "%s/%s", copied, file);
    snprintf(target, sizeof target, "%s/%s", folder, file);
    char *text = read_text(source, &bytes), *copy = malloc(bytes + 256);
    size_t used = 0;
    for (size_t i = 0; i < bytes;) {
        if (length > 0 && !found && i + length <= bytes && memcmp(text + i, from, length) == 0) {
            memcpy(copy + used, to, strlen(to));
            used += strlen(to);
            i += length;
            found = 1;
        } else {
            copy[used++] = text[i++];
        }
    }
    CHECK(length == 0 || found);
    REQUIRE(td_file_write_atomic(target, copy, used) == TD_OK);
    free(copy);
    free(text);
}

static void refused(const char *file, const char *from, const char *to, const char *message) {
    char folder[512];
    td_base *base;
    path_of("broken", folder);
    REQUIRE(td_folder_make(folder) == TD_OK);
    copy_with(folder, "config.json", "", "");
    copy_with(folder, "model.safetensors", "", "");
    copy_with(folder, file, from, to);
    CHECK_INT(load(folder, 1, &base), TD_ERR_DATA);
    if (!CHECK(strstr(td_error_message(), message)))
        fprintf(stderr, "    got \"%s\", expected \"%s\"\n", td_error_message(), message);
    td_error_clear();
    td_base_destroy(base);
}

static void other_quantizations(void) {
    static const char config[] = "config.json", weights[] = "model.safetensors";
    refused(config, "\"bnb_4bit_quant_type\": \"nf4\"", "\"bnb_4bit_quant_type\": \"fp4\"", "fp4");
    refused(config, "\"load_in_8bit\": false,\n    \"quant", "\"load_in_8bit\": true,\n    \"quant",
            "int8");
    refused(config, "\"bnb_4bit_quant_storage\": \"uint8\"",
            "\"bnb_4bit_quant_storage\": \"bfloat16\"", "bfloat16");
    refused(config, "\"quant_method\": \"bitsandbytes\"", "\"quant_method\": \"gptq\"", "gptq");
    refused(config, "\"bnb_4bit_use_double_quant\": true", "\"bnb_4bit_use_double_quant\": false",
            "must be F32");
    refused(config, "\"quantization_config\"", "\"quantization_remark\"", "found U8");
    refused(weights, "\"blocksize\": 64", "\"blocksize\": 32",
            "\"blocksize\" must be 64, found 32");
    refused(weights, "\"nested_blocksize\": 256", "\"nested_blocksize\": 128", "must be 256");
    refused(weights, "\"quant_type\": \"nf4\"", "\"quant_type\": \"fp4\"", "found \"fp4\"");
    refused(weights, "\"shape\": [", "\"shape\": -", "_proj");
    refused(weights, "\"dtype\": \"float32\"", "\"dtype\": \"float64\"", "float64");
    refused(weights, "q_proj.weight.absmax", "q_proj.weight.absmix", "absmax\" is missing");
}

static void other_lists_of_whole_layers(void) {
    static const char config[] = "config.json";
    copied = PARTIAL;
    refused(config, "\"llm_int8_skip_modules\": [", "\"llm_int8_remark\": [", "does not name it");
    refused(config, "\"model.layers.0.mlp\"", "\"model.layers.0.ml\"", "llm_int8_skip_modules");
    refused(config, "\"up_pro\"", "\"up_proj\"", "found U8");
    refused(config, "\"up_pro\"", "\"(up_pro\"", "malformed");
    refused(config, "\"up_pro\"", "7", "names of modules");
    refused(config, "\"llm_int8_skip_modules\": [", "\"llm_int8_skip_modules\": 7, \"x\": [",
            "null or a list");
    copied = FIXTURE;
}

int main(void) {
    prepare();
    TEST(written_and_read_back);
    TEST(written_without_double_quantization);
    TEST(stored_codes_are_used);
    TEST(same_codes_as_transformers);
    TEST(whole_layers_stay_whole);
    TEST(logits_of_a_partial_folder_equal_transformers);
    TEST(other_quantizations);
    TEST(other_lists_of_whole_layers);
    context.device->table->stream_destroy(context.stream);
    CHECK(td_folder_remove_tree(scratch) == TD_OK);
    return test_report();
}
