// Communication between the ranks of one job.
//
// One interface, two transports: self (one rank), mpi (host memory). Device memory: device_comm.h.
// Collective functions must be called by every rank in the same order with matching arguments; each
// carries a short constant `what` that lives as long as the communicator and that diagnostics show
// ("adapter gather"). Functions are for the thread that bootstrapped unless said otherwise; a
// communication thread inside owns all MPI calls (MPI_THREAD_SERIALIZED).
//
// Every wait has a deadline. Ranks exchange heartbeats with their progress words
// (runtime/core/progress.h) and the collectives they are in. The job ends on all ranks with
// TD_ERR_PEER, after one line from one rank that says which rank is where, when
// - a rank has waited in a collective for the deadline and a rank it waits for has stood still, or
// has given no sign of
//   life, for as long (a rank whose words change is alive and is given any time);
// - ranks call different collectives, whether MPI could match them or not: noticed within about a
// second. Until then a
//   receiving buffer may hold garbage, and Open MPI may write past the end of the shorter one of
//   two that do not fit;
// - all are in a collective and it makes no progress for the deadline.
// So a failure of another rank is never returned: the process ends inside the waiting function.
// Time in which the whole process was stopped does not count.
#ifndef TANDEM_COMM_COMM_H
#define TANDEM_COMM_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/hash.h"
#include "runtime/core/status.h"

typedef struct td_comm td_comm;

// Collective. Starts MPI when the process was launched by mpirun or srun on more than one rank
// (their environment says so), else uses `self` and leaves MPI alone. On failure nothing needs to
// be undone. A rank that is missing at the start is noticed after TANDEM_START_DEADLINE_SECONDS
// (environment, default 300), which is also the deadline until td_comm_set_deadline(). For Open MPI
// these are set in the environment unless the user has: mpi_yield_when_idle=1,
// coll_libnbc_ireduce_algorithm=2 (binomial), btl_base_warn_component_unused=0. The soft limit of
// open files is raised to the hard one.
td_status td_comm_bootstrap(td_comm **out);
// Local; the same on all ranks. At least one second.
void td_comm_set_deadline(td_comm *comm, double seconds);
double td_comm_deadline(const td_comm *comm); // seconds
// Collective. Finishes outstanding work, stops the communication thread, MPI_Finalize. comm is gone
// afterwards. Bounded: a rank that does not come ends the others after the deadline.
td_status td_comm_finish(td_comm *comm);

// Local; also before td_comm_bootstrap(). Name and version of the MPI library.
void td_comm_library(char *out, size_t bytes);

// Local.
int td_comm_rank(const td_comm *comm);
int td_comm_size(const td_comm *comm);
int td_comm_local_rank(const td_comm *comm); // among the ranks of this node
int td_comm_local_size(const td_comm *comm);
const char *td_comm_transport_name(const td_comm *comm); // "self", "mpi"

// Collective, blocking, host memory; the buffers are free again on return.
td_status td_comm_barrier(td_comm *comm, const char *what);
td_status td_comm_broadcast(td_comm *comm, void *buffer, size_t bytes, int root, const char *what);
// Among the ranks of each node, from local rank 0.
td_status td_comm_node_broadcast(td_comm *comm, void *buffer, size_t bytes, const char *what);
// all: size * bytes_each, in rank order.
td_status td_comm_allgather(td_comm *comm, const void *mine, void *all, size_t bytes_each,
                            const char *what);
// Sum of int64, wrapping never checked here. In place on every rank.
td_status td_comm_allreduce_i64(td_comm *comm, int64_t *values, size_t count, const char *what);

// Collective. Every rank passes its own status; all return the status of the lowest failing rank,
// with that rank's message recorded on every rank (as td_error_message(), prefixed with "rank N: "
// when only some ranks failed). TD_OK only if all are. The place where errors that one rank detects
// become everybody's, without a hang.
td_status td_comm_agree(td_comm *comm, td_status mine, const char *what);
// Local. 1 when the last failure is known to every rank: it came out of td_comm_agree() or
// td_comm_require_same(), or every rank computed it alike and called td_comm_set_agreed(). Such
// ranks leave together and in order; any other failure ends the job by td_comm_abort().
int td_comm_is_agreed(const td_comm *comm);
void td_comm_set_agreed(td_comm *comm);
// Local. The last failure was dealt with and the run goes on; the next one is a new one.
void td_comm_forget_failure(td_comm *comm);
// Collective. TD_ERR_USAGE naming `what` and a differing rank unless the hash is the same on all.
td_status td_comm_require_same(td_comm *comm, td_hash hash, const char *what);

// Asynchronous collectives on host memory. They are executed in the order in which they were
// started, while the caller computes. The buffer belongs to comm from start until the matching
// td_comm_wait(). start never blocks.
typedef uint64_t td_request;
// Sum of int64 over the ranks, result on `root` only; the buffer's content elsewhere is undefined
// afterwards.
td_status td_comm_reduce_i64_start(td_comm *comm, int64_t *values, size_t count, int root,
                                   const char *what, td_request *out);
// The same with fp32 in the order of the MPI library: not exact; for comparison.
td_status td_comm_reduce_f32_start(td_comm *comm, float *values, size_t count, int root,
                                   const char *what, td_request *out);
td_status td_comm_broadcast_start(td_comm *comm, void *buffer, size_t bytes, int root,
                                  const char *what, td_request *out);
td_status td_comm_wait(td_comm *comm, td_request request);
// Never blocks. *out_done: td_comm_wait() would return at once; it is still due.
td_status td_comm_test(td_comm *comm, td_request request, int *out_done);

// Collective in effect. A wait that another library does (NCCL): from enter to leave the other
// ranks see this one in a collective of that name, which is judged by the deadline and compared
// like any other. Both return at once; the caller waits in between, without progress ticks.
td_status td_comm_enter(td_comm *comm, size_t bytes, int root, const char *what, td_request *out);
td_status td_comm_leave(td_comm *comm, td_request request);

// Seconds that the caller has spent waiting in td_comm_wait(), the blocking functions and from
// enter to leave, and bytes it has passed in.
typedef struct td_comm_counters {
    double wait_seconds;
    uint64_t bytes;
    uint64_t collectives;
} td_comm_counters;
td_comm_counters td_comm_read_counters(const td_comm *comm);

// Any thread. Ends the job on all ranks: prints this thread's error message (or `message` if not
// NULL) once, tells the others, and exits with `status`, at the latest after two seconds. Does not
// return. comm may be NULL (before bootstrap). When several ranks abort within about 0.1 s the
// lowest one speaks; a rank that was told by another says nothing any more. mpirun returns
// `status`; its own explanation is silenced by mpirun -q.
void td_comm_abort(td_comm *comm, td_status status, const char *message) __attribute__((noreturn));

#endif
