#include <stdlib.h>
#include <string.h>

#include "model/safetensors_internal.h"
#include "runtime/core/files.h"
#include "runtime/core/json.h"

static td_status fail_memory(const char *where) {
    return td_fail(TD_ERR_MEMORY, "%s: no memory for its list of tensors", where);
}

static td_status check_item(const char *where, const cJSON *item) {
    if (!cJSON_IsString(item))
        return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" must have a file name", where, item->string);
    if (!td_path_is_plain_name(item->valuestring))
        return td_fail(TD_ERR_DATA,
                       "%s: tensor \"%s\" is in \"%s\"; only files in the same folder are read",
                       where, item->string, item->valuestring);
    return TD_OK;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

// Sorts and keeps one of each.
static void keep_unique(td_safetensors_index *index) {
    int kept = 0;
    qsort(index->files, (size_t)index->n_files, sizeof *index->files, compare_names);
    for (int i = 0; i < index->n_files; i++) {
        if (kept > 0 && strcmp(index->files[kept - 1], index->files[i]) == 0)
            free(index->files[i]);
        else
            index->files[kept++] = index->files[i];
    }
    index->n_files = kept;
}

// The number of the file, or -1.
static int find_file(const td_safetensors_index *index, const char *name) {
    char **found = index->n_files == 0 ? NULL
                                       : bsearch(&name, index->files, (size_t)index->n_files,
                                                 sizeof *index->files, compare_names);
    return found ? (int)(found - index->files) : -1;
}

// Neighbours often name the same file: those are not copied.
static td_status collect_files(const char *where, const cJSON *map, td_safetensors_index *out) {
    const char *last = NULL;
    for (const cJSON *item = map->child; item; item = item->next) {
        TD_TRY(check_item(where, item));
        if (last && strcmp(last, item->valuestring) == 0)
            continue;
        last = item->valuestring;
        out->files[out->n_files] = strdup(last);
        if (!out->files[out->n_files])
            return fail_memory(where);
        out->n_files++;
    }
    keep_unique(out);
    return TD_OK;
}

static int by_tensor(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static td_status collect_items(const char *where, const cJSON *map, td_safetensors_index *out) {
    for (const cJSON *item = map->child; item; item = item->next) {
        out->items[out->count].tensor = strdup(item->string);
        if (!out->items[out->count].tensor)
            return fail_memory(where);
        out->items[out->count++].file = find_file(out, item->valuestring);
    }
    qsort(out->items, (size_t)out->count, sizeof *out->items, by_tensor);
    for (int64_t i = 1; i < out->count; i++)
        if (strcmp(out->items[i - 1].tensor, out->items[i].tensor) == 0)
            return td_fail(TD_ERR_DATA, "%s: has tensor \"%s\" twice", where, out->items[i].tensor);
    return TD_OK;
}

static td_status collect(const char *where, const cJSON *root, td_safetensors_index *out) {
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(root, "weight_map");
    if (!cJSON_IsObject(map) || !map->child)
        return td_fail(TD_ERR_DATA, "%s: \"weight_map\" must be an object of tensor and file names",
                       where);
    size_t room = (size_t)cJSON_GetArraySize(map);
    out->files = calloc(room, sizeof *out->files);
    out->items = calloc(room, sizeof *out->items);
    if (!out->files || !out->items)
        return fail_memory(where);
    TD_TRY(collect_files(where, map, out));
    return collect_items(where, map, out);
}

td_status td_safetensors_index_parse(const char *where, const char *text, size_t bytes,
                                     td_safetensors_index *out) {
    cJSON *root;
    *out = (td_safetensors_index){0};
    TD_TRY(td_safetensors_check_plausible(where, text, bytes));
    TD_TRY(td_json_parse(where, text, bytes, &root));
    td_status status = collect(where, root, out);
    cJSON_Delete(root);
    return status;
}

void td_safetensors_index_fini(td_safetensors_index *index) {
    for (int64_t i = 0; i < index->count; i++)
        free(index->items[i].tensor);
    for (int i = 0; i < index->n_files; i++)
        free(index->files[i]);
    free(index->items);
    free(index->files);
    *index = (td_safetensors_index){0};
}
