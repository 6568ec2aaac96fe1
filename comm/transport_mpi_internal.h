// Inside the mpi transport: the state that transport_mpi.c (operations), transport_mpi_beats.c
// (heartbeats, judgement) and transport_mpi_setup.c (start and end of MPI) share. After creation
// only the communication thread calls MPI, so MPI_THREAD_SERIALIZED is enough; only it touches what
// is not marked otherwise.
#ifndef TANDEM_COMM_TRANSPORT_MPI_INTERNAL_H
#define TANDEM_COMM_TRANSPORT_MPI_INTERNAL_H

#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>

#include "comm/board_internal.h"
#include "comm/comm_internal.h"
#include "comm/queue_internal.h"
#include "comm/watchdog_internal.h"

enum {
    // Operations are cut into pieces of this size: counts stay below INT_MAX, and a long transfer
    // shows progress.
    TD_MPI_PIECE_BYTES = 16 << 20,
    // Pieces in flight at once. The library allocates temporaries of their size, so bytes are
    // bounded too.
    TD_MPI_WINDOW = 16,
    TD_MPI_WINDOW_BYTES = 32 << 20,
    TD_MPI_INCOMING = 8,
    // When the job ends, the others are told and the launcher gets this long to clean up.
    TD_MPI_END_SECONDS = 2,
};

typedef struct td_piece {
    uint64_t sequence; // of its operation
    int n_pieces;      // of its operation
    size_t bytes;
} td_piece;

typedef struct td_outgoing {
    int rank;
    td_beat beat; // in use while `request` is active
    MPI_Request request;
    MPI_Request end_request; // of the last beat; does not wait for the one before
} td_outgoing;

typedef struct td_beats {
    MPI_Comm comm;
    td_host *hosts; // size
    td_board board;
    td_outgoing *outgoing; // observers: everybody else; others: the observers
    int n_outgoing;
    td_beat incoming[TD_MPI_INCOMING];
    MPI_Request requests[TD_MPI_INCOMING];
    td_beat end_beat; // what is sent when the job ends
    td_mark newest;   // of the beat before
    double next_at;   // beat
    double judge_at;
    double verdict_since; // a verdict other than FINE stands since then; < 0: none does
} td_beats;

typedef struct td_mpi_comm {
    td_comm base;
    MPI_Comm world, node;
    td_queue queue;       // any thread
    td_watchdog watchdog; // any thread
    td_beats beats;
    pthread_t thread;
    _Atomic double deadline;  // seconds; any thread
    atomic_int wanted_status; // not 0: another thread asks to end the job; any thread
    atomic_int is_closing;    // any thread
    // The operation whose pieces are being started, if any are left.
    td_operation current;
    uint64_t current_sequence;
    int next_piece, n_pieces;
    td_piece pieces[TD_MPI_WINDOW];
    MPI_Request requests[TD_MPI_WINDOW]; // parallel to pieces
    int n_in_flight;
    size_t bytes_in_flight;
    double active_at; // a piece was started or completed
    double open_at;   // progress of the oldest open operation
    // Clock without the time in which this process was stopped.
    double last_wall, lost_seconds;
    // A collective failed in the library; told unless the boards find the reason first.
    double failed_at;
    char failure[256];
} td_mpi_comm;

// Body of the communication thread.
void *td_mpi_run(void *comm);
double td_mpi_now(td_mpi_comm *mpi);
// The communication thread only. Tells the others and the launcher; does not return.
void td_mpi_end_job(td_mpi_comm *mpi, td_status status) __attribute__((noreturn));

// Collective among the creating threads.
td_status td_beats_init(td_mpi_comm *mpi);
void td_beats_fini(td_mpi_comm *mpi);
// Receives, sends when it is time, judges. Ends the job when the verdict is bad.
void td_beats_run(td_mpi_comm *mpi, double now);
void td_beats_announce_end(td_mpi_comm *mpi, td_status status);
// Collective in effect: every rank is past its last operation. Stops the beats.
void td_beats_close(td_mpi_comm *mpi);

extern const td_transport td_transport_mpi;

#endif
