// Every family against transformers and PEFT on the GPU module, emulated or real.
//
//     test_model_gpu bf16|fp32
#include <stdio.h>
#include <string.h>

#include "model/families_checks.h"
#include "runtime/core/gpu_module.h"

static const families_backend fp32 = {.logits = 1e-4, .loss = 2e-5, .gradient = 1e-5};
// 8 bits against 24: logits are off by about one percent in most families, by two to four in the
// SmolLM ones, where a few rows amplify errors. PyTorch in bf16 is off by as much: 1.3 percent
// (llama), 2.8 (smollm3), 3.6 (smollm2), with adapters, against itself in fp32.
static const families_backend bf16 = {
    .logits_relative = 6e-2, .loss = 1e-2, .gradient_relative = 2e-1};

int main(int argc, char **argv) {
    const td_gpu_module *module = NULL;
    char reason[256] = "";
    int is_fp32 = argc == 2 && strcmp(argv[1], "fp32") == 0;
    if (argc != 2 || (!is_fp32 && strcmp(argv[1], "bf16") != 0)) {
        fprintf(stderr, "usage: test_model_gpu bf16|fp32\n");
        return 2;
    }
    families_backend backend = is_fp32 ? fp32 : bf16;
    td_gpu_module_load(&module, reason, sizeof reason);
    if (!module) {
        fprintf(stderr, "no GPU: %s\n", reason);
        return 1;
    }
    if (module->device_open(0, &backend.device) != TD_OK) {
        fprintf(stderr, "%s\n", td_error_message());
        return 1;
    }
    backend.ops = is_fp32 ? module->ops_fp32 : module->ops_bf16;
    return families_main(&backend);
}
