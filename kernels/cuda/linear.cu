// The linear layer with a frozen weight and LoRA: products by cuBLASLt, the weight converted to the
// activation type once per call.
//
// Small terms come first and the product with the weight last: y is the bias, then gains scaling *
// xa B^T, then x W^T, each product adding to what is there in fp32. With bf16 activations the sum
// is rounded at the size of the small terms before it is rounded once at its own. dx likewise.
// Dropout masks without scaling; its scale is a factor of the products that read the masked input.
#include "kernels/cuda/dequantize.cuh"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/workspace.cuh"

namespace {

constexpr int64_t max_grid_y = 65535;

// One call of linear_forward or linear_backward.
struct layer {
    const td_op_context *context;
    const char *op;
    td_dtype act;
    int64_t n_tokens, in, out;
    const td_matrix *weight;
    const td_lora_weights *lora; // or NULL
    int64_t panel_rows;
    td_cuda_linear_layout layout;
};

int has_dropout(const td_lora_weights *lora) {
    return lora && lora->dropout.threshold != 0;
}

// What a product with the dropped-out input is multiplied by, beside the mask.
float kept_scale(const td_lora_weights *lora) {
    return has_dropout(lora) ? lora->dropout.scale : 1.0f;
}

char *part(const layer *self, size_t offset) {
    return static_cast<char *>(self->context->workspace) + offset;
}

layer layer_of(const td_op_context *context, const char *op, int64_t n_tokens,
               const td_matrix *weight, const td_lora_weights *lora) {
    layer self = {};
    self.context = context;
    self.op = op;
    self.act = context->ops->activation;
    self.n_tokens = n_tokens;
    self.in = weight->cols;
    self.out = weight->rows;
    self.weight = weight;
    self.lora = lora;
    self.panel_rows = td_cuda_panel_rows(weight, self.act);
    return self;
}

// The parts that both directions need.
td_cuda_linear_parts common_parts(const layer *self, int with_weight) {
    td_cuda_linear_parts parts = {};
    int64_t rank = self->lora ? self->lora->rank : 0;
    if (with_weight && !td_cuda_weight_in_place(self->weight, self->act))
        parts.weight = self->panel_rows * self->in;
    if (has_dropout(self->lora))
        parts.masked = self->n_tokens * self->in;
    if (self->act == TD_BF16 && self->lora) {
        parts.a = self->lora->a_act ? 0 : rank * self->in;
        parts.b = self->lora->b_act ? 0 : self->out * rank;
    }
    return parts;
}

td_status lay_out(layer *self, const td_cuda_linear_parts *parts) {
    self->layout = td_cuda_linear_layout_of(parts, self->act);
    return td_cuda_need_workspace(self->context, self->op, self->layout.total);
}

// An fp32 array of n elements in the activation type: in place, or rounded into the workspace.
td_status as_act(const layer *self, const float *values, int64_t n, size_t offset,
                 const void **out) {
    *out = values;
    if (self->act == TD_F32)
        return TD_OK;
    *out = part(self, offset);
    return td_cuda_round_to_bf16(self->context, self->op, values, n, part(self, offset));
}

td_status lora_a(const layer *self, const void **out) {
    *out = self->lora->a_act;
    if (*out)
        return TD_OK;
    return as_act(self, self->lora->a, self->lora->rank * self->in, self->layout.a, out);
}

td_status lora_b(const layer *self, const void **out) {
    *out = self->lora->b_act;
    if (*out)
        return TD_OK;
    return as_act(self, self->lora->b, self->out * self->lora->rank, self->layout.b, out);
}

// The input that LoRA sees, but for the scale: x itself without dropout.
td_status masked_input(const layer *self, const void *x, const void **out) {
    *out = x;
    if (!has_dropout(self->lora))
        return TD_OK;
    *out = part(self, self->layout.masked);
    return td_cuda_dropout_mask(self->context, self->op, &self->lora->dropout,
                                self->n_tokens * self->in, x, part(self, self->layout.masked));
}

// Rows [row, row + rows) of the weight in the activation type.
td_status weight_panel(const layer *self, int64_t row, int64_t rows, const void **out) {
    const void *whole = td_cuda_weight_in_place(self->weight, self->act);
    if (whole) {
        *out = static_cast<const char *>(whole) +
               static_cast<size_t>(row * self->in) * td_dtype_bytes(self->act);
        return TD_OK;
    }
    *out = part(self, self->layout.weight);
    return td_cuda_dequantize_span(self->context, self->op, self->weight, row * self->in,
                                   rows * self->in, self->act, part(self, self->layout.weight));
}

int64_t rows_from(const layer *self, int64_t row) {
    return self->out - row < self->panel_rows ? self->out - row : self->panel_rows;
}

// A product with operands of the activation type, contiguous but for what the caller changes.
td_cuda_gemm_args product(const layer *self, int64_t m, int64_t n, int64_t k) {
    td_cuda_gemm_args args = {};
    args.m = m;
    args.n = n;
    args.k = k;
    args.alpha = 1.0f;
    args.lda = k;
    args.ldb = n;
    args.ldc = n;
    args.type = args.c_type = self->act;
    return args;
}

td_status multiply(const layer *self, const td_cuda_gemm_args *args) {
    return td_cuda_gemm(self->context, self->op, args);
}

// y[t] = bias; each thread has one column of every gridDim.y-th token.
template <typename T>
__global__ void __launch_bounds__(256)
    bias_kernel(const float *bias, int64_t n_tokens, int64_t out, T *y) {
    int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= out)
        return;
    T value = td_from_float<T>(bias[column]);
    for (int64_t t = blockIdx.y; t < n_tokens; t += gridDim.y)
        y[t * out + column] = value;
}

template <typename T> td_status fill_bias(const layer *self, const float *bias, T *y) {
    dim3 grid(td_cuda_blocks(self->out, 256),
              static_cast<unsigned>(self->n_tokens < max_grid_y ? self->n_tokens : max_grid_y));
    return td_cuda_launch(self->context, self->op, bias_kernel<T>, grid, 256, 0, bias,
                          self->n_tokens, self->out, y);
}

// xa = dropout(x) A^T
td_status lora_down(const layer *self, const td_linear_forward_args *args) {
    td_cuda_gemm_args down = product(self, self->n_tokens, self->lora->rank, self->in);
    down.transpose_b = 1;
    down.ldb = self->in;
    down.alpha = kept_scale(self->lora);
    TD_TRY(masked_input(self, args->x, &down.a));
    TD_TRY(lora_a(self, &down.b));
    down.c = args->xa;
    return multiply(self, &down);
}

// y (+)= scaling * xa B^T
td_status lora_up(const layer *self, const td_linear_forward_args *args) {
    td_cuda_gemm_args up = product(self, self->n_tokens, self->out, self->lora->rank);
    up.transpose_b = 1;
    up.ldb = self->lora->rank;
    up.alpha = self->lora->scaling;
    up.a = args->xa;
    TD_TRY(lora_b(self, &up.b));
    up.beta = args->bias ? 1.0f : 0.0f;
    up.c = args->y;
    return multiply(self, &up);
}

// y (+)= x W^T, panel by panel of its columns.
td_status base_forward(const layer *self, const td_linear_forward_args *args, td_dtype y_type) {
    for (int64_t row = 0, rows; row < self->out; row += rows) {
        rows = rows_from(self, row);
        td_cuda_gemm_args base = product(self, self->n_tokens, rows, self->in);
        base.transpose_b = 1;
        base.ldb = self->in;
        base.a = args->x;
        TD_TRY(weight_panel(self, row, rows, &base.b));
        base.beta = args->bias || self->lora ? 1.0f : 0.0f;
        base.c = static_cast<char *>(args->y) + static_cast<size_t>(row) * td_dtype_bytes(y_type);
        base.ldc = self->out;
        base.c_type = y_type;
        TD_TRY(multiply(self, &base));
    }
    return TD_OK;
}

td_status fill_output(const layer *self, const td_linear_forward_args *args, td_dtype y_type) {
    if (y_type == TD_F32)
        return fill_bias(self, args->bias, static_cast<float *>(args->y));
    return fill_bias(self, args->bias, static_cast<bf16 *>(args->y));
}

// dyb = scaling * dy B
td_status lora_dyb(const layer *self, const void *dy) {
    td_cuda_gemm_args dyb = product(self, self->n_tokens, self->lora->rank, self->out);
    dyb.alpha = self->lora->scaling;
    dyb.a = dy;
    TD_TRY(lora_b(self, &dyb.b));
    dyb.c = part(self, self->layout.dyb);
    return multiply(self, &dyb);
}

// db = scaling * dy^T xa in fp32
td_status lora_db(const layer *self, const td_linear_backward_args *args) {
    td_cuda_gemm_args db = product(self, self->out, self->lora->rank, self->n_tokens);
    db.transpose_a = 1;
    db.lda = self->out;
    db.alpha = self->lora->scaling;
    db.a = args->dy;
    db.b = args->xa;
    db.c = args->db;
    db.c_type = TD_F32;
    return multiply(self, &db);
}

// da = dyb^T dropout(x) in fp32
td_status lora_da(const layer *self, const td_linear_backward_args *args) {
    td_cuda_gemm_args da = product(self, self->lora->rank, self->in, self->n_tokens);
    da.transpose_a = 1;
    da.lda = self->lora->rank;
    da.alpha = kept_scale(self->lora);
    da.a = part(self, self->layout.dyb);
    TD_TRY(masked_input(self, args->x, &da.b));
    da.c = args->da;
    da.c_type = TD_F32;
    return multiply(self, &da);
}

// dx (+)= undropout(dyb A). The masked input is no longer needed: what dx must not take unmasked
// goes there first.
td_status lora_dx(const layer *self, const td_linear_backward_args *args) {
    int dropout = has_dropout(self->lora), aside = dropout && args->accumulate_dx;
    td_cuda_gemm_args dx = product(self, self->n_tokens, self->in, self->lora->rank);
    dx.alpha = kept_scale(self->lora);
    dx.a = part(self, self->layout.dyb);
    TD_TRY(lora_a(self, &dx.b));
    dx.c = aside ? part(self, self->layout.masked) : args->dx;
    dx.beta = args->accumulate_dx && !aside ? 1.0f : 0.0f;
    TD_TRY(multiply(self, &dx));
    if (!dropout)
        return TD_OK;
    auto *apply = aside ? td_cuda_dropout_add : td_cuda_dropout_mask;
    return apply(self->context, self->op, &self->lora->dropout, self->n_tokens * self->in, dx.c,
                 args->dx);
}

// dx (+)= dy W, summed panel by panel.
td_status base_backward(const layer *self, const td_linear_backward_args *args, const void *dy) {
    for (int64_t row = 0, rows; row < self->out; row += rows) {
        rows = rows_from(self, row);
        td_cuda_gemm_args base = product(self, self->n_tokens, self->in, rows);
        base.a =
            static_cast<const char *>(dy) + static_cast<size_t>(row) * td_dtype_bytes(self->act);
        base.lda = self->out;
        TD_TRY(weight_panel(self, row, rows, &base.b));
        base.beta = row > 0 || args->accumulate_dx || self->lora ? 1.0f : 0.0f;
        base.c = args->dx;
        TD_TRY(multiply(self, &base));
    }
    return TD_OK;
}

td_status lora_backward(const layer *self, const td_linear_backward_args *args) {
    TD_TRY(lora_dyb(self, args->dy));
    TD_TRY(lora_db(self, args));
    TD_TRY(lora_da(self, args));
    return args->dx ? lora_dx(self, args) : TD_OK;
}

} // namespace

td_status td_cuda_linear_forward(const td_op_context *context, const td_linear_forward_args *args) {
    layer self = layer_of(context, "linear_forward", args->n_tokens, args->weight, args->lora);
    td_cuda_linear_parts parts = common_parts(&self, 1);
    td_dtype y_type = args->y_is_f32 ? TD_F32 : self.act;
    TD_TRY(lay_out(&self, &parts));
    if (args->bias)
        TD_TRY(fill_output(&self, args, y_type));
    if (args->lora) {
        TD_TRY(lora_down(&self, args));
        TD_TRY(lora_up(&self, args));
    }
    return base_forward(&self, args, y_type);
}

td_status td_cuda_linear_backward(const td_op_context *context,
                                  const td_linear_backward_args *args) {
    layer self = layer_of(context, "linear_backward", args->n_tokens, args->weight, args->lora);
    td_cuda_linear_parts parts = common_parts(&self, args->dx != nullptr);
    const void *dy = args->dy;
    int rounds_dy = args->dy_is_f32 && self.act == TD_BF16;
    parts.dyb = args->lora ? self.n_tokens * args->lora->rank : 0;
    parts.dy = rounds_dy ? self.n_tokens * self.out : 0;
    TD_TRY(lay_out(&self, &parts));
    if (rounds_dy)
        TD_TRY(as_act(&self, static_cast<const float *>(args->dy), parts.dy, self.layout.dy, &dy));
    if (args->lora)
        TD_TRY(lora_backward(&self, args));
    return args->dx ? base_backward(&self, args, dy) : TD_OK;
}
