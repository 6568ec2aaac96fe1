#include "runtime/train/checkpoint_export.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/log.h"
#include "runtime/train/checkpoint_adapter.h"

static const size_t max_manifest_bytes = (size_t)256 << 20;
static const size_t max_file_bytes = (size_t)1 << 36;
static const char *const adapter_files[] = {"adapter_config.json", "adapter_model.safetensors"};
enum { N_ADAPTER_FILES = 2 };

static td_status read_manifest(const char *folder, td_manifest *out) {
    char path[TD_PATH_MAX], *text;
    size_t bytes;
    TD_TRY(td_path_join(path, folder, "manifest.json"));
    TD_TRY(td_file_read_no_link(path, max_manifest_bytes, &text, &bytes));
    td_status status = td_manifest_parse(path, text, bytes, out);
    free(text);
    return status;
}

static td_status verify(const char *folder, const td_manifest *manifest) {
    for (int i = 0; i < N_ADAPTER_FILES; i++) {
        const td_manifest_file *file = td_manifest_find_file(manifest, adapter_files[i]);
        if (!file)
            return td_fail(TD_ERR_DATA, "%s: the checkpoint holds no %s", folder, adapter_files[i]);
        TD_TRY(td_manifest_verify_file(folder, file));
    }
    return TD_OK;
}

// The bytes that are written are the ones that were compared.
static td_status copy_file(const char *from, const char *to, const td_manifest_file *file) {
    char source[TD_PATH_MAX], target[TD_PATH_MAX], *data;
    size_t bytes;
    TD_TRY(td_path_join(source, from, file->name));
    TD_TRY(td_path_join(target, to, file->name));
    TD_TRY(td_file_read_no_link(source, max_file_bytes, &data, &bytes));
    td_status status =
        bytes == file->bytes && td_hash_equal(td_hash_bytes(data, bytes), file->hash)
            ? td_file_write_atomic(target, data, bytes)
            : td_fail(TD_ERR_DATA, "%s: is damaged: its checksum does not match", source);
    free(data);
    return status;
}

static td_status copy_all(const char *from, const char *to, const td_manifest *manifest) {
    for (int i = 0; i < N_ADAPTER_FILES; i++)
        TD_TRY(copy_file(from, to, td_manifest_find_file(manifest, adapter_files[i])));
    return td_file_sync(to);
}

// The files as they are, or, where they are missing or damaged, anew from the pages.
static td_status copy_or_rebuild(const char *from, const char *to, const td_manifest *manifest,
                                 const char *model) {
    if (verify(from, manifest) == TD_OK)
        return copy_all(from, to, manifest);
    td_info("%s; the adapter is rebuilt from the checkpoint's pages", td_error_message());
    td_error_clear();
    TD_TRY(td_checkpoint_rebuild_adapter(from, manifest, model, to));
    return td_file_sync(to);
}

static td_status make_adapter(const char *from, const char *output, const td_manifest *manifest,
                              const char *model) {
    char temporary[TD_PATH_MAX];
    TD_TRY(td_folder_make_beside(output, temporary));
    td_status status = copy_or_rebuild(from, temporary, manifest, model);
    if (status == TD_OK && rename(temporary, output) != 0)
        status = td_fail(TD_ERR_IO, "%s: cannot be made: %s", output, strerror(errno));
    if (status != TD_OK)
        (void)td_folder_remove_tree(temporary);
    return status;
}

static td_status export_one(const char *folder, const char *model, const char *output) {
    td_manifest manifest = {0};
    td_status status = read_manifest(folder, &manifest);
    if (status == TD_OK)
        status = make_adapter(folder, output, &manifest, model);
    td_manifest_fini(&manifest);
    return status;
}

// Adapter files or pages are enough.
static td_status is_usable(const char *folder) {
    td_manifest manifest = {0};
    td_status status = read_manifest(folder, &manifest);
    if (status == TD_OK && verify(folder, &manifest) != TD_OK) {
        td_error_clear();
        status = td_checkpoint_verify_pages(folder, &manifest);
    }
    td_manifest_fini(&manifest);
    return status;
}

// Newest first. What is wrong with the newest is reported when no other will do.
static td_status find_newest(const char *run, char out[TD_PATH_MAX]) {
    char folder[TD_PATH_MAX];
    int64_t *steps;
    size_t count;
    TD_TRY(td_path_join(folder, run, "checkpoints"));
    TD_TRY(td_checkpoint_list(folder, &steps, &count));
    td_status status =
        td_fail(TD_ERR_DATA, "%s: neither a checkpoint nor a run with checkpoints", run);
    for (size_t i = 0; i < count && status != TD_OK; i++) {
        if (i == 0)
            td_error_clear();
        status = td_checkpoint_step_folder(out, run, steps[i]);
        if (status == TD_OK)
            status = td_checkpoint_require_own(out);
        if (status == TD_OK)
            status = is_usable(out);
        if (status == TD_OK)
            td_error_clear();
    }
    free(steps);
    return status;
}

td_status td_checkpoint_export_adapter(const char *path, const char *model, const char *output,
                                       char out_checkpoint[TD_PATH_MAX]) {
    char manifest[TD_PATH_MAX];
    if (td_path_exists(output))
        return td_fail(TD_ERR_USAGE,
                       "%s exists already and is not written over; choose another output folder, "
                       "or remove it",
                       output);
    if (!td_path_is_folder(path))
        return td_fail(TD_ERR_DATA, "%s: there is no folder", path);
    TD_TRY(td_path_join(manifest, path, "manifest.json"));
    if (td_path_exists(manifest))
        snprintf(out_checkpoint, TD_PATH_MAX, "%s", path);
    else
        TD_TRY(find_newest(path, out_checkpoint));
    return export_one(out_checkpoint, model, output);
}
