// Every family against transformers and PEFT on the CPU: logits, loss and LoRA gradients of a tiny
// random model, with and without NF4, under every recompute policy, and token by token through the
// key-value cache.
#include "model/families_checks.h"

int main(void) {
    return families_main(&(families_backend){.device = td_device_cpu(),
                                             .ops = &td_ops_cpu,
                                             .logits = 1e-4,
                                             .loss = 2e-5,
                                             .gradient = 1e-5});
}
