// What the CUDA module offers the program.
#include "kernels/cuda/cuda_ops.h"
#include "runtime/core/device_cuda.h"

extern const struct td_device_transport td_device_transport_nccl; // comm/transport_nccl.c

const td_gpu_module *td_gpu_module_get(void) {
    static const td_gpu_module module = {
        .version = TD_GPU_MODULE_VERSION,
        .device_count = td_cuda_device_count,
        .device_describe = td_cuda_device_describe,
        .device_open = td_cuda_device_open,
        .ops_bf16 = &td_ops_cuda_bf16,
        .ops_fp32 = &td_ops_cuda_fp32,
        .nccl = &td_device_transport_nccl,
    };
    return &module;
}
