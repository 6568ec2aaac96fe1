// The linear layer with a frozen weight and LoRA. A compressed weight is dequantized panel by
// panel, each panel small enough to be still in cache when the BLAS packs it. The LoRA parts are
// thin products, cut into fixed blocks that run side by side, because the BLAS does not split them
// well; the cuts do not depend on the number of threads.
#include <string.h>

#include "kernels/cpu/cpu_internal.h"
#include "kernels/cpu/weights_internal.h"

enum {
    PANEL_ELEMENTS = 512 << 10, // of a dequantized panel: 2 MiB
    PANEL_ROWS_STEP = 16,
    TOKEN_BLOCK = 64,   // tokens of one thin product
    TOKEN_CHUNK = 256,  // tokens that da sums up at once
    OUTPUT_BLOCK = 128, // rows of db per thin product
    COLUMN_BLOCK = 256, // columns of da per thin product
    SCRATCH_ALIGN = 64,
};

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t round_up(int64_t n, int64_t step) {
    return (n + step - 1) / step * step;
}

static int64_t panel_rows(int64_t cols) {
    int64_t rows = PANEL_ELEMENTS / cols / PANEL_ROWS_STEP * PANEL_ROWS_STEP;
    return rows > PANEL_ROWS_STEP ? rows : PANEL_ROWS_STEP;
}

// Tokens whose dropped-out input is held at once: enough blocks for every thread.
static int64_t chunk_tokens(int64_t n_tokens) {
    int64_t tokens = round_up((int64_t)td_cpu_threads() * TOKEN_BLOCK, TOKEN_CHUNK);
    return smaller(n_tokens, tokens);
}

static int has_dropout(const td_lora_weights *lora) {
    return lora && lora->dropout.threshold != 0;
}

typedef struct linear_scratch {
    float *panel;   // dequantized rows
    float *chunk;   // (chunk tokens, in): dropped-out input, or LoRA's part of dx
    uint64_t *mask; // one bit per element of chunk
    float *dyb;     // (T, rank): scaling * dy B
} linear_scratch;

typedef struct scratch_bytes {
    size_t panel, chunk, mask, dyb;
} scratch_bytes;

static size_t add_bytes(size_t a, size_t b) {
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

static size_t total_bytes(const scratch_bytes *bytes) {
    return add_bytes(add_bytes(bytes->panel, bytes->chunk), add_bytes(bytes->mask, bytes->dyb));
}

// Of `count` elements, rounded up so that what follows is as aligned as the whole.
static size_t aligned_bytes(int64_t count, size_t element_bytes) {
    return td_mul_bytes((size_t)round_up(count, SCRATCH_ALIGN), element_bytes);
}

static scratch_bytes bytes_of(const td_matrix *weight, const td_lora_weights *lora,
                              int64_t n_tokens, int backward) {
    scratch_bytes bytes = {0};
    int64_t chunk = chunk_tokens(n_tokens) * weight->cols;
    if (weight->format != TD_MATRIX_F32)
        bytes.panel = aligned_bytes(smaller(weight->rows, panel_rows(weight->cols)) * weight->cols,
                                    sizeof(float));
    if (has_dropout(lora)) {
        bytes.chunk = aligned_bytes(chunk, sizeof(float));
        bytes.mask = aligned_bytes((chunk + 63) / 64, sizeof(uint64_t));
    }
    if (lora && backward)
        bytes.dyb = aligned_bytes(n_tokens * lora->rank, sizeof(float));
    return bytes;
}

size_t td_cpu_linear_workspace_bytes(const td_workspace_query *query) {
    int64_t panel = query->max_in * PANEL_ROWS_STEP;
    int64_t tokens =
        query->max_tokens > query->max_head_tokens ? query->max_tokens : query->max_head_tokens;
    int64_t chunk = chunk_tokens(tokens) * query->max_in;
    scratch_bytes bytes = {
        .panel = aligned_bytes(panel > PANEL_ELEMENTS ? panel : PANEL_ELEMENTS, sizeof(float)),
    };
    if (query->max_rank > 0) {
        bytes.chunk = aligned_bytes(chunk, sizeof(float));
        bytes.mask = aligned_bytes((chunk + 63) / 64, sizeof(uint64_t));
        bytes.dyb = aligned_bytes(tokens * query->max_rank, sizeof(float));
    }
    return total_bytes(&bytes);
}

static td_status carve(const td_op_context *context, const char *op, const scratch_bytes *bytes,
                       linear_scratch *out) {
    TD_TRY(td_cpu_need_workspace(context, op, total_bytes(bytes)));
    char *memory = context->workspace;
    out->panel = (float *)memory;
    out->chunk = (float *)(memory + bytes->panel);
    out->mask = (uint64_t *)(memory + bytes->panel + bytes->chunk);
    out->dyb = (float *)(memory + bytes->panel + bytes->chunk + bytes->mask);
    return TD_OK;
}

// Rows [row, row + count) of the weight in fp32: in place, or in the scratch panel.
typedef struct weight_panel {
    const float *data;
    int64_t row, count;
} weight_panel;

static weight_panel load_panel(const td_matrix *weight, int64_t row, float *buffer) {
    if (weight->format == TD_MATRIX_F32)
        return (weight_panel){weight->data, 0, weight->rows};
    int64_t count = smaller(panel_rows(weight->cols), weight->rows - row);
    td_cpu_dequantize_rows(weight, row, count, buffer);
    return (weight_panel){buffer, row, count};
}

// The product in blocks of `block` rows of c, side by side.
static void gemm_by_rows(const td_cpu_gemm_args *args, int64_t block) {
    int64_t parts = (args->m + block - 1) / block;
#pragma omp parallel for schedule(static) num_threads(td_cpu_threads()) if (parts > 1)
    for (int64_t i = 0; i < parts; i++) {
        td_cpu_gemm_args part = *args;
        part.m = smaller(block, args->m - i * block);
        part.a += i * block * (args->transpose_a ? 1 : args->lda);
        part.c += i * block * args->ldc;
        td_cpu_gemm(&part);
    }
}

static void gemm_by_columns(const td_cpu_gemm_args *args, int64_t block) {
    int64_t parts = (args->n + block - 1) / block;
#pragma omp parallel for schedule(static) num_threads(td_cpu_threads()) if (parts > 1)
    for (int64_t i = 0; i < parts; i++) {
        td_cpu_gemm_args part = *args;
        part.n = smaller(block, args->n - i * block);
        part.b += i * block * (args->transpose_b ? args->ldb : 1);
        part.c += i * block;
        td_cpu_gemm(&part);
    }
}

// mask and chunk of tokens [token, token + count).
static void drop_chunk(const linear_scratch *scratch, const td_dropout *dropout, const float *x,
                       int64_t in, int64_t token, int64_t count) {
    int threads = td_cpu_threads();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        td_cpu_range range = td_cpu_split(count * in, 64, threads, part);
        int64_t first = token * in + range.begin, n = range.end - range.begin;
        uint64_t *mask = scratch->mask + range.begin / 64;
        td_cpu_dropout_mask(dropout, (uint64_t)first, n, mask);
        td_cpu_dropout_apply(mask, n, dropout->scale, x + first, scratch->chunk + range.begin);
    }
}

// dx += undropout(chunk) for the tokens whose mask is in the scratch.
static void undrop_chunk(const linear_scratch *scratch, const td_dropout *dropout, float *dx,
                         int64_t n) {
    int threads = td_cpu_threads();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        td_cpu_range range = td_cpu_split(n, 64, threads, part);
        td_cpu_dropout_accumulate(scratch->mask + range.begin / 64, range.end - range.begin,
                                  dropout->scale, scratch->chunk + range.begin, dx + range.begin);
    }
}

// xa = dropout(x) A^T
static void lora_down(const td_linear_forward_args *args, const linear_scratch *scratch) {
    const td_lora_weights *lora = args->lora;
    int64_t in = args->weight->cols, step = chunk_tokens(args->n_tokens);
    for (int64_t token = 0; token < args->n_tokens; token += step) {
        int64_t count = smaller(step, args->n_tokens - token);
        const float *x = (const float *)args->x + token * in;
        if (has_dropout(lora)) {
            drop_chunk(scratch, &lora->dropout, args->x, in, token, count);
            x = scratch->chunk;
        }
        td_cpu_gemm_args product = {.transpose_b = 1,
                                    .m = count,
                                    .n = lora->rank,
                                    .k = in,
                                    .alpha = 1.0f,
                                    .a = x,
                                    .lda = in,
                                    .b = lora->a,
                                    .ldb = in,
                                    .c = (float *)args->xa + token * lora->rank,
                                    .ldc = lora->rank};
        gemm_by_rows(&product, TOKEN_BLOCK);
    }
}

static void fill_bias(const td_linear_forward_args *args, int64_t column, int64_t count) {
    int64_t out = args->weight->rows;
#pragma omp parallel for schedule(static) num_threads(td_cpu_threads())
    for (int64_t t = 0; t < args->n_tokens; t++)
        memcpy((float *)args->y + t * out + column, args->bias + column,
               (size_t)count * sizeof(float));
}

// y[:, panel] = x W^T + bias + scaling * xa B^T
static void forward_panel(const td_linear_forward_args *args, const weight_panel *panel) {
    int64_t in = args->weight->cols, out = args->weight->rows;
    if (args->bias)
        fill_bias(args, panel->row, panel->count);
    td_cpu_gemm_args product = {.transpose_b = 1,
                                .m = args->n_tokens,
                                .n = panel->count,
                                .k = in,
                                .alpha = 1.0f,
                                .a = args->x,
                                .lda = in,
                                .b = panel->data,
                                .ldb = in,
                                .beta = args->bias ? 1.0f : 0.0f,
                                .c = (float *)args->y + panel->row,
                                .ldc = out};
    td_cpu_gemm(&product);
    const td_lora_weights *lora = args->lora;
    if (!lora)
        return;
    product.k = product.lda = product.ldb = lora->rank;
    product.alpha = lora->scaling;
    product.a = args->xa;
    product.b = lora->b + panel->row * lora->rank;
    product.beta = 1.0f;
    gemm_by_rows(&product, TOKEN_BLOCK);
}

td_status td_cpu_linear_forward(const td_op_context *context, const td_linear_forward_args *args) {
    if (args->n_tokens <= TD_CPU_FEW_TOKENS && !has_dropout(args->lora)) {
        td_cpu_linear_few(args);
        return TD_OK;
    }
    linear_scratch scratch;
    scratch_bytes bytes = bytes_of(args->weight, args->lora, args->n_tokens, 0);
    TD_TRY(carve(context, "linear_forward", &bytes, &scratch));
    if (args->lora)
        lora_down(args, &scratch);
    for (int64_t row = 0; row < args->weight->rows;) {
        weight_panel panel = load_panel(args->weight, row, scratch.panel);
        forward_panel(args, &panel);
        row += panel.count;
    }
    return TD_OK;
}

// dx (+)= dy W, panel by panel of W's rows.
static void base_dx(const td_linear_backward_args *args, const linear_scratch *scratch) {
    int64_t in = args->weight->cols, out = args->weight->rows;
    for (int64_t row = 0; row < out;) {
        weight_panel panel = load_panel(args->weight, row, scratch->panel);
        td_cpu_gemm_args product = {.m = args->n_tokens,
                                    .n = in,
                                    .k = panel.count,
                                    .alpha = 1.0f,
                                    .a = (const float *)args->dy + row,
                                    .lda = out,
                                    .b = panel.data,
                                    .ldb = in,
                                    .beta = row > 0 || args->accumulate_dx ? 1.0f : 0.0f,
                                    .c = args->dx,
                                    .ldc = in};
        td_cpu_gemm(&product);
        row += panel.count;
    }
}

// dyb = scaling * dy B and db = scaling * dy^T xa
static void lora_output_side(const td_linear_backward_args *args, const linear_scratch *scratch) {
    const td_lora_weights *lora = args->lora;
    int64_t out = args->weight->rows, rank = lora->rank;
    td_cpu_gemm_args dyb = {.m = args->n_tokens,
                            .n = rank,
                            .k = out,
                            .alpha = lora->scaling,
                            .a = args->dy,
                            .lda = out,
                            .b = lora->b,
                            .ldb = rank,
                            .c = scratch->dyb,
                            .ldc = rank};
    gemm_by_rows(&dyb, TOKEN_BLOCK);
    td_cpu_gemm_args db = {.transpose_a = 1,
                           .m = out,
                           .n = rank,
                           .k = args->n_tokens,
                           .alpha = lora->scaling,
                           .a = args->dy,
                           .lda = out,
                           .b = args->xa,
                           .ldb = rank,
                           .c = args->db,
                           .ldc = rank};
    gemm_by_rows(&db, OUTPUT_BLOCK);
}

// da += dyb^T x for `count` tokens, of which x and dyb point to the first; summed TOKEN_CHUNK
// tokens at a time.
static void lora_da(const td_linear_backward_args *args, const float *x, const float *dyb,
                    int64_t count, int first) {
    int64_t in = args->weight->cols, rank = args->lora->rank;
    for (int64_t token = 0; token < count; token += TOKEN_CHUNK) {
        td_cpu_gemm_args da = {.transpose_a = 1,
                               .m = rank,
                               .n = in,
                               .k = smaller(TOKEN_CHUNK, count - token),
                               .alpha = 1.0f,
                               .a = dyb + token * rank,
                               .lda = rank,
                               .b = x + token * in,
                               .ldb = in,
                               .beta = first && token == 0 ? 0.0f : 1.0f,
                               .c = args->da,
                               .ldc = in};
        gemm_by_columns(&da, COLUMN_BLOCK);
    }
}

// da, and LoRA's part of dx, for tokens [token, token + count).
static void lora_input_side(const td_linear_backward_args *args, const linear_scratch *scratch,
                            int64_t token, int64_t count) {
    const td_lora_weights *lora = args->lora;
    int64_t in = args->weight->cols;
    const float *x = (const float *)args->x + token * in, *dyb = scratch->dyb + token * lora->rank;
    int dropout = has_dropout(lora);
    if (dropout) {
        drop_chunk(scratch, &lora->dropout, args->x, in, token, count);
        x = scratch->chunk;
    }
    lora_da(args, x, dyb, count, token == 0);
    if (!args->dx)
        return;
    float *dx = (float *)args->dx + token * in;
    td_cpu_gemm_args product = {.m = count,
                                .n = in,
                                .k = lora->rank,
                                .alpha = 1.0f,
                                .a = dyb,
                                .lda = lora->rank,
                                .b = lora->a,
                                .ldb = in,
                                .beta = dropout ? 0.0f : 1.0f,
                                .c = dropout ? scratch->chunk : dx,
                                .ldc = in};
    gemm_by_rows(&product, TOKEN_BLOCK);
    if (dropout)
        undrop_chunk(scratch, &lora->dropout, dx, count * in);
}

td_status td_cpu_linear_backward(const td_op_context *context,
                                 const td_linear_backward_args *args) {
    linear_scratch scratch;
    scratch_bytes bytes = bytes_of(args->weight, args->lora, args->n_tokens, 1);
    TD_TRY(carve(context, "linear_backward", &bytes, &scratch));
    if (args->dx)
        base_dx(args, &scratch);
    if (!args->lora)
        return TD_OK;
    lora_output_side(args, &scratch);
    int64_t step = chunk_tokens(args->n_tokens);
    for (int64_t token = 0; token < args->n_tokens; token += step)
        lora_input_side(args, &scratch, token, smaller(step, args->n_tokens - token));
    return TD_OK;
}
