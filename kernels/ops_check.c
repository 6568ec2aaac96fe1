#include "kernels/ops_check.h"

// Returns TD_ERR_INTERNAL from the calling function unless the condition holds, quoting it.
#define REQUIRE(op, condition)                                                                     \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return td_fail(TD_ERR_INTERNAL, "%s was called without %s", op, #condition);           \
    } while (0)

// Extents fit the 32-bit integers of BLAS libraries and launch grids.
static int is_extent(int64_t n) {
    return n > 0 && n <= INT32_MAX;
}

static int is_count(int64_t n) {
    return n == 0 || is_extent(n);
}

static td_status check_matrix(const char *op, const td_matrix *matrix) {
    REQUIRE(op, matrix && matrix->data);
    REQUIRE(op, is_extent(matrix->rows) && is_extent(matrix->cols));
    if (matrix->format != TD_MATRIX_NF4)
        return TD_OK;
    REQUIRE(op, matrix->absmax ||
                    (matrix->absmax_codes && matrix->nested_absmax && matrix->nested_map));
    REQUIRE(op, matrix->compute == TD_F32 || matrix->compute == TD_BF16);
    return TD_OK;
}

static td_status check_lora(const char *op, const td_lora_weights *lora) {
    if (!lora)
        return TD_OK;
    REQUIRE(op, lora->a && lora->b);
    REQUIRE(op, is_extent(lora->rank));
    return TD_OK;
}

td_status td_check_linear_forward(const td_linear_forward_args *args) {
    static const char op[] = "linear_forward";
    REQUIRE(op, is_extent(args->n_tokens));
    REQUIRE(op, args->x && args->y);
    REQUIRE(op, !args->lora || (args->xa && !args->y_is_f32));
    TD_TRY(check_matrix(op, args->weight));
    return check_lora(op, args->lora);
}

td_status td_check_linear_backward(const td_linear_backward_args *args) {
    static const char op[] = "linear_backward";
    REQUIRE(op, is_extent(args->n_tokens));
    REQUIRE(op, args->dy);
    REQUIRE(op, args->dx || args->lora);
    REQUIRE(op, !args->lora || (args->x && args->xa && args->da && args->db && !args->dy_is_f32));
    TD_TRY(check_matrix(op, args->weight));
    return check_lora(op, args->lora);
}

td_status td_check_nf4_quantize(const td_nf4_quantize_args *args) {
    static const char op[] = "nf4_quantize";
    REQUIRE(op, args->n_elements > 0);
    REQUIRE(op, args->weight && args->codes && args->absmax);
    REQUIRE(op, args->weight_dtype == TD_F32 || args->weight_dtype == TD_BF16);
    return TD_OK;
}

td_status td_check_absmax_quantize(const td_absmax_quantize_args *args) {
    static const char op[] = "absmax_quantize";
    REQUIRE(op, args->n_blocks > 0);
    REQUIRE(op, args->absmax && args->codes && args->nested_absmax && args->offset);
    return TD_OK;
}

td_status td_check_dequantize(const td_dequantize_args *args) {
    static const char op[] = "dequantize";
    TD_TRY(check_matrix(op, args->matrix));
    REQUIRE(op, args->row_begin >= 0 && is_count(args->row_count));
    REQUIRE(op, args->row_begin + args->row_count <= args->matrix->rows);
    REQUIRE(op, args->out);
    return TD_OK;
}

td_status td_check_embedding(const td_embedding_args *args) {
    static const char op[] = "embedding";
    REQUIRE(op, is_count(args->n_tokens));
    REQUIRE(op, args->ids && args->y);
    TD_TRY(check_matrix(op, args->table));
    REQUIRE(op, args->table->format != TD_MATRIX_NF4);
    return TD_OK;
}

td_status td_check_rmsnorm_forward(const td_rmsnorm_forward_args *args) {
    static const char op[] = "rmsnorm_forward";
    REQUIRE(op, is_count(args->n_rows) && is_extent(args->n_cols));
    REQUIRE(op, args->x && args->weight && args->y);
    REQUIRE(op, args->eps >= 0.0f);
    return TD_OK;
}

td_status td_check_rmsnorm_backward(const td_rmsnorm_backward_args *args) {
    static const char op[] = "rmsnorm_backward";
    REQUIRE(op, is_count(args->n_rows) && is_extent(args->n_cols));
    REQUIRE(op, args->dy && args->x && args->weight && args->rstd && args->dx);
    REQUIRE(op, !args->accumulate || args->dx != args->dy);
    return TD_OK;
}

td_status td_check_rope(const td_rope_args *args) {
    static const char op[] = "rope";
    REQUIRE(op, is_count(args->n_tokens) && is_extent(args->n_heads));
    REQUIRE(op, is_extent(args->head_dim) && args->head_dim % 2 == 0);
    int64_t head_stride = args->head_stride ? args->head_stride : args->head_dim;
    REQUIRE(op, is_extent(args->n_positions) && head_stride >= args->head_dim);
    REQUIRE(op, args->x_stride >= (args->n_heads - 1) * head_stride + args->head_dim);
    REQUIRE(op, args->x && args->positions && args->cos && args->sin);
    return TD_OK;
}

// cu_q and cu_k are host memory: they are looked at.
static td_status check_attention(const char *op, const td_attention_shape *shape) {
    REQUIRE(op, is_count(shape->n_sequences));
    REQUIRE(op, shape->cu_q && shape->cu_k && shape->cu_q[0] == 0 && shape->cu_k[0] == 0);
    REQUIRE(op, is_extent(shape->n_heads) && is_extent(shape->n_kv_heads));
    REQUIRE(op, shape->n_heads % shape->n_kv_heads == 0);
    REQUIRE(op, is_extent(shape->head_dim) && shape->window >= 0 && shape->softcap >= 0.0f);
    REQUIRE(op, shape->q_stride >= shape->n_heads * shape->head_dim);
    REQUIRE(op, shape->k_stride >= shape->n_kv_heads * shape->head_dim);
    REQUIRE(op, shape->v_stride >= shape->n_kv_heads * shape->head_dim);
    REQUIRE(op, !shape->device_cu_q == !shape->device_cu_k);
    REQUIRE(op, !shape->device_cu_q || shape->n_borders > shape->n_sequences);
    for (int64_t s = 0; s < shape->n_sequences; s++) {
        int64_t queries = (int64_t)shape->cu_q[s + 1] - shape->cu_q[s];
        int64_t keys = (int64_t)shape->cu_k[s + 1] - shape->cu_k[s];
        REQUIRE(op, queries >= 0 && keys >= queries);
    }
    return TD_OK;
}

td_status td_check_attention_forward(const td_attention_forward_args *args) {
    static const char op[] = "attention_forward";
    REQUIRE(op, args->q && args->k && args->v && args->out);
    return check_attention(op, &args->shape);
}

td_status td_check_attention_backward(const td_attention_backward_args *args) {
    static const char op[] = "attention_backward";
    REQUIRE(op, args->q && args->k && args->v && args->out && args->lse && args->dout);
    REQUIRE(op, args->dq && args->dk && args->dv);
    return check_attention(op, &args->shape);
}

td_status td_check_glu_forward(const td_glu_forward_args *args) {
    static const char op[] = "glu_forward";
    REQUIRE(op, args->activation == TD_GATE_SILU || args->activation == TD_GATE_GELU_TANH);
    REQUIRE(op, is_count(args->n_rows) && is_extent(args->n_cols));
    REQUIRE(op, args->gate_stride >= args->n_cols && args->up_stride >= args->n_cols);
    REQUIRE(op, args->gate && args->up && args->y);
    return TD_OK;
}

td_status td_check_glu_backward(const td_glu_backward_args *args) {
    static const char op[] = "glu_backward";
    REQUIRE(op, args->activation == TD_GATE_SILU || args->activation == TD_GATE_GELU_TANH);
    REQUIRE(op, is_count(args->n_rows) && is_extent(args->n_cols));
    REQUIRE(op, args->gate_stride >= args->n_cols && args->up_stride >= args->n_cols);
    REQUIRE(op, args->dy && args->gate && args->up && args->dgate && args->dup);
    return TD_OK;
}

td_status td_check_add(const td_add_args *args) {
    static const char op[] = "add";
    REQUIRE(op, args->n_elements >= 0);
    REQUIRE(op, args->x && args->y);
    return TD_OK;
}

static td_status check_rows(const char *op, const td_rows_args *args) {
    REQUIRE(op, is_count(args->n_rows) && is_extent(args->n_cols));
    REQUIRE(op, args->n_rows == 0 || (args->rows && args->x));
    REQUIRE(op, args->y && args->x != args->y);
    return TD_OK;
}

td_status td_check_gather_rows(const td_rows_args *args) {
    return check_rows("gather_rows", args);
}

td_status td_check_scatter_rows(const td_rows_args *args) {
    REQUIRE("scatter_rows", is_extent(args->y_rows) && args->n_rows <= args->y_rows);
    return check_rows("scatter_rows", args);
}

td_status td_check_cross_entropy(const td_cross_entropy_args *args) {
    static const char op[] = "cross_entropy";
    REQUIRE(op, is_count(args->n_rows) && is_extent(args->n_vocabulary));
    REQUIRE(op, args->softcap >= 0.0f);
    REQUIRE(op, args->n_rows == 0 || (args->logits && args->targets && args->loss));
    return TD_OK;
}

td_status td_check_fixed_add(const td_fixed_add_args *args) {
    static const char op[] = "fixed_add";
    REQUIRE(op, args->n_elements >= 0);
    REQUIRE(op, args->values && args->accumulator && args->faults);
    REQUIRE(op, args->limit > 0);
    REQUIRE(op, args->quantum_log2 >= -126 && args->quantum_log2 <= 0);
    return TD_OK;
}

td_status td_check_fixed_to_f32(const td_fixed_to_f32_args *args) {
    static const char op[] = "fixed_to_f32";
    REQUIRE(op, args->n_elements >= 0);
    REQUIRE(op, args->accumulator && args->values);
    REQUIRE(op, args->quantum_log2 >= -126 && args->quantum_log2 <= 0);
    return TD_OK;
}

td_status td_check_f32_add(const td_f32_add_args *args) {
    static const char op[] = "f32_add";
    REQUIRE(op, args->n_elements >= 0);
    REQUIRE(op, args->values && args->accumulator && args->faults);
    return TD_OK;
}

td_status td_check_sum_squares(const td_sum_squares_args *args) {
    static const char op[] = "sum_squares";
    REQUIRE(op, args->n_elements >= 0);
    REQUIRE(op, args->values && args->sum_squares);
    return TD_OK;
}

td_status td_check_word_sum(const td_word_sum_args *args) {
    static const char op[] = "word_sum";
    REQUIRE(op, args->n_elements >= 0);
    REQUIRE(op, args->words && args->sum);
    return TD_OK;
}

static td_status check_adamw(const char *op, const td_adamw_args *args) {
    REQUIRE(op, args->n_elements >= 0 && args->n_elements <= args->page_elements);
    REQUIRE(op, args->parameters && args->gradient && args->state);
    REQUIRE(op, args->step >= 1);
    return TD_OK;
}

td_status td_check_adamw(const td_adamw_args *args) {
    return check_adamw("adamw", args);
}

td_status td_check_adamw_8bit(const td_adamw_args *args) {
    return check_adamw("adamw_8bit", args);
}
