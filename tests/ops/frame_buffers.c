// Buffers of the operation tests: device memory between guard bytes, and its values as doubles.
#include <stdlib.h>
#include <string.h>

#include "ops/frame_internal.h"
#include "runtime/core/arena.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)   ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

enum { GUARD_BYTES = 64, GUARD_BYTE = 0xA5, UNSET_BYTE = 0xff, OP_SHIFT_CYCLE = 7 };

typedef struct op_host_array {
    struct op_host_array *next;
    double values[];
} op_host_array;

double *op_doubles(op_run *run, int64_t n) {
    op_host_array *array =
        op_need(run, calloc(1, sizeof *array + (size_t)n * sizeof array->values[0]));
    array->next = run->state->arrays;
    run->state->arrays = array;
    return array->values;
}

uint32_t op_word(op_run *run) {
    uint64_t key = td_rng_key(run->state->seed, TD_RNG_TEST);
    return td_rng_word(key, 0, 0, run->state->next_random++);
}

double op_uniform(op_run *run) {
    return op_word(run) * 0x1p-32;
}

static void transfer(op_run *run, void *to, const void *from, size_t bytes) {
    const td_device_table *table = run->context.device->table;
    if (table->copy(run->context.stream, to, from, bytes) != TD_OK ||
        table->stream_synchronize(run->context.stream) != TD_OK)
        op_abort(run, td_error_message());
}

static size_t buffer_bytes(const op_buffer *buffer) {
    return (size_t)buffer->n * td_dtype_bytes(buffer->dtype);
}

// Poisoned for the address sanitizer, so that reading too far is noticed as well: by an emulated
// GPU too. A real one's addresses are apart from all others, and nobody looks there.
static void set_guard(op_run *run, const op_buffer *buffer) {
    char guard[GUARD_BYTES], *end = (char *)buffer->allocation + buffer->guard_offset;
    memset(guard, GUARD_BYTE, sizeof guard);
    transfer(run, end, guard, sizeof guard);
    ASAN_POISON_MEMORY_REGION(end, GUARD_BYTES);
}

static int guard_is_whole(op_run *run, const op_buffer *buffer) {
    unsigned char guard[GUARD_BYTES];
    char *end = (char *)buffer->allocation + buffer->guard_offset;
    ASAN_UNPOISON_MEMORY_REGION(end, GUARD_BYTES);
    transfer(run, guard, end, sizeof guard);
    for (int i = 0; i < GUARD_BYTES; i++)
        if (guard[i] != GUARD_BYTE)
            return 0;
    return 1;
}

// Elements between an aligned address and the next buffer of the case.
static size_t next_shift(const op_run *run) {
    int shift = run->variant->shift, number = 0;
    if (shift >= 0)
        return (size_t)shift;
    for (const op_buffer *buffer = run->state->buffers; buffer; buffer = buffer->next)
        number++;
    return number == run->state->cases % OP_SHIFT_CYCLE ? (size_t)-shift : 0;
}

op_buffer *op_raw(op_run *run, td_dtype dtype, int64_t n, const void *elements) {
    const td_device *device = run->context.device;
    op_buffer *buffer = op_need(run, calloc(1, sizeof *buffer));
    *buffer = (op_buffer){.n = n, .dtype = dtype, .values = op_doubles(run, n)};
    size_t lead = next_shift(run) * td_dtype_bytes(dtype);
    buffer->guard_offset = lead + buffer_bytes(buffer);
    if (device->table->alloc(device, buffer->guard_offset + GUARD_BYTES, "a test buffer",
                             &buffer->allocation) != TD_OK)
        op_abort(run, td_error_message());
    buffer->memory = (char *)buffer->allocation + lead;
    buffer->next = run->state->buffers;
    run->state->buffers = buffer;
    transfer(run, buffer->memory, elements, buffer_bytes(buffer));
    set_guard(run, buffer);
    op_fetch(run, buffer);
    return buffer;
}

static void encode(td_dtype dtype, double value, void *elements, int64_t i) {
    switch (dtype) {
    case TD_F32:
        ((float *)elements)[i] = (float)value;
        break;
    case TD_BF16:
        ((uint16_t *)elements)[i] = td_f32_to_bf16((float)value);
        break;
    case TD_U8:
        ((uint8_t *)elements)[i] = (uint8_t)value;
        break;
    case TD_I32:
        ((int32_t *)elements)[i] = (int32_t)value;
        break;
    default:
        ((int64_t *)elements)[i] = (int64_t)value;
        break;
    }
}

static double decode(td_dtype dtype, const void *elements, int64_t i) {
    switch (dtype) {
    case TD_F32:
        return ((const float *)elements)[i];
    case TD_BF16:
        return td_bf16_to_f32(((const uint16_t *)elements)[i]);
    case TD_U8:
        return ((const uint8_t *)elements)[i];
    case TD_I32:
        return ((const int32_t *)elements)[i];
    default:
        return (double)((const int64_t *)elements)[i];
    }
}

op_buffer *op_given(op_run *run, td_dtype dtype, int64_t n, const double *values) {
    void *elements = op_need(run, malloc((size_t)n * td_dtype_bytes(dtype) + 1));
    for (int64_t i = 0; i < n; i++)
        encode(dtype, values[i], elements, i);
    op_buffer *buffer = op_raw(run, dtype, n, elements);
    free(elements);
    return buffer;
}

op_buffer *op_random(op_run *run, td_dtype dtype, int64_t n, double scale) {
    double *values = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        values[i] = scale * (2.0 * op_uniform(run) - 1.0);
    return op_given(run, dtype, n, values);
}

op_buffer *op_random_operand(op_run *run, int64_t n, double scale) {
    double *values = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++) {
        values[i] = scale * (2.0 * op_uniform(run) - 1.0);
        if (run->ops->product == TD_BF16)
            values[i] = td_bf16_to_f32(td_f32_to_bf16((float)values[i]));
    }
    return op_given(run, run->ops->activation, n, values);
}

op_buffer *op_indices(op_run *run, td_dtype dtype, int64_t n, int64_t limit) {
    double *values = op_doubles(run, n);
    for (int64_t i = 0; i < n; i++)
        values[i] = (double)(op_word(run) % (uint64_t)limit);
    return op_given(run, dtype, n, values);
}

op_buffer *op_output(op_run *run, td_dtype dtype, int64_t n) {
    size_t bytes = (size_t)n * td_dtype_bytes(dtype);
    void *elements = op_need(run, malloc(bytes + 1));
    memset(elements, UNSET_BYTE, bytes);
    op_buffer *buffer = op_raw(run, dtype, n, elements);
    free(elements);
    return buffer;
}

void op_fetch_raw(op_run *run, const op_buffer *buffer, void *elements) {
    transfer(run, elements, buffer->memory, buffer_bytes(buffer));
}

void op_fetch(op_run *run, op_buffer *buffer) {
    void *elements = op_need(run, malloc(buffer_bytes(buffer) + 1));
    op_fetch_raw(run, buffer, elements);
    for (int64_t i = 0; i < buffer->n; i++)
        buffer->values[i] = decode(buffer->dtype, elements, i);
    free(elements);
}

// Aligned as in an arena, and no better.
void op_workspace(op_run *run, const td_workspace_query *query) {
    enum { SHIFT = TD_ARENA_ALIGN };
    const td_device *device = run->context.device;
    size_t bytes = run->ops->workspace_bytes(query);
    if (run->state->workspace)
        device->table->free(device, run->state->workspace);
    if (device->table->alloc(device, SHIFT + bytes, "the workspace", &run->state->workspace) !=
        TD_OK)
        op_abort(run, td_error_message());
    run->context.workspace = (char *)run->state->workspace + SHIFT;
    run->context.workspace_bytes = bytes;
}

void op_buffers_release(op_run *run) {
    op_run_state *state = run->state;
    const td_device *device = run->context.device;
    while (state->buffers) {
        op_buffer *buffer = state->buffers;
        state->buffers = buffer->next;
        op_check(run, guard_is_whole(run, buffer), "wrote behind a buffer of %lld elements",
                 (long long)buffer->n);
        device->table->free(device, buffer->allocation);
        free(buffer);
    }
    while (state->arrays) {
        op_host_array *array = state->arrays;
        state->arrays = array->next;
        free(array);
    }
    if (state->workspace)
        device->table->free(device, state->workspace);
    state->workspace = run->context.workspace = NULL;
    run->context.workspace_bytes = 0;
}
