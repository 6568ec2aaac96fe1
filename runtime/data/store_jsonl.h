// A token store as JSON Lines: {"input_ids": [...], "labels": [...]}, labels not shifted, -100
// where a token is not trained. Other trainers read it, and so does this program.
#ifndef TANDEM_DATA_STORE_JSONL_H
#define TANDEM_DATA_STORE_JSONL_H

#include "runtime/core/status.h"

// Local. Replaces `path` when all rows are written; on failure nothing is left but what stood there
// before.
td_status td_store_write_jsonl(const char *store_path, const char *path);

#endif
