// Inside comm: what the transports that wait for a device share.
#ifndef TANDEM_COMM_DEVICE_COMM_INTERNAL_H
#define TANDEM_COMM_DEVICE_COMM_INTERNAL_H

#include <stdint.h>

#include "comm/comm_internal.h"
#include "comm/device_comm.h"

TD_C_BEGIN

// A wait of the host that looks again and again, with short sleeps in between. Time in which the
// whole process was stopped does not count.
typedef struct td_device_poll {
    double last;   // look
    double waited; // seconds in which nothing moved
} td_device_poll;

td_device_poll td_device_poll_begin(void);
// Something moved.
void td_device_poll_moved(td_device_poll *poll);
// Sleeps for a moment. 0 when nothing has moved for `deadline` seconds.
int td_device_poll_rest(td_device_poll *poll, double deadline);

// Any operation that can be started is of at most max_bytes, has a root that exists, and one of the
// in_flight places is free.
td_status td_device_check_start(const td_device_comm_options *options, uint64_t n_in_flight,
                                size_t bytes, int root, const char *what);

// The device does not get on: ends the job. part: what it does not finish, "the work before".
void td_device_give_up(const td_device_comm *self, const char *part, uint64_t sequence,
                       const char *what) __attribute__((noreturn));

TD_C_END

#endif
