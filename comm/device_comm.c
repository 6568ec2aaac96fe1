#include "comm/device_comm_internal.h"

#include <sched.h>
#include <stdio.h>

// Looks at once for as long as a short copy takes, then ever more rarely: what has taken long may
// take a little longer.
static const double spin_seconds = 50e-6;
static const double shortest_sleep_seconds = 20e-6, longest_sleep_seconds = 1e-3;
// Ordinary scheduling never holds a look for this long: the process was stopped.
static const double stopped_seconds = 1.0;

td_device_poll td_device_poll_begin(void) {
    return (td_device_poll){.last = td_monotonic_seconds()};
}

void td_device_poll_moved(td_device_poll *poll) {
    poll->last = td_monotonic_seconds();
    poll->waited = 0;
}

static void rest_after(double waited) {
    double seconds = waited / 16;
    if (seconds < shortest_sleep_seconds)
        seconds = shortest_sleep_seconds;
    if (seconds > longest_sleep_seconds)
        seconds = longest_sleep_seconds;
    if (waited < spin_seconds)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = (long)(seconds * 1e9)}, NULL);
}

int td_device_poll_rest(td_device_poll *poll, double deadline) {
    rest_after(poll->waited);
    double now = td_monotonic_seconds();
    if (now - poll->last < stopped_seconds)
        poll->waited += now - poll->last;
    poll->last = now;
    return poll->waited < deadline;
}

td_status td_device_check_start(const td_device_comm_options *options, uint64_t n_in_flight,
                                size_t bytes, int root, const char *what) {
    int size = td_comm_size(options->comm);
    if (root < 0 || root >= size)
        return td_fail(TD_ERR_INTERNAL, "%s: root %d of %d ranks", what, root, size);
    if (bytes > options->max_bytes)
        return td_fail(TD_ERR_INTERNAL, "%s: a collective of %zu bytes, planned for %zu", what,
                       bytes, options->max_bytes);
    if (n_in_flight >= options->in_flight)
        return td_fail(TD_ERR_INTERNAL,
                       "%s: more than the %zu collectives in flight that were planned", what,
                       options->in_flight);
    return TD_OK;
}

void td_device_give_up(const td_device_comm *self, const char *part, uint64_t sequence,
                       const char *what) {
    char message[256];
    snprintf(message, sizeof message,
             "rank %d: GPU %d has not finished %s device collective %llu (%s) within %.3g s",
             td_comm_rank(self->comm), self->device->index, part, (unsigned long long)sequence + 1,
             what, td_comm_deadline(self->comm));
    td_comm_abort(self->comm, TD_ERR_INTERNAL, message);
}
