// The frame of the operation tests: one list of cases that any backend runs.
//
// A case file exports void cases_<family>(op_run *run). For each of its shapes it calls
// op_case_begin(), makes buffers, calls the operation by OP_CALL and compares what came out with a
// plain double reference that shares no code with the kernels:
//
//     if (!op_case_begin(run, "add", "n=%d", n))
//         return;                                     // not selected
//     op_buffer *x = op_random(run, run->ops->activation, n, 1.0);
//     op_buffer *y = op_random(run, run->ops->activation, n, 1.0);
//     double *expected = op_doubles(run, n);          // computed from x->values and y->values
//     ...
//     td_add_args args = {n, x->memory, y->memory};
//     OP_CALL(run, add, &args, flops, bytes);
//     op_expect(run, "y", y, expected, 0.0);
//     op_case_end(run);
//
// Every list runs several times, in "variants": buffers at shifted addresses, other instruction
// sets, other thread counts. The outputs given to op_expect() and op_expect_gradient() must have
// the same bits in every variant that promises so. With run->timing the shapes are large, calls are
// repeated and timed, and nothing is compared: references need not be computed.
#ifndef TANDEM_TESTS_OPS_CASE_H
#define TANDEM_TESTS_OPS_CASE_H

#include <stdint.h>

#include "kernels/ops.h"

// An array in device memory, and its values as doubles on the host: for inputs what the device
// holds, exactly (I64 beyond 2^53 rounded).
typedef struct op_buffer {
    void *memory;   // device
    double *values; // (n)
    int64_t n;
    td_dtype dtype;
    void *allocation;
    size_t guard_offset; // of the guard bytes behind the elements, from allocation
    struct op_buffer *next;
} op_buffer;

typedef struct op_variant {
    const char *name;
    void (*enter)(void); // or NULL
    int shift; // buffers start this many elements after an aligned address; negative: one buffer of
               // each case does, another one from case to case
    const char *same_bits; // operations with the bits of the first variant: "rope add"; all but:
                           // "!rope add"
} op_variant;

typedef struct op_run {
    const td_ops *ops;
    td_op_context context;
    const char *only; // run cases of this operation, NULL: all
    int timing;
    const op_variant *variant;
    struct op_run_state *state; // of the frame
} op_run;

// Starts a case of `op`; the rest describes the shape for messages and, with op, seeds the random
// numbers. 0: not selected.
int op_case_begin(op_run *run, const char *op, const char *shape, ...)
    __attribute__((format(printf, 3, 4)));
// Checks the guard bytes around the buffers, frees buffers and doubles.
void op_case_end(op_run *run);

// Gives the context a workspace of what the backend asks for `query`, until the case ends.
void op_workspace(op_run *run, const td_workspace_query *query);

// Buffers live until op_case_end(). Random: uniform in [-scale, scale], rounded to dtype. Indices:
// TD_I32 or TD_U8, uniform in [0, limit). Raw: the elements as they are. Output: filled with 0xff
// bytes, which is NaN or -1.
op_buffer *op_random(op_run *run, td_dtype dtype, int64_t n, double scale);
// Random activations that products take as they are, without rounding.
op_buffer *op_random_operand(op_run *run, int64_t n, double scale);
op_buffer *op_indices(op_run *run, td_dtype dtype, int64_t n, int64_t limit);
op_buffer *op_given(op_run *run, td_dtype dtype, int64_t n, const double *values);
op_buffer *op_raw(op_run *run, td_dtype dtype, int64_t n, const void *elements);
op_buffer *op_output(op_run *run, td_dtype dtype, int64_t n);
// n zeros on the host, freed by op_case_end().
double *op_doubles(op_run *run, int64_t n);
// The next random number of the case: uniform in [0, 1), and a raw word.
double op_uniform(op_run *run);
uint32_t op_word(op_run *run);

// Memory of a buffer that may be absent.
static inline void *op_memory(const op_buffer *buffer) {
    return buffer ? buffer->memory : NULL;
}

// Calls the operation and waits for it; with timing repeatedly (in-place operations run on their
// own output), and prints the rate of the fastest call. flops and bytes are those of one call; 0
// leaves the rate out.
#define OP_CALL(run, op, args, flops, bytes)                                                       \
    do {                                                                                           \
        op_call_begin(run);                                                                        \
        do                                                                                         \
            op_call_done(run, (run)->ops->op(&(run)->context, (args)));                            \
        while (op_call_again(run, (double)(flops), (double)(bytes)));                              \
    } while (0)
void op_call_begin(op_run *run);
void op_call_done(op_run *run, td_status status);
int op_call_again(op_run *run, double flops, double bytes);

// Reads the buffer back into its values; op_fetch_raw: its elements as they are.
void op_fetch(op_run *run, op_buffer *buffer);
void op_fetch_raw(op_run *run, const op_buffer *buffer, void *elements);

// Reads `actual` back and requires |actual - expected| <= tolerance * max|expected| everywhere (0:
// equal as numbers). A failure prints operation, shape, variant and the worst element.
void op_expect(op_run *run, const char *name, op_buffer *actual, const double *expected,
               double tolerance);
// The same for one value on the host.
void op_expect_value(op_run *run, const char *name, double actual, double expected,
                     double tolerance);
void op_expect_true(op_run *run, const char *what, int condition);

// Reads `gradient` back and compares elements (the first, the last, and a sample), and the slope
// along random directions, with central differences of `loss`, which computes a scalar in double
// from `parameters` (gradient->n of them, changed and restored). tolerance is relative to the
// largest element among the sample.
void op_expect_gradient(op_run *run, const char *name, op_buffer *gradient, double *parameters,
                        double (*loss)(void *closure), void *closure, double tolerance);

// The tolerance that ops.h gives for the activation type.
static inline double op_tolerance(const op_run *run) {
    return run->ops->activation == TD_F32 ? 1e-5 : 1e-2;
}

// Of products, whose operands may be rounded to less than the activations are.
static inline double op_product_tolerance(const op_run *run) {
    return run->ops->product == TD_F32 ? 1e-5 : 1e-2;
}

// Runs every list of cases in every variant; the first one sets the bits. Prints a summary, returns
// the program's exit status.
typedef struct op_backend {
    const td_device *device;
    const td_ops *ops;
    const op_variant *variants;
    int n_variants;
} op_backend;
int op_main(int argc, char **argv, const op_backend *backend);

void cases_linear(op_run *run);
void cases_quantize(op_run *run);
void cases_elementwise(op_run *run); // embedding, add, glu, rope
void cases_rmsnorm(op_run *run);
void cases_attention(op_run *run);
void cases_loss(op_run *run);      // gather, scatter, cross entropy
void cases_optimizer(op_run *run); // fixed point, sums, adamw

#endif
