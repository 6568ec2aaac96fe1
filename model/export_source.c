#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dynamic_map.h"
#include "model/export_internal.h"

const char *td_export_torch_dtype(td_dtype dtype) {
    return dtype == TD_BF16 ? "bfloat16" : dtype == TD_F16 ? "float16" : "float32";
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const td_base_item *)a)->name, ((const td_base_item *)b)->name);
}

// Every tensor of the model must be there in its shape; linear layers are remembered.
static td_status add_item(void *self, const td_base_item *item) {
    td_export_source *source = self;
    td_tensor view;
    td_nf4_stored stored;
    int is_linear = item->kind == TD_BASE_LINEAR;
    if (is_linear)
        source->linears[source->n_linears++] = *item;
    if (td_base_item_is_matrix(item) && item->shape[1] > source->slice_elements)
        source->slice_elements = item->shape[1];
    if (td_base_item_is_stored_nf4(&source->config, item))
        return td_nf4_stored_find(source->files, item->name, item->shape[0], item->shape[1],
                                  source->config.stored == TD_STORED_NF4_NESTED, &stored);
    return td_safetensors_require(source->files, item->name, item->n_dims, item->shape, &view);
}

static int64_t largest_linear(const td_export_source *source) {
    int64_t largest = 0;
    for (int64_t i = 0; i < source->n_linears; i++)
        if (source->linears[i].n_elements > largest)
            largest = source->linears[i].n_elements;
    return largest;
}

static td_status allocate(td_export_source *source) {
    size_t n = (size_t)largest_linear(source);
    size_t n_blocks = (size_t)td_nf4_block_count((int64_t)n);
    const td_device *device = source->context.device;
    source->slice = malloc((size_t)source->slice_elements * sizeof *source->slice);
    source->codes = malloc((n + 1) / 2);
    source->absmax = malloc(n_blocks * sizeof *source->absmax);
    source->absmax_codes = malloc(n_blocks);
    source->nested_absmax =
        malloc((size_t)td_nf4_nested_count((int64_t)n) * sizeof *source->nested_absmax);
    if (!source->slice || !source->codes || !source->absmax || !source->absmax_codes ||
        !source->nested_absmax)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for one of its weights", source->folder);
    source->context.workspace_bytes = td_base_workspace_bytes(source->context.ops);
    return device->table->alloc(device, source->context.workspace_bytes, "export buffers",
                                &source->context.workspace);
}

td_status td_export_source_open(const char *folder, const td_op_context *context,
                                td_export_source *out) {
    *out = (td_export_source){
        .folder = folder, .slice_elements = TD_EXPORT_SLICE_ELEMENTS, .context = *context};
    out->context.workspace = NULL;
    TD_TRY(td_model_config_read(folder, &out->config));
    TD_TRY(td_safetensors_open(folder, &out->files));
    td_base_find_names(out->files, &out->config);
    out->linears = calloc((size_t)out->config.n_layers * TD_PROJ_COUNT, sizeof *out->linears);
    if (!out->linears)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for the list of its weights", folder);
    TD_TRY(td_base_visit(&out->config, add_item, out));
    qsort(out->linears, (size_t)out->n_linears, sizeof *out->linears, by_name);
    return allocate(out);
}

void td_export_source_fini(td_export_source *source) {
    if (source->context.workspace)
        source->context.device->table->free(source->context.device, source->context.workspace);
    td_safetensors_close(source->files);
    free(source->linears);
    free(source->slice);
    free(source->codes);
    free(source->absmax);
    free(source->absmax_codes);
    free(source->nested_absmax);
    *source = (td_export_source){0};
}

const td_base_item *td_export_source_linear(const td_export_source *source, const char *name) {
    td_base_item key = {0};
    if (strlen(name) >= sizeof key.name)
        return NULL;
    snprintf(key.name, sizeof key.name, "%s", name);
    return bsearch(&key, source->linears, (size_t)source->n_linears, sizeof key, by_name);
}

int td_export_source_skips(const td_export_source *source, const char *name) {
    if (source->config.tie_word_embeddings && td_base_is_head_name(name))
        return 1;
    return source->config.stored != TD_STORED_WHOLE && td_nf4_is_part(name);
}

void td_export_source_read(const td_export_source *source, const td_tensor *view, int64_t begin,
                           int64_t count, float *out) {
    size_t offset = (size_t)begin * td_dtype_bytes(view->dtype);
    td_tensor piece = {.data = (unsigned char *)view->data + offset,
                       .dtype = view->dtype,
                       .n_dims = 1,
                       .shape = {count}};
    td_convert_to_f32(piece.data, piece.dtype, count, out);
    td_safetensors_forget(source->files, &piece);
}

td_status td_export_source_copy(const td_export_source *source, const td_tensor *view,
                                td_export_folder *to) {
    int64_t elements, done = 0;
    size_t item_bytes = td_dtype_bytes(view->dtype);
    TD_TRY(td_tensor_elements(view, &elements));
    // A tensor without elements has its place too.
    do {
        int64_t left = elements - done;
        td_tensor piece = {
            .data = (unsigned char *)view->data + (size_t)done * item_bytes,
            .dtype = view->dtype,
            .n_dims = 1,
            .shape = {left < TD_EXPORT_SLICE_ELEMENTS ? left : TD_EXPORT_SLICE_ELEMENTS}};
        TD_TRY(td_export_folder_append(to, piece.data, (size_t)piece.shape[0] * item_bytes));
        td_safetensors_forget(source->files, &piece);
        done += piece.shape[0];
    } while (done < elements);
    return TD_OK;
}

static void copy_part(const td_export_source *source, const td_tensor *view, void *out) {
    memcpy(out, view->data, (size_t)view->shape[0] * td_dtype_bytes(view->dtype));
    td_safetensors_forget(source->files, view);
}

static td_status copy_stored(td_export_source *source, const td_base_item *item, td_matrix *out) {
    td_nf4_stored stored;
    TD_TRY(td_nf4_stored_find(source->files, item->name, item->shape[0], item->shape[1],
                              source->config.stored == TD_STORED_NF4_NESTED, &stored));
    copy_part(source, &stored.codes, source->codes);
    if (!stored.is_nested) {
        copy_part(source, &stored.absmax, source->absmax);
        out->absmax = source->absmax;
        return TD_OK;
    }
    copy_part(source, &stored.absmax, source->absmax_codes);
    copy_part(source, &stored.nested_absmax, source->nested_absmax);
    memcpy(source->nested_map, stored.nested_map, sizeof source->nested_map);
    out->nested_offset = stored.nested_offset;
    return TD_OK;
}

static td_status quantize_slices(td_export_source *source, const td_base_item *item) {
    const td_ops *ops = source->context.ops;
    int64_t step = source->slice_elements / (2 * TD_NF4_BLOCK) * (2 * TD_NF4_BLOCK);
    td_tensor view;
    TD_TRY(td_safetensors_require(source->files, item->name, 2, item->shape, &view));
    for (int64_t begin = 0; begin < item->n_elements; begin += step) {
        int64_t left = item->n_elements - begin, count = left < step ? left : step;
        td_export_source_read(source, &view, begin, count, source->slice);
        td_nf4_quantize_args args = {.n_elements = count,
                                     .weight = source->slice,
                                     .codes = source->codes + begin / 2,
                                     .absmax = source->absmax + begin / TD_NF4_BLOCK};
        TD_TRY(ops->nf4_quantize(&source->context, &args));
    }
    return TD_OK;
}

static td_status quantize(td_export_source *source, const td_base_item *item, int double_quantize,
                          td_matrix *out) {
    TD_TRY(quantize_slices(source, item));
    if (!double_quantize) {
        out->absmax = source->absmax;
        return TD_OK;
    }
    td_absmax_quantize_args args = {.n_blocks = td_nf4_block_count(item->n_elements),
                                    .absmax = source->absmax,
                                    .codes = source->absmax_codes,
                                    .nested_absmax = source->nested_absmax,
                                    .offset = &out->nested_offset};
    td_dynamic_map_signed(source->nested_map);
    return source->context.ops->absmax_quantize(&source->context, &args);
}

td_status td_export_source_nf4(td_export_source *source, const td_base_item *item,
                               int double_quantize, td_matrix *out) {
    td_matrix matrix = {.format = TD_MATRIX_NF4,
                        .rows = item->shape[0],
                        .cols = item->shape[1],
                        .data = source->codes,
                        .compute = TD_F32};
    if (td_base_item_is_stored_nf4(&source->config, item))
        TD_TRY(copy_stored(source, item, &matrix));
    else
        TD_TRY(quantize(source, item, double_quantize, &matrix));
    if (!matrix.absmax) {
        matrix.absmax_codes = source->absmax_codes;
        matrix.nested_absmax = source->nested_absmax;
        matrix.nested_map = source->nested_map;
    }
    *out = matrix;
    return TD_OK;
}
