// Inside comm: the board on which a rank sees where the others are, and the judgement whether the
// job can go on.
//
// Every rank sends a beat to the observers about twice a second: its progress words and the
// collectives it is in. Observers are up to TD_MAX_OBSERVERS ranks spread evenly over the job (all
// ranks of a small one); they beat to everybody. So a job of any size costs a rank a handful of
// messages, an observer two per rank and second, and any observer can speak when another one is the
// rank that is gone. This file only judges; it sends nothing and knows no MPI. Not thread-safe: the
// communication thread owns the board. Times are seconds of a clock that does not count time in
// which the process was stopped.
#ifndef TANDEM_COMM_BOARD_INTERNAL_H
#define TANDEM_COMM_BOARD_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/progress.h"
#include "runtime/core/status.h"

enum {
    TD_MAX_OBSERVERS = 4,
    TD_BEAT_MARKS = 4,
    TD_WHAT_BYTES = 40,
    TD_HOST_BYTES = 64,
    TD_DIAGNOSIS_BYTES = 1800,
};

// One collective as a rank called it.
typedef struct td_mark {
    uint64_t sequence;
    uint64_t chain; // over all collectives up to this one
    char what[TD_WHAT_BYTES];
} td_mark;

typedef struct td_beat {
    int32_t rank;
    int32_t end_status; // not 0: the job ends with this status, be silent
    td_progress progress;
    uint64_t n_started;  // collectives that the rank has called
    uint64_t n_done;     // of these complete, all before this number
    double open_seconds; // how long the oldest open one has made no progress; 0 when none is open
    td_mark open;        // the oldest open one, or else the newest one; unset when n_started is 0
    int32_t n_marks;
    td_mark marks[TD_BEAT_MARKS]; // the newest ones, oldest first
    td_mark earlier; // the newest one of the beat before; unset when there was none (what is empty)
} td_beat;

typedef struct td_host {
    char name[TD_HOST_BYTES];
    int32_t pid;
} td_host;

typedef struct td_peer {
    td_beat beat;
    double heard_at; // of the newest beat
    double moved_at; // the newest beat that showed progress
    int is_watched;  // sends its beats here
    int has_beat;
} td_peer;

typedef int td_find_mark(void *context, uint64_t sequence, td_mark *out);

typedef struct td_board {
    int rank, size;
    td_peer *peers;          // size
    const td_host *hosts;    // size, of the owner of the board
    td_find_mark *find_mark; // this rank's own collectives
    void *find_context;
    uint64_t arrived_sequence; // every rank has called this one,
    double arrived_at;         // since then
    int has_arrived;
} td_board;

typedef enum td_verdict {
    TD_VERDICT_FINE,
    TD_VERDICT_DISAGREE, // ranks called different collectives
    TD_VERDICT_ABSENT,   // a rank that others wait for stands still or gives no sign of life
    TD_VERDICT_STUCK,    // all have called it and it does not complete
} td_verdict;

int td_observer_count(int size);
int td_observer_rank(int index, int size);
// -1 when `rank` is none.
int td_observer_index(int rank, int size);

td_status td_board_init(td_board *board, int rank, int size, const td_host *hosts, double now);
void td_board_fini(td_board *board);
// A beat of a watched rank or of this one.
void td_board_note(td_board *board, const td_beat *beat, double now);
// Fills `diagnosis`, one line for people, when the verdict is not FINE.
td_verdict td_board_judge(td_board *board, double deadline, double now,
                          char diagnosis[TD_DIAGNOSIS_BYTES]);

// One line: " rank 2: step 5, ...; ranks 0-1, 3: ...". At most TD_DIAGNOSIS_BYTES with what stands
// in `text` already.
void td_board_describe_all(const td_board *board, double now, char *text);

#endif
