// The GPU module: a shared object with the CUDA backend that the program loads when there is a GPU,
// so that one program file runs on machines with and without one and builds without the toolkit.
//
// The module is the file $TANDEM_GPU_MODULE if that is set, else libtandem_cuda.so beside the
// program or in ../lib/tandem from there. It calls back into the program (errors, log,
// communicator), so it must come from the same build: `version` is compared.
#ifndef TANDEM_CORE_GPU_MODULE_H
#define TANDEM_CORE_GPU_MODULE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/device.h"

TD_C_BEGIN

struct td_ops;              // kernels/ops.h
struct td_device_transport; // comm/device_comm.h

typedef struct td_gpu_info {
    char name[64];       // "NVIDIA H200"
    char uuid[40];       // "GPU-...": tells two ranks with the same GPU
    int major, minor;    // compute capability
    int processors;      // streaming multiprocessors
    size_t total_bytes;  // of device memory
    int driver, runtime; // versions as CUDA numbers them: 13000
} td_gpu_info;

enum { TD_GPU_MODULE_VERSION = 2 };

typedef struct td_gpu_module {
    int version;
    // Visible devices; 0: `reason` says why in words for a person (no driver, driver too old).
    int (*device_count)(char *reason, size_t reason_bytes);
    td_status (*device_describe)(int index, td_gpu_info *out);
    // One object per device, alive for ever.
    td_status (*device_open)(int index, const td_device **out);
    const struct td_ops *ops_bf16, *ops_fp32; // by type of the activations
    const struct td_device_transport
        *nccl; // never NULL; its probe() says whether the library is there
} td_gpu_module;

// What the module exports, under the name "td_gpu_module_get".
const td_gpu_module *td_gpu_module_get(void);

// Loads the module once; later calls give the same answer. *out is NULL, with the cause in
// `reason`, when there is no module or no GPU that it can use: no failure of its own, the caller
// decides.
void td_gpu_module_load(const td_gpu_module **out, char *reason, size_t reason_bytes);

TD_C_END

#endif
