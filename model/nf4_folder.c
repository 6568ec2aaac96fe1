#include "model/nf4_folder.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/core/json.h"

// The table that bitsandbytes writes as quant_map, and the only one that the kernels know.
static const float nf4_map[16] = {TD_NF4_CODES};

static const struct {
    td_dtype dtype;
    const char *torch_name;
} torch_dtypes[] = {{TD_F32, "float32"}, {TD_F16, "float16"}, {TD_BF16, "bfloat16"}};
enum { N_TORCH_DTYPES = sizeof torch_dtypes / sizeof *torch_dtypes };

static const char state_ending[] = "quant_state.bitsandbytes__nf4";
static const char fp4_ending[] = "quant_state.bitsandbytes__fp4";

typedef struct nf4_reader {
    const td_safetensors *files;
    const char *name; // of the weight
    int64_t rows, cols;
} nf4_reader;

static void part_name(const char *weight, const char *ending, char out[TD_NF4_PART_NAME_CHARS]) {
    snprintf(out, TD_NF4_PART_NAME_CHARS, "%s.%s", weight, ending);
}

static int64_t elements_of(const nf4_reader *reader) {
    return reader->rows * reader->cols;
}

static td_status check_part(const char *name, const td_tensor *found, td_dtype dtype,
                            int64_t count) {
    int64_t elements;
    TD_TRY(td_tensor_elements(found, &elements));
    if (found->dtype != dtype || elements != count)
        return td_fail(TD_ERR_DATA, "tensor \"%s\" must be %s with %lld values, found %s with %lld",
                       name, td_dtype_name(dtype), (long long)count, td_dtype_name(found->dtype),
                       (long long)elements);
    return TD_OK;
}

static td_status find_part(const nf4_reader *reader, const char *ending, td_dtype dtype,
                           int64_t count, td_tensor *out) {
    char name[TD_NF4_PART_NAME_CHARS];
    part_name(reader->name, ending, name);
    if (!td_safetensors_find(reader->files, name, out))
        return td_fail(TD_ERR_DATA, "tensor \"%s\" is missing beside its NF4 weight", name);
    return check_part(name, out, dtype, count);
}

static td_status find_codes(const nf4_reader *reader, td_tensor *out) {
    if (!td_safetensors_find(reader->files, reader->name, out))
        return td_fail(TD_ERR_DATA, "tensor \"%s\" is missing", reader->name);
    if (out->dtype == TD_F32 || out->dtype == TD_F16 || out->dtype == TD_BF16)
        return td_fail(TD_ERR_DATA,
                       "tensor \"%s\" is %s, but config.json does not name it in "
                       "\"llm_int8_skip_modules\" among those that are not quantized",
                       reader->name, td_dtype_name(out->dtype));
    return check_part(reader->name, out, TD_U8, (elements_of(reader) + 1) / 2);
}

static td_status require_int(const char *where, const cJSON *state, const char *key,
                             int64_t expected) {
    int64_t found = -1;
    TD_TRY(td_json_int(where, state, key, 0, INT64_C(1) << 53, &found));
    if (found != expected)
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be %" PRId64 ", found %" PRId64, where, key,
                       expected, found);
    return TD_OK;
}

static td_status require_string(const char *where, const cJSON *state, const char *key,
                                const char *expected) {
    const char *found = "";
    TD_TRY(td_json_string(where, state, key, &found));
    if (strcmp(found, expected) != 0)
        return td_fail(TD_ERR_DATA, "%s: \"%s\" must be \"%s\", found \"%.40s\"", where, key,
                       expected, found);
    return TD_OK;
}

static td_status check_shape(const char *where, const cJSON *state, const nf4_reader *reader) {
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(state, "shape");
    const cJSON *rows = cJSON_GetArrayItem(shape, 0), *cols = cJSON_GetArrayItem(shape, 1);
    if (!cJSON_IsArray(shape) || cJSON_GetArraySize(shape) != 2 || !cJSON_IsNumber(rows) ||
        !cJSON_IsNumber(cols) || rows->valuedouble != (double)reader->rows ||
        cols->valuedouble != (double)reader->cols)
        return td_fail(TD_ERR_DATA, "%s: \"shape\" must be [%lld, %lld], as config.json has it",
                       where, (long long)reader->rows, (long long)reader->cols);
    return TD_OK;
}

static td_status read_dtype(const char *where, const cJSON *state, td_dtype *out) {
    const char *name = "";
    TD_TRY(td_json_string(where, state, "dtype", &name));
    for (int i = 0; i < N_TORCH_DTYPES; i++)
        if (strcmp(torch_dtypes[i].torch_name, name) == 0) {
            *out = torch_dtypes[i].dtype;
            return TD_OK;
        }
    return td_fail(TD_ERR_DATA,
                   "%s: \"dtype\" must be \"float32\", \"float16\" or \"bfloat16\", found "
                   "\"%.40s\"",
                   where, name);
}

static td_status read_nested(const char *where, const cJSON *state, td_nf4_stored *out) {
    double offset = NAN;
    TD_TRY(require_int(where, state, "nested_blocksize", TD_NF4_NESTED_BLOCK));
    TD_TRY(require_string(where, state, "nested_dtype", "float32"));
    TD_TRY(td_json_double(where, state, "nested_offset", &offset));
    out->nested_offset = (float)offset;
    if (!isfinite(out->nested_offset))
        return td_fail(TD_ERR_DATA, "%s: \"nested_offset\" must be a finite number", where);
    return TD_OK;
}

static td_status read_values(const char *where, const cJSON *state, const nf4_reader *reader,
                             td_nf4_stored *out) {
    TD_TRY(require_string(where, state, "quant_type", "nf4"));
    TD_TRY(require_int(where, state, "blocksize", TD_NF4_BLOCK));
    TD_TRY(check_shape(where, state, reader));
    TD_TRY(read_dtype(where, state, &out->dtype));
    return out->is_nested ? read_nested(where, state, out) : TD_OK;
}

static td_status read_state(const nf4_reader *reader, td_nf4_stored *out) {
    char name[TD_NF4_PART_NAME_CHARS];
    td_tensor view;
    cJSON *state;
    part_name(reader->name, fp4_ending, name);
    if (td_safetensors_find(reader->files, name, &view))
        return td_fail(TD_ERR_DATA, "tensor \"%s\" is quantized to FP4; only NF4 is supported",
                       reader->name);
    part_name(reader->name, state_ending, name);
    if (!td_safetensors_find(reader->files, name, &view))
        return td_fail(TD_ERR_DATA, "tensor \"%s\" is missing beside its NF4 weight", name);
    if (view.dtype != TD_U8 || view.n_dims != 1)
        return td_fail(TD_ERR_DATA, "tensor \"%s\" must be a list of U8", name);
    TD_TRY(td_json_parse(name, view.data, (size_t)view.shape[0], &state));
    td_status status = cJSON_IsObject(state)
                           ? read_values(name, state, reader, out)
                           : td_fail(TD_ERR_DATA, "%s: must be a JSON object", name);
    cJSON_Delete(state);
    return status;
}

static td_status check_map(const nf4_reader *reader) {
    td_tensor map;
    TD_TRY(find_part(reader, "quant_map", TD_F32, 16, &map));
    if (memcmp(map.data, nf4_map, sizeof nf4_map) != 0)
        return td_fail(TD_ERR_DATA, "tensor \"%s.quant_map\" is not the table of NF4",
                       reader->name);
    return TD_OK;
}

static td_status find_nested(const nf4_reader *reader, td_nf4_stored *out) {
    td_tensor map;
    int64_t n = elements_of(reader);
    TD_TRY(find_part(reader, "absmax", TD_U8, td_nf4_block_count(n), &out->absmax));
    TD_TRY(find_part(reader, "nested_absmax", TD_F32, td_nf4_nested_count(n), &out->nested_absmax));
    TD_TRY(find_part(reader, "nested_quant_map", TD_F32, 256, &map));
    memcpy(out->nested_map, map.data, sizeof out->nested_map);
    for (int i = 0; i < 256; i++)
        if (!isfinite(out->nested_map[i]))
            return td_fail(TD_ERR_DATA, "tensor \"%s.nested_quant_map\" holds NaN or infinity",
                           reader->name);
    return TD_OK;
}

td_status td_nf4_stored_find(const td_safetensors *files, const char *name, int64_t rows,
                             int64_t cols, int is_nested, td_nf4_stored *out) {
    nf4_reader reader = {.files = files, .name = name, .rows = rows, .cols = cols};
    td_nf4_stored found = {.is_nested = is_nested};
    TD_TRY(find_codes(&reader, &found.codes));
    TD_TRY(read_state(&reader, &found));
    TD_TRY(check_map(&reader));
    if (is_nested)
        TD_TRY(find_nested(&reader, &found));
    else
        TD_TRY(
            find_part(&reader, "absmax", TD_F32, td_nf4_block_count(rows * cols), &found.absmax));
    *out = found;
    return TD_OK;
}

int td_nf4_is_part(const char *name) {
    static const char *const endings[] = {
        ".weight.absmax",
        ".weight.quant_map",
        ".weight.nested_absmax",
        ".weight.nested_quant_map",
        ".weight.quant_state.bitsandbytes__nf4",
    };
    size_t chars = strlen(name);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t ending = strlen(endings[i]);
        if (chars > ending && strcmp(name + chars - ending, endings[i]) == 0)
            return 1;
    }
    return 0;
}

static const char *torch_name(td_dtype dtype) {
    for (int i = 0; i < N_TORCH_DTYPES; i++)
        if (torch_dtypes[i].dtype == dtype)
            return torch_dtypes[i].torch_name;
    return "float32";
}

static void add_part(td_nf4_parts *parts, const char *weight, const char *ending, td_tensor shape) {
    int i = parts->count++;
    snprintf(parts->names[i], sizeof parts->names[i], "%s%s%s", weight, *ending ? "." : "", ending);
    parts->tensors[i] = shape;
}

static td_tensor list_of(td_dtype dtype, int64_t count) {
    return (td_tensor){.dtype = dtype, .n_dims = 1, .shape = {count}};
}

// As bitsandbytes spells it (json.dumps). Spaces fill the room that the digits of the offset leave.
static void print_state(char out[TD_NF4_STATE_BYTES], int64_t rows, int64_t cols, td_dtype dtype,
                        int is_nested, float offset) {
    int used = snprintf(out, TD_NF4_STATE_BYTES,
                        "{\"quant_type\": \"nf4\", \"blocksize\": %d, \"dtype\": \"%s\", "
                        "\"shape\": [%lld, %lld]",
                        TD_NF4_BLOCK, torch_name(dtype), (long long)rows, (long long)cols);
    if (is_nested)
        used += snprintf(out + used, (size_t)(TD_NF4_STATE_BYTES - used),
                         ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", "
                         "\"nested_offset\": %.17g",
                         TD_NF4_NESTED_BLOCK, (double)offset);
    out[used++] = '}';
    memset(out + used, ' ', (size_t)(TD_NF4_STATE_BYTES - used));
}

void td_nf4_parts_plan(const char *name, int64_t rows, int64_t cols, td_dtype dtype, int is_nested,
                       td_nf4_parts *out) {
    int64_t n = rows * cols;
    *out = (td_nf4_parts){0};
    add_part(out, name, "", (td_tensor){.dtype = TD_U8, .n_dims = 2, .shape = {(n + 1) / 2, 1}});
    add_part(out, name, "absmax", list_of(is_nested ? TD_U8 : TD_F32, td_nf4_block_count(n)));
    add_part(out, name, "quant_map", list_of(TD_F32, 16));
    if (is_nested) {
        add_part(out, name, "nested_absmax", list_of(TD_F32, td_nf4_nested_count(n)));
        add_part(out, name, "nested_quant_map", list_of(TD_F32, 256));
    }
    print_state(out->state, rows, cols, dtype, is_nested, 0);
    add_part(out, name, state_ending, list_of(TD_U8, TD_NF4_STATE_BYTES));
}

static void *pointer(const void *memory) {
    return (void *)(uintptr_t)memory;
}

void td_nf4_parts_fill(td_nf4_parts *parts, const td_matrix *matrix, td_dtype dtype) {
    int is_nested = matrix->absmax == NULL;
    memcpy(parts->quant_map, nf4_map, sizeof nf4_map);
    parts->tensors[0].data = pointer(matrix->data);
    parts->tensors[1].data = is_nested ? pointer(matrix->absmax_codes) : pointer(matrix->absmax);
    parts->tensors[2].data = parts->quant_map;
    if (is_nested) {
        memcpy(parts->nested_map, matrix->nested_map, sizeof parts->nested_map);
        parts->tensors[3].data = pointer(matrix->nested_absmax);
        parts->tensors[4].data = parts->nested_map;
    }
    print_state(parts->state, matrix->rows, matrix->cols, dtype, is_nested, matrix->nested_offset);
    parts->tensors[parts->count - 1].data = parts->state;
}
