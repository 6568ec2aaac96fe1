// What attention_forward.c and attention_backward.c share: how the work is cut, packed copies of
// blocks, and the inner kernels.
//
// The token stream is cut per sequence and key head into blocks of queries and of keys, both
// counted from the start of the sequence, so that a sequence's bits do not depend on what is packed
// around it. A row of a query block is one (token, query head) pair, tokens outermost: all query
// heads of a key head share its packed keys. Packed rows are padded with zeros to whole lanes,
// which makes every head_dim and every tail an ordinary case. All dot products are one chain of
// fused multiply-adds in ascending order, so the cut does not show in them either.
//
// With products in bf16 an operand's element is a word of two neighbours of the sum
// (bf16_pairs.h), in the same buffers, and a product takes half as many steps. Sums over a
// sequence's keys or rows pair neighbours counted from the block's start, an odd last one with a
// zero. The same bits at every level of vector instructions.
#ifndef TANDEM_KERNELS_CPU_ATTENTION_INTERNAL_H
#define TANDEM_KERNELS_CPU_ATTENTION_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/bf16_pairs.h"
#include "kernels/cpu/cpu_internal.h"
#include "kernels/cpu/lanes.h"

enum {
    TD_ATTENTION_ROWS = 128, // of a query block, unless one token has more heads than that
    TD_ATTENTION_WIDE = 2,   // times as many tokens where there is work enough for all threads
    TD_ATTENTION_KEYS = 256, // of a key block, at most
    TD_ATTENTION_STRIP = 24, // rows that share one range of columns
    TD_ATTENTION_STRIP_LANES = (TD_ATTENTION_STRIP + TD_LANES - 1) / TD_LANES * TD_LANES,
    TD_ATTENTION_SCORES = TD_ATTENTION_KEYS + TD_LANES, // stride of a row of scores
    TD_ATTENTION_PAIRS = TD_ATTENTION_SCORES / 2,       // the same as words
};

// Sizes that follow from the shape.
typedef struct td_attention_plan {
    int64_t n_heads, n_kv_heads, head_dim, window;
    float scale, softcap;
    // The scale is that of q in fp32, as it is packed, and that of the scores in bf16: what is
    // rounded to bf16 is q itself. q's factor times that of the scores is the scale, the scores' is
    // positive.
    float q_factor, score_factor;
    int64_t q_stride, k_stride, v_stride; // elements from token to token
    int64_t out_stride;                   // n_heads * head_dim
    int64_t heads_per_key;                // query heads of one key head
    int64_t block_tokens;                 // of a query block
    int64_t block_rows;                   // block_tokens * heads_per_key
    int64_t packed_cols;                  // head_dim in whole lanes
    int64_t
        packed_stride;   // an odd number of cache lines, so that columns spread over the cache sets
    int64_t pair;        // elements of one step of a product: 1 in fp32, 2 in bf16
    int64_t depth;       // head_dim in steps
    int64_t left_stride; // of rows whose own elements are summed over: packed_stride, or words
} td_attention_plan;

typedef struct td_attention_sequence {
    int64_t q_begin, n_q, k_begin, n_k;
} td_attention_sequence;

// Rows of one query block: tokens [begin, end) of the sequence, and the keys that each row sees.
typedef struct td_attention_queries {
    td_cpu_range tokens;
    int64_t n_rows;
    td_cpu_range keys;     // of all rows together
    td_cpu_range *visible; // (n_rows)
} td_attention_queries;

td_attention_plan td_attention_plan_make(int64_t n_heads, int64_t n_kv_heads, int64_t head_dim,
                                         td_dtype product);
td_attention_plan td_attention_plan_of(const td_attention_shape *shape, td_dtype product);

// Steps of n elements.
static inline int64_t td_attention_steps(const td_attention_plan *plan, int64_t n) {
    return (n + plan->pair - 1) / plan->pair;
}

// Query blocks of TD_ATTENTION_WIDE times as many tokens: keys are packed less often.
static inline td_attention_plan td_attention_plan_widen(td_attention_plan plan) {
    plan.block_tokens *= TD_ATTENTION_WIDE;
    plan.block_rows *= TD_ATTENTION_WIDE;
    return plan;
}

static inline td_attention_sequence td_attention_sequence_at(const td_attention_shape *shape,
                                                             int64_t index) {
    return (td_attention_sequence){shape->cu_q[index], shape->cu_q[index + 1] - shape->cu_q[index],
                                   shape->cu_k[index], shape->cu_k[index + 1] - shape->cu_k[index]};
}

// Keys that a query token sees; both count from the start of the sequence.
static inline td_cpu_range td_attention_visible(const td_attention_plan *plan,
                                                const td_attention_sequence *sequence,
                                                int64_t token) {
    int64_t end = token + 1 + sequence->n_k - sequence->n_q;
    int64_t begin = plan->window > 0 && end > plan->window ? end - plan->window : 0;
    return (td_cpu_range){begin, end};
}

static inline int64_t td_attention_blocks(int64_t n, int64_t block) {
    return (n + block - 1) / block;
}

// Fills `queries` for block number `block`; queries->visible has room for plan->block_rows.
void td_attention_queries_fill(const td_attention_plan *plan, const td_attention_sequence *sequence,
                               int64_t block, td_attention_queries *queries);

// Columns of a key block that rows [begin, end) see, in whole lanes: keys [first_key, first_key +
// n_keys). Empty when begin == end.
td_cpu_range td_attention_columns(const td_attention_queries *queries, td_cpu_range rows,
                                  int64_t first_key, int64_t n_keys);

// The same without the columns behind the last row's last key, which only fill the lanes.
td_cpu_range td_attention_keys_seen(const td_attention_queries *queries, td_cpu_range rows,
                                    int64_t first_key, int64_t n_keys);

// Rows of the queries that see any of the keys [begin, end).
td_cpu_range td_attention_rows_that_see(const td_attention_queries *queries, td_cpu_range keys);

// Heads of a tensor of the stream: `stride` elements from token to token.
typedef struct td_attention_tensor {
    const float *base;
    int64_t stride;
} td_attention_tensor;

// Where head `head` of a token begins in a tensor with this stride.
static inline int64_t td_attention_offset(const td_attention_plan *plan, int64_t token,
                                          int64_t stride, int64_t head) {
    return token * stride + head * plan->head_dim;
}

// One head of a tensor from a token on.
static inline td_attention_tensor td_attention_keys_at(const td_attention_plan *plan,
                                                       const void *tensor, int64_t stride,
                                                       int64_t token, int64_t head) {
    const float *base = (const float *)tensor + td_attention_offset(plan, token, stride, head);
    return (td_attention_tensor){base, stride};
}

// c (m, n) = a b, or += with accumulate. a (i, p) is a[i * a_row + p * a_step]. n is a multiple of
// TD_LANES. In bf16 a and b are words and k counts them.
typedef struct td_attention_product {
    int64_t m, n, k;
    const float *a;
    int64_t a_row, a_step;
    const float *b; // (k, n), stride ldb
    int64_t ldb;
    float *c; // (m, n), stride ldc
    int64_t ldc;
    int accumulate;
} td_attention_product;

// One strip of rows against the columns [columns.begin, columns.end) of a key block.
typedef struct td_attention_strip {
    int64_t n_rows;
    const td_cpu_range *visible; // (n_rows), keys of the sequence
    int64_t first_key;           // key of column 0
    td_cpu_range columns;
    float scale;   // of the scores, positive
    float softcap; // 0: none
    float *scores; // (n_rows, stride TD_ATTENTION_SCORES); becomes the probabilities, in bf16
                   // words of two columns
} td_attention_strip;

// What scores are multiplied with as they enter the softmax.
static inline float td_attention_factor(float scale, float softcap) {
    return softcap > 0.0f ? 1.0f : scale;
}

// State of the online softmax of the strip's rows (Milakov and Gimelshein, 2018; Dao et al.,
// NeurIPS 2022).
typedef struct td_attention_softmax {
    float *largest, *sum; // (n_rows); the largest before td_attention_factor()
    float *out;           // (n_rows, packed_cols), rescaled when the largest score grows
    int64_t out_stride, out_cols;
} td_attention_softmax;

// What turns scores and dout V^T into probabilities and the gradient of the scores.
typedef struct td_attention_gradient {
    const float *lse;   // (n_rows)
    const float *delta; // (n_rows) sum of dout * out
    float *dscores; // (n_rows, stride TD_ATTENTION_SCORES): dout V^T, becomes p (dout V^T - delta),
                    // with softcap times 1 - (score / softcap)^2
    // In bf16 words of scores and dscores are two rows of a column, in the place of the first; and
    // dscores once more as words of two columns:
    float *pairs; // (n_rows, stride TD_ATTENTION_PAIRS), or NULL
} td_attention_gradient;

typedef struct td_attention_kernels {
    int pair; // elements of a step
    void (*multiply)(const td_attention_product *product);
    void (*softmax)(const td_attention_strip *strip, const td_attention_softmax *softmax);
    void (*gradient)(const td_attention_strip *strip, const td_attention_gradient *gradient);
    void (*row_dots)(int64_t n_rows, int64_t n_cols, const float *a, const float *b, float *out);
    // to = from (n) * factor, and zeros up to n_to.
    void (*copy_row)(const float *from, int64_t n, float factor, float *to, int64_t n_to);
    // The same as an operand that is summed over along the row.
    void (*pack_row)(const float *from, int64_t n, float factor, float *to, int64_t n_to);
    // Two rows as words of both, for sums over rows; second NULL: zeros. NULL in fp32.
    void (*pack_pair)(const float *first, const float *second, int64_t n, float factor, float *to,
                      int64_t n_to);
} td_attention_kernels;

// For td_cpu_simd() and td_cpu_has_bf16().
const td_attention_kernels *td_attention_kernels_find(td_dtype product);

// Denormal numbers are zeros until td_attention_restore(), on the calling thread, with products in
// bf16 only: VDPBF16PS knows none. Returns what to restore.
static inline unsigned td_attention_flush(const td_attention_plan *plan) {
    return plan->pair > 1 ? td_bf16_enter() : _mm_getcsr();
}

static inline void td_attention_restore(unsigned before) {
    td_bf16_leave(before);
}

// Asks for a row's cache lines ahead of its packing: rows of one head lie too far apart for the
// processor to foresee, and waiting for them took a sixth of the time.
static inline void td_attention_prefetch(const float *row, int64_t n) {
    enum { LINE = 16 };
    for (int64_t i = 0; i < n; i += LINE)
        _mm_prefetch((const char *)(row + i), _MM_HINT_T1);
    _mm_prefetch((const char *)(row + n - 1), _MM_HINT_T1);
}

// The same for rows [rows.begin, rows.end) of the query heads of key_head, from a token on.
void td_attention_prefetch_queries(const td_attention_plan *plan, td_attention_tensor tensor,
                                   int64_t first_token, int64_t key_head, td_cpu_range rows);

// Packed copies of the query heads of key_head. `tensor` is q, dout, ... of the whole stream. left:
// (rows, left_stride), for sums over a row. right: (steps of rows, packed_stride), for sums over
// the rows, or NULL; in fp32 it is left itself.
typedef struct td_attention_packed {
    float *left, *right;
} td_attention_packed;

void td_attention_pack_queries(const td_attention_plan *plan, const td_attention_kernels *kernels,
                               td_attention_tensor tensor, int64_t q_begin, int64_t key_head,
                               td_cpu_range tokens, float factor, td_attention_packed packed);
// n_keys rows of one head for sums over them: (steps of keys, packed_stride). For sums over a row
// the same transposed: (depth, stride TD_ATTENTION_SCORES), columns zero-padded to whole lanes; in
// bf16 by way of `rows` (n_keys, left_stride). keys.base is the first of them.
void td_attention_pack_keys(const td_attention_plan *plan, const td_attention_kernels *kernels,
                            td_attention_tensor keys, int64_t n_keys, float *packed);
void td_attention_pack_transposed(const td_attention_plan *plan,
                                  const td_attention_kernels *kernels, td_attention_tensor keys,
                                  int64_t n_keys, float *rows, float *packed);

// One piece of work: a block of queries or keys of one key head.
typedef struct td_attention_task {
    td_attention_sequence sequence;
    int64_t block, n_blocks, key_head;
    int64_t extent; // queries or keys of a block, the last one of which may have fewer
} td_attention_task;

// All tasks of one call, taken in order by any number of threads: sequence by sequence, group of
// heads by group of heads, block by block, head by head.
typedef struct td_attention_queue {
    const td_attention_shape *shape;
    int by_keys;        // 1: blocks of keys, 0: of queries
    int64_t n_queries;  // of a block of queries
    int64_t n_together; // key heads of a group, whose queries should fit the caches; 0: all
    int64_t next;       // shared by the threads
} td_attention_queue;

// Where a thread last was in the list of sequences.
typedef struct td_attention_cursor {
    int64_t sequence, first_task;
} td_attention_cursor;

// Takes the next task. 0: none is left.
int td_attention_take(td_attention_queue *queue, td_attention_cursor *cursor,
                      td_attention_task *task);

// Threads worth starting for a call, as far as the workspace behind `fixed_bytes` has room for
// their scratch.
int td_attention_team(const td_op_context *context, const td_attention_shape *shape,
                      size_t fixed_bytes, size_t thread_bytes);

// Cuts aligned pieces off a buffer; with base NULL it only counts.
typedef struct td_attention_carver {
    char *base;
    size_t used;
} td_attention_carver;

void *td_attention_carve(td_attention_carver *carver, size_t count, size_t element_bytes);

// Scratch of one thread, whole cache lines.
size_t td_attention_forward_thread_bytes(const td_attention_plan *plan);
size_t td_attention_backward_thread_bytes(const td_attention_plan *plan);

#endif
