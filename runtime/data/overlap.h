// Whether one token store repeats another: evaluation rows that were trained on say little.
#ifndef TANDEM_DATA_OVERLAP_H
#define TANDEM_DATA_OVERLAP_H

#include <stdint.h>

#include "runtime/core/status.h"

// Rows of the second store whose tokens are those of a row of the first. Local; reads both, and
// holds 17 bytes for each row of the second.
td_status td_store_overlap(const char *first_path, const char *second_path, int64_t *out_rows);

#endif
