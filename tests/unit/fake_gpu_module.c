// A module with nothing behind it, for tests of the loader. The environment says what it claims.
#include <stdio.h>
#include <stdlib.h>

#include "runtime/core/gpu_module.h"

#ifdef FAKE_NEEDS_A_LIBRARY
int absent_function(void);
int (*const fake_need)(void) = absent_function;
#endif

static int device_count(char *reason, size_t reason_bytes) {
    const char *devices = getenv("FAKE_DEVICES");
    int count = devices ? atoi(devices) : 0;
    if (count == 0)
        snprintf(reason, reason_bytes, "nothing but air");
    return count;
}

static td_gpu_module module = {.device_count = device_count};

#ifdef FAKE_ENTRY
const td_gpu_module *td_gpu_module_get(void) {
    const char *version = getenv("FAKE_VERSION");
    module.version = version ? atoi(version) : TD_GPU_MODULE_VERSION;
    return &module;
}
#else
const td_gpu_module *fake_other_entry(void);
const td_gpu_module *fake_other_entry(void) {
    return &module;
}
#endif
