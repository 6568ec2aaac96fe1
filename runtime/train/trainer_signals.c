#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "runtime/train/trainer_internal.h"

volatile int td_stop_requested;

// A scheduler and mpirun may both pass on what is one request: repetitions within this time are no
// second one.
enum { SAME_REQUEST_SECONDS = 5 };

static volatile time_t first_term; // 0: none yet

static void on_signal(int number) {
    td_stop_requested = 1;
    if (number != SIGTERM)
        return;
    time_t now = time(NULL);
    if (first_term == 0) {
        first_term = now;
    } else if (now - first_term > SAME_REQUEST_SECONDS) {
        signal(SIGTERM, SIG_DFL);
        raise(SIGTERM);
    }
}

void td_trainer_catch_signals(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}
