// Reading a text file line by line without trusting its lines to be short. One thread at a time.
#ifndef TANDEM_DATA_LINES_H
#define TANDEM_DATA_LINES_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/status.h"

typedef struct td_line_reader {
    const char *path; // kept by reference
    int file;
    char *buffer;
    size_t capacity, begin, end; // unread bytes are [begin, end)
    size_t max_bytes;            // of a line
    int64_t number;              // of the line read last, from 1
    int is_at_end;
} td_line_reader;

typedef struct td_line {
    const char *text; // valid until the next call; not NUL-terminated
    size_t bytes;     // without the line end
    int is_too_long;  // longer than max_bytes: passed over, bytes is 0
} td_line;

// TD_ERR_DATA when the file is missing or no regular file.
td_status td_line_reader_open(td_line_reader *reader, const char *path, size_t max_bytes);
void td_line_reader_close(td_line_reader *reader);
// The next line, without "\n" or "\r\n" and without a byte order mark before the first. *out_found
// 0: none left.
td_status td_line_reader_next(td_line_reader *reader, td_line *out, int *out_found);

#endif
