#include "model/adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/adapter_internal.h"
#include "model/lora_internal.h"
#include "model/safetensors.h"
#include "runtime/core/files.h"

enum { NAME_CHARS = 128 };
static const char weights_name[] = "adapter_model.safetensors";
static const char config_name[] = "adapter_config.json";

// One tensor of the file: A or B of a module.
typedef struct part {
    char name[NAME_CHARS];
    int64_t shape[2];
    int64_t offset; // in the flat vector
} part;

static void name_part(const td_lora *lora, int64_t module, char letter, char out[NAME_CHARS]) {
    char name[TD_MODULE_NAME_CHARS];
    td_lora_module_name(lora->module_prefix, module / TD_PROJ_COUNT,
                        (td_projection)(module % TD_PROJ_COUNT), name);
    snprintf(out, NAME_CHARS, "base_model.model.%s.lora_%c.weight", name, letter);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const part *)a)->name, ((const part *)b)->name);
}

// Every tensor of the layout, sorted by name, which is the order that the safetensors library
// writes. The caller frees.
static td_status list_parts(const td_lora *lora, part **out) {
    part *parts = calloc((size_t)(2 * lora->n_modules) + 1, sizeof *parts);
    if (!parts)
        return td_fail(TD_ERR_MEMORY, "no memory for the list of adapter tensors");
    int64_t count = 0;
    for (int64_t i = 0; i < lora->n_layers * TD_PROJ_COUNT; i++) {
        const td_lora_module *module = &lora->modules[i];
        if (!module->present)
            continue;
        part a = {.shape = {module->rank, module->in}, .offset = module->a_offset};
        part b = {.shape = {module->out, module->rank}, .offset = module->b_offset};
        name_part(lora, i, 'A', a.name);
        name_part(lora, i, 'B', b.name);
        parts[count++] = a;
        parts[count++] = b;
    }
    qsort(parts, (size_t)count, sizeof *parts, by_name);
    *out = parts;
    return TD_OK;
}

static td_status compare_modules(const char *folder, const td_lora *mine, const td_lora *found) {
    for (int64_t i = 0; i < mine->n_layers * TD_PROJ_COUNT; i++) {
        const td_lora_module *a = &mine->modules[i], *b = &found->modules[i];
        char name[TD_MODULE_NAME_CHARS];
        td_lora_module_name(mine->module_prefix, i / TD_PROJ_COUNT,
                            (td_projection)(i % TD_PROJ_COUNT), name);
        if (a->present != b->present)
            return td_fail(TD_ERR_DATA, "%s: the adapter %s %s, which the config %s", folder,
                           b->present ? "adapts" : "does not adapt", name,
                           a->present ? "selects" : "does not select");
        if (!a->present)
            continue;
        if (a->rank != b->rank)
            return td_fail(TD_ERR_DATA,
                           "%s: %s has rank %lld in the adapter and %lld in the config", folder,
                           name, (long long)b->rank, (long long)a->rank);
        if (a->scaling != b->scaling)
            return td_fail(TD_ERR_DATA,
                           "%s: %s is scaled by %g in the adapter and by %g in the config "
                           "(lora_alpha, r, use_rslora)",
                           folder, name, (double)b->scaling, (double)a->scaling);
    }
    return TD_OK;
}

// What is wrong with the selection comes from the adapter's file and not from the user's config.
static td_status as_data_error(const char *folder, td_status status) {
    if (status != TD_ERR_USAGE)
        return status;
    char message[1024];
    snprintf(message, sizeof message, "%s", td_error_message());
    td_error_clear();
    return td_fail(TD_ERR_DATA, "%s/%s: %s", folder, config_name, message);
}

static td_status check_selection(const char *folder, const td_lora *lora) {
    td_adapter_info info;
    td_lora found = {0};
    td_status status = td_adapter_info_read(folder, &info);
    if (status == TD_OK) {
        td_lora_options options = td_adapter_lora_options(&info);
        status = as_data_error(folder, td_lora_init_like(&found, lora, &options));
    }
    if (status == TD_OK)
        status = compare_modules(folder, lora, &found);
    td_lora_fini(&found);
    td_adapter_info_fini(&info);
    return status;
}

static td_status refuse_extra(const char *path, const td_safetensors *file, const part *parts,
                              int64_t count) {
    for (int64_t i = 0; i < td_safetensors_count(file); i++) {
        part key = {0};
        snprintf(key.name, sizeof key.name, "%s", td_safetensors_name(file, i));
        if (!bsearch(&key, parts, (size_t)count, sizeof *parts, by_name))
            return td_fail(TD_ERR_DATA,
                           "%s: tensor \"%s\" does not belong to the LoRA modules of this model",
                           path, td_safetensors_name(file, i));
    }
    return TD_OK;
}

static td_status check_finite(const char *path, const part *tensor, const float *values) {
    for (int64_t i = 0; i < tensor->shape[0] * tensor->shape[1]; i++)
        if (!isfinite(values[i]))
            return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" holds NaN or infinity", path,
                           tensor->name);
    return TD_OK;
}

static td_status read_parts(const char *path, const td_safetensors *file, const part *parts,
                            int64_t count, float *parameters) {
    for (int64_t i = 0; i < count; i++) {
        td_tensor view;
        float *values = parameters + parts[i].offset;
        TD_TRY(td_safetensors_require(file, parts[i].name, 2, parts[i].shape, &view));
        td_convert_to_f32(view.data, view.dtype, parts[i].shape[0] * parts[i].shape[1], values);
        TD_TRY(check_finite(path, &parts[i], values));
    }
    return refuse_extra(path, file, parts, count);
}

static td_status open_weights(const char *folder, char path[TD_PATH_MAX], td_safetensors **out) {
    TD_TRY(td_path_join(path, folder, "adapter_model.bin"));
    int has_pickle = td_path_exists(path);
    TD_TRY(td_path_join(path, folder, weights_name));
    if (has_pickle && !td_path_exists(path))
        return td_fail(TD_ERR_DATA,
                       "%s: has adapter_model.bin only; save the adapter once with "
                       "safe_serialization to get %s",
                       folder, weights_name);
    return td_safetensors_open(path, out);
}

td_status td_adapter_read(const char *folder, const td_lora *lora, float *parameters) {
    char path[TD_PATH_MAX];
    part *parts = NULL;
    td_safetensors *file = NULL;
    TD_TRY(check_selection(folder, lora));
    td_status status = open_weights(folder, path, &file);
    if (status == TD_OK)
        status = list_parts(lora, &parts);
    if (status == TD_OK)
        status = read_parts(path, file, parts, 2 * lora->n_modules, parameters);
    free(parts);
    td_safetensors_close(file);
    return status;
}

static td_status write_weights(const char *folder, const td_lora *lora, const float *parameters) {
    char path[TD_PATH_MAX];
    part *parts;
    TD_TRY(td_path_join(path, folder, weights_name));
    TD_TRY(list_parts(lora, &parts));
    int64_t count = 2 * lora->n_modules;
    td_named_tensor *tensors = calloc((size_t)count + 1, sizeof *tensors);
    td_status status = TD_OK;
    if (!tensors)
        status = td_fail(TD_ERR_MEMORY, "no memory for the list of adapter tensors");
    for (int64_t i = 0; status == TD_OK && i < count; i++) {
        tensors[i].name = parts[i].name;
        tensors[i].tensor = (td_tensor){.data = (void *)(uintptr_t)(parameters + parts[i].offset),
                                        .dtype = TD_F32,
                                        .n_dims = 2,
                                        .shape = {parts[i].shape[0], parts[i].shape[1]}};
    }
    if (status == TD_OK)
        status = td_safetensors_write(path, tensors, count);
    free(tensors);
    free(parts);
    return status;
}

static td_status write_config(const char *folder, const td_lora *lora,
                              const td_lora_options *options, const char *base_name) {
    char path[TD_PATH_MAX];
    char *text;
    TD_TRY(td_path_join(path, folder, config_name));
    TD_TRY(td_adapter_config_print(lora, options, base_name, &text));
    td_status status = td_file_write_atomic(path, text, strlen(text));
    free(text);
    return status;
}

td_status td_adapter_write(const char *folder, const td_lora *lora, const td_lora_options *options,
                           const char *base_name, const float *parameters) {
    TD_TRY(td_folder_make(folder));
    TD_TRY(write_weights(folder, lora, parameters));
    return write_config(folder, lora, options, base_name);
}
