// The frame of the operation tests: cases, calls, comparisons, variants.
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ops/frame_internal.h"

enum { MIN_CALLS = 5, GRADIENT_SAMPLES = 14, GRADIENT_DIRECTIONS = 2 };

static const double timed_seconds = 0.3;
static const double difference_step = 1e-4; // of values around 1

void op_abort(op_run *run, const char *what) {
    fprintf(stderr, "%s (%s): %s\n", run->state->op, run->state->shape, what);
    exit(1);
}

void *op_need(op_run *run, void *memory) {
    if (!memory)
        op_abort(run, "out of memory");
    return memory;
}

int op_check(op_run *run, int ok, const char *format, ...) {
    op_run_state *state = run->state;
    state->checks++;
    if (ok)
        return 1;
    state->failures++;
    fprintf(stderr, "FAILED %s (%s) [%s]: ", state->op, state->shape, run->variant->name);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return 0;
}

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
    return hash;
}

int op_case_begin(op_run *run, const char *op, const char *shape, ...) {
    if (run->only && strcmp(run->only, op) != 0)
        return 0;
    op_run_state *state = run->state;
    snprintf(state->op, sizeof state->op, "%s", op);
    va_list arguments;
    va_start(arguments, shape);
    vsnprintf(state->shape, sizeof state->shape, shape, arguments);
    va_end(arguments);
    uint64_t hash = hash_bytes(0xcbf29ce484222325u, state->op, strlen(state->op));
    state->seed = (uint32_t)hash_bytes(hash, state->shape, strlen(state->shape));
    state->next_random = 0;
    state->cases++;
    return 1;
}

void op_case_end(op_run *run) {
    op_buffers_release(run);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

void op_call_begin(op_run *run) {
    run->state->calls = 0;
    run->state->spent_seconds = 0.0;
    run->state->best_seconds = INFINITY;
    run->state->started = now();
}

void op_call_done(op_run *run, td_status status) {
    op_run_state *state = run->state;
    if (status == TD_OK)
        status = run->context.device->table->stream_synchronize(run->context.stream);
    op_check(run, status == TD_OK, "status %d: %s", (int)status, td_error_message());
    td_error_clear();
    double seconds = now() - state->started;
    state->calls++;
    state->spent_seconds += seconds;
    state->best_seconds = seconds < state->best_seconds ? seconds : state->best_seconds;
}

static void print_rate(const op_run_state *state, double flops, double bytes) {
    printf("%-17s %-44s %9.4f ms", state->op, state->shape, 1e3 * state->best_seconds);
    if (flops > 0)
        printf(" %8.1f GFLOP/s", 1e-9 * flops / state->best_seconds);
    if (bytes > 0)
        printf(" %7.2f GB/s", 1e-9 * bytes / state->best_seconds);
    putchar('\n');
}

int op_call_again(op_run *run, double flops, double bytes) {
    op_run_state *state = run->state;
    if (!run->timing)
        return 0;
    state->started = now();
    if (state->calls < MIN_CALLS || state->spent_seconds < timed_seconds)
        return 1;
    print_rate(state, flops, bytes);
    return 0;
}

static int lists(const char *list, const char *op) {
    size_t length = strlen(op);
    for (const char *at = strstr(list, op); at; at = strstr(at + 1, op))
        if ((at == list || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return 1;
    return 0;
}

static int promises_same_bits(const op_run *run) {
    const char *list = run->variant->same_bits;
    return list[0] == '!' ? !lists(list + 1, run->state->op) : lists(list, run->state->op);
}

static void remember_hash(op_run *run, uint64_t hash) {
    op_run_state *state = run->state;
    if (state->n_hashes == state->hash_capacity) {
        state->hash_capacity = state->hash_capacity ? 2 * state->hash_capacity : 256;
        state->hashes =
            op_need(run, realloc(state->hashes, state->hash_capacity * sizeof state->hashes[0]));
    }
    state->hashes[state->n_hashes++] = hash;
}

// The bits of an output: remembered in the first variant, compared in the others.
static void compare_bits(op_run *run, const char *name, const void *bytes, size_t n) {
    op_run_state *state = run->state;
    uint64_t hash = hash_bytes(0xcbf29ce484222325u, bytes, n);
    if (state->is_first_variant) {
        remember_hash(run, hash);
        return;
    }
    if (state->next_hash >= state->n_hashes)
        op_abort(run, "more outputs than in the first variant");
    uint64_t first = state->hashes[state->next_hash++];
    if (promises_same_bits(run))
        op_check(run, hash == first, "%s has other bits than in the first variant", name);
}

static void compare_buffer_bits(op_run *run, const char *name, op_buffer *buffer) {
    size_t bytes = (size_t)buffer->n * td_dtype_bytes(buffer->dtype);
    void *elements = op_need(run, malloc(bytes + 1));
    op_fetch_raw(run, buffer, elements);
    compare_bits(run, name, elements, bytes);
    free(elements);
    op_fetch(run, buffer);
}

static double largest(const double *values, int64_t n) {
    double most = 0.0;
    for (int64_t i = 0; i < n; i++)
        most = fabs(values[i]) > most ? fabs(values[i]) : most;
    return most;
}

void op_expect(op_run *run, const char *name, op_buffer *actual, const double *expected,
               double tolerance) {
    if (run->timing)
        return;
    compare_buffer_bits(run, name, actual);
    double limit = tolerance * largest(expected, actual->n), worst = 0.0;
    int64_t where = 0;
    for (int64_t i = 0; i < actual->n; i++) {
        double error = fabs(actual->values[i] - expected[i]);
        if (!(error <= worst)) { // NaN is worse than anything
            worst = error;
            where = i;
        }
        if (isnan(error))
            break;
    }
    op_check(run, worst <= limit, "%s[%lld] of %lld is %.9g, expected %.9g within %.3g", name,
             (long long)where, (long long)actual->n, actual->values[where], expected[where], limit);
}

void op_expect_value(op_run *run, const char *name, double actual, double expected,
                     double tolerance) {
    if (run->timing)
        return;
    compare_bits(run, name, &actual, sizeof actual);
    double limit = tolerance * fabs(expected);
    op_check(run, fabs(actual - expected) <= limit, "%s is %.17g, expected %.17g within %.3g", name,
             actual, expected, limit);
}

void op_expect_true(op_run *run, const char *what, int condition) {
    if (!run->timing)
        op_check(run, condition, "%s", what);
}

typedef struct gradient_check {
    double *parameters;
    int64_t n;
    double (*loss)(void *closure);
    void *closure;
} gradient_check;

// d loss / d parameters[i]
static double element_slope(const gradient_check *check, int64_t i) {
    double kept = check->parameters[i];
    check->parameters[i] = kept + difference_step;
    double above = check->loss(check->closure);
    check->parameters[i] = kept - difference_step;
    double below = check->loss(check->closure);
    check->parameters[i] = kept;
    return (above - below) / (2.0 * difference_step);
}

static double moved_loss(const gradient_check *check, const double *kept, const double *direction,
                         double distance) {
    for (int64_t i = 0; i < check->n; i++)
        check->parameters[i] = kept[i] + distance * direction[i];
    double loss = check->loss(check->closure);
    memcpy(check->parameters, kept, (size_t)check->n * sizeof *kept);
    return loss;
}

// Along a random direction, so that no element is left out: signs in [-1, 1].
static void check_direction(op_run *run, const char *name, const gradient_check *check,
                            const double *gradient, double limit) {
    double *kept = op_doubles(run, check->n), *direction = op_doubles(run, check->n);
    memcpy(kept, check->parameters, (size_t)check->n * sizeof *kept);
    double expected = 0.0;
    for (int64_t i = 0; i < check->n; i++) {
        direction[i] = 2.0 * op_uniform(run) - 1.0;
        expected += gradient[i] * direction[i];
    }
    double slope = (moved_loss(check, kept, direction, difference_step) -
                    moved_loss(check, kept, direction, -difference_step)) /
                   (2.0 * difference_step);
    limit *= sqrt((double)check->n);
    op_check(run, fabs(expected - slope) <= limit,
             "%s gives slope %.9g along a direction, differences %.9g within %.3g", name, expected,
             slope, limit);
}

void op_expect_gradient(op_run *run, const char *name, op_buffer *gradient, double *parameters,
                        double (*loss)(void *closure), void *closure, double tolerance) {
    if (run->timing)
        return;
    compare_buffer_bits(run, name, gradient);
    gradient_check check = {parameters, gradient->n, loss, closure};
    int64_t at[GRADIENT_SAMPLES];
    double slope[GRADIENT_SAMPLES];
    for (int i = 0; i < GRADIENT_SAMPLES; i++) {
        at[i] = i == 0 ? 0 : i == 1 ? check.n - 1 : (int64_t)(op_word(run) % (uint64_t)check.n);
        slope[i] = element_slope(&check, at[i]);
    }
    double limit = tolerance * largest(slope, GRADIENT_SAMPLES);
    int ok = 1;
    for (int i = 0; i < GRADIENT_SAMPLES && ok; i++)
        ok = op_check(run, fabs(gradient->values[at[i]] - slope[i]) <= limit,
                      "%s[%lld] of %lld is %.9g, differences give %.9g within %.3g", name,
                      (long long)at[i], (long long)check.n, gradient->values[at[i]], slope[i],
                      limit);
    for (int i = 0; i < GRADIENT_DIRECTIONS; i++)
        check_direction(run, name, &check, gradient->values, limit);
}

static void run_lists(op_run *run) {
    cases_linear(run);
    cases_quantize(run);
    cases_elementwise(run);
    cases_rmsnorm(run);
    cases_attention(run);
    cases_loss(run);
    cases_optimizer(run);
}

static void run_variant(op_run *run, const op_variant *variant) {
    run->variant = variant;
    run->state->is_first_variant = run->state->n_hashes == 0;
    run->state->next_hash = 0;
    int cases = run->state->cases, failures = run->state->failures;
    if (variant->enter && !run->timing)
        variant->enter();
    run_lists(run);
    if (!run->timing)
        printf("%-6s %s: %d cases\n", run->state->failures == failures ? "ok" : "FAILED",
               variant->name, run->state->cases - cases);
}

static int report(const op_run_state *state) {
    printf("%d cases, %d checks, %d failures\n", state->cases, state->checks, state->failures);
    if (state->cases == 0)
        fprintf(stderr, "no case was selected\n");
    return state->failures != 0 || state->cases == 0;
}

// test_ops [--time] [operation]
int op_main(int argc, char **argv, const op_backend *backend) {
    op_run_state state = {.op = "frame", .shape = "start"};
    op_run run = {.state = &state, .context.device = backend->device};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--time") == 0)
            run.timing = 1;
        else
            run.only = argv[i];
    }
    if (td_ops_check(backend->ops, &run.ops) != TD_OK ||
        backend->device->table->stream_create(backend->device, &run.context.stream) != TD_OK)
        op_abort(&run, td_error_message());
    run.context.ops = run.ops;
    for (int i = 0; i < (run.timing ? 1 : backend->n_variants); i++)
        run_variant(&run, &backend->variants[i]);
    backend->device->table->stream_destroy(run.context.stream);
    free(state.hashes);
    return report(&state);
}
