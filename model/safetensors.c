#include "model/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/safetensors_internal.h"
#include "runtime/core/files.h"

// Since Linux 5.14; older kernels refuse it and map page by page.
enum { ADVICE_POPULATE_READ = 22 };

static const size_t max_index_bytes = TD_SAFETENSORS_MAX_HEADER_BYTES;

typedef struct shard {
    char *path;
    td_mapping mapping;
    td_safetensors_entries entries;
} shard;

// One tensor that can be asked for; names belong to the shards.
typedef struct listed {
    const td_safetensors_entry *entry;
    const shard *home;
} listed;

struct td_safetensors {
    char *path; // the file, or the index
    shard *shards;
    int n_shards;
    listed *tensors; // sorted by name
    int64_t n_tensors;
    listed *others; // dtypes without a view
    int64_t n_others;
};

static td_status open_shard(const char *path, shard *out) {
    out->path = strdup(path);
    if (!out->path)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to open it", path);
    TD_TRY(td_file_map(path, &out->mapping));
    // Weights are read once, front to back.
    madvise((void *)(uintptr_t)out->mapping.data, out->mapping.bytes, MADV_SEQUENTIAL);
    return td_safetensors_parse(path, out->mapping.data, out->mapping.bytes, &out->entries);
}

static td_status allocate(td_safetensors *files, int n_shards) {
    files->shards = calloc((size_t)n_shards, sizeof *files->shards);
    if (!files->shards)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to open it", files->path);
    files->n_shards = n_shards;
    return TD_OK;
}

static td_status reserve_list(td_safetensors *files, int64_t count) {
    files->tensors = calloc((size_t)count + 1, sizeof *files->tensors);
    files->others = calloc((size_t)count + 1, sizeof *files->others);
    if (!files->tensors || !files->others)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its list of tensors", files->path);
    return TD_OK;
}

static void add_to_list(td_safetensors *files, const td_safetensors_entry *entry,
                        const shard *home) {
    listed tensor = {.entry = entry, .home = home};
    if (entry->is_viewable)
        files->tensors[files->n_tensors++] = tensor;
    else
        files->others[files->n_others++] = tensor;
}

// From here on messages name this file rather than its folder.
static td_status set_path(td_safetensors *files, const char *path) {
    char *copy = strdup(path);
    if (!copy)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to open it", path);
    free(files->path);
    files->path = copy;
    return TD_OK;
}

static td_status open_single(td_safetensors *files, const char *path) {
    TD_TRY(set_path(files, path));
    TD_TRY(allocate(files, 1));
    TD_TRY(open_shard(path, &files->shards[0]));
    const td_safetensors_entries *entries = &files->shards[0].entries;
    TD_TRY(reserve_list(files, entries->count));
    for (int64_t i = 0; i < entries->count; i++)
        add_to_list(files, &entries->items[i], &files->shards[0]);
    return TD_OK;
}

static td_status open_indexed_shards(td_safetensors *files, const char *folder,
                                     const td_safetensors_index *index) {
    char path[TD_PATH_MAX];
    TD_TRY(allocate(files, index->n_files));
    for (int i = 0; i < index->n_files; i++) {
        TD_TRY(td_path_join(path, folder, index->files[i]));
        if (!td_path_exists(path))
            return td_fail(TD_ERR_DATA, "%s: names the file \"%s\", which is not there",
                           files->path, index->files[i]);
        TD_TRY(open_shard(path, &files->shards[i]));
    }
    return TD_OK;
}

// The index decides where a tensor is read from. What a file holds besides is not seen.
static td_status list_indexed(td_safetensors *files, const td_safetensors_index *index) {
    TD_TRY(reserve_list(files, index->count));
    for (int64_t i = 0; i < index->count; i++) {
        const shard *home = &files->shards[index->items[i].file];
        const td_safetensors_entry *entry =
            td_safetensors_entries_find(&home->entries, index->items[i].tensor);
        if (!entry)
            return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" is not in %s", files->path,
                           index->items[i].tensor, home->path);
        add_to_list(files, entry, home);
    }
    return TD_OK;
}

static td_status open_indexed(td_safetensors *files, const char *folder, const char *index_path) {
    char *text;
    size_t bytes;
    td_safetensors_index index;
    TD_TRY(set_path(files, index_path));
    TD_TRY(td_file_read(index_path, max_index_bytes, &text, &bytes));
    td_status status = td_safetensors_index_parse(index_path, text, bytes, &index);
    free(text);
    if (status == TD_OK)
        status = open_indexed_shards(files, folder, &index);
    if (status == TD_OK)
        status = list_indexed(files, &index);
    td_safetensors_index_fini(&index);
    return status;
}

static td_status fail_no_weights(const char *folder) {
    char path[TD_PATH_MAX];
    TD_TRY(td_path_join(path, folder, "pytorch_model.bin"));
    int has_pickle = td_path_exists(path);
    TD_TRY(td_path_join(path, folder, "pytorch_model.bin.index.json"));
    if (has_pickle || td_path_exists(path))
        return td_fail(TD_ERR_DATA,
                       "%s: has weights in PyTorch's own format only; save the model once with "
                       "safe_serialization to get model.safetensors",
                       folder);
    return td_fail(TD_ERR_DATA,
                   "%s: has neither model.safetensors nor model.safetensors.index.json", folder);
}

// As transformers: the single file goes before the index.
static td_status open_folder(td_safetensors *files, const char *folder) {
    char path[TD_PATH_MAX];
    TD_TRY(td_path_join(path, folder, "model.safetensors"));
    if (td_path_exists(path))
        return open_single(files, path);
    TD_TRY(td_path_join(path, folder, "model.safetensors.index.json"));
    if (!td_path_exists(path))
        return fail_no_weights(folder);
    return open_indexed(files, folder, path);
}

td_status td_safetensors_open(const char *path, td_safetensors **out) {
    td_safetensors *files = calloc(1, sizeof *files);
    if (!files)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to open it", path);
    td_status status =
        td_path_is_folder(path) ? open_folder(files, path) : open_single(files, path);
    if (status != TD_OK) {
        td_safetensors_close(files);
        return status;
    }
    *out = files;
    return TD_OK;
}

void td_safetensors_close(td_safetensors *files) {
    if (!files)
        return;
    for (int i = 0; i < files->n_shards; i++) {
        td_safetensors_entries_fini(&files->shards[i].entries);
        td_file_unmap(&files->shards[i].mapping);
        free(files->shards[i].path);
    }
    free(files->shards);
    free(files->tensors);
    free(files->others);
    free(files->path);
    free(files);
}

int64_t td_safetensors_count(const td_safetensors *files) {
    return files->n_tensors;
}

const char *td_safetensors_name(const td_safetensors *files, int64_t index) {
    return files->tensors[index].entry->name;
}

td_tensor td_safetensors_view(const td_safetensors *files, int64_t index) {
    return files->tensors[index].entry->tensor;
}

static int by_name(const void *key, const void *element) {
    return strcmp(key, ((const listed *)element)->entry->name);
}

static const listed *find_listed(const listed *list, int64_t count, const char *name) {
    return count == 0 ? NULL : bsearch(name, list, (size_t)count, sizeof *list, by_name);
}

int td_safetensors_find(const td_safetensors *files, const char *name, td_tensor *out) {
    const listed *found = find_listed(files->tensors, files->n_tensors, name);
    if (found)
        *out = found->entry->tensor;
    return found != NULL;
}

// "[4, 64]"
static void format_shape(int n_dims, const int64_t *shape, char *out, size_t room) {
    size_t used = (size_t)snprintf(out, room, "[");
    for (int i = 0; i < n_dims && used < room; i++)
        used +=
            (size_t)snprintf(out + used, room - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (used < room)
        snprintf(out + used, room - used, "]");
}

static td_status fail_shape(const listed *found, int n_dims, const int64_t *shape) {
    char expected[256], actual[256];
    const td_tensor *tensor = &found->entry->tensor;
    format_shape(n_dims, shape, expected, sizeof expected);
    format_shape(tensor->n_dims, tensor->shape, actual, sizeof actual);
    return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" must have the shape %s, found %s",
                   found->home->path, found->entry->name, expected, actual);
}

td_status td_safetensors_require(const td_safetensors *files, const char *name, int n_dims,
                                 const int64_t *shape, td_tensor *out) {
    const listed *found = find_listed(files->tensors, files->n_tensors, name);
    if (!found)
        found = find_listed(files->others, files->n_others, name);
    if (!found)
        return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" is missing", files->path, name);
    const td_tensor *tensor = &found->entry->tensor;
    if (!found->entry->is_viewable ||
        (tensor->dtype != TD_F32 && tensor->dtype != TD_F16 && tensor->dtype != TD_BF16))
        return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" must be F32, F16 or BF16, found %s",
                       found->home->path, name, found->entry->dtype);
    int is_same = tensor->n_dims == n_dims;
    for (int i = 0; is_same && i < n_dims; i++)
        is_same = tensor->shape[i] == shape[i];
    if (!is_same)
        return fail_shape(found, n_dims, shape);
    *out = *tensor;
    return TD_OK;
}

static const shard *shard_of(const td_safetensors *files, const unsigned char *data) {
    for (int i = 0; i < files->n_shards; i++) {
        const td_mapping *mapping = &files->shards[i].mapping;
        if (data >= mapping->data && data < mapping->data + mapping->bytes)
            return &files->shards[i];
    }
    return NULL;
}

// The length of the list of tensors was checked when the file was opened.
static td_status identify_shard(const shard *home, td_hasher *hasher) {
    struct stat info;
    uint64_t header_bytes;
    if (stat(home->path, &info) != 0)
        return td_fail(TD_ERR_DATA, "%s: cannot examine: %s", home->path, strerror(errno));
    const int64_t numbers[] = {info.st_size,
                               (int64_t)info.st_ino,
                               info.st_mtim.tv_sec,
                               info.st_mtim.tv_nsec,
                               info.st_ctim.tv_sec,
                               info.st_ctim.tv_nsec,
                               (int64_t)home->mapping.bytes};
    memcpy(&header_bytes, home->mapping.data, sizeof header_bytes);
    const char *slash = strrchr(home->path, '/');
    td_hasher_add_string(hasher, slash ? slash + 1 : home->path);
    td_hasher_add(hasher, numbers, sizeof numbers);
    td_hasher_add(hasher, home->mapping.data, sizeof header_bytes + (size_t)header_bytes);
    return TD_OK;
}

td_status td_safetensors_identify(const td_safetensors *files, td_hasher *hasher) {
    for (int i = 0; i < files->n_shards; i++)
        TD_TRY(identify_shard(&files->shards[i], hasher));
    return TD_OK;
}

void td_safetensors_fetch(const void *data, size_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)data / page * page;
    (void)madvise((void *)begin, (uintptr_t)data + bytes - begin, ADVICE_POPULATE_READ);
}

// Whole pages only; a page that is shared with a neighbour comes back from the file when it is next
// read.
void td_safetensors_forget(const td_safetensors *files, const td_tensor *view) {
    const unsigned char *data = view->data;
    const shard *home = shard_of(files, data);
    int64_t elements;
    if (!home || td_tensor_elements(view, &elements) != TD_OK)
        return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t begin = (size_t)(data - home->mapping.data) / page * page;
    size_t end =
        (size_t)(data - home->mapping.data) + (size_t)elements * td_dtype_bytes(view->dtype);
    if (end > home->mapping.bytes)
        end = home->mapping.bytes;
    madvise((void *)(uintptr_t)(home->mapping.data + begin), end - begin, MADV_DONTNEED);
}
