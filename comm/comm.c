// The public functions: each builds its td_operation, starts it on the transport and waits.
#include "comm/comm_internal.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/fault.h"
#include "runtime/core/log.h"

enum { MESSAGE_BYTES = 1024 };

size_t td_operation_item_bytes(td_operation_kind kind) {
    switch (kind) {
    case TD_OPERATION_ALLREDUCE_I64:
    case TD_OPERATION_REDUCE_I64:
        return sizeof(int64_t);
    case TD_OPERATION_REDUCE_F32:
        return sizeof(float);
    default:
        return 1;
    }
}

td_status td_comm_base_init(td_comm *comm) {
    comm->gathered = calloc((size_t)comm->size, sizeof *comm->gathered);
    return comm->gathered
               ? TD_OK
               : td_fail(TD_ERR_MEMORY, "cannot allocate a communicator of %d ranks", comm->size);
}

void td_comm_base_fini(td_comm *comm) {
    free(comm->gathered);
}

void td_comm_set_deadline(td_comm *comm, double seconds) {
    comm->deadline = seconds > 1 ? seconds : 1;
    comm->transport->set_deadline(comm, comm->deadline);
}

double td_comm_deadline(const td_comm *comm) {
    return comm->deadline;
}

td_status td_comm_finish(td_comm *comm) {
    TD_TRY(td_comm_barrier(comm, "finish"));
    return comm->transport->finish(comm);
}

int td_comm_rank(const td_comm *comm) {
    return comm->rank;
}

int td_comm_size(const td_comm *comm) {
    return comm->size;
}

int td_comm_local_rank(const td_comm *comm) {
    return comm->local_rank;
}

int td_comm_local_size(const td_comm *comm) {
    return comm->local_size;
}

const char *td_comm_transport_name(const td_comm *comm) {
    return comm->transport->name;
}

td_comm_counters td_comm_read_counters(const td_comm *comm) {
    return comm->counters;
}

static td_status start(td_comm *comm, td_operation_kind kind, void *buffer, size_t count, int root,
                       const char *what, td_request *out) {
    td_operation operation = {kind, buffer, count, root, what};
    if (root < 0 || root >= comm->size)
        return td_fail(TD_ERR_INTERNAL, "%s: root %d of %d ranks", what, root, comm->size);
    comm->counters.collectives++;
    comm->counters.bytes += count * td_operation_item_bytes(kind);
    return comm->transport->start(comm, &operation, out);
}

td_status td_comm_wait(td_comm *comm, td_request request) {
    double begin = td_monotonic_seconds();
    td_status status = comm->transport->wait(comm, request);
    comm->counters.wait_seconds += td_monotonic_seconds() - begin;
    return status;
}

td_status td_comm_test(td_comm *comm, td_request request, int *out_done) {
    return comm->transport->test(comm, request, out_done);
}

td_status td_comm_enter(td_comm *comm, size_t bytes, int root, const char *what, td_request *out) {
    comm->entered_at = td_monotonic_seconds();
    return start(comm, TD_OPERATION_ELSEWHERE, NULL, bytes, root, what, out);
}

td_status td_comm_leave(td_comm *comm, td_request request) {
    comm->counters.wait_seconds += td_monotonic_seconds() - comm->entered_at;
    TD_TRY(comm->transport->complete(comm, request));
    return comm->transport->wait(comm, request);
}

static td_status run(td_comm *comm, td_operation_kind kind, void *buffer, size_t count, int root,
                     const char *what) {
    td_request request;
    if (TD_FAULT_SKIPS("collective", what))
        return TD_OK;
    TD_TRY(start(comm, kind, buffer, count, root, what, &request));
    return td_comm_wait(comm, request);
}

td_status td_comm_barrier(td_comm *comm, const char *what) {
    return run(comm, TD_OPERATION_BARRIER, NULL, 0, 0, what);
}

td_status td_comm_broadcast(td_comm *comm, void *buffer, size_t bytes, int root, const char *what) {
    return run(comm, TD_OPERATION_BROADCAST, buffer, bytes, root, what);
}

td_status td_comm_node_broadcast(td_comm *comm, void *buffer, size_t bytes, const char *what) {
    return run(comm, TD_OPERATION_NODE_BROADCAST, buffer, bytes, 0, what);
}

td_status td_comm_allgather(td_comm *comm, const void *mine, void *all, size_t bytes_each,
                            const char *what) {
    unsigned char *place = (unsigned char *)all + (size_t)comm->rank * bytes_each;
    if (bytes_each > 0 && place != mine)
        memmove(place, mine, bytes_each);
    return run(comm, TD_OPERATION_ALLGATHER, all, bytes_each, 0, what);
}

td_status td_comm_allreduce_i64(td_comm *comm, int64_t *values, size_t count, const char *what) {
    return run(comm, TD_OPERATION_ALLREDUCE_I64, values, count, 0, what);
}

td_status td_comm_reduce_i64_start(td_comm *comm, int64_t *values, size_t count, int root,
                                   const char *what, td_request *out) {
    return start(comm, TD_OPERATION_REDUCE_I64, values, count, root, what, out);
}

td_status td_comm_reduce_f32_start(td_comm *comm, float *values, size_t count, int root,
                                   const char *what, td_request *out) {
    return start(comm, TD_OPERATION_REDUCE_F32, values, count, root, what, out);
}

td_status td_comm_broadcast_start(td_comm *comm, void *buffer, size_t bytes, int root,
                                  const char *what, td_request *out) {
    return start(comm, TD_OPERATION_BROADCAST, buffer, bytes, root, what, out);
}

// Lowest rank that failed, -1 when none did; and how many did.
static int first_failed(const int32_t *statuses, int size, int *out_count) {
    int first = -1;
    *out_count = 0;
    for (int rank = 0; rank < size; rank++)
        if (statuses[rank] != TD_OK) {
            first = first < 0 ? rank : first;
            (*out_count)++;
        }
    return first;
}

// Replaces whatever this thread has recorded by the message of rank `from`.
static td_status share_failure(td_comm *comm, td_status status, int from, int n_failed,
                               const char *what) {
    char message[MESSAGE_BYTES] = "";
    if (comm->rank == from) {
        const char *mine = td_error_message();
        snprintf(message, sizeof message, "%s", *mine ? mine : td_status_name(status));
    }
    TD_TRY(td_comm_broadcast(comm, message, sizeof message, from, what));
    message[sizeof message - 1] = '\0';
    td_error_clear();
    if (n_failed < comm->size)
        return td_fail(status, "rank %d: %s", from, message);
    return td_fail(status, "%s", message);
}

td_status td_comm_agree(td_comm *comm, td_status mine, const char *what) {
    int32_t own = mine, *statuses = (int32_t *)comm->gathered;
    int n_failed;
    if (comm->size == 1) {
        comm->is_agreed = mine != TD_OK;
        return mine;
    }
    TD_TRY(td_comm_allgather(comm, &own, statuses, sizeof own, what));
    int from = first_failed(statuses, comm->size, &n_failed);
    if (from < 0)
        return TD_OK;
    td_status status = share_failure(comm, (td_status)statuses[from], from, n_failed, what);
    comm->is_agreed = 1;
    return status;
}

int td_comm_is_agreed(const td_comm *comm) {
    return comm->is_agreed;
}

void td_comm_set_agreed(td_comm *comm) {
    comm->is_agreed = 1;
}

void td_comm_forget_failure(td_comm *comm) {
    comm->is_agreed = 0;
}

// The hash that most ranks have; of equally frequent ones the one of the lowest rank.
static int find_majority(const td_hash *hashes, int size, int *out_count) {
    int best = 0;
    *out_count = 0;
    for (int rank = 0; rank < size && *out_count <= size / 2; rank++) {
        int count = 0;
        for (int other = 0; other < size; other++)
            count += td_hash_equal(hashes[rank], hashes[other]);
        if (count > *out_count) {
            best = rank;
            *out_count = count;
        }
    }
    return best;
}

static td_status compare_hashes(const td_hash *hashes, int size, const char *what) {
    int count, reference = find_majority(hashes, size, &count);
    if (count == size)
        return TD_OK;
    int odd = 0;
    while (td_hash_equal(hashes[odd], hashes[reference]))
        odd++;
    return td_fail(TD_ERR_USAGE,
                   "%s is not the same on all ranks: rank %d has %08" PRIx64 ", %d of %d have "
                   "%08" PRIx64 "; give all ranks the same files and options",
                   what, odd, hashes[odd].low >> 32, count, size, hashes[reference].low >> 32);
}

td_status td_comm_require_same(td_comm *comm, td_hash hash, const char *what) {
    TD_TRY(td_comm_allgather(comm, &hash, comm->gathered, sizeof hash, what));
    td_status status = compare_hashes(comm->gathered, comm->size, what);
    comm->is_agreed = status != TD_OK;
    return status;
}

int td_abort_claim(void) {
    static atomic_flag is_claimed = ATOMIC_FLAG_INIT;
    return !atomic_flag_test_and_set(&is_claimed);
}

// Ranks that fail at the same time speak in the order of their numbers: the first one's word
// reaches the others before it is their turn.
static void wait_for_turn(const td_comm *comm) {
    enum { TURN_MS = 150, LAST_TURN = 5 };
    int turn = comm->rank < LAST_TURN ? comm->rank : LAST_TURN;
    nanosleep(&(struct timespec){.tv_nsec = turn * TURN_MS * 1000000L}, NULL);
}

void td_comm_abort(td_comm *comm, td_status status, const char *message) {
    if (comm)
        wait_for_turn(comm);
    if (td_abort_claim()) {
        const char *reason = message ? message : td_error_message();
        td_error("%s", *reason ? reason : td_status_name(status));
        if (comm)
            comm->transport->abort(comm, status);
        fflush(stdout);
        _exit(status);
    }
    // The job is ending already, for a reason that was told.
    for (;;)
        pause();
}
