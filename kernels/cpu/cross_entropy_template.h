// The loss of one row for one level of vector instructions. Included by cross_entropy.c, once per
// level, with TD_LANES_LEVEL set; no include guard on purpose.

#define L(name)      TD_LANES_NAME(td_lanes_##name##_)
#define LANES        TD_LANES_NAME(td_lanes_)
#define KERNEL(name) TD_LANES_JOIN(name##_, TD_LANES_LEVEL)

// The n < TD_LANES elements at x, with -infinity beside them: as logits they weigh nothing.
TD_LANES_INLINE LANES KERNEL(load_tail)(const float *x, int64_t n) {
    float padded[TD_LANES];
    L(store)(padded, L(set)(-INFINITY));
    memcpy(padded, x, (size_t)n * sizeof *x);
    return L(load)(padded);
}

TD_LANES_INLINE void KERNEL(store_tail)(float *x, LANES lanes, int64_t n) {
    float padded[TD_LANES];
    L(store)(padded, lanes);
    memcpy(x, padded, (size_t)n * sizeof *x);
}

// The first n lanes, and zeros.
TD_LANES_INLINE LANES KERNEL(first)(LANES lanes, int64_t n) {
    float padded[TD_LANES];
    L(store)(padded, lanes);
    for (int64_t i = n; i < TD_LANES; i++)
        padded[i] = 0.0f;
    return L(load)(padded);
}

TD_LANES_TARGET static float KERNEL(largest)(const float *x, int64_t n) {
    int64_t whole = n / TD_LANES * TD_LANES;
    LANES a = KERNEL(load_tail)(x + whole, n - whole), b = a;
    int64_t i = 0;
    for (; i + 2 * TD_LANES <= whole; i += 2 * TD_LANES) {
        a = L(max)(a, L(load)(x + i));
        b = L(max)(b, L(load)(x + i + TD_LANES));
    }
    if (i < whole)
        a = L(max)(a, L(load)(x + i));
    return L(largest)(L(max)(a, b));
}

// Sum of exp(x - shift) over at most CHUNK elements; with keep, x becomes the exponentials.
TD_LANES_INLINE float KERNEL(chunk)(float *x, int64_t n, float shift, int keep) {
    LANES sum = L(set)(0.0f), by = L(set)(shift);
    int64_t i = 0;
    for (; i + TD_LANES <= n; i += TD_LANES) {
        LANES e = L(exp)(L(sub)(L(load)(x + i), by));
        if (keep)
            L(store)(x + i, e);
        sum = L(add)(sum, e);
    }
    if (i < n) {
        LANES e = L(exp)(L(sub)(KERNEL(load_tail)(x + i, n - i), by));
        if (keep)
            KERNEL(store_tail)(x + i, e, n - i);
        sum = L(add)(sum, e);
    }
    return L(sum)(sum);
}

// Short fp32 sums, added up in double: a vocabulary is long enough for fp32 to lose digits.
TD_LANES_TARGET static double KERNEL(exponentials)(float *x, int64_t n, float shift, int keep) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t count = n - i < CHUNK ? n - i : CHUNK;
        sum += (double)(keep ? KERNEL(chunk)(x + i, count, shift, 1)
                             : KERNEL(chunk)(x + i, count, shift, 0));
    }
    return sum;
}

// With t = tanh(x / cap) the slope of cap t by x is 1 - t^2 = exp(-2 |x| / cap) (1 + |t|)^2, in
// which nothing cancels where t is nearly one.
TD_LANES_INLINE LANES KERNEL(cap_slope)(LANES u, LANES t) {
    LANES zero = L(set)(0.0f), size = L(max)(L(sub)(zero, u), u);
    LANES grown = L(add)(L(set)(1.0f), L(max)(L(sub)(zero, t), t));
    return L(mul)(L(exp)(L(mul)(L(set)(-2.0f), size)), L(mul)(grown, grown));
}

// Sum of exp(cap tanh(x / cap) - shift) over the first n of the TD_LANES elements at x; with keep,
// x becomes its summands times the slopes.
TD_LANES_INLINE LANES KERNEL(capped)(float *x, int64_t n, soft_cap cap, float shift, int keep) {
    LANES u = n < TD_LANES ? KERNEL(load_tail)(x, n) : L(load)(x);
    u = L(mul)(u, L(set)(cap.inverse));
    LANES t = L(tanh)(u);
    LANES e = L(exp)(L(sub)(L(mul)(t, L(set)(cap.cap)), L(set)(shift)));
    if (keep) {
        LANES product = L(mul)(e, KERNEL(cap_slope)(u, t));
        if (n < TD_LANES)
            KERNEL(store_tail)(x, product, n);
        else
            L(store)(x, product);
    }
    return n < TD_LANES ? KERNEL(first)(e, n) : e;
}

TD_LANES_INLINE float KERNEL(capped_chunk)(float *x, int64_t n, soft_cap cap, float shift,
                                           int keep) {
    LANES sum = L(set)(0.0f);
    int64_t i = 0;
    for (; i + TD_LANES <= n; i += TD_LANES)
        sum = L(add)(sum, KERNEL(capped)(x + i, TD_LANES, cap, shift, keep));
    if (i < n)
        sum = L(add)(sum, KERNEL(capped)(x + i, n - i, cap, shift, keep));
    return L(sum)(sum);
}

TD_LANES_TARGET static double KERNEL(capped_exponentials)(float *x, int64_t n, soft_cap cap,
                                                          float shift, int keep) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t count = n - i < CHUNK ? n - i : CHUNK;
        sum += (double)(keep ? KERNEL(capped_chunk)(x + i, count, cap, shift, 1)
                             : KERNEL(capped_chunk)(x + i, count, cap, shift, 0));
    }
    return sum;
}

TD_LANES_TARGET static void KERNEL(scale)(float *x, int64_t n, float factor) {
    LANES by = L(set)(factor);
    int64_t i = 0;
    for (; i + TD_LANES <= n; i += TD_LANES)
        L(store)(x + i, L(mul)(L(load)(x + i), by));
    for (; i < n; i++)
        x[i] *= factor;
}

static const row_kernels KERNEL(kernels) = {
    .largest = KERNEL(largest),
    .exponentials = KERNEL(exponentials),
    .capped_exponentials = KERNEL(capped_exponentials),
    .scale = KERNEL(scale),
};

#undef L
#undef LANES
#undef KERNEL
#undef TD_LANES_LEVEL
