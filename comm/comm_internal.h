// Inside comm: what a transport is.
//
// comm.c turns every public function into a td_operation and hands it to the transport of the
// communicator. A new transport is one file with one const td_transport, and one line in
// bootstrap.c that chooses it.
#ifndef TANDEM_COMM_COMM_INTERNAL_H
#define TANDEM_COMM_COMM_INTERNAL_H

#include <time.h>

#include "comm/comm.h"

typedef enum td_operation_kind {
    TD_OPERATION_BARRIER,
    TD_OPERATION_BROADCAST,
    TD_OPERATION_NODE_BROADCAST,
    TD_OPERATION_ALLGATHER,
    TD_OPERATION_ALLREDUCE_I64,
    TD_OPERATION_REDUCE_I64,
    TD_OPERATION_REDUCE_F32,
    TD_OPERATION_ELSEWHERE, // done by another library; finished by complete()
    TD_OPERATION_KIND_COUNT,
} td_operation_kind;

// One collective. Works in place on `buffer`; before an allgather starts, this rank's part is
// copied to its place in it.
typedef struct td_operation {
    td_operation_kind kind;
    void *buffer;
    size_t count; // items; allgather: items per rank
    int root;     // broadcast and reduce
    const char *what;
} td_operation;

enum { TD_COMM_DEFAULT_DEADLINE_SECONDS = 300 };

typedef struct td_transport {
    const char *name;
    // Never blocks. Operations run in the order of the calls.
    td_status (*start)(td_comm *comm, const td_operation *operation, td_request *out);
    td_status (*wait)(td_comm *comm, td_request request);
    td_status (*test)(td_comm *comm, td_request request, int *out_done);
    // An operation of kind ELSEWHERE is done.
    td_status (*complete)(td_comm *comm, td_request request);
    void (*set_deadline)(td_comm *comm, double seconds);
    // Collective. Frees comm.
    td_status (*finish)(td_comm *comm);
    // Any thread. Ends all ranks with `status`; does not return. The message is already printed.
    void (*abort)(td_comm *comm, td_status status);
} td_transport;

// A transport puts this first into its own structure.
struct td_comm {
    const td_transport *transport;
    int rank, size;
    int local_rank, local_size;
    int is_agreed;             // the last failure is known to every rank
    double deadline;           // seconds
    double entered_at;         // of td_comm_enter()
    td_comm_counters counters; // of the calling thread
    td_hash *gathered;         // size; what td_comm_agree() and td_comm_require_same() gather
};

// For a transport: allocates what the public functions need; size is set.
td_status td_comm_base_init(td_comm *comm);
void td_comm_base_fini(td_comm *comm);

// comm is set on success only.
td_status td_transport_self_create(td_comm **out);
// Collective. Starts MPI. launched_size: ranks according to the launcher, -1 when it does not say.
// deadline in seconds, for the start and until td_comm_set_deadline().
td_status td_transport_mpi_create(int launched_size, double deadline, td_comm **out);

size_t td_operation_item_bytes(td_operation_kind kind);

// Who may print why the job ends: the first caller of this process, unless another rank has ended
// it already.
int td_abort_claim(void);

static inline double td_monotonic_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
