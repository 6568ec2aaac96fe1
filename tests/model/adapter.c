// PEFT adapter folders: reading what PEFT wrote, writing what PEFT would write, and refusing the
// rest.
#include "model/adapter.h"
#include "model/adapter_internal.h"
#include "model/safetensors.h"
#include "runtime/core/json.h"
#include "safetensors_build.h"

static const char *const families[] = {
    "llama",  "llama2",  "tinyllama",        "mistral", "qwen2",
    "qwen3",  "smollm2", "smollm3",          "phi3",    "phi3_long",
    "gemma2", "gemma3",  "gemma3_multimodal"};
enum { FAMILIES = sizeof families / sizeof families[0] };

// A fixture model, the adapter that PEFT wrote for it, and the layout that the adapter asks for.
typedef struct peft_fixture {
    char folder[512];
    td_model_config config;
    td_adapter_info info;
    td_lora_options options;
    td_lora lora;
    float *parameters;
} peft_fixture;

static void open_fixture(const char *family, peft_fixture *out) {
    char base[400];
    snprintf(base, sizeof base, "%s/families/%s", TEST_FIXTURES, family);
    snprintf(out->folder, sizeof out->folder, "%s/adapter", base);
    REQUIRE(td_model_config_read(base, &out->config) == TD_OK);
    REQUIRE(td_adapter_info_read(out->folder, &out->info) == TD_OK);
    out->options = td_adapter_lora_options(&out->info);
    REQUIRE(td_lora_init(&out->lora, &out->config, &out->options) == TD_OK);
    out->parameters = calloc((size_t)out->lora.n_parameters, sizeof *out->parameters);
    td_status status = td_adapter_read(out->folder, &out->lora, out->parameters);
    if (status != TD_OK)
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(status == TD_OK);
}

static void close_fixture(peft_fixture *fixture) {
    free(fixture->parameters);
    td_lora_fini(&fixture->lora);
    td_adapter_info_fini(&fixture->info);
}

static void check_tensor(const peft_fixture *fixture, const td_safetensors *file, int64_t layer,
                         td_projection projection) {
    const td_lora_module *module = td_lora_at(&fixture->lora, layer, projection);
    for (int part = 0; module->present && part < 2; part++) {
        char name[160];
        td_tensor view;
        int64_t n;
        snprintf(name, sizeof name, "base_model.model.%slayers.%d.%s.lora_%c.weight",
                 fixture->lora.module_prefix, (int)layer, td_projection_name(projection),
                 "AB"[part]);
        REQUIRE(td_safetensors_find(file, name, &view) == 1);
        REQUIRE(td_tensor_elements(&view, &n) == TD_OK);
        CHECK_INT(n, module->rank * (part ? module->out : module->in));
        CHECK(memcmp(view.data, fixture->parameters + (part ? module->b_offset : module->a_offset),
                     (size_t)n * sizeof(float)) == 0);
    }
}

static void adapters_of_peft_are_read(void) {
    for (int i = 0; i < FAMILIES; i++) {
        peft_fixture fixture;
        char path[600];
        td_safetensors *file;
        open_fixture(families[i], &fixture);
        snprintf(path, sizeof path, "%s/adapter_model.safetensors", fixture.folder);
        REQUIRE(td_safetensors_open(path, &file) == TD_OK);
        CHECK_INT(td_safetensors_count(file), 2 * fixture.lora.n_modules);
        for (int64_t layer = 0; layer < fixture.lora.n_layers; layer++)
            for (int projection = 0; projection < TD_PROJ_COUNT; projection++)
                check_tensor(&fixture, file, layer, (td_projection)projection);
        td_safetensors_close(file);
        close_fixture(&fixture);
    }
}

static void check_same_bytes(const char *a, const char *b) {
    char *left, *right;
    size_t left_bytes, right_bytes;
    REQUIRE(td_file_read(a, 64 << 20, &left, &left_bytes) == TD_OK);
    REQUIRE(td_file_read(b, 64 << 20, &right, &right_bytes) == TD_OK);
    CHECK_INT(left_bytes, right_bytes);
    CHECK(left_bytes == right_bytes && memcmp(left, right, left_bytes) == 0);
    free(left);
    free(right);
}

// Names, order and padding are those of the safetensors library.
static void what_is_written_is_byte_for_byte_what_peft_wrote(void) {
    for (int i = 0; i < FAMILIES; i++) {
        peft_fixture fixture;
        char path[600];
        open_fixture(families[i], &fixture);
        const char *folder = scratch("written");
        REQUIRE(td_adapter_write(folder, &fixture.lora, &fixture.options, "base",
                                 fixture.parameters) == TD_OK);
        snprintf(path, sizeof path, "%s/adapter_model.safetensors", fixture.folder);
        check_same_bytes(scratch("written/adapter_model.safetensors"), path);
        close_fixture(&fixture);
    }
}

static void check_same_key(const cJSON *ours, const cJSON *theirs, const char *key) {
    const cJSON *a = cJSON_GetObjectItemCaseSensitive(ours, key);
    const cJSON *b = cJSON_GetObjectItemCaseSensitive(theirs, key);
    if (!CHECK(a && b && cJSON_Compare(a, b, 1)))
        fprintf(stderr, "    \"%s\" differs from PEFT's\n", key);
}

// Every key that is written is one that PEFT writes, with the same value; target_modules may be in
// another order.
static void the_config_says_what_peft_said(void) {
    for (int i = 0; i < FAMILIES; i++) {
        peft_fixture fixture;
        char path[600];
        cJSON *ours, *theirs;
        open_fixture(families[i], &fixture);
        const char *folder = scratch("config");
        REQUIRE(td_adapter_write(folder, &fixture.lora, &fixture.options, families[i],
                                 fixture.parameters) == TD_OK);
        snprintf(path, sizeof path, "%s/adapter_config.json", fixture.folder);
        REQUIRE(td_json_read(path, 1 << 20, &theirs) == TD_OK);
        REQUIRE(td_json_read(scratch("config/adapter_config.json"), 1 << 20, &ours) == TD_OK);
        CHECK(cJSON_GetArraySize(ours) >= 17);
        for (const cJSON *item = ours->child; item; item = item->next)
            if (strcmp(item->string, "target_modules") != 0 || cJSON_IsString(item))
                check_same_key(ours, theirs, item->string);
        cJSON_Delete(ours);
        cJSON_Delete(theirs);
        close_fixture(&fixture);
    }
}

static void check_targets(const td_lora_options *options, const peft_fixture *fixture,
                          const char *expected) {
    cJSON *root;
    const char *folder = scratch("targets");
    REQUIRE(td_adapter_write(folder, &fixture->lora, options, NULL, fixture->parameters) == TD_OK);
    REQUIRE(td_json_read(scratch("targets/adapter_config.json"), 1 << 20, &root) == TD_OK);
    char *text = cJSON_PrintUnformatted(cJSON_GetObjectItemCaseSensitive(root, "target_modules"));
    CHECK_STRING(text, expected);
    CHECK(cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(root, "base_model_name_or_path")));
    free(text);
    cJSON_Delete(root);
}

static void target_modules_are_written_sorted(void) {
    peft_fixture fixture;
    open_fixture("llama", &fixture);
    char *names[] = {(char *)(uintptr_t) "v_proj", (char *)(uintptr_t) "mlp.up_proj",
                     (char *)(uintptr_t) "v_proj"};
    td_string_list list = {names, 3};
    td_lora_options options = fixture.options;
    options.target_modules = &list;
    check_targets(&options, &fixture, "[\"mlp.up_proj\",\"v_proj\"]");
    list.count = 1;
    options.target_modules_is_pattern = 1;
    check_targets(&options, &fixture, "\"v_proj\"");
    names[0] = (char *)(uintptr_t) "all-linear";
    check_targets(&options, &fixture,
                  "[\"down_proj\",\"gate_proj\",\"k_proj\",\"o_proj\",\"q_proj\",\"up_proj\","
                  "\"v_proj\"]");
    close_fixture(&fixture);
}

// A list would have PEFT adapt the vision tower as well: a pattern for the text model, as the one
// that made the fixture, stands in its place, and selects the same modules.
static void targets_of_a_text_part_are_its_own(void) {
    peft_fixture fixture;
    td_lora again;
    td_adapter_info info;
    open_fixture("gemma3_multimodal", &fixture);
    char *names[] = {(char *)(uintptr_t) "v_proj", (char *)(uintptr_t) "1.mlp.up_proj"};
    td_string_list list = {names, 2};
    td_lora_options options = fixture.options;
    options.target_modules = &list;
    options.target_modules_is_pattern = 0;
    check_targets(&options, &fixture,
                  "\"model\\\\.language_model\\\\.(?:.*\\\\.)?(?:1\\\\.mlp\\\\.up_proj|v_proj)\"");
    REQUIRE(td_adapter_info_read(scratch("targets"), &info) == TD_OK);
    td_lora_options read = td_adapter_lora_options(&info);
    REQUIRE(td_lora_init(&again, &fixture.config, &read) == TD_OK);
    CHECK_INT(again.n_modules, 4); // v_proj of three layers and one up_proj
    td_lora_fini(&again);
    td_adapter_info_fini(&info);
    names[0] = (char *)(uintptr_t) "all-linear";
    options.target_modules_is_pattern = 1;
    char *expected = cJSON_PrintUnformatted(
        &(cJSON){.type = cJSON_String, .valuestring = fixture.info.target_modules.items[0]});
    check_targets(&options, &fixture, expected);
    free(expected);
    close_fixture(&fixture);
}

static void settings_survive_the_round_trip(void) {
    peft_fixture fixture;
    td_adapter_info info;
    open_fixture("smollm2", &fixture); // patterns, rsLoRA, a regular expression
    fixture.lora.dropout = 0.05;
    REQUIRE(td_adapter_write(scratch("settings"), &fixture.lora, &fixture.options, "b",
                             fixture.parameters) == TD_OK);
    REQUIRE(td_adapter_info_read(scratch("settings"), &info) == TD_OK);
    CHECK_INT(info.rank, 8);
    CHECK(info.alpha == 16.0);
    CHECK(info.dropout == 0.05);
    CHECK_INT(info.use_rslora, 1);
    CHECK_INT(info.target_modules_is_pattern, 1);
    CHECK_STRING(info.target_modules.items[0], fixture.info.target_modules.items[0]);
    CHECK(cJSON_Compare(info.rank_pattern, fixture.info.rank_pattern, 1));
    CHECK(cJSON_Compare(info.alpha_pattern, fixture.info.alpha_pattern, 1));
    td_adapter_info_fini(&info);
    close_fixture(&fixture);
}

static uint16_t f32_to_f16_exact(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value == 0 ? 0
                      : (uint16_t)((bits >> 16 & 0x8000) | ((bits >> 23 & 255) - 112) << 10 |
                                   (bits >> 13 & 0x3ff));
}

static void write_converted(const peft_fixture *fixture, td_dtype dtype) {
    char path[600];
    td_safetensors *file;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", fixture->folder);
    REQUIRE(td_safetensors_open(path, &file) == TD_OK);
    int64_t count = td_safetensors_count(file);
    td_named_tensor *tensors = calloc((size_t)count, sizeof *tensors);
    for (int64_t i = 0; i < count; i++) {
        int64_t n;
        tensors[i] = (td_named_tensor){td_safetensors_name(file, i), td_safetensors_view(file, i)};
        REQUIRE(td_tensor_elements(&tensors[i].tensor, &n) == TD_OK);
        uint16_t *halves = malloc((size_t)n * sizeof *halves);
        for (int64_t j = 0; j < n; j++) {
            float value = (float)(j % 7 - 3) * 0.125f;
            halves[j] = dtype == TD_BF16 ? td_f32_to_bf16(value) : f32_to_f16_exact(value);
        }
        tensors[i].tensor.data = halves;
        tensors[i].tensor.dtype = dtype;
    }
    REQUIRE(td_safetensors_write(scratch("dtype/adapter_model.safetensors"), tensors, count) ==
            TD_OK);
    for (int64_t i = 0; i < count; i++)
        free(tensors[i].tensor.data);
    free(tensors);
    td_safetensors_close(file);
}

static void half_precision_adapters_are_widened(void) {
    peft_fixture fixture;
    char path[600];
    open_fixture("llama", &fixture);
    REQUIRE(td_folder_make(scratch("dtype")) == TD_OK);
    snprintf(path, sizeof path, "%s/adapter_config.json", fixture.folder);
    copy_file(path, scratch("dtype/adapter_config.json"));
    for (int dtype = TD_F16; dtype <= TD_BF16; dtype++) {
        write_converted(&fixture, (td_dtype)dtype);
        memset(fixture.parameters, 0xff, (size_t)fixture.lora.n_parameters * sizeof(float));
        CHECK_INT(td_adapter_read(scratch("dtype"), &fixture.lora, fixture.parameters), TD_OK);
        const float *a = fixture.parameters + td_lora_at(&fixture.lora, 1, TD_PROJ_O)->a_offset;
        for (int j = 0; j < 20; j++)
            CHECK(a[j] == (float)(j % 7 - 3) * 0.125f);
    }
    close_fixture(&fixture);
}

#define GOOD                                                                                       \
    "\"peft_type\":\"LORA\",\"task_type\":\"CAUSAL_LM\",\"r\":4,\"lora_alpha\":8,"                 \
    "\"target_modules\":[\"q_proj\"]"

static const struct {
    const char *text, *message;
} refused[] = {
    {"[]", "object"},
    {"{}", "peft_type"},
    {"{\"peft_type\":\"IA3\"}", "IA3"},
    {"{\"peft_type\":\"LORA\",\"task_type\":\"SEQ_CLS\"}", "SEQ_CLS"},
    {"{\"peft_type\":\"LORA\"}", "target_modules"},
    {"{\"peft_type\":\"LORA\",\"target_modules\":[]}", "target_modules"},
    {"{\"peft_type\":\"LORA\",\"target_modules\":[1]}", "target_modules"},
    {"{\"peft_type\":\"LORA\",\"target_modules\":{\"a\":\"b\"}}", "target_modules"},
    {"{" GOOD ",\"bias\":\"all\"}", "bias"},
    {"{" GOOD ",\"use_dora\":true}", "use_dora"},
    {"{" GOOD ",\"lora_bias\":true}", "lora_bias"},
    {"{" GOOD ",\"fan_in_fan_out\":true}", "fan_in_fan_out"},
    {"{" GOOD ",\"modules_to_save\":[\"lm_head\"]}", "modules_to_save"},
    {"{" GOOD ",\"layers_to_transform\":[1]}", "layers_to_transform"},
    {"{" GOOD ",\"layers_to_transform\":3}", "layers_to_transform"},
    {"{" GOOD ",\"layer_replication\":[[0,4]]}", "layer_replication"},
    {"{" GOOD ",\"exclude_modules\":\"x\"}", "exclude_modules"},
    {"{" GOOD ",\"trainable_token_indices\":[3]}", "trainable_token_indices"},
    {"{" GOOD ",\"target_parameters\":[\"w\"]}", "target_parameters"},
    {"{" GOOD ",\"init_lora_weights\":\"pissa_niter_4\"}", "pissa"},
    {"{" GOOD ",\"use_rslora\":1}", "use_rslora"},
    {"{" GOOD ",\"lora_dropout\":1}", "lora_dropout"},
    {"{" GOOD ",\"rank_pattern\":[\"q\"]}", "rank_pattern"},
    {"{" GOOD ",\"alpha_pattern\":3}", "alpha_pattern"},
    {"{\"peft_type\":\"LORA\",\"r\":0,\"target_modules\":[\"q_proj\"]}", "\"r\""},
    {"{\"peft_type\":\"LORA\",\"r\":2.5,\"target_modules\":[\"q_proj\"]}", "\"r\""},
    {"{\"peft_type\":\"LORA\",\"lora_alpha\":\"8\",\"target_modules\":[\"q_proj\"]}", "lora_alpha"},
};

static td_status parse(const char *text, td_adapter_info *info) {
    cJSON *root;
    REQUIRE(td_json_parse("adapter_config.json", text, strlen(text), &root) == TD_OK);
    td_status status = td_adapter_info_parse("adapter_config.json", root, info);
    cJSON_Delete(root);
    return status;
}

static void every_unsupported_setting_is_named(void) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        td_adapter_info info;
        td_status status = parse(refused[i].text, &info);
        int good = status == TD_ERR_DATA && strstr(td_error_message(), "adapter_config.json") &&
                   strstr(td_error_message(), refused[i].message);
        if (!CHECK(good))
            fprintf(stderr, "    %s: status %d, \"%s\"\n", refused[i].text, (int)status,
                    td_error_message());
        td_error_clear();
        td_adapter_info_fini(&info);
    }
}

static void harmless_settings_are_accepted(void) {
    td_adapter_info info;
    CHECK_INT(parse("{" GOOD ",\"use_dora\":false,\"layers_to_transform\":null,"
                    "\"modules_to_save\":[],\"init_lora_weights\":\"gaussian\","
                    "\"megatron_core\":\"megatron.core\",\"loftq_config\":{},\"eva_config\":null,"
                    "\"qalora_group_size\":16,\"lora_dropout\":0.1,\"rank_pattern\":{},"
                    "\"bias\":\"none\",\"peft_version\":\"0.21.2\"}",
                    &info),
              TD_OK);
    CHECK_INT(info.rank, 4);
    CHECK(info.dropout == 0.1);
    CHECK(info.rank_pattern == NULL);
    CHECK_INT(info.target_modules_is_pattern, 0);
    td_adapter_info_fini(&info);
    CHECK_INT(parse("{\"peft_type\":\"LORA\",\"target_modules\":\"all-linear\"}", &info), TD_OK);
    CHECK_INT(info.rank, 8);
    CHECK(info.alpha == 8.0);
    CHECK_INT(info.target_modules_is_pattern, 1);
    td_adapter_info_fini(&info);
}

static void check_read(const peft_fixture *fixture, const char *folder, const char *message) {
    CHECK_INT(td_adapter_read(folder, &fixture->lora, fixture->parameters), TD_ERR_DATA);
    CHECK(strstr(td_error_message(), folder) != NULL);
    CHECK_MESSAGE(message);
}

// A copy of the fixture's adapter to be damaged.
static const char *copy_adapter(const peft_fixture *fixture) {
    static char folder[512];
    char path[600];
    snprintf(folder, sizeof folder, "%s", scratch("damaged"));
    REQUIRE(td_folder_make(folder) == TD_OK);
    snprintf(path, sizeof path, "%s/adapter_config.json", fixture->folder);
    copy_file(path, scratch("damaged/adapter_config.json"));
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", fixture->folder);
    copy_file(path, scratch("damaged/adapter_model.safetensors"));
    return folder;
}

// Writes the tensors of the adapter without the first, with one more, or with the first in another
// shape.
static void write_changed(const peft_fixture *fixture, int skip, int add, int reshape) {
    char path[600];
    td_safetensors *file;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", fixture->folder);
    REQUIRE(td_safetensors_open(path, &file) == TD_OK);
    int64_t count = td_safetensors_count(file);
    td_named_tensor *tensors = calloc((size_t)count + 1, sizeof *tensors);
    for (int64_t i = 0; i < count; i++)
        tensors[i] = (td_named_tensor){td_safetensors_name(file, i), td_safetensors_view(file, i)};
    tensors[count] = (td_named_tensor){"base_model.model.lm_head.lora_A.weight", tensors[0].tensor};
    if (reshape) {
        int64_t first = tensors[0].tensor.shape[0];
        tensors[0].tensor.shape[0] = tensors[0].tensor.shape[1];
        tensors[0].tensor.shape[1] = first;
    }
    REQUIRE(td_safetensors_write(scratch("damaged/adapter_model.safetensors"), tensors + skip,
                                 count - skip + add) == TD_OK);
    free(tensors);
    td_safetensors_close(file);
}

static void adapters_of_another_model_are_refused(void) {
    peft_fixture fixture;
    open_fixture("llama", &fixture);
    const char *folder = copy_adapter(&fixture);
    write_changed(&fixture, 1, 0, 0);
    check_read(&fixture, folder, "layers.0.mlp.down_proj.lora_A.weight\" is missing");
    write_changed(&fixture, 0, 1, 0);
    check_read(&fixture, folder, "lm_head");
    write_changed(&fixture, 0, 0, 1);
    check_read(&fixture, folder, "layers.0.mlp.down_proj.lora_A.weight");
    write_changed(&fixture, 0, 0, 0);
    CHECK_INT(td_adapter_read(folder, &fixture.lora, fixture.parameters), TD_OK);
    unlink(scratch("damaged/adapter_model.safetensors"));
    check_read(&fixture, folder, "adapter_model.safetensors");
    scratch_file("damaged/adapter_model.bin", "x");
    check_read(&fixture, folder, "safe_serialization");
    unlink(scratch("damaged/adapter_config.json"));
    check_read(&fixture, folder, "adapter_config.json");
    close_fixture(&fixture);
}

static void a_config_that_selects_otherwise_is_refused(void) {
    peft_fixture fixture;
    open_fixture("llama", &fixture);
    const char *folder = copy_adapter(&fixture);
#define PATCHED(targets, r, alpha)                                                                 \
    "{\"peft_type\":\"LORA\",\"target_modules\":" targets ",\"r\":" r ",\"lora_alpha\":" alpha "}"
    scratch_file("damaged/adapter_config.json", PATCHED("[\"q_proj\"]", "4", "8"));
    check_read(&fixture, folder, "does not adapt model.layers.0.self_attn.k_proj");
    scratch_file("damaged/adapter_config.json", PATCHED("\"all-linear\"", "5", "10"));
    check_read(&fixture, folder, "rank 5");
    scratch_file("damaged/adapter_config.json", PATCHED("\"all-linear\"", "4", "16"));
    check_read(&fixture, folder, "lora_alpha");
    scratch_file("damaged/adapter_config.json", PATCHED("[\"c_attn\"]", "4", "8"));
    check_read(&fixture, folder, "c_attn");
    scratch_file("damaged/adapter_config.json", PATCHED("\"all-linear\"", "4", "8"));
    CHECK_INT(td_adapter_read(folder, &fixture.lora, fixture.parameters), TD_OK);
    close_fixture(&fixture);
}

static void an_adapter_that_holds_nan_is_refused(void) {
    peft_fixture fixture;
    open_fixture("llama", &fixture);
    fixture.parameters[3] = NAN;
    REQUIRE(td_adapter_write(scratch("nan"), &fixture.lora, &fixture.options, "b",
                             fixture.parameters) == TD_OK);
    check_read(&fixture, scratch("nan"), "NaN");
    close_fixture(&fixture);
}

int main(void) {
    TEST(adapters_of_peft_are_read);
    TEST(what_is_written_is_byte_for_byte_what_peft_wrote);
    TEST(the_config_says_what_peft_said);
    TEST(target_modules_are_written_sorted);
    TEST(targets_of_a_text_part_are_its_own);
    TEST(settings_survive_the_round_trip);
    TEST(half_precision_adapters_are_widened);
    TEST(every_unsupported_setting_is_named);
    TEST(harmless_settings_are_accepted);
    TEST(adapters_of_another_model_are_refused);
    TEST(a_config_that_selects_otherwise_is_refused);
    TEST(an_adapter_that_holds_nan_is_refused);
    return test_report();
}
