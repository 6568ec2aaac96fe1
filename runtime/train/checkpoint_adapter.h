// The adapter of a checkpoint out of its pages, without its adapter files.
#ifndef TANDEM_TRAIN_CHECKPOINT_ADAPTER_H
#define TANDEM_TRAIN_CHECKPOINT_ADAPTER_H

#include "runtime/train/checkpoint_internal.h"

// Local. TD_ERR_DATA: a file of pages is missing or damaged.
td_status td_checkpoint_verify_pages(const char *folder, const td_manifest *manifest);

// Local. Writes adapter_config.json and adapter_model.safetensors into `output`, with the bytes
// that the run wrote. Every page is compared with its checksum. The layout needs the shapes of the
// base: `model` is its folder, NULL: where it was during the run. TD_ERR_DATA: damaged pages, no
// such base, or one of another layout.
td_status td_checkpoint_rebuild_adapter(const char *folder, const td_manifest *manifest,
                                        const char *model, const char *output);

#endif
