// The operations: one table of functions per backend, each function one operation of the training
// step.
//
// All operands are a flat token stream of T tokens without padding. "act" is the activation type of
// the table: fp32 on the CPU, bf16 or fp32 on a GPU. Everything is row-major and contiguous unless
// a stride is given. Pointers are device memory and owned by the caller. Work is queued on
// context->stream and may still run when the function returns; buffers may be reused by later work
// on the same stream. Every operation is deterministic: the same inputs give the same bits on the
// same hardware, with any number of threads. Preconditions on shapes are checked by ops.c and are
// programmer errors (TD_ERR_INTERNAL). Tolerances are relative to the largest magnitude of the
// exact result, and are what tests/ops checks against a plain double reference; gradients are
// checked against finite differences of that reference.
#ifndef TANDEM_KERNELS_OPS_H
#define TANDEM_KERNELS_OPS_H

#include <stdint.h>

#include "kernels/matrix.h"
#include "runtime/core/device.h"
#include "runtime/core/portable.h"
#include "runtime/core/rng.h"
#include "runtime/core/status.h"
#include "runtime/core/tensor.h"

TD_C_BEGIN

typedef struct td_ops td_ops;

typedef struct td_op_context {
    const td_ops *ops;
    const td_device *device;
    td_stream *stream;
    void *workspace; // scratch, at least ops->workspace_bytes(); contents are undefined between
                     // operations
    size_t workspace_bytes;
} td_op_context;

// Largest extents that a model will use; decides the workspace.
typedef struct td_workspace_query {
    int64_t max_tokens;          // T
    int64_t max_in, max_out;     // of any linear layer
    int64_t max_weight_elements; // rows * cols of the largest NF4 or BF16 matrix that is used
                                 // through linear_*
    int64_t max_head_rows;       // rows of the LM head matrix (vocabulary), 0 without head
    int64_t max_head_tokens;     // tokens per logits chunk
    int64_t max_rank;
    int64_t n_heads, n_kv_heads, head_dim;
} td_workspace_query;

// LoRA of one linear layer. y += scaling * B(A(dropout(x))).
typedef struct td_lora_weights {
    const float *a;            // (rank, in) fp32
    const float *b;            // (out, rank) fp32
    const void *a_act, *b_act; // the same in act; NULL: operations round for themselves
    int64_t rank;
    float scaling;
    td_dropout dropout; // threshold 0: none
} td_lora_weights;

// y = x W^T + bias + scaling * dropout(x) A^T B^T
typedef struct td_linear_forward_args {
    int64_t n_tokens;
    const void *x;               // (T, in) act
    const td_matrix *weight;     // (out, in)
    const float *bias;           // (out) fp32 or NULL
    const td_lora_weights *lora; // or NULL
    void *xa; // (T, rank) act, out: dropout(x) A^T, needed by the backward pass; NULL without lora
    void *y;  // (T, out) act, out
    int y_is_f32; // 1: y is fp32 whatever act is (logits); without lora only
} td_linear_forward_args;

// dx = dy W + scaling * undropout((dy B) A);  da = scaling * (dy B)^T dropout(x);  db = scaling *
// dy^T xa
typedef struct td_linear_backward_args {
    int64_t n_tokens;
    const void *dy; // (T, out) act
    const void *x;  // (T, in) act; read only with lora
    const void *xa; // (T, rank) act; read only with lora
    const td_matrix *weight;
    const td_lora_weights *lora;
    void *dx;          // (T, in) act, or NULL when nobody needs it
    int accumulate_dx; // 1: dx += instead of dx =
    float *da;         // (rank, in) fp32, overwritten; with lora
    float *db;         // (out, rank) fp32, overwritten; with lora
    int dy_is_f32;     // 1: dy is fp32 whatever act is (gradient of logits); without lora only
} td_linear_backward_args;

// bitsandbytes NF4, blocks of 64 of the flattened weight (CONTRACT.md, "NF4").
typedef struct td_nf4_quantize_args {
    int64_t n_elements;
    const void *weight;    // (n) of weight_dtype; BF16 on the CPU may be unaligned
    uint8_t *codes;        // (ceil(n / 2)) out; an odd last code has code 7 (zero) beside it
    float *absmax;         // (ceil(n / 64)) fp32, out
    td_dtype weight_dtype; // TD_F32 or TD_BF16
} td_nf4_quantize_args;

// Double quantization of absmax: offset = mean, summed in the order of kernels/absmax_mean.h;
// signed dynamic 8-bit map in blocks of 256.
typedef struct td_absmax_quantize_args {
    int64_t n_blocks;
    const float *absmax;  // (n_blocks)
    uint8_t *codes;       // (n_blocks) out
    float *nested_absmax; // (ceil(n_blocks / 256)) out
    float *offset;        // (1) out, host memory
} td_absmax_quantize_args;

// Rows [row_begin, row_begin + row_count) of any matrix format as fp32, or in the type of the
// activations, which are then the numbers that linear_* multiply with.
typedef struct td_dequantize_args {
    const td_matrix *matrix;
    int64_t row_begin, row_count;
    void *out; // (row_count, cols) fp32, or act, out
    int out_is_act;
} td_dequantize_args;

// y[t] = scale * table[ids[t]], rounded once. The table is frozen: there is no backward.
typedef struct td_embedding_args {
    int64_t n_tokens;
    float scale;            // 1: the row as it is
    const int32_t *ids;     // (T), each in [0, table->rows)
    const td_matrix *table; // (vocabulary, hidden) F32 or BF16
    void *y;                // (T, hidden) act, out
} td_embedding_args;

// y = x * rsqrt(mean(x^2) + eps) * weight; statistics in fp32 or wider. Rows may be heads (q and k
// norms).
typedef struct td_rmsnorm_forward_args {
    int64_t n_rows, n_cols;
    const void *x;       // (rows, cols) act
    const float *weight; // (cols) fp32
    float eps;
    void *y;     // (rows, cols) act, out; may be x
    float *rstd; // (rows) fp32, out, or NULL
} td_rmsnorm_forward_args;

// The weight is frozen: only dx. With g = dy * weight, xhat = x * rstd: dx = rstd * (g - xhat *
// mean(g * xhat)).
typedef struct td_rmsnorm_backward_args {
    int64_t n_rows, n_cols;
    const void *dy;      // (rows, cols) act
    const void *x;       // (rows, cols) act
    const float *weight; // (cols)
    const float *rstd;   // (rows)
    void *dx;            // (rows, cols) act; may be dy when not accumulating
    int accumulate;      // 1: dx +=
} td_rmsnorm_backward_args;

// Rotary embedding in place, half-split (rotate_half) convention over the whole head_dim.
// inverse = 1 rotates back, which is the backward pass.
typedef struct td_rope_args {
    int64_t n_tokens, n_heads, head_dim;
    void *x;                  // (T, n_heads, head_dim) act, in place
    int64_t x_stride;         // elements from token to token, at least those of all its heads
    int64_t head_stride;      // elements from head to head, at least head_dim; 0: head_dim
    const int32_t *positions; // (T), each in [0, n_positions)
    int64_t n_positions;
    const float *cos, *sin; // (n_positions, head_dim / 2) fp32
    int inverse;
} td_rope_args;

// Causal grouped-query attention over sequences of one token stream; online softmax, O(T) memory.
// Sequence s has queries [cu_q[s], cu_q[s+1]) and keys [cu_k[s], cu_k[s+1]), at least as many keys
// as queries; the last query is aligned with the last key (queries that follow a cache of keys).
// Query i of n_q sees key j of n_k when j <= i + n_k - n_q, and with window > 0 only when also j >
// i + n_k - n_q - window. Query head h reads key head h / (n_heads / n_kv_heads). A score is scale
// * q.k, or with softcap > 0 softcap * tanh(scale * q.k / softcap) (Gemma 2). q, k and v (and their
// gradients, which have the same strides) may be columns of a wider matrix.
typedef struct td_attention_shape {
    int64_t n_sequences;
    const int32_t *cu_q, *cu_k; // (n_sequences + 1) host memory, read before the call returns
    // (n_borders) the same in device memory, the last value again where n_borders is more: what
    // kernels read, so that one launch serves all calls of as many tokens and borders. A device
    // that shares the host's memory needs none.
    const int32_t *device_cu_q, *device_cu_k;
    int64_t n_borders;
    int64_t n_heads, n_kv_heads, head_dim;
    float scale;
    float softcap;                        // 0: none
    int64_t window;                       // 0: none
    int64_t q_stride, k_stride, v_stride; // elements from token to token, at least heads * head_dim
} td_attention_shape;

typedef struct td_attention_forward_args {
    td_attention_shape shape;
    const void *q; // (Tq, n_heads, head_dim) act
    const void *k; // (Tk, n_kv_heads, head_dim) act
    const void *v; // (Tk, n_kv_heads, head_dim) act
    void *out;     // (Tq, n_heads, head_dim) act, out
    float *lse;    // (Tq, n_heads) fp32 log-sum-exp of the scaled scores, out, or NULL
} td_attention_forward_args;

typedef struct td_attention_backward_args {
    td_attention_shape shape;
    const void *q, *k, *v;
    const void *out;    // (Tq, n_heads, head_dim) act
    const float *lse;   // (Tq, n_heads)
    const void *dout;   // (Tq, n_heads, head_dim) act
    void *dq, *dk, *dv; // like q, k, v; overwritten
} td_attention_backward_args;

// What a gated linear unit applies to its gate.
typedef enum td_gate {
    TD_GATE_SILU,      // x / (1 + exp(-x)): SwiGLU
    TD_GATE_GELU_TANH, // x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))): GeGLU
} td_gate;

// y = activation(gate) * up (Shazeer, 2020). gate and up, and their gradients, may be columns of a
// wider matrix.
typedef struct td_glu_forward_args {
    td_gate activation;
    int64_t n_rows, n_cols;
    const void *gate, *up;          // (rows, cols) act
    int64_t gate_stride, up_stride; // elements from row to row, at least n_cols
    void *y; // (rows, cols) act, out, contiguous; may be gate or up when that is contiguous
} td_glu_forward_args;

typedef struct td_glu_backward_args {
    td_gate activation;
    int64_t n_rows, n_cols;
    const void *dy;                 // (rows, cols) act, contiguous
    const void *gate, *up;          // (rows, cols) act
    void *dgate, *dup;              // with the strides of gate and up, out; may be gate and up
    int64_t gate_stride, up_stride; // elements from row to row, at least n_cols
} td_glu_backward_args;

// y += x
typedef struct td_add_args {
    int64_t n_elements;
    const void *x; // (n) act
    void *y;       // (n) act, in place
} td_add_args;

// gather: y[i] = x[rows[i]];  scatter: y[rows[i]] = x[i], other rows of y are set to zero. rows
// ascend strictly.
typedef struct td_rows_args {
    int64_t n_rows, n_cols; // rows of the index list
    const int32_t *rows;    // (n_rows)
    const void *x;          // act
    void *y;                // act, out
    int64_t y_rows;         // scatter: rows of y
} td_rows_args;

// loss[i] = logsumexp(z[i]) - z[i][target[i]], z = logits, or softcap * tanh(logits / softcap) with
// softcap > 0; then, when gradient is set, in place logits[i] = the gradient of gradient_scale *
// loss[i] by the logits: (softmax(z[i]) - onehot(target[i])) * gradient_scale, times 1 - (z /
// softcap)^2 with softcap. Softmax in fp32.
typedef struct td_cross_entropy_args {
    int64_t n_rows, n_vocabulary;
    float *logits;          // (n, V) fp32, in place
    const int32_t *targets; // (n), each in [0, V)
    float softcap;          // 0: none (Gemma 2)
    float gradient_scale;   // 1 / trained tokens of the whole step
    int gradient;
    float *loss; // (n) fp32, out
} td_cross_entropy_args;

// Fixed point: accumulator[i] += round_to_nearest_even(value[i] * 2^-quantum_log2). Exact sums in
// any order. A non-finite value, or an accumulator beyond limit in magnitude, is counted in *faults
// and not added.
typedef struct td_fixed_add_args {
    int64_t n_elements;
    const float *values;  // (n)
    int64_t *accumulator; // (n) in place
    int quantum_log2;     // e.g. -46
    int64_t limit;        // INT64_MAX / ranks: the sum over ranks cannot wrap
    int64_t *faults;      // (1) in place
} td_fixed_add_args;

// values[i] = accumulator[i] * 2^quantum_log2, and the sum of their squares in double, in a fixed
// order.
typedef struct td_fixed_to_f32_args {
    int64_t n_elements;
    const int64_t *accumulator; // (n)
    int quantum_log2;
    float *values;       // (n) out
    double *sum_squares; // (1) out, host memory, valid after the stream is synchronized; or NULL
} td_fixed_to_f32_args;

// accumulator += values in fp32, faults counted; and the sum of squares: the inexact pair, for
// comparison.
typedef struct td_f32_add_args {
    int64_t n_elements;
    const float *values; // (n)
    float *accumulator;  // (n) in place
    int64_t *faults;     // (1) in place
} td_f32_add_args;

typedef struct td_sum_squares_args {
    int64_t n_elements;
    const float *values; // (n)
    double *sum_squares; // (1) out, as above but not NULL
} td_sum_squares_args;

// *sum += words[0] + ... + words[n - 1], modulo 2^64: a check that survives exact sums, since the
// check of a sum is the sum of the checks.
typedef struct td_word_sum_args {
    int64_t n_elements;
    const int64_t *words; // (n)
    int64_t *sum;         // (1) in place
} td_word_sum_args;

// AdamW as torch.optim.AdamW (Loshchilov and Hutter, ICLR 2019): p *= 1 - lr * decay; g' = g *
// gradient_scale; m = b1 m + (1 - b1) g'; v = b2 v + (1 - b2) g'^2; p -= lr / (1 - b1^t) * m /
// (sqrt(v / (1 - b2^t)) + eps). State layout: adamw: float m[page_elements], float
// v[page_elements]; adamw_8bit: uint8 m[page_elements], uint8 v[page_elements], float
// m_absmax[page_elements / 256 up], float v_absmax[same]: blocks of 256 with the signed (m) and
// unsigned (v) dynamic 8-bit maps (CONTRACT.md). Zeroed bytes are the initial state in both.
typedef struct td_adamw_args {
    int64_t n_elements;    // of this page
    int64_t page_elements; // layout of the state
    float *parameters;     // (n) in place
    const float *gradient; // (n)
    void *state;           // in place
    float gradient_scale;  // of clipping
    // double, as torch computes with them: 1 - beta2 in fp32 would be off by 1e-5.
    double learning_rate, beta1, beta2, epsilon, weight_decay;
    int64_t step; // t, from 1
} td_adamw_args;

size_t td_adamw_state_bytes(int64_t page_elements);
size_t td_adamw_8bit_state_bytes(int64_t page_elements);

enum { TD_DRAW_QUANTILES = 1 << 16, TD_DRAW_BLOCK = 8 };

// Random weights: element e of a tensor is quantiles[h], h the half-word e % 8 of the Philox words
// of counter (e / 8, tensor), the low half of a word before its high one.
typedef struct td_draw_weights_args {
    uint64_t key;
    uint32_t tensor;
    int64_t first; // element; a multiple of TD_DRAW_BLOCK
    int64_t n_elements;
    const float *quantiles; // (TD_DRAW_QUANTILES) bf16 numbers
    td_dtype type;          // of out: TD_F32 or TD_BF16
    void *out;              // (n_elements)
} td_draw_weights_args;

TD_INLINE td_philox_words td_draw_words(uint64_t key, uint32_t tensor, uint64_t block) {
    td_philox_words counter = {{(uint32_t)block, (uint32_t)(block >> 32), tensor, 0}};
    return td_philox(key, counter);
}

struct td_ops {
    const char *name; // "cpu", "cpu medium", "cuda bf16", "cuda fp32"
    td_dtype activation;
    // What operands of linear_* and attention_* are rounded to before they are multiplied; sums are
    // fp32. BF16 beside fp32 activations is what PyTorch calls float32_matmul_precision "medium".
    td_dtype product;
    // Not one of the step's; NULL: the caller draws on the host. exact
    td_status (*draw_weights)(const td_op_context *, const td_draw_weights_args *);
    size_t (*workspace_bytes)(const td_workspace_query *query);
    // tolerance: forward 1e-5 with fp32, 1e-2 with bf16 activations; gradients the same
    td_status (*linear_forward)(const td_op_context *, const td_linear_forward_args *);
    td_status (*linear_backward)(const td_op_context *, const td_linear_backward_args *);
    td_status (*nf4_quantize)(const td_op_context *, const td_nf4_quantize_args *);       // exact
    td_status (*absmax_quantize)(const td_op_context *, const td_absmax_quantize_args *); // exact
    td_status (*dequantize)(const td_op_context *, const td_dequantize_args *);           // exact
    td_status (*embedding)(const td_op_context *, const td_embedding_args *);             // exact
    td_status (*rmsnorm_forward)(const td_op_context *, const td_rmsnorm_forward_args *);
    td_status (*rmsnorm_backward)(const td_op_context *, const td_rmsnorm_backward_args *);
    td_status (*rope)(const td_op_context *, const td_rope_args *);
    td_status (*attention_forward)(const td_op_context *, const td_attention_forward_args *);
    td_status (*attention_backward)(const td_op_context *, const td_attention_backward_args *);
    td_status (*glu_forward)(const td_op_context *, const td_glu_forward_args *);
    td_status (*glu_backward)(const td_op_context *, const td_glu_backward_args *);
    td_status (*add)(const td_op_context *, const td_add_args *);           // exact
    td_status (*gather_rows)(const td_op_context *, const td_rows_args *);  // exact
    td_status (*scatter_rows)(const td_op_context *, const td_rows_args *); // exact
    td_status (*cross_entropy)(const td_op_context *, const td_cross_entropy_args *);
    td_status (*fixed_add)(const td_op_context *, const td_fixed_add_args *);       // exact
    td_status (*fixed_to_f32)(const td_op_context *, const td_fixed_to_f32_args *); // exact
    td_status (*f32_add)(const td_op_context *, const td_f32_add_args *);
    td_status (*sum_squares)(const td_op_context *, const td_sum_squares_args *);
    td_status (*word_sum)(const td_op_context *, const td_word_sum_args *); // exact
    td_status (*adamw)(const td_op_context *, const td_adamw_args *);       // 1e-6
    td_status (*adamw_8bit)(const td_op_context *,
                            const td_adamw_args *); // codes equal to the reference's
};

extern const td_ops td_ops_cpu;
// The CPU's operations with products in bf16: operands are rounded to nearest even, numbers below
// 2^-126 are zero, and elements 2 i + 1 and 2 i of a sum are added in that order, each by a fused
// multiply-add in fp32, as VDPBF16PS does. The same bits with and without that instruction. Up to a
// few tokens linear_forward stays in fp32.
extern const td_ops td_ops_cpu_medium;

// A backend's table as callers should use it: every function checks its arguments' shapes and then
// calls the backend's. TD_ERR_INTERNAL names the first operation that the backend lacks. The same
// table for the same backend, alive for ever.
td_status td_ops_check(const td_ops *backend, const td_ops **out);

// Number of threads the CPU backend uses, for itself and the BLAS library. Call before the first
// operation.
void td_ops_cpu_set_threads(int n_threads);
int td_ops_cpu_threads(void);
// The widest vectors that the CPU backend uses on this processor: "AVX-512", "AVX2" or "none".
const char *td_ops_cpu_vectors(void);
// 1: this processor multiplies bf16 itself, at twice the rate of fp32.
int td_ops_cpu_has_bf16(void);

TD_C_END

#endif
