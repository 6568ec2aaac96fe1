// A device with memory of its own whose streams hold work back, for tests of code that must order
// copies and work by events.
//
// Every queued operation runs as late as possible: only when somebody synchronizes, and then only
// the operations that the awaited one needs by stream order and by recorded events - or, with
// fake_order = FAKE_RANDOM, at random moments in between. A missing event therefore shows as a
// wrong result. Copies are counted.
#ifndef TANDEM_TESTS_UNIT_FAKE_DEVICE_H
#define TANDEM_TESTS_UNIT_FAKE_DEVICE_H

#include <stdlib.h>
#include <string.h>

#include "runtime/core/device.h"
#include "test.h"

typedef void (*fake_work)(void *memory, int64_t argument);

// A place in a stream's queue that is reached when everything up to it has run.
typedef struct fake_point {
    td_stream *stream; // NULL: always reached
    int64_t position;
} fake_point;

typedef struct fake_operation {
    enum { FAKE_COPY, FAKE_WORK, FAKE_WAIT } kind;
    void *to;
    const void *from;
    size_t bytes;
    fake_work work;
    int64_t argument;
    fake_point point;
} fake_operation;

enum { FAKE_QUEUE = 4096, FAKE_MAX_STREAMS = 8 };

struct td_stream {
    fake_operation queue[FAKE_QUEUE];
    int64_t head, tail; // positions, ever growing; a stream that is created anew goes on where the
                        // old one ended
    int is_open;
};

struct td_event {
    fake_point point;
};

static enum { FAKE_LAZY, FAKE_RANDOM } fake_order;
static unsigned fake_seed = 1;
static td_stream fake_streams[FAKE_MAX_STREAMS];
static int fake_copies, fake_live_allocations, fake_fail_allocation;

static void fake_run_one(td_stream *stream);

static void fake_reach(fake_point point) {
    while (point.stream && point.stream->head < point.position)
        fake_run_one(point.stream);
}

static void fake_run_one(td_stream *stream) {
    fake_operation *next = &stream->queue[stream->head % FAKE_QUEUE];
    if (next->kind == FAKE_WAIT)
        fake_reach(next->point);
    else if (next->kind == FAKE_COPY)
        memcpy(next->to, next->from, next->bytes);
    else
        next->work(next->to, next->argument);
    stream->head++;
}

static void fake_run_some(void) {
    for (int i = 0; fake_order == FAKE_RANDOM && i < 3; i++) {
        fake_seed = fake_seed * 1664525u + 1013904223u;
        td_stream *stream = &fake_streams[(fake_seed >> 16) % FAKE_MAX_STREAMS];
        if (stream->head < stream->tail)
            fake_run_one(stream);
    }
}

static td_status fake_push(td_stream *stream, fake_operation operation) {
    REQUIRE(stream->tail - stream->head < FAKE_QUEUE);
    stream->queue[stream->tail++ % FAKE_QUEUE] = operation;
    fake_run_some();
    return TD_OK;
}

static void fake_launch(td_stream *stream, fake_work work, void *memory, int64_t argument) {
    fake_push(stream, (fake_operation){
                          .kind = FAKE_WORK, .work = work, .to = memory, .argument = argument});
}

static td_status fake_alloc(const td_device *device, size_t bytes, const char *purpose,
                            void **out) {
    (void)device;
    if (fake_fail_allocation && --fake_fail_allocation == 0)
        return td_fail(TD_ERR_MEMORY, "fake: no memory for %s", purpose);
    *out = calloc(1, bytes);
    REQUIRE(*out != NULL);
    fake_live_allocations++;
    return TD_OK;
}

static void fake_free(const td_device *device, void *memory) {
    (void)device;
    free(memory);
    fake_live_allocations--;
}

static td_status fake_copy(td_stream *stream, void *to, const void *from, size_t bytes) {
    fake_copies++;
    return fake_push(stream,
                     (fake_operation){.kind = FAKE_COPY, .to = to, .from = from, .bytes = bytes});
}

static td_status fake_stream_create(const td_device *device, td_stream **out) {
    (void)device;
    for (int i = 0; i < FAKE_MAX_STREAMS; i++) {
        if (!fake_streams[i].is_open) {
            fake_streams[i].is_open = 1;
            *out = &fake_streams[i];
            return TD_OK;
        }
    }
    return td_fail(TD_ERR_INTERNAL, "fake: too many streams");
}

static td_status fake_stream_synchronize(td_stream *stream) {
    while (stream->head < stream->tail)
        fake_run_one(stream);
    return TD_OK;
}

static void fake_stream_destroy(td_stream *stream) {
    fake_stream_synchronize(stream);
    stream->is_open = 0;
}

static td_status fake_event_create(const td_device *device, td_event **out) {
    (void)device;
    *out = calloc(1, sizeof **out);
    REQUIRE(*out != NULL);
    return TD_OK;
}

static void fake_event_destroy(td_event *event) {
    free(event);
}

static td_status fake_event_record(td_event *event, td_stream *stream) {
    event->point = (fake_point){stream, stream->tail};
    return TD_OK;
}

static td_status fake_event_wait(td_event *event, td_stream *stream) {
    return fake_push(stream, (fake_operation){.kind = FAKE_WAIT, .point = event->point});
}

static const td_device_table fake_table = {
    .name = "fake",
    .alloc = fake_alloc,
    .free = fake_free,
    .alloc_pinned = fake_alloc,
    .free_pinned = fake_free,
    .copy = fake_copy,
    .stream_create = fake_stream_create,
    .stream_destroy = fake_stream_destroy,
    .stream_synchronize = fake_stream_synchronize,
    .event_create = fake_event_create,
    .event_destroy = fake_event_destroy,
    .event_record = fake_event_record,
    .event_wait = fake_event_wait,
};

static const td_device fake_device = {.table = &fake_table, .unified = 0};

#endif
