#include "comm/board_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_GROUPS = 6, RANGE_BYTES = 100 };

int td_observer_count(int size) {
    return size < TD_MAX_OBSERVERS ? size : TD_MAX_OBSERVERS;
}

int td_observer_rank(int index, int size) {
    return (int)((int64_t)index * size / td_observer_count(size));
}

int td_observer_index(int rank, int size) {
    for (int i = 0; i < td_observer_count(size); i++)
        if (td_observer_rank(i, size) == rank)
            return i;
    return -1;
}

td_status td_board_init(td_board *board, int rank, int size, const td_host *hosts, double now) {
    *board = (td_board){.rank = rank, .size = size, .hosts = hosts};
    board->peers = calloc((size_t)size, sizeof *board->peers);
    if (!board->peers)
        return td_fail(TD_ERR_MEMORY, "cannot allocate a board of %d ranks", size);
    int sees_all = td_observer_index(rank, size) >= 0;
    for (int i = 0; i < size; i++) {
        td_peer *peer = &board->peers[i];
        peer->heard_at = peer->moved_at = now;
        peer->is_watched = sees_all || i == rank || td_observer_index(i, size) >= 0;
    }
    return TD_OK;
}

void td_board_fini(td_board *board) {
    free(board->peers);
}

static int has_moved(const td_beat *from, const td_beat *to) {
    return memcmp(&from->progress, &to->progress, sizeof to->progress) != 0 ||
           from->n_started != to->n_started || from->n_done != to->n_done;
}

// Names come over the wire: never trust their terminator, nor the counts.
static void make_safe(td_beat *beat) {
    beat->open.what[TD_WHAT_BYTES - 1] = '\0';
    beat->earlier.what[TD_WHAT_BYTES - 1] = '\0';
    if (beat->n_marks < 0 || beat->n_marks > TD_BEAT_MARKS)
        beat->n_marks = 0;
    for (int i = 0; i < TD_BEAT_MARKS; i++)
        beat->marks[i].what[TD_WHAT_BYTES - 1] = '\0';
}

void td_board_note(td_board *board, const td_beat *beat, double now) {
    if (beat->rank < 0 || beat->rank >= board->size)
        return;
    td_peer *peer = &board->peers[beat->rank];
    if (!peer->has_beat || has_moved(&peer->beat, beat))
        peer->moved_at = now;
    peer->heard_at = now;
    peer->has_beat = 1;
    peer->beat = *beat;
    make_safe(&peer->beat);
}

// Appends to a text of at most TD_DIAGNOSIS_BYTES; what does not fit is cut.
__attribute__((format(printf, 2, 3))) static void append(char *text, const char *format, ...) {
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, TD_DIAGNOSIS_BYTES - used, format, arguments);
    va_end(arguments);
}

// "rank 2 (host n1, pid 77)"
static void append_rank(const td_board *board, char *text, int rank) {
    append(text, "rank %d (host %s, pid %d)", rank, board->hosts[rank].name,
           (int)board->hosts[rank].pid);
}

static int is_silent(const td_peer *peer, double deadline, double now) {
    return now - peer->heard_at >= deadline;
}

static int stands_still(const td_peer *peer, double deadline, double now) {
    return now - peer->moved_at >= deadline;
}

static int is_open(const td_beat *beat) {
    return beat->n_done < beat->n_started;
}

static double open_seconds(const td_peer *peer, double now) {
    return peer->beat.open_seconds + now - peer->heard_at;
}

// Compares one mark of a peer with what this rank called under the same number.
static int differs(const td_board *board, const td_mark *mark, td_mark *out_own) {
    return board->find_mark && mark->what[0] != '\0' &&
           board->find_mark(board->find_context, mark->sequence, out_own) &&
           out_own->chain != mark->chain;
}

static void keep_earliest(const td_board *board, const td_mark *mark, const td_mark **earliest,
                          td_mark *own) {
    td_mark candidate;
    if ((*earliest && (*earliest)->sequence <= mark->sequence) || !differs(board, mark, &candidate))
        return;
    *earliest = mark;
    *own = candidate;
}

// The earliest mark of the peer that differs from this rank's, NULL when none does.
static const td_mark *find_difference(const td_board *board, const td_beat *beat, td_mark *own) {
    const td_mark *earliest = NULL;
    keep_earliest(board, &beat->earlier, &earliest, own);
    for (int i = 0; i < beat->n_marks; i++)
        keep_earliest(board, &beat->marks[i], &earliest, own);
    return earliest;
}

static int judge_agreement(const td_board *board, double now, char *diagnosis) {
    for (int rank = 0; rank < board->size; rank++) {
        const td_peer *peer = &board->peers[rank];
        td_mark own;
        const td_mark *theirs = NULL;
        if (rank != board->rank && peer->is_watched && peer->has_beat)
            theirs = find_difference(board, &peer->beat, &own);
        if (!theirs)
            continue;
        append(diagnosis, "ranks disagree: ");
        append_rank(board, diagnosis, rank);
        append(diagnosis, " is in collective %llu (%s) while rank %d is in %llu (%s)%s;",
               (unsigned long long)theirs->sequence + 1, theirs->what, board->rank,
               (unsigned long long)own.sequence + 1, own.what,
               strcmp(theirs->what, own.what) == 0 ? " with other arguments or after another one"
                                                   : "");
        td_board_describe_all(board, now, diagnosis);
        return 1;
    }
    return 0;
}

// The oldest collective that a rank heard of has been in for the whole deadline.
static int find_overdue(const td_board *board, double deadline, double now, td_mark *out) {
    int found = 0;
    for (int rank = 0; rank < board->size; rank++) {
        const td_peer *peer = &board->peers[rank];
        if (!peer->is_watched || !peer->has_beat || !is_open(&peer->beat) ||
            is_silent(peer, deadline, now) || open_seconds(peer, now) < deadline)
            continue;
        if (!found || peer->beat.open.sequence < out->sequence)
            *out = peer->beat.open;
        found = 1;
    }
    return found;
}

static int is_missing(const td_peer *peer, uint64_t sequence) {
    return peer->is_watched && peer->beat.n_started <= sequence;
}

static int is_lost(const td_peer *peer, uint64_t sequence, double deadline, double now) {
    return peer->is_watched && (is_silent(peer, deadline, now) ||
                                (is_missing(peer, sequence) && stands_still(peer, deadline, now)));
}

// First of the ranks that are lost, their number in *out_count; -1 when none is.
static int find_lost(const td_board *board, uint64_t sequence, double deadline, double now,
                     int *out_count) {
    int first = -1;
    *out_count = 0;
    for (int rank = 0; rank < board->size; rank++)
        if (is_lost(&board->peers[rank], sequence, deadline, now)) {
            first = first < 0 ? rank : first;
            (*out_count)++;
        }
    return first;
}

static void describe_lost(const td_board *board, const td_mark *overdue, int rank, int n_lost,
                          double deadline, double now, char *diagnosis) {
    const td_peer *peer = &board->peers[rank];
    append_rank(board, diagnosis, rank);
    if (n_lost > 1)
        append(diagnosis, " and %d more", n_lost - 1);
    if (is_missing(peer, overdue->sequence))
        append(diagnosis, " did not reach collective %llu (%s)",
               (unsigned long long)overdue->sequence + 1, overdue->what);
    else
        append(diagnosis, " does not take part in collective %llu (%s)",
               (unsigned long long)overdue->sequence + 1, overdue->what);
    append(diagnosis, " within %.3g s, ", deadline);
    if (is_silent(peer, deadline, now))
        append(diagnosis, "no sign of life for %.0f s;", now - peer->heard_at);
    else
        append(diagnosis, "no progress for %.0f s;", now - peer->moved_at);
    td_board_describe_all(board, now, diagnosis);
}

static int any_missing(const td_board *board, uint64_t sequence) {
    for (int rank = 0; rank < board->size; rank++)
        if (is_missing(&board->peers[rank], sequence))
            return 1;
    return 0;
}

// All are there, nobody is lost: the time since the last one came is what counts.
static int judge_stuck(td_board *board, const td_mark *overdue, double deadline, double now,
                       char *diagnosis) {
    if (!board->has_arrived || board->arrived_sequence != overdue->sequence) {
        board->has_arrived = 1;
        board->arrived_sequence = overdue->sequence;
        board->arrived_at = now;
    }
    if (now - board->arrived_at < deadline)
        return 0;
    append(diagnosis,
           "all ranks are in collective %llu (%s), but it does not complete for %.0f s: the "
           "connection between them may be broken;",
           (unsigned long long)overdue->sequence + 1, overdue->what, now - board->arrived_at);
    td_board_describe_all(board, now, diagnosis);
    return 1;
}

td_verdict td_board_judge(td_board *board, double deadline, double now,
                          char diagnosis[TD_DIAGNOSIS_BYTES]) {
    td_mark overdue;
    diagnosis[0] = '\0';
    if (judge_agreement(board, now, diagnosis))
        return TD_VERDICT_DISAGREE;
    if (!find_overdue(board, deadline, now, &overdue)) {
        board->has_arrived = 0;
        return TD_VERDICT_FINE;
    }
    int n_lost;
    int lost = find_lost(board, overdue.sequence, deadline, now, &n_lost);
    if (lost >= 0) {
        describe_lost(board, &overdue, lost, n_lost, deadline, now, diagnosis);
        return TD_VERDICT_ABSENT;
    }
    if (any_missing(board, overdue.sequence)) {
        board->has_arrived = 0;
        return TD_VERDICT_FINE;
    }
    return judge_stuck(board, &overdue, deadline, now, diagnosis) ? TD_VERDICT_STUCK
                                                                  : TD_VERDICT_FINE;
}

// Ranks at the same place are told together.
static int same_place(const td_beat *a, const td_beat *b) {
    return a->progress.phase == b->progress.phase && a->progress.step == b->progress.step &&
           is_open(a) == is_open(b) && a->open.sequence == b->open.sequence &&
           strcmp(a->open.what, b->open.what) == 0;
}

static int same_group(const td_peer *a, const td_peer *b) {
    return a->has_beat == b->has_beat && (!a->has_beat || same_place(&a->beat, &b->beat));
}

static int starts_group(const td_board *board, int rank) {
    for (int before = 0; before < rank; before++)
        if (board->peers[before].is_watched &&
            same_group(&board->peers[before], &board->peers[rank]))
            return 0;
    return 1;
}

static int is_member(const td_board *board, int first, int rank) {
    return board->peers[rank].is_watched && same_group(&board->peers[first], &board->peers[rank]);
}

// "0-1, 3" for the members of the group that begins with `first`; returns their number.
static int list_members(const td_board *board, int first, char *ranges, size_t room) {
    int count = 0, used = 0;
    for (int begin = first; begin < board->size; begin++) {
        if (!is_member(board, first, begin))
            continue;
        int end = begin;
        while (end + 1 < board->size && is_member(board, first, end + 1))
            end++;
        count += end - begin + 1;
        if (used >= 0 && (size_t)used + 30 > room) {
            snprintf(ranges + used, room - (size_t)used, ", ...");
            used = -1;
        } else if (used >= 0) {
            used += snprintf(ranges + used, room - (size_t)used, begin == end ? "%s%d" : "%s%d-%d",
                             used ? ", " : "", begin, end);
        }
        begin = end;
    }
    return count;
}

static void append_place(const td_beat *beat, int is_alone, char *text) {
    const td_progress *progress = &beat->progress;
    if (progress->step > 0)
        append(text, "step %u, ", progress->step);
    append(text, "%s, ", td_phase_name((td_phase)progress->phase));
    if (is_alone && progress->step > 0)
        append(text, "micro-batch %u, layer %u, ", progress->micro_batch, progress->layer);
    if (beat->n_started == 0)
        append(text, "before the first collective");
    else
        append(text, "%s collective %llu (%s)", is_open(beat) ? "in" : "after",
               (unsigned long long)beat->open.sequence + 1, beat->open.what);
}

// A beat of a rank that is silent may be older than what the rank did last.
static const double fresh_seconds = 1.5;

static void append_group(const td_board *board, int first, double now, char *text) {
    const td_peer *peer = &board->peers[first];
    char ranges[RANGE_BYTES];
    int count = list_members(board, first, ranges, sizeof ranges);
    append(text, " %s %s: ", count == 1 ? "rank" : "ranks", ranges);
    if (!peer->has_beat) {
        append(text, "never heard of");
        return;
    }
    int is_fresh = now - peer->heard_at < fresh_seconds;
    if (!is_fresh)
        append(text, "last heard of in ");
    append_place(&peer->beat, count == 1, text);
    if (is_fresh && is_open(&peer->beat))
        append(text, " for %.0f s", open_seconds(peer, now));
}

void td_board_describe_all(const td_board *board, double now, char *text) {
    int n_groups = 0;
    for (int rank = 0; rank < board->size; rank++) {
        if (!board->peers[rank].is_watched || !starts_group(board, rank))
            continue;
        if (n_groups == MAX_GROUPS) {
            append(text, "; others elsewhere");
            return;
        }
        append(text, "%s", n_groups++ > 0 ? ";" : "");
        append_group(board, rank, now, text);
    }
}
