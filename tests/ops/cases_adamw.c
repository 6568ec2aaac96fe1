// AdamW and 8-bit AdamW against own references, against torch, and against the update of
// bitsandbytes (tests/reference/make_ops.py).
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dynamic_map.h"
#include "ops/case.h"
#include "ops/cases_optimizer.h"
#include "ops/fixture.h"

enum { BLOCK = 256 };

// What stays the same over the steps of a case.
typedef struct adamw_case {
    int64_t n, page;
    int steps;
    float gradient_scale;
    double weight_decay, beta1, beta2;
} adamw_case;

static const adamw_case CASES[] = {
    {1, 1, 3, 1.0f, 0.0, 0.9, 0.999},
    {17, 40, 3, 0.25f, 0.1, 0.9, 0.999},
    {256, 256, 2, 1.0f, 0.01, 0.9, 0.95},
    {1000, 1003, 4, 0.7f, 0.0, 0.3, 0.99}, // lerp from the other end
    {40000, 50001, 2, 1.0f, 0.1, 0.9, 0.999},
};

static td_adamw_args args_of(const adamw_case *c, const op_buffer *parameters,
                             const op_buffer *gradient, const op_buffer *state, int step) {
    return (td_adamw_args){
        .n_elements = c->n,
        .page_elements = c->page,
        .parameters = parameters->memory,
        .gradient = gradient->memory,
        .state = state->memory,
        .gradient_scale = c->gradient_scale,
        .learning_rate = 1e-3 * step,
        .beta1 = c->beta1,
        .beta2 = c->beta2,
        .epsilon = 1e-8,
        .weight_decay = c->weight_decay,
        .step = step,
    };
}

// The formula of ops.h for one element, in double.
static void reference_element(const td_adamw_args *args, double gradient, double *p, double *m,
                              double *v) {
    double g = gradient * (double)args->gradient_scale, rate = args->learning_rate;
    double b1 = args->beta1, b2 = args->beta2, t = (double)args->step;
    *p *= 1.0 - rate * args->weight_decay;
    *m = b1 * *m + (1.0 - b1) * g;
    *v = b2 * *v + (1.0 - b2) * g * g;
    double unbiased_m = *m / (1.0 - pow(b1, t)), unbiased_v = *v / (1.0 - pow(b2, t));
    *p -= rate * unbiased_m / (sqrt(unbiased_v) + args->epsilon);
}

static void check_adamw(op_run *run, const adamw_case *c) {
    if (!op_case_begin(run, "adamw", "n=%d page=%d decay=%g", (int)c->n, (int)c->page,
                       c->weight_decay))
        return;
    op_buffer *parameters = op_random(run, TD_F32, c->n, 1.0);
    double *state = op_doubles(run, 2 * c->page), *p = op_doubles(run, c->n);
    op_expect_true(run, "the state is two floats per element",
                   td_adamw_state_bytes(c->page) == (size_t)c->page * 8);
    op_buffer *kept = op_given(run, TD_F32, 2 * c->page, state);
    memcpy(p, parameters->values, (size_t)c->n * sizeof *p);
    for (int step = 1; step <= c->steps; step++) {
        op_buffer *gradient = op_random(run, TD_F32, c->n, step == 2 ? 1e-3 : 1.0);
        td_adamw_args args = args_of(c, parameters, gradient, kept, step);
        OP_CALL(run, adamw, &args, 0, 28.0 * (double)c->n);
        for (int64_t i = 0; i < c->n; i++)
            reference_element(&args, gradient->values[i], &p[i], &state[i], &state[c->page + i]);
        op_expect(run, "parameters", parameters, p, 1e-6);
        op_expect(run, "m and v", kept, state, 1e-6); // zeros behind n included
    }
    op_case_end(run);
}

static op_buffer *fixture_buffer(op_run *run, const op_fixture *fixture, const char *name) {
    int64_t n;
    const float *values = op_fixture_floats(fixture, name, &n);
    return op_raw(run, TD_F32, n, values);
}

static void widen(const float *from, int64_t n, double *to) {
    for (int64_t i = 0; i < n; i++)
        to[i] = (double)from[i];
}

// Common to both files: initial, grads (steps, n), lr (steps), params (steps, n).
typedef struct adamw_fixture {
    op_fixture file;
    int64_t n, steps;
    const float *gradients, *rates, *parameters;
} adamw_fixture;

static adamw_fixture fixture_open(const char *path) {
    adamw_fixture f = {.file = op_fixture_open(path)};
    int64_t n_gradients, n_parameters;
    f.gradients = op_fixture_floats(&f.file, "grads", &n_gradients);
    f.parameters = op_fixture_floats(&f.file, "params", &n_parameters);
    f.rates = op_fixture_floats(&f.file, "lr", &f.steps);
    f.n = n_gradients / f.steps;
    op_fixture_require(n_gradients == n_parameters && f.n > 0, &f.file, "has other shapes");
    return f;
}

static td_adamw_args fixture_args(op_run *run, const adamw_fixture *f, const op_buffer *parameters,
                                  const op_buffer *state, int64_t step) {
    op_buffer *gradient = op_raw(run, TD_F32, f->n, f->gradients + step * f->n);
    return (td_adamw_args){
        .n_elements = f->n,
        .page_elements = f->n,
        .parameters = parameters->memory,
        .gradient = gradient->memory,
        .state = state->memory,
        .gradient_scale = 1.0f,
        .learning_rate = (double)f->rates[step],
        .beta1 = 0.9,
        .beta2 = 0.999,
        .epsilon = 1e-8,
        .weight_decay = 0.01,
        .step = step + 1,
    };
}

static void check_torch(op_run *run) {
    if (!op_case_begin(run, "adamw", "as torch"))
        return;
    adamw_fixture f = fixture_open(TEST_FIXTURES "/ops/adamw.safetensors");
    op_buffer *parameters = fixture_buffer(run, &f.file, "initial");
    double *expected = op_doubles(run, 2 * f.n);
    op_buffer *state = op_given(run, TD_F32, 2 * f.n, expected);
    for (int64_t step = 0; step < f.steps; step++) {
        td_adamw_args args = fixture_args(run, &f, parameters, state, step);
        OP_CALL(run, adamw, &args, 0, 0);
        widen(f.parameters + step * f.n, f.n, expected);
        op_expect(run, "parameters", parameters, expected, 1e-6);
    }
    int64_t n;
    widen(op_fixture_floats(&f.file, "m", &n), f.n, expected);
    widen(op_fixture_floats(&f.file, "v", &n), f.n, expected + f.n);
    op_expect(run, "m and v", state, expected, 1e-6);
    op_fixture_close(&f.file);
    op_case_end(run);
}

// The parts of an 8-bit state on the host. The buffer is one of floats, so that it is aligned as
// its floats ask.
typedef struct state_8bit {
    int64_t page, blocks;
    size_t bytes;
    uint8_t *m, *v;
    float *m_absmax, *v_absmax;
    op_buffer *buffer;
    uint8_t *memory; // as the buffer
} state_8bit;

static state_8bit state_make(op_run *run, int64_t page) {
    int64_t blocks = (page + BLOCK - 1) / BLOCK;
    state_8bit s = {.page = page, .blocks = blocks, .bytes = td_adamw_8bit_state_bytes(page)};
    op_expect_true(run, "the state is two codes per element and two floats per block",
                   s.bytes == (size_t)(2 * page + 8 * blocks));
    int64_t n_floats = (int64_t)(s.bytes + 3) / 4;
    s.buffer = op_given(run, TD_F32, n_floats, op_doubles(run, n_floats));
    s.memory = calloc((size_t)n_floats, 4);
    s.m = calloc((size_t)page, 1);
    s.v = calloc((size_t)page, 1);
    s.m_absmax = calloc((size_t)blocks, sizeof(float));
    s.v_absmax = calloc((size_t)blocks, sizeof(float));
    return s;
}

static void state_fetch(op_run *run, state_8bit *s) {
    size_t page = (size_t)s->page, absmax = (size_t)s->blocks * sizeof(float);
    op_fetch_raw(run, s->buffer, s->memory);
    memcpy(s->m, s->memory, page);
    memcpy(s->v, s->memory + page, page);
    memcpy(s->m_absmax, s->memory + 2 * page, absmax);
    memcpy(s->v_absmax, s->memory + 2 * page + absmax, absmax);
}

static void state_free(state_8bit *s) {
    free(s->memory);
    free(s->m);
    free(s->v);
    free(s->m_absmax);
    free(s->v_absmax);
}

static void check_bitsandbytes(op_run *run) {
    if (!op_case_begin(run, "adamw_8bit", "as bitsandbytes"))
        return;
    adamw_fixture f = fixture_open(TEST_FIXTURES "/ops/adamw_8bit.safetensors");
    op_buffer *parameters = fixture_buffer(run, &f.file, "initial");
    state_8bit state = state_make(run, f.n);
    size_t n_bytes;
    const uint8_t *m = op_fixture_bytes(&f.file, "m", &n_bytes);
    const uint8_t *v = op_fixture_bytes(&f.file, "v", &n_bytes);
    double *expected = op_doubles(run, f.n);
    for (int64_t step = 0; step < f.steps; step++) {
        td_adamw_args args = fixture_args(run, &f, parameters, state.buffer, step);
        OP_CALL(run, adamw_8bit, &args, 0, 0);
        widen(f.parameters + step * f.n, f.n, expected);
        op_expect(run, "parameters", parameters, expected, 1e-6);
        state_fetch(run, &state);
        op_expect_true(run, "codes of m", memcmp(state.m, m + step * f.n, (size_t)f.n) == 0);
        op_expect_true(run, "codes of v", memcmp(state.v, v + step * f.n, (size_t)f.n) == 0);
    }
    state_free(&state);
    op_fixture_close(&f.file);
    op_case_end(run);
}

// One of m and v in the reference: exact values of this step, then rounded to codes.
typedef struct moment_data {
    float map[256];
    double *values;  // (n) before rounding
    double *rounded; // (n) what the codes stand for
} moment_data;

static double block_absmax(const double *values, int64_t begin, int64_t n) {
    double absmax = 0.0;
    for (int64_t i = begin; i < begin + BLOCK && i < n; i++)
        absmax = fmax(absmax, fabs(values[i]));
    return absmax;
}

// The code's value must be nearest to values[i] / absmax, up to what fp32 arithmetic may decide in
// the middle of two codes.
static int is_nearest(const moment_data *moment, int code, double x) {
    double distance = fabs((double)moment->map[code] - x), slack = 1e-5 * fabs(x);
    int below = code > 0 && fabs((double)moment->map[code - 1] - x) + slack < distance;
    int above = code < 255 && fabs((double)moment->map[code + 1] - x) + slack < distance;
    return !below && !above;
}

// Compares codes and absmax of one moment, then takes them over, so that the next step starts from
// the same state.
static void expect_moment(op_run *run, const char *name, moment_data *moment, int64_t n,
                          const uint8_t *codes, const float *absmax) {
    int nearest = 1, scales = 1;
    for (int64_t i = 0; i < n; i++) {
        double scale = block_absmax(moment->values, i - i % BLOCK, n);
        double x = scale > 0.0 ? moment->values[i] / scale : 0.0;
        nearest &= is_nearest(moment, codes[i], x);
        scales &= fabs((double)absmax[i / BLOCK] - scale) <= 1e-6 * scale;
        moment->rounded[i] = (double)(moment->map[codes[i]] * absmax[i / BLOCK]);
    }
    op_expect_true(run, name, nearest);
    op_expect_true(run, "absmax of blocks", scales);
}

// The second block has no gradient at all.
static op_buffer *draw_gradient(op_run *run, int64_t n, double scale) {
    double *g = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        g[i] = i / BLOCK == 1 ? 0.0 : scale * (2.0 * op_uniform(run) - 1.0);
    return op_given(run, TD_F32, n, g);
}

static int is_zero_behind(const state_8bit *state, int64_t n) {
    int zero = 1;
    for (int64_t i = n; i < state->page; i++)
        zero &= state->m[i] == 0 && state->v[i] == 0;
    for (int64_t i = (n + BLOCK - 1) / BLOCK; i < state->blocks; i++)
        zero &= state->m_absmax[i] == 0.0f && state->v_absmax[i] == 0.0f;
    return zero;
}

static void check_adamw_8bit(op_run *run, const adamw_case *c) {
    if (!op_case_begin(run, "adamw_8bit", "n=%d page=%d decay=%g", (int)c->n, (int)c->page,
                       c->weight_decay))
        return;
    op_buffer *parameters = op_random(run, TD_F32, c->n, 1.0);
    state_8bit state = state_make(run, c->page);
    moment_data m = {.values = op_doubles(run, c->n), .rounded = op_doubles(run, c->n)};
    moment_data v = {.values = op_doubles(run, c->n), .rounded = op_doubles(run, c->n)};
    td_dynamic_map_signed(m.map);
    td_dynamic_map_unsigned(v.map);
    double *p = op_doubles(run, c->n);
    for (int step = 1; step <= c->steps; step++) {
        op_buffer *gradient = draw_gradient(run, c->n, step == 2 ? 1e-3 : 1.0);
        td_adamw_args args = args_of(c, parameters, gradient, state.buffer, step);
        memcpy(p, parameters->values, (size_t)c->n * sizeof *p);
        OP_CALL(run, adamw_8bit, &args, 0, 16.0 * (double)c->n);
        memcpy(m.values, m.rounded, (size_t)c->n * sizeof *p);
        memcpy(v.values, v.rounded, (size_t)c->n * sizeof *p);
        for (int64_t i = 0; i < c->n; i++)
            reference_element(&args, gradient->values[i], &p[i], &m.values[i], &v.values[i]);
        op_expect(run, "parameters", parameters, p, 1e-6);
        state_fetch(run, &state);
        expect_moment(run, "codes of m are the nearest", &m, c->n, state.m, state.m_absmax);
        expect_moment(run, "codes of v are the nearest", &v, c->n, state.v, state.v_absmax);
    }
    op_expect_true(run, "the state behind n stays zero", is_zero_behind(&state, c->n));
    state_free(&state);
    op_case_end(run);
}

// The first blocks' largest gradient is 1, that of the others no power of two.
static float hard_scale(int64_t i) {
    int64_t block = i / BLOCK;
    return block < 6 ? 1.0f : 0.7f + 0.0123f * (float)block;
}

// With beta1 = 0 the codes of m are those of the gradients themselves, over the block's largest:
// every midpoint of the signed map and its neighbours, and random magnitudes down to what rounds to
// zero.
static double *hard_gradients(op_run *run, int64_t n) {
    float map[256], midpoints[256];
    td_dynamic_map_signed(map);
    td_dynamic_map_midpoints(map, midpoints);
    double *g = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++) {
        float at = midpoints[i % 255] * hard_scale(i);
        float side = i % 3 == 0 ? at : nextafterf(at, i % 3 == 1 ? -2.0f : 2.0f);
        double spread = ldexp(2.0 * op_uniform(run) - 1.0, -(int)(op_word(run) % 28));
        g[i] = i / BLOCK % 6 < 3 ? (double)side : (double)(float)(spread * 0.7);
        g[i] = i % BLOCK == 11 ? (double)hard_scale(i) : g[i];
    }
    return g;
}

static void check_codes(op_run *run) {
    enum { N = 24 * BLOCK };
    if (!op_case_begin(run, "adamw_8bit", "codes at the midpoints"))
        return;
    op_buffer *parameters = op_random(run, TD_F32, N, 1.0);
    op_buffer *gradient = op_given(run, TD_F32, N, hard_gradients(run, N));
    state_8bit state = state_make(run, N);
    adamw_case c = {N, N, 1, 1.0f, 0.0, 0.0, 0.0};
    td_adamw_args args = args_of(&c, parameters, gradient, state.buffer, 1);
    OP_CALL(run, adamw_8bit, &args, 0, 0);
    state_fetch(run, &state);
    float map[256], middle_m[256], middle_v[256];
    td_dynamic_map_signed(map);
    td_dynamic_map_midpoints(map, middle_m);
    td_dynamic_map_unsigned(map);
    td_dynamic_map_midpoints(map, middle_v);
    int same_m = 1, same_v = 1;
    for (int i = 0; i < N; i++) {
        float g = (float)gradient->values[i], scale = hard_scale(i);
        same_m &= state.m[i] == td_dynamic_map_nearest(middle_m, g / scale);
        same_v &= state.v[i] == td_dynamic_map_nearest(middle_v, g * g / (scale * scale));
    }
    op_expect_true(run, "codes of m are the nearest, ties even", same_m);
    op_expect_true(run, "codes of v are the nearest", same_v);
    state_free(&state);
    op_case_end(run);
}

// A state that holds every code once, and blocks with scales of their own. Without a gradient m and
// v keep their codes and their scales shrink; the parameters tell what the codes stood for.
static void check_every_code(op_run *run) {
    enum { BLOCKS = 19, N = BLOCKS * BLOCK };
    if (!op_case_begin(run, "adamw_8bit", "every code"))
        return;
    state_8bit state = state_make(run, N);
    float *absmax = (float *)(state.memory + 2 * N);
    for (int i = 0; i < N; i++) {
        state.memory[i] = (uint8_t)(i % BLOCK * 7 + i / BLOCK);
        state.memory[N + i] = (uint8_t)(i % BLOCK * 3 + i / BLOCK);
    }
    for (int block = 0; block < BLOCKS; block++) {
        absmax[block] = ldexpf(1.0f, 2 - block);
        absmax[BLOCKS + block] = ldexpf(1.0f, block - 9);
    }
    op_buffer *zero = op_given(run, TD_F32, N, op_doubles(run, N));
    op_buffer *parameters = op_given(run, TD_F32, N, op_doubles(run, N));
    op_buffer *kept = op_raw(run, TD_F32, state.buffer->n, state.memory);
    adamw_case c = {N, N, 1, 1.0f, 0.0, 0.5, 0.25};
    td_adamw_args args = args_of(&c, parameters, zero, kept, 1);
    float map_m[256], map_v[256];
    td_dynamic_map_signed(map_m);
    td_dynamic_map_unsigned(map_v);
    double *expected = op_doubles(run, N);
    for (int i = 0; i < N; i++) {
        double m = (double)(map_m[state.memory[i]] * absmax[i / BLOCK]);
        double v = (double)(map_v[state.memory[N + i]] * absmax[BLOCKS + i / BLOCK]);
        reference_element(&args, 0.0, &expected[i], &m, &v);
    }
    OP_CALL(run, adamw_8bit, &args, 0, 0);
    op_expect(run, "parameters", parameters, expected, 1e-6);
    for (int block = 0; block < BLOCKS; block++) {
        absmax[block] *= 0.5f;
        absmax[BLOCKS + block] *= 0.25f;
    }
    uint8_t *after = malloc((size_t)kept->n * 4);
    op_fetch_raw(run, kept, after);
    op_expect_true(run, "codes", memcmp(after, state.memory, 2 * N) == 0);
    op_expect_true(run, "scales", memcmp(after + 2 * N, absmax, 8 * BLOCKS) == 0);
    free(after);
    state_free(&state);
    op_case_end(run);
}

// One moment of one block.
typedef struct moment_block {
    const float *map; // (256)
    uint8_t *codes;   // (BLOCK)
    float *absmax;
} moment_block;

static void moment_encode(moment_block *moment, const float *values, int64_t n) {
    float midpoints[256], absmax = 0.0f;
    td_dynamic_map_midpoints(moment->map, midpoints);
    for (int64_t i = 0; i < n; i++)
        absmax = fmaxf(absmax, fabsf(values[i]));
    *moment->absmax = absmax;
    for (int64_t i = 0; i < n; i++)
        moment->codes[i] =
            td_dynamic_map_nearest(midpoints, absmax > 0.0f ? values[i] / absmax : values[i]);
}

// One block in fp32, one rounding per operation: what bitsandbytes' blockwise update does.
static void reference_block(const td_adamw_args *args, const float *gradient, int64_t n,
                            moment_block *m, moment_block *v) {
    float beta1 = (float)args->beta1, rest1 = (float)(1.0 - args->beta1);
    float beta2 = (float)args->beta2, rest2 = (float)(1.0 - args->beta2);
    float values_m[BLOCK], values_v[BLOCK];
    for (int64_t i = 0; i < n; i++) {
        float g = gradient[i] * args->gradient_scale;
        float kept_m = m->map[m->codes[i]] * *m->absmax * beta1;
        float kept_v = v->map[v->codes[i]] * *v->absmax * beta2;
        float new_m = rest1 * g, new_v = rest2 * g;
        new_v *= g;
        values_m[i] = kept_m + new_m;
        values_v[i] = kept_v + new_v;
    }
    moment_encode(m, values_m, n);
    moment_encode(v, values_v, n);
}

// Codes and scales bit for bit over some steps: a fused multiply-add or a product with the
// reciprocal would move some.
static void check_exact(op_run *run, int64_t n, int64_t page) {
    if (!op_case_begin(run, "adamw_8bit", "same bits n=%d page=%d", (int)n, (int)page))
        return;
    adamw_case c = {n, page, 4, 0.37f, 0.0, 0.9, 0.999};
    op_buffer *parameters = op_random(run, TD_F32, n, 1.0);
    state_8bit state = state_make(run, page), expected = state_make(run, page);
    float map_m[256], map_v[256], gradient_block[BLOCK];
    td_dynamic_map_signed(map_m);
    td_dynamic_map_unsigned(map_v);
    for (int step = 1; step <= c.steps; step++) {
        op_buffer *gradient = draw_gradient(run, n, step == 3 ? 1e-4 : 1.0);
        td_adamw_args args = args_of(&c, parameters, gradient, state.buffer, step);
        OP_CALL(run, adamw_8bit, &args, 0, 0);
        for (int64_t begin = 0; begin < n; begin += BLOCK) {
            int64_t count = n - begin < BLOCK ? n - begin : BLOCK, block = begin / BLOCK;
            for (int64_t i = 0; i < count; i++)
                gradient_block[i] = (float)gradient->values[begin + i];
            moment_block m = {map_m, expected.m + begin, expected.m_absmax + block};
            moment_block v = {map_v, expected.v + begin, expected.v_absmax + block};
            reference_block(&args, gradient_block, count, &m, &v);
        }
    }
    state_fetch(run, &state);
    size_t absmax_bytes = (size_t)state.blocks * sizeof(float);
    op_expect_true(run, "codes of m", memcmp(state.m, expected.m, (size_t)page) == 0);
    op_expect_true(run, "codes of v", memcmp(state.v, expected.v, (size_t)page) == 0);
    op_expect_true(run, "scales of m",
                   memcmp(state.m_absmax, expected.m_absmax, absmax_bytes) == 0);
    op_expect_true(run, "scales of v",
                   memcmp(state.v_absmax, expected.v_absmax, absmax_bytes) == 0);
    state_free(&state);
    state_free(&expected);
    op_case_end(run);
}

void cases_adamw(op_run *run) {
    static const adamw_case TIMED = {1 << 20, 1 << 20, 1, 1.0f, 0.1, 0.9, 0.999};
    if (run->timing) {
        check_adamw(run, &TIMED);
        check_adamw_8bit(run, &TIMED);
        return;
    }
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        check_adamw(run, &CASES[i]);
        check_adamw_8bit(run, &CASES[i]);
    }
    check_torch(run);
    check_bitsandbytes(run);
    check_codes(run);
    check_every_code(run);
    check_exact(run, 5000, 5000);
    check_exact(run, 20000, 20123);
}
