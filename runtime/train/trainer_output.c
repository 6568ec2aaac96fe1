#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "runtime/core/log.h"
#include "runtime/train/trainer_internal.h"

static const size_t max_config_bytes = (size_t)16 << 20;
static const size_t max_adapter_bytes = (size_t)1 << 36;

static int resumes(const td_config *config) {
    return strcmp(config->resume_from_checkpoint, "never") != 0;
}

// A folder that holds another run is left alone.
static td_status check_existing(td_trainer *trainer, const char *path) {
    const td_config *config = trainer->config;
    cJSON *existing;
    if (td_path_is_link(path))
        return td_fail(TD_ERR_USAGE, "%s: is a link, which is not followed here; remove it", path);
    if (td_path_exists(path)) {
        TD_TRY(td_json_read(path, max_config_bytes, &existing));
        const char *key = td_config_first_difference(existing, trainer->config_json);
        td_status status = TD_OK;
        if (key)
            status =
                td_fail(TD_ERR_USAGE,
                        "%s holds a run with another %s; choose another output_dir, or remove it",
                        config->output_dir, key);
        cJSON_Delete(existing);
        TD_TRY(status);
    }
    if (!resumes(config) && td_checkpoint_newest_step(config->output_dir) >= 0)
        return td_fail(
            TD_ERR_USAGE,
            "%s already holds checkpoints of this run; go on with --resume auto, choose another "
            "output_dir, or remove it",
            config->output_dir);
    return TD_OK;
}

static td_status open_output(td_trainer *trainer) {
    char path[TD_PATH_MAX];
    TD_TRY(td_path_join(path, trainer->config->output_dir, "config.json"));
    TD_TRY(check_existing(trainer, path));
    trainer->made_output = !td_path_exists(trainer->config->output_dir);
    return td_folder_make(trainer->config->output_dir);
}

void td_trainer_remove_empty(const td_trainer *trainer) {
    if (td_trainer_is_root(trainer))
        td_run_data_remove_empty(trainer->config->output_dir, trainer->made_output);
}

td_status td_trainer_write_config(td_trainer *trainer) {
    char path[TD_PATH_MAX];
    TD_TRY(td_path_join(path, trainer->config->output_dir, "config.json"));
    char *text = td_json_print(trainer->config_json, 1);
    if (!text)
        return td_fail(TD_ERR_MEMORY, "no memory to print the config");
    td_status status = td_file_write_atomic(path, text, strlen(text));
    free(text);
    return status;
}

td_status td_trainer_open_output(td_trainer *trainer) {
    td_status status = TD_OK;
    trainer->config_json = td_config_to_json(trainer->config);
    if (!trainer->config_json)
        status = td_fail(TD_ERR_MEMORY, "no memory for the config");
    if (status == TD_OK && td_trainer_is_root(trainer))
        status = open_output(trainer);
    return td_comm_agree(trainer->comm, status, "output folder");
}

// The flat vector where this process can read it.
static td_status host_parameters(td_trainer *trainer, const float **out) {
    const td_op_context *context = &trainer->session.context;
    *out = trainer->run.parameters.values;
    if (context->device->unified)
        return TD_OK;
    size_t bytes = (size_t)trainer->run.parameters.map.n_elements * sizeof(float);
    if (!trainer->host_parameters)
        trainer->host_parameters = malloc(bytes);
    if (!trainer->host_parameters)
        return td_fail(TD_ERR_MEMORY, "no memory for %zu bytes of parameters", bytes);
    TD_TRY(context->device->table->copy(context->stream, trainer->host_parameters, *out, bytes));
    TD_TRY(context->device->table->stream_synchronize(context->stream));
    *out = trainer->host_parameters;
    return TD_OK;
}

td_status td_trainer_write_checkpoint_adapter(void *context, const char *folder,
                                              const float *parameters) {
    td_trainer *trainer = context;
    return td_adapter_write(folder, &trainer->session.lora, &trainer->session.lora_options,
                            trainer->config->model_name_or_path, parameters);
}

// Moves a complete temporary folder to its name; the old one is gone only then.
static td_status replace_folder(const char *temporary, const char *path, const char *parent) {
    TD_TRY(td_file_sync(temporary));
    TD_TRY(td_folder_remove_tree(path));
    if (rename(temporary, path) != 0)
        return td_fail(TD_ERR_IO, "%s: cannot be renamed to %s: %s", temporary, path,
                       strerror(errno));
    return td_file_sync(parent);
}

static td_status adapter_paths(const td_trainer *trainer, const char *name, char path[TD_PATH_MAX],
                               char temporary[TD_PATH_MAX]) {
    char hidden[64];
    snprintf(hidden, sizeof hidden, ".%s.new", name);
    TD_TRY(td_path_join(path, trainer->config->output_dir, name));
    TD_TRY(td_path_join(temporary, trainer->config->output_dir, hidden));
    TD_TRY(td_folder_remove_tree(temporary));
    return td_folder_make_new(temporary);
}

td_status td_trainer_write_adapter(td_trainer *trainer, const char *name) {
    char path[TD_PATH_MAX], temporary[TD_PATH_MAX];
    const float *values;
    TD_TRY(adapter_paths(trainer, name, path, temporary));
    TD_TRY(host_parameters(trainer, &values));
    TD_TRY(td_trainer_write_checkpoint_adapter(trainer, temporary, values));
    return replace_folder(temporary, path, trainer->config->output_dir);
}

static td_status copy_file(const char *from_folder, const char *to_folder, const char *name) {
    char from[TD_PATH_MAX], to[TD_PATH_MAX], *data;
    size_t bytes;
    TD_TRY(td_path_join(from, from_folder, name));
    TD_TRY(td_path_join(to, to_folder, name));
    TD_TRY(td_file_read_no_link(from, max_adapter_bytes, &data, &bytes));
    td_status status = td_file_write_atomic(to, data, bytes);
    free(data);
    return status;
}

static td_status copy_adapter(const td_trainer *trainer, const char *source, const char *name) {
    char path[TD_PATH_MAX], temporary[TD_PATH_MAX];
    if (td_path_is_link(source))
        return td_fail(TD_ERR_DATA, "%s: is a link, which is not followed here", source);
    TD_TRY(adapter_paths(trainer, name, path, temporary));
    TD_TRY(copy_file(source, temporary, "adapter_config.json"));
    TD_TRY(copy_file(source, temporary, "adapter_model.safetensors"));
    return replace_folder(temporary, path, trainer->config->output_dir);
}

td_status td_trainer_copy_adapter(td_trainer *trainer, const char *from, const char *name) {
    char source[TD_PATH_MAX];
    TD_TRY(td_path_join(source, trainer->config->output_dir, from));
    return copy_adapter(trainer, source, name);
}

static int has_adapter(const char *folder, const char *name) {
    char path[TD_PATH_MAX], file[TD_PATH_MAX];
    int found = td_path_join(path, folder, name) == TD_OK &&
                td_path_join(file, path, "adapter_model.safetensors") == TD_OK &&
                td_path_exists(file);
    td_error_clear();
    return found;
}

td_status td_trainer_restore_best(td_trainer *trainer, int32_t *out_found) {
    const char *output = trainer->config->output_dir;
    char checkpoint[TD_PATH_MAX];
    *out_found = has_adapter(output, "best_adapter");
    TD_TRY(td_checkpoint_step_folder(checkpoint, output, trainer->meta.best_step));
    if (*out_found || !has_adapter(checkpoint, "."))
        return TD_OK;
    TD_TRY(copy_adapter(trainer, checkpoint, "best_adapter"));
    *out_found = 1;
    return TD_OK;
}
