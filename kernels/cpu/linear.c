// The linear layer with a frozen weight and LoRA: matrix products whose right operand is
// dequantized as it is packed (gemm_internal.h). LoRA's part of an output is summed with the base
// weight's, as further columns of x or dy.
#include <omp.h>
#include <string.h>

#include "kernels/cpu/bf16_pairs.h"
#include "kernels/cpu/gemm_internal.h"
#include "kernels/cpu/weights_internal.h"

enum {
    TOKEN_CHUNK = 256,           // tokens whose dropped-out input is held at once
    PARALLEL_PRODUCTS = 1 << 18, // multiply-adds below which one thread is as fast
    SCRATCH_ALIGN = 64,
};

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int has_dropout(const td_lora_weights *lora) {
    return lora && lora->dropout.threshold != 0;
}

typedef struct linear_scratch {
    int bf16;              // 1: products in bf16, as the table says
    float *packed;         // of every thread
    int64_t packed_floats; // of one thread
    float *chunk;          // (chunk tokens, in): dropped-out input, or LoRA's part of dx
    uint64_t *mask;        // one bit per element of chunk
    float *dyb;            // (T, rank): scaling * dy B
    float *db;             // (rank, out): transposed, not scaled
    float *words;          // (T, words_row): x or dy rounded to pairs of bf16; or NULL
    int64_t words_row;
} linear_scratch;

typedef struct scratch_bytes {
    size_t packed, chunk, mask, dyb, db;
} scratch_bytes;

static size_t add_bytes(size_t a, size_t b) {
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

static size_t total_bytes(const scratch_bytes *bytes) {
    size_t backward = add_bytes(bytes->dyb, bytes->db);
    return add_bytes(add_bytes(bytes->packed, backward), add_bytes(bytes->chunk, bytes->mask));
}

// Of `count` elements, rounded up so that what follows is as aligned as the whole.
static size_t aligned_bytes(int64_t count, size_t element_bytes) {
    int64_t rounded = (count + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
    return td_mul_bytes((size_t)rounded, element_bytes);
}

static int64_t packed_floats(int64_t rank) {
    return (td_gemm_scratch(rank) + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
}

static scratch_bytes bytes_of(const td_matrix *weight, const td_lora_weights *lora,
                              int64_t n_tokens, int backward) {
    int64_t chunk = smaller(n_tokens, TOKEN_CHUNK) * weight->cols;
    scratch_bytes bytes = {0};
    bytes.packed =
        aligned_bytes(td_cpu_threads() * packed_floats(lora ? lora->rank : 0), sizeof(float));
    if (has_dropout(lora)) {
        bytes.chunk = aligned_bytes(chunk, sizeof(float));
        bytes.mask = aligned_bytes((chunk + 63) / 64, sizeof(uint64_t));
    }
    if (lora && backward) {
        bytes.dyb = aligned_bytes(n_tokens * lora->rank, sizeof(float));
        bytes.db = aligned_bytes(weight->rows * lora->rank, sizeof(float));
    }
    return bytes;
}

static int64_t words_row(int64_t k) {
    return td_gemm_rounded_row(td_bf16_words(k));
}

// For rows of k elements, rounded once for all of a layer's products.
static size_t words_bytes(int64_t n_tokens, int64_t k) {
    return td_mul_bytes((size_t)n_tokens, td_mul_bytes((size_t)words_row(k), sizeof(float)));
}

size_t td_cpu_linear_workspace_bytes(const td_workspace_query *query, td_dtype product) {
    int64_t tokens =
        query->max_tokens > query->max_head_tokens ? query->max_tokens : query->max_head_tokens;
    td_matrix weight = {.rows = query->max_out, .cols = query->max_in};
    td_lora_weights lora = {.rank = query->max_rank, .dropout.threshold = 1};
    scratch_bytes bytes = bytes_of(&weight, query->max_rank > 0 ? &lora : NULL, tokens, 1);
    int64_t widest = query->max_in > query->max_out ? query->max_in : query->max_out;
    size_t words = product == TD_BF16 ? words_bytes(query->max_tokens, widest) : 0;
    return add_bytes(total_bytes(&bytes), words);
}

static td_status carve(const td_op_context *context, const char *op, const scratch_bytes *bytes,
                       int64_t rank, linear_scratch *out) {
    TD_TRY(td_cpu_need_workspace(context, op, total_bytes(bytes)));
    char *memory = context->workspace;
    out->bf16 = context->ops->product == TD_BF16;
    out->packed = (void *)memory;
    out->packed_floats = packed_floats(rank);
    memory += bytes->packed;
    out->chunk = (void *)memory;
    memory += bytes->chunk;
    out->mask = (void *)memory;
    memory += bytes->mask;
    out->dyb = (void *)memory;
    memory += bytes->dyb;
    out->db = (void *)memory;
    out->words = NULL;
    out->words_row = 0;
    return TD_OK;
}

// Room for the rows of a left operand as pairs, if the workspace has it: the head's logits are too
// wide. There it costs little to round them again for the few blocks of columns.
static void carve_words(const td_op_context *context, const scratch_bytes *bytes, int64_t n_tokens,
                        int64_t k, linear_scratch *scratch) {
    size_t used = total_bytes(bytes);
    if (!scratch->bf16 || words_bytes(n_tokens, k) > context->workspace_bytes - used)
        return;
    scratch->words = (void *)((char *)context->workspace + used);
    scratch->words_row = words_row(k);
}

// This thread's share of an (m, n) product, within a parallel region.
static td_gemm_part multiply_share(const td_gemm_product *product, int64_t m, int64_t n,
                                   const linear_scratch *scratch) {
    int thread = omp_get_thread_num();
    td_gemm_part part = td_gemm_split(m, n, omp_get_num_threads(), thread);
    td_gemm_multiply(product, part.rows, part.columns,
                     scratch->packed + thread * scratch->packed_floats);
    return part;
}

static int worth_a_team(int64_t m, int64_t n, int64_t k) {
    return m * n > PARALLEL_PRODUCTS / k;
}

static void multiply_on_all(const td_gemm_product *product, int64_t m, int64_t n,
                            const linear_scratch *scratch) {
#pragma omp parallel num_threads(td_cpu_threads()) if (worth_a_team(m, n, product->left[0].k))
    multiply_share(product, m, n, scratch);
}

// This thread's share of the rows of a thin product, all columns: no row is another thread's too.
static void multiply_rows(const td_gemm_product *product, int64_t m, int64_t n,
                          const linear_scratch *scratch) {
    int thread = omp_get_thread_num();
    td_cpu_range rows = td_cpu_split(m, TD_GEMM_TILE_ROWS, omp_get_num_threads(), thread);
    td_gemm_multiply(product, rows, (td_cpu_range){0, n},
                     scratch->packed + thread * scratch->packed_floats);
}

// This thread's share of the rows of a left operand into its words, by tiles.
static void round_rows(const td_gemm_left *left, int64_t n) {
    td_cpu_range rows =
        td_cpu_split(n, TD_GEMM_TILE_ROWS, omp_get_num_threads(), omp_get_thread_num());
    for (int64_t i = rows.begin; i < rows.end; i++)
        td_bf16_pair_up(left->data + i * left->row, left->k, left->words + i * left->words_row);
}

// The same operand, its words yet to be written by the first product or round_rows(), or written.
static td_gemm_left with_words(td_gemm_left left, const linear_scratch *scratch, int is_rounded) {
    left.words = scratch->words;
    left.words_row = scratch->words_row;
    left.is_rounded = is_rounded;
    return left;
}

// (rows, cols) fp32 as an operand.

static td_gemm_left rows_of(const float *data, int64_t cols) {
    return (td_gemm_left){.data = data, .row = cols, .step = 1, .k = cols};
}

static td_gemm_left columns_of(const float *data, int64_t rows, int64_t cols) {
    return (td_gemm_left){.data = data, .row = 1, .step = cols, .k = rows};
}

static td_matrix matrix_of(const void *data, int64_t rows, int64_t cols) {
    return (td_matrix){
        .format = TD_MATRIX_F32, .rows = rows, .cols = cols, .data = data, .compute = TD_F32};
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

// xa = x A^T, of rows of x that begin at a token.
static td_gemm_product down_product(const td_linear_forward_args *args, const td_matrix *a,
                                    const linear_scratch *scratch, const float *x, int64_t token) {
    int64_t rank = args->lora->rank;
    return (td_gemm_product){.left = {rows_of(x, args->weight->cols)},
                             .right = {{.matrix = a, .transposed = 1, .scale = 1.0f}},
                             .c = (float *)args->xa + token * rank,
                             .ldc = rank,
                             .bf16 = scratch->bf16};
}

// xa = dropout(x) A^T
static void dropped_down(const td_linear_forward_args *args, const td_matrix *a,
                         const linear_scratch *scratch) {
    for (int64_t token = 0; token < args->n_tokens; token += TOKEN_CHUNK) {
        int64_t count = smaller(TOKEN_CHUNK, args->n_tokens - token);
        drop_chunk(scratch, &args->lora->dropout, args->x, a->cols, token, count);
        td_gemm_product down = down_product(args, a, scratch, scratch->chunk, token);
        multiply_on_all(&down, count, a->rows, scratch);
    }
}

static void forward(const td_linear_forward_args *args, const linear_scratch *scratch) {
    const td_lora_weights *lora = args->lora;
    int64_t n = args->n_tokens, in = args->weight->cols, out = args->weight->rows;
    td_gemm_product down = {0};
    td_gemm_product up = {.left = {with_words(rows_of(args->x, in), scratch, 1)},
                          .right = {{.matrix = args->weight, .transposed = 1, .scale = 1.0f}},
                          .c = args->y,
                          .ldc = out,
                          .bias = args->bias,
                          .bf16 = scratch->bf16};
    td_matrix a, b;
    if (lora) {
        a = matrix_of(lora->a, lora->rank, in);
        b = matrix_of(lora->b, out, lora->rank);
        up.left[1] = rows_of(args->xa, lora->rank);
        up.right[1] = (td_gemm_right){.matrix = &b, .transposed = 1, .scale = lora->scaling};
        down = down_product(args, &a, scratch, args->x, 0);
        down.left[0] = with_words(down.left[0], scratch, 0);
    }
    if (has_dropout(lora))
        dropped_down(args, &a, scratch);
#pragma omp parallel num_threads(td_cpu_threads()) if (worth_a_team(n, in, out))
    {
        int has_down = lora && !has_dropout(lora);
        if (has_down)
            multiply_rows(&down, n, lora->rank, scratch);
        else if (scratch->words)
            round_rows(&up.left[0], n);
        if (has_down || scratch->words) {
#pragma omp barrier
        }
        multiply_share(&up, n, out, scratch);
    }
}

td_status td_cpu_linear_forward(const td_op_context *context, const td_linear_forward_args *args) {
    if (args->n_tokens <= TD_CPU_FEW_TOKENS && !has_dropout(args->lora)) {
        td_cpu_linear_few(args);
        return TD_OK;
    }
    linear_scratch scratch;
    scratch_bytes bytes = bytes_of(args->weight, args->lora, args->n_tokens, 0);
    TD_TRY(carve(context, "linear_forward", &bytes, args->lora ? args->lora->rank : 0, &scratch));
    carve_words(context, &bytes, args->n_tokens, args->weight->cols, &scratch);
    forward(args, &scratch);
    return TD_OK;
}

// What backward multiplies: the operands of LoRA, and its four products.
typedef struct backward_products {
    td_matrix a, b, x, dy;
    td_gemm_product dx, dyb, da, db;
} backward_products;

static void lora_products(const td_linear_backward_args *args, const linear_scratch *scratch,
                          backward_products *out) {
    const td_lora_weights *lora = args->lora;
    int64_t n = args->n_tokens, rank = lora->rank;
    int64_t in = args->weight->cols, rows = args->weight->rows;
    out->a = matrix_of(lora->a, rank, in);
    out->b = matrix_of(lora->b, rows, rank);
    out->x = matrix_of(args->x, n, in);
    out->dy = matrix_of(args->dy, n, rows);
    out->dyb = (td_gemm_product){.left = {with_words(rows_of(args->dy, rows), scratch, 0)},
                                 .right = {{.matrix = &out->b, .scale = lora->scaling}},
                                 .c = scratch->dyb,
                                 .ldc = rank,
                                 .bf16 = scratch->bf16};
    out->da = (td_gemm_product){.left = {columns_of(scratch->dyb, n, rank)},
                                .right = {{.matrix = &out->x, .scale = 1.0f}},
                                .c = args->da,
                                .ldc = in,
                                .bf16 = scratch->bf16};
    out->db = (td_gemm_product){.left = {columns_of(args->xa, n, rank)},
                                .right = {{.matrix = &out->dy, .scale = 1.0f}},
                                .c = scratch->db,
                                .ldc = rows,
                                .bf16 = scratch->bf16};
    if (!has_dropout(lora)) {
        out->dx.left[1] = rows_of(scratch->dyb, rank);
        out->dx.right[1] = (td_gemm_right){.matrix = &out->a, .scale = 1.0f};
    }
}

// This thread's share of db = scaling * dy^T xa, which is summed transposed: as tall as xa is thin.
static void share_db(const td_linear_backward_args *args, const td_gemm_product *product,
                     const linear_scratch *scratch) {
    int64_t rank = args->lora->rank, out = args->weight->rows;
    td_gemm_part part = multiply_share(product, rank, out, scratch);
    for (int64_t i = part.columns.begin; i < part.columns.end; i++)
        for (int64_t r = part.rows.begin; r < part.rows.end; r++)
            args->db[i * rank + r] = args->lora->scaling * scratch->db[r * out + i];
}

static void backward(const td_linear_backward_args *args, const backward_products *products,
                     const linear_scratch *scratch) {
    const td_lora_weights *lora = args->lora;
    int64_t n = args->n_tokens, in = args->weight->cols, out = args->weight->rows;
#pragma omp parallel num_threads(td_cpu_threads()) if (worth_a_team(n, in, out))
    {
        if (lora) {
            multiply_rows(&products->dyb, n, lora->rank, scratch);
            share_db(args, &products->db, scratch);
        } else if (scratch->words) {
            round_rows(&products->dx.left[0], n);
        }
        if (lora || scratch->words) {
#pragma omp barrier
        }
        if (args->dx)
            multiply_share(&products->dx, n, in, scratch);
        if (lora && !has_dropout(lora))
            multiply_share(&products->da, lora->rank, in, scratch);
    }
}

// da += dyb^T dropout(x) and dx += undropout(dyb A) for tokens [token, token + count).
static void dropped_chunk(const td_linear_backward_args *args, const backward_products *products,
                          const linear_scratch *scratch, int64_t token, int64_t count) {
    const td_lora_weights *lora = args->lora;
    int64_t in = args->weight->cols, rank = lora->rank;
    const float *dyb = scratch->dyb + token * rank;
    drop_chunk(scratch, &lora->dropout, args->x, in, token, count);
    td_matrix x = matrix_of(scratch->chunk, count, in);
    td_gemm_product da = products->da;
    da.left[0] = columns_of(dyb, count, rank);
    da.right[0].matrix = &x;
    da.accumulate = token > 0;
    multiply_on_all(&da, rank, in, scratch);
    if (!args->dx)
        return;
    td_gemm_product dx = {.left = {rows_of(dyb, rank)},
                          .right = {{.matrix = &products->a, .scale = 1.0f}},
                          .c = scratch->chunk,
                          .ldc = in,
                          .bf16 = scratch->bf16};
    multiply_on_all(&dx, count, in, scratch);
    undrop_chunk(scratch, &lora->dropout, (float *)args->dx + token * in, count * in);
}

td_status td_cpu_linear_backward(const td_op_context *context,
                                 const td_linear_backward_args *args) {
    const td_lora_weights *lora = args->lora;
    linear_scratch scratch;
    scratch_bytes bytes = bytes_of(args->weight, lora, args->n_tokens, 1);
    TD_TRY(carve(context, "linear_backward", &bytes, lora ? lora->rank : 0, &scratch));
    carve_words(context, &bytes, args->n_tokens, args->weight->rows, &scratch);
    backward_products products = {
        .dx = {.left = {with_words(rows_of(args->dy, args->weight->rows), &scratch, 1)},
               .right = {{.matrix = args->weight, .scale = 1.0f}},
               .c = args->dx,
               .ldc = args->weight->cols,
               .accumulate = args->accumulate_dx,
               .bf16 = scratch.bf16},
    };
    if (lora)
        lora_products(args, &scratch, &products);
    backward(args, &products, &scratch);
    for (int64_t token = 0; has_dropout(lora) && token < args->n_tokens; token += TOKEN_CHUNK)
        dropped_chunk(args, &products, &scratch, token,
                      smaller(TOKEN_CHUNK, args->n_tokens - token));
    return TD_OK;
}
