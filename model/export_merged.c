#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/adapter.h"
#include "model/export_internal.h"

// The sum over the rank of this many columns is kept before it is added to the weight.
enum { COLUMNS = 256 };

typedef struct merge {
    const td_merge_options *options;
    td_export_source source;
    td_export_folder *folder;
    td_adapter_info info;
    td_lora lora;
    float *parameters;
    void *packed;             // (slice_elements) of the dtype that is written
    td_named_tensor *tensors; // that are written
    int64_t count, n_merged;
} merge;

// Round to nearest even; beyond the range: infinity.
static uint16_t f32_to_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) // 65520, halfway to what would be the next number
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { // subnormal: units of 2^-24; the cast is exact
        float units = nearbyintf(fabsf(value) * 0x1p24f);
        return (uint16_t)(sign | (uint32_t)units);
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
}

static void pack(const float *values, int64_t count, td_dtype dtype, void *out) {
    uint16_t *half = out;
    switch (dtype) {
    case TD_BF16:
        for (int64_t i = 0; i < count; i++)
            half[i] = td_f32_to_bf16(values[i]);
        return;
    case TD_F16:
        for (int64_t i = 0; i < count; i++)
            half[i] = f32_to_f16(values[i]);
        return;
    default:
        memcpy(out, values, (size_t)count * sizeof *values);
    }
}

// One row of W + s B A: the sum over the rank first, as PEFT has it.
static void add_row(const td_lora_module *module, const float *a, const float *b, float *row) {
    for (int64_t begin = 0; begin < module->in; begin += COLUMNS) {
        int64_t left = module->in - begin, count = left < COLUMNS ? left : COLUMNS;
        float sum[COLUMNS] = {0};
        for (int64_t r = 0; r < module->rank; r++) {
            const float *part = a + r * module->in + begin;
            for (int64_t j = 0; j < count; j++)
                sum[j] += b[r] * part[j];
        }
        for (int64_t j = 0; j < count; j++)
            row[begin + j] += module->scaling * sum[j];
    }
}

// `rows` holds rows [first, first + count) of the weight.
static void add_rows(const td_lora_module *module, const float *parameters, int64_t first,
                     int64_t count, float *rows) {
    const float *a = parameters + module->a_offset, *b = parameters + module->b_offset;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++)
        add_row(module, a, b + (first + i) * module->rank, rows + i * module->in);
}

static int is_float(td_dtype dtype) {
    return dtype == TD_F32 || dtype == TD_F16 || dtype == TD_BF16;
}

static td_dtype target_dtype(const merge *self, td_dtype dtype) {
    if (!is_float(dtype) || self->options->dtype == TD_MERGE_SAME)
        return dtype;
    return self->options->dtype == TD_MERGE_BF16 ? TD_BF16 : TD_F32;
}

static td_status plan_linear(merge *self, const td_base_item *item, const td_tensor *view,
                             td_tensor *out) {
    td_nf4_stored stored = {.dtype = view->dtype};
    if (td_base_item_is_stored_nf4(&self->source.config, item))
        TD_TRY(td_nf4_stored_find(self->source.files, item->name, item->shape[0], item->shape[1],
                                  self->source.config.stored == TD_STORED_NF4_NESTED, &stored));
    *out = (td_tensor){.dtype = target_dtype(self, stored.dtype),
                       .n_dims = 2,
                       .shape = {item->shape[0], item->shape[1]}};
    return TD_OK;
}

static td_status plan(merge *self) {
    const td_safetensors *files = self->source.files;
    int64_t n = td_safetensors_count(files);
    int is_quantized = self->source.config.stored != TD_STORED_WHOLE;
    self->tensors = calloc((size_t)n + 1, sizeof *self->tensors);
    self->packed = malloc((size_t)self->source.slice_elements * sizeof(float));
    if (!self->tensors || !self->packed)
        return td_fail(TD_ERR_MEMORY, "%s: no memory to merge it", self->source.folder);
    for (int64_t i = 0; i < n; i++) {
        const char *name = td_safetensors_name(files, i);
        const td_base_item *item = td_export_source_linear(&self->source, name);
        td_tensor view = td_safetensors_view(files, i);
        if (td_export_source_skips(&self->source, name))
            continue;
        if (item)
            TD_TRY(plan_linear(self, item, &view, &view));
        else if (is_quantized && view.dtype == TD_U8)
            return td_fail(TD_ERR_DATA,
                           "%s: tensor \"%s\" is quantized and no part of the text model; merge "
                           "into the folder of whole weights",
                           self->source.folder, name);
        view.dtype = target_dtype(self, view.dtype);
        self->tensors[self->count++] = (td_named_tensor){name, view};
    }
    return TD_OK;
}

static td_status append(merge *self, const char *name, int64_t count, td_dtype dtype) {
    const float *values = self->source.slice;
    pack(values, count, dtype, self->packed);
    // Only 16-bit floats with five bits of exponent can overflow; NaN and infinity of the folder
    // itself are kept.
    for (int64_t i = 0; dtype == TD_F16 && i < count; i++)
        if (fabsf(values[i]) >= 65520.0f && isfinite(values[i]))
            return td_fail(TD_ERR_DATA,
                           "tensor \"%s\" holds %g, which F16 cannot; merge into bf16 or f32", name,
                           (double)values[i]);
    return td_export_folder_append(self->folder, self->packed,
                                   (size_t)count * td_dtype_bytes(dtype));
}

static td_status write_plain(merge *self, const char *name, const td_tensor *view, td_dtype dtype) {
    int64_t elements, step = self->source.slice_elements;
    TD_TRY(td_tensor_elements(view, &elements));
    if (dtype == view->dtype || elements == 0)
        return td_export_source_copy(&self->source, view, self->folder);
    for (int64_t begin = 0; begin < elements; begin += step) {
        int64_t left = elements - begin, count = left < step ? left : step;
        td_export_source_read(&self->source, view, begin, count, self->source.slice);
        TD_TRY(append(self, name, count, dtype));
    }
    return TD_OK;
}

static td_status read_rows(merge *self, const td_matrix *nf4, const td_tensor *view, int64_t first,
                           int64_t count, int64_t cols) {
    td_dequantize_args args = {
        .matrix = nf4, .row_begin = first, .row_count = count, .out = self->source.slice};
    if (nf4)
        return self->source.context.ops->dequantize(&self->source.context, &args);
    td_export_source_read(&self->source, view, first * cols, count * cols, self->source.slice);
    return TD_OK;
}

static td_status write_linear(merge *self, const td_base_item *item, const td_tensor *view,
                              td_dtype dtype) {
    const td_lora_module *module = td_lora_at(&self->lora, item->layer, item->projection);
    int is_whole = self->source.config.stored == TD_STORED_WHOLE;
    int is_nf4 = (is_whole && self->options->dequantized) ||
                 td_base_item_is_stored_nf4(&self->source.config, item);
    int64_t rows = item->shape[0], cols = item->shape[1], step = self->source.slice_elements / cols;
    td_matrix nf4;
    if (is_nf4)
        TD_TRY(td_export_source_nf4(&self->source, item, self->options->double_quantize, &nf4));
    else if (!module->present)
        return write_plain(self, item->name, view, dtype);
    for (int64_t first = 0; first < rows; first += step) {
        int64_t left = rows - first, count = left < step ? left : step;
        TD_TRY(read_rows(self, is_nf4 ? &nf4 : NULL, view, first, count, cols));
        if (module->present)
            add_rows(module, self->parameters, first, count, self->source.slice);
        TD_TRY(append(self, item->name, count * cols, dtype));
    }
    self->n_merged += module->present;
    return TD_OK;
}

static td_status write_all(merge *self) {
    const td_safetensors *files = self->source.files;
    int64_t written = 0;
    for (int64_t i = 0; i < td_safetensors_count(files); i++) {
        const char *name = td_safetensors_name(files, i);
        const td_base_item *item = td_export_source_linear(&self->source, name);
        td_tensor view = td_safetensors_view(files, i);
        if (td_export_source_skips(&self->source, name))
            continue;
        td_dtype dtype = self->tensors[written++].tensor.dtype;
        TD_TRY(item ? write_linear(self, item, &view, dtype)
                    : write_plain(self, name, &view, dtype));
    }
    return TD_OK;
}

// A selection that does not fit this base is what the adapter's file says, not the command line.
static td_status select_modules(merge *self) {
    char message[1024];
    td_lora_options options = td_adapter_lora_options(&self->info);
    td_status status = td_lora_init(&self->lora, &self->source.config, &options);
    if (status != TD_ERR_USAGE)
        return status;
    snprintf(message, sizeof message, "%s", td_error_message());
    td_error_clear();
    return td_fail(TD_ERR_DATA, "%s: the adapter does not fit %s: %s", self->options->adapter,
                   self->options->model, message);
}

static td_status read_adapter(merge *self) {
    const char *folder = self->options->adapter;
    TD_TRY(td_adapter_info_read(folder, &self->info));
    TD_TRY(select_modules(self));
    self->parameters =
        malloc(td_mul_bytes((size_t)self->lora.n_parameters, sizeof *self->parameters));
    if (!self->parameters)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for the adapter", folder);
    return td_adapter_read(folder, &self->lora, self->parameters);
}

static td_status run(merge *self, const td_op_context *context, td_export_report *out) {
    const td_merge_options *options = self->options;
    TD_TRY(td_export_source_open(options->model, context, &self->source));
    TD_TRY(read_adapter(self));
    TD_TRY(plan(self));
    TD_TRY(td_export_folder_create(options->output, options->max_file_bytes, self->tensors,
                                   self->count, &self->folder));
    TD_TRY(write_all(self));
    td_export_config changes = {0};
    if (options->dtype != TD_MERGE_SAME)
        changes.dtype = td_export_torch_dtype(target_dtype(self, TD_F32));
    out->n_changed = self->n_merged;
    return td_export_folder_commit(self->folder, options->model, &changes, out);
}

td_status td_export_merged(const td_merge_options *options, const td_op_context *context,
                           td_export_report *out) {
    merge self = {.options = options};
    td_export_report report = {0};
    td_status status = run(&self, context, &report);
    td_export_folder_destroy(self.folder);
    td_adapter_info_fini(&self.info);
    td_lora_fini(&self.lora);
    td_export_source_fini(&self.source);
    free(self.parameters);
    free(self.packed);
    free(self.tensors);
    if (status == TD_OK)
        *out = report;
    return status;
}
