// Device memory that is host memory: every call is the communicator's own. One rank moves nothing,
// so that its memory may be anywhere.
#include <stdlib.h>

#include "comm/device_comm.h"

static int host_probe(char *reason, size_t reason_bytes) {
    (void)reason;
    (void)reason_bytes;
    return 1;
}

static void host_plan(const td_device_comm_options *options, size_t *host_bytes,
                      size_t *device_bytes) {
    (void)options;
    *host_bytes = 0;
    *device_bytes = 0;
}

static td_status make(const td_device_comm_options *options, td_device_comm **out) {
    if (!options->device->unified && td_comm_size(options->comm) > 1)
        return td_fail(TD_ERR_INTERNAL,
                       "collectives on memory of a %s device, which is not the host's",
                       options->device->table->name);
    td_device_comm *self = calloc(1, sizeof *self);
    if (!self)
        return td_fail(TD_ERR_MEMORY, "no memory for a device communicator");
    *self = (td_device_comm){&td_device_transport_host, options->comm, options->device};
    *out = self;
    return TD_OK;
}

static td_status host_create(const td_device_comm_options *options, td_device_comm **out) {
    td_device_comm *self = NULL;
    td_status status = td_comm_agree(options->comm, make(options, &self), "device communicator");
    if (status != TD_OK) {
        free(self);
        return status;
    }
    *out = self;
    return TD_OK;
}

static void host_destroy(td_device_comm *self) {
    free(self);
}

static td_status host_reduce_start(td_device_comm *self, void *values, size_t count,
                                   td_collective_type type, int root, td_stream *stream,
                                   const char *what, td_request *out) {
    (void)stream;
    if (type == TD_COLLECTIVE_I64)
        return td_comm_reduce_i64_start(self->comm, values, count, root, what, out);
    return td_comm_reduce_f32_start(self->comm, values, count, root, what, out);
}

static td_status host_broadcast_start(td_device_comm *self, void *buffer, size_t bytes, int root,
                                      td_stream *stream, const char *what, td_request *out) {
    (void)stream;
    return td_comm_broadcast_start(self->comm, buffer, bytes, root, what, out);
}

static td_status host_progress(td_device_comm *self) {
    (void)self;
    return TD_OK;
}

static td_status host_wait(td_device_comm *self, td_request request, td_stream *stream) {
    (void)stream;
    return td_comm_wait(self->comm, request);
}

const td_device_transport td_device_transport_host = {
    .name = "host",
    .probe = host_probe,
    .plan = host_plan,
    .create = host_create,
    .destroy = host_destroy,
    .reduce_start = host_reduce_start,
    .broadcast_start = host_broadcast_start,
    .progress = host_progress,
    .wait = host_wait,
};
