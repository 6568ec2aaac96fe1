// AdamW with 8-bit state (Dettmers et al., ICLR 2022) over one page: one warp per state block of
// 256. Elements are updated with the exact m and v; only what is kept is rounded to codes.
#include <cstring>

#include "kernels/cuda/adamw.cuh"
#include "kernels/cuda/dynamic_map.cuh"

namespace {

enum { BLOCK = 256, WARPS = 8, THREADS = 32 * WARPS, QUADS = BLOCK / 4 / 32 };

struct adamw_page {
    int64_t n;
    float *parameters;            // (n)
    const float *gradient;        // (n)
    uint8_t *m, *v;               // (n) codes
    uint8_t *m_absmax, *v_absmax; // (n / 256 up) fp32 that an odd page leaves at odd addresses
};

struct map_pair {
    td_code_map m, v;
};

// What a lane has of one moment in its state block: quad q holds elements [128 q + 4 lane, + 4).
struct moment {
    td_quad<float> quad[QUADS];
};

__device__ __forceinline__ float read_float(const uint8_t *from) {
    float x;
    memcpy(&x, from, sizeof x);
    return x;
}

// Elements behind n count as zero.
__device__ __forceinline__ void decode(const td_code_map &map, const uint8_t *codes, int64_t i,
                                       int64_t n, bool aligned, float absmax, td_quad<float> *out) {
    td_quad<uint8_t> code = td_quad_load(codes, i, n, aligned);
    for (int k = 0; k < 4; k++)
        out->x[k] = i + k < n ? __fmul_rn(map.value[code.x[k]], absmax) : 0.0f;
}

__device__ __forceinline__ void encode(const td_code_map &map, const td_quad<float> &quad,
                                       float absmax, int64_t i, int64_t n, bool aligned,
                                       uint8_t *codes) {
    float by = absmax > 0.0f ? absmax : 1.0f;
    td_quad<uint8_t> code;
    for (int k = 0; k < 4; k++)
        code.x[k] = td_dynamic_map_nearest(map.midpoint, __fdiv_rn(quad.x[k], by));
    td_quad_store(codes, i, n, aligned, code);
}

// Not a loop: compilers keep one this long, and the moment in memory with it.
__device__ __forceinline__ void encode_both(const td_code_map &map, const moment &values,
                                            float absmax, int64_t begin, int64_t n, bool aligned,
                                            uint8_t *codes) {
    static_assert(QUADS == 2, "two calls");
    encode(map, values.quad[0], absmax, begin, n, aligned, codes);
    encode(map, values.quad[1], absmax, begin + 128, n, aligned, codes);
}

// Moves four parameters and their exact moments.
__device__ __forceinline__ void step_quad(const adamw_page &page, const td_adamw_scalars &s,
                                          int64_t i, bool aligned, td_quad<float> *m,
                                          td_quad<float> *v) {
    td_quad<float> gradient = td_quad_load(page.gradient, i, page.n, aligned);
    td_quad<float> p = td_quad_load(page.parameters, i, page.n, aligned);
    for (int k = 0; k < 4; k++) {
        float g = td_adamw_gradient(s, gradient.x[k]);
        m->x[k] = __fadd_rn(__fmul_rn(m->x[k], s.beta1), __fmul_rn(s.rest1, g));
        v->x[k] = td_adamw_v(s, v->x[k], g);
        p.x[k] = td_adamw_moved(s, p.x[k], m->x[k], v->x[k]);
    }
    td_quad_store(page.parameters, i, page.n, aligned, p);
}

// The warp's largest magnitude. Magnitudes are ordered like their bits, with NaN above all.
__device__ __forceinline__ float absmax_of(const moment &values) {
    unsigned largest = 0;
    for (int q = 0; q < QUADS; q++)
        for (int k = 0; k < 4; k++)
            largest = max(largest, __float_as_uint(values.quad[q].x[k]) & 0x7fffffffu);
    for (int lane = 16; lane > 0; lane /= 2)
        largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
    return __uint_as_float(largest);
}

__device__ void block_update(const adamw_page &page, const td_adamw_scalars &s,
                             const map_pair &maps, int64_t block, bool aligned) {
    uint8_t *m_at = page.m_absmax + 4 * block, *v_at = page.v_absmax + 4 * block;
    float m_absmax = read_float(m_at), v_absmax = read_float(v_at);
    int64_t begin = block * BLOCK + 4 * (threadIdx.x % 32);
    moment m, v;
    for (int q = 0; q < QUADS; q++) {
        int64_t i = begin + 128 * q;
        decode(maps.m, page.m, i, page.n, aligned, m_absmax, &m.quad[q]);
        decode(maps.v, page.v, i, page.n, aligned, v_absmax, &v.quad[q]);
        step_quad(page, s, i, aligned, &m.quad[q], &v.quad[q]);
    }
    m_absmax = absmax_of(m); // every lane has read the old ones
    v_absmax = absmax_of(v);
    encode_both(maps.m, m, m_absmax, begin, page.n, aligned, page.m);
    encode_both(maps.v, v, v_absmax, begin, page.n, aligned, page.v);
    if (threadIdx.x % 32 == 0) {
        memcpy(m_at, &m_absmax, sizeof m_absmax);
        memcpy(v_at, &v_absmax, sizeof v_absmax);
    }
}

__global__ void __launch_bounds__(THREADS)
    adamw_8bit_kernel(adamw_page page, td_adamw_scalars s, bool aligned) {
    map_pair *maps = td_cuda_shared<map_pair>();
    td_map_fill<td_map_signed>(&maps->m);
    td_map_fill<td_map_unsigned>(&maps->v);
    __syncthreads();
    int64_t block = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / 32;
    if (block * BLOCK < page.n) // the same for the whole warp
        block_update(page, s, *maps, block, aligned);
}

adamw_page page_of(const td_adamw_args *args) {
    uint8_t *m = static_cast<uint8_t *>(args->state), *v = m + args->page_elements;
    uint8_t *absmax = v + args->page_elements;
    int64_t blocks = (args->page_elements + BLOCK - 1) / BLOCK;
    return {args->n_elements, args->parameters, args->gradient, m, v, absmax, absmax + 4 * blocks};
}

} // namespace

td_status td_cuda_adamw_8bit(const td_op_context *context, const td_adamw_args *args) {
    adamw_page page = page_of(args);
    bool aligned = td_is_quad_aligned(page.parameters) && td_is_quad_aligned(page.gradient) &&
                   td_is_quad_aligned(page.m) && td_is_quad_aligned(page.v);
    return td_cuda_launch(context, "adamw_8bit", adamw_8bit_kernel,
                          td_cuda_blocks(args->n_elements, WARPS * BLOCK), THREADS,
                          sizeof(map_pair), page, td_adamw_scalars_of(args), aligned);
}
