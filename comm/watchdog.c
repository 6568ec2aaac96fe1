#include "comm/watchdog_internal.h"

#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/core/log.h"

enum { TICK_MS = 50 };

int td_thread_create(pthread_t *out, void *(*body)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(out, NULL, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

// Sleeps one tick; 1 when the watchdog is to stop.
static int sleep_tick(td_watchdog *watchdog) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += TICK_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&watchdog->lock);
    if (!watchdog->stop_wanted)
        pthread_cond_timedwait(&watchdog->stop, &watchdog->lock, &until);
    int stop = watchdog->stop_wanted;
    pthread_mutex_unlock(&watchdog->lock);
    return stop;
}

// The job is ending already: the one message was printed elsewhere.
static void check_end(const td_watchdog *watchdog, unsigned *waited_ms) {
    int status = atomic_load(&watchdog->end_status);
    if (status == 0)
        return;
    *waited_ms += TICK_MS;
    if (*waited_ms >= atomic_load(&watchdog->end_ms))
        _exit(status);
}

static void check_kicks(td_watchdog *watchdog, unsigned *last_kicks, unsigned *still_ms) {
    unsigned kicks = atomic_load_explicit(&watchdog->kicks, memory_order_relaxed);
    unsigned limit_ms = atomic_load(&watchdog->limit_ms);
    *still_ms = kicks == *last_kicks ? *still_ms + TICK_MS : 0;
    *last_kicks = kicks;
    if (limit_ms == 0 || *still_ms < limit_ms || atomic_load(&watchdog->end_status) != 0)
        return;
    td_error("%s has not returned for %u s: another rank did not come as far, or cannot be reached",
             atomic_load(&watchdog->doing), *still_ms / 1000);
    _exit(TD_ERR_PEER);
}

static void *watch(void *argument) {
    td_watchdog *watchdog = argument;
    unsigned last_kicks = 0, still_ms = 0, ending_ms = 0;
    while (!sleep_tick(watchdog)) {
        check_end(watchdog, &ending_ms);
        check_kicks(watchdog, &last_kicks, &still_ms);
    }
    return NULL;
}

td_status td_watchdog_start(td_watchdog *watchdog) {
    memset(watchdog, 0, sizeof *watchdog);
    atomic_store(&watchdog->doing, "communication");
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0)
        return td_fail(TD_ERR_INTERNAL, "cannot start the watchdog thread");
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    int error = pthread_cond_init(&watchdog->stop, &attributes);
    pthread_condattr_destroy(&attributes);
    if (error != 0)
        return td_fail(TD_ERR_INTERNAL, "cannot start the watchdog thread");
    pthread_mutex_init(&watchdog->lock, NULL);
    error = td_thread_create(&watchdog->thread, watch, watchdog);
    if (error == 0)
        return TD_OK;
    pthread_mutex_destroy(&watchdog->lock);
    pthread_cond_destroy(&watchdog->stop);
    return td_fail(TD_ERR_INTERNAL, "cannot start the watchdog thread: %s", strerror(error));
}

void td_watchdog_stop(td_watchdog *watchdog) {
    pthread_mutex_lock(&watchdog->lock);
    watchdog->stop_wanted = 1;
    pthread_cond_signal(&watchdog->stop);
    pthread_mutex_unlock(&watchdog->lock);
    pthread_join(watchdog->thread, NULL);
    pthread_mutex_destroy(&watchdog->lock);
    pthread_cond_destroy(&watchdog->stop);
}

void td_watchdog_arm(td_watchdog *watchdog, const char *doing, double seconds) {
    double ms = seconds * 1e3;
    td_watchdog_kick(watchdog);
    atomic_store(&watchdog->doing, doing);
    atomic_store(&watchdog->limit_ms, ms < 1 ? 1 : ms > 4e9 ? 4000000000u : (unsigned)ms);
}

void td_watchdog_disarm(td_watchdog *watchdog) {
    atomic_store(&watchdog->limit_ms, 0);
}

void td_watchdog_end_in(td_watchdog *watchdog, td_status status, double seconds) {
    int none = 0;
    atomic_store(&watchdog->end_ms, (unsigned)(seconds * 1e3));
    atomic_compare_exchange_strong(&watchdog->end_status, &none, (int)status);
}
