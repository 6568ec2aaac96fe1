// manifest.json: what a checkpoint is and which files belong to it. Untrusted when read.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/config.h"
#include "runtime/core/json.h"
#include "runtime/core/tensor.h"
#include "runtime/train/checkpoint_internal.h"

static const char format_name[] = "tandem checkpoint";
static const int64_t max_count = INT64_C(1) << 53; // what JSON numbers keep exactly

static const uint64_t max_other_bytes = UINT64_C(1) << 36; // of a file that holds no pages

enum {
    MAX_RANKS = 1 << 20,
    FILE_OVERHEAD = 1 << 20, // of a file with pages, beside them
    PAGE_OVERHEAD = 256,     // more for each of them
};

void td_manifest_fini(td_manifest *manifest) {
    cJSON_Delete(manifest->config);
    free(manifest->files);
    memset(manifest, 0, sizeof *manifest);
}

td_status td_manifest_add_file(td_manifest *manifest, const char *name, uint64_t bytes,
                               td_hash hash) {
    td_manifest_file *grown =
        realloc(manifest->files, ((size_t)manifest->n_files + 1) * sizeof *grown);
    if (!grown)
        return td_fail(TD_ERR_MEMORY, "no memory for a list of %lld checkpoint files",
                       (long long)manifest->n_files + 1);
    manifest->files = grown;
    td_manifest_file *file = &grown[manifest->n_files++];
    *file = (td_manifest_file){.bytes = bytes, .hash = hash};
    snprintf(file->name, sizeof file->name, "%s", name);
    return TD_OK;
}

static void add_number(cJSON *object, const char *key, int64_t value, int *ok) {
    *ok &= cJSON_AddNumberToObject(object, key, (double)value) != NULL;
}

static void add_hash(cJSON *object, const char *key, td_hash hash, int *ok) {
    char hex[TD_HASH_HEX_CHARS];
    td_hash_to_hex(hash, hex);
    *ok &= cJSON_AddStringToObject(object, key, hex) != NULL;
}

static cJSON *add_object(cJSON *object, const char *key, int *ok) {
    cJSON *child = cJSON_AddObjectToObject(object, key);
    *ok &= child != NULL;
    return child;
}

static void add_meta(cJSON *root, const td_checkpoint_meta *meta, int *ok) {
    add_number(root, "step", meta->step, ok);
    add_number(root, "epoch", meta->epoch, ok);
    add_number(root, "tokens_seen", meta->tokens_seen, ok);
    add_number(root, "seed", meta->seed, ok);
    if (!meta->has_best || !isfinite(meta->best_loss))
        return;
    cJSON *best = add_object(root, "best", ok);
    *ok &= cJSON_AddNumberToObject(best, "loss", meta->best_loss) != NULL;
    add_number(best, "step", meta->best_step, ok);
}

static void add_pages(cJSON *root, const td_manifest *manifest, int *ok) {
    add_number(root, "world_size", manifest->map.size, ok);
    cJSON *pages = add_object(root, "pages", ok);
    add_number(pages, "n_elements", manifest->map.n_elements, ok);
    add_number(pages, "page_elements", manifest->map.page_elements, ok);
    add_number(pages, "n_pages", manifest->map.n_pages, ok);
    add_number(pages, "state_bytes", (int64_t)manifest->state_bytes, ok);
    *ok &= cJSON_AddStringToObject(pages, "owner", "page modulo world_size") != NULL;
}

static void add_identity(cJSON *root, const td_checkpoint_identity *identity, int *ok) {
    cJSON *prints = add_object(root, "fingerprints", ok);
    add_hash(prints, "base_model", identity->base_model, ok);
    add_hash(prints, "data", identity->data, ok);
    add_hash(prints, "config", identity->config, ok);
    add_hash(prints, "layout", identity->layout, ok);
}

static void add_files(cJSON *root, const td_manifest *manifest, int *ok) {
    cJSON *list = cJSON_AddArrayToObject(root, "files");
    *ok &= list != NULL;
    for (int64_t i = 0; i < manifest->n_files; i++) {
        cJSON *item = cJSON_CreateObject();
        if (!item || !cJSON_AddItemToArray(list, item)) {
            cJSON_Delete(item);
            *ok = 0;
            return;
        }
        *ok &= cJSON_AddStringToObject(item, "name", manifest->files[i].name) != NULL;
        add_number(item, "bytes", (int64_t)manifest->files[i].bytes, ok);
        add_hash(item, "xxh3_128", manifest->files[i].hash, ok);
    }
}

static int add_config(cJSON *root, const cJSON *config) {
    cJSON *copy = config ? cJSON_Duplicate(config, 1) : cJSON_CreateObject();
    if (copy && cJSON_AddItemToObject(root, "config", copy))
        return 1;
    cJSON_Delete(copy);
    return 0;
}

// The checksum covers the values, not the white space: the tree printed in one line, without the
// checksum itself.
static td_status tree_checksum(const cJSON *tree, td_hash *out) {
    char *text = td_json_print(tree, 0);
    if (!text)
        return td_fail(TD_ERR_MEMORY, "no memory to print a checkpoint manifest");
    *out = td_hash_bytes(text, strlen(text));
    free(text);
    return TD_OK;
}

static td_status print_with_checksum(cJSON *root, char **out) {
    td_hash checksum;
    int ok = 1;
    TD_TRY(tree_checksum(root, &checksum));
    add_hash(root, "checksum", checksum, &ok);
    char *text = ok ? td_json_print(root, 1) : NULL;
    if (!text)
        return td_fail(TD_ERR_MEMORY, "no memory to print a checkpoint manifest");
    *out = text;
    return TD_OK;
}

td_status td_manifest_print(const td_manifest *manifest, char **out) {
    int ok = 1;
    cJSON *root = cJSON_CreateObject();
    ok &= cJSON_AddStringToObject(root, "format", format_name) != NULL;
    add_number(root, "format_version", TD_CHECKPOINT_FORMAT, &ok);
    add_meta(root, &manifest->meta, &ok);
    add_pages(root, manifest, &ok);
    ok &= cJSON_AddStringToObject(root, "incarnation", manifest->incarnation) != NULL;
    add_identity(root, &manifest->identity, &ok);
    add_files(root, manifest, &ok);
    ok &= add_config(root, manifest->config);
    td_status status = ok ? print_with_checksum(root, out)
                          : td_fail(TD_ERR_MEMORY, "no memory for a checkpoint manifest");
    cJSON_Delete(root);
    return status;
}

static td_status require_item(const char *where, const cJSON *object, const char *key,
                              int (*is_type)(const cJSON *), const cJSON **out) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!item || !is_type(item))
        return td_fail(TD_ERR_DATA, "%s: is damaged: \"%s\" is missing or of the wrong type", where,
                       key);
    *out = item;
    return TD_OK;
}

static td_status require_int(const char *where, const cJSON *object, const char *key, int64_t min,
                             int64_t max, int64_t *out) {
    const cJSON *item;
    TD_TRY(require_item(where, object, key, cJSON_IsNumber, &item));
    return td_json_int(where, object, key, min, max, out);
}

static td_status require_hash(const char *where, const cJSON *object, const char *key,
                              td_hash *out) {
    const cJSON *item = NULL;
    TD_TRY(require_item(where, object, key, cJSON_IsString, &item));
    if (td_hash_from_hex(item->valuestring, out) != TD_OK)
        return td_fail(TD_ERR_DATA, "%s: is damaged: \"%s\" is no checksum", where, key);
    return TD_OK;
}

static td_status check_checksum(const char *where, cJSON *root) {
    td_hash stated = {0}, found = {0};
    TD_TRY(require_hash(where, root, "checksum", &stated));
    cJSON_DeleteItemFromObjectCaseSensitive(root, "checksum");
    TD_TRY(tree_checksum(root, &found));
    if (!td_hash_equal(stated, found))
        return td_fail(TD_ERR_DATA, "%s: is damaged: its checksum does not match", where);
    return TD_OK;
}

// Damage comes first: what a damaged manifest says about its version means nothing.
static td_status check_format(const char *where, cJSON *root) {
    const cJSON *format = NULL;
    int64_t version = 0;
    TD_TRY(require_item(where, root, "format", cJSON_IsString, &format));
    if (strcmp(format->valuestring, format_name) != 0)
        return td_fail(TD_ERR_DATA, "%s: is not the manifest of a checkpoint", where);
    TD_TRY(check_checksum(where, root));
    TD_TRY(require_int(where, root, "format_version", 0, max_count, &version));
    if (version != TD_CHECKPOINT_FORMAT)
        return td_fail(
            TD_ERR_USAGE,
            "%s: has format version %lld; this program reads version %d (use the program "
            "that wrote it, or another output_dir)",
            where, (long long)version, TD_CHECKPOINT_FORMAT);
    return TD_OK;
}

static td_status parse_meta(const char *where, const cJSON *root, td_checkpoint_meta *out) {
    TD_TRY(require_int(where, root, "step", 0, max_count, &out->step));
    TD_TRY(require_int(where, root, "epoch", 0, max_count, &out->epoch));
    TD_TRY(require_int(where, root, "tokens_seen", 0, max_count, &out->tokens_seen));
    TD_TRY(require_int(where, root, "seed", 0, max_count, &out->seed));
    const cJSON *best = cJSON_GetObjectItemCaseSensitive(root, "best"), *loss;
    if (!best)
        return TD_OK;
    TD_TRY(require_item(where, best, "loss", cJSON_IsNumber, &loss));
    TD_TRY(td_json_double(where, best, "loss", &out->best_loss));
    TD_TRY(require_int(where, best, "step", 0, max_count, &out->best_step));
    out->has_best = 1;
    return TD_OK;
}

static td_status parse_pages(const char *where, const cJSON *root, td_manifest *out) {
    const cJSON *pages = NULL;
    int64_t size = 0, n_elements = 0, page_elements = 0, n_pages = 0, state_bytes = 0;
    TD_TRY(require_int(where, root, "world_size", 1, MAX_RANKS, &size));
    TD_TRY(require_item(where, root, "pages", cJSON_IsObject, &pages));
    TD_TRY(require_int(where, pages, "n_elements", 1, max_count, &n_elements));
    TD_TRY(require_int(where, pages, "page_elements", 1, INT64_C(1) << 30, &page_elements));
    TD_TRY(require_int(where, pages, "n_pages", 1, max_count, &n_pages));
    TD_TRY(require_int(where, pages, "state_bytes", 1, INT64_C(1) << 40, &state_bytes));
    TD_TRY(td_page_map_init(&out->map, n_elements, page_elements, (int)size));
    out->state_bytes = (size_t)state_bytes;
    if (n_pages != out->map.n_pages)
        return td_fail(TD_ERR_DATA, "%s: is damaged: %lld pages do not fit its page size", where,
                       (long long)n_pages);
    return TD_OK;
}

static td_status parse_identity(const char *where, const cJSON *root, td_checkpoint_identity *out) {
    const cJSON *prints = NULL;
    TD_TRY(require_item(where, root, "fingerprints", cJSON_IsObject, &prints));
    TD_TRY(require_hash(where, prints, "base_model", &out->base_model));
    TD_TRY(require_hash(where, prints, "data", &out->data));
    TD_TRY(require_hash(where, prints, "config", &out->config));
    return require_hash(where, prints, "layout", &out->layout);
}

// A name leads to a file in the folder itself, nowhere else.
static td_status parse_file(const char *where, const cJSON *item, td_manifest *out) {
    const cJSON *name = NULL;
    int64_t bytes = 0;
    td_hash hash = {0};
    TD_TRY(require_item(where, item, "name", cJSON_IsString, &name));
    if (!td_path_is_plain_name(name->valuestring) ||
        strlen(name->valuestring) >= TD_CHECKPOINT_NAME_CHARS)
        return td_fail(TD_ERR_DATA, "%s: file name \"%.80s\" is not allowed", where,
                       name->valuestring);
    TD_TRY(require_int(where, item, "bytes", 0, max_count, &bytes));
    TD_TRY(require_hash(where, item, "xxh3_128", &hash));
    return td_manifest_add_file(out, name->valuestring, (uint64_t)bytes, hash);
}

static td_status parse_files(const char *where, const cJSON *root, td_manifest *out) {
    const cJSON *list = NULL, *item;
    TD_TRY(require_item(where, root, "files", cJSON_IsArray, &list));
    cJSON_ArrayForEach(item, list) {
        if (out->n_files >= TD_CHECKPOINT_MAX_FILES)
            return td_fail(TD_ERR_DATA, "%s: lists more than %d files", where,
                           TD_CHECKPOINT_MAX_FILES);
        TD_TRY(parse_file(where, item, out));
    }
    return TD_OK;
}

// The rank whose pages a file holds by its name, or -1.
static int shard_rank(const char *name, int size) {
    static const char prefix[] = "pages-";
    char expected[TD_CHECKPOINT_NAME_CHARS];
    if (strncmp(name, prefix, strlen(prefix)) != 0)
        return -1;
    long rank = strtol(name + strlen(prefix), NULL, 10);
    if (rank < 0 || rank >= size)
        return -1;
    td_shard_name(expected, (int)rank, size);
    return strcmp(name, expected) == 0 ? (int)rank : -1;
}

static td_status check_listed(const char *where, const td_page_map *map,
                              const unsigned char *is_listed) {
    for (int rank = 0; rank < map->size; rank++) {
        char name[TD_CHECKPOINT_NAME_CHARS];
        if (is_listed[rank] || td_page_map_owned_count(map, rank) == 0)
            continue;
        td_shard_name(name, rank, map->size);
        return td_fail(TD_ERR_DATA, "%s: is damaged: it does not list %s", where, name);
    }
    return TD_OK;
}

// Files are read whole, so their size has to be one that a checkpoint's can have.
static td_status check_size(const char *where, const td_manifest *manifest,
                            const td_manifest_file *file, int rank) {
    size_t page = td_mul_bytes((size_t)td_page_width(&manifest->map), sizeof(float));
    uint64_t most = max_other_bytes;
    if (rank >= 0)
        most = td_mul_bytes((size_t)td_page_map_owned_count(&manifest->map, rank),
                            page + manifest->state_bytes + PAGE_OVERHEAD);
    if (file->bytes <= most || file->bytes - most <= FILE_OVERHEAD)
        return TD_OK;
    return td_fail(TD_ERR_DATA, "%s: is damaged: %s would have %llu bytes, at most %llu fit", where,
                   file->name, (unsigned long long)file->bytes, (unsigned long long)most);
}

// In one pass over the files: a manifest may name a million of them, and as many ranks.
static td_status require_shards(const char *where, const td_manifest *manifest) {
    unsigned char *is_listed = calloc((size_t)manifest->map.size, 1);
    if (!is_listed)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its list of files", where);
    td_status status = TD_OK;
    for (int64_t i = 0; i < manifest->n_files && status == TD_OK; i++) {
        int rank = shard_rank(manifest->files[i].name, manifest->map.size);
        if (rank >= 0)
            is_listed[rank] = 1;
        status = check_size(where, manifest, &manifest->files[i], rank);
    }
    if (status == TD_OK)
        status = check_listed(where, &manifest->map, is_listed);
    free(is_listed);
    return status;
}

static td_status parse_tree(const char *where, cJSON *root, td_manifest *out) {
    const cJSON *incarnation = NULL, *config = NULL;
    TD_TRY(check_format(where, root));
    TD_TRY(parse_meta(where, root, &out->meta));
    TD_TRY(parse_pages(where, root, out));
    TD_TRY(parse_identity(where, root, &out->identity));
    TD_TRY(require_item(where, root, "incarnation", cJSON_IsString, &incarnation));
    snprintf(out->incarnation, sizeof out->incarnation, "%s", incarnation->valuestring);
    TD_TRY(parse_files(where, root, out));
    TD_TRY(require_item(where, root, "config", cJSON_IsObject, &config));
    out->config = cJSON_Duplicate(config, 1);
    if (!out->config)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for it", where);
    return require_shards(where, out);
}

td_status td_manifest_parse(const char *where, const char *text, size_t bytes, td_manifest *out) {
    cJSON *root = NULL;
    TD_TRY(td_json_parse(where, text, bytes, &root));
    td_status status = parse_tree(where, root, out);
    cJSON_Delete(root);
    return status;
}

static td_status fail_differs(const char *where, const char *what) {
    return td_fail(TD_ERR_DATA,
                   "%s: cannot be resumed: %s (use another output_dir to start a new run)", where,
                   what);
}

static td_status fail_config(const char *where, const cJSON *then, const cJSON *now) {
    char what[512] = "its config is of another version of this program";
    const char *key = td_config_first_difference(then, now);
    if (key) {
        char *old_value = td_json_print(cJSON_GetObjectItemCaseSensitive(then, key), 0);
        char *new_value = td_json_print(cJSON_GetObjectItemCaseSensitive(now, key), 0);
        snprintf(what, sizeof what, "%s was %.150s and is now %.150s", key,
                 old_value ? old_value : "not set", new_value ? new_value : "not set");
        free(old_value);
        free(new_value);
    }
    return fail_differs(where, what);
}

td_status td_manifest_require_identity(const char *where, const td_manifest *manifest,
                                       const td_checkpoint_options *options) {
    const td_checkpoint_identity *then = &manifest->identity, *now = &options->identity;
    if (!td_hash_equal(then->config, now->config))
        return fail_config(where, manifest->config, options->config);
    if (!td_hash_equal(then->base_model, now->base_model))
        return fail_differs(where, "it was made with another base model");
    if (!td_hash_equal(then->data, now->data))
        return fail_differs(where, "it was made with other training data");
    if (!td_hash_equal(then->layout, now->layout))
        return fail_differs(where, "it trains other modules or shapes");
    if (manifest->map.n_elements != options->map.n_elements ||
        manifest->map.page_elements != options->map.page_elements ||
        manifest->state_bytes != options->state_bytes)
        return fail_differs(where, "its pages have another size");
    return TD_OK;
}

static td_status compare_file(int opened, const char *path, uint64_t bytes,
                              const td_manifest_file *file) {
    td_hash hash = {0};
    if (bytes != file->bytes)
        return td_fail(TD_ERR_DATA, "%s: is damaged: has %llu bytes, expected %llu", path,
                       (unsigned long long)bytes, (unsigned long long)file->bytes);
    TD_TRY(td_hash_descriptor(opened, path, bytes, &hash));
    if (!td_hash_equal(hash, file->hash))
        return td_fail(TD_ERR_DATA, "%s: is damaged: its checksum does not match", path);
    return TD_OK;
}

td_status td_manifest_open_file(const char *folder, const td_manifest_file *file, int *out_file) {
    char path[TD_PATH_MAX];
    uint64_t bytes = 0;
    int opened;
    TD_TRY(td_path_join(path, folder, file->name));
    TD_TRY(td_file_open(path, 0, &opened, &bytes));
    td_status status = compare_file(opened, path, bytes, file);
    if (status == TD_OK)
        *out_file = opened;
    else
        close(opened);
    return status;
}

td_status td_manifest_verify_file(const char *folder, const td_manifest_file *file) {
    int opened;
    TD_TRY(td_manifest_open_file(folder, file, &opened));
    close(opened);
    return TD_OK;
}

const td_manifest_file *td_manifest_find_file(const td_manifest *manifest, const char *name) {
    for (int64_t i = 0; i < manifest->n_files; i++)
        if (strcmp(manifest->files[i].name, name) == 0)
            return &manifest->files[i];
    return NULL;
}
