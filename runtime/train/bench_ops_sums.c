// Gradient sums and the optimizer, over one page.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/dynamic_map.h"
#include "runtime/train/bench_ops_internal.h"

enum { SAMPLES = 64, QUANTUM_LOG2 = -46, STATE_BLOCK = 256 };

static td_status finish(td_ops_bench *bench, const void *args, double tolerance) {
    TD_TRY(td_bench_settle(bench, tolerance));
    TD_TRY(td_bench_time_op(bench, args));
    td_bench_release(bench);
    return TD_OK;
}

static td_status fixed_add(td_ops_bench *bench, int64_t n, const char *name) {
    td_operand values = td_bench_take(bench, TD_F32, n, 1e-3);
    td_operand sums = td_bench_take(bench, TD_I64, n, 1e9);
    td_operand faults = td_bench_take(bench, TD_I64, 1, 0);
    td_fixed_add_args args = {.n_elements = n,
                              .values = values.data,
                              .accumulator = sums.data,
                              .quantum_log2 = QUANTUM_LOG2,
                              .limit = INT64_MAX,
                              .faults = faults.data};
    TD_TRY(td_bench_call(bench, name, TD_OP_fixed_add, &args));
    for (int s = 0; s < SAMPLES; s++) {
        int64_t i = td_bench_sample(s, n);
        td_bench_expect(bench, td_bench_read_one(bench, &sums, i),
                        td_bench_at(&sums, i) + rint(ldexp(td_bench_at(&values, i), 46)));
    }
    td_bench_expect(bench, td_bench_read_one(bench, &faults, 0), 0);
    return finish(bench, &args, 0);
}

static td_status f32_add(td_ops_bench *bench, int64_t n, const char *name) {
    td_operand values = td_bench_take(bench, TD_F32, n, 1e-3);
    td_operand sums = td_bench_take(bench, TD_F32, n, 1e-3);
    td_operand faults = td_bench_take(bench, TD_I64, 1, 0);
    td_f32_add_args args = {
        .n_elements = n, .values = values.data, .accumulator = sums.data, .faults = faults.data};
    TD_TRY(td_bench_call(bench, name, TD_OP_f32_add, &args));
    for (int s = 0; s < SAMPLES; s++) {
        int64_t i = td_bench_sample(s, n);
        td_bench_expect(bench, td_bench_read_one(bench, &sums, i),
                        td_bench_at(&sums, i) + td_bench_at(&values, i));
    }
    return finish(bench, &args, 1e-6);
}

// Numbers of the host that a stream writes, in pinned memory.
static td_status take_sum(const td_ops_bench *bench, double **out) {
    void *memory = NULL;
    const td_device *device = bench->context.device;
    TD_TRY(device->table->alloc_pinned(device, sizeof **out, "a sum", &memory));
    *out = memory;
    return TD_OK;
}

static td_status fixed_to_f32(td_ops_bench *bench, int64_t n, const char *name, double *sum) {
    td_operand sums = td_bench_take(bench, TD_I64, n, 1e12);
    td_operand values = td_bench_take(bench, TD_F32, n, 0);
    td_fixed_to_f32_args args = {.n_elements = n,
                                 .accumulator = sums.data,
                                 .quantum_log2 = QUANTUM_LOG2,
                                 .values = values.data,
                                 .sum_squares = sum};
    TD_TRY(td_bench_call(bench, name, TD_OP_fixed_to_f32, &args));
    double squares = 0;
    for (int64_t i = 0; i < n; i++) {
        double value = (float)ldexp(td_bench_at(&sums, i), QUANTUM_LOG2);
        squares += value * value;
    }
    for (int s = 0; s < SAMPLES; s++) {
        int64_t i = td_bench_sample(s, n);
        td_bench_expect(bench, td_bench_read_one(bench, &values, i),
                        (float)ldexp(td_bench_at(&sums, i), QUANTUM_LOG2));
    }
    TD_TRY(td_bench_settle(bench, 0));
    td_bench_expect(bench, *sum, squares);
    return finish(bench, &args, 1e-6);
}

static td_status sum_squares(td_ops_bench *bench, int64_t n, const char *name, double *sum) {
    td_operand values = td_bench_take(bench, TD_F32, n, 1);
    td_sum_squares_args args = {.n_elements = n, .values = values.data, .sum_squares = sum};
    TD_TRY(td_bench_call(bench, name, TD_OP_sum_squares, &args));
    double squares = 0;
    for (int64_t i = 0; i < n; i++)
        squares += td_bench_at(&values, i) * td_bench_at(&values, i);
    td_bench_expect(bench, *sum, squares);
    return finish(bench, &args, 1e-6);
}

static td_status word_sum(td_ops_bench *bench, int64_t n, const char *name) {
    td_operand words = td_bench_take(bench, TD_I64, n, 1e9);
    td_operand sum = td_bench_take(bench, TD_I64, 1, 0);
    td_word_sum_args args = {.n_elements = n, .words = words.data, .sum = sum.data};
    TD_TRY(td_bench_call(bench, name, TD_OP_word_sum, &args));
    double total = 0;
    for (int64_t i = 0; i < n; i++)
        total += td_bench_at(&words, i);
    td_bench_expect(bench, td_bench_read_one(bench, &sum, 0), total);
    return finish(bench, &args, 0);
}

// The first update, from a state of zeros.
typedef struct update {
    td_operand parameters, gradient, state;
    td_adamw_args args;
} update;

static void take_update(td_ops_bench *bench, int64_t n, size_t state_bytes, update *out) {
    out->parameters = td_bench_take(bench, TD_F32, n, 0.1);
    out->gradient = td_bench_take(bench, TD_F32, n, 1e-2);
    out->state = td_bench_take(bench, TD_U8, (int64_t)state_bytes, 0);
    out->args = (td_adamw_args){.n_elements = n,
                                .page_elements = n,
                                .parameters = out->parameters.data,
                                .gradient = out->gradient.data,
                                .state = out->state.data,
                                .gradient_scale = 0.5f,
                                .learning_rate = 1e-2,
                                .beta1 = 0.9,
                                .beta2 = 0.999,
                                .epsilon = 1e-8,
                                .weight_decay = 0.01,
                                .step = 1};
}

// At the first update m / (1 - b1) is the gradient, and v / (1 - b2) its square.
static void expect_parameters(td_ops_bench *bench, const update *u) {
    for (int s = 0; s < SAMPLES; s++) {
        int64_t i = td_bench_sample(s, u->args.n_elements);
        double g = td_bench_at(&u->gradient, i) * (double)u->args.gradient_scale;
        double p = td_bench_at(&u->parameters, i);
        p *= 1 - u->args.learning_rate * u->args.weight_decay;
        p -= u->args.learning_rate * g / (fabs(g) + u->args.epsilon);
        td_bench_expect(bench, td_bench_read_one(bench, &u->parameters, i), p);
    }
}

static td_status adamw(td_ops_bench *bench, int64_t n, const char *name) {
    update u;
    take_update(bench, n, td_adamw_state_bytes(n), &u);
    TD_TRY(td_bench_call(bench, name, TD_OP_adamw, &u.args));
    expect_parameters(bench, &u);
    TD_TRY(td_bench_settle(bench, 1e-5));
    td_operand m = u.state;
    m.type = TD_F32;
    for (int s = 0; s < SAMPLES; s++) {
        int64_t i = td_bench_sample(s, n);
        double g = td_bench_at(&u.gradient, i) * (double)u.args.gradient_scale;
        td_bench_expect(bench, td_bench_read_one(bench, &m, i), 0.1 * g);
    }
    return finish(bench, &u.args, 1e-5);
}

// The code of a first moment is the nearest of its block's values.
static void expect_code(td_ops_bench *bench, const update *u, const float *map, int64_t i) {
    int64_t n = u->args.n_elements, begin = i / STATE_BLOCK * STATE_BLOCK;
    double most = 0, least = INFINITY, g = td_bench_at(&u->gradient, i);
    for (int64_t j = begin; j < n && j < begin + STATE_BLOCK; j++)
        most = fmax(most, fabs(td_bench_at(&u->gradient, j)));
    for (int k = 0; k < 256; k++)
        least = fmin(least, fabs((double)map[k] - g / most));
    int code = (int)td_bench_read_one(bench, &u->state, i);
    double off = fabs((double)map[code] - g / most);
    td_bench_expect(bench, off <= least + 1e-6 ? 1 : 0, 1);
}

static td_status adamw_8bit(td_ops_bench *bench, int64_t n, const char *name) {
    update u;
    float map[256];
    td_dynamic_map_signed(map);
    take_update(bench, n, td_adamw_8bit_state_bytes(n), &u);
    TD_TRY(td_bench_call(bench, name, TD_OP_adamw_8bit, &u.args));
    expect_parameters(bench, &u);
    TD_TRY(td_bench_settle(bench, 1e-5));
    for (int s = 0; s < SAMPLES; s++)
        expect_code(bench, &u, map, td_bench_sample(s, n));
    return finish(bench, &u.args, 0);
}

static td_status with_sum(td_ops_bench *bench, int64_t n, const char *name) {
    double *sum;
    TD_TRY(take_sum(bench, &sum));
    td_status status = fixed_to_f32(bench, n, name, sum);
    if (status == TD_OK)
        status = sum_squares(bench, n, name, sum);
    (void)bench->context.device->table->stream_synchronize(bench->context.stream);
    bench->context.device->table->free_pinned(bench->context.device, sum);
    return status;
}

td_status td_bench_sum_ops(td_ops_bench *bench) {
    int64_t n = bench->options->page_elements;
    char name[64];
    snprintf(name, sizeof name, "%lld", (long long)n);
    TD_TRY(fixed_add(bench, n, name));
    TD_TRY(f32_add(bench, n, name));
    TD_TRY(with_sum(bench, n, name));
    TD_TRY(word_sum(bench, n, name));
    TD_TRY(adamw(bench, n, name));
    return adamw_8bit(bench, n, name);
}
