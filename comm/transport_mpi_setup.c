// Start and end of MPI, and the calling thread's side of the transport.
#include "comm/transport_mpi_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "runtime/core/log.h"

static td_status mpi_start(td_comm *comm, const td_operation *operation, td_request *out) {
    return td_queue_push(&((td_mpi_comm *)comm)->queue, operation, out);
}

static td_status mpi_wait(td_comm *comm, td_request request) {
    return td_queue_wait(&((td_mpi_comm *)comm)->queue, request);
}

static td_status mpi_test(td_comm *comm, td_request request, int *out_done) {
    return td_queue_test(&((td_mpi_comm *)comm)->queue, request, out_done);
}

static td_status mpi_complete(td_comm *comm, td_request request) {
    td_queue_piece_done(&((td_mpi_comm *)comm)->queue, request, 1);
    return TD_OK;
}

// The communication thread's loop gets longer than the deadline: the other ranks' boards shall name
// this rank first.
static void watch_loop(td_mpi_comm *mpi) {
    td_watchdog_arm(&mpi->watchdog, "a call into MPI", atomic_load(&mpi->deadline) + 3);
}

static void mpi_set_deadline(td_comm *comm, double seconds) {
    td_mpi_comm *mpi = (td_mpi_comm *)comm;
    atomic_store(&mpi->deadline, seconds);
    watch_loop(mpi);
    td_queue_wake(&mpi->queue);
}

static void mpi_abort(td_comm *comm, td_status status) {
    td_mpi_comm *mpi = (td_mpi_comm *)comm;
    td_watchdog_end_in(&mpi->watchdog, status, TD_MPI_END_SECONDS);
    if (pthread_equal(pthread_self(), mpi->thread))
        td_mpi_end_job(mpi, status);
    fflush(stdout);
    atomic_store(&mpi->wanted_status, (int)status);
    td_queue_wake(&mpi->queue);
    for (;;)
        pause();
}

static void free_all(td_mpi_comm *mpi) {
    td_queue_fini(&mpi->queue);
    td_watchdog_stop(&mpi->watchdog);
    td_comm_base_fini(&mpi->base);
    free(mpi);
}

static td_status mpi_finish(td_comm *comm) {
    td_mpi_comm *mpi = (td_mpi_comm *)comm;
    td_watchdog_arm(&mpi->watchdog, "the end of communication", atomic_load(&mpi->deadline));
    atomic_store(&mpi->is_closing, 1);
    td_queue_wake(&mpi->queue);
    pthread_join(mpi->thread, NULL);
    td_watchdog_arm(&mpi->watchdog, "MPI_Finalize", atomic_load(&mpi->deadline));
    td_beats_fini(mpi);
    MPI_Comm_free(&mpi->node);
    MPI_Comm_free(&mpi->world);
    int code = MPI_Finalize();
    td_watchdog_disarm(&mpi->watchdog);
    free_all(mpi);
    return code == MPI_SUCCESS ? TD_OK : td_fail(TD_ERR_PEER, "MPI_Finalize failed");
}

const td_transport td_transport_mpi = {
    .name = "mpi",
    .start = mpi_start,
    .wait = mpi_wait,
    .test = mpi_test,
    .complete = mpi_complete,
    .set_deadline = mpi_set_deadline,
    .finish = mpi_finish,
    .abort = mpi_abort,
};

// Nothing connects the ranks yet: they notice a missing one at the same time. The lowest speaks
// first, and the launcher ends the others before they do. Launchers that do not tell the rank get
// as many lines as ranks.
static double start_turn_seconds(void) {
    const char *rank = getenv("PMIX_RANK");
    return rank ? atoi(rank) % 8 : 0;
}

// Open MPI reads these when it starts; what the user has set stays.
static void set_library_defaults(void) {
    // More ranks than cores is a normal case here: waiting inside the library (start, end) must
    // leave the core to others.
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    // The default for few ranks is a chain of small segments, each of which waits for a poll of the
    // communication thread: measured 500 times slower than this on 8 MiB.
    setenv("OMPI_MCA_coll_libnbc_ireduce_algorithm", "2", 0); // binomial
    // A machine without InfiniBand is a normal case too.
    setenv("OMPI_MCA_btl_base_warn_component_unused", "0", 0);
}

// An observer of a large job over TCP has a connection to every rank, which is more than the usual
// soft limit.
static void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static td_status check_library(int thread_level, int size, int launched_size) {
    if (thread_level < MPI_THREAD_SERIALIZED)
        return td_fail(TD_ERR_USAGE,
                       "this MPI library does not support MPI_THREAD_SERIALIZED (level %d); use "
                       "one built with thread support",
                       thread_level);
    if (launched_size > 0 && launched_size != size)
        return td_fail(TD_ERR_USAGE,
                       "%d processes were launched, but MPI sees %d: start with the mpirun of "
                       "the MPI this program is linked to, or with srun --mpi=pmix",
                       launched_size, size);
    return TD_OK;
}

static td_status make_communicators(td_mpi_comm *mpi) {
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    if (MPI_Comm_dup(MPI_COMM_WORLD, &mpi->world) != MPI_SUCCESS ||
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, mpi->base.rank, MPI_INFO_NULL,
                            &mpi->node) != MPI_SUCCESS)
        return td_fail(TD_ERR_PEER, "MPI cannot make communicators");
    MPI_Comm_rank(mpi->node, &mpi->base.local_rank);
    MPI_Comm_size(mpi->node, &mpi->base.local_size);
    return TD_OK;
}

static td_status start_thread(td_mpi_comm *mpi) {
    int error = td_thread_create(&mpi->thread, td_mpi_run, mpi);
    if (error != 0)
        return td_fail(TD_ERR_INTERNAL, "cannot start the communication thread: %s",
                       strerror(error));
    return TD_OK;
}

static td_status create_state(td_mpi_comm **out) {
    td_mpi_comm *mpi = calloc(1, sizeof *mpi);
    if (!mpi)
        return td_fail(TD_ERR_MEMORY, "cannot allocate a communicator");
    mpi->base.transport = &td_transport_mpi;
    mpi->failed_at = -1;
    mpi->last_wall = td_monotonic_seconds();
    td_status status = td_queue_init(&mpi->queue);
    if (status != TD_OK)
        goto failed_queue;
    status = td_watchdog_start(&mpi->watchdog);
    if (status != TD_OK)
        goto failed_watchdog;
    *out = mpi;
    return TD_OK;
failed_watchdog:
    td_queue_fini(&mpi->queue);
failed_queue:
    free(mpi);
    return status;
}

// The others already wait for this rank inside MPI: it may not just return.
static td_status connect_ranks(td_mpi_comm *mpi) {
    td_status status = td_comm_base_init(&mpi->base);
    if (status == TD_OK)
        status = make_communicators(mpi);
    if (status == TD_OK)
        status = td_beats_init(mpi);
    if (status == TD_OK)
        status = start_thread(mpi);
    if (status != TD_OK) {
        td_error("%s", td_error_message());
        MPI_Abort(MPI_COMM_WORLD, status);
    }
    return status;
}

td_status td_transport_mpi_create(int launched_size, double deadline, td_comm **out) {
    td_mpi_comm *mpi = NULL;
    int thread_level;
    TD_TRY(create_state(&mpi));
    atomic_store(&mpi->deadline, deadline);
    set_library_defaults();
    raise_file_limit();
    td_watchdog_arm(&mpi->watchdog, "MPI_Init", deadline + start_turn_seconds());
    MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &thread_level);
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi->base.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &mpi->base.size);
    td_status status = check_library(thread_level, mpi->base.size, launched_size);
    if (status != TD_OK) {
        MPI_Finalize();
        free_all(mpi);
        return status;
    }
    td_watchdog_arm(&mpi->watchdog, "connecting the ranks", deadline + start_turn_seconds());
    TD_TRY(connect_ranks(mpi));
    watch_loop(mpi);
    *out = &mpi->base;
    return TD_OK;
}

void td_comm_library(char *out, size_t bytes) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "unknown";
    int length = 0;
    MPI_Get_library_version(text, &length);
    text[strcspn(text, ",\n")] = '\0';
    snprintf(out, bytes, "%s", text);
}
