#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/export_internal.h"
#include "runtime/core/files.h"
#include "runtime/core/json.h"

enum { MAX_FILES = 99999, FILE_NAME_CHARS = 64 };
static const size_t max_copied_bytes = (size_t)1 << 30;

// What a folder of Hugging Face has beside weights and config.json.
static const char *const companions[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
};
enum { N_COMPANIONS = sizeof companions / sizeof *companions };

struct td_export_folder {
    char path[TD_PATH_MAX];
    char temporary[TD_PATH_MAX]; // empty when there is nothing to remove
    const td_named_tensor *tensors;
    int64_t count;
    int *files; // (count) file of each tensor
    int n_files;
    uint64_t bytes;
    int64_t next; // tensor whose bytes come next
    size_t left;  // of it
    int file;     // that is being written
    td_safetensors_writer *writer;
};

static td_status tensor_bytes(const td_tensor *tensor, size_t *out) {
    int64_t elements;
    TD_TRY(td_tensor_elements(tensor, &elements));
    *out = td_mul_bytes((size_t)elements, td_dtype_bytes(tensor->dtype));
    return *out == SIZE_MAX ? td_fail(TD_ERR_DATA, "a tensor is too large to be written") : TD_OK;
}

// The parts of an NF4 weight follow it and stay in its file.
static td_status group_bytes(const td_export_folder *folder, int64_t first, uint64_t *out) {
    *out = 0;
    for (int64_t i = first;
         i < folder->count && (i == first || td_nf4_is_part(folder->tensors[i].name)); i++) {
        size_t bytes;
        TD_TRY(tensor_bytes(&folder->tensors[i].tensor, &bytes));
        *out += bytes;
    }
    return TD_OK;
}

static td_status divide(td_export_folder *folder, uint64_t max_file_bytes) {
    uint64_t used = 0, group;
    folder->n_files = 1;
    for (int64_t i = 0; i < folder->count; i++) {
        size_t bytes;
        TD_TRY(tensor_bytes(&folder->tensors[i].tensor, &bytes));
        TD_TRY(group_bytes(folder, i, &group));
        if (used > 0 && used + group > max_file_bytes && !td_nf4_is_part(folder->tensors[i].name)) {
            folder->n_files++;
            used = 0;
        }
        folder->files[i] = folder->n_files - 1;
        used += bytes;
        folder->bytes += bytes;
    }
    if (folder->n_files > MAX_FILES)
        return td_fail(TD_ERR_USAGE, "%s: would need more than %d files; use larger ones",
                       folder->path, MAX_FILES);
    return TD_OK;
}

static void file_name(const td_export_folder *folder, int file, char out[FILE_NAME_CHARS]) {
    if (folder->n_files == 1)
        snprintf(out, FILE_NAME_CHARS, "model.safetensors");
    else
        snprintf(out, FILE_NAME_CHARS, "model-%05d-of-%05d.safetensors", file + 1, folder->n_files);
}

static void parent_of(const char *path, char out[TD_PATH_MAX]) {
    const char *slash = strrchr(path, '/');
    if (!slash)
        snprintf(out, TD_PATH_MAX, ".");
    else
        snprintf(out, TD_PATH_MAX, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

static td_status set_path(td_export_folder *folder, const char *path) {
    size_t chars = strlen(path);
    while (chars > 1 && path[chars - 1] == '/')
        chars--;
    if (chars + 32 >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "path is longer than %d characters: %.80s...",
                       TD_PATH_MAX - 32, path);
    snprintf(folder->path, sizeof folder->path, "%.*s", (int)chars, path);
    if (td_path_exists(folder->path))
        return td_fail(TD_ERR_USAGE,
                       "%s exists already and is not written over; choose another output folder, "
                       "or remove it",
                       folder->path);
    return TD_OK;
}

static td_status make_room(td_export_folder *folder) {
    char parent[TD_PATH_MAX];
    uint64_t free_bytes;
    parent_of(folder->path, parent);
    TD_TRY(td_folder_make(parent));
    TD_TRY(td_folder_free_bytes(parent, &free_bytes));
    if (free_bytes < folder->bytes)
        return td_fail(TD_ERR_IO, "%s: the model takes %.1f GB, and %.1f GB are free", parent,
                       (double)folder->bytes / 1e9, (double)free_bytes / 1e9);
    td_status status = td_folder_make_beside(folder->path, folder->temporary);
    if (status != TD_OK)
        folder->temporary[0] = '\0';
    return status;
}

static td_status begin(td_export_folder *folder, const char *path, uint64_t max_file_bytes) {
    folder->files = calloc((size_t)folder->count + 1, sizeof *folder->files);
    if (!folder->files)
        return td_fail(TD_ERR_MEMORY, "no memory for the list of tensors");
    TD_TRY(set_path(folder, path));
    TD_TRY(divide(folder, max_file_bytes));
    return make_room(folder);
}

td_status td_export_folder_create(const char *path, uint64_t max_file_bytes,
                                  const td_named_tensor *tensors, int64_t count,
                                  td_export_folder **out) {
    td_export_folder *folder = calloc(1, sizeof *folder);
    if (!folder)
        return td_fail(TD_ERR_MEMORY, "no memory to write %s", path);
    folder->tensors = tensors;
    folder->count = count;
    folder->file = -1;
    td_status status = begin(folder, path, max_file_bytes);
    if (status != TD_OK) {
        td_export_folder_destroy(folder);
        return status;
    }
    *out = folder;
    return TD_OK;
}

static td_status end_file(td_export_folder *folder) {
    if (!folder->writer)
        return TD_OK;
    td_status status = td_safetensors_writer_commit(folder->writer);
    td_safetensors_writer_destroy(folder->writer);
    folder->writer = NULL;
    return status;
}

static td_status begin_file(td_export_folder *folder) {
    char path[TD_PATH_MAX], name[FILE_NAME_CHARS];
    int64_t first = folder->next, end = first;
    TD_TRY(end_file(folder));
    folder->file = folder->files[first];
    while (end < folder->count && folder->files[end] == folder->file)
        end++;
    file_name(folder, folder->file, name);
    TD_TRY(td_path_join(path, folder->temporary, name));
    return td_safetensors_writer_create(path, folder->tensors + first, end - first,
                                        &folder->writer);
}

static td_status begin_tensor(td_export_folder *folder) {
    if (folder->next >= folder->count)
        return td_fail(TD_ERR_INTERNAL, "%s: more data than its tensors take", folder->path);
    if (folder->files[folder->next] != folder->file)
        TD_TRY(begin_file(folder));
    return tensor_bytes(&folder->tensors[folder->next].tensor, &folder->left);
}

td_status td_export_folder_append(td_export_folder *folder, const void *data, size_t bytes) {
    if (folder->left == 0)
        TD_TRY(begin_tensor(folder));
    if (bytes > folder->left)
        return td_fail(TD_ERR_INTERNAL, "%s: more data than tensor \"%s\" takes", folder->path,
                       folder->tensors[folder->next].name);
    folder->left -= bytes;
    if (folder->left == 0)
        folder->next++;
    return td_safetensors_writer_append(folder->writer, data, bytes);
}

static int add_weight_map(const td_export_folder *folder, cJSON *root) {
    cJSON *metadata = cJSON_AddObjectToObject(root, "metadata");
    cJSON *map = cJSON_AddObjectToObject(root, "weight_map");
    int ok =
        metadata && map && cJSON_AddNumberToObject(metadata, "total_size", (double)folder->bytes);
    for (int64_t i = 0; ok && i < folder->count; i++) {
        char name[FILE_NAME_CHARS];
        file_name(folder, folder->files[i], name);
        ok = cJSON_AddStringToObject(map, folder->tensors[i].name, name) != NULL;
    }
    return ok;
}

static td_status write_index(const td_export_folder *folder) {
    char path[TD_PATH_MAX];
    if (folder->n_files == 1)
        return TD_OK;
    TD_TRY(td_path_join(path, folder->temporary, "model.safetensors.index.json"));
    cJSON *root = cJSON_CreateObject();
    char *text = root && add_weight_map(folder, root) ? td_json_print(root, 1) : NULL;
    cJSON_Delete(root);
    if (!text)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for it", path);
    td_status status = td_file_write_atomic(path, text, strlen(text));
    free(text);
    return status;
}

static td_status copy_companion(const td_export_folder *folder, const char *source,
                                const char *name) {
    char from[TD_PATH_MAX], to[TD_PATH_MAX], *text;
    size_t bytes;
    TD_TRY(td_path_join(from, source, name));
    TD_TRY(td_path_join(to, folder->temporary, name));
    if (!td_path_exists(from))
        return TD_OK;
    TD_TRY(td_file_read(from, max_copied_bytes, &text, &bytes));
    td_status status = td_file_write_atomic(to, text, bytes);
    free(text);
    return status;
}

static td_status write_config(const td_export_folder *folder, const char *source,
                              const td_export_config *config) {
    char from[TD_PATH_MAX], to[TD_PATH_MAX], *text;
    TD_TRY(td_path_join(from, source, "config.json"));
    TD_TRY(td_path_join(to, folder->temporary, "config.json"));
    TD_TRY(td_export_config_edit(from, config, &text));
    td_status status = td_file_write_atomic(to, text, strlen(text));
    free(text);
    return status;
}

// rename() would replace an empty folder that has come up meanwhile, which harms nobody.
static td_status publish(td_export_folder *folder) {
    char parent[TD_PATH_MAX];
    TD_TRY(td_file_sync(folder->temporary));
    if (rename(folder->temporary, folder->path) != 0)
        return td_fail(TD_ERR_IO, "%s: cannot be made: %s", folder->path, strerror(errno));
    folder->temporary[0] = '\0';
    parent_of(folder->path, parent);
    return td_file_sync(parent);
}

td_status td_export_folder_commit(td_export_folder *folder, const char *source,
                                  const td_export_config *config, td_export_report *out) {
    if (folder->next != folder->count)
        return td_fail(TD_ERR_INTERNAL, "%s: tensor \"%s\" was not written", folder->path,
                       folder->tensors[folder->next].name);
    TD_TRY(end_file(folder));
    TD_TRY(write_index(folder));
    for (int i = 0; i < N_COMPANIONS; i++)
        TD_TRY(copy_companion(folder, source, companions[i]));
    TD_TRY(write_config(folder, source, config));
    TD_TRY(publish(folder));
    out->n_files = folder->n_files;
    out->n_tensors = folder->count;
    out->bytes = folder->bytes;
    return TD_OK;
}

void td_export_folder_destroy(td_export_folder *folder) {
    if (!folder)
        return;
    td_safetensors_writer_destroy(folder->writer);
    // What went wrong before is the error to report.
    if (folder->temporary[0])
        (void)td_folder_remove_tree(folder->temporary);
    free(folder->files);
    free(folder);
}
