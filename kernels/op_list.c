#include "kernels/op_list.h"

#include <stddef.h>

_Static_assert(offsetof(td_ops, workspace_bytes) + (TD_OP_COUNT + 1) * sizeof(void (*)(void)) ==
                   sizeof(td_ops),
               "an operation of td_ops is missing from TD_EACH_OP");

const char *td_op_name(td_op op) {
#define NAME(name, args_type) #name,
    static const char *const names[] = {TD_EACH_OP(NAME)};
#undef NAME
    return names[op];
}

td_status td_op_call(const td_op_context *context, td_op op, const void *args) {
    switch (op) {
#define CALL(name, args_type)                                                                      \
    case TD_OP_##name:                                                                             \
        return context->ops->name(context, args);
        TD_EACH_OP(CALL)
#undef CALL
    default:
        return td_fail(TD_ERR_INTERNAL, "operation %d is not one of %d", (int)op, TD_OP_COUNT);
    }
}

static double matrix_bytes(const td_matrix *matrix) {
    double n = (double)matrix->rows * (double)matrix->cols;
    double absmax = matrix->absmax ? 4.0 : 1.0;
    switch (matrix->format) {
    case TD_MATRIX_NF4:
        return n * (0.5 + absmax / TD_NF4_BLOCK);
    case TD_MATRIX_BF16:
        return 2 * n;
    default:
        return 4 * n;
    }
}

static td_op_work linear_forward(const td_linear_forward_args *args, double act) {
    double t = (double)args->n_tokens, in = (double)args->weight->cols;
    double out = (double)args->weight->rows, rank = args->lora ? (double)args->lora->rank : 0;
    return (td_op_work){2 * t * in * out + 2 * t * rank * (in + out),
                        act * t * (in + rank) + (args->y_is_f32 ? 4 : act) * t * out +
                            matrix_bytes(args->weight) + 4 * rank * (in + out)};
}

static td_op_work linear_backward(const td_linear_backward_args *args, double act) {
    double t = (double)args->n_tokens, in = (double)args->weight->cols;
    double out = (double)args->weight->rows, rank = args->lora ? (double)args->lora->rank : 0;
    double dx = args->dx ? 1 : 0, reads_x = args->lora ? 1 : 0;
    return (td_op_work){dx * 2 * t * in * out + 2 * t * rank * ((1 + dx) * in + 2 * out),
                        (args->dy_is_f32 ? 4 : act) * t * out +
                            act * t * (rank + in * (reads_x + dx * (args->accumulate_dx ? 2 : 1))) +
                            dx * matrix_bytes(args->weight) + 8 * rank * (in + out)};
}

// Keys that a sequence's queries see, all together.
static double pairs_of(const td_attention_shape *shape, int64_t sequence) {
    double n_q = shape->cu_q[sequence + 1] - shape->cu_q[sequence];
    double n_k = shape->cu_k[sequence + 1] - shape->cu_k[sequence];
    double window = (double)shape->window, all = n_q * (n_k - n_q) + n_q * (n_q + 1) / 2;
    if (window <= 0 || window >= n_k)
        return all;
    double first = n_k - n_q + 1; // keys of the first query, without a window
    double short_rows = first < window ? window - first : 0;
    short_rows = short_rows < n_q ? short_rows : n_q;
    return short_rows * first + short_rows * (short_rows - 1) / 2 + (n_q - short_rows) * window;
}

static td_op_work attention(const td_attention_shape *shape, double per_pair, double rows,
                            double act) {
    double pairs = 0, heads = (double)shape->n_heads, dim = (double)shape->head_dim;
    for (int64_t s = 0; s < shape->n_sequences; s++)
        pairs += pairs_of(shape, s);
    double t_q = shape->cu_q[shape->n_sequences], t_k = shape->cu_k[shape->n_sequences];
    return (td_op_work){per_pair * pairs * heads * dim,
                        rows * act * dim * (t_q * heads + t_k * (double)shape->n_kv_heads) +
                            4 * t_q * heads};
}

// Of `count` elements, `bytes` each.
static td_op_work moved(double count, double bytes) {
    return (td_op_work){0, count * bytes};
}

static td_op_work rmsnorm(int64_t rows, int64_t cols, double moves, double act) {
    return moved((double)rows * (double)cols, moves * act);
}

// Reading a page's parameters, gradient and state, and writing all but the gradient.
static td_op_work adamw(const td_adamw_args *args, double state) {
    return moved((double)args->n_elements, 12 + 2 * state);
}

td_op_work td_op_work_of(td_op op, const void *args, td_dtype activation) {
    double act = (double)td_dtype_bytes(activation);
    const td_op_args *any = args;
    switch (op) {
    case TD_OP_linear_forward:
        return linear_forward(args, act);
    case TD_OP_linear_backward:
        return linear_backward(args, act);
    case TD_OP_attention_forward: // scores and their product with v
        return attention(&((const td_attention_forward_args *)args)->shape, 4, 2, act);
    case TD_OP_attention_backward: // scores again, dv, dp, dq and dk
        return attention(&((const td_attention_backward_args *)args)->shape, 10, 4, act);
    case TD_OP_nf4_quantize:
        return moved((double)any->nf4_quantize.n_elements, 4.5 + 4.0 / TD_NF4_BLOCK);
    case TD_OP_absmax_quantize: // read for the mean, and for the codes
        return moved((double)any->absmax_quantize.n_blocks, 9 + 4.0 / TD_NF4_NESTED_BLOCK);
    case TD_OP_dequantize:
        return (td_op_work){
            0, matrix_bytes(any->dequantize.matrix) * (double)any->dequantize.row_count /
                       (double)any->dequantize.matrix->rows +
                   4 * (double)any->dequantize.row_count * (double)any->dequantize.matrix->cols};
    case TD_OP_embedding:
        return moved((double)any->embedding.n_tokens * (double)any->embedding.table->cols,
                     act + (any->embedding.table->format == TD_MATRIX_BF16 ? 2 : 4));
    case TD_OP_rmsnorm_forward:
        return rmsnorm(any->rmsnorm_forward.n_rows, any->rmsnorm_forward.n_cols, 2, act);
    case TD_OP_rmsnorm_backward:
        return rmsnorm(any->rmsnorm_backward.n_rows, any->rmsnorm_backward.n_cols,
                       any->rmsnorm_backward.accumulate ? 4 : 3, act);
    case TD_OP_rope:
        return moved((double)any->rope.n_tokens * (double)any->rope.n_heads,
                     2 * act * (double)any->rope.head_dim);
    case TD_OP_glu_forward:
        return moved((double)any->glu_forward.n_rows * (double)any->glu_forward.n_cols, 3 * act);
    case TD_OP_glu_backward:
        return moved((double)any->glu_backward.n_rows * (double)any->glu_backward.n_cols, 5 * act);
    case TD_OP_add:
        return moved((double)any->add.n_elements, 3 * act);
    case TD_OP_gather_rows:
        return moved((double)any->gather_rows.n_rows * (double)any->gather_rows.n_cols, 2 * act);
    case TD_OP_scatter_rows:
        return moved((double)any->scatter_rows.n_cols,
                     act * (double)(any->scatter_rows.n_rows + any->scatter_rows.y_rows));
    case TD_OP_cross_entropy:
        return moved((double)any->cross_entropy.n_rows * (double)any->cross_entropy.n_vocabulary,
                     any->cross_entropy.gradient ? 8 : 4);
    case TD_OP_fixed_add:
        return moved((double)any->fixed_add.n_elements, 4 + 16);
    case TD_OP_fixed_to_f32:
        return moved((double)any->fixed_to_f32.n_elements, 8 + 4);
    case TD_OP_f32_add:
        return moved((double)any->f32_add.n_elements, 4 + 8);
    case TD_OP_sum_squares:
        return moved((double)any->sum_squares.n_elements, 4);
    case TD_OP_word_sum:
        return moved((double)any->word_sum.n_elements, 8);
    case TD_OP_adamw:
        return adamw(args, 8);
    case TD_OP_adamw_8bit:
        return adamw(args, 2 + 8.0 / 256);
    default:
        return (td_op_work){0};
    }
}

int td_op_is_product(td_op op) {
    return op == TD_OP_linear_forward || op == TD_OP_linear_backward ||
           op == TD_OP_attention_forward || op == TD_OP_attention_backward;
}

const char *td_op_formula(td_op op) {
    static const char *const formulas[TD_OP_COUNT] = {
        [TD_OP_linear_forward] = "2 T in out + 2 T r (in + out) flop",
        [TD_OP_linear_backward] = "2 T in out + 4 T r (in + out) flop",
        [TD_OP_attention_forward] = "4 D heads pairs flop",
        [TD_OP_attention_backward] = "10 D heads pairs flop",
        [TD_OP_nf4_quantize] = "(4 + 0.5 + 4/64) n bytes",
        [TD_OP_absmax_quantize] = "(8 + 1 + 4/256) blocks bytes",
        [TD_OP_dequantize] = "(0.5 + absmax/64 + 4) n bytes",
        [TD_OP_embedding] = "(table + act) T hidden bytes",
        [TD_OP_rmsnorm_forward] = "2 act n bytes",
        [TD_OP_rmsnorm_backward] = "(3, accumulating 4) act n bytes",
        [TD_OP_rope] = "2 act n bytes",
        [TD_OP_glu_forward] = "3 act n bytes",
        [TD_OP_glu_backward] = "5 act n bytes",
        [TD_OP_add] = "3 act n bytes",
        [TD_OP_gather_rows] = "2 act n bytes",
        [TD_OP_scatter_rows] = "act (n + all rows) bytes",
        [TD_OP_cross_entropy] = "8 rows vocabulary bytes",
        [TD_OP_fixed_add] = "20 n bytes",
        [TD_OP_fixed_to_f32] = "12 n bytes",
        [TD_OP_f32_add] = "12 n bytes",
        [TD_OP_sum_squares] = "4 n bytes",
        [TD_OP_word_sum] = "8 n bytes",
        [TD_OP_adamw] = "28 n bytes",
        [TD_OP_adamw_8bit] = "(12 + 4 + 16/256) n bytes",
    };
    return formulas[op];
}
