#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/safetensors_internal.h"
#include "runtime/core/json.h"

enum { LENGTH_BYTES = 8, MAX_SEPARATORS = 1 << 23 };

// Every dtype of the format that takes whole bytes. Those without a td_dtype are checked like the
// others, so that a file may hold them beside what is used, but give no view.
static const struct {
    const char *name;
    size_t bytes;
    int is_viewable;
    td_dtype dtype;
} dtypes[] = {
    {"F32", 4, 1, TD_F32}, {"F16", 2, 1, TD_F16},    {"BF16", 2, 1, TD_BF16},
    {"U8", 1, 1, TD_U8},   {"I8", 1, 1, TD_I8},      {"I32", 4, 1, TD_I32},
    {"I64", 8, 1, TD_I64}, {"BOOL", 1, 0, 0},        {"F8_E5M2", 1, 0, 0},
    {"F8_E4M3", 1, 0, 0},  {"F8_E8M0", 1, 0, 0},     {"I16", 2, 0, 0},
    {"U16", 2, 0, 0},      {"U32", 4, 0, 0},         {"F64", 8, 0, 0},
    {"U64", 8, 0, 0},      {"F8_E4M3FNUZ", 1, 0, 0}, {"F8_E5M2FNUZ", 1, 0, 0},
    {"C64", 8, 0, 0},
};

typedef struct source {
    const char *where;
    const unsigned char *data; // after the header
    size_t data_bytes;
} source;

td_status td_safetensors_check_plausible(const char *where, const char *text, size_t bytes) {
    size_t separators = 0;
    for (size_t i = 0; i < bytes; i++)
        separators += text[i] == ',' || text[i] == '[' || text[i] == '{';
    if (separators > MAX_SEPARATORS)
        return td_fail(TD_ERR_DATA, "%s: the JSON has more than %d values", where, MAX_SEPARATORS);
    return TD_OK;
}

static int read_size(const cJSON *item, uint64_t *out) {
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) || item->valuedouble > 0x1p53 ||
        item->valuedouble != floor(item->valuedouble))
        return 0;
    *out = (uint64_t)item->valuedouble;
    return 1;
}

static td_status read_dtype(const source *file, const char *name, const cJSON *item,
                            td_safetensors_entry *entry) {
    if (!cJSON_IsString(item))
        return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" lacks \"dtype\"", file->where, name);
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(dtypes[i].name, item->valuestring) != 0)
            continue;
        entry->dtype = dtypes[i].name;
        entry->is_viewable = dtypes[i].is_viewable;
        entry->tensor.dtype = dtypes[i].dtype;
        entry->item_bytes = dtypes[i].bytes;
        return TD_OK;
    }
    return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" has the unknown dtype \"%.40s\"", file->where,
                   name, item->valuestring);
}

static td_status read_shape(const source *file, const char *name, const cJSON *item,
                            td_tensor *tensor) {
    if (!cJSON_IsArray(item))
        return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" lacks \"shape\"", file->where, name);
    for (item = item->child; item; item = item->next) {
        uint64_t extent;
        if (tensor->n_dims == TD_MAX_DIMS)
            return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" has more than %d dimensions",
                           file->where, name, TD_MAX_DIMS);
        if (!read_size(item, &extent))
            return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" has a malformed \"shape\"", file->where,
                           name);
        tensor->shape[tensor->n_dims++] = (int64_t)extent;
    }
    return TD_OK;
}

static td_status read_offsets(const source *file, const char *name, const cJSON *item,
                              td_safetensors_entry *entry) {
    uint64_t begin, end;
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2 || !read_size(item->child, &begin) ||
        !read_size(item->child->next, &end) || begin > end)
        return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" has malformed \"data_offsets\"", file->where,
                       name);
    if (end > file->data_bytes)
        return td_fail(TD_ERR_DATA,
                       "%s: tensor \"%s\" ends at byte %llu of the data, but the file holds %zu; "
                       "it is truncated or damaged",
                       file->where, name, (unsigned long long)end, file->data_bytes);
    entry->begin = (size_t)begin;
    entry->end = (size_t)end;
    return TD_OK;
}

static td_status check_size(const source *file, const char *name,
                            const td_safetensors_entry *entry) {
    uint64_t bytes = entry->item_bytes;
    for (int i = 0; i < entry->tensor.n_dims; i++)
        if (__builtin_mul_overflow(bytes, (uint64_t)entry->tensor.shape[i], &bytes))
            return td_fail(TD_ERR_DATA, "%s: the shape of tensor \"%s\" overflows", file->where,
                           name);
    if (bytes != entry->end - entry->begin)
        return td_fail(TD_ERR_DATA,
                       "%s: tensor \"%s\" takes %llu bytes by its shape and dtype, but its "
                       "offsets span %zu",
                       file->where, name, (unsigned long long)bytes, entry->end - entry->begin);
    return TD_OK;
}

// The three values of a tensor. A key that appears twice leaves it open which one counts.
static td_status find_fields(const source *file, const cJSON *item, const cJSON *fields[3]) {
    static const char *const keys[3] = {"dtype", "shape", "data_offsets"};
    if (!cJSON_IsObject(item))
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be an object with dtype, shape, data_offsets",
                       file->where, item->string);
    for (const cJSON *field = item->child; field; field = field->next)
        for (int i = 0; i < 3; i++) {
            if (strcmp(field->string, keys[i]) != 0)
                continue;
            if (fields[i])
                return td_fail(TD_ERR_DATA, "%s: tensor \"%s\" has \"%s\" twice", file->where,
                               item->string, keys[i]);
            fields[i] = field;
        }
    return TD_OK;
}

static td_status read_entry(const source *file, const cJSON *item, td_safetensors_entry *entry) {
    const cJSON *fields[3] = {NULL, NULL, NULL};
    TD_TRY(find_fields(file, item, fields));
    TD_TRY(read_dtype(file, item->string, fields[0], entry));
    TD_TRY(read_shape(file, item->string, fields[1], &entry->tensor));
    TD_TRY(read_offsets(file, item->string, fields[2], entry));
    TD_TRY(check_size(file, item->string, entry));
    // A mapped file is read-only; td_tensor has one pointer for both.
    entry->tensor.data = (void *)(uintptr_t)(file->data + entry->begin);
    entry->name = strdup(item->string);
    if (!entry->name)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its list of tensors", file->where);
    return TD_OK;
}

static td_status check_metadata(const source *file, const cJSON *item) {
    if (!cJSON_IsObject(item) && !cJSON_IsNull(item))
        return td_fail(TD_ERR_DATA, "%s: \"__metadata__\" must be an object", file->where);
    for (item = item->child; item; item = item->next)
        if (!cJSON_IsString(item))
            return td_fail(TD_ERR_DATA, "%s: \"__metadata__\" must hold strings only", file->where);
    return TD_OK;
}

static int is_metadata(const cJSON *item) {
    return strcmp(item->string, "__metadata__") == 0;
}

static td_status read_entries(const source *file, const cJSON *root, td_safetensors_entries *out) {
    int64_t room = 0;
    int n_metadata = 0;
    for (const cJSON *item = root->child; item; item = item->next)
        room++;
    out->items = calloc((size_t)room + 1, sizeof *out->items);
    if (!out->items)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its list of tensors", file->where);
    for (const cJSON *item = root->child; item; item = item->next) {
        if (!is_metadata(item))
            TD_TRY(read_entry(file, item, &out->items[out->count++]));
        else if (n_metadata++ > 0)
            return td_fail(TD_ERR_DATA, "%s: has \"__metadata__\" twice", file->where);
        else
            TD_TRY(check_metadata(file, item));
    }
    return TD_OK;
}

static int by_offset(const void *a, const void *b) {
    const td_safetensors_entry *left = a, *right = b;
    if (left->begin != right->begin)
        return left->begin < right->begin ? -1 : 1;
    return (left->end > right->end) - (left->end < right->end);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const td_safetensors_entry *)a)->name, ((const td_safetensors_entry *)b)->name);
}

// Tensors fill the data without a gap, without an overlap and to its end.
static td_status check_cover(const source *file, td_safetensors_entries *entries) {
    size_t end = 0;
    qsort(entries->items, (size_t)entries->count, sizeof *entries->items, by_offset);
    for (int64_t i = 0; i < entries->count; i++) {
        const td_safetensors_entry *entry = &entries->items[i];
        if (entry->begin < end)
            return td_fail(TD_ERR_DATA, "%s: tensors \"%s\" and \"%s\" overlap", file->where,
                           entries->items[i - 1].name, entry->name);
        if (entry->begin > end)
            return td_fail(TD_ERR_DATA, "%s: there is a gap of %zu bytes before tensor \"%s\"",
                           file->where, entry->begin - end, entry->name);
        end = entry->end;
    }
    if (end != file->data_bytes)
        return td_fail(TD_ERR_DATA, "%s: has %zu bytes after its last tensor", file->where,
                       file->data_bytes - end);
    return TD_OK;
}

static td_status check_unique(const source *file, td_safetensors_entries *entries) {
    qsort(entries->items, (size_t)entries->count, sizeof *entries->items, by_name);
    for (int64_t i = 1; i < entries->count; i++)
        if (strcmp(entries->items[i - 1].name, entries->items[i].name) == 0)
            return td_fail(TD_ERR_DATA, "%s: has tensor \"%s\" twice", file->where,
                           entries->items[i].name);
    return TD_OK;
}

static uint64_t read_length(const unsigned char *data) {
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        length = length << 8 | data[i];
    return length;
}

static td_status check_length(const char *where, const unsigned char *data, size_t bytes) {
    if (bytes < LENGTH_BYTES + 2)
        return td_fail(TD_ERR_DATA, "%s: %zu bytes are too few for a safetensors file", where,
                       bytes);
    uint64_t length = read_length(data);
    if (length > TD_SAFETENSORS_MAX_HEADER_BYTES)
        return td_fail(TD_ERR_DATA,
                       "%s: a header of %llu bytes is not plausible; this is no safetensors file",
                       where, (unsigned long long)length);
    if (length > bytes - LENGTH_BYTES)
        return td_fail(TD_ERR_DATA,
                       "%s: the header has %llu bytes, but the file only %zu; it is truncated",
                       where, (unsigned long long)length, bytes);
    if (length < 2 || data[LENGTH_BYTES] != '{')
        return td_fail(TD_ERR_DATA, "%s: the header does not begin with \"{\"", where);
    return TD_OK;
}

td_status td_safetensors_parse(const char *where, const unsigned char *data, size_t bytes,
                               td_safetensors_entries *out) {
    *out = (td_safetensors_entries){0};
    TD_TRY(check_length(where, data, bytes));
    size_t length = (size_t)read_length(data);
    const char *text = (const char *)data + LENGTH_BYTES;
    source file = {.where = where,
                   .data = data + LENGTH_BYTES + length,
                   .data_bytes = bytes - LENGTH_BYTES - length};
    cJSON *root;
    TD_TRY(td_safetensors_check_plausible(where, text, length));
    TD_TRY(td_json_parse(where, text, length, &root));
    td_status status = read_entries(&file, root, out);
    cJSON_Delete(root);
    TD_TRY(status);
    TD_TRY(check_cover(&file, out));
    return check_unique(&file, out);
}

void td_safetensors_entries_fini(td_safetensors_entries *entries) {
    for (int64_t i = 0; i < entries->count; i++)
        free(entries->items[i].name);
    free(entries->items);
    *entries = (td_safetensors_entries){0};
}

const td_safetensors_entry *td_safetensors_entries_find(const td_safetensors_entries *entries,
                                                        const char *name) {
    td_safetensors_entry key = {.name = (char *)(uintptr_t)name};
    if (entries->count == 0)
        return NULL;
    return bsearch(&key, entries->items, (size_t)entries->count, sizeof key, by_name);
}
