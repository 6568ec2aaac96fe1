// Finds the operations of a device. What callers get is a table whose functions check the shapes
// and then call the backend's.
#include "kernels/ops.h"

#include <pthread.h>
#include <stddef.h>
#include <string.h>

#include "kernels/ops_check.h"

static const td_ops *const backends[] = {&td_ops_cpu};

enum { N_BACKENDS = sizeof backends / sizeof backends[0] };

// The backend of a device has the device's name.
static int backend_index(const td_device *device) {
    for (int i = 0; i < N_BACKENDS; i++)
        if (strcmp(backends[i]->name, device->table->name) == 0)
            return i;
    return -1;
}

static td_status backend_of(const td_op_context *context, const td_ops **out) {
    int index = backend_index(context->device);
    if (index < 0)
        return td_fail(TD_ERR_INTERNAL, "no operations for device %s",
                       context->device->table->name);
    *out = backends[index];
    return TD_OK;
}

#define CHECKED(op, args_type)                                                                     \
    static td_status checked_##op(const td_op_context *context, const args_type *args) {           \
        const td_ops *backend = NULL;                                                              \
        TD_TRY(td_check_##op(args));                                                               \
        TD_TRY(backend_of(context, &backend));                                                     \
        return backend->op(context, args);                                                         \
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
CHECKED(swiglu_forward, td_swiglu_forward_args)
CHECKED(swiglu_backward, td_swiglu_backward_args)
CHECKED(add, td_add_args)
CHECKED(gather_rows, td_rows_args)
CHECKED(scatter_rows, td_rows_args)
CHECKED(cross_entropy, td_cross_entropy_args)
CHECKED(fixed_add, td_fixed_add_args)
CHECKED(fixed_to_f32, td_fixed_to_f32_args)
CHECKED(f32_add, td_f32_add_args)
CHECKED(sum_squares, td_sum_squares_args)
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
    .swiglu_forward = checked_swiglu_forward,
    .swiglu_backward = checked_swiglu_backward,
    .add = checked_add,
    .gather_rows = checked_gather_rows,
    .scatter_rows = checked_scatter_rows,
    .cross_entropy = checked_cross_entropy,
    .fixed_add = checked_fixed_add,
    .fixed_to_f32 = checked_fixed_to_f32,
    .f32_add = checked_f32_add,
    .sum_squares = checked_sum_squares,
    .adamw = checked_adamw,
    .adamw_8bit = checked_adamw_8bit,
};

static td_ops tables[N_BACKENDS];

static void make_tables(void) {
    for (int i = 0; i < N_BACKENDS; i++) {
        tables[i] = checked;
        tables[i].name = backends[i]->name;
        tables[i].activation = backends[i]->activation;
        tables[i].workspace_bytes = backends[i]->workspace_bytes;
    }
}

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
    SLOT(swiglu_forward),
    SLOT(swiglu_backward),
    SLOT(add),
    SLOT(gather_rows),
    SLOT(scatter_rows),
    SLOT(cross_entropy),
    SLOT(fixed_add),
    SLOT(fixed_to_f32),
    SLOT(f32_add),
    SLOT(sum_squares),
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

td_status td_ops_find(const td_device *device, const td_ops **out) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_tables);
    int index = backend_index(device);
    if (index < 0)
        return td_fail(TD_ERR_INTERNAL, "no operations for device %s", device->table->name);
    TD_TRY(td_ops_check_slots(backends[index]));
    TD_TRY(td_ops_check_slots(&tables[index]));
    *out = &tables[index];
    return TD_OK;
}
