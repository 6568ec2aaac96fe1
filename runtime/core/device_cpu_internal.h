// How much memory this process may have: the node's, or less where a control group says so.
#ifndef TANDEM_CORE_DEVICE_CPU_INTERNAL_H
#define TANDEM_CORE_DEVICE_CPU_INTERNAL_H

#include <stddef.h>

#include "runtime/core/status.h"

// `root` is put before /proc and /sys; "" but in tests.
td_status td_cpu_memory_read(const char *root, size_t *free_bytes, size_t *total_bytes);

#endif
