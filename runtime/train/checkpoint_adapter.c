#include "runtime/train/checkpoint_adapter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/json.h"
#include "runtime/core/tensor.h"
#include "runtime/train/session.h"

typedef struct rebuilder {
    const char *folder;
    const td_manifest *manifest;
    td_config config; // of the run, as far as it lays out the adapter
    td_model_config model;
    td_adapter_info start; // the adapter that the run started from
    int has_start;
    td_lora_options options;
    td_lora lora;
    float *params; // (n_elements)
    float *page;   // (td_page_width)
} rebuilder;

static int writers(const td_manifest *manifest) {
    int64_t n_pages = manifest->map.n_pages;
    return manifest->map.size < n_pages ? manifest->map.size : (int)n_pages;
}

td_status td_checkpoint_verify_pages(const char *folder, const td_manifest *manifest) {
    for (int rank = 0; rank < writers(manifest); rank++) {
        char name[TD_CHECKPOINT_NAME_CHARS];
        td_shard_name(name, rank, manifest->map.size);
        const td_manifest_file *file = td_manifest_find_file(manifest, name);
        if (!file)
            return td_fail(TD_ERR_DATA, "%s: the manifest does not name %s", folder, name);
        TD_TRY(td_manifest_verify_file(folder, file));
    }
    return TD_OK;
}

// Of the run's config what decides about the layout.
static td_status read_config(rebuilder *self) {
    static const char *const keys[] = {
        "model_name_or_path", "adapter_name_or_path", "lora_r",
        "lora_alpha",         "lora_dropout",         "target_modules",
        "use_rslora",         "rank_pattern",         "alpha_pattern",
    };
    TD_TRY(td_config_init(&self->config));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(self->manifest->config, keys[i]);
        if (!item || cJSON_IsNull(item))
            continue;
        char *value = td_json_print(item, 0);
        size_t room = value ? strlen(keys[i]) + strlen(value) + 2 : 0;
        char *assignment = malloc(room + 1);
        td_status status =
            value && assignment ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for the run's config");
        if (status == TD_OK) {
            snprintf(assignment, room, "%s=%s", keys[i], value);
            status = td_config_set(&self->config, assignment);
        }
        free(assignment);
        free(value);
        TD_TRY(status);
    }
    return TD_OK;
}

// A run that started from an adapter has that one's layout. It may be gone; what the checkpoint
// has of its own config says the same.
static td_status read_start(rebuilder *self) {
    const char *start = self->config.adapter_name_or_path;
    const td_manifest_file *own = td_manifest_find_file(self->manifest, "adapter_config.json");
    if (!start)
        return TD_OK;
    self->has_start = 1;
    if (td_path_is_folder(start))
        return td_adapter_info_read(start, &self->start);
    if (!own || td_manifest_verify_file(self->folder, own) != TD_OK) {
        td_error_clear();
        return td_fail(TD_ERR_DATA,
                       "%s: the run started from the adapter %s, which is gone and without which "
                       "the layout is not known",
                       self->folder, start);
    }
    return td_adapter_info_read(self->folder, &self->start);
}

static td_status lay_out(rebuilder *self, const char *model) {
    const char *base = model ? model : self->config.model_name_or_path;
    if (!base || !td_path_is_folder(base))
        return td_fail(TD_ERR_DATA,
                       "%s: the adapter is rebuilt with the shapes of its base model, and there is "
                       "no folder %s: say where it is with --model FOLDER",
                       self->folder, base ? base : "named");
    TD_TRY(td_model_config_read(base, &self->model));
    TD_TRY(read_start(self));
    self->options = td_session_lora_options(&self->config, self->has_start ? &self->start : NULL);
    TD_TRY(td_lora_init(&self->lora, &self->model, &self->options));
    if (self->lora.n_parameters != self->manifest->map.n_elements ||
        !td_hash_equal(td_lora_fingerprint(&self->lora), self->manifest->identity.layout))
        return td_fail(TD_ERR_DATA,
                       "%s: %s is not the base model of this checkpoint: the adapter would have "
                       "other modules or shapes",
                       self->folder, base);
    return TD_OK;
}

static td_status read_shard(rebuilder *self, int rank) {
    const td_page_map *map = &self->manifest->map;
    td_shard_reader *reader;
    td_shard expected = {.map = *map,
                         .rank = rank,
                         .step = self->manifest->meta.step,
                         .state_bytes = self->manifest->state_bytes};
    td_status status = TD_OK;
    TD_TRY(td_shard_open_listed(self->folder, self->manifest, &expected, &reader));
    for (int64_t page = rank; page < map->n_pages && status == TD_OK; page += map->size) {
        td_page_span span = td_page_map_span(map, page);
        status = td_shard_read_page(reader, page / map->size, self->page, NULL);
        if (status == TD_OK)
            memcpy(self->params + span.begin, self->page, (size_t)span.count * sizeof(float));
    }
    td_shard_close(reader);
    return status;
}

static td_status read_pages(rebuilder *self) {
    const td_page_map *map = &self->manifest->map;
    self->params = malloc(td_mul_bytes((size_t)map->n_elements, sizeof(float)) + 1);
    self->page = malloc(td_mul_bytes((size_t)td_page_width(map), sizeof(float)) + 1);
    if (!self->params || !self->page)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to read it", self->folder);
    for (int rank = 0; rank < writers(self->manifest); rank++)
        TD_TRY(read_shard(self, rank));
    return TD_OK;
}

static void close_rebuilder(rebuilder *self) {
    free(self->page);
    free(self->params);
    td_lora_fini(&self->lora);
    if (self->has_start)
        td_adapter_info_fini(&self->start);
    td_config_fini(&self->config);
}

td_status td_checkpoint_rebuild_adapter(const char *folder, const td_manifest *manifest,
                                        const char *model, const char *output) {
    rebuilder self = {.folder = folder, .manifest = manifest};
    td_status status = td_checkpoint_verify_pages(folder, manifest);
    if (status == TD_OK)
        status = read_config(&self);
    if (status == TD_OK)
        status = lay_out(&self, model);
    if (status == TD_OK)
        status = read_pages(&self);
    if (status == TD_OK)
        status = td_adapter_write(output, &self.lora, &self.options, self.config.model_name_or_path,
                                  self.params);
    close_rebuilder(&self);
    return status;
}
