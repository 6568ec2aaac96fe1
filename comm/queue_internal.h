// Inside comm: the operations that the caller has started and the communication thread executes,
// first in, first out.
//
// The caller pushes and waits; the communication thread takes, completes and idles. Operations are
// numbered from 0: that number is the sequence that diagnostics show (counted from 1) and the
// td_request. Every push also extends a chained hash over the kinds, names and sizes of all
// operations so far: two ranks that called the same collectives in the same order have the same
// chain at the same number, so one comparison anywhere shows whether they ever disagreed.
#ifndef TANDEM_COMM_QUEUE_INTERNAL_H
#define TANDEM_COMM_QUEUE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "comm/board_internal.h"
#include "comm/comm_internal.h"

enum { TD_QUEUE_HISTORY = 4096 };

typedef struct td_queue_entry {
    td_operation operation;
    int n_pieces_done;
    int is_done, is_waited;
} td_queue_entry;

typedef struct td_history_entry {
    uint64_t chain;
    const char *what;
} td_history_entry;

typedef struct td_queue {
    pthread_mutex_t lock;
    pthread_cond_t work;     // something to do for the communication thread
    pthread_cond_t done;     // something was completed
    td_queue_entry *entries; // ring of `capacity`, a power of two; entry i is at i % capacity
    uint64_t capacity;
    uint64_t n_freed; // done and waited for, all before this number
    uint64_t n_done;  // done, all before this number; the number of the oldest open operation
    uint64_t n_taken;
    uint64_t n_started;
    int woken;
    atomic_int n_waiting; // callers in td_queue_wait()
    uint64_t chain;
    td_history_entry history[TD_QUEUE_HISTORY]; // of the newest operations, at i % TD_QUEUE_HISTORY
} td_queue;

td_status td_queue_init(td_queue *queue);
void td_queue_fini(td_queue *queue);

// The caller's side.
td_status td_queue_push(td_queue *queue, const td_operation *operation, uint64_t *out);
td_status td_queue_wait(td_queue *queue, uint64_t sequence);
td_status td_queue_test(td_queue *queue, uint64_t sequence, int *out_done);

// The communication thread's side. take: 0 when nothing is left to take.
int td_queue_take(td_queue *queue, td_operation *out_operation, uint64_t *out_sequence);
// One of the n_pieces of an operation is complete; the last one completes it. For an operation that
// another library does the caller's side calls it.
void td_queue_piece_done(td_queue *queue, uint64_t sequence, int n_pieces);
// Returns at the next push or wake, at the latest after `seconds`.
void td_queue_idle(td_queue *queue, double seconds);
int td_queue_is_waited_for(td_queue *queue);

// Any thread.
void td_queue_wake(td_queue *queue);
// Fills the part of a beat that tells which collectives this rank is in.
void td_queue_describe(td_queue *queue, td_beat *beat);
// What this rank called as number `sequence`; 0 when that is not known (any more).
int td_queue_find_mark(void *queue, uint64_t sequence, td_mark *out);

#endif
