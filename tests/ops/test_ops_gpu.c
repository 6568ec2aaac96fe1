// The operation cases on the GPU module: a real GPU, or the emulation of tests/cuda_host/.
//
//     test_ops_gpu bf16|fp32 [--time] [operation]
#include <stdio.h>
#include <string.h>

#include "ops/case.h"
#include "runtime/core/gpu_module.h"

// Whatever the addresses and the order of threads and blocks: the same bits. But cuBLASLt chooses
// an algorithm that the alignment of its operands allows; the linear cases compare the bits of
// calls at the same addresses.
#define OWN_KERNELS "!linear_forward linear_backward"
static const op_variant variants[] = {
    {"first", NULL, 0, "!"},
    {"again, one buffer at another address", NULL, -6, OWN_KERNELS},
    {"at other addresses", NULL, 1, OWN_KERNELS},
};

int main(int argc, char **argv) {
    const td_gpu_module *module = NULL;
    const td_device *device = NULL;
    char reason[256] = "";
    int is_fp32 = argc > 1 && strcmp(argv[1], "fp32") == 0;
    if (argc < 2 || (!is_fp32 && strcmp(argv[1], "bf16") != 0)) {
        fprintf(stderr, "usage: test_ops_gpu bf16|fp32 [--time] [operation]\n");
        return 2;
    }
    td_gpu_module_load(&module, reason, sizeof reason);
    if (!module) {
        fprintf(stderr, "no GPU: %s\n", reason);
        return 1;
    }
    if (module->device_open(0, &device) != TD_OK) {
        fprintf(stderr, "%s\n", td_error_message());
        return 1;
    }
    return op_main(argc - 1, argv + 1,
                   &(op_backend){.device = device,
                                 .ops = is_fp32 ? module->ops_fp32 : module->ops_bf16,
                                 .variants = variants,
                                 .n_variants = sizeof variants / sizeof *variants});
}
