// Dequantized copies of the base's NF4 matrices in memory that nothing else needs: where a layer
// has its copy, products take it instead of dequantizing the layer every time. The numbers are the
// same, so results are too, however many layers have one.
#ifndef TANDEM_MODEL_WEIGHT_COPIES_H
#define TANDEM_MODEL_WEIGHT_COPIES_H

#include "model/base.h"

typedef struct td_weight_copies_plan {
    int64_t n_quantized; // layers with NF4 matrices
    int64_t n_copied;    // the first of these, as many as fit
    size_t bytes;        // of the copies
    td_dtype type;       // of their elements
} td_weight_copies_plan;

// From the config alone: whole layers, from the first one on, in `limit_bytes`. `activation` is the
// type of the copies.
void td_weight_copies_plan_make(const td_model_config *config, const td_base_options *options,
                                td_dtype activation, size_t limit_bytes,
                                td_weight_copies_plan *out);

typedef struct td_weight_copies {
    td_base *base; // not owned
    const td_device *device;
    int64_t n_copied;
    void **layers; // (n_layers) memory of a layer's copies, or NULL
} td_weight_copies;

// Local. Queues copies of up to n_copied layers on the context's stream and names them in the base,
// which outlives them. Where memory ends early there are fewer, which is no failure.
// Zero-initialise; fini also after a failure.
td_status td_weight_copies_make(td_weight_copies *copies, td_base *base,
                                const td_op_context *context, int64_t n_copied);
// What is queued must have ended.
void td_weight_copies_fini(td_weight_copies *copies);

// Device memory for dequantized weights; *out is NULL, which is no failure, when there is none or
// too little of the device would stay free.
td_status td_weight_memory_take(const td_device *device, size_t bytes, const char *purpose,
                                void **out);

#endif
