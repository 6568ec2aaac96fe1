// Reading a file of rows one by one without trusting them to be short. One thread at a time.
//
// A row is a line, or, when the first character of the file is "[", an element of the JSON list
// that the file then is (the whole of it). Files may be compressed with gzip or zstd, in any number
// of members or frames; what a file is, its bytes tell, not its name. Memory is bounded: by the
// longest row, and by a zstd window of 128 MiB.
#ifndef TANDEM_DATA_LINES_H
#define TANDEM_DATA_LINES_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/status.h"

typedef struct td_line_reader {
    const char *path; // kept by reference
    struct td_decoder *decoder;
    char *buffer;
    size_t capacity, begin, end; // unread bytes are [begin, end)
    size_t max_bytes;            // of a row
    int64_t number;              // of the row read last, from 1: its line, or its place in the list
    int is_list;                 // rows are the elements of a JSON list
    int is_at_end;
    int is_form_known, is_list_closed;
} td_line_reader;

typedef struct td_line {
    const char *text; // valid until the next call; not NUL-terminated
    size_t bytes;     // without the line end, or what stands between elements
    int is_too_long;  // longer than max_bytes: passed over, bytes is 0
} td_line;

// TD_ERR_DATA when the file is missing or no regular file, or in a format that is none of these
// (xz, Parquet, UTF-16, ...), by name.
td_status td_line_reader_open(td_line_reader *reader, const char *path, size_t max_bytes);
void td_line_reader_close(td_line_reader *reader);
// The next row: a line without "\n" or "\r\n" and without a byte order mark before the first, or an
// element. *out_found 0: none left. TD_ERR_DATA, after which there is nothing more to read: damaged
// or truncated compressed data, a list that is not closed or not followed by the end of the file.
td_status td_line_reader_next(td_line_reader *reader, td_line *out, int *out_found);

// What messages call a row: "file:7", or "file: element 7". Cut off when longer than `room`.
void td_line_where(const char *path, int is_list, int64_t number, char *out, size_t room);

#endif
