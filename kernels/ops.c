// What callers get is a table whose functions check the shapes and then call the backend's.
#include "kernels/ops.h"

#include <pthread.h>
#include <stddef.h>
#include <string.h>

#include "kernels/ops_check.h"

enum { MAX_BACKENDS = 8 };

// What callers get, and the backend behind it. A table comes first, so that a context's `ops` leads
// here.
typedef struct checked_table {
    td_ops table;
    const td_ops *backend;
} checked_table;

static checked_table tables[MAX_BACKENDS];
static pthread_mutex_t tables_lock = PTHREAD_MUTEX_INITIALIZER;

#define CHECKED(op, args_type)                                                                     \
    static td_status checked_##op(const td_op_context *context, const args_type *args) {           \
        TD_TRY(td_check_##op(args));                                                               \
        return ((const checked_table *)context->ops)->backend->op(context, args);                  \
    }

CHECKED(linear_forward, td_linear_forward_args)
CHECKED(linear_backward, td_linear_backward_args)
CHECKED(nf4_quantize, td_nf4_quantize_args)
CHECKED(absmax_quantize, td_absmax_quantize_args)
CHECKED(dequantize, td_dequantize_args)
CHECKED(embedding, td_embedding_args)
CHECKED(rmsnorm_forward, td_rmsnorm_forward_args)
CHECKED(rmsnorm_backward, td_rmsnorm_backward_args)
CHECKED(rope, td_rope_args)
CHECKED(attention_forward, td_attention_forward_args)
CHECKED(attention_backward, td_attention_backward_args)
CHECKED(glu_forward, td_glu_forward_args)
CHECKED(glu_backward, td_glu_backward_args)
CHECKED(add, td_add_args)
CHECKED(gather_rows, td_rows_args)
CHECKED(scatter_rows, td_rows_args)
CHECKED(cross_entropy, td_cross_entropy_args)
CHECKED(fixed_add, td_fixed_add_args)
CHECKED(fixed_to_f32, td_fixed_to_f32_args)
CHECKED(f32_add, td_f32_add_args)
CHECKED(sum_squares, td_sum_squares_args)
CHECKED(word_sum, td_word_sum_args)
CHECKED(adamw, td_adamw_args)
CHECKED(adamw_8bit, td_adamw_args)

static const td_ops checked = {
    .linear_forward = checked_linear_forward,
    .linear_backward = checked_linear_backward,
    .nf4_quantize = checked_nf4_quantize,
    .absmax_quantize = checked_absmax_quantize,
    .dequantize = checked_dequantize,
    .embedding = checked_embedding,
    .rmsnorm_forward = checked_rmsnorm_forward,
    .rmsnorm_backward = checked_rmsnorm_backward,
    .rope = checked_rope,
    .attention_forward = checked_attention_forward,
    .attention_backward = checked_attention_backward,
    .glu_forward = checked_glu_forward,
    .glu_backward = checked_glu_backward,
    .add = checked_add,
    .gather_rows = checked_gather_rows,
    .scatter_rows = checked_scatter_rows,
    .cross_entropy = checked_cross_entropy,
    .fixed_add = checked_fixed_add,
    .fixed_to_f32 = checked_fixed_to_f32,
    .f32_add = checked_f32_add,
    .sum_squares = checked_sum_squares,
    .word_sum = checked_word_sum,
    .adamw = checked_adamw,
    .adamw_8bit = checked_adamw_8bit,
};

typedef struct op_slot {
    const char *name;
    size_t offset;
} op_slot;

#define SLOT(op)                                                                                   \
    { #op, offsetof(td_ops, op) }

// Every function of the table, in its order.
static const op_slot slots[] = {
    SLOT(workspace_bytes),
    SLOT(linear_forward),
    SLOT(linear_backward),
    SLOT(nf4_quantize),
    SLOT(absmax_quantize),
    SLOT(dequantize),
    SLOT(embedding),
    SLOT(rmsnorm_forward),
    SLOT(rmsnorm_backward),
    SLOT(rope),
    SLOT(attention_forward),
    SLOT(attention_backward),
    SLOT(glu_forward),
    SLOT(glu_backward),
    SLOT(add),
    SLOT(gather_rows),
    SLOT(scatter_rows),
    SLOT(cross_entropy),
    SLOT(fixed_add),
    SLOT(fixed_to_f32),
    SLOT(f32_add),
    SLOT(sum_squares),
    SLOT(word_sum),
    SLOT(adamw),
    SLOT(adamw_8bit),
};

typedef void (*any_function)(void);

_Static_assert(offsetof(td_ops, workspace_bytes) +
                       sizeof slots / sizeof slots[0] * sizeof(any_function) ==
                   sizeof(td_ops),
               "an operation of td_ops is missing from the list of slots");

td_status td_ops_check_slots(const td_ops *ops) {
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        any_function function;
        memcpy(&function, (const char *)ops + slots[i].offset, sizeof function);
        if (!function)
            return td_fail(TD_ERR_INTERNAL, "backend %s has no operation %s", ops->name,
                           slots[i].name);
    }
    return TD_OK;
}

// The table of a backend that is known already, or a new one; NULL when there is no room.
static const td_ops *table_of(const td_ops *backend) {
    for (int i = 0; i < MAX_BACKENDS; i++) {
        if (tables[i].backend == backend)
            return &tables[i].table;
        if (tables[i].backend)
            continue;
        tables[i].table = checked;
        tables[i].table.name = backend->name;
        tables[i].table.activation = backend->activation;
        tables[i].table.product = backend->product;
        tables[i].table.draw_weights = backend->draw_weights;
        tables[i].table.workspace_bytes = backend->workspace_bytes;
        tables[i].backend = backend;
        return &tables[i].table;
    }
    return NULL;
}

td_status td_ops_check(const td_ops *backend, const td_ops **out) {
    TD_TRY(td_ops_check_slots(backend));
    pthread_mutex_lock(&tables_lock);
    const td_ops *table = table_of(backend);
    pthread_mutex_unlock(&tables_lock);
    if (!table)
        return td_fail(TD_ERR_INTERNAL, "more than %d backends of operations", MAX_BACKENDS);
    TD_TRY(td_ops_check_slots(table));
    *out = table;
    return TD_OK;
}
