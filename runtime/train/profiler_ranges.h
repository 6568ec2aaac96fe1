// Steps, micro-batches, phases and layers as nested ranges in a profiler of the device, if it has
// one.
#ifndef TANDEM_TRAIN_PROFILER_RANGES_H
#define TANDEM_TRAIN_PROFILER_RANGES_H

#include "runtime/core/device.h"

// Local. From now on the progress of this thread is told to the device's profiler; nothing is done
// for a device without. One device at a time.
void td_profiler_ranges_start(const td_device *device);
void td_profiler_ranges_stop(void);

#endif
