// The adapter of a checkpoint as a folder of its own.
#ifndef TANDEM_TRAIN_CHECKPOINT_EXPORT_H
#define TANDEM_TRAIN_CHECKPOINT_EXPORT_H

#include "runtime/core/files.h"

// Local. `path` is a checkpoint folder, or a run: then its newest checkpoint that has the adapter
// counts, and out_checkpoint says which it was. The adapter's files are compared with the
// manifest's sizes and checksums before and as they are copied; where they are missing or damaged
// the adapter is rebuilt from the pages, bit for bit. That needs the base model's config.json:
// `model` is its folder, NULL: where it was during the run. TD_ERR_USAGE when `output` exists.
td_status td_checkpoint_export_adapter(const char *path, const char *model, const char *output,
                                       char out_checkpoint[TD_PATH_MAX]);

#endif
