// Inside comm: the thread that bounds what nothing else can bound: calls into MPI that do not
// return.
//
// The thread that owns MPI arms the watchdog before it enters a place where it may get stuck and
// kicks it while it gets on. Time is counted in the watchdog's own ticks, so time in which the
// whole process was stopped does not count. When the limit passes, the process prints one line and
// ends; the launcher or the other ranks' boards then end the job.
#ifndef TANDEM_COMM_WATCHDOG_INTERNAL_H
#define TANDEM_COMM_WATCHDOG_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "runtime/core/status.h"

typedef struct td_watchdog {
    pthread_t thread;
    pthread_mutex_t lock; // of stop_wanted
    pthread_cond_t stop;
    int stop_wanted;
    atomic_uint kicks;
    atomic_uint limit_ms;        // between two kicks; 0: disarmed
    _Atomic(const char *) doing; // constant, for the message
    atomic_int end_status;       // not 0: the process ends with it when end_ms have passed
    atomic_uint end_ms;
} td_watchdog;

td_status td_watchdog_start(td_watchdog *watchdog);
void td_watchdog_stop(td_watchdog *watchdog);

// Any thread. `doing` is a constant.
void td_watchdog_arm(td_watchdog *watchdog, const char *doing, double seconds);
void td_watchdog_disarm(td_watchdog *watchdog);
static inline void td_watchdog_kick(td_watchdog *watchdog) {
    atomic_fetch_add_explicit(&watchdog->kicks, 1, memory_order_relaxed);
}

// Any thread. The process ends silently with `status` after `seconds`, whatever hangs; the first
// call counts.
void td_watchdog_end_in(td_watchdog *watchdog, td_status status, double seconds);

// A thread that takes no signals: handlers run on the program's own threads.
int td_thread_create(pthread_t *out, void *(*body)(void *), void *argument);

#endif
