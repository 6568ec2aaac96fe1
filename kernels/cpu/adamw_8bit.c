// AdamW with 8-bit state (Dettmers et al., ICLR 2022): m and v are read from their codes, updated
// in fp32, and written back as the nearest code of their block's new absmax. Elements are updated
// with the exact m and v; only what is kept is rounded.
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "kernels/cpu/adamw_internal.h"
#include "kernels/dynamic_map.h"

enum { BLOCK = 256 };

static int64_t block_count(int64_t n) {
    return (n + BLOCK - 1) / BLOCK;
}

size_t td_adamw_8bit_state_bytes(int64_t page_elements) {
    size_t codes = td_mul_bytes((size_t)page_elements, 2), bytes;
    size_t absmax = td_mul_bytes((size_t)block_count(page_elements), 2 * sizeof(float));
    return __builtin_add_overflow(codes, absmax, &bytes) ? SIZE_MAX : bytes;
}

// The nearest code by table. A cell holds the magnitudes that share exponent and CELL_BITS mantissa
// bits; no cell has more than one midpoint of the map in it, so its first code and one comparison
// decide.
enum {
    CELL_BITS = 7,
    CELL_EXPONENTS = 24, // magnitudes below 2^-24 are nearest to zero in both maps
    CELLS = (CELL_EXPONENTS << CELL_BITS) + 1,
};

typedef struct code_finder {
    float map[256], midpoints[256];
    uint8_t first[2][CELLS]; // [sign][cell]
} code_finder;

static code_finder finder_m, finder_v;

static float cell_begin(int cell) {
    union {
        uint32_t u;
        float f;
    } word = {.u = ((uint32_t)(127 - CELL_EXPONENTS) << 23) + ((uint32_t)cell << (23 - CELL_BITS))};
    return cell > 0 ? word.f : 0.0f;
}

static inline int cell_of(float magnitude) {
    union {
        float f;
        uint32_t u;
    } word = {.f = magnitude};
    int cell = (int)(word.u >> (23 - CELL_BITS)) - ((127 - CELL_EXPONENTS) << CELL_BITS);
    cell = cell > 0 ? cell : 0;
    return cell < CELLS ? cell : CELLS - 1;
}

static uint8_t midpoints_below(const float midpoints[256], float x, int or_equal) {
    int count = 0;
    while (count < 255 && (midpoints[count] < x || (or_equal && midpoints[count] == x)))
        count++;
    return (uint8_t)count;
}

// A positive cell is [begin, next); a negative one (-next, -begin], where a midpoint at -next is
// behind every member.
static void finder_fill(code_finder *finder) {
    td_dynamic_map_midpoints(finder->map, finder->midpoints);
    for (int cell = 0; cell < CELLS; cell++) {
        finder->first[0][cell] = midpoints_below(finder->midpoints, cell_begin(cell), 0);
        float next = cell + 1 < CELLS ? cell_begin(cell + 1) : INFINITY;
        finder->first[1][cell] = midpoints_below(finder->midpoints, -next, 1);
    }
}

static void finders_make(void) {
    td_dynamic_map_signed(finder_m.map);
    td_dynamic_map_unsigned(finder_v.map);
    finder_fill(&finder_m);
    finder_fill(&finder_v);
}

// As td_dynamic_map_nearest(), without branches: codes are as good as random.
static inline uint8_t nearest(const code_finder *finder, float x) {
    uint32_t code = finder->first[x < 0.0f][cell_of(fabsf(x))];
    code += x > finder->midpoints[code];
    return (uint8_t)(code + (code & 1u & (uint32_t)(x == finder->midpoints[code])));
}

// The two loops that look up tables are not part of the vector code below: with wide vectors
// compilers collect the elements one by one into registers, and an update takes four times as long.
static void decode(const code_finder *finder, int64_t n, const uint8_t *codes, float absmax,
                   float *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = finder->map[codes[i]] * absmax;
}

static void encode(const code_finder *finder, int64_t n, const float *values, uint8_t *codes) {
    for (int64_t i = 0; i < n; i++)
        codes[i] = nearest(finder, values[i]);
}

// Divides by the absmax, which is returned. Magnitudes are ordered like their bits, which lets the
// maximum be taken in any order.
static inline __attribute__((always_inline)) float normalize(int64_t n, float *values) {
    union {
        uint32_t u;
        float f;
    } absmax = {.u = 0};
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        bits &= 0x7fffffffu;
        absmax.u = bits > absmax.u ? bits : absmax.u;
    }
    float by = absmax.f > 0.0f ? absmax.f : 1.0f;
    for (int64_t i = 0; i < n; i++)
        values[i] /= by;
    return absmax.f;
}

// One block of at most BLOCK elements, where they are in the page. A page of an odd number of
// elements leaves its floats at odd addresses, so they are copied in and out.
typedef struct state_block {
    int64_t n;
    const float *gradient;
    float *parameters;
    uint8_t *m, *v;
    uint8_t *m_absmax, *v_absmax; // a float each
} state_block;

static inline __attribute__((always_inline)) void
step_body(const td_adamw_scalars *scalars, const state_block *block, float *m, float *v) {
    td_adamw_scalars s = *scalars;
    for (int64_t i = 0; i < block->n; i++) {
        float g = block->gradient[i] * s.gradient_scale;
        m[i] = m[i] * s.beta1 + s.rest1 * g;
        v[i] = v[i] * s.beta2 + s.rest2 * g * g;
        block->parameters[i] = td_adamw_moved(&s, block->parameters[i], m[i], v[i]);
    }
    float m_absmax = normalize(block->n, m), v_absmax = normalize(block->n, v);
    memcpy(block->m_absmax, &m_absmax, sizeof m_absmax);
    memcpy(block->v_absmax, &v_absmax, sizeof v_absmax);
}

// Moves the parameters; m and v are left divided by their absmax.
typedef void step_function(const td_adamw_scalars *, const state_block *, float *m, float *v);

static void step_scalar(const td_adamw_scalars *scalars, const state_block *block, float *m,
                        float *v) {
    step_body(scalars, block, m, v);
}

TD_TARGET_AVX2 static void step_avx2(const td_adamw_scalars *scalars, const state_block *block,
                                     float *m, float *v) {
    step_body(scalars, block, m, v);
}

TD_TARGET_AVX512 static void step_avx512(const td_adamw_scalars *scalars, const state_block *block,
                                         float *m, float *v) {
    step_body(scalars, block, m, v);
}

static void block_update(step_function *step, const td_adamw_scalars *scalars,
                         const state_block *block) {
    float m[BLOCK], v[BLOCK], m_absmax, v_absmax;
    memcpy(&m_absmax, block->m_absmax, sizeof m_absmax);
    memcpy(&v_absmax, block->v_absmax, sizeof v_absmax);
    decode(&finder_m, block->n, block->m, m_absmax, m);
    decode(&finder_v, block->n, block->v, v_absmax, v);
    step(scalars, block, m, v);
    encode(&finder_m, block->n, m, block->m);
    encode(&finder_v, block->n, v, block->v);
}

static state_block block_at(const td_adamw_args *args, int64_t index) {
    int64_t begin = index * BLOCK, left = args->n_elements - begin;
    uint8_t *m = args->state, *v = m + args->page_elements;
    uint8_t *absmax = v + args->page_elements;
    int64_t page_blocks = block_count(args->page_elements), size = sizeof(float);
    return (state_block){
        .n = left < BLOCK ? left : BLOCK,
        .gradient = args->gradient + begin,
        .parameters = args->parameters + begin,
        .m = m + begin,
        .v = v + begin,
        .m_absmax = absmax + index * size,
        .v_absmax = absmax + (page_blocks + index) * size,
    };
}

td_status td_cpu_adamw_8bit(const td_op_context *context, const td_adamw_args *args) {
    (void)context;
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, finders_make);
    static step_function *const levels[] = {
        [TD_CPU_SCALAR] = step_scalar, [TD_CPU_AVX2] = step_avx2, [TD_CPU_AVX512] = step_avx512};
    step_function *step = levels[td_cpu_simd()];
    td_adamw_scalars scalars = td_adamw_scalars_of(args);
    int64_t n_blocks = block_count(args->n_elements);
#pragma omp parallel for schedule(static)                                                          \
    num_threads(td_cpu_threads()) if (args->n_elements > TD_CPU_PARALLEL_ELEMENTS)
    for (int64_t index = 0; index < n_blocks; index++) {
        state_block block = block_at(args, index);
        block_update(step, &scalars, &block);
    }
    return TD_OK;
}
