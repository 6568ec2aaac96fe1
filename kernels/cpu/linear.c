// The linear layer with a frozen weight and LoRA. A compressed weight is dequantized panel by
// panel, each panel small enough to be still in cache when the BLAS packs it. The LoRA parts are
// thin products, cut into fixed blocks that run side by side, because the BLAS does not split them
// well; the cuts do not depend on the number of threads.
#include <string.h>

#include "kernels/cpu/cpu_internal.h"
#include "kernels/cpu/weights_internal.h"

enum {
    TILE_ELEMENTS = 1 << 20, // of a dequantized tile: 4 MiB
    TILE_COLUMNS = 1280,     // at most; wide and tall tiles both mean that x or dy is packed seldom
    TILE_STEP = 16,
    TILE_PADDING = 16,           // between rows, so that equal columns do not share a cache set
    TOKEN_BLOCK = 64,            // tokens of one thin product
    TOKEN_CHUNK = 256,           // tokens that da sums up at once
    OUTPUT_BLOCK = 128,          // rows of db per thin product
    COLUMN_BLOCK = 256,          // columns of da per thin product
    PARALLEL_PRODUCTS = 1 << 18, // multiply-adds below which one thread is as fast
    SCRATCH_ALIGN = 64,
};

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t round_up(int64_t n, int64_t step) {
    return (n + step - 1) / step * step;
}

// Extents of the dequantized tiles of a matrix; stride is from row to row.
typedef struct tile_shape {
    int64_t rows, cols, stride;
} tile_shape;

static tile_shape tile_shape_of(int64_t rows, int64_t cols) {
    int64_t parts = (cols + TILE_COLUMNS - 1) / TILE_COLUMNS;
    int64_t width = smaller(cols, round_up((cols + parts - 1) / parts, TD_NF4_BLOCK));
    int64_t stride = round_up(width, TILE_STEP) + TILE_PADDING;
    int64_t height = TILE_ELEMENTS / stride / TILE_STEP * TILE_STEP;
    return (tile_shape){smaller(rows, height), width, stride};
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
    float *tile;    // dequantized part of the weight
    float *chunk;   // (chunk tokens, in): dropped-out input, or LoRA's part of dx
    uint64_t *mask; // one bit per element of chunk
    float *dyb;     // (T, rank): scaling * dy B
} linear_scratch;

typedef struct scratch_bytes {
    size_t tile, chunk, mask, dyb;
} scratch_bytes;

static size_t add_bytes(size_t a, size_t b) {
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

static size_t total_bytes(const scratch_bytes *bytes) {
    return add_bytes(add_bytes(bytes->tile, bytes->chunk), add_bytes(bytes->mask, bytes->dyb));
}

// Of `count` elements, rounded up so that what follows is as aligned as the whole.
static size_t aligned_bytes(int64_t count, size_t element_bytes) {
    return td_mul_bytes((size_t)round_up(count, SCRATCH_ALIGN), element_bytes);
}

static scratch_bytes bytes_of(const td_matrix *weight, const td_lora_weights *lora,
                              int64_t n_tokens, int backward) {
    scratch_bytes bytes = {0};
    int64_t chunk = chunk_tokens(n_tokens) * weight->cols;
    if (weight->format != TD_MATRIX_F32) {
        tile_shape shape = tile_shape_of(weight->rows, weight->cols);
        bytes.tile = aligned_bytes(shape.rows * shape.stride, sizeof(float));
    }
    if (has_dropout(lora)) {
        bytes.chunk = aligned_bytes(chunk, sizeof(float));
        bytes.mask = aligned_bytes((chunk + 63) / 64, sizeof(uint64_t));
    }
    if (lora && backward)
        bytes.dyb = aligned_bytes(n_tokens * lora->rank, sizeof(float));
    return bytes;
}

size_t td_cpu_linear_workspace_bytes(const td_workspace_query *query) {
    int64_t tokens =
        query->max_tokens > query->max_head_tokens ? query->max_tokens : query->max_head_tokens;
    int64_t chunk = chunk_tokens(tokens) * query->max_in;
    scratch_bytes bytes = {.tile = aligned_bytes(TILE_ELEMENTS, sizeof(float))};
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
    out->tile = (void *)memory;
    out->chunk = (void *)(memory + bytes->tile);
    out->mask = (void *)(memory + bytes->tile + bytes->chunk);
    out->dyb = (void *)(memory + bytes->tile + bytes->chunk + bytes->mask);
    return TD_OK;
}

// Rows [row, row + rows) and columns [col, col + cols) of the weight in fp32: in place, or in the
// scratch.
typedef struct weight_tile {
    const float *data;
    int64_t row, rows, col, cols, stride;
} weight_tile;

static void dequantize_tile(const td_matrix *weight, const weight_tile *tile, float *out) {
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (tile->rows * tile->cols > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t i = 0; i < tile->rows; i++) {
        int64_t begin = (tile->row + i) * weight->cols + tile->col;
        td_cpu_dequantize_span(weight, begin, begin + tile->cols, out + i * tile->stride);
    }
}

static weight_tile load_tile(const td_matrix *weight, int64_t row, int64_t col, float *buffer) {
    if (weight->format == TD_MATRIX_F32)
        return (weight_tile){weight->data, 0, weight->rows, 0, weight->cols, weight->cols};
    tile_shape shape = tile_shape_of(weight->rows, weight->cols);
    weight_tile tile = {buffer,
                        row,
                        smaller(shape.rows, weight->rows - row),
                        col,
                        smaller(shape.cols, weight->cols - col),
                        shape.stride};
    dequantize_tile(weight, &tile, buffer);
    return tile;
}

static int worth_a_team(const td_cpu_gemm_args *args, int64_t parts) {
    return parts > 1 && args->m * args->n > PARALLEL_PRODUCTS / args->k;
}

// The product in blocks of `block` rows of c, side by side.
static void gemm_by_rows(const td_cpu_gemm_args *args, int64_t block) {
    int64_t parts = (args->m + block - 1) / block;
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (worth_a_team(args, parts))
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
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (worth_a_team(args, parts))
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
    int threads = count * in > TD_CPU_PARALLEL_ELEMENTS ? td_cpu_threads() : 1;
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
    int threads = n > TD_CPU_PARALLEL_ELEMENTS ? td_cpu_threads() : 1;
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

static void fill_bias(const td_linear_forward_args *args) {
    int64_t out = args->weight->rows;
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (args->n_tokens * out > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t t = 0; t < args->n_tokens; t++)
        memcpy((float *)args->y + t * out, args->bias, (size_t)out * sizeof(float));
}

// y[:, tile rows] (+)= x[:, tile columns] W^T
static void forward_tile(const td_linear_forward_args *args, const weight_tile *tile) {
    td_cpu_gemm_args product = {.transpose_b = 1,
                                .m = args->n_tokens,
                                .n = tile->rows,
                                .k = tile->cols,
                                .alpha = 1.0f,
                                .a = (const float *)args->x + tile->col,
                                .lda = args->weight->cols,
                                .b = tile->data,
                                .ldb = tile->stride,
                                .beta = args->bias || tile->col > 0 ? 1.0f : 0.0f,
                                .c = (float *)args->y + tile->row,
                                .ldc = args->weight->rows};
    td_cpu_gemm(&product);
}

// y[:, rows] += scaling * xa B^T
static void lora_up(const td_linear_forward_args *args, int64_t row, int64_t rows) {
    const td_lora_weights *lora = args->lora;
    td_cpu_gemm_args product = {.transpose_b = 1,
                                .m = args->n_tokens,
                                .n = rows,
                                .k = lora->rank,
                                .alpha = lora->scaling,
                                .a = args->xa,
                                .lda = lora->rank,
                                .b = lora->b + row * lora->rank,
                                .ldb = lora->rank,
                                .beta = 1.0f,
                                .c = (float *)args->y + row,
                                .ldc = args->weight->rows};
    gemm_by_rows(&product, TOKEN_BLOCK);
}

// All columns of one row of tiles; returns how many rows those were.
static int64_t forward_rows(const td_linear_forward_args *args, int64_t row, float *buffer) {
    weight_tile tile = {0};
    for (int64_t col = 0; col < args->weight->cols; col += tile.cols) {
        tile = load_tile(args->weight, row, col, buffer);
        forward_tile(args, &tile);
    }
    if (args->lora)
        lora_up(args, row, tile.rows);
    return tile.rows;
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
    if (args->bias)
        fill_bias(args);
    for (int64_t row = 0; row < args->weight->rows;)
        row += forward_rows(args, row, scratch.tile);
    return TD_OK;
}

// dx[:, tile columns] (+)= dy[:, tile rows] W
static void backward_tile(const td_linear_backward_args *args, const weight_tile *tile) {
    td_cpu_gemm_args product = {.m = args->n_tokens,
                                .n = tile->cols,
                                .k = tile->rows,
                                .alpha = 1.0f,
                                .a = (const float *)args->dy + tile->row,
                                .lda = args->weight->rows,
                                .b = tile->data,
                                .ldb = tile->stride,
                                .beta = tile->row > 0 || args->accumulate_dx ? 1.0f : 0.0f,
                                .c = (float *)args->dx + tile->col,
                                .ldc = args->weight->cols};
    td_cpu_gemm(&product);
}

static void base_dx(const td_linear_backward_args *args, float *buffer) {
    weight_tile tile = {0};
    for (int64_t row = 0; row < args->weight->rows; row += tile.rows)
        for (int64_t col = 0; col < args->weight->cols; col += tile.cols) {
            tile = load_tile(args->weight, row, col, buffer);
            backward_tile(args, &tile);
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
        base_dx(args, scratch.tile);
    if (!args->lora)
        return TD_OK;
    lora_output_side(args, &scratch);
    int64_t step = chunk_tokens(args->n_tokens);
    for (int64_t token = 0; token < args->n_tokens; token += step)
        lora_input_side(args, &scratch, token, smaller(step, args->n_tokens - token));
    return TD_OK;
}
