// The transport over MPI for host memory: one thread executes the queue as nonblocking collectives
// and polls them.
#include "comm/transport_mpi_internal.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "runtime/core/log.h"

// Polling: at once after something happened, then with short sleeps for as long as the bytes in
// flight may take on a slow connection (the library forwards them only when polled), then ever more
// rarely: this rank waits for another one, and leaves its core to the computation.
static const double spin_seconds = 100e-6, spin_seconds_waited_for = 1e-3;
static const double patience_seconds = 2e-3, slow_bytes_per_second = 100e6;
static const double shortest_sleep_seconds = 50e-6, longest_sleep_seconds = 1e-3;
static const double idle_seconds = 20e-3;
// Ordinary scheduling never holds the loop for this long: the process was stopped, or the library
// kept the thread.
static const double stopped_seconds = 1.0;
// How long the boards get to find the reason for an error of the library.
static const double failure_grace_seconds = 2.0;

double td_mpi_now(td_mpi_comm *mpi) {
    double wall = td_monotonic_seconds();
    double gap = wall - mpi->last_wall;
    if (gap > stopped_seconds)
        mpi->lost_seconds += gap;
    mpi->last_wall = wall;
    return wall - mpi->lost_seconds;
}

static size_t piece_items(const td_operation *operation) {
    return TD_MPI_PIECE_BYTES / td_operation_item_bytes(operation->kind);
}

static size_t n_ranges(const td_operation *operation) {
    size_t items = piece_items(operation);
    return operation->count <= items ? 1 : (operation->count - 1) / items + 1;
}

// Part `range` of an operation on `count` items at `base`.
typedef struct span {
    unsigned char *data;
    int count;
} span;

static span range_of(const td_operation *operation, size_t range) {
    size_t items = piece_items(operation), first = range * items;
    size_t left = operation->count - first;
    unsigned char *base = operation->buffer;
    return (span){base ? base + first * td_operation_item_bytes(operation->kind) : NULL,
                  (int)(left < items ? left : items)};
}

typedef int start_piece(const td_mpi_comm *mpi, const td_operation *operation, size_t piece,
                        MPI_Request *out);

static int start_barrier(const td_mpi_comm *mpi, const td_operation *operation, size_t piece,
                         MPI_Request *out) {
    (void)operation;
    (void)piece;
    return MPI_Ibarrier(mpi->world, out);
}

static int start_broadcast(const td_mpi_comm *mpi, const td_operation *operation, size_t piece,
                           MPI_Request *out) {
    span part = range_of(operation, piece);
    return MPI_Ibcast(part.data, part.count, MPI_BYTE, operation->root, mpi->world, out);
}

static int start_node_broadcast(const td_mpi_comm *mpi, const td_operation *operation, size_t piece,
                                MPI_Request *out) {
    span part = range_of(operation, piece);
    return MPI_Ibcast(part.data, part.count, MPI_BYTE, 0, mpi->node, out);
}

// A long one is made of broadcasts from each rank in turn, whose pieces are contiguous.
static int start_allgather(const td_mpi_comm *mpi, const td_operation *operation, size_t piece,
                           MPI_Request *out) {
    size_t ranges = n_ranges(operation);
    if (ranges == 1)
        return MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, operation->buffer,
                              (int)operation->count, MPI_BYTE, mpi->world, out);
    int root = (int)(piece / ranges);
    td_operation one = *operation;
    one.buffer = (unsigned char *)operation->buffer + (size_t)root * operation->count;
    span part = range_of(&one, piece % ranges);
    return MPI_Ibcast(part.data, part.count, MPI_BYTE, root, mpi->world, out);
}

static int start_allreduce(const td_mpi_comm *mpi, const td_operation *operation, size_t piece,
                           MPI_Request *out) {
    span part = range_of(operation, piece);
    return MPI_Iallreduce(MPI_IN_PLACE, part.data, part.count, MPI_INT64_T, MPI_SUM, mpi->world,
                          out);
}

static int start_reduce_as(const td_mpi_comm *mpi, const td_operation *operation, size_t piece,
                           MPI_Datatype type, MPI_Request *out) {
    span part = range_of(operation, piece);
    int is_root = operation->root == mpi->base.rank;
    return MPI_Ireduce(is_root ? MPI_IN_PLACE : part.data, is_root ? part.data : NULL, part.count,
                       type, MPI_SUM, operation->root, mpi->world, out);
}

static int start_reduce_i64(const td_mpi_comm *mpi, const td_operation *operation, size_t piece,
                            MPI_Request *out) {
    return start_reduce_as(mpi, operation, piece, MPI_INT64_T, out);
}

static int start_reduce_f32(const td_mpi_comm *mpi, const td_operation *operation, size_t piece,
                            MPI_Request *out) {
    return start_reduce_as(mpi, operation, piece, MPI_FLOAT, out);
}

static start_piece *const start_functions[TD_OPERATION_KIND_COUNT] = {
    [TD_OPERATION_BARRIER] = start_barrier,
    [TD_OPERATION_BROADCAST] = start_broadcast,
    [TD_OPERATION_NODE_BROADCAST] = start_node_broadcast,
    [TD_OPERATION_ALLGATHER] = start_allgather,
    [TD_OPERATION_ALLREDUCE_I64] = start_allreduce,
    [TD_OPERATION_REDUCE_I64] = start_reduce_i64,
    [TD_OPERATION_REDUCE_F32] = start_reduce_f32,
};

static int count_pieces(const td_mpi_comm *mpi, const td_operation *operation) {
    size_t ranges = n_ranges(operation);
    if (operation->kind == TD_OPERATION_ALLGATHER && ranges > 1)
        ranges *= (size_t)mpi->base.size;
    return (int)ranges;
}

// Most often it means that the ranks called different collectives, and the boards will say which.
static void note_failure(td_mpi_comm *mpi, int code, uint64_t sequence, double now) {
    char reason[MPI_MAX_ERROR_STRING] = "";
    int length;
    td_mark mark = {.what = ""};
    if (mpi->failed_at >= 0)
        return;
    MPI_Error_string(code, reason, &length);
    td_queue_find_mark(&mpi->queue, sequence, &mark);
    snprintf(mpi->failure, sizeof mpi->failure, "collective %llu (%s) failed: %.150s",
             (unsigned long long)sequence + 1, mark.what, reason);
    mpi->failed_at = now;
}

static int has_room(const td_mpi_comm *mpi) {
    return mpi->failed_at < 0 && mpi->n_in_flight < TD_MPI_WINDOW &&
           mpi->bytes_in_flight < TD_MPI_WINDOW_BYTES;
}

static int take_operation(td_mpi_comm *mpi, double now) {
    if (mpi->next_piece < mpi->n_pieces)
        return 1;
    do {
        if (!td_queue_take(&mpi->queue, &mpi->current, &mpi->current_sequence))
            return 0;
        if (mpi->n_in_flight == 0)
            mpi->open_at = now;
    } while (mpi->current.kind == TD_OPERATION_ELSEWHERE); // the caller's to do and to complete
    mpi->next_piece = 0;
    mpi->n_pieces = count_pieces(mpi, &mpi->current);
    return 1;
}

static void start_pieces(td_mpi_comm *mpi, double now) {
    while (has_room(mpi) && take_operation(mpi, now)) {
        const td_operation *operation = &mpi->current;
        int slot = mpi->n_in_flight;
        int code = start_functions[operation->kind](mpi, operation, (size_t)mpi->next_piece,
                                                    &mpi->requests[slot]);
        if (code != MPI_SUCCESS) {
            note_failure(mpi, code, mpi->current_sequence, now);
            return;
        }
        size_t bytes = operation->count * td_operation_item_bytes(operation->kind);
        bytes = bytes < TD_MPI_PIECE_BYTES ? bytes : TD_MPI_PIECE_BYTES;
        mpi->pieces[slot] = (td_piece){mpi->current_sequence, mpi->n_pieces, bytes};
        mpi->bytes_in_flight += bytes;
        mpi->n_in_flight++;
        mpi->next_piece++;
        mpi->active_at = now;
    }
}

// Keeps the arrays dense and in order of start, so that the oldest is polled first.
static void remove_completed(td_mpi_comm *mpi) {
    int kept = 0;
    for (int i = 0; i < mpi->n_in_flight; i++) {
        if (mpi->requests[i] == MPI_REQUEST_NULL) {
            mpi->bytes_in_flight -= mpi->pieces[i].bytes;
            continue;
        }
        mpi->requests[kept] = mpi->requests[i];
        mpi->pieces[kept++] = mpi->pieces[i];
    }
    mpi->n_in_flight = kept;
}

static void finish_pieces(td_mpi_comm *mpi, double now) {
    int indices[TD_MPI_WINDOW], n_completed;
    MPI_Status statuses[TD_MPI_WINDOW];
    if (mpi->n_in_flight == 0)
        return;
    int code = MPI_Testsome(mpi->n_in_flight, mpi->requests, &n_completed, indices, statuses);
    if (n_completed == MPI_UNDEFINED || n_completed == 0) {
        if (code != MPI_SUCCESS)
            note_failure(mpi, code, mpi->pieces[0].sequence, now);
        return;
    }
    for (int i = 0; i < n_completed; i++) {
        const td_piece *piece = &mpi->pieces[indices[i]];
        int error = code == MPI_ERR_IN_STATUS ? statuses[i].MPI_ERROR : code;
        mpi->requests[indices[i]] = MPI_REQUEST_NULL;
        if (error != MPI_SUCCESS)
            note_failure(mpi, error, piece->sequence, now);
        else
            td_queue_piece_done(&mpi->queue, piece->sequence, piece->n_pieces);
    }
    remove_completed(mpi);
    mpi->active_at = mpi->open_at = now;
}

void td_mpi_end_job(td_mpi_comm *mpi, td_status status) {
    td_watchdog_end_in(&mpi->watchdog, status, TD_MPI_END_SECONDS);
    td_beats_announce_end(mpi, status);
    MPI_Abort(MPI_COMM_WORLD, status);
    for (;;)
        pause();
}

static void follow_orders(td_mpi_comm *mpi, double now) {
    int wanted = atomic_load(&mpi->wanted_status);
    if (wanted != 0)
        td_mpi_end_job(mpi, (td_status)wanted);
    if (mpi->failed_at >= 0 && now - mpi->failed_at > failure_grace_seconds) {
        if (td_abort_claim())
            td_error("%s", mpi->failure);
        td_mpi_end_job(mpi, TD_ERR_PEER);
    }
}

static void sleep_seconds(double seconds) {
    struct timespec duration = {.tv_nsec = (long)(seconds * 1e9)};
    nanosleep(&duration, NULL);
}

static double clamp(double value, double low, double high) {
    return value < low ? low : value > high ? high : value;
}

static void rest(td_mpi_comm *mpi, double now) {
    if (mpi->n_in_flight == 0) {
        td_queue_idle(&mpi->queue, clamp(mpi->beats.next_at - now, 0, idle_seconds));
        return;
    }
    double quiet = now - mpi->active_at;
    double patience = patience_seconds + (double)mpi->bytes_in_flight / slow_bytes_per_second;
    if (quiet < (td_queue_is_waited_for(&mpi->queue) ? spin_seconds_waited_for : spin_seconds))
        sched_yield();
    else
        sleep_seconds(
            clamp((quiet - patience) / 64, shortest_sleep_seconds, longest_sleep_seconds));
}

static int is_finished(td_mpi_comm *mpi) {
    return atomic_load(&mpi->is_closing) && mpi->n_in_flight == 0;
}

void *td_mpi_run(void *argument) {
    td_mpi_comm *mpi = argument;
    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    while (!is_finished(mpi)) {
        double now = td_mpi_now(mpi);
        td_watchdog_kick(&mpi->watchdog);
        start_pieces(mpi, now);
        finish_pieces(mpi, now);
        td_beats_run(mpi, now);
        follow_orders(mpi, now);
        rest(mpi, now);
    }
    td_beats_close(mpi);
    return NULL;
}
