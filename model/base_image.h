// An image of a quantized base: a file with the bytes of the base's arena, which a later start maps
// (on the CPU, where all ranks of a node share its pages) or copies to its device.
//
// An image is only ever a copy of what loading gives: it is written to a temporary and renamed,
// never changed, and used only when its key fits (config, settings, sizes, times and headers of the
// safetensors files), it belongs to this user or root, nobody else may write it, and every checksum
// is right. One file per model folder and settings; one that does not fit is made again. It needs
// no flush to disk: what a lost machine leaves of it has the wrong checksums.
#ifndef TANDEM_MODEL_BASE_IMAGE_H
#define TANDEM_MODEL_BASE_IMAGE_H

#include "model/base_internal.h"
#include "runtime/core/files.h"

typedef struct td_base_image {
    char path[TD_PATH_MAX];
    td_hash key;
} td_base_image;

// Where the image of a model folder and these (effective) settings lies, and its key now. Changes
// of the files change the key and not the place. Local.
td_status td_base_image_find(const char *image_folder, const char *model_folder,
                             const td_safetensors *files, const td_model_config *config,
                             const td_base_options *options, td_dtype matrix_dtype,
                             td_base_image *out);

// Local. *out stays NULL, with TD_OK, when there is no image that can be used; `says_why` warns of
// one that is there. `verify` compares the checksums of a mapping too; what is copied to a device
// always is compared.
td_status td_base_image_open(const td_base_image *image, const td_model_config *config,
                             const td_base_options *options, td_dtype matrix_dtype,
                             const td_op_context *context, int verify, int says_why, td_base **out);

// Local. Writes the image of a loaded base, unless another process is at it. A failure harms
// nothing: the caller warns and goes on.
td_status td_base_image_write(const td_base_image *image, const td_base *base,
                              const td_op_context *context);

#endif
