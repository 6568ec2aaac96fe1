// Collectives on device memory by way of pinned host memory and the communicator.
//
// An operation passes four points, each in the order of the starts: its input is on the way to the
// host, the communicator has it, its result is on the way back, its staging memory is free again. A
// counter per point tells how many operations have passed it, so the place of every operation
// follows from its number. What can be pushed past its next point without blocking is pushed, by
// every call. Staging memory is a ring of slots; when all are in use, operations that were started
// wait for one, and the caller goes on.
#include <stdlib.h>

#include "comm/device_comm_internal.h"
#include "runtime/core/progress.h"

enum {
    // Slots beyond two take no more than this together: enough to keep both copy directions and the
    // network busy.
    STAGING_BYTES = 64 << 20,
    SLOT_ALIGN = 4096,
};

typedef struct staged_operation {
    unsigned char *buffer; // device memory
    size_t count, bytes;
    int is_reduction;
    td_collective_type type;
    int root;
    const char *what;
    int has_input, has_output; // this rank's part goes out; the result comes back
    td_event *ready;           // the caller's stream at the start
    td_event *copied;          // the newest copy of this operation
    td_request request;        // of the communicator
    int is_waited;
} staged_operation;

typedef struct staged_comm {
    td_device_comm base;
    td_device_comm_options options;
    td_stream *to_host, *to_device;
    unsigned char *staging; // (n_slots, slot_bytes) pinned
    size_t n_slots, slot_bytes;
    staged_operation *operations; // ring; operation i is at i % n_operations
    size_t n_operations;          // in_flight, and those waited for whose copy is under way
    uint64_t n_started;           // by the caller
    uint64_t n_fetched;           // input on the way to the host
    uint64_t n_sent;              // started on the communicator
    uint64_t n_returned;          // done there; the result is on the way back
    uint64_t n_done;              // the slot is free
    uint64_t n_waited;            // all before this number are waited for
} staged_comm;

static const td_device_table *table_of(const staged_comm *staged) {
    return staged->base.device->table;
}

static staged_operation *operation_at(const staged_comm *staged, uint64_t sequence) {
    return &staged->operations[sequence % staged->n_operations];
}

static unsigned char *slot_of(const staged_comm *staged, uint64_t sequence) {
    if (!staged->staging) // one rank
        return NULL;
    return staged->staging + sequence % staged->n_slots * staged->slot_bytes;
}

static size_t slot_bytes(const td_device_comm_options *options) {
    return (options->max_bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
}

static size_t slot_count(const td_device_comm_options *options) {
    size_t bytes = slot_bytes(options);
    size_t count = bytes > 0 ? STAGING_BYTES / bytes : 1;
    if (count < 2)
        count = 2;
    return count < options->in_flight || options->in_flight == 0 ? count : options->in_flight;
}

static int staged_probe(char *reason, size_t reason_bytes) {
    (void)reason;
    (void)reason_bytes;
    return 1;
}

// One rank moves nothing.
static void staged_plan(const td_device_comm_options *options, size_t *host_bytes,
                        size_t *device_bytes) {
    int is_alone = td_comm_size(options->comm) == 1;
    *host_bytes = is_alone ? 0 : slot_count(options) * slot_bytes(options);
    *device_bytes = 0;
}

static td_status create_events(staged_comm *staged) {
    for (size_t i = 0; i < staged->n_operations; i++) {
        staged_operation *operation = &staged->operations[i];
        TD_TRY(table_of(staged)->event_create(staged->base.device, &operation->ready));
        TD_TRY(table_of(staged)->event_create(staged->base.device, &operation->copied));
    }
    return TD_OK;
}

static td_status allocate(staged_comm *staged) {
    const td_device *device = staged->base.device;
    size_t host_bytes, device_bytes;
    staged->n_slots = slot_count(&staged->options);
    staged->slot_bytes = slot_bytes(&staged->options);
    staged->n_operations = staged->options.in_flight + staged->n_slots;
    staged->operations = calloc(staged->n_operations, sizeof *staged->operations);
    if (!staged->operations)
        return td_fail(TD_ERR_MEMORY, "no memory for a table of %zu collectives",
                       staged->n_operations);
    TD_TRY(create_events(staged));
    TD_TRY(device->table->stream_create(device, &staged->to_host));
    TD_TRY(device->table->stream_create(device, &staged->to_device));
    staged_plan(&staged->options, &host_bytes, &device_bytes);
    if (host_bytes == 0)
        return TD_OK;
    return device->table->alloc_pinned(device, host_bytes, "staged collectives",
                                       (void **)&staged->staging);
}

static void release(staged_comm *staged) {
    const td_device *device = staged->base.device;
    if (staged->staging)
        device->table->free_pinned(device, staged->staging);
    if (staged->to_device)
        device->table->stream_destroy(staged->to_device);
    if (staged->to_host)
        device->table->stream_destroy(staged->to_host);
    for (size_t i = 0; staged->operations && i < staged->n_operations; i++) {
        if (staged->operations[i].copied)
            device->table->event_destroy(staged->operations[i].copied);
        if (staged->operations[i].ready)
            device->table->event_destroy(staged->operations[i].ready);
    }
    free(staged->operations);
    free(staged);
}

static td_status create_local(const td_device_comm_options *options, staged_comm **out) {
    staged_comm *staged = calloc(1, sizeof *staged);
    if (!staged)
        return td_fail(TD_ERR_MEMORY, "no memory for a device communicator");
    staged->base = (td_device_comm){&td_device_transport_staged, options->comm, options->device};
    staged->options = *options;
    td_status status = allocate(staged);
    if (status != TD_OK) {
        release(staged);
        return status;
    }
    *out = staged;
    return TD_OK;
}

static td_status staged_create(const td_device_comm_options *options, td_device_comm **out) {
    staged_comm *staged = NULL;
    td_status status = create_local(options, &staged);
    status = td_comm_agree(options->comm, status, "staged collectives");
    if (status != TD_OK) {
        if (staged)
            release(staged);
        return status;
    }
    *out = &staged->base;
    return TD_OK;
}

// Device memory to the slot, after what the caller's stream had at the start.
static td_status fetch(staged_comm *staged, uint64_t sequence) {
    staged_operation *operation = operation_at(staged, sequence);
    const td_device_table *device = table_of(staged);
    if (!operation->has_input)
        return TD_OK;
    TD_TRY(device->event_wait(operation->ready, staged->to_host));
    TD_TRY(device->copy(staged->to_host, slot_of(staged, sequence), operation->buffer,
                        operation->bytes));
    return device->event_record(operation->copied, staged->to_host);
}

static td_status send(staged_comm *staged, uint64_t sequence) {
    staged_operation *operation = operation_at(staged, sequence);
    td_comm *comm = staged->base.comm;
    void *slot = slot_of(staged, sequence);
    if (!operation->is_reduction)
        return td_comm_broadcast_start(comm, slot, operation->bytes, operation->root,
                                       operation->what, &operation->request);
    if (operation->type == TD_COLLECTIVE_I64)
        return td_comm_reduce_i64_start(comm, slot, operation->count, operation->root,
                                        operation->what, &operation->request);
    return td_comm_reduce_f32_start(comm, slot, operation->count, operation->root, operation->what,
                                    &operation->request);
}

// The result from the slot to device memory. What the caller's stream did with the buffer before
// the start comes first; a receiver of a broadcast has not waited for that yet.
static td_status give_back(staged_comm *staged, uint64_t sequence) {
    staged_operation *operation = operation_at(staged, sequence);
    const td_device_table *device = table_of(staged);
    TD_TRY(td_comm_wait(staged->base.comm, operation->request));
    if (!operation->has_output)
        return TD_OK;
    TD_TRY(device->event_wait(operation->ready, staged->to_device));
    TD_TRY(device->copy(staged->to_device, operation->buffer, slot_of(staged, sequence),
                        operation->bytes));
    return device->event_record(operation->copied, staged->to_device);
}

static td_status is_copied(const staged_comm *staged, uint64_t sequence, int has_copy,
                           int *out_reached) {
    *out_reached = 1;
    if (!has_copy)
        return TD_OK;
    return table_of(staged)->event_query(operation_at(staged, sequence)->copied, out_reached);
}

// One function per point: pushes as many operations past it as can go now.
static td_status push_done(staged_comm *staged) {
    for (; staged->n_done < staged->n_returned; staged->n_done++) {
        int reached;
        TD_TRY(is_copied(staged, staged->n_done, operation_at(staged, staged->n_done)->has_output,
                         &reached));
        if (!reached)
            break;
    }
    return TD_OK;
}

static td_status push_fetched(staged_comm *staged) {
    for (; staged->n_fetched < staged->n_started &&
           staged->n_fetched - staged->n_done < staged->n_slots;
         staged->n_fetched++)
        TD_TRY(fetch(staged, staged->n_fetched));
    return TD_OK;
}

static td_status push_sent(staged_comm *staged) {
    for (; staged->n_sent < staged->n_fetched; staged->n_sent++) {
        int reached;
        TD_TRY(is_copied(staged, staged->n_sent, operation_at(staged, staged->n_sent)->has_input,
                         &reached));
        if (!reached)
            break;
        TD_TRY(send(staged, staged->n_sent));
    }
    return TD_OK;
}

static td_status push_returned(staged_comm *staged) {
    for (; staged->n_returned < staged->n_sent; staged->n_returned++) {
        int done;
        TD_TRY(td_comm_test(staged->base.comm, operation_at(staged, staged->n_returned)->request,
                            &done));
        if (!done)
            break;
        TD_TRY(give_back(staged, staged->n_returned));
    }
    return TD_OK;
}

static uint64_t points_passed(const staged_comm *staged) {
    return staged->n_fetched + staged->n_sent + staged->n_returned + staged->n_done;
}

// *out_moved: some operation passed a point.
static td_status push(staged_comm *staged, int *out_moved) {
    uint64_t before = points_passed(staged);
    TD_TRY(push_returned(staged));
    TD_TRY(push_done(staged));
    TD_TRY(push_fetched(staged));
    TD_TRY(push_sent(staged));
    *out_moved = points_passed(staged) != before;
    return TD_OK;
}

static td_status staged_progress(td_device_comm *self) {
    int moved;
    return push((staged_comm *)self, &moved);
}

// No copy is under way that another operation waits for: only the communicator can move.
static int waits_for_peers(const staged_comm *staged) {
    int is_starved = staged->n_fetched < staged->n_started && staged->n_done < staged->n_returned;
    return staged->n_returned < staged->n_sent && staged->n_sent == staged->n_fetched &&
           !is_starved;
}

// Blocks for a moment, or for the other ranks. This rank is alive as long as it polls its device,
// and the deadline is its own then; in the communicator the others judge.
static td_status pause_for(staged_comm *staged, td_device_poll *poll) {
    if (waits_for_peers(staged)) {
        TD_TRY(give_back(staged, staged->n_returned));
        staged->n_returned++;
        td_device_poll_moved(poll);
        return TD_OK;
    }
    td_progress_tick();
    if (!td_device_poll_rest(poll, td_comm_deadline(staged->base.comm))) {
        uint64_t late = staged->n_sent < staged->n_fetched ? staged->n_sent : staged->n_done;
        td_device_give_up(&staged->base, "the copies of", late, operation_at(staged, late)->what);
    }
    return TD_OK;
}

// Until `n` operations have passed the point.
static td_status push_until(staged_comm *staged, const uint64_t *point, uint64_t n) {
    td_device_poll poll = td_device_poll_begin();
    for (;;) {
        int moved;
        TD_TRY(push(staged, &moved));
        if (*point >= n)
            return TD_OK;
        if (moved)
            td_device_poll_moved(&poll);
        else
            TD_TRY(pause_for(staged, &poll));
    }
}

static td_status start(staged_comm *staged, staged_operation operation, td_stream *stream,
                       td_request *out) {
    uint64_t sequence = staged->n_started;
    staged_operation *place = operation_at(staged, sequence);
    int is_root = operation.root == td_comm_rank(staged->base.comm);
    int is_alone = td_comm_size(staged->base.comm) == 1;
    TD_TRY(td_device_check_start(&staged->options, sequence - staged->n_waited, operation.bytes,
                                 operation.root, operation.what));
    operation.has_input = !is_alone && (operation.is_reduction || is_root);
    operation.has_output = !is_alone && operation.is_reduction == is_root;
    operation.ready = place->ready;
    operation.copied = place->copied;
    *place = operation;
    TD_TRY(table_of(staged)->event_record(place->ready, stream));
    staged->n_started++;
    *out = sequence;
    return staged_progress(&staged->base);
}

static td_status staged_reduce_start(td_device_comm *self, void *values, size_t count,
                                     td_collective_type type, int root, td_stream *stream,
                                     const char *what, td_request *out) {
    staged_operation operation = {
        .buffer = values,
        .count = count,
        .bytes = count * td_collective_type_bytes(type),
        .is_reduction = 1,
        .type = type,
        .root = root,
        .what = what,
    };
    return start((staged_comm *)self, operation, stream, out);
}

static td_status staged_broadcast_start(td_device_comm *self, void *buffer, size_t bytes, int root,
                                        td_stream *stream, const char *what, td_request *out) {
    staged_operation operation = {.buffer = buffer, .bytes = bytes, .root = root, .what = what};
    return start((staged_comm *)self, operation, stream, out);
}

static td_status staged_wait(td_device_comm *self, td_request request, td_stream *stream) {
    staged_comm *staged = (staged_comm *)self;
    staged_operation *operation = operation_at(staged, request);
    if (request >= staged->n_started || request < staged->n_waited || operation->is_waited)
        return td_fail(TD_ERR_INTERNAL, "wait for device collective %llu, which is not in flight",
                       (unsigned long long)request + 1);
    TD_TRY(push_until(staged, &staged->n_returned, request + 1));
    operation->is_waited = 1;
    while (staged->n_waited < staged->n_started &&
           operation_at(staged, staged->n_waited)->is_waited)
        staged->n_waited++;
    return table_of(staged)->event_wait(
        operation->has_output ? operation->copied : operation->ready, stream);
}

// The last results may still be on their way out of the staging memory.
static void staged_destroy(td_device_comm *self) {
    staged_comm *staged = (staged_comm *)self;
    if (!staged)
        return;
    if (push_until(staged, &staged->n_done, staged->n_started) == TD_OK)
        release(staged);
}

const td_device_transport td_device_transport_staged = {
    .name = "staged",
    .probe = staged_probe,
    .plan = staged_plan,
    .create = staged_create,
    .destroy = staged_destroy,
    .reduce_start = staged_reduce_start,
    .broadcast_start = staged_broadcast_start,
    .progress = staged_progress,
    .wait = staged_wait,
};
