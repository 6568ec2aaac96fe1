#include <signal.h>
#include <stddef.h>
#include <string.h>

#include "runtime/train/trainer_internal.h"

volatile int td_stop_requested;

static void on_signal(int number) {
    if (td_stop_requested && number == SIGTERM) {
        signal(SIGTERM, SIG_DFL);
        raise(SIGTERM);
    }
    td_stop_requested = 1;
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
