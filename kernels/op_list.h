// The operations as values: a number for each, its name, a call by number, and the work that a call
// asks for. For benchmarks; the training step calls the table's functions by name.
#ifndef TANDEM_KERNELS_OP_LIST_H
#define TANDEM_KERNELS_OP_LIST_H

#include "kernels/ops.h"

// X(operation, type of its arguments), in the order of the table.
#define TD_EACH_OP(X)                                                                              \
    X(linear_forward, td_linear_forward_args)                                                      \
    X(linear_backward, td_linear_backward_args)                                                    \
    X(nf4_quantize, td_nf4_quantize_args)                                                          \
    X(absmax_quantize, td_absmax_quantize_args)                                                    \
    X(dequantize, td_dequantize_args)                                                              \
    X(embedding, td_embedding_args)                                                                \
    X(rmsnorm_forward, td_rmsnorm_forward_args)                                                    \
    X(rmsnorm_backward, td_rmsnorm_backward_args)                                                  \
    X(rope, td_rope_args)                                                                          \
    X(attention_forward, td_attention_forward_args)                                                \
    X(attention_backward, td_attention_backward_args)                                              \
    X(glu_forward, td_glu_forward_args)                                                            \
    X(glu_backward, td_glu_backward_args)                                                          \
    X(add, td_add_args)                                                                            \
    X(gather_rows, td_rows_args)                                                                   \
    X(scatter_rows, td_rows_args)                                                                  \
    X(cross_entropy, td_cross_entropy_args)                                                        \
    X(fixed_add, td_fixed_add_args)                                                                \
    X(fixed_to_f32, td_fixed_to_f32_args)                                                          \
    X(f32_add, td_f32_add_args)                                                                    \
    X(sum_squares, td_sum_squares_args)                                                            \
    X(word_sum, td_word_sum_args)                                                                  \
    X(adamw, td_adamw_args)                                                                        \
    X(adamw_8bit, td_adamw_args)

#define TD_OP_NUMBER(op, args_type) TD_OP_##op,
typedef enum td_op { TD_EACH_OP(TD_OP_NUMBER) TD_OP_COUNT } td_op;
#undef TD_OP_NUMBER

#define TD_OP_MEMBER(op, args_type) args_type op;
// `op` says which member; all of them may be zero.
typedef union td_op_args {
    TD_EACH_OP(TD_OP_MEMBER)
} td_op_args;
#undef TD_OP_MEMBER

const char *td_op_name(td_op op); // "linear_forward"
// context->ops' function of that number. `args` is of the operation's type.
td_status td_op_call(const td_op_context *context, td_op op, const void *args);

// What a call needs at least: multiply-adds counted as two, and every operand read once and every
// result written once.
typedef struct td_op_work {
    double flops, bytes;
} td_op_work;
td_op_work td_op_work_of(td_op op, const void *args, td_dtype activation);
// The formula of the above that bounds the operation, for a person: "2 T in out + 2 T r (in +
// out)".
const char *td_op_formula(td_op op);
// Whether products bound it (flops), or memory (bytes).
int td_op_is_product(td_op op);

#endif
