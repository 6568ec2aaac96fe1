// Status codes and the error record.
//
// A fallible function returns td_status. The function that detects a failure calls td_fail() once,
// with the exact cause; callers pass the status on unchanged. The record belongs to the calling
// thread and keeps the first message until td_error_clear(). Nothing here prints: main and
// td_comm_agree() do, once.
#ifndef TANDEM_CORE_STATUS_H
#define TANDEM_CORE_STATUS_H

#include "runtime/core/portable.h"

TD_C_BEGIN

// The values are the documented exit codes of the program.
typedef enum td_status {
    TD_OK = 0,
    TD_ERR_USAGE = 2, // command line or config
    TD_ERR_DATA =
        3, // model, data, adapter or checkpoint file is missing, malformed or does not fit
    TD_ERR_MEMORY = 4,  // the memory plan does not fit, or an allocation failed
    TD_ERR_IO = 5,      // the system refused: no space, no permission, read or write error
    TD_ERR_PEER = 6,    // another rank failed or did not arrive before the deadline
    TD_ERR_NUMERIC = 7, // NaN or infinite loss or gradient, fixed-point overflow
    TD_ERR_INTERNAL = 70,
    TD_STOPPED = 75, // stopped on request after a checkpoint: queue the job again
} td_status;

// Records the message for this thread, unless one is recorded already, and is `status`. A macro, so
// that the compiler sees that it is never TD_OK when `status` is not.
#define td_fail(status, ...) (td_error_record(__VA_ARGS__), (status))
void td_error_record(const char *format, ...) __attribute__((format(printf, 1, 2)));

// The recorded message of this thread, or "" when there is none.
const char *td_error_message(void);
void td_error_clear(void);

// Short constant name such as "bad input data".
const char *td_status_name(td_status status);

TD_C_END

#define TD_TRY(expression)                                                                         \
    do {                                                                                           \
        td_status td_try_status_ = (expression);                                                   \
        if (td_try_status_ != TD_OK)                                                               \
            return td_try_status_;                                                                 \
    } while (0)

// Assigns to the variable `status` in scope and jumps to `label` on failure.
#define TD_TRY_GOTO(status, expression, label)                                                     \
    do {                                                                                           \
        (status) = (expression);                                                                   \
        if ((status) != TD_OK)                                                                     \
            goto label;                                                                            \
    } while (0)

#endif
