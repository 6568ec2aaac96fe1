#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/export_internal.h"

typedef struct nf4_export {
    const td_quantize_options *options;
    td_export_source source;
    td_export_folder *folder;
    td_nf4_parts *parts;      // (linear layers), in the order of the source's list
    td_named_tensor *tensors; // that are written
    int64_t count;
    td_dtype dtype; // of the first linear layer
} nf4_export;

static td_nf4_parts *parts_of(const nf4_export *self, const td_base_item *item) {
    return &self->parts[item - self->source.linears];
}

static void plan_linear(nf4_export *self, const td_base_item *item, td_dtype dtype) {
    td_nf4_parts *parts = parts_of(self, item);
    td_nf4_parts_plan(item->name, item->shape[0], item->shape[1], dtype,
                      self->options->double_quantize, parts);
    for (int i = 0; i < parts->count; i++)
        self->tensors[self->count++] = (td_named_tensor){parts->names[i], parts->tensors[i]};
    if (item == self->source.linears)
        self->dtype = dtype;
}

static td_status plan(nf4_export *self) {
    td_export_source *source = &self->source;
    int64_t n = td_safetensors_count(source->files);
    self->parts = calloc((size_t)source->n_linears + 1, sizeof *self->parts);
    self->tensors =
        calloc((size_t)(n + source->n_linears * TD_NF4_PARTS_MAX) + 1, sizeof *self->tensors);
    if (!self->parts || !self->tensors)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for the list of its tensors", source->folder);
    for (int64_t i = 0; i < n; i++) {
        const char *name = td_safetensors_name(source->files, i);
        const td_base_item *item = td_export_source_linear(source, name);
        td_tensor view = td_safetensors_view(source->files, i);
        if (item)
            plan_linear(self, item, view.dtype);
        else if (!td_export_source_skips(source, name))
            self->tensors[self->count++] = (td_named_tensor){name, view};
    }
    return TD_OK;
}

static td_status append(nf4_export *self, const td_tensor *tensor) {
    int64_t elements;
    TD_TRY(td_tensor_elements(tensor, &elements));
    return td_export_folder_append(self->folder, tensor->data,
                                   (size_t)elements * td_dtype_bytes(tensor->dtype));
}

static td_status write_linear(nf4_export *self, const td_base_item *item, td_dtype dtype) {
    td_nf4_parts *parts = parts_of(self, item);
    td_matrix matrix;
    TD_TRY(td_export_source_nf4(&self->source, item, self->options->double_quantize, &matrix));
    td_nf4_parts_fill(parts, &matrix, dtype);
    for (int i = 0; i < parts->count; i++)
        TD_TRY(append(self, &parts->tensors[i]));
    return TD_OK;
}

static td_status write_all(nf4_export *self) {
    td_export_source *source = &self->source;
    for (int64_t i = 0; i < td_safetensors_count(source->files); i++) {
        const char *name = td_safetensors_name(source->files, i);
        const td_base_item *item = td_export_source_linear(source, name);
        td_tensor view = td_safetensors_view(source->files, i);
        if (item)
            TD_TRY(write_linear(self, item, view.dtype));
        else if (!td_export_source_skips(source, name))
            TD_TRY(td_export_source_copy(source, &view, self->folder));
    }
    return TD_OK;
}

// As transformers writes it. F16 and BF16 weights are computed with in their own type.
static void print_quantization(const nf4_export *self, char *out, size_t room) {
    // What is not the text model's stays whole, by the names of transformers 5 and 4.
    static const char other_parts[] = "[\"lm_head\", \"model.vision_tower\", \"vision_tower\", "
                                      "\"model.multi_modal_projector\", \"multi_modal_projector\"]";
    int is_part = td_model_is_multimodal(&self->source.config);
    snprintf(out, room,
             "{\n"
             "    \"_load_in_4bit\": true,\n"
             "    \"_load_in_8bit\": false,\n"
             "    \"bnb_4bit_compute_dtype\": \"%s\",\n"
             "    \"bnb_4bit_quant_storage\": \"uint8\",\n"
             "    \"bnb_4bit_quant_type\": \"nf4\",\n"
             "    \"bnb_4bit_use_double_quant\": %s,\n"
             "    \"llm_int8_enable_fp32_cpu_offload\": false,\n"
             "    \"llm_int8_has_fp16_weight\": false,\n"
             "    \"llm_int8_skip_modules\": %s,\n"
             "    \"llm_int8_threshold\": 6.0,\n"
             "    \"load_in_4bit\": true,\n"
             "    \"load_in_8bit\": false,\n"
             "    \"quant_method\": \"bitsandbytes\"\n"
             "  }",
             td_export_torch_dtype(self->dtype), self->options->double_quantize ? "true" : "false",
             is_part ? other_parts : "null");
}

static td_status run(nf4_export *self, const td_op_context *context, td_export_report *out) {
    char quantization[1024];
    const td_quantize_options *options = self->options;
    TD_TRY(td_export_source_open(options->model, context, &self->source));
    if (self->source.config.stored != TD_STORED_WHOLE)
        return td_fail(TD_ERR_DATA, "%s: the weights are NF4 already", options->model);
    TD_TRY(plan(self));
    TD_TRY(td_export_folder_create(options->output, options->max_file_bytes, self->tensors,
                                   self->count, &self->folder));
    TD_TRY(write_all(self));
    print_quantization(self, quantization, sizeof quantization);
    td_export_config changes = {.quantization = quantization};
    out->n_changed = self->source.n_linears;
    return td_export_folder_commit(self->folder, options->model, &changes, out);
}

td_status td_export_nf4(const td_quantize_options *options, const td_op_context *context,
                        td_export_report *out) {
    nf4_export self = {.options = options};
    td_export_report report = {0};
    td_status status = run(&self, context, &report);
    td_export_folder_destroy(self.folder);
    td_export_source_fini(&self.source);
    free(self.parts);
    free(self.tensors);
    if (status == TD_OK)
        *out = report;
    return status;
}
