// The bytes of a file of rows, decompressed. One thread at a time.
#ifndef TANDEM_DATA_LINES_INTERNAL_H
#define TANDEM_DATA_LINES_INTERNAL_H

#include "runtime/data/lines.h"

typedef struct td_decoder td_decoder;

// TD_ERR_DATA: missing, no regular file, or a format that is not read. `path` is kept by reference.
td_status td_decoder_open(const char *path, td_decoder **out);
void td_decoder_close(td_decoder *decoder);
// Up to `room` bytes, more than none unless the file is at its end. `where` begins messages.
td_status td_decoder_read(td_decoder *decoder, const char *where, char *out, size_t room,
                          size_t *out_bytes);

#endif
