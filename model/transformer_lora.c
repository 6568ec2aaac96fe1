// A and B of a layer in the type of the activations, once per layer and direction: operations would
// round them at every use, by four kernels per module.
#include "model/transformer_internal.h"

static int64_t layer_parameters(const td_lora *lora, int64_t layer) {
    return td_lora_layer_begin(lora, layer + 1) - td_lora_layer_begin(lora, layer);
}

void td_transformer_take_rounded(td_transformer *transformer) {
    const td_lora *lora = transformer->lora;
    int64_t most = 0;
    if (!lora || transformer->context.ops->activation == TD_F32)
        return;
    for (int64_t layer = 0; layer < lora->n_layers; layer++)
        if (layer_parameters(lora, layer) > most)
            most = layer_parameters(lora, layer);
    transformer->rounded =
        td_arena_take(&transformer->arena, (size_t)most, td_act_bytes(transformer));
}

td_status td_transformer_round_layer(td_transformer *transformer, int64_t layer) {
    if (!transformer->parameters || !transformer->rounded)
        return TD_OK;
    int64_t count = layer_parameters(transformer->lora, layer);
    if (count == 0)
        return TD_OK;
    int64_t begin = td_lora_layer_begin(transformer->lora, layer);
    td_matrix values = {
        .format = TD_MATRIX_F32, .rows = 1, .cols = count, .data = transformer->parameters + begin};
    OP(transformer, dequantize,
       (&(td_dequantize_args){
           .matrix = &values, .row_count = 1, .out = transformer->rounded, .out_is_act = 1}));
    return TD_OK;
}

const void *td_transformer_rounded(const td_transformer *transformer, int64_t layer,
                                   int64_t offset) {
    return td_act_column(transformer, transformer->rounded,
                         offset - td_lora_layer_begin(transformer->lora, layer));
}
