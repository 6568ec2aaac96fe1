// The transport of one rank. Every collective is complete when it is started: a sum over one rank
// is its own value, a broadcast reaches nobody else. Requests are numbered like everywhere, so that
// a request that was never started is noticed.
#include "comm/comm_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct td_self_comm {
    td_comm base;
    uint64_t n_started;
} td_self_comm;

static td_status self_start(td_comm *comm, const td_operation *operation, td_request *out) {
    td_self_comm *self = (td_self_comm *)comm;
    (void)operation;
    *out = self->n_started++;
    return TD_OK;
}

static td_status self_wait(td_comm *comm, td_request request) {
    const td_self_comm *self = (const td_self_comm *)comm;
    if (request >= self->n_started)
        return td_fail(TD_ERR_INTERNAL, "wait for request %llu, but only %llu were started",
                       (unsigned long long)request, (unsigned long long)self->n_started);
    return TD_OK;
}

static td_status self_test(td_comm *comm, td_request request, int *out_done) {
    *out_done = 1;
    return self_wait(comm, request);
}

static void self_set_deadline(td_comm *comm, double seconds) {
    (void)comm;
    (void)seconds;
}

static td_status self_finish(td_comm *comm) {
    td_comm_base_fini(comm);
    free(comm);
    return TD_OK;
}

static void self_abort(td_comm *comm, td_status status) {
    (void)comm;
    fflush(stdout);
    _exit(status);
}

static const td_transport self_transport = {
    .name = "self",
    .start = self_start,
    .wait = self_wait,
    .test = self_test,
    .complete = self_wait,
    .set_deadline = self_set_deadline,
    .finish = self_finish,
    .abort = self_abort,
};

td_status td_transport_self_create(td_comm **out) {
    td_self_comm *self = calloc(1, sizeof *self);
    if (!self)
        return td_fail(TD_ERR_MEMORY, "cannot allocate a communicator");
    self->base = (td_comm){.transport = &self_transport, .size = 1, .local_size = 1};
    td_status status = td_comm_base_init(&self->base);
    if (status != TD_OK) {
        free(self);
        return status;
    }
    *out = &self->base;
    return TD_OK;
}
