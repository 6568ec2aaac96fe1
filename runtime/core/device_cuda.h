// CUDA devices: one td_device per GPU, part of the CUDA module (runtime/core/gpu_module.h).
//
// Device memory comes from cudaMalloc, pinned memory from cudaHostAlloc; managed memory is never
// used. Streams do not synchronize with the default stream. Every call makes its device the calling
// thread's current one.
#ifndef TANDEM_CORE_DEVICE_CUDA_H
#define TANDEM_CORE_DEVICE_CUDA_H

#include "runtime/core/device.h"
#include "runtime/core/gpu_module.h"

TD_C_BEGIN

// Visible devices, 0 when there is no driver or it is too old: then `reason` says which, in words
// for a person.
int td_cuda_device_count(char *reason, size_t reason_bytes);
td_status td_cuda_device_describe(int index, td_gpu_info *out);
// One object per device, made at the first call, alive for ever.
td_status td_cuda_device_open(int index, const td_device **out);

// The cudaStream_t of a stream of a CUDA device.
void *td_cuda_stream_handle(td_stream *stream);
const td_device *td_cuda_stream_device(td_stream *stream);
// The cudaEvent_t of an event of a CUDA device.
void *td_cuda_event_handle(td_event *event);
// Ranges for a profiler (NVTX); nothing happens when the toolkit's header was not there.
void td_cuda_range_push(const char *name);
void td_cuda_range_pop(void);

// graph_cuda.c: entries of the device table.
td_status td_cuda_capture_begin(td_stream *stream);
td_status td_cuda_capture_end(td_stream *stream, td_graph **out);
td_status td_cuda_graph_launch(td_graph *graph, td_stream *stream);
void td_cuda_graph_destroy(td_graph *graph);

TD_C_END

#endif
