// Merged folders: every weight is W + s B A rounded once, everything else is untouched, and what
// cannot be merged is refused before anything is written.
#include "model/adapter.h"
#include "model/export.h"
#include "model/model_config.h"
#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "test.h"

static const char *const families[] = {
    "llama",     "llama2", "mistral",   "qwen2",  "qwen3",  "smollm2",          "smollm3",
    "tinyllama", "phi3",   "phi3_long", "gemma2", "gemma3", "gemma3_multimodal"};
enum { FAMILIES = sizeof families / sizeof families[0] };

static td_op_context context;
static char scratch[64] = "/tmp/tandem-merge-XXXXXX";
static int n_outputs;

static void prepare(void) {
    context.device = td_device_cpu();
    REQUIRE(td_ops_check(&td_ops_cpu, &context.ops) == TD_OK);
    REQUIRE(context.device->table->stream_create(context.device, &context.stream) == TD_OK);
    REQUIRE(mkdtemp(scratch) != NULL);
}

typedef struct model {
    char folder[512], adapter[544];
    td_model_config config;
    td_adapter_info info;
    td_lora lora;
    float *parameters;
} model;

static void open_model(const char *family, model *out) {
    memset(out, 0, sizeof *out);
    snprintf(out->folder, sizeof out->folder, "%s/families/%s", TEST_FIXTURES, family);
    snprintf(out->adapter, sizeof out->adapter, "%s/adapter", out->folder);
    REQUIRE(td_model_config_read(out->folder, &out->config) == TD_OK);
    REQUIRE(td_adapter_info_read(out->adapter, &out->info) == TD_OK);
    td_lora_options options = td_adapter_lora_options(&out->info);
    REQUIRE(td_lora_init(&out->lora, &out->config, &options) == TD_OK);
    out->parameters = calloc((size_t)out->lora.n_parameters, sizeof(float));
    REQUIRE(td_adapter_read(out->adapter, &out->lora, out->parameters) == TD_OK);
}

static void close_model(model *self) {
    free(self->parameters);
    td_lora_fini(&self->lora);
    td_adapter_info_fini(&self->info);
}

static td_merge_options options_for(const model *self, td_merge_dtype dtype, char output[512]) {
    snprintf(output, 512, "%s/out-%d", scratch, n_outputs++);
    return (td_merge_options){.model = self->folder,
                              .adapter = self->adapter,
                              .output = output,
                              .dtype = dtype,
                              .double_quantize = 1,
                              .max_file_bytes = 1 << 30};
}

static td_export_report merge(const td_merge_options *options) {
    td_export_report report = {0};
    td_status status = td_export_merged(options, &context, &report);
    if (status != TD_OK)
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(status == TD_OK);
    return report;
}

static td_safetensors *open_weights(const char *folder) {
    td_safetensors *files;
    REQUIRE(td_safetensors_open(folder, &files) == TD_OK);
    return files;
}

static float *values_of(const td_tensor *view) {
    int64_t n;
    REQUIRE(td_tensor_elements(view, &n) == TD_OK);
    float *values = malloc((size_t)(n + 1) * sizeof *values);
    td_convert_to_f32(view->data, view->dtype, n, values);
    return values;
}

static const char *names_begin(const model *self) {
    return td_model_is_multimodal(&self->config) ? "language_model.model." : "model.";
}

// The module of "model.layers.N.self_attn.q_proj.weight", or NULL.
static const td_lora_module *module_of(const model *self, const char *tensor) {
    for (int64_t layer = 0; layer < self->config.n_layers; layer++)
        for (int j = 0; j < TD_PROJ_COUNT; j++) {
            char name[128];
            snprintf(name, sizeof name, "%slayers.%d.%s.weight", names_begin(self), (int)layer,
                     td_projection_name((td_projection)j));
            const td_lora_module *module = td_lora_at(&self->lora, layer, (td_projection)j);
            if (strcmp(name, tensor) == 0)
                return module->present ? module : NULL;
        }
    return NULL;
}

// W + s B A in double.
static void add_exactly(const model *self, const td_lora_module *module, double *weight) {
    const float *a = self->parameters + module->a_offset, *b = self->parameters + module->b_offset;
    double scaling =
        module->alpha / (self->lora.use_rslora ? sqrt((double)module->rank) : (double)module->rank);
    for (int64_t o = 0; o < module->out; o++)
        for (int64_t i = 0; i < module->in; i++) {
            double sum = 0;
            for (int64_t r = 0; r < module->rank; r++)
                sum += (double)b[o * module->rank + r] * a[r * module->in + i];
            weight[o * module->in + i] += scaling * sum;
        }
}

// Largest difference between the merged weight and the exact one; `base` is what it was.
static double difference(const model *self, const td_lora_module *module, const td_tensor *base,
                         const td_tensor *merged) {
    int64_t n = base->shape[0] * base->shape[1];
    float *before = values_of(base), *after = values_of(merged);
    double *exact = malloc((size_t)n * sizeof *exact), largest = 0;
    for (int64_t i = 0; i < n; i++)
        exact[i] = before[i];
    add_exactly(self, module, exact);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(exact[i] - after[i]) <= largest))
            largest = fabs(exact[i] - after[i]);
    free(exact);
    free(before);
    free(after);
    return largest;
}

static void check_tensor(const model *self, const char *name, const td_tensor *base,
                         const td_tensor *merged) {
    const td_lora_module *module = module_of(self, name);
    int64_t n;
    REQUIRE(td_tensor_elements(base, &n) == TD_OK);
    CHECK(merged->n_dims == base->n_dims && merged->shape[0] == base->shape[0]);
    if (module) {
        CHECK_NEAR(difference(self, module, base, merged), 0, 1e-6);
        return;
    }
    CHECK(merged->dtype == TD_F32);
    float *before = values_of(base);
    CHECK(memcmp(before, merged->data, (size_t)n * sizeof *before) == 0);
    free(before);
}

static void every_weight_in_f32(void) {
    for (int i = 0; i < FAMILIES; i++) {
        model self;
        char output[512];
        open_model(families[i], &self);
        td_merge_options options = options_for(&self, TD_MERGE_F32, output);
        td_export_report report = merge(&options);
        CHECK_INT(report.n_changed, self.lora.n_modules);
        td_safetensors *base = open_weights(self.folder), *merged = open_weights(output);
        CHECK_INT(td_safetensors_count(merged), td_safetensors_count(base));
        for (int64_t t = 0; t < td_safetensors_count(base); t++) {
            td_tensor before = td_safetensors_view(base, t), after;
            const char *name = td_safetensors_name(base, t);
            if (CHECK(td_safetensors_find(merged, name, &after)))
                check_tensor(&self, name, &before, &after);
        }
        td_safetensors_close(base);
        td_safetensors_close(merged);
        close_model(&self);
    }
}

// bf16 is the fp32 result rounded once, and any number of files holds the same.
static void bf16_in_several_files(void) {
    model self;
    char wide[512], narrow[512];
    td_model_config config;
    open_model("qwen2", &self);
    td_merge_options options = options_for(&self, TD_MERGE_F32, wide);
    merge(&options);
    options = options_for(&self, TD_MERGE_BF16, narrow);
    options.max_file_bytes = 20000;
    CHECK(merge(&options).n_files > 2);
    td_safetensors *a = open_weights(wide), *b = open_weights(narrow);
    CHECK_INT(td_safetensors_count(a), td_safetensors_count(b));
    for (int64_t t = 0; t < td_safetensors_count(a); t++) {
        td_tensor f32 = td_safetensors_view(a, t), bf16 = td_safetensors_view(b, t);
        float *expected = values_of(&f32), *found = values_of(&bf16);
        int64_t n, same = 0;
        REQUIRE(td_tensor_elements(&f32, &n) == TD_OK);
        CHECK(bf16.dtype == TD_BF16);
        for (int64_t i = 0; i < n; i++)
            same += found[i] == td_bf16_to_f32(td_f32_to_bf16(expected[i]));
        CHECK_INT(same, n);
        free(expected);
        free(found);
    }
    td_safetensors_close(a);
    td_safetensors_close(b);
    REQUIRE(td_model_config_read(narrow, &config) == TD_OK);
    CHECK(config.tie_word_embeddings);
    close_model(&self);
}

// Quantizing first and merging then is the same as merging into the folder that quantize writes.
static void into_nf4_two_ways(void) {
    model self;
    char direct[512], folder[512], indirect[512];
    td_export_report report;
    open_model("llama", &self);
    td_merge_options options = options_for(&self, TD_MERGE_SAME, direct);
    options.dequantized = 1;
    merge(&options);
    snprintf(folder, sizeof folder, "%s/quantized", scratch);
    td_quantize_options nf4 = {
        .model = self.folder, .output = folder, .double_quantize = 1, .max_file_bytes = 1 << 30};
    REQUIRE(td_export_nf4(&nf4, &context, &report) == TD_OK);
    options = options_for(&self, TD_MERGE_SAME, indirect);
    options.model = folder;
    merge(&options);
    td_safetensors *a = open_weights(direct), *b = open_weights(indirect),
                   *base = open_weights(self.folder);
    CHECK_INT(td_safetensors_count(a), td_safetensors_count(b));
    int64_t n_moved = 0;
    for (int64_t t = 0; t < td_safetensors_count(a); t++) {
        td_tensor x = td_safetensors_view(a, t), y = td_safetensors_view(b, t), whole;
        const char *name = td_safetensors_name(a, t);
        const td_lora_module *module = module_of(&self, name);
        int64_t n;
        REQUIRE(td_tensor_elements(&x, &n) == TD_OK);
        REQUIRE(td_safetensors_find(base, name, &whole));
        CHECK(x.dtype == TD_F32 && y.dtype == TD_F32);
        CHECK(memcmp(x.data, y.data, (size_t)n * sizeof(float)) == 0);
        n_moved += module && difference(&self, module, &whole, &x) > 1e-4;
    }
    CHECK_INT(n_moved, self.lora.n_modules);
    td_safetensors_close(a);
    td_safetensors_close(b);
    td_safetensors_close(base);
    close_model(&self);
}

static td_tensor view_of(const td_safetensors *files, const char *name) {
    td_tensor view = {0};
    REQUIRE(td_safetensors_find(files, name, &view));
    return view;
}

// In a folder that was quantized in part, whole layers are merged into as they are and the others
// as NF4 holds them.
static void into_a_partial_folder(void) {
    model self;
    char outputs[3][512];
    td_safetensors *files[3]; // of the whole base, of the quantized one, of the partial one
    int64_t n_whole = 0, n_nf4 = 0;
    open_model("llama", &self);
    for (int i = 0; i < 3; i++) {
        td_merge_options options = options_for(&self, TD_MERGE_SAME, outputs[i]);
        options.dequantized = i == 1;
        if (i == 2)
            options.model = TEST_FIXTURES "/prequantized_partial";
        merge(&options);
        files[i] = open_weights(outputs[i]);
    }
    CHECK_INT(td_safetensors_count(files[2]), td_safetensors_count(files[0]));
    for (int64_t t = 0; t < td_safetensors_count(files[0]); t++) {
        const char *name = td_safetensors_name(files[0], t);
        td_tensor a = view_of(files[0], name), b = view_of(files[1], name);
        td_tensor c = view_of(files[2], name);
        int64_t n;
        REQUIRE(td_tensor_elements(&a, &n) == TD_OK);
        int is_whole = memcmp(a.data, c.data, (size_t)n * sizeof(float)) == 0;
        int is_nf4 = memcmp(b.data, c.data, (size_t)n * sizeof(float)) == 0;
        CHECK(is_whole || is_nf4);
        n_whole += is_whole && !is_nf4;
        n_nf4 += is_nf4 && !is_whole;
    }
    CHECK_INT(n_whole, 6);
    CHECK_INT(n_nf4, 8);
    for (int i = 0; i < 3; i++)
        td_safetensors_close(files[i]);
    close_model(&self);
}

static void expect_config(const char *folder, const char *present, const char *absent) {
    char path[600], *text;
    size_t bytes;
    snprintf(path, sizeof path, "%s/config.json", folder);
    REQUIRE(td_file_read(path, 1 << 20, &text, &bytes) == TD_OK);
    if (!CHECK(strstr(text, present) && !strstr(text, absent)))
        fprintf(stderr, "    expected %s and no %s in:\n%s\n", present, absent, text);
    free(text);
}

// Only what changes is different: numbers keep their spelling.
static void config_of_the_output(void) {
    model self;
    char output[512];
    open_model("llama", &self);
    td_merge_options options = options_for(&self, TD_MERGE_BF16, output);
    merge(&options);
    expect_config(output, "\"dtype\": \"bfloat16\"", "float32");
    expect_config(output, "\"rope_theta\": 500000.0", "quantization_config");
    snprintf(self.folder, sizeof self.folder, "%s/prequantized", TEST_FIXTURES);
    snprintf(self.adapter, sizeof self.adapter, "%s/families/qwen2/adapter", TEST_FIXTURES);
    options = options_for(&self, TD_MERGE_SAME, output);
    merge(&options);
    expect_config(output, "\"dtype\": \"float32\"", "quantization_config");
    close_model(&self);
}

static void refuse(const td_merge_options *options, td_status expected, const char *message) {
    td_export_report report;
    CHECK_INT(td_export_merged(options, &context, &report), expected);
    if (!CHECK(strstr(td_error_message(), message)))
        fprintf(stderr, "    got \"%s\", expected \"%s\"\n", td_error_message(), message);
    td_error_clear();
}

static void refusals(void) {
    model self;
    char output[512], other[544];
    open_model("llama", &self);
    td_merge_options options = options_for(&self, TD_MERGE_SAME, output);
    snprintf(other, sizeof other, "%s/families/qwen2/adapter", TEST_FIXTURES);
    options.adapter = other;
    refuse(&options, TD_ERR_DATA, "shape");
    snprintf(other, sizeof other, "%s/families/mistral/adapter", TEST_FIXTURES);
    refuse(&options, TD_ERR_DATA, "adapter");
    options.adapter = self.folder;
    refuse(&options, TD_ERR_DATA, "adapter_config.json");
    CHECK(!td_path_exists(output));
    options.adapter = self.adapter;
    REQUIRE(td_folder_make(output) == TD_OK);
    refuse(&options, TD_ERR_USAGE, "exists already");
    close_model(&self);
}

// Failures leave nothing beside the outputs.
static void nothing_is_left_behind(void) {
    char **names;
    size_t count;
    REQUIRE(td_folder_list(scratch, &names, &count) == TD_OK);
    for (size_t i = 0; i < count; i++)
        CHECK(strstr(names[i], ".tmp") == NULL);
    td_names_free(names, count);
}

int main(void) {
    prepare();
    TEST(every_weight_in_f32);
    TEST(bf16_in_several_files);
    TEST(into_nf4_two_ways);
    TEST(into_a_partial_folder);
    TEST(config_of_the_output);
    TEST(refusals);
    TEST(nothing_is_left_behind);
    context.device->table->stream_destroy(context.stream);
    CHECK(td_folder_remove_tree(scratch) == TD_OK);
    return test_report();
}
