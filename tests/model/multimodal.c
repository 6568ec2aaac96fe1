// Folders in which the text model is one part of several: only it is read, under either of the
// names that its tensors have, and what is written leaves the other parts as they are.
#include "model/base.h"
#include "model/export.h"
#include "safetensors_build.h"

#define FIXTURE TEST_FIXTURES "/families/gemma3_multimodal"
#define VISION  "vision_tower.encoder.layers.0.mlp.fc1.weight"

enum { MAX_TENSORS = 256, NAME_CHARS = 160 };

static td_op_context context;

static void prepare(void) {
    context.device = td_device_cpu();
    REQUIRE(td_ops_check(&td_ops_cpu, &context.ops) == TD_OK);
    REQUIRE(context.device->table->stream_create(context.device, &context.stream) == TD_OK);
}

static td_base *load(const char *folder, int quantize) {
    td_base_options options = {
        .quantize = quantize, .double_quantize = 1, .stored = TD_BF16, .compute = TD_F32};
    td_base *base = NULL;
    td_status status = td_base_load(folder, &options, NULL, &context, &base);
    if (status != TD_OK)
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(status == TD_OK);
    return base;
}

static void check_same_weights(const td_base *a, const td_base *b) {
    CHECK_INT(a->arena.used_bytes, b->arena.used_bytes);
    CHECK(memcmp(a->arena.base, b->arena.base, b->arena.used_bytes) == 0);
}

static void keep_name(const char *name, char out[NAME_CHARS]) {
    snprintf(out, NAME_CHARS, "%s", name);
}

// "language_model.model.X" becomes "model.language_model.X", and "Y" of other parts "model.Y".
static void name_inside(const char *name, char out[NAME_CHARS]) {
    static const char outer[] = "language_model.model.";
    int is_text = strncmp(name, outer, sizeof outer - 1) == 0;
    snprintf(out, NAME_CHARS, "%s%s", is_text ? "model.language_model." : "model.",
             is_text ? name + sizeof outer - 1 : name);
}

// A copy of a folder in scratch memory, with other names; `as_u8` is given the bytes of U8.
static const char *copy_folder(const char *source, const char *target,
                               void (*rename)(const char *, char[NAME_CHARS]), const char *as_u8) {
    static char names[MAX_TENSORS][NAME_CHARS];
    td_named_tensor tensors[MAX_TENSORS];
    char path[600], file[128];
    td_safetensors *files;
    REQUIRE(td_folder_make(scratch(target)) == TD_OK);
    snprintf(path, sizeof path, "%s/config.json", source);
    snprintf(file, sizeof file, "%s/config.json", target);
    copy_file(path, scratch(file));
    REQUIRE(td_safetensors_open(source, &files) == TD_OK);
    int64_t count = td_safetensors_count(files);
    REQUIRE(count <= MAX_TENSORS);
    for (int64_t i = 0; i < count; i++) {
        td_tensor view = td_safetensors_view(files, i);
        rename(td_safetensors_name(files, i), names[i]);
        if (as_u8 && strcmp(names[i], as_u8) == 0)
            view.dtype = TD_U8;
        tensors[i] = (td_named_tensor){names[i], view};
    }
    snprintf(file, sizeof file, "%s/model.safetensors", target);
    REQUIRE(td_safetensors_write(scratch(file), tensors, count) == TD_OK);
    td_safetensors_close(files);
    return scratch(target);
}

// transformers 5 may write names that begin with those of its modules.
static void the_text_part_has_either_name(void) {
    td_base *outer = load(FIXTURE, 0);
    td_base *inner = load(copy_folder(FIXTURE, "inner", name_inside, NULL), 0);
    CHECK_INT(outer->config.names, TD_NAMES_OUTER);
    CHECK_INT(inner->config.names, TD_NAMES_INNER);
    check_same_weights(outer, inner);
    td_base_destroy(outer);
    td_base_destroy(inner);
}

static const char *quantized(const char *name) {
    td_export_report report;
    td_quantize_options options = {
        .model = FIXTURE, .output = scratch(name), .double_quantize = 1, .max_file_bytes = 1 << 30};
    REQUIRE(td_export_nf4(&options, &context, &report) == TD_OK);
    CHECK_INT(report.n_changed, 3 * 7);
    return scratch(name);
}

static void other_parts_are_not_quantized(void) {
    td_safetensors *before, *after;
    td_tensor vision, kept;
    const char *folder = quantized("nf4");
    REQUIRE(td_safetensors_open(FIXTURE, &before) == TD_OK);
    REQUIRE(td_safetensors_open(folder, &after) == TD_OK);
    REQUIRE(td_safetensors_find(before, VISION, &vision) == 1);
    REQUIRE(td_safetensors_find(after, VISION, &kept) == 1);
    CHECK(kept.dtype == TD_F32 && kept.shape[0] == vision.shape[0]);
    CHECK(memcmp(kept.data, vision.data, (size_t)(16 * 16) * sizeof(float)) == 0);
    td_safetensors_close(before);
    td_safetensors_close(after);
    td_base *ours = load(FIXTURE, 1), *stored = load(folder, 0);
    check_same_weights(ours, stored);
    td_base_destroy(ours);
    td_base_destroy(stored);
}

static td_status merge(const char *model, const char *output) {
    td_export_report report;
    td_merge_options options = {.model = model,
                                .adapter = FIXTURE "/adapter",
                                .output = scratch(output),
                                .double_quantize = 1,
                                .max_file_bytes = 1 << 30};
    return td_export_merged(&options, &context, &report);
}

// Their codes would lose their meaning in a folder that is not quantized any more.
static void quantized_other_parts_are_not_merged_into(void) {
    char folder[512];
    snprintf(folder, sizeof folder, "%s", quantized("whole-vision"));
    CHECK_INT(merge(folder, "merged"), TD_OK);
    snprintf(folder, sizeof folder, "%s", scratch("whole-vision"));
    const char *damaged = copy_folder(folder, "coded-vision", keep_name, VISION);
    snprintf(folder, sizeof folder, "%s", damaged);
    CHECK_INT(merge(folder, "refused"), TD_ERR_DATA);
    CHECK_MESSAGE("no part of the text model");
    CHECK(!td_path_exists(scratch("refused")));
}

int main(void) {
    prepare();
    TEST(the_text_part_has_either_name);
    TEST(other_parts_are_not_quantized);
    TEST(quantized_other_parts_are_not_merged_into);
    context.device->table->stream_destroy(context.stream);
    return test_report();
}
