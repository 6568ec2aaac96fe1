// Heartbeats over an own MPI communicator, and what follows from them. Who beats to whom:
// board_internal.h.
#include "comm/transport_mpi_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/log.h"

enum { BEAT_TAG = 1 };

static const double longest_period_seconds = 0.5;
// Observers speak one after the other, so that the first can end the job before the next one
// repeats it. The other ranks come last: they only speak when no observer does.
static const double judge_seconds = 50e-3;
static const double turn_seconds = 0.4, others_wait_seconds = 3.0;
// A rank that was told that the job ends waits this long for the launcher's signal.
static const double told_seconds = 1.5;

static double period_seconds(td_mpi_comm *mpi) {
    double quarter = atomic_load(&mpi->deadline) / 4;
    return quarter < longest_period_seconds ? quarter : longest_period_seconds;
}

static int beats_to(int rank, int to, int size) {
    return rank != to && (td_observer_index(rank, size) >= 0 || td_observer_index(to, size) >= 0);
}

static td_status make_outgoing(td_mpi_comm *mpi) {
    td_beats *beats = &mpi->beats;
    int rank = mpi->base.rank, size = mpi->base.size;
    beats->outgoing = calloc((size_t)size, sizeof *beats->outgoing);
    if (!beats->outgoing)
        return td_fail(TD_ERR_MEMORY, "cannot allocate heartbeats for %d ranks", size);
    for (int to = 0; to < size; to++)
        if (beats_to(rank, to, size))
            beats->outgoing[beats->n_outgoing++] = (td_outgoing){
                .rank = to, .request = MPI_REQUEST_NULL, .end_request = MPI_REQUEST_NULL};
    return TD_OK;
}

static td_status gather_hosts(td_mpi_comm *mpi) {
    td_host mine = {.pid = (int32_t)getpid()};
    gethostname(mine.name, sizeof mine.name - 1);
    mpi->beats.hosts = calloc((size_t)mpi->base.size, sizeof mine);
    if (!mpi->beats.hosts)
        return td_fail(TD_ERR_MEMORY, "cannot allocate the names of %d hosts", mpi->base.size);
    if (MPI_Allgather(&mine, sizeof mine, MPI_BYTE, mpi->beats.hosts, sizeof mine, MPI_BYTE,
                      mpi->beats.comm) != MPI_SUCCESS)
        return td_fail(TD_ERR_PEER, "MPI cannot gather the names of the hosts");
    return TD_OK;
}

static void receive_next(td_beats *beats, int slot) {
    if (MPI_Irecv(&beats->incoming[slot], sizeof *beats->incoming, MPI_BYTE, MPI_ANY_SOURCE,
                  BEAT_TAG, beats->comm, &beats->requests[slot]) != MPI_SUCCESS)
        beats->requests[slot] = MPI_REQUEST_NULL;
}

td_status td_beats_init(td_mpi_comm *mpi) {
    td_beats *beats = &mpi->beats;
    beats->verdict_since = -1;
    if (MPI_Comm_dup(mpi->world, &beats->comm) != MPI_SUCCESS)
        return td_fail(TD_ERR_PEER, "MPI cannot make a communicator for heartbeats");
    TD_TRY(gather_hosts(mpi));
    TD_TRY(make_outgoing(mpi));
    TD_TRY(td_board_init(&beats->board, mpi->base.rank, mpi->base.size, beats->hosts,
                         td_mpi_now(mpi)));
    beats->board.find_mark = td_queue_find_mark;
    beats->board.find_context = &mpi->queue;
    for (int i = 0; i < TD_MPI_INCOMING; i++)
        receive_next(beats, i);
    return TD_OK;
}

void td_beats_fini(td_mpi_comm *mpi) {
    MPI_Comm_free(&mpi->beats.comm);
    td_board_fini(&mpi->beats.board);
    free(mpi->beats.outgoing);
    free(mpi->beats.hosts);
}

static td_beat make_beat(td_mpi_comm *mpi, double now) {
    td_beat beat;
    memset(&beat, 0, sizeof beat);
    beat.rank = mpi->base.rank;
    beat.progress = td_progress_read();
    td_queue_describe(&mpi->queue, &beat);
    if (beat.n_done < beat.n_started)
        beat.open_seconds = now - mpi->open_at;
    beat.earlier = mpi->beats.newest;
    return beat;
}

static int is_complete(MPI_Request *request) {
    int flag = 1;
    MPI_Test(request, &flag, MPI_STATUS_IGNORE);
    return flag;
}

// A peer that does not take its beats keeps the buffer of the last one; it gets no more until it
// does.
static void send_all(td_mpi_comm *mpi, const td_beat *beat) {
    td_beats *beats = &mpi->beats;
    for (int i = 0; i < beats->n_outgoing; i++) {
        td_outgoing *outgoing = &beats->outgoing[i];
        if (!is_complete(&outgoing->request))
            continue;
        outgoing->beat = *beat;
        if (MPI_Isend(&outgoing->beat, sizeof outgoing->beat, MPI_BYTE, outgoing->rank, BEAT_TAG,
                      beats->comm, &outgoing->request) != MPI_SUCCESS)
            outgoing->request = MPI_REQUEST_NULL;
    }
}

static int all_told(td_beats *beats) {
    int n_told = 0;
    for (int i = 0; i < beats->n_outgoing; i++)
        n_told += is_complete(&beats->outgoing[i].end_request);
    return n_told == beats->n_outgoing;
}

// Who does not take it within this short time is the one that is gone.
void td_beats_announce_end(td_mpi_comm *mpi, td_status status) {
    td_beats *beats = &mpi->beats;
    beats->end_beat = make_beat(mpi, td_mpi_now(mpi));
    beats->end_beat.end_status = (int32_t)status;
    for (int i = 0; i < beats->n_outgoing; i++) {
        td_outgoing *outgoing = &beats->outgoing[i];
        MPI_Isend(&beats->end_beat, sizeof beats->end_beat, MPI_BYTE, outgoing->rank, BEAT_TAG,
                  beats->comm, &outgoing->end_request);
    }
    for (int i = 0; i < 50 && !all_told(beats); i++)
        usleep(1000);
}

// Another rank has said why; this one goes without a word.
static void obey_end(td_mpi_comm *mpi, td_status status) {
    if (atomic_load(&mpi->watchdog.end_status) != 0)
        return;
    td_abort_claim();
    td_watchdog_end_in(&mpi->watchdog, status, told_seconds);
    if (td_observer_index(mpi->base.rank, mpi->base.size) >= 0)
        td_beats_announce_end(mpi, status);
}

static void receive_all(td_mpi_comm *mpi, double now) {
    td_beats *beats = &mpi->beats;
    int slot, found = 1;
    while (MPI_Testany(TD_MPI_INCOMING, beats->requests, &slot, &found, MPI_STATUS_IGNORE) ==
               MPI_SUCCESS &&
           found && slot != MPI_UNDEFINED) {
        const td_beat *beat = &beats->incoming[slot];
        td_board_note(&beats->board, beat, now);
        if (beat->end_status != 0)
            obey_end(mpi, (td_status)beat->end_status);
        receive_next(beats, slot);
    }
}

static double turn_of(int rank, int size) {
    int index = td_observer_index(rank, size);
    return index >= 0 ? index * turn_seconds : others_wait_seconds + rank % 8 * turn_seconds;
}

static void beat_now(td_mpi_comm *mpi, double now) {
    td_beats *beats = &mpi->beats;
    td_beat beat = make_beat(mpi, now);
    if (beat.n_marks > 0)
        beats->newest = beat.marks[beat.n_marks - 1];
    td_board_note(&beats->board, &beat, now);
    send_all(mpi, &beat);
    beats->next_at = now + period_seconds(mpi);
}

// The first bad verdict is followed by a beat at once: what this rank has noticed the others shall
// see now, not up to a period later, so that the turns are kept.
static void judge(td_mpi_comm *mpi, double now) {
    td_beats *beats = &mpi->beats;
    char diagnosis[TD_DIAGNOSIS_BYTES];
    if (atomic_load(&mpi->watchdog.end_status) != 0)
        return;
    if (td_board_judge(&beats->board, atomic_load(&mpi->deadline), now, diagnosis) ==
        TD_VERDICT_FINE) {
        beats->verdict_since = -1;
        return;
    }
    if (beats->verdict_since < 0) {
        beats->verdict_since = now;
        beat_now(mpi, now);
    }
    if (now - beats->verdict_since < turn_of(mpi->base.rank, mpi->base.size))
        return;
    if (td_abort_claim())
        td_error("%s", diagnosis);
    td_mpi_end_job(mpi, TD_ERR_PEER);
}

void td_beats_run(td_mpi_comm *mpi, double now) {
    td_beats *beats = &mpi->beats;
    receive_all(mpi, now);
    if (now >= beats->next_at)
        beat_now(mpi, now);
    if (now >= beats->judge_at) {
        beats->judge_at = now + judge_seconds;
        judge(mpi, now);
    }
}

static void wait_for(MPI_Request *request) {
    while (!is_complete(request))
        usleep(100);
}

// After the barrier nobody sends a beat any more. The watchdog bounds it: it is not kicked here.
void td_beats_close(td_mpi_comm *mpi) {
    td_beats *beats = &mpi->beats;
    MPI_Request barrier;
    for (int i = 0; i < beats->n_outgoing; i++)
        wait_for(&beats->outgoing[i].request);
    if (MPI_Ibarrier(beats->comm, &barrier) == MPI_SUCCESS)
        wait_for(&barrier);
    for (int i = 0; i < TD_MPI_INCOMING; i++) {
        if (beats->requests[i] == MPI_REQUEST_NULL)
            continue;
        MPI_Cancel(&beats->requests[i]);
        wait_for(&beats->requests[i]);
    }
}
