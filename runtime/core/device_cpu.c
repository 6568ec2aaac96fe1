// The CPU device: ordinary memory, streams that run at once, events that are always reached.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "runtime/core/device.h"
#include "runtime/core/device_cpu_internal.h"

enum {
    SMALL_ALIGN = 64,
    HUGE_PAGE_BYTES = 2 << 20,
    HUGE_FROM_BYTES = 8 << 20, // below this the rounding would cost more than the larger pages gain
};

struct td_stream {
    int unused;
};

struct td_event {
    int is_timed;
    double seconds; // of a monotonic clock, when it was recorded
};

static td_stream the_stream;
static td_event the_event;

static td_status fail_memory(size_t bytes, const char *purpose) {
    return td_fail(TD_ERR_MEMORY, "cannot allocate %.1f MiB of memory for %s",
                   (double)bytes / (1 << 20), purpose);
}

static td_status cpu_alloc(const td_device *device, size_t bytes, const char *purpose, void **out) {
    (void)device;
    size_t align = bytes >= HUGE_FROM_BYTES ? HUGE_PAGE_BYTES : SMALL_ALIGN;
    void *memory = NULL;
    if (bytes > SIZE_MAX / 2 || posix_memalign(&memory, align, bytes ? bytes : 1) != 0)
        return fail_memory(bytes, purpose);
    if (bytes >= HUGE_FROM_BYTES) // advice only: a failure changes nothing
        (void)madvise(memory, bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES, MADV_HUGEPAGE);
    memset(memory, 0, bytes);
    *out = memory;
    return TD_OK;
}

static void cpu_free(const td_device *device, void *memory) {
    (void)device;
    free(memory);
}

static td_status cpu_copy(td_stream *stream, void *to, const void *from, size_t bytes) {
    (void)stream;
    memmove(to, from, bytes);
    return TD_OK;
}

static td_status cpu_set(td_stream *stream, void *to, int byte, size_t bytes) {
    (void)stream;
    memset(to, byte, bytes);
    return TD_OK;
}

static td_status cpu_stream_create(const td_device *device, td_stream **out) {
    (void)device;
    *out = &the_stream;
    return TD_OK;
}

static void cpu_stream_destroy(td_stream *stream) {
    (void)stream;
}

static td_status cpu_stream_synchronize(td_stream *stream) {
    (void)stream;
    return TD_OK;
}

static td_status cpu_event_create(const td_device *device, td_event **out) {
    (void)device;
    *out = &the_event;
    return TD_OK;
}

static td_status cpu_event_create_timed(const td_device *device, td_event **out) {
    (void)device;
    td_event *event = calloc(1, sizeof *event);
    if (!event)
        return td_fail(TD_ERR_MEMORY, "no memory for an event");
    event->is_timed = 1;
    *out = event;
    return TD_OK;
}

static void cpu_event_destroy(td_event *event) {
    if (event && event->is_timed)
        free(event);
}

static td_status cpu_event_record(td_event *event, td_stream *stream) {
    (void)stream;
    if (!event->is_timed)
        return TD_OK;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    return TD_OK;
}

static td_status cpu_event_elapsed(td_event *begin, td_event *end, double *out_seconds) {
    *out_seconds = end->seconds - begin->seconds;
    return TD_OK;
}

static td_status cpu_event_wait(td_event *event, td_stream *stream) {
    (void)event;
    (void)stream;
    return TD_OK;
}

static td_status cpu_event_synchronize(td_event *event) {
    (void)event;
    return TD_OK;
}

static td_status cpu_event_query(td_event *event, int *out_reached) {
    (void)event;
    *out_reached = 1;
    return TD_OK;
}

static td_status cpu_memory_info(const td_device *device, size_t *free_bytes, size_t *total_bytes) {
    (void)device;
    return td_cpu_memory_read("", free_bytes, total_bytes);
}

static const td_device_table cpu_table = {
    .name = "cpu",
    .alloc = cpu_alloc,
    .free = cpu_free,
    .alloc_pinned = cpu_alloc,
    .free_pinned = cpu_free,
    .copy = cpu_copy,
    .set = cpu_set,
    .stream_create = cpu_stream_create,
    .stream_destroy = cpu_stream_destroy,
    .stream_synchronize = cpu_stream_synchronize,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .event_record = cpu_event_record,
    .event_wait = cpu_event_wait,
    .event_synchronize = cpu_event_synchronize,
    .event_query = cpu_event_query,
    .event_create_timed = cpu_event_create_timed,
    .event_elapsed = cpu_event_elapsed,
    .memory_info = cpu_memory_info,
};

const td_device *td_device_cpu(void) {
    static const td_device cpu = {.table = &cpu_table, .index = 0, .unified = 1};
    return &cpu;
}
