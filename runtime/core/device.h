// A device: memory, streams, events, as one table of functions per kind. The CPU device is always
// there; on it streams run at once and events are empty. A module that brings a GPU brings another
// table. Any thread may call the functions; a stream belongs to one thread at a time.
#ifndef TANDEM_CORE_DEVICE_H
#define TANDEM_CORE_DEVICE_H

#include <stddef.h>

#include "runtime/core/portable.h"
#include "runtime/core/status.h"

TD_C_BEGIN

typedef struct td_device td_device;
typedef struct td_stream td_stream;
typedef struct td_event td_event;
typedef struct td_graph td_graph;

typedef struct td_device_table {
    const char *name; // "cpu"
    // Memory that kernels use; 64-byte aligned at least, zero-filled. `purpose` is named when it
    // cannot be had.
    td_status (*alloc)(const td_device *device, size_t bytes, const char *purpose, void **out);
    void (*free)(const td_device *device, void *memory);
    // Page-locked host memory, zero-filled; ordinary memory on the CPU device.
    td_status (*alloc_pinned)(const td_device *device, size_t bytes, const char *purpose,
                              void **out);
    void (*free_pinned)(const td_device *device, void *memory);
    // Asynchronous on `stream`; both buffers stay untouched until the stream has passed this point.
    td_status (*copy)(td_stream *stream, void *to, const void *from, size_t bytes);
    td_status (*set)(td_stream *stream, void *to, int byte, size_t bytes);
    td_status (*stream_create)(const td_device *device, td_stream **out);
    void (*stream_destroy)(td_stream *stream);
    td_status (*stream_synchronize)(td_stream *stream);
    td_status (*event_create)(const td_device *device, td_event **out);
    void (*event_destroy)(td_event *event);
    td_status (*event_record)(td_event *event, td_stream *stream);
    td_status (*event_wait)(td_event *event,
                            td_stream *stream); // makes the stream wait, not the caller
    td_status (*event_synchronize)(td_event *event);
    // Never blocks. *out_reached: the work before the last record of the event is done.
    td_status (*event_query)(td_event *event, int *out_reached);
    // An event that also notes when it is reached, and the time from one such event to another;
    // both were reached. For measuring: ordering alone needs none.
    td_status (*event_create_timed)(const td_device *device, td_event **out);
    td_status (*event_elapsed)(td_event *begin, td_event *end, double *out_seconds);
    // Names what the calling thread does, for a profiler; they nest. NULL where there is none.
    void (*range_push)(const char *name);
    void (*range_pop)(void);
    // Recording; NULL where the device has none. From begin to end what the calling thread queues
    // on the stream, and on streams that it makes wait for it and rejoin, is written down and does
    // not run; allocating, synchronizing and copies of pageable memory fail. A recording is
    // repeated with the arguments it was made with, in the stream's order, at a fraction of the
    // cost of queueing. `out` NULL drops it. Whatever fails, the stream is as before.
    td_status (*capture_begin)(td_stream *stream);
    td_status (*capture_end)(td_stream *stream, td_graph **out);
    td_status (*graph_launch)(td_graph *graph, td_stream *stream);
    void (*graph_destroy)(td_graph *graph); // none of its launches may be under way
    // Free and total bytes of the memory that alloc() takes from.
    td_status (*memory_info)(const td_device *device, size_t *free_bytes, size_t *total_bytes);
} td_device_table;

struct td_device {
    const td_device_table *table;
    int index;   // among the devices of this kind on the node
    int unified; // 1: pinned host memory and device memory are the same, no copy is needed
};

// The one CPU device; lives for ever.
const td_device *td_device_cpu(void);

TD_C_END

#endif
