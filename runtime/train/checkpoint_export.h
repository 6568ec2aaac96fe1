// The adapter of a checkpoint as a folder of its own.
#ifndef TANDEM_TRAIN_CHECKPOINT_EXPORT_H
#define TANDEM_TRAIN_CHECKPOINT_EXPORT_H

#include "runtime/core/files.h"

// Local. `path` is a checkpoint folder, or a run: then its newest whole checkpoint that holds an
// adapter counts, and out_checkpoint says which it was. The files are compared with the manifest's
// sizes and checksums before and as they are copied. TD_ERR_USAGE when `output` exists.
td_status td_checkpoint_export_adapter(const char *path, const char *output,
                                       char out_checkpoint[TD_PATH_MAX]);

#endif
