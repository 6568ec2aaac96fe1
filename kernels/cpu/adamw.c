// AdamW (Loshchilov and Hutter, ICLR 2019) in the operation order of torch.optim.AdamW, so that a
// run can be compared step by step. No operation is contracted: every vector width gives the same
// bits.
#include "kernels/cpu/adamw_internal.h"

size_t td_adamw_state_bytes(int64_t page_elements) {
    return td_mul_bytes((size_t)page_elements, 2 * sizeof(float));
}

// From m towards g, from the nearer end, as torch's lerp.
static inline __attribute__((always_inline)) float lerp(float m, float g, float rest, float beta) {
    return rest < 0.5f ? m + rest * (g - m) : g - (g - m) * beta;
}

static inline __attribute__((always_inline)) void
update_body(const td_adamw_scalars *scalars, int64_t n, const float *restrict gradient,
            float *restrict parameters, float *restrict m, float *restrict v) {
    td_adamw_scalars s = *scalars;
    float beta1 = 1.0f - s.rest1;
    for (int64_t i = 0; i < n; i++) {
        float g = gradient[i] * s.gradient_scale;
        m[i] = lerp(m[i], g, s.rest1, beta1);
        v[i] = v[i] * s.beta2 + s.rest2 * g * g;
        parameters[i] = td_adamw_moved(&s, parameters[i], m[i], v[i]);
    }
}

typedef void update_function(const td_adamw_scalars *, int64_t, const float *restrict,
                             float *restrict, float *restrict, float *restrict);

static void update_scalar(const td_adamw_scalars *scalars, int64_t n,
                          const float *restrict gradient, float *restrict parameters,
                          float *restrict m, float *restrict v) {
    update_body(scalars, n, gradient, parameters, m, v);
}

TD_TARGET_AVX2 static void update_avx2(const td_adamw_scalars *scalars, int64_t n,
                                       const float *restrict gradient, float *restrict parameters,
                                       float *restrict m, float *restrict v) {
    update_body(scalars, n, gradient, parameters, m, v);
}

TD_TARGET_AVX512 static void update_avx512(const td_adamw_scalars *scalars, int64_t n,
                                           const float *restrict gradient,
                                           float *restrict parameters, float *restrict m,
                                           float *restrict v) {
    update_body(scalars, n, gradient, parameters, m, v);
}

td_status td_cpu_adamw(const td_op_context *context, const td_adamw_args *args) {
    (void)context;
    static update_function *const levels[] = {[TD_CPU_SCALAR] = update_scalar,
                                              [TD_CPU_AVX2] = update_avx2,
                                              [TD_CPU_AVX512] = update_avx512};
    update_function *update = levels[td_cpu_simd()];
    td_adamw_scalars scalars = td_adamw_scalars_of(args);
    float *m = args->state, *v = m + args->page_elements;
    int parts = args->n_elements > TD_CPU_PARALLEL_ELEMENTS ? td_cpu_threads() : 1;
#pragma omp parallel for schedule(static) num_threads(parts)
    for (int part = 0; part < parts; part++) {
        td_cpu_range range = td_cpu_split(args->n_elements, 16, parts, part);
        update(&scalars, range.end - range.begin, args->gradient + range.begin,
               args->parameters + range.begin, m + range.begin, v + range.begin);
    }
    return TD_OK;
}
