// Collectives from device memory to device memory by NCCL. Part of the GPU module.
//
// NCCL's communicator does not block: what it is busy with is polled, between operations too. From
// the other ranks' sight this one is in a collective of the communicator while it waits
// (td_comm_enter()), so they judge by the same boards as everywhere who is missing, and ranks that
// call different collectives are told within a second. A call into NCCL that does not return is
// ended by a watchdog.
//
// Operations are not grouped: NCCL wants the same groups on every rank, and how many operations a
// rank has started when it gets here differs.
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/device_comm_internal.h"
#include "comm/library_nccl.h"
#include "comm/watchdog_internal.h"
#include "runtime/core/device_cuda.h"
#include "runtime/core/progress.h"

typedef struct nccl_operation {
    void *buffer;        // device memory
    size_t count, bytes; // items of `type`
    ncclDataType_t type;
    int is_reduction;
    int root;
    const char *what;
    td_event *ready; // the caller's stream at the start
    td_event *done;  // on the communication stream
    int is_waited;
} nccl_operation;

typedef struct nccl_comm {
    td_device_comm base;
    td_device_comm_options options;
    const td_nccl *nccl;
    ncclComm_t handle;
    td_watchdog watchdog; // of calls into NCCL
    int has_watchdog;
    td_stream *stream;
    nccl_operation *operations; // ring of options.in_flight
    uint64_t n_started;         // by the caller
    uint64_t n_issued;          // handed to NCCL
    uint64_t n_queued;          // NCCL has put it on the stream; its event is recorded
    uint64_t n_waited;          // all before this number are waited for
} nccl_comm;

const td_device_transport td_device_transport_nccl;

// Room for the boards to name a rank first.
static const double watchdog_grace_seconds = 3;

static const td_device_table *table_of(const nccl_comm *self) {
    return self->base.device->table;
}

static nccl_operation *operation_at(const nccl_comm *self, uint64_t sequence) {
    return &self->operations[sequence % self->options.in_flight];
}

static void begin_call(nccl_comm *self, const char *name) {
    td_watchdog_arm(&self->watchdog, name,
                    td_comm_deadline(self->base.comm) + watchdog_grace_seconds);
}

static ncclResult_t end_call(nccl_comm *self, ncclResult_t result) {
    td_watchdog_disarm(&self->watchdog);
    return result;
}

// Ends the job. `place`: what NCCL was doing.
static void fail(nccl_comm *self, ncclResult_t result, const char *place) __attribute__((noreturn));
static void fail(nccl_comm *self, ncclResult_t result, const char *place) {
    const td_nccl *nccl = self->nccl;
    const char *last = self->handle ? nccl->get_last_error(self->handle) : NULL;
    char message[640];
    snprintf(message, sizeof message, "rank %d: NCCL failed on GPU %d in %.150s: %.100s%s%.250s",
             td_comm_rank(self->base.comm), self->base.device->index, place,
             nccl->get_error_string(result), last && *last ? ": " : "", last ? last : "");
    if (self->handle) {
        begin_call(self, "ncclCommAbort");
        end_call(self, nccl->abort(self->handle));
    }
    td_comm_abort(self->base.comm, TD_ERR_PEER, message);
}

static void fail_operation(nccl_comm *self, ncclResult_t result, uint64_t sequence)
    __attribute__((noreturn));
static void fail_operation(nccl_comm *self, ncclResult_t result, uint64_t sequence) {
    char place[150];
    snprintf(place, sizeof place, "device collective %llu (%s)", (unsigned long long)sequence + 1,
             operation_at(self, sequence)->what);
    fail(self, result, place);
}

// ncclSuccess, ncclInProgress, or what went wrong, be it long ago.
static ncclResult_t read_state(nccl_comm *self) {
    ncclResult_t state = ncclSuccess;
    begin_call(self, "ncclCommGetAsyncError");
    ncclResult_t result = end_call(self, self->nccl->get_async_error(self->handle, &state));
    return result == ncclSuccess ? state : result;
}

// The other ranks judge how long this one may wait; without any, the deadline is its own.
static int rest(const nccl_comm *self, td_device_poll *poll) {
    double deadline = td_comm_deadline(self->base.comm);
    return td_device_poll_rest(poll, deadline) || td_comm_size(self->base.comm) > 1;
}

// Until NCCL has done what it is busy with. ncclInProgress when it never does.
static ncclResult_t await_idle(nccl_comm *self) {
    td_device_poll poll = td_device_poll_begin();
    ncclResult_t state = read_state(self);
    while (state == ncclInProgress && rest(self, &poll))
        state = read_state(self);
    return state;
}

static int nccl_probe(char *reason, size_t reason_bytes) {
    return td_nccl_load(reason, reason_bytes) != NULL;
}

// What NCCL takes for itself depends on the connections it finds.
static void nccl_plan(const td_device_comm_options *options, size_t *host_bytes,
                      size_t *device_bytes) {
    (void)options;
    *host_bytes = 0;
    *device_bytes = 0;
}

static td_status allocate(nccl_comm *self) {
    const td_device *device = self->base.device;
    char reason[512];
    self->nccl = td_nccl_load(reason, sizeof reason);
    if (!self->nccl)
        return td_fail(TD_ERR_USAGE, "%s", reason);
    TD_TRY(td_watchdog_start(&self->watchdog));
    self->has_watchdog = 1;
    self->operations = calloc(self->options.in_flight, sizeof *self->operations);
    if (!self->operations)
        return td_fail(TD_ERR_MEMORY, "no memory for a table of %zu collectives",
                       self->options.in_flight);
    TD_TRY(device->table->stream_create(device, &self->stream));
    for (size_t i = 0; i < self->options.in_flight; i++) {
        TD_TRY(device->table->event_create(device, &self->operations[i].ready));
        TD_TRY(device->table->event_create(device, &self->operations[i].done));
    }
    return TD_OK;
}

static void release(nccl_comm *self) {
    const td_device_table *device = table_of(self);
    for (size_t i = 0; self->operations && i < self->options.in_flight; i++) {
        if (self->operations[i].done)
            device->event_destroy(self->operations[i].done);
        if (self->operations[i].ready)
            device->event_destroy(self->operations[i].ready);
    }
    if (self->stream)
        device->stream_destroy(self->stream);
    if (self->has_watchdog)
        td_watchdog_stop(&self->watchdog);
    free(self->operations);
    free(self);
}

static td_status create_local(const td_device_comm_options *options, nccl_comm **out) {
    nccl_comm *self = calloc(1, sizeof *self);
    if (!self)
        return td_fail(TD_ERR_MEMORY, "no memory for a device communicator");
    self->base = (td_device_comm){&td_device_transport_nccl, options->comm, options->device};
    self->options = *options;
    if (self->options.in_flight == 0)
        self->options.in_flight = 1;
    td_status status = allocate(self);
    if (status != TD_OK) {
        release(self);
        return status;
    }
    *out = self;
    return TD_OK;
}

// What NCCL tells GPUs apart by.
typedef struct gpu_identity {
    char uuid[40];
    td_hash host; // of $NCCL_HOSTID; 0 without
} gpu_identity;

static td_status find_identity(const nccl_comm *self, gpu_identity *out) {
    const char *host = getenv("NCCL_HOSTID");
    td_gpu_info info;
    memset(out, 0, sizeof *out);
    TD_TRY(td_cuda_device_describe(self->base.device->index, &info));
    snprintf(out->uuid, sizeof out->uuid, "%s", info.uuid);
    if (host)
        out->host = td_hash_bytes(host, strlen(host));
    return TD_OK;
}

static td_status find_shared(const gpu_identity *all, int size) {
    for (int rank = 0; rank < size; rank++)
        for (int other = rank + 1; other < size; other++)
            if (memcmp(&all[rank], &all[other], sizeof *all) == 0)
                return td_fail(TD_ERR_USAGE,
                               "ranks %d and %d share GPU %s, which NCCL refuses: start one rank "
                               "per GPU, or set transport to mpi",
                               rank, other, all[rank].uuid);
    return TD_OK;
}

// Collective. NCCL itself would tell some ranks only.
static td_status refuse_shared_gpu(nccl_comm *self) {
    td_comm *comm = self->base.comm;
    int size = td_comm_size(comm);
    gpu_identity mine, *all = calloc((size_t)size, sizeof *all);
    td_status status = find_identity(self, &mine);
    if (status == TD_OK && !all)
        status = td_fail(TD_ERR_MEMORY, "no memory for the identities of %d GPUs", size);
    status = td_comm_agree(comm, status, "GPU identity");
    if (status == TD_OK)
        status = td_comm_allgather(comm, &mine, all, sizeof mine, "GPU identities");
    if (status == TD_OK && (status = find_shared(all, size)) != TD_OK)
        td_comm_set_agreed(comm);
    free(all);
    return status;
}

// Collective. Rank 0 makes the identifier by which the ranks find each other.
static td_status share_id(nccl_comm *self, ncclUniqueId *out) {
    td_comm *comm = self->base.comm;
    td_status status = TD_OK;
    memset(out, 0, sizeof *out);
    if (td_comm_rank(comm) == 0) {
        begin_call(self, "ncclGetUniqueId");
        ncclResult_t result = end_call(self, self->nccl->get_unique_id(out));
        if (result != ncclSuccess)
            status = td_fail(TD_ERR_INTERNAL, "NCCL cannot start: %s",
                             self->nccl->get_error_string(result));
    }
    TD_TRY(td_comm_agree(comm, status, "NCCL identifier"));
    return td_comm_broadcast(comm, out, sizeof *out, 0, "NCCL identifier");
}

// Collective. The others are inside NCCL when it fails on one rank, so that ends the job.
static td_status connect_ranks(nccl_comm *self, ncclUniqueId id) {
    td_comm *comm = self->base.comm;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    td_request request;
    config.blocking = 0;
    TD_TRY(td_comm_enter(comm, sizeof id, 0, "NCCL start", &request));
    begin_call(self, "ncclCommInitRankConfig");
    ncclResult_t result = cudaSetDevice(self->base.device->index) == cudaSuccess
                              ? ncclSuccess
                              : ncclUnhandledCudaError;
    if (result == ncclSuccess)
        result =
            self->nccl->init(&self->handle, td_comm_size(comm), id, td_comm_rank(comm), &config);
    end_call(self, result);
    if (result == ncclSuccess || result == ncclInProgress)
        result = await_idle(self);
    if (result != ncclSuccess)
        fail(self, result, "its start");
    return td_comm_leave(comm, request);
}

static td_status connect(nccl_comm *self) {
    ncclUniqueId id;
    TD_TRY(refuse_shared_gpu(self));
    TD_TRY(share_id(self, &id));
    return connect_ranks(self, id);
}

static td_status nccl_create(const td_device_comm_options *options, td_device_comm **out) {
    nccl_comm *self = NULL;
    td_status status = td_comm_agree(options->comm, create_local(options, &self), "NCCL");
    if (status == TD_OK)
        status = connect(self);
    if (status != TD_OK) {
        if (self)
            release(self);
        return status;
    }
    *out = &self->base;
    return TD_OK;
}

static ncclResult_t call_collective(nccl_comm *self, const nccl_operation *operation) {
    void *stream = td_cuda_stream_handle(self->stream);
    if (operation->is_reduction)
        return self->nccl->reduce(operation->buffer, operation->buffer, operation->count,
                                  operation->type, ncclSum, operation->root, self->handle, stream);
    return self->nccl->broadcast(operation->buffer, operation->buffer, operation->count,
                                 operation->type, operation->root, self->handle, stream);
}

static td_status issue(nccl_comm *self, uint64_t sequence) {
    nccl_operation *operation = operation_at(self, sequence);
    TD_TRY(table_of(self)->event_wait(operation->ready, self->stream));
    if (operation->count == 0)
        return TD_OK;
    begin_call(self, operation->is_reduction ? "ncclReduce" : "ncclBroadcast");
    ncclResult_t result = end_call(self, call_collective(self, operation));
    if (result != ncclSuccess && result != ncclInProgress)
        fail_operation(self, result, sequence);
    return TD_OK;
}

// The event may be recorded when NCCL is through with the call, which can take it a while the first
// time ranks talk to each other.
static td_status settle(nccl_comm *self) {
    ncclResult_t state = read_state(self);
    if (state == ncclInProgress)
        return TD_OK;
    if (state != ncclSuccess)
        fail_operation(self, state, self->n_queued);
    TD_TRY(table_of(self)->event_record(operation_at(self, self->n_queued)->done, self->stream));
    self->n_queued++;
    return TD_OK;
}

static td_status nccl_progress(td_device_comm *base) {
    nccl_comm *self = (nccl_comm *)base;
    for (;;) {
        if (self->n_queued < self->n_issued)
            TD_TRY(settle(self));
        if (self->n_queued < self->n_issued || self->n_issued == self->n_started)
            return TD_OK;
        TD_TRY(issue(self, self->n_issued));
        self->n_issued++;
    }
}

static td_status start(nccl_comm *self, nccl_operation operation, td_stream *stream,
                       td_request *out) {
    uint64_t sequence = self->n_started;
    nccl_operation *place = operation_at(self, sequence);
    TD_TRY(td_device_check_start(&self->options, sequence - self->n_waited, operation.bytes,
                                 operation.root, operation.what));
    operation.ready = place->ready;
    operation.done = place->done;
    *place = operation;
    TD_TRY(table_of(self)->event_record(place->ready, stream));
    self->n_started++;
    *out = sequence;
    return nccl_progress(&self->base);
}

static td_status nccl_reduce_start(td_device_comm *self, void *values, size_t count,
                                   td_collective_type type, int root, td_stream *stream,
                                   const char *what, td_request *out) {
    nccl_operation operation = {
        .buffer = values,
        .count = count,
        .bytes = count * td_collective_type_bytes(type),
        .type = type == TD_COLLECTIVE_I64 ? ncclInt64 : ncclFloat32,
        .is_reduction = 1,
        .root = root,
        .what = what,
    };
    return start((nccl_comm *)self, operation, stream, out);
}

static td_status nccl_broadcast_start(td_device_comm *self, void *buffer, size_t bytes, int root,
                                      td_stream *stream, const char *what, td_request *out) {
    nccl_operation operation = {
        .buffer = buffer,
        .count = bytes,
        .bytes = bytes,
        .type = ncclUint8,
        .root = root,
        .what = what,
    };
    return start((nccl_comm *)self, operation, stream, out);
}

// This rank's own work comes first: while its GPU computes it is alive, and the deadline is its
// own.
static td_status await_ready(nccl_comm *self, uint64_t sequence) {
    td_device_poll poll = td_device_poll_begin();
    nccl_operation *operation = operation_at(self, sequence);
    for (;;) {
        int reached;
        TD_TRY(nccl_progress(&self->base));
        TD_TRY(table_of(self)->event_query(operation->ready, &reached));
        if (reached)
            return TD_OK;
        td_progress_tick();
        if (!td_device_poll_rest(&poll, td_comm_deadline(self->base.comm)))
            td_device_give_up(&self->base, "the work before", sequence, operation->what);
    }
}

static td_status is_done(nccl_comm *self, uint64_t sequence, int *out) {
    *out = 0;
    TD_TRY(nccl_progress(&self->base));
    if (sequence < self->n_queued)
        TD_TRY(table_of(self)->event_query(operation_at(self, sequence)->done, out));
    return TD_OK;
}

static td_status await_done(nccl_comm *self, uint64_t sequence) {
    td_device_poll poll = td_device_poll_begin();
    for (;;) {
        int done;
        TD_TRY(is_done(self, sequence, &done));
        if (done)
            return TD_OK;
        ncclResult_t state = read_state(self);
        if (state != ncclSuccess && state != ncclInProgress)
            fail_operation(self, state, sequence);
        if (!rest(self, &poll))
            td_device_give_up(&self->base, "NCCL's", sequence, operation_at(self, sequence)->what);
    }
}

static td_status nccl_wait(td_device_comm *base, td_request sequence, td_stream *stream) {
    nccl_comm *self = (nccl_comm *)base;
    nccl_operation *operation = operation_at(self, sequence);
    td_request request;
    if (sequence >= self->n_started || sequence < self->n_waited || operation->is_waited)
        return td_fail(TD_ERR_INTERNAL, "wait for device collective %llu, which is not in flight",
                       (unsigned long long)sequence + 1);
    TD_TRY(await_ready(self, sequence));
    TD_TRY(td_comm_enter(base->comm, operation->bytes, operation->root, operation->what, &request));
    TD_TRY(await_done(self, sequence));
    TD_TRY(td_comm_leave(base->comm, request));
    operation->is_waited = 1;
    while (self->n_waited < self->n_started && operation_at(self, self->n_waited)->is_waited)
        self->n_waited++;
    return table_of(self)->event_wait(operation->done, stream);
}

// The results are in: a failure now is nobody's loss.
static td_status disconnect(nccl_comm *self) {
    td_request request;
    TD_TRY(td_comm_enter(self->base.comm, 0, 0, "NCCL end", &request));
    begin_call(self, "ncclCommFinalize");
    ncclResult_t result = end_call(self, self->nccl->finalize(self->handle));
    if (result == ncclSuccess || result == ncclInProgress)
        result = await_idle(self);
    begin_call(self, result == ncclSuccess ? "ncclCommDestroy" : "ncclCommAbort");
    end_call(self, result == ncclSuccess ? self->nccl->destroy(self->handle)
                                         : self->nccl->abort(self->handle));
    return td_comm_leave(self->base.comm, request);
}

static void nccl_destroy(td_device_comm *base) {
    nccl_comm *self = (nccl_comm *)base;
    if (self && disconnect(self) == TD_OK)
        release(self);
}

const td_device_transport td_device_transport_nccl = {
    .name = "nccl",
    .probe = nccl_probe,
    .plan = nccl_plan,
    .create = nccl_create,
    .destroy = nccl_destroy,
    .reduce_start = nccl_reduce_start,
    .broadcast_start = nccl_broadcast_start,
    .progress = nccl_progress,
    .wait = nccl_wait,
};
