// Ranges for NVIDIA's profilers. NVTX is a header that looks for a profiler at the first call, and
// does nothing without one.
#include "runtime/core/device_cuda.h"

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>

void td_cuda_range_push(const char *name) {
    nvtxRangePushA(name);
}

void td_cuda_range_pop(void) {
    nvtxRangePop();
}

#else

void td_cuda_range_push(const char *name) {
    (void)name;
}

void td_cuda_range_pop(void) {
}

#endif
