// Gated linear units (Shazeer, 2020): y = activation(gate) * up. The same bits at every vector
// width.
//
// Both activations are x sigmoid(z(x)): SiLU with z = x, and GELU's tanh approximation, as
// (1 + tanh(a)) / 2 = sigmoid(2 a), with z = 2 sqrt(2 / pi) (x + 0.044715 x^3). That keeps the
// digits of its negative side, where 1 + tanh(a) would cancel.
#include "kernels/cpu/lanes.h"

// Of z, by x and x^3. From GELU_FLAT on the sigmoid is exactly 0 or 1 and z need not grow: x^3
// would overflow, and its product with a zero be NaN.
#define GELU_FIRST 1.59576912160573f
#define GELU_THIRD 0.07135481627260f
#define GELU_FLAT  16.0f

// Neighbours in one row of every operand.
typedef struct forward_span {
    int64_t n;
    const float *gate, *up;
    float *y;
} forward_span;

typedef struct backward_span {
    int64_t n;
    const float *dy, *gate, *up;
    float *dgate, *dup;
} backward_span;

typedef struct glu_kernels {
    void (*forward[2])(const forward_span *span); // by td_gate
    void (*backward[2])(const backward_span *span);
} glu_kernels;

#define TD_LANES_LEVEL scalar
#include "kernels/cpu/glu_template.h"

#define TD_LANES_LEVEL avx2
#include "kernels/cpu/glu_template.h"

#define TD_LANES_LEVEL avx512
#include "kernels/cpu/glu_template.h"

static const glu_kernels *find_kernels(void) {
    static const glu_kernels *const levels[] = {[TD_CPU_SCALAR] = &kernels_scalar,
                                                [TD_CPU_AVX2] = &kernels_avx2,
                                                [TD_CPU_AVX512] = &kernels_avx512};
    return levels[td_cpu_simd()];
}

// Where element `at` of the contiguous operand lies in the others, and how many follow it in its
// row and before `end`. Without gaps between them all rows are one.
typedef struct place {
    int64_t gate, up, n;
} place;

static place find_place(int64_t cols, int64_t gate_stride, int64_t up_stride, int64_t at,
                        int64_t end) {
    if (gate_stride == cols && up_stride == cols)
        return (place){at, at, end - at};
    int64_t row = at / cols, col = at % cols, n = cols - col;
    return (place){row * gate_stride + col, row * up_stride + col, n < end - at ? n : end - at};
}

static void forward_range(const td_glu_forward_args *args, td_cpu_range range) {
    const glu_kernels *kernels = find_kernels();
    for (int64_t at = range.begin; at < range.end;) {
        place from = find_place(args->n_cols, args->gate_stride, args->up_stride, at, range.end);
        kernels->forward[args->activation](&(forward_span){
            .n = from.n,
            .gate = (const float *)args->gate + from.gate,
            .up = (const float *)args->up + from.up,
            .y = (float *)args->y + at,
        });
        at += from.n;
    }
}

static void backward_range(const td_glu_backward_args *args, td_cpu_range range) {
    const glu_kernels *kernels = find_kernels();
    for (int64_t at = range.begin; at < range.end;) {
        place from = find_place(args->n_cols, args->gate_stride, args->up_stride, at, range.end);
        kernels->backward[args->activation](&(backward_span){
            .n = from.n,
            .dy = (const float *)args->dy + at,
            .gate = (const float *)args->gate + from.gate,
            .up = (const float *)args->up + from.up,
            .dgate = (float *)args->dgate + from.gate,
            .dup = (float *)args->dup + from.up,
        });
        at += from.n;
    }
}

td_status td_cpu_glu_forward(const td_op_context *context, const td_glu_forward_args *args) {
    (void)context;
    int64_t n = args->n_rows * args->n_cols;
    int parts = n > TD_CPU_PARALLEL_ELEMENTS ? td_cpu_threads() : 1;
#pragma omp parallel for schedule(static) num_threads(parts)
    for (int part = 0; part < parts; part++)
        forward_range(args, td_cpu_split(n, TD_LANES, parts, part));
    return TD_OK;
}

td_status td_cpu_glu_backward(const td_op_context *context, const td_glu_backward_args *args) {
    (void)context;
    int64_t n = args->n_rows * args->n_cols;
    int parts = n > TD_CPU_PARALLEL_ELEMENTS ? td_cpu_threads() : 1;
#pragma omp parallel for schedule(static) num_threads(parts)
    for (int part = 0; part < parts; part++)
        backward_range(args, td_cpu_split(n, TD_LANES, parts, part));
    return TD_OK;
}
