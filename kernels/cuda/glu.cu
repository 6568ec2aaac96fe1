// Gated linear units (Shazeer, 2020): y = activation(gate) * up. Sums of products are explicit
// fused multiply-adds, so that every compilation gives the same bits. Outputs may lie over inputs:
// a thread reads its elements before it writes them.
//
// As on the CPU both activations are x sigmoid(z(x)): SiLU with z = x, and GELU's tanh
// approximation, as (1 + tanh(a)) / 2 = sigmoid(2 a), with z = 2 sqrt(2 / pi) (x + 0.044715 x^3).
// That keeps the digits of its negative side, where 1 + tanh(a) would cancel.
#include "kernels/cuda/elements.cuh"

namespace {

constexpr int EACH = 2; // chunks per thread, forward

// Of z, by x and x^3. From GELU_FLAT on the sigmoid is exactly 0 or 1 and z need not grow: x^3
// would overflow, and its product with a zero be NaN.
constexpr float GELU_FIRST = 1.59576912160573f;
constexpr float GELU_THIRD = 0.07135481627260f;
constexpr float GELU_FLAT = 16.0f;

// Rows cut into chunks; rows without gaps in any operand are one long row.
struct glu_layout {
    int64_t n_items, chunks; // rows * chunks of a row
    int64_t cols;
    int64_t gate_stride, up_stride;
    bool wide;
};

template <typename T> struct forward_job {
    glu_layout layout;
    const T *gate, *up;
    T *y; // (rows, cols)
};

template <typename T> struct backward_job {
    glu_layout layout;
    const T *dy; // (rows, cols)
    const T *gate, *up;
    T *dgate, *dup; // with the strides of gate and up
};

// One chunk: elements [i, i + 8) of those before `end` of a row.
struct glu_place {
    int64_t row, i, end;
};

template <bool GAPS>
__device__ __forceinline__ glu_place find_place(const glu_layout &layout, int64_t element) {
    if (!GAPS)
        return {0, element, layout.cols};
    int64_t item = element / TD_CHUNK, row = item / layout.chunks;
    if (item >= layout.n_items)
        return {0, 0, 0};
    return {row, (item - row * layout.chunks) * TD_CHUNK, layout.cols};
}

// x (first + third x^2) for |x| up to GELU_FLAT; a NaN stays.
__device__ __forceinline__ float cubic(float x, float first, float third) {
    x = x > GELU_FLAT ? GELU_FLAT : x;
    x = x < -GELU_FLAT ? -GELU_FLAT : x;
    return x * fmaf(third, x * x, first);
}

// exp() overflows to infinity below -88, which gives the limit 0.
template <td_gate KIND> __device__ __forceinline__ float sigmoid_of_inner(float x) {
    float z = KIND == TD_GATE_SILU ? x : cubic(x, GELU_FIRST, GELU_THIRD);
    return 1.0f / (1.0f + expf(-z));
}

// x z'(x)
template <td_gate KIND> __device__ __forceinline__ float inner_slope(float x) {
    return KIND == TD_GATE_SILU ? x : cubic(x, GELU_FIRST, 3.0f * GELU_THIRD);
}

template <typename T, td_gate KIND, bool GAPS> __global__ void forward_kernel(forward_job<T> job) {
    const glu_layout &layout = job.layout;
    td_chunk<T> g[EACH], u[EACH];
    glu_place at[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        at[k] = find_place<GAPS>(layout, td_flat_element<EACH>(k));
        g[k] = td_chunk_load(job.gate + at[k].row * layout.gate_stride, at[k].i, at[k].end,
                             layout.wide);
        u[k] =
            td_chunk_load(job.up + at[k].row * layout.up_stride, at[k].i, at[k].end, layout.wide);
    }
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        td_floats x = td_chunk_floats(g[k]), product = td_chunk_floats(u[k]);
#pragma unroll
        for (int i = 0; i < TD_CHUNK; i++)
            product.at[i] *= x.at[i] * sigmoid_of_inner<KIND>(x.at[i]);
        td_chunk_store(job.y + at[k].row * layout.cols, at[k].i, at[k].end, layout.wide,
                       td_chunk_of<T>(product));
    }
}

// With s = sigmoid(z(g)): dup = dy g s; dgate = dy up s (1 + g z'(g) (1 - s)).
template <typename T, td_gate KIND, bool GAPS>
__global__ void backward_kernel(backward_job<T> job) {
    const glu_layout &layout = job.layout;
    glu_place at = find_place<GAPS>(layout, td_flat_element<1>(0));
    int64_t gate = at.row * layout.gate_stride, up = at.row * layout.up_stride;
    td_chunk<T> loaded[3] = {
        td_chunk_load(job.dy + at.row * layout.cols, at.i, at.end, layout.wide),
        td_chunk_load(job.gate + gate, at.i, at.end, layout.wide),
        td_chunk_load(job.up + up, at.i, at.end, layout.wide)};
    td_floats d = td_chunk_floats(loaded[0]), g = td_chunk_floats(loaded[1]);
    td_floats u = td_chunk_floats(loaded[2]);
#pragma unroll
    for (int i = 0; i < TD_CHUNK; i++) {
        float s = sigmoid_of_inner<KIND>(g.at[i]);
        float slope = fmaf(inner_slope<KIND>(g.at[i]), 1.0f - s, 1.0f);
        float dactivation = d.at[i] * u.at[i];
        u.at[i] = d.at[i] * (g.at[i] * s);
        g.at[i] = dactivation * s * slope;
    }
    td_chunk_store(job.dgate + gate, at.i, at.end, layout.wide, td_chunk_of<T>(g));
    td_chunk_store(job.dup + up, at.i, at.end, layout.wide, td_chunk_of<T>(u));
}

bool has_gaps(int64_t cols, int64_t gate_stride, int64_t up_stride) {
    return gate_stride != cols || up_stride != cols;
}

// For forward and backward arguments, whose bases are all on 16-byte addresses when `aligned`.
template <typename T, typename A> glu_layout layout_of(const A *args, bool aligned) {
    constexpr int64_t per_access = 16 / sizeof(T);
    bool gaps = has_gaps(args->n_cols, args->gate_stride, args->up_stride);
    bool accesses = args->n_cols % per_access == 0 && args->gate_stride % per_access == 0 &&
                    args->up_stride % per_access == 0;
    int64_t rows = gaps ? args->n_rows : 1;
    int64_t cols = gaps ? args->n_cols : args->n_rows * args->n_cols;
    int64_t chunks = td_cuda_chunks(cols);
    return {rows * chunks,     chunks,          cols,
            args->gate_stride, args->up_stride, aligned && (accesses || !gaps)};
}

// Calls body(kind, gaps) with both as types' constants.
template <td_gate KIND> struct gate_constant { static constexpr td_gate value = KIND; };
template <bool GAPS> struct gaps_constant { static constexpr bool value = GAPS; };

template <typename A, typename Body> td_status by_kind(const A *args, Body body) {
    bool gaps = has_gaps(args->n_cols, args->gate_stride, args->up_stride);
    gate_constant<TD_GATE_SILU> silu;
    gate_constant<TD_GATE_GELU_TANH> gelu;
    if (args->activation == TD_GATE_SILU)
        return gaps ? body(silu, gaps_constant<true>()) : body(silu, gaps_constant<false>());
    return gaps ? body(gelu, gaps_constant<true>()) : body(gelu, gaps_constant<false>());
}

} // namespace

td_status td_cuda_glu_forward(const td_op_context *context, const td_glu_forward_args *args) {
    bool aligned = td_cuda_aligned(args->gate, args->up, args->y);
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        forward_job<T> job = {layout_of<T>(args, aligned), static_cast<const T *>(args->gate),
                              static_cast<const T *>(args->up), static_cast<T *>(args->y)};
        return by_kind(args, [&](auto kind, auto gaps) {
            return td_cuda_launch(context, "glu_forward",
                                  forward_kernel<T, decltype(kind)::value, decltype(gaps)::value>,
                                  td_flat_grid<EACH>(job.layout.n_items), TD_FLAT_THREADS, 0, job);
        });
    });
}

td_status td_cuda_glu_backward(const td_op_context *context, const td_glu_backward_args *args) {
    bool aligned = td_cuda_aligned(args->dy, args->gate, args->up, args->dgate, args->dup);
    return td_cuda_by_activation(context, [&](auto type) {
        using T = decltype(type);
        backward_job<T> job = {layout_of<T>(args, aligned),        static_cast<const T *>(args->dy),
                               static_cast<const T *>(args->gate), static_cast<const T *>(args->up),
                               static_cast<T *>(args->dgate),      static_cast<T *>(args->dup)};
        return by_kind(args, [&](auto kind, auto gaps) {
            return td_cuda_launch(context, "glu_backward",
                                  backward_kernel<T, decltype(kind)::value, decltype(gaps)::value>,
                                  td_flat_grid<1>(job.layout.n_items), TD_FLAT_THREADS, 0, job);
        });
    });
}
