// The gated unit for one level of vector instructions. Included by glu.c, once per level, with
// TD_LANES_LEVEL set; no include guard on purpose.

#define L(name)      TD_LANES_NAME(td_lanes_##name##_)
#define LANES        TD_LANES_NAME(td_lanes_)
#define KERNEL(name) TD_LANES_JOIN(name##_, TD_LANES_LEVEL)

// The first n of the TD_LANES elements at x, zeros beside them.
TD_LANES_INLINE LANES KERNEL(load)(const float *x, int64_t n) {
    if (n >= TD_LANES)
        return L(load)(x);
    float padded[TD_LANES] = {0};
    memcpy(padded, x, (size_t)n * sizeof *x);
    return L(load)(padded);
}

TD_LANES_INLINE void KERNEL(store)(float *x, int64_t n, LANES lanes) {
    if (n >= TD_LANES) {
        L(store)(x, lanes);
        return;
    }
    float padded[TD_LANES];
    L(store)(padded, lanes);
    memcpy(x, padded, (size_t)n * sizeof *x);
}

TD_LANES_INLINE LANES KERNEL(sigmoid)(LANES x) {
    LANES one = L(set)(1.0f);
    return L(div)(one, L(add)(one, L(exp)(L(sub)(L(set)(0.0f), x))));
}

// x (first + third x^2) for |x| up to GELU_FLAT; a NaN stays.
TD_LANES_INLINE LANES KERNEL(cubic)(LANES x, float first, float third) {
    x = L(max)(L(set)(-GELU_FLAT), L(min)(L(set)(GELU_FLAT), x));
    return L(mul)(x, L(add)(L(set)(first), L(mul)(L(set)(third), L(mul)(x, x))));
}

// z(x), and x z'(x).
TD_LANES_INLINE LANES KERNEL(inner)(td_gate gate, LANES x) {
    return gate == TD_GATE_SILU ? x : KERNEL(cubic)(x, GELU_FIRST, GELU_THIRD);
}

TD_LANES_INLINE LANES KERNEL(inner_slope)(td_gate gate, LANES x) {
    return gate == TD_GATE_SILU ? x : KERNEL(cubic)(x, GELU_FIRST, 3.0f * GELU_THIRD);
}

// The `left` elements from i on, TD_LANES at most.
TD_LANES_INLINE void KERNEL(forward_step)(td_gate kind, const forward_span *span, int64_t i,
                                          int64_t left) {
    LANES g = KERNEL(load)(span->gate + i, left), u = KERNEL(load)(span->up + i, left);
    LANES s = KERNEL(sigmoid)(KERNEL(inner)(kind, g));
    KERNEL(store)(span->y + i, left, L(mul)(L(mul)(g, s), u));
}

TD_LANES_INLINE void KERNEL(forward)(td_gate kind, const forward_span *span) {
    int64_t i = 0;
    for (; i + TD_LANES <= span->n; i += TD_LANES)
        KERNEL(forward_step)(kind, span, i, TD_LANES);
    if (i < span->n)
        KERNEL(forward_step)(kind, span, i, span->n - i);
}

// With s = sigmoid(z(g)): dup = dy g s; dgate = dy up s (1 + g z'(g) (1 - s)).
TD_LANES_INLINE void KERNEL(backward_step)(td_gate kind, const backward_span *span, int64_t i,
                                           int64_t left) {
    LANES one = L(set)(1.0f), dy = KERNEL(load)(span->dy + i, left);
    LANES g = KERNEL(load)(span->gate + i, left), u = KERNEL(load)(span->up + i, left);
    LANES s = KERNEL(sigmoid)(KERNEL(inner)(kind, g));
    LANES slope = L(add)(one, L(mul)(KERNEL(inner_slope)(kind, g), L(sub)(one, s)));
    KERNEL(store)(span->dgate + i, left, L(mul)(L(mul)(L(mul)(dy, u), s), slope));
    KERNEL(store)(span->dup + i, left, L(mul)(dy, L(mul)(g, s)));
}

TD_LANES_INLINE void KERNEL(backward)(td_gate kind, const backward_span *span) {
    int64_t i = 0;
    for (; i + TD_LANES <= span->n; i += TD_LANES)
        KERNEL(backward_step)(kind, span, i, TD_LANES);
    if (i < span->n)
        KERNEL(backward_step)(kind, span, i, span->n - i);
}

TD_LANES_TARGET static void KERNEL(forward_silu)(const forward_span *span) {
    KERNEL(forward)(TD_GATE_SILU, span);
}

TD_LANES_TARGET static void KERNEL(forward_gelu)(const forward_span *span) {
    KERNEL(forward)(TD_GATE_GELU_TANH, span);
}

TD_LANES_TARGET static void KERNEL(backward_silu)(const backward_span *span) {
    KERNEL(backward)(TD_GATE_SILU, span);
}

TD_LANES_TARGET static void KERNEL(backward_gelu)(const backward_span *span) {
    KERNEL(backward)(TD_GATE_GELU_TANH, span);
}

static const glu_kernels KERNEL(kernels) = {
    .forward = {[TD_GATE_SILU] = KERNEL(forward_silu), [TD_GATE_GELU_TANH] = KERNEL(forward_gelu)},
    .backward =
        {[TD_GATE_SILU] = KERNEL(backward_silu), [TD_GATE_GELU_TANH] = KERNEL(backward_gelu)},
};

#undef L
#undef LANES
#undef KERNEL
#undef TD_LANES_LEVEL
