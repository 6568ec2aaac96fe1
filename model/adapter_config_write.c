#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "model/adapter_internal.h"
#include "runtime/core/json.h"

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static cJSON *sorted_list(const char *const *names, int count) {
    const char **sorted = malloc((size_t)count * sizeof *sorted);
    cJSON *list = sorted ? cJSON_CreateArray() : NULL;
    if (!list) {
        free(sorted);
        return NULL;
    }
    memcpy(sorted, names, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, compare_names);
    for (int i = 0; i < count; i++)
        if (i == 0 || strcmp(sorted[i - 1], sorted[i]) != 0)
            cJSON_AddItemToArray(list, cJSON_CreateString(sorted[i]));
    free(sorted);
    return list;
}

// "all-linear" depends on the model it is applied to, so PEFT stores the names that it stood for.
static cJSON *all_projections(const td_lora *lora) {
    const char *names[TD_PROJ_COUNT];
    int count = 0;
    for (int i = 0; i < TD_PROJ_COUNT; i++)
        if (lora->modules[i].out > 0)
            names[count++] = strchr(td_projection_name((td_projection)i), '.') + 1;
    return sorted_list(names, count);
}

// The names as a pattern for the text model's modules alone: a list would have PEFT adapt those of
// the other parts that are called the same. The names are those of modules: letters, digits, "_"
// and ".".
static cJSON *within_text_model(cJSON *list) {
    char *text = NULL;
    size_t bytes;
    FILE *stream = list ? open_memstream(&text, &bytes) : NULL;
    if (!stream) {
        cJSON_Delete(list);
        return NULL;
    }
    fputs("model\\.language_model\\.(?:.*\\.)?(?:", stream);
    for (const cJSON *item = list->child; item; item = item->next) {
        for (const char *c = item->valuestring; *c; c++)
            fprintf(stream, *c == '.' ? "\\%c" : "%c", *c);
        fputc(item->next ? '|' : ')', stream);
    }
    int failed = fclose(stream) != 0;
    cJSON *pattern = failed ? NULL : cJSON_CreateString(text);
    free(text);
    cJSON_Delete(list);
    return pattern;
}

static cJSON *targets(const td_lora *lora, const td_lora_options *options) {
    const td_string_list *names = options->target_modules;
    int is_text_part = strcmp(lora->module_prefix, "model.") != 0;
    cJSON *list;
    if (!options->target_modules_is_pattern)
        list = sorted_list((const char *const *)names->items, names->count);
    else if (strcasecmp(names->items[0], "all-linear") == 0)
        list = all_projections(lora);
    else
        return cJSON_CreateString(names->items[0]);
    return is_text_part ? within_text_model(list) : list;
}

static cJSON *pattern(const cJSON *object) {
    return object ? cJSON_Duplicate(object, 1) : cJSON_CreateObject();
}

// In the order of the alphabet, as PEFT writes them.
static void add_items(cJSON *root, const td_lora *lora, const td_lora_options *options,
                      const char *base_name) {
    cJSON_AddItemToObject(root, "alpha_pattern", pattern(options->alpha_pattern));
    cJSON_AddNullToObject(root, "auto_mapping");
    cJSON_AddItemToObject(root, "base_model_name_or_path",
                          base_name ? cJSON_CreateString(base_name) : cJSON_CreateNull());
    cJSON_AddStringToObject(root, "bias", "none");
    cJSON_AddFalseToObject(root, "fan_in_fan_out");
    cJSON_AddTrueToObject(root, "inference_mode");
    cJSON_AddTrueToObject(root, "init_lora_weights");
    cJSON_AddNullToObject(root, "layers_pattern");
    cJSON_AddNullToObject(root, "layers_to_transform");
    cJSON_AddNumberToObject(root, "lora_alpha", options->alpha);
    cJSON_AddNumberToObject(root, "lora_dropout", lora->dropout);
    cJSON_AddNullToObject(root, "modules_to_save");
    cJSON_AddStringToObject(root, "peft_type", "LORA");
    cJSON_AddNumberToObject(root, "r", (double)options->rank);
    cJSON_AddItemToObject(root, "rank_pattern", pattern(options->rank_pattern));
    cJSON_AddNullToObject(root, "revision");
    cJSON_AddItemToObject(root, "target_modules", targets(lora, options));
    cJSON_AddStringToObject(root, "task_type", "CAUSAL_LM");
    cJSON_AddFalseToObject(root, "use_dora");
    cJSON_AddBoolToObject(root, "use_rslora", options->use_rslora);
}

enum { N_ITEMS = 20 };

td_status td_adapter_config_print(const td_lora *lora, const td_lora_options *options,
                                  const char *base_name, char **out) {
    cJSON *root = cJSON_CreateObject();
    char *text = NULL;
    if (root) {
        add_items(root, lora, options, base_name);
        // An item that could not be allocated was not added.
        if (cJSON_GetArraySize(root) == N_ITEMS)
            text = td_json_print(root, 1);
    }
    cJSON_Delete(root);
    if (!text)
        return td_fail(TD_ERR_MEMORY, "no memory to write adapter_config.json");
    *out = text;
    return TD_OK;
}
