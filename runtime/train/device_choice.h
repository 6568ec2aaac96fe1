// Which device this rank computes on and how gradients travel between the ranks: one decision, made
// alike on every rank from what all of them see.
#ifndef TANDEM_TRAIN_DEVICE_CHOICE_H
#define TANDEM_TRAIN_DEVICE_CHOICE_H

#include "comm/device_comm.h"
#include "kernels/ops.h"
#include "runtime/core/config.h"

typedef struct td_device_choice {
    const td_device *device;
    const td_ops *ops; // checked, in the activation type asked for
    const td_device_transport *transport;
    int ranks_on_device; // that share the GPU, this one included; on the CPU 1
    char name[64];       // "CPU", "NVIDIA H200"
    // For a person. On the CPU: why not on a GPU, "" when that was asked for. On GPUs of several
    // ranks: why not by NCCL, "" when it is.
    char why_not[512];
} td_device_choice;

// Collective. TD_ERR_USAGE, on every rank, when the ranks see different devices, when two share a
// GPU and share_gpus is not set, or when what the config asks for cannot be had: one line that
// names a rank and why.
td_status td_device_choose(const td_config *config, td_comm *comm, td_device_choice *out);
// Local. The CPU's operations with such products, checked.
td_status td_device_cpu_ops(td_matmul_precision precision, const td_ops **out);
// Local. TD_ERR_USAGE for fp32 activations on a GPU with products in bf16: there is no such table.
td_status td_device_check_gpu_precision(int bf16, td_matmul_precision precision);
// The line that a run starts with, from rank 0; a second where the processor has to emulate.
void td_device_choice_print(const td_device_choice *choice, int n_threads, int size);

#endif
