#include "runtime/core/status.h"

#include <stdarg.h>
#include <stdio.h>

enum { MESSAGE_BYTES = 2048 };

static _Thread_local char message[MESSAGE_BYTES];

void td_error_record(const char *format, ...) {
    if (message[0] != '\0')
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
}

const char *td_error_message(void) {
    return message;
}

void td_error_clear(void) {
    message[0] = '\0';
}

const char *td_status_name(td_status status) {
    switch (status) {
    case TD_OK:
        return "ok";
    case TD_ERR_USAGE:
        return "bad usage or config";
    case TD_ERR_DATA:
        return "bad input data";
    case TD_ERR_MEMORY:
        return "out of memory";
    case TD_ERR_IO:
        return "input/output error";
    case TD_ERR_PEER:
        return "another rank failed";
    case TD_ERR_NUMERIC:
        return "numeric error";
    case TD_ERR_INTERNAL:
        return "internal error";
    case TD_STOPPED:
        return "stopped on request";
    }
    return "unknown status";
}
