// Plain double references: loops as in the formulas, nothing shared with the kernels.
#ifndef TANDEM_TESTS_OPS_REFERENCE_H
#define TANDEM_TESTS_OPS_REFERENCE_H

#include <stdint.h>

typedef struct ref_linear {
    int64_t n_tokens, in, out, rank; // rank 0: no LoRA
    const double *x;                 // (T, in)
    const double *weight;            // (out, in)
    const double *bias;              // (out) or NULL
    const double *a, *b;             // (rank, in), (out, rank)
    const double *keep;              // (T, in): what dropout multiplies by, or NULL
    double scaling;
} ref_linear;

// y = x W^T + bias + scaling * xa B^T with xa = (keep * x) A^T.
void ref_linear_forward(const ref_linear *layer, double *xa, double *y);

void ref_rmsnorm(int64_t rows, int64_t cols, const double *x, const double *weight, double eps,
                 double *y);
double ref_silu(double x);
// PyTorch's gelu(approximate="tanh").
double ref_gelu_tanh(double x);

// (T, heads, head_dim) rotated by the angles of each token's position; sign -1 rotates back.
void ref_rope(int64_t n_tokens, int64_t n_heads, int64_t head_dim, double *x,
              const double *positions, const double *cosine, const double *sine, double sign);

// NF4 as in the bitsandbytes code: the 16 values, the code of x, and what a code decodes to in fp32
// or rounded to bf16.
float ref_nf4_value(int code);
float ref_nf4_threshold(int code); // above which a value has a code beyond `code`
int ref_nf4_code(float x);
double ref_nf4_decode(int code, float absmax, int bf16);

// Nearest entry of an ascending map by distance to the midpoints.
int ref_nearest(const float *map, float x);

#endif
