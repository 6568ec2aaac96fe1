// Every family against transformers and PEFT on the CPU: logits, loss and LoRA gradients of a tiny
// random model, with and without NF4, under every recompute policy, and token by token through the
// key-value cache.
//
//     test_families [medium]      medium: with products in bf16
#include <stdio.h>
#include <string.h>

#include "model/families_checks.h"

static const families_backend highest = {
    .ops = &td_ops_cpu, .logits = 1e-4, .loss = 2e-5, .gradient = 1e-5};
// As on a GPU in bf16 (tests/cuda_host/model.c): SmolLM 2 and Phi-3 beyond its first length amplify
// errors.
static const families_backend medium = {
    .ops = &td_ops_cpu_medium, .logits_relative = 6e-2, .loss = 1e-2, .gradient_relative = 2e-1};

int main(int argc, char **argv) {
    int is_medium = argc == 2 && strcmp(argv[1], "medium") == 0;
    families_backend backend = is_medium ? medium : highest;
    if (argc > 1 && !is_medium) {
        fprintf(stderr, "usage: test_families [medium]\n");
        return 2;
    }
    backend.device = td_device_cpu();
    return families_main(&backend);
}
